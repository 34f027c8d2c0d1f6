"""scMoE linear: an ensemble of scikit-learn's linear and kernel methods, on components.

Groups: logistic regression and shrunken discriminants, of each modality and of all side by side.
Translations: ridge regression, and the same on a Gaussian kernel (Nyström), stacked. Every choice
is made on folds held out.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls
from scipy.special import log_softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression as Logistic
from sklearn.linear_model import RidgeCV
from sklearn.metrics.pairwise import euclidean_distances
from threadpoolctl import threadpool_limits

from scmoe.parts import Known, OutOfFold, Part, Subset
from scmoe.ranks import share

HEAD_COMPONENTS = 100
INVERSE_PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3)  # of scores with mean square 1
SHRINKAGES = (0.05, 0.1, 0.2, 0.4, 0.7)
PENALTIES = np.logspace(-1, 6, 11)  # of linear ridge
KERNEL_PENALTIES = np.logspace(-4, 2, 9)  # a cell's kernel with itself is 1
TUNING_CELLS = 2000  # a classifier's setting is chosen on as many
KERNEL_COMPONENTS = (30, None)  # of one kernel, and of the other: all
MAX_LANDMARKS = 500
THREADED_CELLS = 3000
NO_GROUP = -20.0  # logit, against the least one, of a group without a training cell


class Head(NamedTuple):
    """One linear classifier of the components of some modalities, side by side."""

    reads: Subset
    weights: np.ndarray  # (p, C)
    bias: np.ndarray  # (C,)


class Linear(Part):
    """Linear and kernel methods, one answer.

    Parameters
    ----------
    task, seed
        As of :class:`scmoe.ScMoE`.
    """

    method = "scMoE linear"

    def __init__(self, task: str = "supervised", seed: int | None = None):
        super().__init__(None, seed)
        self.task = task

    def _fit(self, known: Known, device, progress, checkpoint) -> OutOfFold:
        # with few cells, a second thread takes longer to start than to be useful
        with quiet(), threadpool_limits(1 if len(known.fold) < THREADED_CELLS else None):
            return self.fit_known(known)

    def fit_known(self, known: Known) -> OutOfFold:
        """Fit to cells given as components, on the calling thread and under :func:`quiet`."""
        known = known.few()
        m = len(self.modalities_)
        subsets = [(i,) for i in range(m)] + ([tuple(range(m))] if m > 1 else [])
        kinds = product(subsets, (_logistics, _discriminants))
        self.heads_, views = zip(*share(lambda its: self._head(known, *its), kinds), strict=True)

        def of(rows, subset):
            kept = (set(head.reads) <= set(subset) for head in self.heads_)
            return [logs[rows] for logs, there in zip(views, kept, strict=True) if there]

        self._fuse(known, of)
        self.kernels_ = {
            name: [self._kernel(z[known.present[:, i], :q]) for q in KERNEL_COMPONENTS]
            for i, (name, z) in enumerate(known.scores.items())
        }
        told = share(lambda pair: self._regression(known, *pair), self.pairs)
        self.maps_ = {pair: maps for pair, (maps, _) in zip(self.pairs, told, strict=True)}
        held_out = {pair: out for pair, (_, out) in zip(self.pairs, told, strict=True)}
        return OutOfFold(self._by_pattern(known.present, of), held_out)

    # --- groups ---

    def _head(self, known: Known, reads: Subset, make) -> tuple[Head, np.ndarray]:
        """A classifier with the setting of least loss, and its out-of-fold log-probabilities."""
        Z = self._inputs(known.scores, reads)
        usable = known.present[:, reads].all(1) & (known.labels >= 0)
        rng = np.random.default_rng(self.seed_)
        some = np.sort(rng.permutation(np.flatnonzero(usable))[:TUNING_CELLS])
        losses = {}
        for setting, model in make():
            logs = self._out_of_fold_logits(model, Z, known, some)
            losses[setting] = (
                -log_softmax(logs[some], 1)[np.arange(len(some)), known.labels[some]].mean()
                if len(some)
                else 0.0
            )
        best = dict(make())[min(losses, key=losses.get)]
        rows = np.flatnonzero(usable)
        logs = self._out_of_fold_logits(best, Z, known, rows)
        return Head(reads, *_solve(best, Z[rows], known.labels[rows], known.n_groups)), (
            log_softmax(logs, 1).astype(np.float32)
        )

    def _inputs(self, scores: dict, reads: Subset) -> np.ndarray:
        return np.hstack([scores[self.modalities_[i]][:, :HEAD_COMPONENTS] for i in reads])

    def _out_of_fold_logits(self, model, Z, known, rows) -> np.ndarray:
        out = np.zeros((len(Z), known.n_groups))
        for k in range(known.n_folds):
            train, test = rows[known.fold[rows] != k], rows[known.fold[rows] == k]
            weights, bias = _solve(model, Z[train], known.labels[train], known.n_groups)
            out[test] = Z[test] @ weights + bias
        return out

    def _views(self, scores, subset: Subset) -> list[np.ndarray]:
        views = []
        for head in self.heads_:
            if set(head.reads) <= set(subset):
                Z = self._inputs(scores, head.reads)
                views.append(log_softmax(Z @ head.weights + head.bias, 1))
        return views

    # --- translations ---

    def _kernel(self, z: np.ndarray) -> Nystroem:
        rng = np.random.default_rng(self.seed_)
        some = z[rng.permutation(len(z))[:MAX_LANDMARKS]]
        squared = euclidean_distances(some, squared=True)[np.triu_indices(len(some), 1)]
        gamma = 1 / max(float(np.median(squared)), 1e-6) if len(squared) else 1.0
        kernel = Nystroem(gamma=gamma, n_components=len(some), random_state=self.seed_)
        return kernel.fit(some)

    def _regressors(self, z: np.ndarray, source: str) -> list[np.ndarray]:
        """What regressions read of a modality's scores: these themselves, then each kernel."""
        near = zip(self.kernels_[source], KERNEL_COMPONENTS, strict=True)
        return [z, *(kernel.transform(z[:, :q]) for kernel, q in near)]

    def _regression(self, known: Known, target: str, source: str):
        """Coefficients of all kinds, weighted; and their out-of-fold sum ``(N, p)``."""
        t, s = self.modalities_.index(target), self.modalities_.index(source)
        rows = np.flatnonzero(known.both(t, s))
        z, y, fold = known.scores[source][rows], known.target(target, rows), known.fold[rows]
        inputs = self._regressors(z, source)
        held_out = np.zeros((len(inputs), *y.shape))
        for k in np.unique(fold):
            train, test = fold != k, fold == k
            for out, x in zip(held_out, inputs, strict=True):
                out[test] = _ridge(x[train], y[train], x is z).predict(x[test])
        flat = held_out.reshape(len(inputs), -1)
        gram, cross = flat @ flat.T, flat @ y.ravel()
        root = np.linalg.cholesky(gram + 1e-6 * (np.trace(gram) + 1) * np.eye(len(gram)))
        weight = nnls(root.T, np.linalg.solve(root, cross))[0]
        solved = [_ridge(x, y, x is z) for x in inputs]
        maps = [np.ascontiguousarray(w * m.coef_.T) for w, m in zip(weight, solved, strict=True)]
        bias = sum(w * m.intercept_ for w, m in zip(weight, solved, strict=True))
        out = np.zeros((len(known.fold), y.shape[1]))
        out[rows] = np.tensordot(weight, held_out, 1)
        return [*maps, bias], out

    def _pair(self, scores: np.ndarray, target: str, source: str) -> np.ndarray:
        *maps, bias = self.maps_[target, source]
        parts = zip(self._regressors(scores, source), maps, strict=True)
        return (sum(x @ weights for x, weights in parts) + bias).astype(np.float32)

    # --- files ---

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        """What a file keeps beyond what all parts share: settings for JSON, and arrays."""
        arrays = {}
        for i, head in enumerate(self.heads_):
            arrays |= {f"head.{i}.weights": head.weights, f"head.{i}.bias": head.bias}
        for i, name in enumerate(self.modalities_):
            for k, kernel in enumerate(self.kernels_[name]):
                arrays[f"kernel.{i}.{k}.landmarks"] = kernel.components_
                arrays[f"kernel.{i}.{k}.root"] = kernel.normalization_
        for i, pair in enumerate(self.pairs):
            arrays |= {f"pair.{i}.{k}": value for k, value in enumerate(self.maps_[pair])}
        gammas = [[kernel.gamma for kernel in self.kernels_[name]] for name in self.modalities_]
        return {"reads": [list(h.reads) for h in self.heads_], "gammas": gammas}, arrays

    def restore(self, settings: dict, arrays: dict[str, np.ndarray]) -> None:
        """Take over what :meth:`state` gave."""
        self.heads_ = [
            Head(tuple(reads), arrays[f"head.{i}.weights"], arrays[f"head.{i}.bias"])
            for i, reads in enumerate(settings["reads"])
        ]
        self.kernels_ = {}
        for i, name in enumerate(self.modalities_):
            self.kernels_[name] = []
            for k, gamma in enumerate(settings["gammas"][i]):
                kernel = Nystroem(gamma=gamma)
                kernel.components_ = arrays[f"kernel.{i}.{k}.landmarks"]
                kernel.normalization_ = arrays[f"kernel.{i}.{k}.root"]
                kernel._n_features_out = len(kernel.components_)
                self.kernels_[name].append(kernel)
        n = len(KERNEL_COMPONENTS) + 2
        self.maps_ = {
            pair: [arrays[f"pair.{i}.{k}"] for k in range(n)] for i, pair in enumerate(self.pairs)
        }


