"""Translation by regression, linear or with a kernel, its settings chosen on inner folds.

A translation has one coefficient matrix, fitted to the training and validation cells that have
source and target. Its settings have the least squared error on inner folds of those cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.linalg import eigh, svd
from sklearn.kernel_approximation import Nystroem
from sklearn.metrics.pairwise import euclidean_distances

from scmoe.baselines.components import OnComponents
from scmoe.data import Split
from scmoe.method import Translator, inner_folds

PENALTIES = np.logspace(-2, 3, 11)  # times the mean variance of an input
RANKS = (1, 2, 3, 5, 8, 12, 20, 40)
MAX_PLS_COMPONENTS = 25
SOURCE_WEIGHTS = (0.2, 0.4, 0.7, 1.0)  # of a source beside the best one
MAX_LANDMARKS = 1000

Path = Iterator[tuple[np.ndarray, np.ndarray]]


class Translation(NamedTuple):
    """One coefficient matrix, of some sources' inputs side by side."""

    sources: dict[str, float]  # and their weights
    error: float  # on inner folds
    weights: np.ndarray  # (p, n_features)
    mean: np.ndarray  # (n_features,)


class Ridge(OnComponents, Translator):
    """Ridge regression, with a penalty for every target feature.

    Every ordered pair of modalities is fitted; several sources together when first asked for.
    """

    task, method = "translation", "ridge"
    per_feature = True  # may a feature have a setting of its own?

    def fit(self, split: Split) -> Ridge:
        """Fit to training and validation cells; `split.test` is not touched."""
        self._start(split)
        self._targets, self._present, _ = self._training_cells(split)
        self._scores = self._fit_inputs(self._targets, self._present)
        self._fitted: dict[tuple, Translation] = {}
        for target, source in permutations(self.modalities_, 2):
            self._translation(target, (source,))
        return self

    def _told(self, mdata, target, sources):
        matrices, present = self._matrices(mdata, sources)
        found = self._translation(target, tuple(m for m in self.modalities_ if m in sources))
        Z = _beside(self._inputs(matrices, present), found.sources)
        has = np.any(list(present.values()), axis=0)
        return lambda rows: found.mean + Z[rows] @ found.weights, has

    def _translation(self, target: str, sources: tuple[str, ...]) -> Translation:
        """Start from the best source; add each other with the weight that lowers the error most."""
        if (target, sources) not in self._fitted:
            first, *others = sources if len(sources) == 1 else sorted(
                sources, key=lambda source: self._translation(target, (source,)).error
            )  # fmt: skip
            best = self._solve(target, {first: 1.0, **dict.fromkeys(others, 0.0)})
            for other in others:
                options = [self._solve(target, best.sources | {other: w}) for w in SOURCE_WEIGHTS]
                best = min([best, *options], key=lambda found: found.error)
            self._fitted[target, sources] = best
        return self._fitted[target, sources]

    def _solve(self, target: str, sources: dict[str, float]) -> Translation:
        has = np.any([self._present[m] for m in sources], axis=0) & self._present[target]
        Z, Y = _beside(self._scores, sources)[has], self._targets[target][has]
        center, mean = Z.mean(0), np.asarray(Y.mean(0), float).ravel()
        Z = Z - center
        folds = [(Z[test], _cross(Z[test], Y[test], mean))
                 for test in inner_folds(None, len(Z), self.seed_)]  # fmt: skip
        gram, cross, errors = Z.T @ Z, sum(c for _, c in folds), {}
        for held_out, its_cross in folds:
            rest, basis = len(Z) - len(held_out), None
            path = self._path(gram - held_out.T @ held_out, cross - its_cross, rest)
            for i, (new_basis, weights) in enumerate(path):
                if new_basis is not basis:
                    basis, projected = new_basis, held_out @ new_basis
                    truth = basis.T @ its_cross
                    if len(projected) > projected.shape[1]:  # the same squared norms, fewer rows
                        projected = np.linalg.qr(projected, mode="r")
                change = np.square(projected @ weights).sum(0) - 2 * (weights * truth).sum(0)
                errors[i] = errors.get(i, 0) + change
        errors = np.stack(list(errors.values()))  # (settings, features)
        if not self.per_feature:
            errors = errors.sum(1, keepdims=True)
        best = np.broadcast_to(errors.argmin(0), len(mean))
        coefficients = np.zeros_like(cross)
        for i, (basis, weights) in enumerate(self._path(gram, cross, len(Z))):
            coefficients[:, best == i] = basis @ weights[:, best == i]
        mean = mean - center @ coefficients
        return Translation(sources, errors.min(0).sum(), coefficients, mean)

    def _path(self, gram: np.ndarray, cross: np.ndarray, n: int) -> Path:
        """Solutions `basis @ weights` by setting, from second moments of `n` cells."""
        values, vectors = np.linalg.eigh(gram / n)
        unit = max(values.mean(), 1e-12)
        rotated = vectors.T @ cross / n
        for penalty in PENALTIES:
            yield vectors, rotated / (values.clip(0) + penalty * unit)[:, None]


