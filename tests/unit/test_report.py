"""Sentences, tables and figures say what the numbers say."""

import copy

import numpy as np
import pandas as pd
import pytest

import scmoe
from scmoe import plot, report, summary
from scmoe.metrics import COLUMNS
from tests.conftest import make_tiny

CONFIG = scmoe.Config().replace(d=16, n_patches=4, n_heads=2, n_experts=4, epochs=1, patience=None)


@pytest.fixture(scope="module")
def split():
    return scmoe.data.split_mudata(make_tiny(90))


@pytest.fixture(scope="module")
def model(split):
    return scmoe.ScMoE("supervised", CONFIG).fit(split, device="cpu", progress=False)


@pytest.fixture(scope="module")
def clusters(split):
    return scmoe.ScMoE("unsupervised", CONFIG).fit(split, device="cpu", progress=False)


@pytest.fixture(autouse=True)
def no_mark():
    yield
    plot.style()
    report._mark = ""


def records(accuracy, r2, n_pairs=2):
    """Give records of several methods: accuracy and R² by name."""
    info = {"dataset": "own", "data_source": "local", "protocol": "strict", "fold": 0, "seed": 0,
            "modalities": "rna+morph"}  # fmt: skip
    rows = [
        {"method": m, "task": "supervised", "metric": "accuracy", "value": v}
        for m, v in accuracy.items()
    ]
    pairs = [("rna", "morph"), ("morph", "rna")][:n_pairs]
    rows += [
        {"method": m, "task": "translation", "metric": "r2", "value": v,
         "target_modality": t, "source_modality": s}
        for m, v in r2.items() for t, s in pairs
    ]  # fmt: skip
    return pd.DataFrame([info | row for row in rows]).reindex(columns=COLUMNS).fillna("")


def words(accuracy, r2, split):
    return report.takeaway(records(accuracy, r2), split).data


def test_the_takeaway_is_worded_from_the_records(split):
    said = words(
        {"scMoE": 0.9, "ridge": 0.5, "scMoE linear": 0.8},
        {"scMoE": 0.25, "ridge": 0.2, "scMoE linear": 0.22},
        split,
    )
    n = split.test.n_obs
    assert f"scMoE names the right group for 90% of {n} test cells" in said
    assert "linear part reaches 80%" in said
    assert "R² 0.250 (mean of 2 ordered pairs), ridge regression 0.200" in said
    assert "the experts add 0.030" in said
    assert said.count(". ") == 1  # two sentences


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [(0.99, 0.2, ", clearly less"), (0.2, 0.99, ", clearly more"),
     (0.8, 0.75, ", too close to tell"), (0.8, 0.8, " too")],
)  # fmt: skip
def test_a_difference_counts_only_beyond_chance(ours, theirs, verdict, split):
    said = words({"scMoE": ours, "logistic regression (rna)": theirs}, {}, split)
    assert f"logistic regression (rna), reaches {theirs:.0%}{verdict}" in said


def test_the_takeaway_does_not_flatter(split):
    said = words({}, {"scMoE": -0.1, "scMoE linear": 0.1}, split)
    assert "the experts cost 0.200" in said
    assert "the mean of the training cells is the better guess" in said
    same = words({}, {"scMoE": 0.1, "scMoE linear": 0.1}, split)
    assert "the experts add nothing" in same


def test_a_run_with_one_modality_says_that_there_is_nothing_to_translate():
    alone = records({"scMoE": 0.9}, {})
    assert "one modality" in report.translations(alone, "T").data
    assert "one modality" in report.translation_table(alone).data


def test_what_is_shown_carries_the_mark_of_the_data(split):
    run = scmoe.record.Run("own")
    excerpt = scmoe.data.Split(**(vars(split) | {"data_source": "excerpt", "notes": ["a < b"]}))
    banner = report.banner(run, excerpt).data
    assert "an excerpt" in banner
    assert "A &lt; b." in banner
    shown = report.table(pd.DataFrame({"a": [0.12345, np.nan]}), "Caption").data
    assert "<caption>Caption (excerpt of the data)</caption>" in shown
    assert "0.123" in shown
    assert "NaN" not in shown
    figure = report.headline(records({"scMoE": 0.5}, {"scMoE": 0.1}), "T")
    assert "(excerpt of the data)" in figure.get_suptitle()


def test_caveats_name_the_groups_with_too_few_cells(split):
    run = scmoe.record.Run("own", protocol="paper")
    noted = scmoe.data.Split(**(vars(split) | {"notes": ["known beforehand"]}))
    said = report.caveats(run, noted, records({"scMoE": 0.5}, {}), "and this too").data
    assert said.startswith("- Known beforehand.\n- And this too.")
    assert f"{np.sqrt(0.25 / split.test.n_obs):.3f}" in said
    assert "on purpose" in said
    rare = make_tiny(90)
    rare.obs["cell_type"] = np.where(np.arange(90) < 5, "rare", rare.obs["cell_type"].astype(str))
    few = scmoe.data.split_mudata(rare, test=[*rare.obs_names[:2], *rare.obs_names[60:]])
    assert "(rare): their scores are anecdotes" in report.caveats(run, few, records({}, {})).data


