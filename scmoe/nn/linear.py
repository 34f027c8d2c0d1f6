"""The closed-form path: what can be had before any expert learns.

Each modality is projected on its principal components. From those, groups come from linear heads,
fused by a weighted sum of log-probabilities, which stays linear in the features (the normaliser
apart); translations come from stacked regressions, linear ones and ones on a Gaussian kernel.
Every choice (components, penalties, ranks, weights) is made by cross-fitting within the cells
handed over.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.decomposition import PCA
from torch import Tensor, nn

from scmoe.nn.clusters import find_clusters
from scmoe.nn.heads import (
    N_COMPONENTS,
    RARITY,
    TUNING_CELLS,
    fit_heads,
    fusion_weights,
    tell_more_than_frequencies,
)
from scmoe.nn.translation import (
    NEXT_TO_NOTHING,
    fit_kernel,
    fit_translations,
    stacking_weights,
)

MAX_COMPONENTS = 512  # enough to make ridge on a few hundred cells exact
MAX_SUBSETS = 4  # modalities of which every subset has fusion weights of its own
EMBEDDED = 20  # leading components of a modality in the embedding and for clusters
RARE_SHIFT = 0.5  # share of a group's log frequency that is taken off where groups are named


class CrossFit(NamedTuple):
    """What the closed-form path says of cells it was not fitted on: the network learns from it."""

    fold: Tensor  # (N,) fold of each training cell
    groups: Tensor | None  # (N, E, C) log-probabilities from each head
    weights: dict[tuple[int, int], Tensor]  # (target, source) -> (K, q, F) without fold k

    def to(self, device) -> CrossFit:
        """Give the same on another device."""
        groups = None if self.groups is None else self.groups.to(device)
        weights = {pair: w.to(device) for pair, w in self.weights.items()}
        return CrossFit(self.fold.to(device), groups, weights)


class LinearPath(nn.Module):
    """Buffers of the fitted closed-form path; build it with :func:`fit_linear_path`.

    Parameters
    ----------
    n_features, n_components, n_landmarks
        Per modality.
    n_groups
        0 when no groups were fitted.
    n_heads, n_subsets
        Group heads, and sets of modalities that have fusion weights of their own.
    """

    def __init__(self, n_features, n_components, n_landmarks, n_groups, n_heads, n_subsets):
        super().__init__()
        self.n_features, self.n_components, self.n_groups = n_features, n_components, n_groups
        self.n_landmarks, self.n_heads, self.n_subsets = n_landmarks, n_heads, n_subsets
        m = len(n_features)
        for i, (f, p, n) in enumerate(zip(n_features, n_components, n_landmarks, strict=True)):
            self.register_buffer(f"mean_{i}", torch.zeros(f))
            self.register_buffer(f"components_{i}", torch.zeros(p, f))
            self.register_buffer(f"landmarks_{i}", torch.zeros(n, f))
            self.register_buffer(f"kernel_mean_{i}", torch.zeros(n))
            # per head and group, from the leading components
            q = min(p, max(N_COMPONENTS))
            self.register_buffer(f"group_weight_{i}", torch.zeros(q, n_heads * n_groups))
            for j in range(m):
                if i != j:
                    size = n_components[j] + n_landmarks[j]
                    self.register_buffer(f"pair_{i}_{j}", torch.zeros(size, f))
        self.register_buffer("gamma", torch.ones(m))  # of the kernels
        self.register_buffer("spread", torch.ones(m))  # root total variance of what is embedded
        self.register_buffer("group_bias", torch.zeros(n_heads, n_groups))
        self.register_buffer("subsets", torch.zeros(n_subsets, m, dtype=torch.bool))
        self.register_buffer("fusion", torch.zeros(n_subsets, n_heads))
        self.register_buffer("rare", torch.zeros(n_groups))  # added where a group is named
        # out-of-fold second moments of the translations from each source, and with the truth
        self.register_buffer("stack_gram", torch.zeros(m, m, m))
        self.register_buffer("stack_cross", torch.zeros(m, m))
        self._shares: dict[tuple[int, tuple[int, ...]], list[float]] = {}

    @property
    def has_groups(self) -> bool:
        """Whether groups were fitted."""
        return self.n_groups > 0

    def scores(self, i: int, x: Tensor) -> Tensor:
        """Principal component scores ``(B, p_i)`` of modality ``i``."""
        return (x - getattr(self, f"mean_{i}")) @ getattr(self, f"components_{i}").T

    def inputs(self, i: int, x: Tensor) -> Tensor:
        """What translations read of modality ``i``: scores and centred kernel ``(B, q_i)``."""
        landmarks = getattr(self, f"landmarks_{i}")
        squared = x.square().sum(1, keepdim=True) + landmarks.square().sum(1) - 2 * x @ landmarks.T
        kernel = torch.exp(-self.gamma[i] * squared.clamp(min=0))
        return torch.cat([self.scores(i, x), kernel - getattr(self, f"kernel_mean_{i}")], 1)

    def fusion_weights(self, present: Tensor) -> Tensor:
        """Weight of every head for cells with these modalities, ``(B, E)``.

        A set of modalities that has no weights of its own gets the mean of its members'.
        """
        m = present.shape[1]
        same = (present[:, None] == self.subsets).all(2)  # (B, subsets); the first are single
        mean = present.float() @ self.fusion[:m] / present.sum(1, keepdim=True).clamp(min=1)
        return torch.where(same.any(1, keepdim=True), same.float() @ self.fusion, mean)

    def head_logits(self, x: list[Tensor | None], present: Tensor) -> Tensor:
        """Logits of every head, ``(B, E, C)``; those that read an absent modality mean nothing."""
        total = self.group_bias.flatten().expand(len(present), -1)
        for i, values in enumerate(x):
            if values is not None:
                weight = getattr(self, f"group_weight_{i}")
                part = self.scores(i, values)[:, : len(weight)] @ weight
                total = total + torch.where(present[:, i, None], part, 0.0)
        return total.view(len(present), self.n_heads, self.n_groups)

    def group_logits(self, x: list[Tensor | None], present: Tensor) -> Tensor:
        """Weighted sum of the heads' log-probabilities, ``(B, C)``."""
        present = present & torch.tensor([v is not None for v in x], device=present.device)
        logs = self.head_logits(x, present).log_softmax(2)
        return torch.einsum("be,bec->bc", self.fusion_weights(present), logs)

    def embedding(self, x: list[Tensor | None], present: Tensor) -> Tensor:
        """Leading scores of every modality, each block of unit total variance ``(B, 20*M)``."""
        parts = []
        for i, values in enumerate(x):
            q = min(EMBEDDED, self.n_components[i])
            if values is None:
                parts.append(present.new_zeros(len(present), q, dtype=torch.float32))
            else:
                z = self.scores(i, values)[:, :q] / self.spread[i]
                parts.append(torch.where(present[:, i, None], z, 0.0))
        return torch.cat(parts, 1)

    def translate(self, x: list[Tensor | None], sources: Tensor, target: int) -> Tensor:
        """Stacked regressions of ``target`` on each cell's sources, ``(B, F_target)``."""
        parts = {
            i: self.inputs(i, v) @ getattr(self, f"pair_{target}_{i}")
            for i, v in enumerate(x)
            if v is not None and i != target
        }
        out = getattr(self, f"mean_{target}").expand(len(sources), -1)
        shares = self._shares_of(sources, target, tuple(parts))
        for i, part in parts.items():
            out = out + torch.where(sources[:, i, None], shares[:, i, None] * part, 0.0)
        return out

    def _shares_of(self, sources: Tensor, target: int, given: tuple[int, ...]) -> Tensor:
        """What each source's translation counts for in each cell, ``(B, M)``."""
        if len(given) == 1:  # alone, it has been scaled already
            return torch.ones(sources.shape, device=sources.device)
        patterns, which = sources.unique(dim=0, return_inverse=True)
        rows = []
        for pattern in patterns.tolist():
            used = tuple(i for i in given if pattern[i])
            rows.append(self.shares(target, used))
        return torch.tensor(rows, device=sources.device)[which]

    def shares(self, target: int, sources: tuple[int, ...]) -> list[float]:
        """Weights of the sources' translations, by modality, solved once per set of sources."""
        if (target, sources) not in self._shares:
            full = np.zeros(len(self.n_features), np.float32)
            rows = list(sources)
            gram = self.stack_gram[target].double().cpu().numpy()[np.ix_(rows, rows)]
            cross = self.stack_cross[target].double().cpu().numpy()[rows]
            full[rows] = stacking_weights(gram, cross) if len(rows) > 1 else 1.0
            self._shares[target, sources] = full.tolist()
        return self._shares[target, sources]

    def sizes(self) -> dict:
        """What the constructor needs, for JSON."""
        names = "n_features", "n_components", "n_landmarks", "n_groups", "n_heads", "n_subsets"
        return {name: getattr(self, name) for name in names}


