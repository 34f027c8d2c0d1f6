"""The recorded search: its folds are nested, its variants are what they are called."""

import numpy as np
import pytest

from benchmarks import search
from scmoe import Config, ScMoE
from scmoe.data import simulate_dyngen, split_mudata


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
