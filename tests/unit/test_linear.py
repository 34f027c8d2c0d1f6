"""The linear path against ridge and discriminants solved the plain way."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from scmoe.nn import clusters, heads, linear, translation


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


def folds(x):
    z, y = (v - v.mean(0) for v in x)
    fold = np.arange(len(z)) % 5
    return translation._Folds(z, y, np.zeros(y.shape[1]), np.ones(len(z), bool), fold, 5)


def test_full_rank_translation_is_ridge_with_a_penalty_for_every_feature():
    x = [v.astype(float) for v in world()[0]]
    moments = folds(x)
    ridge, _ = translation._regressions(0, moments, 0)
    z, y = (v - v.mean(0) for v in x)
    for f in range(y.shape[1]):
        options = [
            Ridge(alpha=p * moments.unit * len(z), fit_intercept=False).fit(z, y[:, f]).coef_
            for p in translation.PENALTIES
        ]
        away = [np.abs(coef - ridge.weights[:, f]).max() for coef in options]
        assert min(away) < 1e-6


def test_reduced_rank_with_every_rank_is_ridge_too():
    x = [v.astype(float) for v in world()[0]]
    moments = folds(x)
    values, vectors = np.linalg.eigh(moments.gram)
    solved = values, vectors, vectors.T @ moments.cross
    basis, weights = translation._factors(solved, 0.3, 0)
    z, y = (v - v.mean(0) for v in x)
    expected = Ridge(alpha=0.3 * len(z), fit_intercept=False).fit(z, y).coef_.T
    assert np.allclose(basis @ weights, expected)


def test_a_stack_is_never_worse_than_its_parts_on_the_cells_it_is_chosen_on():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=500)
    parts = [truth + rng.normal(size=500), 0.5 * truth + rng.normal(size=500), rng.normal(size=500)]
    parts = np.stack(parts)
    shares = translation.stacking_weights(parts @ parts.T, parts @ truth)
    assert (shares >= 0).all()
    error = np.square(truth - shares @ parts).sum()
    assert error < min(np.square(truth - p).sum() for p in parts)
    assert error < np.square(truth).sum()


def test_out_of_fold_translation_never_saw_the_cell(fitted):
    x, present, labels, _, crossfit = fitted
    k = 2
    other = [v.copy() for v in x]
    held = crossfit.fold.numpy() == k
    other[1][held] = 77.0  # targets of the fold that is held out
    mean, one_fold = x[1].mean(0), []
    for target in (x[1], other[1]):
        moments = translation._Folds(
            x[0].astype(float), target, mean, present[:, 0], crossfit.fold.numpy(), 5
        )
        one_fold.append(moments.rest(k))
    for first, second in zip(*one_fold, strict=True):
        assert np.allclose(first, second, atol=1e-5)


def test_a_source_alone_is_its_stacked_regression(fitted):
    x, _, _, path, _ = fitted
    only = torch.tensor([[True, False]]).expand(90, 2)
    ours = path.translate([tensors(x)[0], None], only, 1)
    by_hand = path.inputs(0, tensors(x)[0]) @ path.pair_1_0 + path.mean_1
    assert torch.allclose(ours, by_hand)


def test_discriminant_is_sklearns_with_the_same_shrinkage():
    x, _, labels = world()
    z = x[0].astype(float)
    w, b = next(wb for s, *wb in heads.discriminant(z, labels, 3) if s == 0.2)
    counts = np.bincount(labels)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2, priors=counts / 90).fit(
        z, labels
    )
    # sklearn divides the within-group covariance by n, this by n - C
    ours = (z @ w + b).argmax(1)
    assert (ours == theirs.predict(z)).mean() > 0.98


def test_out_of_fold_groups_never_saw_the_label(monkeypatch):
    monkeypatch.setattr(heads, "SHRINKAGES", (0.2,))
    monkeypatch.setattr(heads, "TEMPERATURES", (1.0,))
    x, present, labels = world()
    z = [v.astype(float) / 4 for v in x]
    fold = np.arange(90) % 5
    other = np.where(fold == 1, (labels + 1) % 3, labels)
    first, second = (
        heads._Search(z, present, given, 3, fold, 0).tune("discriminant", {0: (12, 1.0)}).logs
        for given in (labels, other)
    )
    assert np.allclose(first[fold == 1], second[fold == 1])
    assert not np.allclose(first[fold == 2], second[fold == 2])


def test_every_subset_of_modalities_has_fusion_weights_of_its_own(fitted):
    x, _, labels, path, _ = fitted
    assert path.subsets.tolist() == [[True, False], [False, True], [True, True]]
    for subset in path.subsets:
        given = subset.expand(90, 2)
        logits = path.group_logits(tensors(x), given)
        poisoned = [torch.where(given[:, i, None], v, torch.nan) for i, v in enumerate(tensors(x))]
        assert torch.equal(path.group_logits(poisoned, given), logits)
        assert (logits.argmax(1).numpy() == labels).mean() > 0.6


def test_group_logits_are_linear_in_the_features_but_for_the_normaliser(fitted):
    x, _, _, path, _ = fitted
    both = torch.ones(90, 2, dtype=torch.bool)
    first, second = tensors(x), [v.flip(0) for v in tensors(x)]
    middle = [(a + b) / 2 for a, b in zip(first, second, strict=True)]

    def centred(given):
        logits = path.group_logits(given, both)
        return logits - logits.mean(1, keepdim=True)

    assert torch.allclose(centred(middle), (centred(first) + centred(second)) / 2, atol=1e-4)


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
    assert adjusted_rand_score(labels, found) > 0.4


def test_the_clustering_that_every_modality_can_tell_is_kept():
    x, present, labels = world(200)
    fold = np.arange(200) % 5
    blocks = [v.astype(float) for v in x]
    by_chance = np.random.default_rng(0).permutation(labels)
    one_only = (np.random.default_rng(1).normal(size=200) + blocks[0][:, 0] > 0).astype(int)
    scores = [clusters.agreement(blocks, present, g, fold) for g in (labels, one_only, by_chance)]
    assert scores[0] > scores[1] > scores[2], scores
    assert abs(scores[2]) < 0.1


def noisy(seed, n=300, own=1.5, apart=1.5):
    """Groups that both modalities share, beside what each has for itself."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    blocks = []
    for _ in range(2):
        z = own * rng.normal(size=(n, 3)) @ rng.normal(size=(3, 10))
        z += apart * rng.normal(size=(3, 10))[labels] + 0.3 * rng.normal(size=(n, 10))
        z -= z.mean(0)
        blocks.append(z / np.sqrt(np.square(z).sum(1).mean()))
    return blocks, np.ones((n, 2), bool), labels