def fit_linear_path(
    matrices: list,
    present: np.ndarray,
    labels: np.ndarray | None,
    n_groups: int,
    n_folds: int = 5,
    seed: int = 0,
) -> tuple[LinearPath, CrossFit]:
    """Fit the closed-form path and its out-of-fold twin.

    Parameters
    ----------
    matrices
        Per modality scaled features ``(N, F_m)``, dense or CSR (never densified).
    present
        ``(N, M)`` bool.
    labels
        ``(N,)`` group numbers, or ``None``: then groups are clusters.
    n_groups
        Number of groups; 0 where there are no labels and nobody will ask for clusters.
    """
    n_folds = min(n_folds, len(present))  # none without a cell
    fold = _folds(labels, len(present), n_folds, seed)
    bases = [_components(x, present[:, i], seed) for i, x in enumerate(matrices)]
    kernels = [fit_kernel(x, present[:, i], seed) for i, x in enumerate(matrices)]
    scores = [
        _project(x, *basis) * present[:, i, None]
        for i, (x, basis) in enumerate(zip(matrices, bases, strict=True))
    ]
    spread = [_spread(z[present[:, i]]) for i, z in enumerate(scores)]
    unit = [z[:, : max(N_COMPONENTS)] / s for z, s in zip(scores, spread, strict=True)]
    if labels is None:
        groups = _clusters(unit, present, n_groups, fold, seed)
    else:
        groups = _supervised(unit, present, labels, n_groups, fold, seed)
    path = LinearPath(
        [x.shape[1] for x in matrices],
        [z.shape[1] for z in scores],
        [len(kernel.landmarks) for kernel in kernels],
        n_groups,
        len(groups.bias),
        len(groups.subsets),
    )
    with torch.no_grad():
        _set_groups(path, groups, spread)
        if labels is not None:
            counts = np.bincount(labels, minlength=n_groups)
            raised = -RARE_SHIFT * np.log(counts.clip(1) / max(len(labels), 1))
            _set(path, "rare", np.where(counts, raised, 0))
        for i, (mean, components) in enumerate(bases):
            _set(path, f"mean_{i}", mean)
            _set(path, f"components_{i}", components)
            _set(path, f"landmarks_{i}", kernels[i].landmarks)
            _set(path, f"kernel_mean_{i}", kernels[i].mean)
            path.gamma[i] = kernels[i].gamma
        weights = _set_translations(path, matrices, scores, kernels, present, fold, n_folds, seed)
    logs = None if groups.logs is None else torch.as_tensor(groups.logs, dtype=torch.float32)
    return path, CrossFit(torch.as_tensor(fold), logs, weights)


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


