"""The table of record: complete, sorted, replaced where run again, and of one version of ours."""

import json
import shutil

import pandas as pd
import pytest

from scmoe import collect, matrix, report_compare, report_shortfalls
from scmoe.metrics import COLUMNS
from scmoe.record import Run

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


def test_the_comparison_reads_it_and_the_readers_runs(folder, table, tmp_path):
    own = tmp_path / "quick" / "dyngen-100x60-s5"
    shutil.copytree(folder / "scmoe" / "fold_0", own)
    shutil.copytree(own, own.with_name("leaks"))  # another page's records are not the set's own
    where = {"records": str(own.parent), "reference": str(table)}
    found = report_compare.load(Run("compare", extra=where))
    assert len(found.own) == len(json.loads((own / "metrics.json").read_text())["records"])
    assert "simulated" in report_compare.banner(found).data
    assert "the best simple method of each entry" in report_compare.takeaway(found).data
    shown = report_compare.record(found).data
    assert "reported in the paper" in shown
    assert "your run (quick)" in shown
    for rival in ("simple", "linear", "wide", "narrow"):
        assert "dyngen-100x60-s5" in report_compare.gains(found, rival).data
    for task in ("supervised", "translation"):
        assert "dyngen-100x60-s5" in report_compare.by_set(found, task).data
    means = report_shortfalls.summary(found).data.replace("<br>", " ")  # long names are wrapped
    for words in ("linear part alone", "one dense expert of equal parameters"):
        assert words in means


def test_a_number_of_the_paper_appears_once_it_is_filled_in(table, tmp_path, monkeypatch):
    assert report_compare.PAPER.read_text() == "set,task,metric,value\n"
    filled = tmp_path / "paper.csv"
    filled.write_text("set,task,metric,value\ndyngen-100x60-s5,supervised,accuracy,0.125\n")
    monkeypatch.setattr(report_compare, "PAPER", filled)
    where = {"records": str(tmp_path / "none"), "reference": str(table)}
    assert "0.125" in report_compare.record(report_compare.load(Run("compare", extra=where))).data


def test_without_any_records_the_comparison_says_so(tmp_path):
    where = {"records": str(tmp_path / "none"), "reference": str(tmp_path / "none.csv")}
    found = report_compare.load(Run("compare", extra=where))
    assert "no stored records" in report_compare.takeaway(found).data
    for show in (report_compare.record, report_compare.ranks, report_compare.origin,
                 report_compare.figure, report_compare.absent, report_compare.calibration,
                 report_compare.calibrated, report_compare.unitednet,
                 report_shortfalls.summary, report_shortfalls.why, report_shortfalls.pattern,
                 report_shortfalls.shortfalls):  # fmt: skip
        assert isinstance(show(found).data, str)
    assert "no stored records" in report_compare.by_set(found, "supervised").data


def comparison(rows, folder):
    row = {"dataset": "patchseq", "data_source": "local", "protocol": "strict", "seed": 0,
           "task": "supervised", "modalities": "rna+ephys", "target_modality": "",
           "source_modality": ""}  # fmt: skip
    pd.DataFrame([row | own for own in rows])[COLUMNS].to_csv(folder / "table.csv", index=False)
    (folder / "table.json").write_text('{"runs": [], "refused": {}}')
    where = {"records": str(folder / "none"), "reference": str(folder / "table.csv")}
    return report_compare.load(Run("compare", extra=where))


def test_a_smaller_calibration_error_is_a_gain(tmp_path):
    errors = {"scMoE": 0.10, "logistic regression (late fusion)": 0.15}
    rows = [{"method": name, "metric": metric, "fold": fold, "value": value}
            for name, value in errors.items() for fold in range(3)
            for metric in ("ece", "accuracy")]  # fmt: skip
    found = comparison(rows, tmp_path)
    assert "+0.050" in report_compare.calibrated(found).data
    assert "clearly higher in 0, clearly lower in 1" in report_compare.calibrated(found).data


def test_unitednet_stands_beside_its_authors_numbers(tmp_path):
    rows = [{"method": "UnitedNet", "task": "translation", "metric": "r2", "fold": fold,
             "target_modality": "ephys", "source_modality": "rna", "value": 0.2 + 0.1 * fold}
            for fold in range(2)]  # fmt: skip
    shown = report_compare.unitednet(comparison(rows, tmp_path)).data
    assert "2 test folds" in shown
    assert all(number in shown for number in ("0.250", "0.071", "0.272"))


def test_shortfalls_are_counted_and_named_with_and_without_hindsight(tmp_path):
    scores = {"scMoE": 0.5, "ridge": 0.7, "lasso": 0.4}
    rows = [{"method": name, "metric": "accuracy", "fold": fold,
             "value": value + (name == "lasso") * (fold == 0)}
            for name, value in scores.items() for fold in range(5)]  # fmt: skip
    found = comparison(rows, tmp_path)
    assert "lower in 1 entries with it, of which 1 remain" in report_shortfalls.why(found).data
    assert "<td>−0.200</td>" in report_shortfalls.pattern(found).data
    largest = report_shortfalls.shortfalls(found, 10).data
    assert "<td>ridge</td>" in largest
    assert "lasso" not in largest


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
