"""What a run leaves behind: parameters are checked, records are whole and repeatable."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

import scmoe
from scmoe import record
from scmoe.metrics import COLUMNS

TEMPLATE = "\n".join(
    f"{name} = {value!r}"
    for name, value in {
        "task": "supervised", "protocol": "strict", "fold": 0, "seed": 0, "epochs": None,
        "modalities": None, "device": "cpu", "threads": None, "data_root": None,
        "allow_standin": True, "out_dir": None, "profile": "quick",
    }.items()
)  # fmt: skip


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def notebook(*injected, **values):
    """Give the namespace of a notebook after its parameter cells have run."""
    cells = ["", TEMPLATE, *injected]
    namespace = {"In": cells}
    for cell in cells:
        exec(cell, namespace)  # what the kernel does
    return namespace | values


def records(value=0.5, **changes):
    row = dict.fromkeys(COLUMNS, "") | {"dataset": "patchseq", "method": "scMoE", "fold": 0}
    return pd.DataFrame([row | {"seed": 0, "metric": "accuracy", "value": value} | changes])


def test_the_templates_own_parameters_are_accepted():
    run = scmoe.start_run("patchseq", notebook())
    assert (run.task, run.fold, run.modalities) == ("supervised", 0, None)
    assert run.parameters.keys() == set(record.PARAMETERS)


def test_papermills_values_win():
    run = scmoe.start_run("patchseq", notebook("# Parameters\nfold = 7\nseed = 3\n"))
    assert (run.fold, run.seed) == (7, 3)
    assert str(run.out_dir) == "runs/patchseq-supervised-strict-fold7-seed3"


def test_an_unknown_injected_parameter_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown parameter 'epoch'.*Did you mean 'epochs'.*task"):
        scmoe.start_run("patchseq", notebook("# Parameters\nepoch = 7\n"))


def test_an_unknown_name_in_the_template_itself_is_refused():
    with pytest.raises(ValueError, match="unknown parameter 'sead'"):
        scmoe.start_run("patchseq", {"In": [TEMPLATE + "\nsead = 1"]})


def test_a_corrected_cell_counts_not_the_mistake_before_it():
    cells = [TEMPLATE, "# Parameters\nepoch = 7\n", TEMPLATE, "# Parameters\nepochs = 7\n"]
    scmoe.start_run("patchseq", {"In": cells})


def test_other_cells_may_assign_what_they_like():
    scmoe.start_run("patchseq", {"In": [TEMPLATE, "seed = 3\nmine = 4", "%time x = 1", "y = 2"]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", "clustering"), ("protocol", "loose"), ("profile", "fast"), ("fold", -1),
        ("fold", 1.0), ("fold", True), ("fold", "3"), ("fold", None), ("seed", "0"), ("seed", -1),
        ("epochs", 0), ("epochs", 2.5), ("epochs", "10"), ("epochs", True), ("threads", 0),
        ("modalities", []), ("modalities", ["rna", "rna"]), ("modalities", ["rna", 3]),
        ("modalities", "rna,"), ("modalities", ["protein"]), ("modalities", 3), ("device", "gpu"),
        ("device", None), ("allow_standin", "yes"), ("allow_standin", 1), ("data_root", 3),
        ("data_root", ""), ("out_dir", False), ("fold", "<script>"), ("fold", "../../x"),
        ("fold", "a/b"), ("fold", ".a"), ("fold", "a b"), ("seed", 2**63),
    ],
)  # fmt: skip
def test_an_ill_typed_parameter_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^parameter {name}="):
        scmoe.start_run("patchseq", notebook(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fold", "block-0"), ("fold", "s1d1"), ("epochs", 1), ("device", "cuda:1"),
        ("modalities", ["ephys", "rna"]), ("modalities", "rna, ephys"), ("threads", 1),
    ],
)  # fmt: skip
def test_what_the_documentation_allows_is_accepted(name, value):
    scmoe.start_run("patchseq", notebook(**{name: value}))


def test_threads_and_seeds_are_set():
    scmoe.start_run("patchseq", notebook(threads=1, seed=5))
    assert torch.get_num_threads() == 1
    first = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    scmoe.start_run("patchseq", notebook(threads=1, seed=5))
    assert torch.equal(first[0], torch.rand(3))
    assert np.array_equal(first[1], np.random.rand(3))  # noqa: NPY002


def test_a_refused_run_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="fold"):
        scmoe.start_run("patchseq", notebook(fold=-1))
    assert not list(tmp_path.iterdir())


def test_metrics_json_holds_the_records_and_where_they_come_from(tmp_path):
    run = scmoe.start_run("patchseq", notebook(out_dir=str(tmp_path / "run")))
    content = json.loads(run.finish(records(np.float32(0.25), fold=np.int64(3))).read_text())
    assert content["records"] == [records(0.25, fold=3).iloc[0].to_dict()]
    wanted = (
        "parameters commit versions device threads checksums seconds peak_memory_mb data_source"
    )
    assert set(wanted.split()) <= set(content["provenance"])
    assert content["provenance"]["versions"].keys() >= {"python", "torch", "numpy", "anndata"}
    assert content["provenance"]["peak_memory_mb"] > 0


def test_an_undefined_score_is_listed_apart_so_that_no_nan_is_written(tmp_path):
    run = scmoe.start_run("patchseq", notebook(out_dir=str(tmp_path)))
    both = pd.concat([records(0.5), records(math.nan, metric="r2")])
    content = json.loads(run.finish(both).read_text(), parse_constant=pytest.fail)
    assert [row["metric"] for row in content["records"]] == ["accuracy"]
    assert [(r["metric"], r["value"]) for r in content["provenance"]["undefined"]] == [("r2", None)]


def test_incomplete_records_are_refused(tmp_path):
    run = scmoe.start_run("patchseq", notebook(out_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="lack the columns.*'value'"):
        run.finish(records().drop(columns="value"))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    run = scmoe.start_run("patchseq", notebook(out_dir=str(tmp_path)))
    before = run.finish(records(0.5)).read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        run.finish(records(0.9))
    assert (tmp_path / "metrics.json").read_bytes() == before


def test_values_survive_writing_and_reading_bit_for_bit(tmp_path):
    value = 0.1 + 0.2
    for number in range(2):
        folder = tmp_path / f"run{number}"
        scmoe.start_run("patchseq", notebook(out_dir=str(folder))).finish(
            records(value, seed=number)
        )
    table = scmoe.read_records(tmp_path)
    assert list(table.columns) == [*COLUMNS, "run"]
    assert list(table["value"]) == [value, value]
    assert list(table["seed"]) == [0, 1]
    one = scmoe.read_records([folder / "metrics.json"])
    assert one["run"].tolist() == [str(folder / "metrics.json")]


def test_reading_where_nothing_ran(tmp_path):
    assert scmoe.read_records(tmp_path).empty
    with pytest.raises(FileNotFoundError, match="nothing has run there"):
        scmoe.read_records(tmp_path / "nowhere")


def test_a_fold_may_be_named_for_a_batch():
    assert scmoe.record.Run("mop", fold="09A").fold == "09A"
