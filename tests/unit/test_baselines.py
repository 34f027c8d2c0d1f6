"""The simple methods: the shared interface, and what each one must get right."""

from itertools import product

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.special import log_softmax
from sklearn.cross_decomposition import PLSRegression
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_ridge import KernelRidge as ExactKernelRidge
from sklearn.linear_model import Ridge as ExactRidge
from sklearn.neighbors import kneighbors_graph

import scmoe
from benchmarks.record.ensembles import Boosting, KernelEnsemble
from scmoe import baselines
from scmoe.baselines import classifiers, regression
from scmoe.clusters import communities
from scmoe.data import DataError, split_mudata
from scmoe.parts import fusion_weights

GROUP_METHODS = [
    baselines.LogisticRegression,
    lambda: baselines.LogisticRegression("early"),
    baselines.DiscriminantAnalysis,
    lambda: baselines.DiscriminantAnalysis("early"),
    baselines.LinearEnsemble,
    baselines.KMeans,
    baselines.Leiden,
]
TRANSLATIONS = [
    baselines.Ridge,
    baselines.ReducedRank,
    baselines.PLS,
    baselines.KernelRidge,
    KernelEnsemble,
]


@pytest.fixture
def split(tiny):
    return split_mudata(tiny)


def names(methods):
    return [getattr(m, "__name__", "early fusion") for m in methods]


@pytest.mark.parametrize("make", GROUP_METHODS, ids=names(GROUP_METHODS))
def test_groups_are_found_and_probabilities_sum_to_one(make, split):
    model = make().fit(split)
    table = model.predict(split.test)
    assert list(table.columns) == ["group", *model.groups_]
    assert table.index.equals(split.test.obs_names)
    np.testing.assert_allclose(table[model.groups_].sum(axis=1), 1)
    scores = scmoe.evaluate(model, split.test).set_index("metric")["value"]
    assert scores["accuracy"] >= 0.9
    assert not hasattr(model, "translate")


def test_trees_name_groups_and_translate(split):
    model = Boosting().fit(split)
    scores = scmoe.evaluate(model, split.test)
    assert scores.query("metric == 'accuracy'")["value"].item() >= 0.9
    assert scores.query("metric == 'r2'")["value"].max() > 0.3
    part = md.MuData({"rna": split.test["rna"]})
    np.testing.assert_allclose(model.predict(part)[model.groups_].sum(axis=1), 1)


@pytest.mark.parametrize("make", [*GROUP_METHODS, *TRANSLATIONS, Boosting])
def test_test_cells_never_touch_what_is_fitted(make, split):
    before = result(make().fit(split), split.val)
    for part in split.test.mod.values():
        part.X = part.X[::-1] * 7
    after = result(make().fit(split), split.val)
    assert np.array_equal(before, after)


def result(model, mdata):
    if hasattr(model, "predict"):
        return model.predict(mdata)[model.groups_].to_numpy()
    return model.translate(mdata, "rna", "morph")


@pytest.mark.parametrize("make", GROUP_METHODS, ids=names(GROUP_METHODS))
def test_groups_are_predicted_from_any_modality_and_for_cells_that_lack_some(make, split):
    model = make().fit(split)
    for kept in (["rna"], ["morph", "protein"]):
        part = md.MuData({m: split.test[m] for m in kept})
        assert np.isfinite(result(model, part)).all()
    some = split.test["protein"][:5]
    gaps = md.MuData({"rna": split.test["rna"], "protein": some})
    assert np.isfinite(result(model, gaps)).all()


@pytest.mark.parametrize("method", TRANSLATIONS, ids=names(TRANSLATIONS))
def test_translation_never_reads_the_target(method, split):
    model = method().fit(split)
    whole = model.translate(split.test, "rna", "morph")
    source = md.MuData({"morph": split.test["morph"]})
    assert np.array_equal(whole, model.translate(source, "rna", "morph"))
    split.test["rna"].X = split.test["rna"].X * np.nan
    assert np.array_equal(whole, model.translate(split.test, "rna", "morph"))


@pytest.mark.parametrize("method", TRANSLATIONS, ids=names(TRANSLATIONS))
def test_translation_beats_the_mean_and_takes_several_sources(method, split):
    model = method().fit(split)
    table = scmoe.evaluate(model, split.test)
    r2 = table[table["metric"] == "r2"]
    assert len(r2) == 6
    assert r2["value"].mean() > 0.1
    both = model.translate(split.test, "protein", ["rna", "morph"], units="scaled")
    truth = model.transform(split.test)["protein"].X
    single = r2.set_index(["target_modality", "source_modality"])["value"]["protein"]
    assert scmoe.metrics.translation_metrics(truth, both)["r2"] > single.min()


