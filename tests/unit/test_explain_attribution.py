"""Attributions against plain definitions: what is split adds up, what is linear is exact."""

import copy
from functools import cache

import numpy as np
import pytest
import torch

import scmoe
from scmoe import explain
from scmoe.data import DataError
from scmoe.explain.answer import Answer
from tests.conftest import make_tiny

CONFIG = scmoe.Config().replace(members=2, d=16, n_patches=4, n_experts=4, hidden=16, epochs=12)

CONFIGS = {
    "published": scmoe.preset("atacseq", "paper").replace(d=16, n_heads=2, epochs=2),
    "attention": CONFIG.replace(attention=True, epochs=4),
    "soft": CONFIG.replace(top_k=4),
}


@cache
def whole(config=""):
    """A blend of tiny cells, and their split; nobody changes either."""
    split = scmoe.data.split_mudata(make_tiny(90))
    return scmoe.ScMoE(config=CONFIGS.get(config, CONFIG)).fit(split, "cpu", progress=False), split


def fitted():
    """The experts of a model of tiny cells, its test cells and training cells."""
    model, split = whole()
    return model.experts, split.test, split.train


def linear_stub():
    """A linear method of one head that reads all modalities, so that its answers are linear."""
    linear = copy.copy(whole()[0].linear)
    linear.heads_ = [head for head in linear.heads_ if len(head.reads) > 1][:1]
    linear.fusion_ = {(0, 1, 2): np.ones(1)}
    return linear


TWO = ["morph", "protein"]
ASKED = {
    "own group": {},
    "two groups": {"outputs": ["type0", "type2"]},
    "a translation": {"target": "protein", "source": ["rna", "morph"]},
    "rna from one": {"target": "rna", "source": "morph"},
    "rna from two": {"target": "rna", "source": TWO},
}


@pytest.mark.parametrize("part", ["blend", "experts", "linear", "published", "attention"])
def test_what_is_explained_is_what_the_model_answers(part):
    model, split = whole(part if part in CONFIGS else "")
    model = {"experts": model.experts, "linear": model.linear}.get(part, model)
    cells = split.test.copy()
    cells.mod["protein"] = cells["protein"][2:].copy()  # two cells lack it
    cells.update()
    logs = np.log(model.predict(cells)[model.groups_].to_numpy())
    for expected, asked in (
        (logs - logs.mean(1, keepdims=True), {}),
        (model.translate(cells, "rna", "morph", units="scaled"), ASKED["rna from one"]),
        (model.translate(cells, "rna", TWO, units="scaled"), ASKED["rna from two"]),
    ):
        answer = Answer(model, **asked)
        with torch.no_grad():
            found = torch.cat([answer(x, has) for x, has in answer.batches(cells)])
        assert np.allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_shares_of_experts_add_up_to_gradient_times_input(asked):
    model, cells, _ = fitted()
    cells = cells[:6]
    split = explain.attribute(model, cells, **asked)
    whole = explain.attribute(model, cells, "gradient_x_input", **asked)
    assert np.allclose(split.flat, whole.flat, atol=1e-5 * np.abs(whole.flat).max())
    assert np.allclose(split.share_table().sum(1), 1)
    assert sum(np.abs(values[2:]).sum() for values in split.shares.values()) > 0


def test_a_silent_expert_has_no_share():
    model, cells, _ = fitted()
    shares = explain.attribute(explain.routing.without_expert(model, 1), cells).share_table()
    assert (shares["member 0 expert 1"] == 0).all()
    assert (shares.drop(columns="member 0 expert 1").sum(1) > 0.99).all()


def test_gradients_are_those_of_finite_differences():
    model, cells, _ = fitted()
    answer = Answer(model, outputs=["type1"])
    x, column = answer.inputs(cells), answer.widths[0] + 3
    step = torch.zeros_like(x)
    step[:, column] = 0.01
    with torch.no_grad():
        slope = (answer(x + step) - answer(x - step))[:, 0] / 0.02
    expected = (slope * (x - answer.mean())[:, column]).numpy()
    found = explain.attribute(model, cells, outputs=["type1"]).values["protein"][:, 0, 3]
    assert np.median(np.abs(found - expected)) < 1e-2 * np.abs(expected).max()


