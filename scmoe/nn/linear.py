"""The linear path: what can be had in closed form before any expert learns.

Each modality is projected on its principal components. From those, groups come from shrunken linear
discriminant analysis, one per modality, fused by a weighted sum of log-probabilities; translations
come from ridge regression, solved for any set of sources from stored second moments. Every choice
(components, shrinkage, weights, penalties) is made by cross-fitting within the cells handed over.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.sparse import issparse
from scipy.special import log_softmax
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor, nn

MAX_COMPONENTS = 512  # enough to make ridge on a few hundred cells exact
GROUP_COMPONENTS = (25, 50, 100)
SHRINKAGES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
PENALTIES = np.logspace(-2.5, 3, 23)  # times the mean variance of a component
MIN_LOG_PROB = -10.0  # one cell's part in a choice is bounded
NEXT_TO_NOTHING = 1e-6  # a variance, where scaled values vary by about 1


class CrossFit(NamedTuple):
    """What the linear path says of cells it was not fitted on; the network learns from these."""

    fold: Tensor  # (N,) fold of each training cell
    groups: Tensor | None  # (N, M, C) log-probabilities from each modality
    weights: dict[tuple[int, int], Tensor]  # (target, source) -> (K, p, F) ridge without fold k

    def to(self, device) -> CrossFit:
        """Give the same on another device."""
        groups = None if self.groups is None else self.groups.to(device)
        weights = {pair: w.to(device) for pair, w in self.weights.items()}
        return CrossFit(self.fold.to(device), groups, weights)


class LinearPath(nn.Module):
    """Buffers of the fitted linear path; build it with :func:`fit_linear_path`.

    Parameters
    ----------
    n_features, n_components
        Per modality.
    n_groups
        0 when no groups were fitted.
    """

    def __init__(self, n_features: list[int], n_components: list[int], n_groups: int):
        super().__init__()
        self.n_features, self.n_components, self.n_groups = n_features, n_components, n_groups
        total, m = sum(n_components), len(n_features)
        for i, (f, p) in enumerate(zip(n_features, n_components, strict=True)):
            self.register_buffer(f"mean_{i}", torch.zeros(f))
            self.register_buffer(f"components_{i}", torch.zeros(p, f))
            self.register_buffer(
                f"cross_{i}", torch.zeros(total, f)
            )  # covariance of scores and target
            self.register_buffer(f"group_weight_{i}", torch.zeros(p, n_groups))
            self.register_buffer(f"group_bias_{i}", torch.zeros(n_groups))
        self.register_buffer("moments", torch.zeros(total, total))  # covariance of all scores
        self.register_buffer("penalty", torch.ones(m, m))  # [target, source]
        self.register_buffer("fusion", torch.ones(m))
        self._solved: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    @property
    def has_groups(self) -> bool:
        """Whether groups were fitted."""
        return self.n_groups > 0

    def scores(self, i: int, x: Tensor) -> Tensor:
        """Principal component scores ``(B, p_i)`` of modality ``i``."""
        return (x - getattr(self, f"mean_{i}")) @ getattr(self, f"components_{i}").T

    def modality_log_probs(self, i: int, x: Tensor) -> Tensor:
        """Log-probabilities of the groups from modality ``i`` alone, ``(B, C)``."""
        logits = self.scores(i, x) @ getattr(self, f"group_weight_{i}") + getattr(
            self, f"group_bias_{i}"
        )
        return logits.log_softmax(1)

    def group_logits(self, x: list[Tensor | None], present: Tensor) -> Tensor:
        """Weighted sum of log-probabilities over the modalities a cell has, ``(B, C)``."""
        total = present.new_zeros(len(present), self.n_groups, dtype=torch.float32)
        for i, values in enumerate(x):
            if values is not None:
                part = self.fusion[i] * self.modality_log_probs(i, values)
                total = total + torch.where(present[:, i, None], part, 0.0)
        return total

    def embedding(self, x: list[Tensor | None], present: Tensor) -> Tensor:
        """Leading scores of every modality, each block of unit total variance ``(B, 20*M)``."""
        parts = []
        start = 0
        for i, values in enumerate(x):
            q, end = min(20, self.n_components[i]), start + self.n_components[i]
            total = self.moments.diagonal()[start : start + q].sum().sqrt().clamp(min=1e-9)
            if values is None:
                parts.append(present.new_zeros(len(present), q, dtype=torch.float32))
            else:
                parts.append(
                    torch.where(present[:, i, None], self.scores(i, values)[:, :q] / total, 0.0)
                )
            start = end
        return torch.cat(parts, 1)

    def translate(self, x: list[Tensor | None], sources: Tensor, target: int) -> Tensor:
        """Ridge regression of ``target`` on each cell's sources, ``(B, F_target)``."""
        scores = {i: self.scores(i, v) for i, v in enumerate(x) if v is not None and i != target}
        out = getattr(self, f"mean_{target}").expand(len(sources), -1).clone()
        patterns, which = sources.unique(dim=0, return_inverse=True)
        for number, pattern in enumerate(patterns.tolist()):
            used = tuple(i for i, on in enumerate(pattern) if on and i in scores)
            if used:
                rows = which == number
                z = torch.cat([scores[i][rows] for i in used], 1)
                out[rows] += z @ self.weights(target, used)
        return out

    def weights(self, target: int, sources: tuple[int, ...]) -> Tensor:
        """Ridge weights ``(sum of p over sources, F_target)``, solved once per set of sources."""
        key = target, sources
        if key not in self._solved or self._solved[key].device != self.moments.device:
            ends = np.cumsum([0, *self.n_components])
            rows = torch.cat([torch.arange(ends[i], ends[i + 1]) for i in sources]).to(
                self.moments.device
            )
            penalty = torch.cat(
                [self.penalty[target, i].expand(self.n_components[i]) for i in sources]
            )
            gram = self.moments[rows][:, rows].double() + torch.diag(penalty).double()
            cross = getattr(self, f"cross_{target}")[rows].double()
            self._solved[key] = torch.linalg.solve(gram, cross).float()
        return self._solved[key]

    def sizes(self) -> dict:
        """What the constructor needs, for JSON."""
        return dict(
            n_features=self.n_features, n_components=self.n_components, n_groups=self.n_groups
        )


