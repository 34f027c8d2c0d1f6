"""Notebooks run by papermill, as a reader runs them, on a few cells in the published layout."""

import json
import os
import re
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scmoe
from scmoe.metrics import COLUMNS

ROOT = Path(__file__).resolve().parents[2]
MODALITIES = {
    "dyngen": ["dna", "pre_mrna", "mrna", "protein"],
    "dbitseq": ["rna", "protein", "niche"],
    "patchseq": ["rna", "ephys", "morph"],
    "atacseq": ["atac", "rna"],
}
N_CELLS = 60
pytestmark = pytest.mark.slow


def simulate(n_features, rng, positive=True):
    group = np.arange(N_CELLS) % 3
    X = rng.normal(size=(3, n_features))[group] + rng.normal(size=(N_CELLS, n_features))
    return np.abs(X).astype(np.float32) if positive else X.astype(np.float32)


def annotated(X, label_key, prefix, **columns):
    labels = [f"type{k}" for k in np.arange(N_CELLS) % 3]
    obs = pd.DataFrame({label_key: labels, **columns}, index=[f"c{i}" for i in range(N_CELLS)])
    var = pd.DataFrame(index=[f"{prefix}{j}" for j in range(X.shape[1])])
    return ad.AnnData(X, obs, var)


@pytest.fixture(scope="session")
def few_cells(tmp_path_factory):
    """The four data sets' folders, with sixty cells each: the loader calls them excerpts."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    folders = {}
    for name in ("Dyngen", "DBiTSeq", "patchseq", "ATACseq"):
        folders[name] = root / "UnitedNet_NatComm_data" / name
        folders[name].mkdir(parents=True)
    halves = {"train": slice(0, 45), "test": slice(45, None)}
    cells = annotated(simulate(20, rng), "label", "gene")
    for key in "pPDm":
        cells.obsm[key] = simulate(20, rng)
    for half, rows in halves.items():
        cells[rows].copy().write_h5ad(folders["Dyngen"] / f"adata_pPRm_{half}_cv_0.h5ad")
    place = {"array_row": np.arange(N_CELLS) // 10, "array_col": np.arange(N_CELLS) % 10}
    for part, n in (("rna", 30), ("protein", 8), ("niche_rna", 30)):
        cells = annotated(simulate(n, rng), "cell_type", part, **place)
        cells.obsm["spatial"] = cells.obs[["array_col", "array_row"]].to_numpy(float)
        for half, rows in halves.items():
            cells[rows].copy().write_h5ad(folders["DBiTSeq"] / f"adata_{part}_{half}.h5ad")
    for part, n in (("RNA", 30), ("Ephys", 12), ("Morph", 20)):
        cells = annotated(simulate(n, rng, part == "RNA"), "cell_type_TEM", part.lower())
        cells.write_h5ad(folders["patchseq"] / f"adata_{part}_TEM.h5ad")
    batch = np.where(np.arange(N_CELLS) < 15, "s1d1", "s1d2")
    peaks = sparse.csr_matrix((simulate(40, rng) > 1).astype(np.float32))
    for part, X in (("atac", peaks), ("gex", simulate(30, rng, positive=False))):
        cells = annotated(X, "cell_type", part, batch=batch)
        cells.write_h5ad(folders["ATACseq"] / f"{part}_processed.h5ad")
    return root


def papermill(name, folder, root, check=True, **parameters):
    """Run a notebook from the command line; give the executed one, or the failed process."""
    parameters = {"epochs": 1, "threads": 1, "device": "cpu", "out_dir": str(folder)} | parameters
    folder.mkdir(parents=True, exist_ok=True)
    executed = folder / "executed.ipynb"
    process = subprocess.run(
        [sys.executable, "-m", "papermill", "--kernel", "python3", "--no-progress-bar", "-y",
         json.dumps(parameters), str(ROOT / "notebooks" / f"{name}.ipynb"), str(executed)],
        env=os.environ | {"SCMOE_DATA": str(root), "JUPYTER_PREFER_ENV_PATH": "1",
                          "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    if check:
        assert process.returncode == 0, process.stderr[-4000:]
        return json.loads(executed.read_text())["cells"]
    return process


def shown(cells, kind="text/html"):
    """Give what the cells' outputs show, as one text."""
    return "\n".join(
        "".join(output["data"][kind])
        for cell in cells
        for output in cell.get("outputs", [])
        if kind in output.get("data", {})
    )


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="session", params=MODALITIES)
def finished(request, few_cells, tmp_path_factory):
    """One run of each notebook: name, executed cells, run folder."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, papermill(request.param, folder, few_cells), folder


def test_a_run_leaves_a_complete_record(finished):
    name, _, folder = finished
    content = metrics(folder)
    records = pd.DataFrame(content["records"])
    assert list(records.columns) == COLUMNS
    assert np.isfinite(records["value"]).all()
    assert content["provenance"]["undefined"] == []
    assert content["provenance"]["parameters"]["epochs"] == 1
    assert len(content["provenance"]["checksums"]) >= 2
    ours = records[records["method"] == "scMoE"]
    assert {"accuracy", "balanced_accuracy", "macro_f1", "ari", "nmi", "ece"} <= set(ours["metric"])
    for method in ("scMoE", "scMoE linear", "ridge"):
        rows = records[(records["method"] == method) & (records["metric"] == "r2")]
        pairs = set(zip(rows["target_modality"], rows["source_modality"], strict=True))
        assert pairs == set(permutations(MODALITIES[name], 2)), method


def test_a_run_leaves_a_model_that_predicts(finished, few_cells):
    name, _, folder = finished
    split = scmoe.data.load(name, root=few_cells)
    predicted = scmoe.ScMoE.load(folder / "model", device="cpu").predict(split.test)["group"]
    accuracy = (predicted == split.test.obs[split.label_key].astype(str)).mean()
    records = pd.DataFrame(metrics(folder)["records"])
    ours = records[(records["method"] == "scMoE") & (records["metric"] == "accuracy")]
    assert accuracy == pytest.approx(ours["value"].item())


def test_the_page_says_that_the_cells_are_an_excerpt_and_where_they_are_drawn(finished):
    _, cells, _ = finished
    first = next(cell for cell in cells if cell.get("outputs"))
    assert "an excerpt" in shown([first])
    assert "<svg" in shown(cells, "image/svg+xml")
    captions = re.findall("<caption>(.*?)</caption>", shown(cells))
    assert len(captions) >= 3
    assert all("(excerpt of the data)" in caption for caption in captions)


def test_the_page_glues_its_two_answers_for_its_first_screen(finished):
    _, cells, _ = finished
    glued = {
        output["metadata"]["scrapbook"]["name"]: "".join(output["data"]["text/markdown"])
        for cell in cells
        for output in cell.get("outputs", [])
        if "scrapbook" in output.get("metadata", {})
    }
    assert set(glued) == {"groups", "translation"}
    text = "".join("".join(cell["source"]) for cell in cells[:8])
    assert all("{glue:md}`" + name + "`" in text for name in glued)
    assert all(re.search(r"\d|–", words) for words in glued.values())


def test_the_page_has_no_warnings_and_no_errors(finished):
    _, cells, _ = finished
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    streams = ["".join(o["text"]) for o in outputs if o["output_type"] == "stream"]
    assert not [text for text in streams if "Warning" in text]


def test_the_same_seed_gives_the_same_values(few_cells, tmp_path):
    runs = [papermill("patchseq", tmp_path / str(i), few_cells) and metrics(tmp_path / str(i))
            for i in range(2)]  # fmt: skip
    assert runs[0]["records"] == runs[1]["records"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("patchseq", {"task": "unsupervised", "modalities": ["ephys", "morph"]}),
        ("patchseq", {"modalities": ["rna"]}),
        ("dbitseq", {"task": "unsupervised", "fold": "block-1"}),
        ("dyngen", {"protocol": "paper", "task": "unsupervised"}),
        ("atacseq", {"fold": "s1d2", "modalities": "rna"}),
    ],
    ids=str,
)
def test_other_parameters_run_through(name, parameters, few_cells, tmp_path):
    cells = papermill(name, tmp_path, few_cells, **parameters)
    assert "<caption>" in shown(cells)
    content = metrics(tmp_path)
    ours = {row["protocol"] for row in content["records"] if row["method"].startswith("scMoE")}
    assert ours == {parameters.get("protocol", "strict")}
    assert {row["fold"] for row in content["records"]} == {parameters.get("fold", 0)}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epoch": 3}, "unknown parameter 'epoch'. Did you mean 'epochs'"),
        ({"epochs": "many"}, "parameter epochs='many'"),
        ({"fold": 99}, "no fold 99"),
        ({"data_root": "nowhere", "allow_standin": False}, "python -m scmoe.data fetch patchseq"),
    ],
    ids=str,
)
def test_bad_parameters_fail_before_training_and_leave_no_record(
    parameters, message, few_cells, tmp_path
):
    process = papermill("patchseq", tmp_path / "run", few_cells, check=False, **parameters)
    assert process.returncode != 0
    assert message in process.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["executed.ipynb"]


@pytest.mark.parametrize("name", ["dbitseq", "mop"])
def test_without_files_the_page_says_stand_in_and_draws_no_conclusion(name, tmp_path):
    cells = papermill(name, tmp_path / "run", tmp_path)
    assert "a simulated stand-in" in shown(cells)
    claims = [words for words in shown(cells, "text/markdown").split("\n") if words]
    assert claims and all(w.startswith("*Not tested on simulated stand-ins:*") for w in claims)
    captions = re.findall("<caption>(.*?)</caption>", shown(cells))
    assert all("stand-in" in caption for caption in captions)
    assert {row["data_source"] for row in metrics(tmp_path / "run")["records"]} == {"stand-in"}


def test_compare_refuses_no_table_but_the_committed_one(tmp_path):
    """A reader's own table may say otherwise; of the committed one every sentence has to hold."""
    columns = {"dataset": "patchseq", "data_source": "local", "protocol": "strict", "seed": 0,
               "task": "supervised", "metric": "accuracy", "modalities": "rna+ephys"}  # fmt: skip
    rows = [columns | {"method": method, "fold": fold, "value": 0.5 + 0.01 * fold}
            for method in ("scMoE", "ridge") for fold in range(3)]  # fmt: skip
    pd.DataFrame(rows).reindex(columns=COLUMNS).to_csv(tmp_path / "own.csv", index=False)
    (tmp_path / "own.json").write_text('{"runs": [], "refused": {}}')
    given = {"reference": str(tmp_path / "own.csv"), "records": str(tmp_path)}
    cells = papermill("compare", tmp_path / "run", tmp_path, **given)
    assert "**Takeaway.**" not in shown(cells, "text/markdown")
    assert "patchseq" in shown(cells)


def test_every_sentence_about_the_committed_table_holds(tmp_path):
    cells = papermill("compare", tmp_path / "run", tmp_path, records=str(tmp_path))
    said = shown(cells, "text/markdown")
    assert said.startswith("**Takeaway.** ")
    assert "In this run not shown" not in said


@pytest.mark.parametrize("name", ["leaks", "conflict"])
def test_a_page_on_a_claim_shows_its_own_run_beside_the_table_of_record(name, few_cells, tmp_path):
    cells = papermill(name, tmp_path, few_cells)
    words = shown(cells, "text/markdown")
    assert "**Takeaway.**" in words and "*The table of record.*" in words
    assert "an excerpt" in shown(cells) and "this run" in shown(cells).lower()
    records = pd.DataFrame(metrics(tmp_path)["records"])
    assert {"accuracy", "r2"} <= set(records["metric"])
    assert set(records["data_source"]) == {"excerpt"}
