"""Routing summaries on routes that are known, and on a fitted model."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scmoe.explain import routing as routes
from tests.unit.test_explain_attribution import fitted

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


def test_silencing_an_expert_changes_the_groups_that_it_serves():
    model, cells, _ = fitted()
    table = routes.ablation(model, cells, cells.obs["cell_type"])
    assert table.shape == (3, 8)  # four experts in each of two members
    assert table.abs().to_numpy().max() > 1e-4


def test_usage_of_a_fitted_model_comes_from_its_routing():
    model, cells, _ = fitted()
    routing = model.get_routing(cells)
    assert np.allclose(routes.gates(routing).sum(-1), 1, atol=1e-5)
    assert set(routes.dominant_expert(routing, "rna")) <= set("0123")


def test_experts_of_one_member_are_not_those_of_another():
    first, second = routing(by_group), routing(by_modality)
    second.var["member"], second.var_names = 1, second.var_names + " of the second"
    both = ad.concat([first, second], axis="var")
    assert routes.usage(both, GROUPS).equals(routes.usage(first, GROUPS))
    same = routes.dominant_expert(both, "rna") == routes.dominant_expert(first, "rna")
    assert same.all()
    bits = routes.specialisation(both, GROUPS)["bits"]
    assert bits["label in rna"] == pytest.approx(0.5)  # one bit in one member, none in the other
    assert bits["modality"] == pytest.approx(0.5)
