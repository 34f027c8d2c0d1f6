"""Routing summaries on routes that are known, and on a fitted model."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scmoe.explain import routing as routes
from tests.unit.test_explain_attribution import CONFIG, make_fitted

GROUPS = np.repeat(["a", "b"], 30)


def routing(choose, n_patches=2, n_experts=4, seed=0):
    """Routing of 60 cells in two modalities; `choose(cell, modality, rng)` gives two experts."""
    rng = np.random.default_rng(seed)
    gates = np.zeros((60, 2, n_patches, n_experts), np.float32)
    for cell, m, p in np.ndindex(gates.shape[:3]):
        gates[cell, m, p, list(choose(cell, m, rng))] = [0.75, 0.25]
    names = ["member", "layer", "modality", "patch", "expert"]
    values = [range(1), range(1), ["rna", "protein"], range(n_patches), range(n_experts)]
    var = pd.MultiIndex.from_product(values, names=names).to_frame(index=False)
    var.index = var.index.astype(str)
    return ad.AnnData(gates.reshape(60, -1), var=var)


def by_group(cell, modality, rng):
    return (0, 1) if cell < 30 else (2, 3)


def by_modality(cell, modality, rng):
    return (0, 1) if modality == 0 else (2, 3)


def at_random(cell, modality, rng):
    return rng.choice(4, 2, replace=False)


def test_experts_that_sort_by_group_hold_all_its_information():
    table = routes.specialisation(routing(by_group), GROUPS)
    assert table.loc["label in rna", "bits"] == pytest.approx(1)
    assert table.loc["label in rna", "p"] < 0.01
    assert table.loc["modality", "bits"] == pytest.approx(0, abs=1e-6)
    assert table.loc["modality", "p"] > 0.9


def test_experts_that_sort_by_modality_hold_nothing_on_groups():
    table = routes.specialisation(routing(by_modality), GROUPS)
    assert table.loc["modality", "bits"] == pytest.approx(1)
    assert table.loc["modality", "p"] < 0.01
    assert table.loc["label in protein", "bits"] == pytest.approx(0, abs=1e-6)


def test_random_routes_are_within_their_permutation_null():
    table = routes.specialisation(routing(at_random), GROUPS)
    assert (table["z"].abs() < 3).all()


def test_usage_rows_are_shares_of_the_right_experts():
    table = routes.usage(routing(by_group), GROUPS)
    assert np.allclose(table.loc[("protein", "b")], [0, 0, 0.75, 0.25])
    assert np.allclose(table.sum(axis=1), 1)


def test_pairs_that_never_part_are_seen_and_random_pairs_are_not():
    together = routes.co_activation(routing(by_group))
    assert together.loc[0, 1] > 0.5
    assert together.loc[0, 2] == -np.inf
    apart = routes.co_activation(routing(at_random)).to_numpy()
    assert np.nanmax(np.abs(apart)) < 0.7


def test_load_counts_idle_experts_and_effective_ones():
    table = routes.load(routing(lambda cell, m, rng: (0, 1)))
    assert table.loc["all", "idle"] == 2
    assert 1.7 < table.loc["all", "effective"] < 1.8  # of gates .75 and .25
    assert table.loc["all", "gate_entropy"] == pytest.approx(0.811, abs=1e-3)


def test_the_same_experts_in_another_order_are_matched():
    first = routing(by_group)
    second = first.copy()
    renamed = np.array([2, 0, 3, 1])[first.var["expert"]]
    order = np.lexsort((renamed, first.var["patch"], first.var["modality"] == "protein"))
    second.X = first.X[:, order]
    table, found = routes.match_experts(first, second, GROUPS)
    assert found["similarity"] > 0.99 > found["null"]
    assert found["p"] < 0.1
    assert len(table) == 4


@pytest.fixture(scope="module")
def fitted():
    return make_fitted()


def test_attention_blocks_are_distributions_over_modalities(fitted):
    with pytest.raises(ValueError, match="no attention"):
        routes.attention_blocks(*fitted[:2])
    model, cells, _ = make_fitted(config=CONFIG.replace(attention=True))
    table = routes.attention_blocks(model, cells)
    assert list(table.index) == list(table.columns) == model.modalities_
    assert np.allclose(table.sum(axis=1), 1, atol=1e-5)
    assert not np.allclose(table, 1 / 3)
    by_label = routes.attention_blocks(model, cells, cells.obs["cell_type"])
    assert len(by_label) == 3 * len(model.modalities_)


def test_silencing_an_expert_changes_the_groups_that_it_serves(fitted):
    model, cells, _ = fitted
    table = routes.ablation(model, cells, cells.obs["cell_type"])
    assert table.shape == (3, 8)  # four experts in each of two members
    assert table.abs().to_numpy().max() > 1e-4


def test_usage_of_a_fitted_model_comes_from_its_routing(fitted):
    model, cells, _ = fitted
    routing = model.get_routing(cells)
    assert np.allclose(routes.gates(routing).sum(-1), 1, atol=1e-5)
    assert routes.modalities(routing) == model.modalities_
    assert set(routes.dominant_expert(routing, "rna")) <= set("01234567")
