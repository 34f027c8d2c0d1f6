# Executes the notebooks of one profile of runs.yml:
#   snakemake --cores 2                            quick (the default)
#   snakemake --cores 8 --resources gpu=2 --config profile=full
#   snakemake --profile profiles/slurm --config profile=full        each run a job of a cluster
# An interrupted or failed run is taken up again by the same command; what is done stays done.
# A profile's `records` are scored without pages, by benchmarks.record.matrix.

import hashlib
import itertools
import json
import os
import shutil
import sys
import time
from pathlib import Path

import yaml

PROFILE = config.get("profile", "quick")
PROFILES = yaml.safe_load(Path("runs.yml").read_text())["profiles"]
if PROFILE not in PROFILES:
    raise ValueError(f"runs.yml has no profile {PROFILE!r}; it has {', '.join(PROFILES)}")
SETTINGS = PROFILES[PROFILE]
FOLDER = f"book/runs/{PROFILE}"
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, not the user's
os.environ["PYTHONPATH"] = os.pathsep.join(  # notebooks import benchmarks, which is not installed
    [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
)


def swept(name, sweep):
    """Give {run: parameters}; the name of a run holds what is swept over."""
    return {
        "-".join([name, *(f"{key}_{value}" for key, value in zip(sweep, values, strict=True))]):
        dict(zip(sweep, values, strict=True))
        for values in itertools.product(*sweep.values())
    }


def matrix(settings):
    """Give {run: (notebook, parameters)}."""
    runs = {}
    for notebook, entry in settings.get("notebooks", {}).items():
        fixed = settings.get("parameters", {}) | entry.get("parameters", {})
        sweeps = entry.get("sweep", {})
        for sweep in sweeps if isinstance(sweeps, list) else [sweeps]:
            for run, values in swept(notebook, sweep).items():
                runs[run] = (notebook, fixed | values)
    return runs


def jobs(settings):
    """Give {job: parameters} of what is scored without a page: sets × methods × their sweep."""
    found = {}
    records = settings.get("records", {"sets": {}, "methods": {}})
    for name, cells in records["sets"].items():
        for methods, sweep in records["methods"].items():
            fixed = settings.get("parameters", {}) | {"dataset": name, "methods": methods} | cells
            for job, values in swept(f"{name}-{methods}", sweep).items():
                found[job] = fixed | values
    return found


def data_present():
    """Name and size of every data file: a page made without them is made anew when they come."""
    root = Path(os.environ.get("SCMOE_DATA") or "data").resolve()
    files = sorted([*root.glob("UnitedNet_NatComm_data/*/*"), *root.glob("MOp_SNAREseq2/*")])
    listing = [f"{file.relative_to(root)} {file.stat().st_size}" for file in files]
    return hashlib.sha256("\n".join([str(root), *listing]).encode()).hexdigest()[:12]


RUNS, JOBS = matrix(SETTINGS), jobs(SETTINGS)


def whole(file, key):
    """Whether an earlier run's file can be read; one changed this minute may be half-written."""
    if not file.is_file():
        return False
    try:
        return key in json.loads(file.read_bytes())
    except (ValueError, TypeError, RecursionError):
        return key == "cells" and time.time() - file.stat().st_mtime < 60


if workflow.is_main_process:  # a damaged record or notebook, or a lost notebook, is made again
    for run in RUNS:
        files = {Path(FOLDER, run, "metrics.json"): "records", Path(FOLDER, f"{run}.ipynb"): "cells"}
        if next(iter(files)).exists() and not all(whole(*item) for item in files.items()):
            print(f"{FOLDER}/{run}: damaged; now *.damaged, and made again", file=sys.stderr)
            for file in filter(Path.exists, files):
                file.replace(f"{file}.damaged")

CODE = sorted(str(file) for part in ("scmoe", "benchmarks") for file in Path(part).rglob("*.py"))


def parameters(run):
    """Give a run's parameters as JSON, which is YAML too and keeps their types."""
    given = {"out_dir": f"{FOLDER}/{run}", "threads": SETTINGS["threads"]}
    if run in JOBS:
        return json.dumps(JOBS[run] | given)
    return json.dumps(RUNS[run][1] | given | {"profile": PROFILE})


def after(run):
    """Give what a run reads, files or the records of other runs: it comes when they are there.

    One about a data set loads the model that the data set's own run leaves.
    """
    notebook, values = RUNS[run]
    decide = ("task", "protocol", "fold", "seed", "epochs", "modalities")
    names = [
        other
        for other, (name, theirs) in RUNS.items()
        if name == values.get("dataset")
        and all(values.get(key) == theirs.get(key) for key in decide)
    ]
    names += SETTINGS["notebooks"][notebook].get("after", [])
    return [name if "/" in name else f"{FOLDER}/{name}/metrics.json" for name in names]


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

# A workflow that is killed leaves its runs going: whoever starts one again waits for the first.
WAIT = "flock 8 || true" if shutil.which("flock") else ""
CPU_ALONE = ("simple", "ensembles")  # methods that no GPU helps


def gpus(run):
    """Give how many GPUs a run takes."""
    return SETTINGS["gpu"] * (JOBS.get(run, {}).get("methods") not in CPU_ALONE)


wildcard_constraints:
    run="[^/]+",
    job="|".join(JOBS) or "none",


rule all:
    input:
        expand(f"{FOLDER}/{{run}}/metrics.json", run=RUNS),
        expand(f"{FOLDER}/{{job}}/done", job=JOBS),


# The executed notebook is a log, so that a failed one stays and shows its traceback.
rule notebook:
    input:
        template=lambda wildcards: f"notebooks/{RUNS[wildcards.run][0]}.ipynb",
        code=CODE,
        after=lambda wildcards: after(wildcards.run),
    output:
        f"{FOLDER}/{{run}}/metrics.json",
    log:
        f"{FOLDER}/{{run}}.ipynb",
    params:
        values=lambda wildcards: parameters(wildcards.run),
        data=data_present(),
        take=lambda wildcards: TAKE_GPU * gpus(wildcards.run),
    threads: SETTINGS["threads"]
    resources:
        gpu=lambda wildcards: gpus(wildcards.run),
    shell:
        """
        exec 8> .snakemake/{wildcards.run}.lock
        {WAIT}
        [ ! -e {output} ] || exit 0  # the first has made it
        {params.take}
        {sys.executable} -m papermill --kernel python3 --no-progress-bar \
            --parameters_yaml {params.values:q} {input.template} {log}
        """


# Its folds' records are no outputs: those that are there outlive a failure, and are not redone.
rule records:
    input:
        code=CODE,
    output:
        touch(f"{FOLDER}/{{job}}/done"),
    params:
        values=lambda wildcards: parameters(wildcards.job),
        data=data_present(),
        take=lambda wildcards: TAKE_GPU * gpus(wildcards.job),
    threads: SETTINGS["threads"]
    resources:
        gpu=lambda wildcards: gpus(wildcards.job),
    shell:
        """
        exec 8> .snakemake/{wildcards.job}.lock
        {WAIT}
        {params.take}
        {sys.executable} -m benchmarks.record.matrix {params.values:q}
        """