def _spread(z) -> float:
    """Root mean squared length of a cell."""
    return float(np.sqrt(max(np.square(z).sum(1).mean() if len(z) else 0.0, NEXT_TO_NOTHING)))


# --- groups ---


class _Groups(NamedTuple):
    """Linear heads: what goes into the buffers."""

    weights: list[np.ndarray]  # per modality (q, E, C), of components divided by their spread
    bias: np.ndarray  # (E, C)
    subsets: np.ndarray  # (S, M) bool
    fusion: np.ndarray  # (S, E)
    logs: np.ndarray | None  # (N, E, C) out of fold


def _subsets(m: int) -> np.ndarray:
    """Sets of modalities that get fusion weights: single ones first, then larger ones."""
    sizes = range(1, m + 1) if m <= MAX_SUBSETS else (1, m)
    sets = [s for size in sorted(set(sizes)) for s in combinations(range(m), size)]
    return np.array([[i in s for i in range(m)] for s in sets])


def _supervised(scores, present, labels, n_groups, fold, seed) -> _Groups:
    heads = fit_heads(scores, present, labels, n_groups, fold, seed)
    logs = np.stack([head.logs for head in heads])  # (E, N, C)
    subsets = _subsets(present.shape[1])
    fusion = np.zeros((len(subsets), len(heads)))
    some = np.zeros(len(labels), bool)
    some[np.random.default_rng(seed).permutation(len(labels))[:TUNING_CELLS]] = True
    for s, subset in enumerate(subsets):
        usable = [e for e, head in enumerate(heads) if subset[list(head.blocks)].all()]
        rows = some & present[:, subset].all(1)
        start = np.full(len(usable), 1 / max(len(usable) - 1, 1))
        start[-1] = RARITY
        if rows.any():
            start = fusion_weights(logs[usable][:, rows], labels[rows], start)
            if not tell_more_than_frequencies(logs[usable][:, rows], labels[rows], start):
                start = np.zeros(len(usable))
                start[-1] = -1  # rarity, turned round: how frequent each group is
        fusion[s, usable] = start
    weights = [np.zeros((z.shape[1], len(heads), n_groups)) for z in scores]
    for e, head in enumerate(heads):
        for i, part in head.weights.items():
            weights[i][: len(part), e] = part
    bias = np.stack([head.bias for head in heads])
    return _Groups(weights, bias, subsets, fusion, logs.transpose(1, 0, 2))