def fit_linear_path(
    matrices: list,
    present: np.ndarray,
    labels: np.ndarray | None,
    n_groups: int,
    n_folds: int = 5,
    seed: int = 0,
) -> tuple[LinearPath, CrossFit]:
    """Fit the linear path and its out-of-fold twin.

    Parameters
    ----------
    matrices
        Per modality scaled features ``(N, F_m)``, dense or CSR (never densified).
    present
        ``(N, M)`` bool.
    labels
        ``(N,)`` group numbers, or ``None``: then groups are k-means clusters.
    n_groups
        Number of groups.
    """
    n_folds = min(n_folds, len(present))  # none without a cell
    fold = _folds(labels, len(present), n_folds, seed)
    bases = [_components(x, present[:, i], seed) for i, x in enumerate(matrices)]
    scores = [
        _project(x, *basis) * present[:, i, None]
        for i, (x, basis) in enumerate(zip(matrices, bases, strict=True))
    ]
    path = LinearPath([x.shape[1] for x in matrices], [s.shape[1] for s in scores], n_groups)
    with torch.no_grad():
        for i, (mean, components) in enumerate(bases):
            _set(path, f"mean_{i}", mean)
            _set(path, f"components_{i}", components)
        weights = _fit_translation(path, matrices, scores, present, fold, n_folds)
        if labels is None:
            _fit_clusters(path, scores, present, n_groups, seed)
            groups = None
        else:
            groups = _fit_discriminants(path, scores, present, labels, n_groups, fold, n_folds)
            groups = torch.as_tensor(groups, dtype=torch.float32)
    return path, CrossFit(torch.as_tensor(fold), groups, weights)


def _set(path, name, value):
    path.get_buffer(name).copy_(torch.as_tensor(np.ascontiguousarray(value)))