def _beside(scores: dict[str, np.ndarray], sources: dict[str, float]) -> np.ndarray:
    """Weighted inputs side by side."""
    return np.hstack([weight * scores[m] for m, weight in sources.items()])


def _cross(Z: np.ndarray, Y, mean: np.ndarray) -> np.ndarray:
    """`Z' (Y - mean)`, with Y dense or sparse."""
    product = (Y.T @ Z).T if sparse.issparse(Y) else Z.T @ Y
    return product - np.outer(Z.sum(0), mean)


class ReducedRank(Ridge):
    """Reduced-rank ridge regression (Mukherjee & Zhu 2011): all features through a few factors."""

    method, per_feature = "reduced-rank regression", False

    def _path(self, gram, cross, n) -> Path:
        unit = np.trace(gram) / n / len(gram)
        for penalty in PENALTIES[2:-2:2]:
            shrunk = gram / n + penalty * unit * np.eye(len(gram))
            root = np.linalg.cholesky(shrunk)  # shrunk = root root'
            whitened = np.linalg.solve(root, cross / n)
            left, values, right = svd(whitened, full_matrices=False)
            basis, weights = np.linalg.solve(root.T, left), values[:, None] * right
            for rank in RANKS:
                yield basis[:, :rank], weights[:rank]


class PLS(Ridge):
    """Partial least squares (SIMPLS; de Jong 1993), the number of components chosen."""

    method, per_feature = "PLS", False

    def _path(self, gram, cross, n) -> Path:
        p = len(gram)
        n_components = min(MAX_PLS_COMPONENTS, p, n - 1)
        basis, loadings = np.zeros((p, n_components)), np.zeros((p, n_components))
        between = cross @ cross.T
        for a in range(n_components):
            direction = eigh(between, subset_by_index=[p - 1, p - 1])[1][:, 0]
            direction /= max(np.sqrt(direction @ gram @ direction), 1e-12)
            loading = gram @ direction
            loading -= loadings @ (loadings.T @ loading)
            loading /= max(np.linalg.norm(loading), 1e-12)
            basis[:, a], loadings[:, a] = direction, loading
            deflate = np.eye(p) - np.outer(loading, loading)
            between = deflate @ between @ deflate
        weights = basis.T @ cross
        for a in range(1, n_components + 1):
            yield basis, weights * (np.arange(n_components) < a)[:, None]


class KernelRidge(Ridge):
    """Ridge regression on a Gaussian kernel: the simplest non-linear translation.

    The kernel is one of scaled features, not of components: training cells lie further out along
    their own components than new cells do, which a linear map hardly feels and a kernel does. Its
    squared width is the median squared distance of training cells. It is spanned by at most 1000
    of them (Nyström; exact with fewer cells); several sources add their kernels.
    """

    method = "kernel ridge"

    def _input_map(self, X):
        return _Kernel(X, self.seed_)


class _Kernel:
    """Features whose inner products are a Gaussian kernel, centred on the training cells."""

    def __init__(self, X, seed: int):
        n = min(X.shape[0], MAX_LANDMARKS)
        some = X[np.random.default_rng(seed).permutation(X.shape[0])[:n]]
        squared = euclidean_distances(some, squared=True)
        gamma = 1 / max(np.median(squared[np.triu_indices(n, 1)]), 1e-12)
        self.map = Nystroem(gamma=gamma, n_components=n, random_state=seed)
        self.mean = self.map.fit_transform(X).mean(0)

    def __call__(self, X) -> np.ndarray:
        return (self.map.transform(X) - self.mean).astype(np.float64)