def test_translation_gives_measured_units_into_a_given_array_and_nan_without_a_source(split):
    model = baselines.Ridge().fit(split)
    out = np.empty((split.test.n_obs, 24), np.float32)
    assert model.translate(split.test, "rna", "protein", out=out) is out
    scaled = model.translate(split.test, "rna", "protein", units="scaled")
    np.testing.assert_array_equal(out, model.transform_.inverse(scaled, "rna"))
    gaps = md.MuData({"rna": split.test["rna"], "protein": split.test["protein"][3:]})
    assert np.isnan(model.translate(gaps, "rna", "protein")).any(1).sum() == 3


def test_a_method_can_be_fitted_twice(split, tiny):
    other = split_mudata(tiny[:45].copy())
    model = baselines.KernelRidge().fit(other)
    again = result(model.fit(split), split.test)
    assert np.array_equal(again, result(baselines.KernelRidge().fit(split), split.test))


def test_wrong_requests_are_refused_by_name(split):
    with pytest.raises(DataError, match="atac"):
        baselines.Ridge(["rna", "atac"]).fit(split)
    with pytest.raises(ValueError, match="late"):
        baselines.LogisticRegression("middle")
    model = baselines.Ridge().fit(split)
    with pytest.raises(DataError, match="atac"):
        model.translate(split.test, "atac", "rna")
    with pytest.raises(ValueError, match="target"):
        model.translate(split.test, "rna", ["rna", "morph"])
    with pytest.raises(ValueError, match="units"):
        model.translate(split.test, "rna", "morph", units="log")
    with pytest.raises(DataError, match="spatial"):
        baselines.CoordinateNeighbours().fit(split)


def test_unsupervised_methods_need_no_label_beyond_the_number_of_groups(split):
    before = baselines.KMeans().fit(split).predict(split.test)
    for part in (split.train, split.val, split.test):
        part.obs["cell_type"] = part.obs["cell_type"].to_numpy()[::-1]
    pd.testing.assert_frame_equal(before, baselines.KMeans().fit(split).predict(split.test))


# -- against plain definitions ---------------------------------------------------------------


def test_the_discriminant_is_shrunken_linear_discriminant_analysis():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 3], 30)  # the fold lacks group 2
    Z = rng.normal(size=(90, 5)) + rng.normal(size=(4, 5))[labels]
    for shrinkage, weights, bias in classifiers.discriminant(Z, labels, 4):
        within = np.concatenate([Z[labels == k] - Z[labels == k].mean(0) for k in (0, 1, 3)])
        cov = within.T @ within / (90 - 3)
        cov = (1 - shrinkage) * cov + shrinkage * np.trace(cov) / 5 * np.eye(5)
        oracle = LinearDiscriminantAnalysis(solver="lsqr").fit(Z, labels)
        solved = np.linalg.solve(cov, oracle.means_.T)
        logits = Z @ solved - 0.5 * (oracle.means_.T * solved).sum(0) + np.log(oracle.priors_)
        ours = log_softmax(Z @ weights + bias, 1)
        np.testing.assert_allclose(ours[:, [0, 1, 3]], log_softmax(logits, 1), atol=1e-6)
        assert ours[:, 2].max() < -10


def test_fusion_finds_the_weights_that_made_the_labels():
    rng = np.random.default_rng(0)
    logs = log_softmax(rng.normal(size=(3, 20000, 4)) * 2, 2)
    chances = np.exp(log_softmax(np.tensordot([1.0, 0.5, 0.0], logs, 1), 1))
    labels = (chances.cumsum(1) < rng.random((20000, 1))).sum(1)
    np.testing.assert_allclose(fusion_weights(logs, labels, prior=0), [1, 0.5, 0], atol=0.05)


def regression_problem(n_targets=3):
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(80, 6)) * [3, 2, 1, 1, 0.5, 0.2]
    Y = Z @ rng.normal(size=(6, n_targets)) + rng.normal(size=(80, n_targets))
    return Z - Z.mean(0), Y - Y.mean(0)


