"""The learning curve: paired by seed, nothing said from two seeds, what is lacking is counted."""

import json

import pandas as pd
import pytest

from benchmarks import runner
from benchmarks.claims import scale

ONE = {"set": "mop", "cells": 500, "sources": "s", "threads": 1, "seconds": 2.0, "gigabytes": 1.0}


@pytest.fixture
def curve(tmp_path):
    """Three seeds of scMoE and of logistic regression at 500 cells, two of a dense network."""
    rows = []
    for seed in range(3):
        parts = {m: {"accuracy": 0.5 + 0.1 * seed + gain, "r2 rna from atac": 0.2,
                     "r2 atac from rna": 0.4}
                 for m, gain in zip(scale.PARTS, (0.03, 0.02, 0.0), strict=True)}  # fmt: skip
        rows.append(ONE | {"method": "scMoE", "seed": seed, "scores": parts})
        simple = {scale.LOGISTIC: {"accuracy": 0.5 + 0.1 * seed}}
        rows.append(ONE | {"method": scale.LOGISTIC, "seed": seed, "scores": simple})
        dense = {scale.DENSE[0]: {"accuracy": 0.9}}
        rows.append(ONE | {"method": scale.DENSE[0], "seed": seed, "scores": dense})
    path = tmp_path / "curve.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    return scale.read(path)


def test_differences_are_paired_by_seed_and_two_seeds_say_nothing(curve):
    found = scale.differences(curve, scale.CONTRASTS, ["accuracy"])
    assert set(found["theirs"]) == {scale.LINEAR, scale.LOGISTIC}
    assert found["difference"].tolist() == pytest.approx([0.02, 0.02])
    assert (found["low"] > 0.019).all() and (found["seeds"] == 3).all()


def test_translations_are_averaged_over_pairs_and_parts_have_no_seconds_of_their_own(curve):
    rows = curve[curve["seed"] == 0].set_index("method")
    assert rows.at[scale.EXPERTS, "r2"] == pytest.approx(0.3)
    assert rows["seconds"].notna().to_dict() == {
        "scMoE": True, scale.EXPERTS: False, scale.LINEAR: False, scale.LOGISTIC: True,
        scale.DENSE[0]: True,
    }  # fmt: skip


def test_what_is_planned_and_not_there_is_counted(curve):
    lacking = scale.missing(curve)
    assert lacking["planned"].sum() == len(list(runner.curve(None, None, range(3))))
    done = lacking["planned"] - lacking["not measured yet"]
    assert done.loc[("mop", "curve")] == done.sum() == 8


def test_the_committed_curve_is_of_real_cells_and_of_one_recipe():
    table = scale.read()
    assert table["sources"].nunique() == 1
    assert not set(table["source"]) & {"stand-in", "excerpt"}
    assert not table.duplicated(["set", "cells", "method", "seed"]).any()


def test_straight_lines_through_small_sizes_say_what_large_ones_cost():
    cells = pd.Index([10, 20, 40, 1000], name="cells")
    measured = pd.DataFrame({"seconds": [3.0, 5.0, 9.0, 1e9]}, cells)  # the largest is not asked
    told = scale.project(measured, [100, 1000], below=1000)
    assert told["seconds"].tolist() == pytest.approx([21, 201])
