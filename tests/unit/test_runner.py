"""Curve and search go on where they stopped, and no test cell is searched on."""

import json

import pytest

from benchmarks import runner
from scmoe.data import load_simulated


@pytest.fixture(scope="module")
def split():
    return load_simulated(0, 0, ["mrna", "protein"], cells=200, genes=40)


def test_nested_cells_hold_no_test_cell(split):
    inner = runner.nested(split, 0)
    parts = [set(cells.obs_names) for cells in (inner.train, inner.val, inner.test)]
    assert not set(split.test.obs_names) & set.union(*parts)
    assert sum(map(len, parts)) == split.train.n_obs + split.val.n_obs == len(set.union(*parts))


def test_fewer_cells_keep_the_shares_of_training_and_validation(split):
    fewer = runner.some_of(split, 80, 0)
    assert fewer.train.n_obs + fewer.val.n_obs == pytest.approx(80, abs=4)
    assert set(fewer.train.obs_names) < set(split.train.obs_names)
    assert fewer.test is split.test and fewer.groups == split.groups


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch, capsys):
    sources = runner.source_hash()
    cases = [{"set": "mop", "cells": 500, "method": m, "seed": 0} for m in ("ridge", "scMoE")]
    done = cases[0] | {"scores": {}, "sources": sources}
    stale = cases[1] | {"scores": {}, "sources": "older"}
    (tmp_path / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (done, stale)))
    asked = []
    monkeypatch.setattr(runner, "curve", lambda *_: iter(cases))
    monkeypatch.setattr(
        runner.subprocess,
        "run",
        lambda command: (
            asked.append(json.loads(command[-1])) or type("Done", (), {"returncode": 0})
        ),
    )
    monkeypatch.setattr("sys.argv", ["runner", "curve", "--out", str(tmp_path)])
    runner.main()
    assert asked == [cases[1]]
    assert "scMoE" in capsys.readouterr().out
