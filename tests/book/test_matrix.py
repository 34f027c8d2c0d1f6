"""The matrix of runs: resumable, and a failure keeps its traceback."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat.v4 as nb
import pytest
import yaml

from scmoe import record
from scmoe.data.backbones import BACKBONES

KNOWN = ["dataset", *record.PARAMETERS]
ROOT = Path(__file__).parents[2]
TEMPLATE = """import json, pathlib
folder = pathlib.Path(out_dir)
folder.mkdir(parents=True, exist_ok=True)
assert fold != failing, "fold is failing"
(folder / "metrics.json").write_text(json.dumps({"records": []}))"""


@pytest.fixture
def matrix(tmp_path):
    """A copy of the workflow with a notebook of its own: two folds, of which one fails."""
    shutil.copy(ROOT / "Snakefile", tmp_path)
    (tmp_path / "scmoe").mkdir()
    (tmp_path / "scmoe" / "model.py").write_text("a = 1\n")
    (tmp_path / "notebooks").mkdir()
    parameters = nb.new_code_cell(
        "fold = 0\nfailing = 1\nprofile = None\nout_dir = None\nthreads = None",
        metadata={"tags": ["parameters"]},
    )
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nb.new_notebook(
        cells=[parameters, nb.new_code_cell(TEMPLATE)], metadata={"kernelspec": kernel}
    )
    (tmp_path / "notebooks" / "tiny.ipynb").write_text(json.dumps(book))
    notebooks = {"tiny": {"sweep": {"fold": [0, 1]}}}
    profile = {"threads": 1, "gpu": 0, "notebooks": notebooks}
    (tmp_path / "runs.yml").write_text(yaml.safe_dump({"profiles": {"quick": profile}}))
    return tmp_path


def snakemake(folder, *options):
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--keep-going", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_a_failed_run_keeps_its_notebook_and_stops_no_other(matrix):
    runs = matrix / "book" / "runs" / "quick"
    assert snakemake(matrix).returncode != 0
    assert (runs / "tiny-fold_0" / "metrics.json").exists()
    assert not (runs / "tiny-fold_1" / "metrics.json").exists()
    assert "fold is failing" in (runs / "tiny-fold_1.ipynb").read_text()

    left = snakemake(matrix, "--dry-run").stdout
    assert "run=tiny-fold_1" in left
    assert "run=tiny-fold_0" not in left


@pytest.mark.slow
def test_nothing_changed_means_nothing_runs_and_new_code_means_all_runs(matrix):
    template = matrix / "notebooks" / "tiny.ipynb"
    template.write_text(template.read_text().replace("failing = 1", "failing = None"))
    assert snakemake(matrix).returncode == 0
    assert "Nothing to be done" in snakemake(matrix, "--dry-run").stdout
    (matrix / "scmoe" / "model.py").write_text("a = 2\n")
    assert "Nothing to be done" not in snakemake(matrix, "--dry-run").stdout


@pytest.mark.slow
def test_what_is_damaged_of_a_run_is_made_again_and_nothing_else(matrix):
    runs = yaml.safe_load((matrix / "runs.yml").read_text())
    runs["profiles"]["quick"]["notebooks"]["tiny"]["sweep"]["fold"] = list(range(6))
    (matrix / "runs.yml").write_text(yaml.safe_dump(runs))
    template = matrix / "notebooks" / "tiny.ipynb"
    template.write_text(template.read_text().replace("failing = 1", "failing = None"))
    assert snakemake(matrix).returncode == 0
    folder = matrix / "book" / "runs" / "quick"
    kept, *records = (folder / f"tiny-fold_{fold}" / "metrics.json" for fold in range(3))
    notebooks = [folder / f"tiny-fold_{fold}.ipynb" for fold in (3, 4, 5)]
    records[0].write_text('{"records": [')
    records[1].write_text("[]")
    notebooks[0].unlink()
    for notebook, content in zip(notebooks[1:], ('{"cells": [', ""), strict=True):
        notebook.write_text(content)
        os.utime(notebook, (0, 0))
    before = kept.stat().st_mtime_ns
    again = snakemake(matrix)
    assert again.returncode == 0
    assert again.stderr.count(": damaged; now *.damaged, and made again") == 5
    assert all("records" in json.loads(path.read_text()) for path in records)
    assert all("cells" in json.loads(path.read_text()) for path in notebooks)
    assert kept.stat().st_mtime_ns == before
    assert "Nothing to be done" in snakemake(matrix, "--dry-run").stdout


@pytest.mark.slow
def test_a_run_that_reads_others_comes_last_and_again_when_they_change(matrix):
    template = matrix / "notebooks" / "tiny.ipynb"
    template.write_text(template.read_text().replace("failing = 1", "failing = None"))
    shutil.copy(template, matrix / "notebooks" / "last.ipynb")
    runs = yaml.safe_load((matrix / "runs.yml").read_text())
    runs["profiles"]["quick"]["notebooks"]["last"] = {
        "after": ["tiny-fold_0", "tiny-fold_1", "book/table.csv"]
    }
    (matrix / "runs.yml").write_text(yaml.safe_dump(runs))
    (matrix / "book").mkdir()
    (matrix / "book" / "table.csv").touch()
    assert snakemake(matrix).returncode == 0
    written = {
        name: (matrix / "book" / "runs" / "quick" / name / "metrics.json").stat().st_mtime
        for name in ("tiny-fold_0", "tiny-fold_1", "last")
    }
    assert max(written, key=written.get) == "last"
    (matrix / "book" / "table.csv").write_text("changed")
    left = snakemake(matrix, "--dry-run").stdout
    assert "run=last" in left
    assert "run=tiny" not in left


@pytest.mark.slow
def test_the_full_profile_covers_every_published_fold_and_all_methods():
    result = snakemake(ROOT, "--dry-run", "--printshellcmds", "--config", "profile=full")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "-m benchmarks.record.matrix" in line]
    given = [json.loads(shlex.split(line)[-1]) for line in lines]
    patchseq = [p for p in given if p["dataset"] == "patchseq"]
    assert all(p["fold"] == list(range(10)) for p in patchseq)
    seeds = {"dense": [0], "ensembles": [0]} | dict.fromkeys(
        ("scmoe", "simple", "unitednet", "peers"), range(3)
    )
    expected = {(methods, seed) for methods, numbers in seeds.items() for seed in numbers}
    assert {(p["methods"], p["seed"]) for p in patchseq} == expected
    assert {p.get("backbone", "linear") for p in given} == set(BACKBONES)
    for parameters in given:
        record.Run(**{k: v for k, v in parameters.items() if k in KNOWN} | {"fold": 0})
