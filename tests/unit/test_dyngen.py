"""The simulator: its biology, its truth, its likeness to dyngen, and its size."""

import tracemalloc

import mudata as md
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.claims import resemblance
from scmoe.data import simulate_dyngen
from scmoe.data.backbones import BACKBONES
from scmoe.data.dyngen import STEP, Network, _advance
from scmoe.data.instruments import MODALITIES

GROUPS = {
    "linear": ["sA", "sB", "sC"],
    "bifurcating": ["sA", "sB", "sC", "sD"],
    "converging": ["sA", "sB", "sC", "sD"],
    "cycle": ["sA", "sB", "sC"],
    "trifurcating": ["sA", "sB", "sC", "sD", "sE"],
}


@pytest.fixture(scope="module")
def cells():
    return simulate_dyngen(seed=0)


@pytest.fixture(scope="module")
def truth(cells):
    return cells.uns["truth"]


def in_stages(cells):
    """Mean protein of each TF in the first and the last third of pseudotime."""
    late = cells.obs["pseudotime"].to_numpy()
    share = cells["protein"].to_df().pipe(lambda X: X.div(X.sum(axis=1), axis=0))
    return share[late < 1 / 3].mean(), share[late > 2 / 3].mean()


# --- what comes out -----------------------------------------------------------------------------


def test_default_cells_have_the_published_shape(cells):
    assert tuple(cells.mod) == MODALITIES
    assert {m: cells[m].shape for m in cells.mod} == dict.fromkeys(MODALITIES, (500, 100))
    assert all(cells[m].X.dtype == np.float32 for m in cells.mod)
    assert list(cells.obs["label"].cat.categories) == GROUPS["linear"]


def test_accessibility_is_a_fraction_and_molecules_are_counts(cells):
    assert cells["dna"].X.min() >= 0 and cells["dna"].X.max() <= 1
    for modality in MODALITIES[1:]:
        X = cells[modality].X
        assert X.min() == 0 and (np.round(X) == X).all()


def test_the_same_seed_gives_the_same_cells_and_another_seed_others():
    first, second, other = (simulate_dyngen(50, 60, seed=s) for s in (3, 3, 4))
    for modality in MODALITIES:
        assert np.array_equal(first[modality].X, second[modality].X)
    assert first.uns["truth"]["edges"].equals(second.uns["truth"]["edges"])
    assert not np.array_equal(first["mrna"].X, other["mrna"].X)


def test_it_leaves_numpys_global_generator_alone():
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    simulate_dyngen(20, 60)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_more_cells_of_a_seed_come_from_the_same_network():
    few, more = (simulate_dyngen(n, 60, seed=1).uns["truth"]["edges"] for n in (20, 200))
    assert few.equals(more)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_reaches_all_its_milestones(backbone):
    labels = simulate_dyngen(200, 60, backbone, seed=2).obs["label"]
    assert sorted(labels.unique()) == GROUPS[backbone]
    assert labels.value_counts().min() >= 4


@pytest.mark.parametrize(("backbone", "arms"), [("bifurcating", "CD"), ("trifurcating", "CDE")])
def test_chance_puts_a_cell_into_one_branch_and_keeps_it_there(backbone, arms):
    mdata = simulate_dyngen(500, 60, backbone, seed=0)
    cells = mdata.uns["truth"]["cells"]
    late = (cells["from"] == "sB") & (cells["progress"] > 0.8)
    open_ = mdata["dna"].to_df().loc[late, [f"{arm}3_TF1" for arm in arms]].to_numpy() > 0.3
    assert (open_.sum(axis=1) == 1).mean() > 0.95
    assert open_.mean(axis=0).min() > 0.1
    assert (cells[late].groupby("trajectory")["to"].nunique() == 1).mean() > 0.95


