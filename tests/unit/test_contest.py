"""Paired comparisons: the right pairs, the right spread, and the rival's best foot forward."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.record import contest
from scmoe.metrics import COLUMNS


def records(method, values, **changes):
    """One record per (fold, seed)."""
    row = {"dataset": "patchseq", "data_source": "local", "protocol": "strict", "method": method,
           "task": "supervised", "modalities": "rna+ephys", "metric": "accuracy",
           "target_modality": "", "source_modality": ""} | changes  # fmt: skip
    rows = [row | {"fold": f, "seed": s, "value": v} for (f, s), v in values.items()]
    return pd.DataFrame(rows)[COLUMNS]


def grid(value, folds=5, seeds=2):
    return {(f, s): value(f, s) for f in range(folds) for s in range(seeds)}


def test_seeds_are_averaged_and_folds_are_what_is_repeated():
    difference = pd.Series(grid(lambda f, s: 0.01 * f + (0.5 if s else -0.5)))
    difference.index.names = ["fold", "seed"]
    found = contest.paired(difference)
    means = np.arange(5) * 0.01
    assert found["n"] == 5
    assert found["difference"] == pytest.approx(means.mean())
    assert found["se"] == pytest.approx(stats.sem(means))
    corrected = means.std(ddof=1) * np.sqrt(1 / 5 + 1 / 4)
    assert found["high"] - found["low"] == pytest.approx(2 * stats.t.ppf(0.975, 4) * corrected)


def test_the_correction_is_for_as_many_folds_as_the_set_has():
    names = ["patchseq", "dbitseq blocks", "dyngen-cycle-hard", "mop", "mop batches", "my own"]
    assert [contest.folds_of(name) for name in names] == [10, 5, 5, 5, 12, 5]
    difference = pd.Series(grid(lambda f, s: 0.01 * f, folds=3))
    difference.index.names = ["fold", "seed"]
    wide, narrow = contest.paired(difference, 5), contest.paired(difference, 10)
    ratio = (wide["high"] - wide["low"]) / (narrow["high"] - narrow["low"])
    assert ratio == pytest.approx(np.sqrt((1 / 3 + 1 / 4) / (1 / 3 + 1 / 9)))


def test_one_fold_repeats_seeds_without_a_correction():
    difference = pd.Series({(0, 0): 0.1, (0, 1): 0.2, (0, 2): 0.3})
    difference.index.names = ["fold", "seed"]
    found = contest.paired(difference)
    assert found["n"] == 3


def test_the_best_rival_is_compared_on_shared_folds_and_seeds_only():
    table = contest.prepare(
        pd.concat(
            [
                records("scMoE", grid(lambda f, s: 0.8)),
                records("late fusion", grid(lambda f, s: 0.7)),
                records("k-nearest", {(0, 0): 0.75, (9, 9): 0.1}),  # fold 9 is not ours
            ]
        )
    )
    found = contest.differences(table, "simple")
    assert set(found["rival"]) == {"k-nearest"}
    assert found["difference"].tolist() == pytest.approx([0.05])


def test_ours_and_peers_are_no_simple_methods():
    names = ["scMoE", "scMoE linear", "UnitedNet", "ridge"]
    table = contest.prepare(pd.concat([records(n, grid(lambda f, s: 0.5)) for n in names]))
    kinds = table.drop_duplicates("method").set_index("method")["kind"]
    assert kinds.to_dict() == dict(zip(names, ["ours", "ours", "peer", "simple"], strict=True))


def test_coordinates_alone_are_no_rival():
    parts = [records("scMoE", {(0, 0): 0.5}), records("late fusion", {(0, 0): 0.4})]
    parts.append(records(contest.LOCATION, {(0, 0): 0.9}, modalities="coordinates"))
    table = contest.prepare(pd.concat(parts))
    assert contest.differences(table, "simple")["rival"].tolist() == ["late fusion"]


def noisy(n_methods, folds=10, sets=("patchseq",)):
    """Ours and methods that are as good on average, each with noise of its own."""
    rng, parts = np.random.default_rng(0), []
    for name in ["scMoE", *(f"method {i}" for i in range(n_methods))]:
        noise = 0 if name == "scMoE" else 0.1
        for dataset in sets:
            values = {(fold, 0): 0.5 + noise * rng.normal() for fold in range(folds)}
            parts.append(records(name, values, dataset=dataset))
    return contest.prepare(pd.concat(parts))


def test_hindsight_picks_noise_and_a_choice_on_other_folds_does_not():
    table = noisy(40, sets=[f"dyngen-{i}" for i in range(30)])
    hindsight, honest = (
        contest.overall(contest.by_entry(found))
        for found in (contest.differences(table, "simple"), contest.chosen_elsewhere(table))
    )
    assert hindsight["high"] < -0.05
    assert abs(honest["mean"]) < 0.015
    assert honest["low"] < 0 < honest["high"]


def test_a_method_that_is_better_everywhere_is_chosen_without_hindsight_too():
    table = noisy(3)
    table.loc[table["entrant"].eq("method 1"), "value"] += 1
    there = contest.chosen_elsewhere(table)
    assert set(there["rival"]) == {"method 1"}
    expected = contest.differences(table, "simple")
    pd.testing.assert_frame_equal(there.sort_values("fold", ignore_index=True),
                                  expected.sort_values("fold", ignore_index=True))  # fmt: skip


def test_no_fold_has_a_say_in_its_own_rival():
    table = noisy(5)
    before = contest.chosen_elsewhere(table).set_index("fold")["rival"]
    table.loc[table["entrant"].eq("method 2") & table["fold"].eq("3"), "value"] = 9
    after = contest.chosen_elsewhere(table).set_index("fold")["rival"]
    assert before["3"] == after["3"]
    assert set(after.drop("3")) == {"method 2"}


def test_where_folds_are_few_other_sets_of_the_same_data_choose():
    scores = {"scMoE": (0.5, 0.5), "a": (0.9, 0.1), "b": (0.2, 0.8)}
    parts = [records(name, {("s1d1", 0): first, ("s1d2", 0): second}, dataset="atacseq")
             for name, (first, second) in scores.items()]  # fmt: skip
    parts.append(records("scMoE", {(0, 0): 0.5}))  # one fold of a set, and no other: no row
    parts.append(records("a", {(0, 0): 0.5}))
    found = contest.chosen_elsewhere(contest.prepare(pd.concat(parts))).set_index("set")
    assert found["rival"].to_dict() == {"atacseq s1d1": "b", "atacseq s1d2": "a"}
    assert found["difference"].tolist() == pytest.approx([0.3, 0.4])


def test_blocks_and_batches_are_sets_of_their_own_and_the_paper_protocol_is_left_out():
    table = contest.prepare(
        pd.concat(
            [
                records("scMoE", {(0, 0): 1, ("block-1", 0): 1}, dataset="dbitseq"),
                records("scMoE", {("s1d1", 0): 1, ("s1d2", 0): 1}, dataset="atacseq"),
                records("scMoE", {(3, 0): 1, ("09A", 0): 1}, dataset="mop"),
                records("scMoE", {(0, 0): 1}, protocol="paper"),
                records("scMoE", {(0, 0): 1}, metric="ece"),
            ]
        )
    )
    sets = {"dbitseq", "dbitseq blocks", "atacseq s1d1", "atacseq s1d2", "mop", "mop batches"}
    assert set(table["set"]) == sets


def test_a_method_on_some_modalities_is_an_entrant_of_its_own():
    table = contest.prepare(
        pd.concat(
            [
                records("late fusion", {(0, 0): 0.5}),
                records("late fusion", {(0, 0): 0.9}, modalities="rna"),
                records("logistic regression (rna)", {(0, 0): 0.7}, modalities="rna"),
            ]
        )
    )
    partial = {"late fusion": False, "late fusion of rna": True, "logistic regression (rna)": True}
    assert table.set_index("entrant")["partial"].to_dict() == partial


@pytest.mark.parametrize(
    ("difference", "spread", "below"),
    [(-0.005, 0, False), (-0.02, 0, True), (-0.02, 0.1, False), (0.02, 0, False)],
)
def test_below_needs_more_than_the_least_and_more_than_a_standard_error(difference, spread, below):
    signs = [-1, 1, -1, 1, 0]
    ours = records("scMoE", grid(lambda f, s: 0.5 + difference + spread * signs[f], seeds=1))
    table = contest.prepare(pd.concat([ours, records("ridge", grid(lambda f, s: 0.5, seeds=1))]))
    (found,) = contest.by_entry(contest.differences(table, "simple"))["below"]
    assert found == below


def test_the_overall_interval_draws_sets():
    sets = [("a", 0.1)] * 50 + [("b", -0.1)] * 2 + [("c", -0.1)]
    rows = [(name, g, g < 0, g > 0) for name, g in sets]
    entries = pd.DataFrame(rows, columns=["set", "difference", "below", "above"])
    total = contest.overall(entries)
    assert [total[name] for name in ("entries", "below", "above")] == [53, 3, 50]
    assert (total["low"], total["high"]) == pytest.approx((-0.1, 0.1))  # 8 of 27 draws lack a


def test_two_sets_have_a_mean_and_no_interval():
    entries = pd.DataFrame({"set": ["a", "b"], "difference": [0.1, 0.3], "below": 0, "above": 1})
    total = contest.overall(entries)
    assert total["mean"] == pytest.approx(0.2)
    assert np.isnan(total["low"]) and np.isnan(total["high"])
