"""scMoE linear: scikit-learn's parts, whatever is at hand of a cell, and files without pickle."""

import json

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeCV

import scmoe
from scmoe.baselines import Linear, linear
from scmoe.data import split_mudata
from scmoe.parts import fusion_weights
from tests.conftest import make_tiny


@pytest.fixture(scope="module")
def split():
    return split_mudata(make_tiny(120))


@pytest.fixture(scope="module")
def model(split):
    return Linear().fit(split)


def test_it_tells_groups_and_translates(model, split):
    table = scmoe.evaluate(model, split.test, "cell_type").set_index("metric")["value"]
    assert table["accuracy"] >= 0.9
    assert table["r2"].min() > 0.1


def test_a_head_is_sklearns_fitted_to_all_cells(model, split):
    known = model._prepare(split)
    head = next(h for h in model.heads_ if h.reads == (1,))
    Z = known.scores["protein"][:, : linear.HEAD_COMPONENTS]
    found = [
        made.fit(Z, known.labels)
        for make in (linear._logistics, linear._discriminants)
        for _, made in make()
    ]
    assert any(np.allclose(f.coef_.T, head.weights) for f in found)
    assert isinstance(found[-1], LinearDiscriminantAnalysis)


def test_a_translation_is_the_weighted_sum_of_its_regressions(model, split):
    known = model._prepare(split)
    z, y = known.scores["protein"], known.target("rna", slice(None))
    inputs = model._regressors(z, "protein")
    *maps, bias = model.maps_["rna", "protein"]
    plain = RidgeCV(linear.PENALTIES, alpha_per_target=True).fit(inputs[0], y)
    ratio = np.vdot(maps[0], plain.coef_.T) / np.square(plain.coef_).sum()
    assert np.allclose(maps[0], ratio * plain.coef_.T, atol=1e-6)
    by_hand = sum(x @ m for x, m in zip(inputs, maps, strict=True)) + bias
    assert np.allclose(model._pair(z, "rna", "protein"), by_hand, atol=1e-4)


def test_every_subset_of_modalities_has_weights_of_its_own(model, split):
    assert len(model.fusion_) == 7  # of three modalities
    for names in (["protein"], ["rna", "morph"]):
        part = split.test.copy()
        for gone in set(split.modalities) - set(names):
            del part.mod[gone]
        predicted = model.predict(part)
        assert np.allclose(predicted[model.groups_].sum(1), 1)
        assert (predicted["group"] == split.test.obs["cell_type"].astype(str)).mean() > 0.5


def test_cells_without_any_modality_are_of_no_group(model, split):
    scores, present = model._scores(split.test)
    assert present.all()
    logits = model._log_probabilities(scores, np.zeros_like(present))
    assert np.allclose(logits, logits[:, :1])  # nothing tells groups apart


def test_what_a_file_keeps_gives_the_same_answers(model, split):
    settings, arrays = model.state()
    other = Linear()
    other._share(model)
    other.fusion_, other.gram_, other.cross_ = model.fusion_, model.gram_, model.cross_
    other.restore(json.loads(json.dumps(settings)), arrays)
    assert other.predict(split.test).equals(model.predict(split.test))
    for source in ("morph", ["morph", "protein"]):
        ours, theirs = (m.translate(split.test, "rna", source) for m in (other, model))
        assert np.array_equal(ours, theirs)


def test_weights_of_views_have_the_least_loss_and_none_is_negative():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 3000)
    right = np.log(np.where(np.eye(3)[labels] > 0, 0.8, 0.1))
    noise = np.log(rng.dirichlet(np.ones(3), 3000))
    flip = rng.random(3000) < 0.2  # right is right in four of five cells: its weight is 1
    right[flip] = np.roll(right[flip], 1, 1)
    weights = fusion_weights(np.stack([right, noise, -right]), labels, prior=0)
    assert weights == pytest.approx([1, 0, 0], abs=0.15) and (weights >= 0).all()
