"""Scores of explanations: the better explanation scores better, and chance scores nothing."""

import copy

import numpy as np
import pandas as pd
import pytest

from scmoe import explain
from scmoe.explain import concepts, faithfulness, recovery
from tests.unit.test_explain_attribution import linear_stub, make_fitted


@pytest.fixture(scope="module")
def fitted():
    return make_fitted()


@pytest.fixture(scope="module")
def explained(fitted):
    model, cells, background = fitted
    return explain.attribute(model, cells, background=background)


def scrambled(explanation, seed=0):
    """The same values, dealt out to other features."""
    rng, other = np.random.default_rng(seed), copy.copy(explanation)
    other.values = {m: rng.permuted(v, axis=2) for m, v in explanation.values.items()}
    return other


def test_deletion_and_insertion_tell_an_explanation_from_a_scrambled_one(fitted, explained):
    model, cells, background = fitted
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


def test_infidelity_is_nothing_for_a_linear_model_and_one_for_no_explanation(fitted):
    model, cells, _ = fitted
    linear = linear_stub(model, cells)
    why = explain.attribute(linear, cells, "gradient_x_input")
    assert faithfulness.infidelity(linear, cells, why).max() < 1e-6
    empty = copy.copy(why)
    empty.values = {m: 0 * v for m, v in why.values.items()}
    assert np.allclose(faithfulness.infidelity(linear, cells, empty), 1)


def test_a_linear_models_gradient_moves_as_little_as_its_input(fitted):
    model, cells, _ = fitted
    linear = linear_stub(model, cells)
    change = faithfulness.sensitivity(linear, cells, "gradient_x_input", radius=0.01, n_draws=2)
    assert (change > 0).all()
    assert change.max() < 0.1


def test_agreement_is_one_with_itself_and_nothing_with_noise(explained):
    table = faithfulness.agreement({"a": explained, "b": explained, "c": scrambled(explained)})
    assert table.loc["a", "b"] == pytest.approx(1)
    assert abs(table.loc["a", "c"]) < 0.25
    overlap = faithfulness.top_overlap(explained, scrambled(explained), k=5)
    assert overlap.mean() < 0.5


def test_stability_needs_two_models(explained):
    assert faithfulness.stability([explained, explained]) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least two"):
        faithfulness.stability([explained])


def test_a_larger_budget_is_tried_until_the_halves_agree(fitted):
    model, cells, background = fitted
    table, why = faithfulness.budget(
        model, cells[:2].copy(), "shap_gradient", [4, 400, 4000], 0.6, background=background
    )
    assert table["split_half"].iloc[-1] >= 0.6
    assert len(table) <= 2
    assert table["split_half"].is_monotonic_increasing
    assert why.budget == table["budget"].iloc[-1]


def test_recovery_of_the_truth_itself_is_perfect():
    truth = pd.DataFrame({"rna": [True, False, True], "protein": [False] * 3}, index=list("abc"))
    index = pd.MultiIndex.from_tuples([(m, f) for m in truth for f in truth.index])
    perfect = pd.Series([truth.at[f, m] * 1.0 for m, f in index], index)
    assert recovery.group_recovery(perfect, truth) == {"auprc": 1.0, "chance": pytest.approx(1 / 3)}


def test_edges_leave_out_a_gene_with_itself():
    edges = pd.DataFrame({"regulator": ["t1", "t1"], "target": ["g", "t1"]})
    importance = pd.DataFrame({"g": [1.0, 9.0], "t1": [5.0, 9.0], "h": [0.0, 9.0]}, ["t1", "g"])
    assert recovery.edge_recovery(importance, edges) == {"auprc": 1.0, "chance": 0.5}


def test_a_model_with_random_weights_is_explained_otherwise(fitted, explained):
    model, cells, background = fitted
    groups = model.groups_
    trained = explain.attribute(model, cells, outputs=groups, background=background)
    others = [recovery.randomised(model, seed) for seed in range(8)]
    similar = [
        faithfulness.spearman(
            trained, explain.attribute(m, cells, outputs=groups, background=background)
        ).mean()
        for m in others
    ]
    assert abs(np.mean(similar)) < 0.15
    assert (
        np.abs(explain.attribute(model, cells, background=background).flat - explained.flat).max()
        == 0
    )


def test_probes_find_the_groups_and_no_random_concept(fitted):
    model, cells, background = fitted
    labels = background.obs["cell_type"].astype(str)
    known = concepts.Concept.of_cells("type0", labels == "type0")
    random = known.at_random(np.random.default_rng(0))
    probes, uses = concepts.concept_scores(
        model, background, [known, random], place="before", n_random=50
    )
    q = probes.set_index(["concept", "modality"])["q"]
    assert (q["type0"] < 0.05).all()
    assert (q["random"] > 0.01).all()
    assert uses["tcav"].between(0, 1).all()


def test_one_random_concept_in_twenty_is_taken_for_a_finding_at_most_one_in_ten(fitted):
    model, _, background = fitted
    labels = background.obs["cell_type"].astype(str)
    known = concepts.Concept.of_cells("type0", labels == "type0")
    assert concepts.false_positive_rate(model, background, known, n=100) <= 0.10


def test_the_experts_shares_of_a_concept_add_up(fitted):
    model, cells, background = fitted
    labels = background.obs["cell_type"].astype(str)
    concept = concepts.Concept.of_cells("type0", labels == "type0")
    table = concepts.expert_map(model, background, concept, ["type0"])
    predicted = model.predict(background)["group"].to_numpy()
    acts = concepts.tokens(model, background)
    grads = concepts.gradients(model, background, ["type0"])[0]
    for i, modality in enumerate(model.modalities_):
        vector = concepts.probes(acts[:, i].reshape(len(acts), -1), [concept])[1][0]
        along = grads[predicted == "type0", i].reshape(-1, len(vector)) @ vector
        assert table.loc[(modality, "type0")].sum() == pytest.approx(along.mean(), rel=1e-3)


def test_concepts_matched_within_groups_are_not_the_groups(fitted):
    _, _, background = fitted
    labels = background.obs["cell_type"].astype(str).to_numpy()
    values = np.random.default_rng(0).normal(size=len(labels)) + 5 * (labels == "type1")
    concept = concepts.Concept.of_values("high", values, within=labels)
    shares = [pd.Series(labels[c]).value_counts() for c in (concept.shows, concept.lacks)]
    assert (shares[0] == shares[1]).all()


def test_too_few_cells_make_no_concept(fitted):
    model, _, background = fitted
    shows = np.arange(background.n_obs) < 3
    concept = concepts.Concept.of_cells("three cells", shows)
    with pytest.raises(ValueError, match="'three cells' has 3 cells"):
        concepts.concept_scores(model, background, [concept])
