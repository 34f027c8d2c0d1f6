"""The page on sparsity says what its table says: sparse wins, nothing differs, nothing measured."""

import json

import pandas as pd
import pytest

from benchmarks import sparsity
from scmoe import report_sparsity, report_speed

GAIN = {"accuracy": 0.1, "macro_f1": 0.1, "r2": 0.1, "loss": -0.1}


def measured(folder, gain=0.0, seeds=3, left_out=0):
    """Made-up results in which sparse networks are better by `gain` times `GAIN`."""
    rows = []
    for name in sparsity.SETS:
        for seed in range(seeds):
            for variant, settings in sparsity.variants().items():
                n, k = settings["n_experts"], settings["top_k"]
                scores = {s: 0.5 + 0.01 * seed + (k < n) * gain * by for s, by in GAIN.items()}
                rest = dict(epochs=9, imbalance=n / 100, dead=n // 32)
                what = dict(set=name, variant=variant, seed=seed, met=k * settings["hidden"])
                rows.append(what | settings | scores | rest)
    note = dict(settings=sparsity.SETTINGS, total_hidden=sparsity.TOTAL_HIDDEN)
    path = folder / "sparsity.json"
    path.write_text(json.dumps(note | dict(rows=rows[: len(rows) - left_out])))
    return report_sparsity.load(path)


def test_every_sparse_network_has_a_dense_one_of_its_weights_and_one_of_its_arithmetic():
    variants = sparsity.variants().values()
    widths = {v["hidden"] for v in variants if v["n_experts"] == 1}
    for v in variants:
        assert v["n_experts"] == 1 or v["n_experts"] * v["hidden"] == max(widths)
        assert v["top_k"] * v["hidden"] in widths


def test_where_sparse_wins_it_clearly_helps_and_less_loss_counts_as_help(tmp_path):
    said = report_sparsity.takeaway(measured(tmp_path, gain=1)).data
    assert "At equal weights, sparsity clearly helps 4 of 4 scores" in said
    assert "At equal arithmetic, sparsity clearly helps 4 of 4 scores" in said
    assert "accuracy +0.100 [+0.100, +0.100]" in said and "validation loss -0.100" in said
    assert "6 pairs of set and seed; 60 epochs at most, stopped after 10" in said


def test_where_sparse_loses_it_clearly_hurts(tmp_path):
    said = report_sparsity.takeaway(measured(tmp_path, gain=-1)).data
    assert "sparsity clearly hurts 4 of 4 scores" in said and "helps" not in said


def test_where_nothing_differs_it_makes_no_clear_difference(tmp_path):
    found = measured(tmp_path)
    said = report_sparsity.takeaway(found).data
    assert said.count("makes no clear difference") == 2 and "clearly" not in said
    assert "makes no clear difference" in report_sparsity.about_routers(found).data


def test_help_and_harm_are_both_told():
    part = pd.DataFrame(
        {"low": [0.1, -0.2, 0.1, -0.1], "high": [0.2, -0.1, 0.2, 0.1], "pairs": 6},
        index=list(report_sparsity.SCORES.values()),
    ).rename(index={"R²": "validation loss", "validation loss": "R²"})
    assert report_sparsity._verdict(part) == "clearly helps 1 and hurts 2 of 4 scores"


def test_four_of_four_experts_do_not_count_as_sparse(tmp_path):
    rows = measured(tmp_path)["rows"]
    assert not rows[rows["variant"].str.startswith("4 experts, 4")]["sparse"].any()
    assert rows[rows["sparse"]]["variant"].nunique() == 16


def test_equal_arithmetic_compares_with_the_dense_network_of_the_same_width(tmp_path):
    found = measured(tmp_path)
    narrow = (found["rows"]["n_experts"] == 1) & (found["rows"]["met"] < 1024)
    found["rows"].loc[narrow, "accuracy"] -= 0.2
    for at, change in (("equal weights", 0), ("equal arithmetic", 0.2)):
        table = report_sparsity.against_dense(found, at)
        assert table.at[("all sets", "accuracy"), "difference"] == pytest.approx(change)


def test_one_set_and_seed_is_not_judged(tmp_path):
    found = measured(tmp_path)
    found["rows"] = found["rows"][
        (found["rows"]["seed"] == 0) & (found["rows"]["set"].str[0] == "D")
    ]
    said = report_sparsity.takeaway(found).data
    assert "cannot be judged from so few runs (1)" in said and "nan" not in said


def test_a_seed_that_is_not_finished_is_left_out(tmp_path):
    rows = measured(tmp_path, left_out=1)["rows"]
    assert len(rows) == (len(sparsity.SETS) * 3 - 1) * len(sparsity.variants())


def test_tables_and_figure_show_every_network_and_set(tmp_path):
    found = measured(tmp_path)
    shown = report_sparsity.networks(found)
    assert len(shown) == len(sparsity.SETS) * len(sparsity.variants())
    assert shown.loc[("Patch-seq, fold 0", 32, 2, 32, "shared"), "dead"] == 1
    assert shown.xs(1, level="experts")["imbalance"].isna().all()
    axes = report_sparsity.figure(found).axes
    assert [ax.get_ylabel() for ax in axes] == ["accuracy", "R²"] * 2
    labels = axes[0].get_legend_handles_labels()[1]
    assert labels == ["dense", "4 experts", "16 experts", "32 experts"]


def test_without_results_every_part_says_that_nothing_was_measured(tmp_path):
    found = report_sparsity.load(tmp_path / "sparsity.json")
    assert "Nothing was measured yet" in report_sparsity.takeaway(found).data
    parts = [report_sparsity.figure(found), report_sparsity.about_routers(found)]
    parts += [report_sparsity.table(found, caption) for caption in report_sparsity.TABLES]
    assert all("not measured yet" in part.data for part in parts)


def test_the_page_on_speed_passes_over_results_on_sparsity(tmp_path):
    measured(tmp_path)
    assert report_speed.load(tmp_path) == {}
