"""Closed-form translation: four regressions of a pair of modalities, stacked.

Ridge with a penalty for every target feature, and reduced-rank ridge, each on principal components
(linear) and on a Gaussian kernel (not linear, but as closed). What each is worth is decided by
non-negative least squares on cells that it was not fitted to, and where nothing helps, the sum of
the weights falls short of 1: the prediction shrinks to the mean. Several sources are stacked in
the same way. Penalties and ranks are chosen from moments of folds, never from cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from scipy.sparse import issparse
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils.extmath import randomized_svd

PENALTIES = np.logspace(-2, 3, 11)  # times the mean variance of an input
RANKS = (1, 2, 3, 5, 8, 12, 20, 40)
RANK_PENALTIES = (0.1, 1.0)  # times the best single penalty of full rank
MAX_LANDMARKS = 800
STACKING_CELLS = 2000  # weights of stacks are chosen on as many, drawn at random from larger data
NEXT_TO_NOTHING = 1e-6  # a variance, where scaled values vary by about 1


@dataclass
class Kernel:
    """Gaussian kernel at some training cells; its squared width is their median squared distance.

    Of scaled features, not of components: training cells lie further out along their own
    components than new cells do, which a linear map hardly feels and a kernel does.
    """

    landmarks: np.ndarray  # (L, F)
    gamma: float
    mean: np.ndarray  # (L,) of the kernel over training cells
    root: np.ndarray  # (L, r) to features whose inner products are the kernel

    def __call__(self, x) -> np.ndarray:
        """Centred kernel with the landmarks `(N, L)`."""
        return (
            np.exp(-self.gamma * euclidean_distances(x, self.landmarks, squared=True)) - self.mean
        )


def fit_kernel(x, present: np.ndarray, seed: int) -> Kernel:
    """Place a kernel on at most `MAX_LANDMARKS` of the cells that have the modality (Nyström)."""
    rows = np.flatnonzero(present)
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MAX_LANDMARKS])
    landmarks = x[rows].toarray() if issparse(x) else np.asarray(x[rows])
    landmarks = landmarks.astype(np.float64)
    squared = euclidean_distances(landmarks, squared=True)
    upper = squared[np.triu_indices(len(rows), 1)]
    gamma = 1 / max(np.median(upper) if len(upper) else 1.0, NEXT_TO_NOTHING)
    values, vectors = np.linalg.eigh(np.exp(-gamma * squared))
    kept = values > 1e-9 * max(values.max(initial=0), 1e-9)
    kernel = Kernel(landmarks, gamma, np.zeros(len(rows)), vectors[:, kept] / values[kept] ** 0.5)
    if len(rows):
        kernel.mean = kernel(x[present]).mean(0)
    return kernel


def fit_translations(matrices, means, inputs, present, fold, n_folds, seed):
    """Weights of every ordered pair of modalities.

    Parameters
    ----------
    matrices, means
        Scaled features `(N, F_i)`, dense or CSR, and their means.
    inputs
        By modality, a list of the inputs `(N, q)` of regressions: linear ones, kernel features.
    present, fold
        `(N, M)` bool; `(N,)` the fold a cell is held out in.

    Returns
    -------
    `{(target, source): [weights (q, F_target) of each kind of input]}`; the same without each fold
    `(n_folds, q, F_target)`; and, per target, second moments of its out-of-fold predictions
    `(M, M)` and their products with the truth `(M,)`, from which any set of sources is stacked.
    """
    n, m = present.shape
    some = np.sort(np.random.default_rng(seed).permutation(n)[:STACKING_CELLS])
    weights, per_fold = {}, {}
    grams, crosses = np.zeros((m, m, m)), np.zeros((m, m))
    for i, x in enumerate(matrices):
        truth = (x[some].toarray() if issparse(x) else np.asarray(x[some], float)) - means[i]
        predicted = np.zeros((m, *truth.shape), np.float32)
        for j in range(m):
            if i == j:
                continue
            both = present[:, i] & present[:, j]
            fits = [
                fit
                for kind, z in enumerate(inputs[j])
                for fit in _regressions(kind, _Folds(z, x, means[i], both, fold, n_folds), seed)
            ]
            held_out = _held_out(fits, inputs[j], some, both, fold)  # (fits, some, F)
            share = _stack(
                np.einsum("anf,bnf->ab", held_out, held_out),
                np.einsum("anf,nf->a", held_out, truth),
            )
            predicted[j] = np.tensordot(share, held_out, 1)
            weights[i, j], per_fold[i, j] = _summed(fits, share, inputs[j], n_folds)
        known = present[some, i]
        predicted = predicted[:, known].reshape(m, -1)
        grams[i], crosses[i] = predicted @ predicted.T, predicted @ truth[known].ravel()
    return weights, per_fold, grams, crosses


def stacking_weights(gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Non-negative weights of several sources' predictions with the least out-of-fold error."""
    return _stack(np.asarray(gram, float), np.asarray(cross, float))


def _stack(gram, cross):
    size = max(np.trace(gram) / len(gram), 1e-12)
    root = np.linalg.cholesky(gram / size + 1e-6 * np.eye(len(gram)))
    return nnls(root.T, np.linalg.solve(root, cross / size))[0]


def _held_out(fits, inputs, some, both, fold):
    out = np.zeros((len(fits), len(some), fits[0].weights.shape[1]), np.float32)
    for a, fit in enumerate(fits):
        for k, w in enumerate(fit.without):
            rows = np.flatnonzero(both[some] & (fold[some] == k))
            out[a, rows] = inputs[fit.kind][some[rows]].astype(np.float32) @ w
    return out