def test_converging_cells_forget_where_they_came_from():
    mdata = simulate_dyngen(500, 60, "converging", seed=0)
    dna, cells = mdata["dna"].to_df(), mdata.uns["truth"]["cells"]
    start = cells["from"].isin(["sA", "sB"]) & cells["progress"].between(0.2, 0.5)
    end = (cells["to"] == "sD") & (cells["progress"] > 0.5)
    ways = dna[["A2_TF1", "B2_TF1"]].to_numpy() > 0.3
    assert (ways[start].sum(axis=1) == 1).mean() > 0.9 and ways[start].mean(axis=0).min() > 0.2
    assert not ways[end].any()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"backbone": "loop"}, "unknown backbone 'loop'.*linear"),
        ({"setting": "easy"}, "unknown setting 'easy'.*hard"),
        ({"n_genes": 30}, "linear needs n_genes >= 40"),
        ({"n_cells": 0}, "n_cells must be at least 1"),
    ],
)
def test_what_cannot_be_simulated_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        simulate_dyngen(**wrong)


# --- molecules ----------------------------------------------------------------------------------


def test_a_gene_that_is_always_on_has_poisson_molecules_at_their_expected_level():
    rates = dict(transcription=8.0, splicing=0.5, decay=0.25, translation=10.0, turnover=0.2)
    columns = {name: np.full((1, 1), value, np.float32) for name, value in rates.items()}
    nothing = np.zeros((1, 0), np.float32)
    net = Network(None, None, np.array([], int), nothing, nothing, np.ones((1, 1)), **columns)
    state, rng = np.zeros((3, 1, 4000), np.float32), np.random.default_rng(0)
    for _ in range(int(60 / STEP)):
        _advance(net, state, net.activity(state[2]), rng)
    pre, mrna, protein = state[:, 0]
    for molecules, level in ((pre, 8 / 0.5), (mrna, 8 / 0.25)):
        assert molecules.mean() == pytest.approx(level, rel=0.02)
        assert molecules.var() / molecules.mean() == pytest.approx(1, abs=0.2)
    assert protein.mean() == pytest.approx(8 / 0.25 * 10 / 0.2, rel=0.02)


def test_a_promoter_without_its_activator_is_closed_and_leaks_at_most(cells, truth):
    edges, protein = truth["edges"], cells["protein"].to_df()
    only = edges[edges.groupby("target")["target"].transform("size") == 1]
    only = only[only.sign.eq(1) & only.target.str.startswith("Target")]
    absent = protein[only.regulator].to_numpy() == 0
    assert absent.sum() > 1000
    assert (cells["dna"].to_df()[only.target].to_numpy()[absent] < 0.01).all()


def test_layers_of_a_gene_follow_one_another(cells, truth):
    """Along pseudotime DNA opens before pre-mRNA, mRNA and protein reach half their level."""
    factors = truth["genes"].index[truth["genes"].role == "tf"][6:-6]
    bins = pd.cut(cells.obs["pseudotime"], 40, labels=False).to_numpy()
    halfway = []
    for modality in MODALITIES:
        level = cells[modality].to_df()[factors].groupby(bins).mean()
        halfway.append((level > level.max() / 2).idxmax().mean())
    assert halfway == sorted(halfway) and halfway[0] < halfway[-1]


# --- the truth ----------------------------------------------------------------------------------


def test_the_truth_survives_a_file(cells, tmp_path):
    cells.write_h5mu(tmp_path / "cells.h5mu")
    back = md.read_h5mu(tmp_path / "cells.h5mu").uns["truth"]
    assert back.keys() == cells.uns["truth"].keys()
    for name, table in cells.uns["truth"].items():
        pd.testing.assert_frame_equal(back[name], table, check_dtype=False)