def _folds(labels, n, n_folds, seed) -> np.ndarray:
    """Fold of each cell, balanced within groups."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(n)
    if labels is not None:
        shuffled = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(n, dtype=np.int64)
    fold[shuffled] = np.arange(n) % n_folds
    return fold


def _components(x, present, seed) -> tuple[np.ndarray, np.ndarray]:
    """Mean and principal axes ``(p, F)`` of the cells that have the modality."""
    rows = x[present]
    n, f = rows.shape
    if issparse(rows) and min(n, f) < 2:  # the sparse solver leaves one component out
        rows = rows.toarray()
    p = max(min(MAX_COMPONENTS, f, n - 1), 1)
    small = min(n, f) <= 1500
    if issparse(rows):
        solver, p = "arpack", min(p, min(n, f) - 1)
    else:
        solver = "full" if small else "randomized"
    if not small:
        p = min(p, 128)
    pca = PCA(max(p, 1), svd_solver=solver, random_state=seed).fit(rows)
    return np.asarray(pca.mean_, dtype=np.float64), np.asarray(pca.components_, dtype=np.float64)


def _project(x, mean, components) -> np.ndarray:
    return np.asarray(x @ components.T) - mean @ components.T


# --- groups ---


def _fit_discriminants(path, scores, present, labels, n_groups, fold, n_folds) -> np.ndarray:
    """Discriminants of every modality and their fusion; returns out-of-fold log-probs (N, M, C)."""
    out_of_fold = np.zeros((len(labels), len(scores), n_groups))
    for i, z in enumerate(scores):
        has = present[:, i]
        best = None
        for q in sorted({min(c, z.shape[1]) for c in GROUP_COMPONENTS}):
            parts = [_GroupMoments(z[has, :q], labels[has], n_groups)]
            parts += [
                _GroupMoments(z[s, :q], labels[s], n_groups) for s in _members(fold, has, n_folds)
            ]
            for shrinkage in SHRINKAGES:
                logs = np.zeros((len(labels), n_groups))
                for k, rows in enumerate(_members(fold, has, n_folds)):
                    w, b = (parts[0] - parts[k + 1]).discriminant(shrinkage)
                    logs[rows] = log_softmax(z[rows, :q] @ w + b, axis=1)
                loss = min(_log_loss(t * logs[has], labels[has]) for t in (0.1, 0.2, 0.4, 0.7, 1.0))
                if best is None or loss < best[0]:
                    best = loss, q, parts[0].discriminant(shrinkage), logs
        _, q, (w, b), logs = best
        weight = np.zeros((z.shape[1], n_groups))
        weight[:q] = w
        _set(path, f"group_weight_{i}", weight)
        _set(path, f"group_bias_{i}", b)
        out_of_fold[:, i] = logs
    _set(path, "fusion", _fusion_weights(out_of_fold, labels))
    return out_of_fold


def _members(fold, has, n_folds):
    return [np.flatnonzero((fold == k) & has) for k in range(n_folds)]


class _GroupMoments:
    """Sums from which a discriminant follows; folds are taken out by subtraction."""

    def __init__(self, z, labels, n_groups):
        one_hot = np.eye(n_groups)[labels]
        self.count = one_hot.sum(0)  # (C,)
        self.sum = one_hot.T @ z  # (C, q)
        self.square = z.T @ z  # (q, q)

    def __sub__(self, other):
        left = object.__new__(_GroupMoments)
        for name in ("count", "sum", "square"):
            setattr(left, name, getattr(self, name) - getattr(other, name))
        return left

    def discriminant(self, shrinkage) -> tuple[np.ndarray, np.ndarray]:
        """Weights ``(q, C)``, biases ``(C,)``; covariance shrunk to a multiple of identity."""
        seen = self.count > 0
        if not seen.any():
            return np.zeros_like(self.sum.T), np.zeros(len(seen))
        mean = self.sum / np.maximum(self.count, 1)[:, None]
        within = self.square - (mean * self.count[:, None]).T @ mean
        within /= max(self.count.sum() - seen.sum(), 1)
        q = len(within)
        within = (1 - shrinkage) * within + shrinkage * np.trace(within) / q * np.eye(q)
        within += 1e-8 * np.eye(q)
        w = np.linalg.solve(within, mean.T)
        prior = np.where(seen, self.count, 0.5) / self.count.sum()
        bias = -0.5 * (mean.T * w).sum(0) + np.log(prior)
        # a group without cells here gets no evidence of its own, only a small prior
        w[:, ~seen], bias[~seen] = 0.0, bias[seen].min() - 20.0
        return w, bias


def _log_loss(log_scores, labels) -> float:
    logs = log_softmax(log_scores, axis=1)[np.arange(len(labels)), labels]
    return -float(np.maximum(logs, MIN_LOG_PROB).mean())


def _fusion_weights(logs, labels) -> np.ndarray:
    """Non-negative weights of the modalities' log-probabilities with the least out-of-fold loss."""
    rows = np.random.default_rng(0).permutation(len(labels))[:5000]
    logs, labels = logs[rows], labels[rows]
    m = logs.shape[1]
    result = minimize(
        lambda w: _log_loss(np.einsum("m,nmc->nc", np.exp(w), logs), labels),
        np.full(m, np.log(0.5 / m)),
        method="Nelder-Mead",
        options=dict(maxiter=200 * m, xatol=1e-2, fatol=1e-5),
    )
    return np.exp(result.x)