def test_all_methods_agree_where_the_model_is_linear():
    model, cells, background = fitted()
    model, cells = linear_stub(), cells[:2]
    exact = explain.attribute(model, cells, "gradient_x_input", background=background)
    budgets = {"shap_permutation": 1, "shap_gradient": 300, "shap_kernel": 200}
    for method in ("integrated_gradients", "shap_permutation", "shap_kernel", "shap_gradient"):
        why = explain.attribute(
            model, cells, method, background=background, budget=budgets.get(method)
        )
        gap = np.abs(why.flat - exact.flat).max() / np.abs(exact.flat).max()
        assert gap < (0.3 if method == "shap_gradient" else 1e-3), method


def test_integrated_gradients_and_permutations_add_up_to_the_answer():
    # a sparse router's answer jumps where a token changes experts, and no gradient sees a jump
    for config, method in (("soft", "integrated_gradients"), ("", "shap_permutation")):
        model, split = whole(config)
        few, answer = split.test[:3], Answer(model.experts)
        x = answer.inputs(few)
        with torch.no_grad():
            out, base = answer(x), answer(answer.mean()[None])
        wanted = (out - base).gather(1, out.argmax(1, keepdim=True))[:, 0].numpy()
        told = explain.attribute(model.experts, few, method).flat[:, 0].sum(1)
        assert np.abs(told - wanted).max() < 0.02 * np.abs(wanted).mean(), method


def test_permutations_ask_the_network_ten_times_as_much_as_one_gradient(monkeypatch):
    rows, forward = [], Answer.forward

    def counted(self, x, *rest, **options):
        rows.append(len(x))
        return forward(self, x, *rest, **options)

    monkeypatch.setattr(Answer, "forward", counted)
    model, cells, background = fitted()
    asked = {}
    for method in ("gradient_x_input", "shap_permutation"):
        rows.clear()
        explain.attribute(model, cells[:3], method, background=background)
        asked[method] = sum(rows)
    assert asked["shap_permutation"] > 10 * asked["gradient_x_input"] > 0


def test_cells_without_a_modality_get_nothing_from_it():
    model, cells, background = fitted()
    lacking = cells.copy()
    lacking.mod["protein"] = lacking.mod["protein"][2:].copy()
    lacking.update()
    why = explain.attribute(model, lacking)
    assert (why.values["protein"][:2] == 0).all()
    assert (why.values["protein"][2:] != 0).any()
    with pytest.raises(DataError, match="protein.*missing in some cells"):
        explain.attribute(model, lacking, "shap_gradient", background=background)


def test_routing_relevance_needs_no_gradient_and_is_shared_within_patches():
    model, cells, background = fitted()
    why = explain.attribute(model, cells, "routing", background=background)
    n_features = why.values["rna"].shape[2]
    size = -(-n_features // model.network_.n_patches)
    assert np.ptp(why.values["rna"][:, 0, :size], axis=1).max() < 1e-6


def test_shap_gradient_approaches_integrated_gradients_from_the_mean():
    model, cells, background = fitted()
    cells = cells[:4]
    sampled = explain.attribute(model, cells, "shap_gradient", background=background, budget=200)
    exact = explain.attribute(model, cells, "integrated_gradients")
    assert explain.faithfulness.spearman(sampled, exact).min() > 0.9


def test_wrong_questions_are_refused():
    model, cells, background = fitted()
    for asked, words in [
        ({"method": "magic"}, "method='magic'"),
        ({"outputs": ["nobody"]}, "output='nobody'"),
        ({"target": "smell"}, "target='smell'"),
        ({"target": "rna", "source": "rna"}, "also a source"),
        ({"method": "shap_gradient"}, "background"),
    ]:
        with pytest.raises(ValueError, match=words):
            explain.attribute(model, cells, **asked)
