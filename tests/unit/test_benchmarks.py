"""The benchmarks run, on sizes that say nothing."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch

import scmoe
from benchmarks import common
from benchmarks.speed import winners
from scmoe.nn.experts import BACKENDS, FASTEST, fastest


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["epochs", "parts", "experts", "scaling", "processes", "large", "gpu"]
)
def test_a_benchmark_runs_and_leaves_tables(name, tmp_path):
    command = [sys.executable, "-m", "benchmarks", name, "--tiny", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    tables = json.loads((tmp_path / f"{name}.json").read_text())["tables"]
    assert tables and all(isinstance(rows, list) for rows in tables.values())
    for rows in tables.values():
        assert not any("error" in row and row["error"] for row in rows), rows


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_gpu_benchmark_measures_nothing_without_a_gpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "gpu", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "No CUDA device" in done.stderr
    assert not list(tmp_path.iterdir())


def test_functions_are_timed_in_turn_and_the_first_round_does_not_count():
    called = []
    functions = {name: lambda name=name: called.append(name) for name in "ab"}
    taken = common.interleaved(functions, 2)
    assert called == ["a", "b"] * 3
    assert taken.keys() == {"a", "b"}


def test_the_slope_of_a_power_is_its_exponent():
    assert common.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_atac_cells_are_as_sparse_as_said_and_differ_between_groups():
    (peaks, genes), labels = common.atac_cells(300, 2000, 50, 3)
    assert peaks.nnz / (300 * 2000) == pytest.approx(common.OPEN, rel=0.1)
    means = pd.DataFrame(genes).groupby(labels).mean()
    assert means.std().mean() > 0.3


def test_the_backend_chosen_is_the_one_measured_fastest():
    rows = json.loads(FASTEST.read_text())["rows"]
    assert {row["backend"] for row in rows} <= set(BACKENDS)
    for row in rows:
        shape = [row[key] for key in ("tokens", "experts", "k", "width")]
        assert fastest(row["device"], getattr(torch, row["dtype"]), *shape) == row["backend"]


def test_grouped_stays_unless_another_backend_is_clearly_faster():
    sizes = {"tokens": 8, "experts": 2, "k": 1, "width": 16}
    times = {"grouped": 1.0, "dense": 0.95, "grouped bf16": 1.0, "dense bf16": 0.5}
    (exact, rounded) = winners(pd.DataFrame([sizes | times]))
    assert (exact["backend"], rounded["backend"]) == ("grouped", "dense")


def test_a_model_left_by_the_same_sources_settings_and_cells_is_loaded(tiny, tmp_path, monkeypatch):
    fits, fit = [], scmoe.ScMoE.fit
    monkeypatch.setattr(
        scmoe.ScMoE, "fit", lambda model, *a, **k: (fits.append(model.seed), fit(model, *a, **k))[1]
    )
    config, split = scmoe.Config().replace(epochs=1, patience=None), scmoe.data.split_mudata(tiny)
    models = [
        common.trained(scmoe.ScMoE(config=config, seed=seed), split, tmp_path, "cpu")
        for seed in (0, 0, 1)
    ]
    assert fits == [0, 1]
    tables = [model.predict(split.test) for model in models]
    pd.testing.assert_frame_equal(*tables[:2])
    assert not tables[1].equals(tables[2])
    assert {path.name for path in tmp_path.iterdir()} == {"made_from.json", "model"}