def test_ridge_solutions_agree_with_scikit_learn():
    Z, Y = regression_problem()
    unit = np.trace(Z.T @ Z) / 80 / 6
    path = regression.Ridge._path(None, Z.T @ Z, Z.T @ Y, 80)
    for penalty, (basis, weights) in zip(regression.PENALTIES, path, strict=True):
        oracle = ExactRidge(alpha=penalty * unit * 80).fit(Z, Y)
        np.testing.assert_allclose(basis @ weights, oracle.coef_.T, atol=1e-8)


def test_reduced_rank_solutions_have_their_rank_and_end_in_ridge():
    Z, Y = regression_problem(4)
    unit = np.trace(Z.T @ Z) / 80 / 6
    path = regression.ReducedRank._path(None, Z.T @ Z, Z.T @ Y, 80)
    settings = product(regression.PENALTIES[2:-2:2], regression.RANKS)
    for (penalty, rank), (basis, weights) in zip(settings, path, strict=True):
        assert np.linalg.matrix_rank(basis @ weights) == min(rank, 4)
        if rank >= 4:
            oracle = ExactRidge(alpha=penalty * unit * 80).fit(Z, Y)
            np.testing.assert_allclose(basis @ weights, oracle.coef_.T, atol=1e-8)


def test_pls_of_one_target_agrees_with_scikit_learn():
    Z, Y = regression_problem(1)
    path = regression.PLS._path(None, Z.T @ Z, Z.T @ Y, 80)
    for n_components, (basis, weights) in enumerate(path, 1):
        oracle = PLSRegression(n_components, scale=False).fit(Z, Y)
        np.testing.assert_allclose(basis @ weights, oracle.coef_.T, atol=1e-6)


def test_kernel_inputs_span_the_gaussian_kernel():
    Z, Y = regression_problem()
    kernel = regression._Kernel(Z, seed=0)
    features = kernel(Z)
    oracle = ExactKernelRidge(alpha=1.0, kernel="precomputed")
    squared = np.square(Z[:, None] - Z[None]).sum(2)
    gram = np.exp(-squared / np.median(squared[np.triu_indices(len(Z), 1)]))
    centred = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    np.testing.assert_allclose(features @ features.T, centred, atol=1e-8)
    predicted = ExactRidge(alpha=1.0, fit_intercept=False).fit(features, Y).predict(features)
    np.testing.assert_allclose(predicted, oracle.fit(centred, Y).predict(centred), atol=1e-6)


def test_sparse_targets_are_regressed_like_dense_ones():
    rng = np.random.default_rng(0)
    Z, Y = rng.normal(size=(30, 4)), (rng.random((30, 9)) < 0.2).astype(float)
    dense = regression._cross(Z, Y, Y.mean(0))
    np.testing.assert_allclose(regression._cross(Z, sparse.csr_matrix(Y), Y.mean(0)), dense)
    np.testing.assert_allclose(dense, Z.T @ (Y - Y.mean(0)))


def test_leiden_gives_the_number_of_groups_asked_for():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(c, 0.3, (40, 2)) for c in ((0, 0), (4, 0), (0, 4))])
    graph = kneighbors_graph(points, 10)
    found = communities(graph + graph.T, 3, seed=0)
    assert pd.crosstab(found, np.repeat([0, 1, 2], 40)).max().tolist() == [40, 40, 40]


# -- the real files --------------------------------------------------------------------------


def test_coordinates_alone_give_dbitseq_groups_away(real_dbitseq):
    split = scmoe.data.load("dbitseq", root=real_dbitseq)
    table = scmoe.evaluate(baselines.CoordinateNeighbours().fit(split), split.test)
    assert table.set_index("metric")["value"]["accuracy"] > 0.9
    assert set(table["modalities"]) == {"coordinates"}


@pytest.mark.slow
def test_patchseq_groups_gain_from_weighted_fusion(real_patchseq):
    scores = {}
    for fold in range(10):
        split = scmoe.data.load("patchseq", fold=fold, root=real_patchseq)
        for model in (
            baselines.DiscriminantAnalysis(modalities=["rna"]),
            baselines.DiscriminantAnalysis("early"),
        ):
            table = scmoe.evaluate(model.fit(split), split.test).set_index("metric")["value"]
            scores.setdefault(model.method, []).append(table["accuracy"])
    alone, fused = (np.mean(values) for values in scores.values())
    assert alone > 0.83
    assert fused > alone


def test_cells_as_anndata_are_refused_with_the_remedy(split):
    with pytest.raises(DataError, match="MuData"):
        baselines.Ridge().fit(split).transform(ad.AnnData(np.ones((2, 2))))