def _fit_clusters(path, scores, present, n_groups, seed):
    """k-means on components, each modality scaled to unit total variance; as linear logits."""
    q = [min(20, z.shape[1]) for z in scores]
    scale = [
        1 / np.sqrt(max(z[present[:, i], :k].var(0).sum(), NEXT_TO_NOTHING))
        for i, (z, k) in enumerate(zip(scores, q, strict=True))
    ]
    joint = np.hstack([z[:, :k] * s for z, k, s in zip(scores, q, scale, strict=True)])
    centers = KMeans(n_groups, n_init=20, random_state=seed).fit(joint).cluster_centers_
    distance = np.square(joint[:, None] - centers[None]).sum(2).min(1)
    width = distance.mean() / joint.shape[1] * 2  # variance of one coordinate, twice
    width = max(width, NEXT_TO_NOTHING)
    for i, part in enumerate(np.split(centers, np.cumsum(q)[:-1], axis=1)):
        weight = np.zeros((scores[i].shape[1], n_groups))
        weight[: q[i]] = 2 * scale[i] * part.T
        _set(path, f"group_weight_{i}", weight)
        _set(path, f"group_bias_{i}", -np.square(part).sum(1))
    _set(path, "fusion", np.full(len(scores), 1 / width))


# --- translation ---


def _fit_translation(path, matrices, scores, present, fold, n_folds) -> dict:
    """Moments and penalties; returns the ridge weights without each fold, per (target, source)."""
    ends = np.cumsum([0, *[s.shape[1] for s in scores]])
    moments = np.zeros((ends[-1], ends[-1]))
    weights = {}
    for i, x in enumerate(matrices):
        cross_all = np.zeros((ends[-1], x.shape[1]))
        for j, z in enumerate(scores):
            both = present[:, i] & present[:, j]
            grams, crosses, counts = [], [], []
            for k in range(n_folds):
                rows = np.flatnonzero(both & (fold == k))
                zk = z[rows]
                grams.append(zk.T @ zk)
                crosses.append(np.asarray((x[rows].T @ zk).T) - np.outer(zk.sum(0), _mean(path, i)))
                counts.append(len(rows))
            n = max(sum(counts), 1)
            cross_all[ends[j] : ends[j + 1]] = sum(crosses) / n
            moments[ends[i] : ends[i + 1], ends[j] : ends[j + 1]] = scores[i][both].T @ z[both] / n
            if i != j:
                penalty, per_fold = _ridge(grams, crosses, counts)
                path.penalty[i, j] = penalty
                weights[i, j] = torch.as_tensor(per_fold, dtype=torch.float32)
        _set(path, f"cross_{i}", cross_all)
    _set(path, "moments", moments)
    return weights


def _mean(path, i):
    return path.get_buffer(f"mean_{i}").double().numpy()


def _ridge(grams, crosses, counts, penalties=PENALTIES) -> tuple[float, np.ndarray]:
    """Penalty with the least out-of-fold error, and the weights ``(K, p, F)`` without each fold.

    All from moments, never from cells: with ``G = V diag(e) V'`` of the other folds, the error of a
    fold is a quadratic form that costs O(p^2) a penalty.
    """
    gram, cross, n = sum(grams), sum(crosses), sum(counts)
    unit = max(np.trace(gram) / max(n, 1) / len(gram), NEXT_TO_NOTHING)
    error = np.zeros(len(penalties))
    solved = []
    for g, c, count in zip(grams, crosses, counts, strict=True):
        left = max(n - count, 1)
        e, v = np.linalg.eigh((gram - g) / left)
        e = e.clip(0)
        b, d = v.T @ (cross - c) / left, v.T @ c
        h, bb, bd = v.T @ g @ v, b @ b.T, (b * d).sum(1)
        for t, penalty in enumerate(penalties):
            inverse = 1 / (e + penalty * unit)
            error[t] += (h * bb * np.outer(inverse, inverse)).sum() - 2 * (bd * inverse).sum()
        solved.append((e, v, b))
    best = penalties[error.argmin()] * unit
    return float(best), np.stack([v @ (b / (e + best)[:, None]) for e, v, b in solved])