def test_compare_scores_every_method_on_the_same_cells(split, model, tmp_path):
    run = scmoe.start_run("own", {"out_dir": str(tmp_path)})
    table = summary.compare(run, model, split)
    methods = set(table["method"])
    assert {"scMoE", "scMoE linear", "ridge", "logistic regression (late fusion)"} <= methods
    assert len({m for m in methods if m.startswith("logistic")}) == 1 + len(split.modalities)
    assert run.seconds.keys() >= {"baselines", "evaluate"}
    wide = summary.scores(table)
    assert wide["accuracy"].dropna().is_monotonic_decreasing
    assert wide.loc["scMoE", "r2"] == pytest.approx(
        table[(table["method"] == "scMoE") & (table["metric"] == "r2")]["value"].mean()
    )
    grid = summary.translation_grids(table)["ridge"]
    assert list(grid.index) == list(grid.columns) == split.modalities
    assert np.isnan(np.diag(grid)).all()
    assert grid.notna().to_numpy().sum() == 6


def test_without_labels_the_rows_to_compare_are_clusters(split, clusters):
    table = summary.compare(scmoe.record.Run("own", task="unsupervised"), clusters, split)
    of_groups = table[table["task"] == "unsupervised"]
    assert set(of_groups["method"]) == {"scMoE", "scMoE experts", "scMoE linear", "k-means"}
    assert set(of_groups["metric"]) == {"accuracy", "ari", "nmi"}
    said = report.takeaway(table, split).data
    assert "scMoE's clusters agree at ARI" in said
    assert "its linear part" in said


def test_clusters_get_the_names_of_the_groups_they_match(split, clusters):
    named = summary.predicted_groups(clusters, split)
    truth = summary.groups(split.test, split)
    accuracy = scmoe.evaluate(clusters, split.test).set_index("metric")["value"]["accuracy"]
    assert (named == truth).mean() == pytest.approx(accuracy)


def test_predicted_groups_keep_their_names(split, model):
    expected = model.predict(split.test)["group"]
    assert (summary.predicted_groups(model, split) == expected).all()


def test_usage_is_a_share_for_each_group_and_modality(split, model):
    tables = summary.usage(model.get_routing(split.train), summary.groups(split.train, split))
    assert list(tables) == split.modalities
    for table in tables.values():
        assert list(table.index) == split.groups
        assert table.shape[1] == CONFIG.model.n_experts
        np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-5)


def test_a_router_that_sorts_by_modality_is_told_from_one_that_sorts_by_group():
    first, second = np.eye(2)
    rows = ["a", "b"]
    by_modality = {m: pd.DataFrame([e, e], rows) for m, e in (("rna", first), ("morph", second))}
    by_group = {m: pd.DataFrame([first, second], rows) for m in ("rna", "morph")}
    assert "goes with the modality more" in report.about_usage(by_modality).data
    assert "1.0 for RNA" in report.about_usage(by_modality).data
    assert "goes with the group more" in report.about_usage(by_group).data


def test_the_kept_epoch_is_that_of_the_least_validation_loss(model):
    other = copy.copy(model.experts)
    other.history_ = pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "loss": [3.0, 2, 1],
            "val_loss": [2.0, 1, 3],
            "decoder rna": 1.0,
            "gate": 1.0,
        }
    )
    assert summary.losses(other)[1] == 3  # without patience all epochs run, and the last one stays
    other.config = CONFIG.replace(patience=5)
    curves, kept = summary.losses(other)
    assert kept == 2
    assert list(curves) == [
        "train loss",
        "train translation to RNA",
        "train load balance",
        "val loss",
    ]


def test_few_cells_are_drawn_alike_each_time(split):
    first, second = (summary.some_cells(split.train, 7, seed=1).obs_names for _ in range(2))
    assert len(first) == 7
    assert first.equals(second)
    assert summary.some_cells(split.train, 10_000) is split.train


def test_sets_of_cells_are_placed_together(split, model):
    latents = [model.get_latent_representation(part) for part in (split.test, split.train)]
    xy, behind = summary.layout(*latents)
    assert (xy.shape, behind.shape) == ((split.test.n_obs, 2), (split.train.n_obs, 2))


def test_what_is_known_of_all_cells_is_in_one_order(split):
    cells = summary.together(split)
    assert cells["tested"].sum() == split.test.n_obs
    assert (cells["groups"][cells["tested"]] == summary.groups(split.test, split)).all()
    axes = summary.principal_axes(split, scmoe.data.Transform().fit(split.train), "rna")
    assert axes.shape == (len(cells["groups"]), 2)