def _clusters(scores, present, n_groups, fold, seed) -> _Groups:
    """Heads of clusters, as if these had been given as labels."""
    if n_groups == 0:
        none = [np.zeros((z.shape[1], 0, 0)) for z in scores]
        return _Groups(none, np.zeros((0, 0)), present[:0], np.zeros((0, 0)), None)
    some = np.sort(np.random.default_rng(seed).permutation(len(fold))[:TUNING_CELLS])
    present, few = present[some], [z[some, :EMBEDDED] for z in scores]
    blocks = [z / _spread(z[present[:, i]]) for i, z in enumerate(few)]
    labels = find_clusters(blocks, present, n_groups, fold[some], seed)
    return _supervised(few, present, labels, n_groups, fold[some], seed)._replace(logs=None)


def _set_groups(path, groups, spread):
    for i, (weight, s) in enumerate(zip(groups.weights, spread, strict=True)):
        path.get_buffer(f"group_weight_{i}")[: len(weight)] = torch.as_tensor(
            (weight / s).reshape(len(weight), -1)
        )
    for name in ("bias", "subsets", "fusion"):
        _set(path, "group_bias" if name == "bias" else name, getattr(groups, name))


# --- translation ---


def _set_translations(path, matrices, scores, kernels, present, fold, n_folds, seed) -> dict:
    """Fill the buffers; returns the weights without each fold, per (target, source)."""
    inputs = []
    for i, (x, kernel) in enumerate(zip(matrices, kernels, strict=True)):
        inputs.append([scores[i], (kernel(x) @ kernel.root) * present[:, i, None]])
        path.spread[i] = _spread(scores[i][present[:, i], :EMBEDDED])
    means = [path.get_buffer(f"mean_{i}").double().numpy() for i in range(len(matrices))]
    whole, without, grams, crosses = fit_translations(
        matrices, means, inputs, present, fold, n_folds, seed
    )
    per_fold = {}
    for (i, j), (linear, kernel) in whole.items():
        _set(path, f"pair_{i}_{j}", np.concatenate([linear, kernels[j].root @ kernel]))
        linear, kernel = without[i, j]
        parts = np.concatenate([linear, kernels[j].root @ kernel], 1)
        per_fold[i, j] = torch.as_tensor(parts, dtype=torch.float32)
    _set(path, "stack_gram", grams)
    _set(path, "stack_cross", crosses)
    return per_fold