@contextmanager
def quiet():
    """No word of classifiers that did not converge; entered by one thread for all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the least loss decides, not the last
        warnings.filterwarnings("ignore", message="Only one sample available")  # a rare group
        yield


def _logistics():
    for C in INVERSE_PENALTIES:
        yield C, Logistic(C=C, max_iter=100, tol=1e-3)


def _discriminants():
    for shrinkage in SHRINKAGES:
        yield shrinkage, LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)


def _solve(model, Z, labels, n_groups) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``(p, C)`` and biases ``(C,)``; a constant where there is nothing to tell apart."""
    seen = np.unique(labels)
    weights, bias = np.zeros((Z.shape[1], n_groups)), np.full(n_groups, NO_GROUP)
    if len(seen) < 2 or len(labels) <= len(seen):
        bias[seen] = 0.0
        return weights, bias if len(seen) else np.zeros(n_groups)
    model.fit(Z, labels)
    coef, intercept = model.coef_.T, model.intercept_
    if len(seen) == 2:  # scikit-learn gives the second group's logit only
        coef, intercept = np.c_[0 * coef, coef], np.r_[0, intercept]
    weights[:, seen] = coef
    bias[:] = intercept.min() + NO_GROUP
    bias[seen] = intercept
    return weights, bias


def _ridge(x, y, linear: bool) -> RidgeCV:
    """Ridge with a penalty for every component of the target, by leave-one-out error."""
    return RidgeCV(PENALTIES if linear else KERNEL_PENALTIES, alpha_per_target=True).fit(x, y)