def _summed(fits, share, inputs, n_folds):
    """Weighted sum of the regressions that read the same inputs."""
    f = fits[0].weights.shape[1]
    whole = [np.zeros((z.shape[1], f)) for z in inputs]
    without = [np.zeros((n_folds, z.shape[1], f), np.float32) for z in inputs]
    for fit, s in zip(fits, share, strict=True):
        whole[fit.kind] += s * fit.weights
        for k, w in enumerate(fit.without):
            without[fit.kind][k] += s * w
    return whole, without


@dataclass
class _Fit:
    kind: int  # of input
    weights: np.ndarray  # (q, F)
    without: list[np.ndarray]  # the same without each fold


class _Folds:
    """Moments of inputs and target in each fold, of the cells that have both.

    What has a column per target feature is in float32: there can be 10^4, and their products are
    most of the work.
    """

    def __init__(self, z, x, mean, both, fold, n_folds):
        self.roots, self.targets, self.grams, self.crosses, self.counts = [], [], [], [], []
        self.mean = mean.astype(np.float32)
        for k in range(n_folds):
            rows = np.flatnonzero(both & (fold == k))
            held, target = z[rows], x[rows]
            self.crosses.append(self._cross(held.astype(np.float32), target))
            self.grams.append(held.T @ held)
            if len(held) > held.shape[1]:  # the same inner products, fewer rows
                held, target = np.linalg.qr(held, mode="r"), None
            self.roots.append(held.astype(np.float32))
            self.targets.append(target)
            self.counts.append(len(rows))
        self.n = max(sum(self.counts), 1)
        self.gram, self.cross = sum(self.grams) / self.n, sum(self.crosses) / self.n
        self.unit = max(np.trace(self.gram) / len(self.gram), NEXT_TO_NOTHING)

    def _cross(self, inputs, target):
        """Products of inputs with the centred target, `(q, F)`."""
        return np.asarray((target.T @ inputs).T) - np.outer(inputs.sum(0), self.mean)

    def rest(self, k):
        """Moments of the cells outside fold `k`."""
        left = max(self.n - self.counts[k], 1)
        gram = (self.n * self.gram - self.grams[k]) / left
        return gram, (self.n * self.cross - self.crosses[k]) / left

    def errors(self, k, basis):
        """Give the squared error of `basis @ weights` in fold `k`, by feature, less that at 0.

        As a function of the weights `(r, F)`, or of its first rows.
        """
        root, target = self.roots[k] @ basis, self.targets[k]
        cross = basis.T @ self.crosses[k] if target is None else self._cross(root, target)

        def error(weights):
            r = len(weights)
            return np.square(root[:, :r] @ weights).sum(0) - 2 * (weights * cross[:r]).sum(0)

        return error


def _regressions(kind: int, folds: _Folds, seed: int) -> list[_Fit]:
    """Ridge, and reduced-rank ridge."""
    parts = [folds.rest(k) for k in range(len(folds.counts))]
    errors = np.zeros((len(PENALTIES), folds.cross.shape[1]))
    solved = []
    for k, (gram, cross) in enumerate(parts):
        solved.append(_decomposed(gram, cross))
        error = folds.errors(k, solved[k][1])
        for t, penalty in enumerate(PENALTIES):
            errors[t] += error(_shrunk(solved[k], penalty * folds.unit))
    whole = _decomposed(folds.gram, folds.cross)
    each = PENALTIES[errors.argmin(0)] * folds.unit  # (F,)
    ridge = _Fit(kind, whole[1] @ _shrunk(whole, each), [s[1] @ _shrunk(s, each) for s in solved])
    best = PENALTIES[errors.sum(1).argmin()] * folds.unit
    return [ridge, _reduced_rank(kind, folds, solved, whole, best, seed)]


def _decomposed(gram, cross):
    """Eigenvalues and -vectors of the inputs' moments, and the products with the target in them."""
    values, vectors = np.linalg.eigh(gram)
    vectors = vectors.astype(np.float32)
    return values.clip(0), vectors, vectors.T @ cross


def _shrunk(solved, penalty):
    values, _, rotated = solved
    return rotated / (values[:, None] + penalty).astype(np.float32)


def _reduced_rank(kind, folds, solved, whole, best, seed) -> _Fit:
    """Reduced-rank ridge regression (Mukherjee & Zhu 2011), penalty and rank chosen."""
    errors, found = {}, {}
    for factor in RANK_PENALTIES:
        for k, part in enumerate(solved):
            basis, weights = found[factor, k] = _factors(part, factor * best, seed)
            error = folds.errors(k, basis)
            for rank in RANKS:
                errors[factor, rank] = errors.get((factor, rank), 0.0) + error(weights[:rank]).sum()
    factor, rank = min(errors, key=errors.get)
    basis, weights = _factors(whole, factor * best, seed)
    without = [found[factor, k] for k in range(len(solved))]
    return _Fit(
        kind, basis[:, :rank] @ weights[:rank], [b[:, :rank] @ w[:rank] for b, w in without]
    )


def _factors(solved, penalty, seed):
    """Basis `(q, r)` and weights `(r, F)` of the leading factors of a ridge regression."""
    values, vectors, rotated = solved
    root = np.sqrt(values + penalty).astype(np.float32)
    whitened = rotated / root[:, None]
    rank = min(max(RANKS), *whitened.shape)
    if min(whitened.shape) <= 2 * rank:
        left, s, right = np.linalg.svd(whitened, full_matrices=False)
    else:
        left, s, right = randomized_svd(whitened, rank, n_iter=3, random_state=seed)
    return vectors @ (left / root[:, None]), s[:, None] * right