@pytest.mark.parametrize("seed", [0, 2])
def test_what_one_modality_has_for_itself_does_not_make_clusters(seed):
    from sklearn.metrics import adjusted_rand_score

    blocks, present, labels = noisy(seed)
    fold = np.arange(len(labels)) % 5
    found = clusters.find_clusters(blocks, present, 3, fold, 0)
    plain = clusters._k_means(blocks, present, 3, 0)
    assert adjusted_rand_score(labels, found) > 0.9
    assert adjusted_rand_score(labels, plain) < 0.2


def test_shared_axes_of_two_modalities_are_canonical_variates():
    from sklearn.cross_decomposition import CCA

    blocks, present, _ = noisy(0, 500)
    old, clusters.AXES_SHRINKAGE = clusters.AXES_SHRINKAGE, 0.0
    try:
        ours = clusters.shared_axes(blocks, present, 2)
    finally:
        clusters.AXES_SHRINKAGE = old
    theirs = sum(CCA(2, scale=False, max_iter=5000, tol=1e-10).fit_transform(*blocks))
    for i in range(2):
        assert abs(np.corrcoef(ours[:, i], theirs[:, i])[0, 1]) > 0.999
    assert ours[:, 0].std() > ours[:, 1].std()  # the axis shared most weighs most


def test_shared_axes_do_not_depend_on_how_components_are_turned():
    blocks, present, _ = noisy(1)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(10, 10)))[0]
    a = clusters.shared_axes(blocks, present, 3)
    b = clusters.shared_axes([blocks[0] @ turn, blocks[1]], present, 3)
    assert np.allclose(a @ a.T, b @ b.T, atol=1e-8)


def test_a_cell_that_lacks_a_modality_is_placed_by_the_other():
    blocks, present, _ = noisy(2, own=1, apart=2)
    whole = clusters.shared_axes(blocks, present, 2)
    present[:60, 1] = False
    blocks[1][:60] = 0
    part = clusters.shared_axes(blocks, present, 2)
    for i in range(2):
        assert abs(np.corrcoef(whole[:60, i], part[:60, i])[0, 1]) > 0.8


def test_k_means_on_shared_axes_gives_way_only_to_what_is_clearly_better():
    def made(way, score):
        return clusters.Clustering(way, (0, 1), np.array([0]), score, 1.0)

    first = made(clusters.SHARED, 0.5)
    assert clusters.winner([first, made("k-means", 0.59)]) is first
    rival = made("k-means", 0.61)
    assert clusters.winner([first, rival]) is rival
    assert clusters.winner([made("k-means", 0.4), rival]) is rival  # none has a lead to defend


def test_rare_groups_are_raised_where_groups_are_named(fitted):
    x, present, labels, path, _ = fitted
    share = np.bincount(labels) / len(labels)
    assert np.allclose(path.rare.numpy(), -linear.RARE_SHIFT * np.log(share), atol=1e-6)
    empty, _ = linear.fit_linear_path(x, present, labels, 4)
    assert empty.rare[3] == 0
    unseen, _ = linear.fit_linear_path(x, present, None, 3)
    assert (unseen.rare == 0).all()


def test_clusters_of_cells_that_lack_a_modality():
    x, present, _ = world(120)
    present[:40, 1] = False
    x[1][:40] = 0
    path, _ = linear.fit_linear_path(x, present, None, 3)
    logits = path.group_logits(tensors(x), torch.as_tensor(present))
    assert torch.isfinite(logits).all()
    assert len(logits.argmax(1).unique()) == 3


def test_where_features_say_nothing_the_groups_frequencies_are_the_answer():
    x, present, _ = world()
    labels = np.random.default_rng(5).choice(3, len(present), p=[0.6, 0.3, 0.1])
    path, _ = linear.fit_linear_path(x, present, labels, 3)
    said = path.group_logits(tensors(x), torch.as_tensor(present)).softmax(1)
    share = torch.as_tensor(np.bincount(labels) / len(labels), dtype=torch.float32)
    assert torch.allclose(said, share.expand_as(said), atol=1e-5)
