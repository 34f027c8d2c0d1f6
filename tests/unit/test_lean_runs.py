"""What is scored without a page is what a page says, and is not scored twice."""

import json

import pandas as pd
import pytest

import scmoe
from benchmarks.record import matrix
from scmoe import record
from scmoe.networks import Experts

SMALL = {"allow_standin": True, "cells": 120, "genes": 60, "simulation": 5, "threads": 1,
         "device": "cpu", "epochs": 1, "modalities": ["mrna", "protein"]}  # fmt: skip


def scored(folder, methods, **given):
    matrix.score_folds("dyngen", methods, 0, str(folder), seed=0, **(SMALL | given))
    return json.loads((folder / "fold_0" / "metrics.json").read_text())


def test_ours_are_the_numbers_of_a_page(tmp_path):
    content = scored(tmp_path, "scmoe")
    extra = {name: SMALL[name] for name in record.SIMULATION if name in SMALL}
    given = SMALL | {"out_dir": tmp_path / "page"}
    run = scmoe.start_run("dyngen", given, list(extra))
    split = run.load()
    model = scmoe.ScMoE(run.task, run.config(), run.seed).fit(split, device="cpu", progress=False)
    methods = [model, model.experts, model.linear]
    ours = pd.concat([scmoe.evaluate(m, split.test) for m in methods], ignore_index=True)
    pd.testing.assert_frame_equal(pd.DataFrame(content["records"]), ours, check_dtype=False)
    assert ours["dataset"].unique() == ["dyngen-120x60-s5"]
    assert not (tmp_path / "fold_0" / "model").exists()


def test_dense_networks_have_the_experts_parameters_or_arithmetic(tmp_path, monkeypatch):
    configs = []
    fit = Experts.fit
    monkeypatch.setattr(
        Experts, "fit", lambda m, *a, **k: (configs.append(m.config.model), fit(m, *a, **k))[1]
    )
    records = pd.DataFrame(scored(tmp_path, "dense")["records"])
    assert records["method"].nunique() == 2
    sparse = scmoe.preset("dyngen").model
    widths = [config.hidden // sparse.hidden for config in configs]
    assert widths == [sparse.n_experts, sparse.top_k]
    assert all(config.n_experts == 1 for config in configs)


def test_simple_methods_cover_every_combination_and_both_tasks(tmp_path):
    records = pd.DataFrame(scored(tmp_path, "simple")["records"])
    read = records[records["method"].str.startswith("logistic")]["modalities"]
    assert set(read) == {"mrna", "protein", "mrna+protein"}
    assert {"supervised", "unsupervised", "translation"} == set(records["task"])
    key = [name for name in records if name != "value"]
    assert not records.duplicated(key).any()


@pytest.mark.parametrize("change", [{}, {"epochs": 2}])
def test_a_fold_is_scored_again_only_where_something_changed(change, tmp_path, monkeypatch):
    first = scored(tmp_path, "scmoe")
    loaded = []
    load = record.Run.load
    monkeypatch.setattr(record.Run, "load", lambda run: (loaded.append(run), load(run))[1])
    second = scored(tmp_path, "scmoe", **change)
    assert len(loaded) == len(change)
    assert bool(change) == (first["provenance"]["seconds"] != second["provenance"]["seconds"])


def test_a_method_that_cannot_be_used_says_why(tmp_path):
    content = scored(tmp_path, "peers", cells=60)
    reasons = {row["method"]: row["reason"] for row in content["provenance"]["refused"]}
    assert "peak counts" in reasons["MultiVI"] or "not installed" in reasons["MultiVI"]


def test_an_unknown_group_of_methods_is_refused(tmp_path):
    with pytest.raises(ValueError, match="scmoe, dense, simple"):
        scored(tmp_path, "all")
