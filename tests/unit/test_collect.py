"""The table of record: complete, sorted, replaced where run again, and of one version of ours."""

import json

import pandas as pd
import pytest

from benchmarks.record import collect, matrix
from scmoe.metrics import COLUMNS

GIVEN = {"allow_standin": True, "cells": 100, "genes": 60, "simulation": 5, "threads": 1,
         "device": "cpu", "epochs": 1, "modalities": ["mrna", "protein"]}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of ours and of simple methods, two folds each."""
    folder = tmp_path_factory.mktemp("full")
    for methods in ("scmoe", "dense", "simple"):
        matrix.score_folds("dyngen", methods, [0, 1], str(folder / methods), seed=0, **GIVEN)
    return folder


@pytest.fixture
def table(folder, tmp_path):
    path = tmp_path / "table.csv"
    collect.collect(folder.rglob("metrics.json"), path)
    return path


def test_every_record_is_there_sorted_and_traceable(folder, table):
    records, provenance = collect.read_table(table)
    files = [json.loads(file.read_text()) for file in folder.rglob("metrics.json")]
    assert len(records) == sum(len(content["records"]) for content in files)
    assert list(records.columns) == COLUMNS
    assert records.equals(records.sort_values(COLUMNS[:-1], ignore_index=True))
    seconds = {name: s for made in provenance["runs"] for name, s in made["seconds"].items()}
    assert set(seconds) == {
        f"dyngen-100x60-s5 {methods} supervised strict fold {fold} seed 0"
        for methods in ("scmoe", "dense", "simple")
        for fold in (0, 1)
    }
    assert str(folder) not in table.with_suffix(".json").read_text()


def test_collecting_twice_changes_nothing(folder, table):
    before = table.read_bytes(), table.with_suffix(".json").read_bytes()
    collect.collect(folder.rglob("metrics.json"), table)
    assert (table.read_bytes(), table.with_suffix(".json").read_bytes()) == before


def test_a_newer_run_of_ours_replaces_all_that_older_sources_made(folder, table, tmp_path):
    (file,) = (folder / "scmoe" / "fold_0").glob("metrics.json")
    content = json.loads(file.read_text())
    content["provenance"]["made_from"]["sources"] = "another"
    content["records"][0]["value"] = 0.125
    newer = tmp_path / "metrics.json"
    newer.write_text(json.dumps(content))
    mine = ["scMoE", "scMoE experts", "scMoE linear"]
    others = len(collect.read_table(table)[0].query("method not in @mine"))
    assert collect.collect([newer], table) > 0
    records, provenance = collect.read_table(table)
    ours = records[records["method"].isin(mine)]
    assert set(ours["fold"]) == {"0"}
    assert 0.125 in ours["value"].tolist()
    assert len(records) - len(ours) == others
    assert {m["sources"] for m in provenance["runs"] if m["methods"] == "scmoe"} == {"another"}


def test_a_refusal_is_kept_until_the_peer_has_run(folder, tmp_path):
    (file,) = (folder / "simple" / "fold_0").glob("metrics.json")
    content = json.loads(file.read_text())
    content["provenance"]["refused"] = [{"method": "totalVI", "reason": "it models counts"}]
    first, second, path = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "table.csv"
    first.write_text(json.dumps(content))
    collect.collect([first], path)
    assert collect.read_table(path)[1]["refused"] == {
        "dyngen-100x60-s5": {"totalVI": "it models counts"}
    }
    content["provenance"]["refused"] = []
    content["records"] = [content["records"][0] | {"method": "totalVI"}]
    second.write_text(json.dumps(content))
    collect.collect([second], path)
    assert collect.read_table(path)[1]["refused"] == {}
    assert pd.Series(collect.read_table(path)[0]["method"]).eq("totalVI").any()
