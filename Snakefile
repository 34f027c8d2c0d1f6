# Executes the notebooks of one profile of runs.yml:
#   snakemake --cores 2                            quick (the default)
#   snakemake --cores 8 --resources gpu=2 --config profile=full
# An interrupted or failed run is taken up again by the same command; what is done stays done.

import hashlib
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import yaml

PROFILE = config.get("profile", "quick")
PROFILES = yaml.safe_load(Path("runs.yml").read_text())["profiles"]
if PROFILE not in PROFILES:
    raise ValueError(f"runs.yml has no profile {PROFILE!r}; it has {', '.join(PROFILES)}")
SETTINGS = PROFILES[PROFILE]
FOLDER = f"book/runs/{PROFILE}"
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, not the user's


def matrix(settings):
    """Give {run: (notebook, parameters)}; the name of a run holds what is swept over."""
    runs = {}
    for notebook, entry in settings["notebooks"].items():
        fixed = settings.get("parameters", {}) | entry.get("parameters", {})
        sweep = entry.get("sweep", {})
        for values in itertools.product(*sweep.values()):
            swept = dict(zip(sweep, values, strict=True))
            name = "-".join([notebook, *(f"{key}_{value}" for key, value in swept.items())])
            runs[name] = (notebook, fixed | swept)
    return runs


def data_present():
    """Name and size of every data file: a page made without them is made anew when they come."""
    root = Path(os.environ.get("SCMOE_DATA") or "data").resolve()
    files = sorted(root.glob("UnitedNet_NatComm_data/*/*"))
    listing = [f"{file.relative_to(root)} {file.stat().st_size}" for file in files]
    return hashlib.sha256("\n".join([str(root), *listing]).encode()).hexdigest()[:12]


RUNS = matrix(SETTINGS)
CODE = sorted(str(file) for file in Path("scmoe").rglob("*.py"))


def parameters(run):
    """Give a run's parameters as JSON, which is YAML too and keeps their types."""
    given = {"profile": PROFILE, "out_dir": f"{FOLDER}/{run}", "threads": SETTINGS["threads"]}
    return json.dumps(RUNS[run][1] | given)


# Several GPUs on one machine: a run holds a free one by a lock. SLURM hands them out itself.
TAKE_GPU = ""
if SETTINGS["gpu"] and shutil.which("nvidia-smi") and "SLURM_JOB_ID" not in os.environ:
    TAKE_GPU = """
        gpu=0
        until exec 9> .snakemake/gpu$gpu.lock && flock --nonblock 9
        do
            gpu=$(( (gpu + 1) % $(nvidia-smi --list-gpus | wc -l) ))
            sleep 0.2
        done
        export CUDA_VISIBLE_DEVICES=$gpu"""


wildcard_constraints:
    run="[^/]+",


rule all:
    input:
        expand(f"{FOLDER}/{{run}}/metrics.json", run=RUNS),


# The executed notebook is a log, so that a failed one stays and shows its traceback.
rule notebook:
    input:
        template=lambda wildcards: f"notebooks/{RUNS[wildcards.run][0]}.ipynb",
        code=CODE,
    output:
        f"{FOLDER}/{{run}}/metrics.json",
    log:
        f"{FOLDER}/{{run}}.ipynb",
    params:
        values=lambda wildcards: parameters(wildcards.run),
        data=data_present(),
    threads: SETTINGS["threads"]
    resources:
        gpu=SETTINGS["gpu"],
    shell:
        """
        {TAKE_GPU}
        {sys.executable} -m papermill --kernel python3 --no-progress-bar \
            --parameters_yaml {params.values:q} {input.template} {log}
        """
