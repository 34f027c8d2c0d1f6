"""The linear path against ridge and discriminants solved the plain way."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from scmoe.nn import linear


def world(n=90, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    latent = rng.normal(size=(n, 4)) + 2 * np.eye(3, 4)[labels]
    x = [latent @ rng.normal(size=(4, f)) + rng.normal(size=(n, f)) for f in (12, 9)]
    x = [((v - v.mean(0)) / v.std(0)).astype(np.float32) for v in x]
    return x, np.ones((n, 2), bool), labels


def tensors(x):
    return [torch.as_tensor(v) for v in x]


@pytest.fixture(scope="module")
def fitted():
    x, present, labels = world()
    return x, present, labels, *linear.fit_linear_path(x, present, labels, 3)


def test_translation_is_ridge_regression(fitted):
    x, present, _, path, _ = fitted
    only = torch.tensor([[True, False]]).expand(90, 2)
    ours = path.translate([tensors(x)[0], None], only, 1).numpy()
    ridge = Ridge(alpha=float(path.penalty[1, 0]) * 90).fit(x[0], x[1])
    assert np.allclose(ours, ridge.predict(x[0]), atol=1e-3)


def test_out_of_fold_translation_never_saw_the_cell(fitted):
    x, present, labels, path, crossfit = fitted
    k = 2
    held = crossfit.fold.numpy() == k
    other = [v.copy() for v in x]
    other[1][held] = 77.0  # targets of the fold that is held out
    base = linear._components(x[0], present[:, 0], 0), linear._components(x[1], present[:, 1], 0)
    scores = [linear._project(v, *b) for v, b in zip(x, base, strict=True)]
    weights = []
    for target in (x[1], other[1]):
        grams, crosses, counts = [], [], []
        for f in range(5):
            rows = crossfit.fold.numpy() == f
            grams.append(scores[0][rows].T @ scores[0][rows])
            crosses.append(scores[0][rows].T @ (target[rows] - base[1][0]))
            counts.append(rows.sum())
        weights.append(linear._ridge(grams, crosses, counts, penalties=[1.0])[1][k])
    assert np.allclose(*weights)


def test_discriminant_is_sklearns_with_the_same_shrinkage():
    x, _, labels = world()
    z = x[0].astype(float)
    w, b = linear._GroupMoments(z, labels, 3).discriminant(0.3)
    counts = np.bincount(labels)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3, priors=counts / 90).fit(
        z, labels
    )
    # sklearn divides the within-group covariance by n, this by n - C
    ours = (z @ w + b).argmax(1)
    assert (ours == theirs.predict(z)).mean() > 0.98


def test_moments_without_a_fold_are_the_moments_of_the_rest():
    x, _, labels = world()
    z = x[0].astype(float)
    left = linear._GroupMoments(z, labels, 3) - linear._GroupMoments(z[:20], labels[:20], 3)
    right = linear._GroupMoments(z[20:], labels[20:], 3)
    for a, b in zip(left.discriminant(0.1), right.discriminant(0.1), strict=True):
        assert np.allclose(a, b)


def test_sparse_and_dense_input_give_the_same_path():
    x, present, labels = world()
    x[0] = np.where(x[0] > 0.5, x[0], 0)
    dense, _ = linear.fit_linear_path(x, present, labels, 3)
    csr, _ = linear.fit_linear_path([sparse.csr_matrix(x[0]), x[1]], present, labels, 3)
    given = tensors(x)
    ones = torch.ones(90, 2, dtype=torch.bool)
    # ARPACK leaves out the last component
    a, b = (p.group_logits(given, ones).softmax(1) for p in (dense, csr))
    assert (a - b).abs().max() < 0.15
    a, b = (p.translate(given, ones, 1) for p in (dense, csr))
    assert (a - b).abs().mean() < 0.05


def test_a_group_without_cells_is_never_predicted():
    x, present, labels = world()
    path, _ = linear.fit_linear_path(x, present, labels, 5)
    logits = path.group_logits(tensors(x), torch.ones(90, 2, dtype=torch.bool))
    assert torch.isfinite(logits).all()
    assert logits.argmax(1).max() < 3


def test_cells_that_lack_a_modality_are_left_out_of_its_moments():
    x, present, labels = world()
    present[:30, 1] = False
    x[1][:30] = 0
    first, _ = linear.fit_linear_path(x, present, labels, 3)
    x[1][:30] = 55.0
    second, _ = linear.fit_linear_path(x, present, labels, 3)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_clusters_follow_the_groups_without_seeing_them():
    from sklearn.metrics import adjusted_rand_score

    x, present, labels = world(300)
    path, crossfit = linear.fit_linear_path(x, present, None, 3)
    assert crossfit.groups is None
    found = path.group_logits(tensors(x), torch.ones(300, 2, dtype=torch.bool)).argmax(1)
    assert adjusted_rand_score(labels, found) > 0.5
