"""The recorded search: its folds are nested, its variants are what they are called."""

import numpy as np
import pytest

from benchmarks import heads, search
from scmoe import Config, ScMoE
from scmoe.data import simulate_dyngen, split_mudata
from scmoe.metrics import evaluate


@pytest.fixture(scope="module")
def split():
    return split_mudata(simulate_dyngen(150, 40, seed=3), "label")


def test_an_inner_fold_holds_no_published_test_cell(split):
    allowed, seen = {*split.train.obs_names, *split.val.obs_names}, set()
    for k in range(search.N_INNER):
        inner = search.nested(split, k)
        parts = [{*part.obs_names} for part in (inner.train, inner.val, inner.test)]
        assert set.union(*parts) == allowed
        assert sum(map(len, parts)) == len(allowed)
        seen |= parts[2]
    assert seen == allowed


def test_sorting_features_moves_them_and_changes_nothing_else(split):
    moved = search.by_expression(split)
    for part in ("train", "val", "test"):
        a, b = getattr(split, part), getattr(moved, part)
        assert (a.obs_names == b.obs_names).all()
        assert a.obs["label"].equals(b.obs["label"])
        for name in split.modalities:
            assert (a[name].to_df() == b[name].to_df()[a[name].var_names]).all(axis=None)
            assert list(a[name].var_names) != list(b[name].var_names)
            assert list(b[name].var_names) == list(moved.train[name].var_names)


def test_an_ensemble_says_the_mean(split):
    config = Config().replace(linear_path=False, refit=False, epochs=1)
    models = [ScMoE(config=config, seed=s).fit(split, "cpu", progress=False) for s in (0, 1)]
    both = search.Ensemble(models)
    said = [m.predict(split.test).drop(columns="group") for m in models]
    mean = both.predict(split.test)
    assert np.allclose(mean.drop(columns="group"), (said[0] + said[1]) / 2)
    assert (mean["group"] == mean.drop(columns="group").idxmax(axis=1)).all()
    target, source = split.modalities[:2]
    parts = [m.translate(split.test, target, source) for m in models]
    assert np.allclose(both.translate(split.test, target, source), np.mean(parts, 0))


def test_every_variant_is_a_configuration():
    for settings in search.VARIANTS.values():
        Config().replace(**settings)


def test_without_kernels_the_heads_are_those_of_the_recipe(split):
    model = ScMoE(config=Config().replace(epochs=1)).fit(split, "cpu", progress=False)
    table = evaluate(model.without_experts(), split.test, "label")
    recipe = table[table["task"].eq("supervised")].set_index("metric")["value"]
    plain, both = heads.kernel_heads(split)
    assert not plain.pop("used") and both.pop("used")
    assert plain == pytest.approx(recipe[list(plain)].to_dict(), abs=1e-4)
    assert both != plain


def test_both_losses_of_peaks_agree_where_little_can_be_told():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 3))
    y = (rng.random((400, 5)) < 0.5 + 0.02 * z[:, :1]).astype(float)
    ridge, bernoulli = (fit(z, y, 10)(z) for fit in (heads._ridge, heads._bernoulli))
    assert np.allclose(ridge, bernoulli, atol=0.01)
    assert np.ptp(ridge, 0).min() > 0.01  # and both tell something
