"""Scores of explanations: the better explanation scores better, and chance scores nothing."""

import copy

import numpy as np
import pandas as pd
import pytest

from scmoe import explain
from scmoe.explain import concepts, faithfulness
from tests.unit.test_explain_attribution import fitted, linear_stub, whole


@pytest.fixture(scope="module")
def explained():
    model, split = whole()
    return explain.attribute(model.experts, split.test, background=split.train)


def scrambled(explanation, seed=0):
    """The same values, dealt out to other features."""
    rng, other = np.random.default_rng(seed), copy.copy(explanation)
    other.values = {m: rng.permuted(v, axis=2) for m, v in explanation.values.items()}
    return other


def test_deletion_and_insertion_tell_an_explanation_from_a_scrambled_one(explained):
    model, cells, background = fitted()
    explanations = {"ours": explained, "scrambled": scrambled(explained)}
    curves, scores = faithfulness.deletion_insertion(
        model, cells, explanations, background, n_draws=2, n_random=3
    )
    means = scores.groupby("method")[["deletion", "insertion"]].mean()
    assert (means.loc["ours"] > means.loc["scrambled"] + 0.05).all()
    assert (means.loc["random"].abs() < 1e-9).all()
    ends = curves.groupby("what")["answer"].agg(["min", "max"])
    assert np.allclose(curves[curves["fraction"] == 0].query("what == 'deletion'")["answer"], 1)
    assert ends.loc["insertion", "min"] < 0.3


def test_infidelity_is_nothing_for_a_linear_model_and_one_for_no_explanation():
    model, cells, _ = fitted()
    linear = linear_stub()
    why = explain.attribute(linear, cells, "gradient_x_input")
    assert faithfulness.infidelity(linear, cells, why).max() < 1e-6
    empty = copy.copy(why)
    empty.values = {m: 0 * v for m, v in why.values.items()}
    assert np.allclose(faithfulness.infidelity(linear, cells, empty), 1)


def test_a_linear_models_gradient_moves_as_little_as_its_input():
    model, cells, _ = fitted()
    linear = linear_stub()
    change = faithfulness.sensitivity(linear, cells, "gradient_x_input", radius=0.01)
    assert (change > 0).all()
    assert change.max() < 0.1


def test_agreement_is_one_with_itself_and_nothing_with_noise(explained):
    table = faithfulness.agreement({"a": explained, "b": explained, "c": scrambled(explained)})
    assert table.loc["a", "b"] == pytest.approx(1)
    assert abs(table.loc["a", "c"]) < 0.25


def test_probes_find_the_groups_and_no_random_concept():
    model, cells, background = fitted()
    labels = background.obs["cell_type"].astype(str)
    known = concepts.Concept.of_cells("type0", labels == "type0")
    random = known.at_random(np.random.default_rng(0))
    probes, uses = concepts.concept_scores(model, background, [known, random], n_random=50)
    q = probes.set_index(["concept", "modality"])["q"]
    assert (q["type0"] < 0.05).all()
    assert (q["random"] > 0.01).all()
    assert uses["tcav"].between(0, 1).all()


def test_concepts_matched_within_groups_are_not_the_groups():
    _, _, background = fitted()
    labels = background.obs["cell_type"].astype(str).to_numpy()
    values = np.random.default_rng(0).normal(size=len(labels)) + 5 * (labels == "type1")
    concept = concepts.Concept.of_values("high", values, within=labels)
    shares = [pd.Series(labels[c]).value_counts() for c in (concept.shows, concept.lacks)]
    assert (shares[0] == shares[1]).all()


def test_too_few_cells_make_no_concept():
    model, _, background = fitted()
    shows = np.arange(background.n_obs) < 3
    concept = concepts.Concept.of_cells("three cells", shows)
    with pytest.raises(ValueError, match="'three cells' has 3 cells"):
        concepts.concept_scores(model, background, [concept])