def test_the_truth_speaks_of_the_features_and_cells_at_hand(cells, truth):
    names = cells["mrna"].var_names
    assert truth["genes"].index.equals(names) and truth["differs"].index.equals(names)
    assert list(truth["differs"]) == list(MODALITIES)
    assert set(truth["edges"].regulator) | set(truth["edges"].target) <= set(names)
    assert set(truth["edges"].sign) == {-1, 1}
    assert not truth["edges"].duplicated(["regulator", "target"]).any()
    assert truth["cells"].index.equals(cells.obs_names)
    assert (truth["cells"]["label"] == cells.obs["label"].astype(str)).all()
    assert cells.obs["pseudotime"].between(0, 1).all()


def test_every_target_has_a_regulator_and_no_housekeeping_gene_has(truth):
    regulated, role = set(truth["edges"].target), truth["genes"].role
    assert set(role.index[role == "target"]) <= regulated
    assert not set(role.index[role == "housekeeping"]) & regulated


def test_pseudotime_orders_the_modules(cells):
    early, late = in_stages(cells)
    assert early["A1_TF1"] > 20 * early["C1_TF1"] and late["C1_TF1"] > 20 * early["C1_TF1"]


def test_features_said_to_differ_do_and_housekeeping_genes_do_not(cells, truth):
    differs, role = truth["differs"], truth["genes"].role
    assert not differs[role == "housekeeping"].any(axis=None)
    accessible = cells["dna"].to_df().groupby(cells.obs["label"], observed=True).mean()
    spread = accessible.max() - accessible.min()
    assert spread[differs["dna"]].min() > 0.02
    assert spread[differs["dna"]].median() > 10 * spread[~differs["dna"]].median()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_regulators_correlate_with_their_targets_above_chance(backbone):
    pairs = pd.concat(
        resemblance.edge_correlations(simulate_dyngen(250, 100, backbone, seed)) for seed in (0, 1)
    )
    for sign in (1, -1):
        assert roc_auc_score(pairs["sign"] == sign, sign * pairs["correlation"]) > 0.6
    edge = pairs["sign"] != 0
    assert (np.sign(pairs["correlation"]) == pairs["sign"])[edge].mean() > 0.65


# --- likeness to dyngen, and the hard setting ---------------------------------------------------


@pytest.mark.slow
def test_cells_are_like_dyngens():
    """Against the stored summary; sds of the reference are over subsamples of one network."""
    found = resemblance.compare(4, root="nowhere")
    difference = found.linear["difference"].dropna().abs()
    assert len(difference) == 30 and found.reference is None
    assert difference["accuracy"].max() < 0.03
    assert difference["correlation"].max() < 0.05
    assert difference["zero fraction"].max() < 0.05
    assert difference.filter(like="eigenvalue").max() < 0.06
    assert difference.filter(like="mean–variance").max() < 0.2


@pytest.mark.slow
def test_in_the_hard_setting_all_modalities_together_beat_the_best_single_one():
    hard = pd.DataFrame(
        resemblance.accuracies(*resemblance.simulated(seed, "hard"), seed) for seed in range(5)
    )
    single = hard.drop(columns="all")
    assert single.mean().between(0.6, 0.82).all()
    gain = hard["all"] - single.max(axis=1)
    assert gain.mean() > 0.04 and gain.min() > 0


@pytest.mark.slow
def test_the_stored_summary_is_that_of_the_reference_files(real_data):
    folder = real_data / resemblance.FOLDER
    if not folder.is_dir():
        pytest.skip(f"$SCMOE_DATA has no {resemblance.FOLDER}")
    measured, stored = resemblance.describe_reference(folder, range(10)), resemblance.read_summary()
    for name, table in measured.items():
        pd.testing.assert_frame_equal(table, stored[name], atol=2e-3, check_dtype=False)


@pytest.mark.slow
def test_memory_does_not_grow_with_time_steps():
    """The longest backbone (cycle) takes twice the steps of the shortest, in the same memory."""
    peaks = []
    for backbone in ("bifurcating", "cycle"):
        tracemalloc.start()
        simulate_dyngen(2500, 60, backbone)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 1.3 * min(peaks)
