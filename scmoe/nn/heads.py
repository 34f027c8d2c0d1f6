"""Linear group heads on principal components, every choice made on cells held out.

Two kinds (logistic regression and shrunken discriminants), of each modality alone and of several
side by side, each block with a weight of its own. They err differently, so all are kept, and their
log-probabilities are summed with weights that have the least out-of-fold log-loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

N_COMPONENTS = (25, 50, 100, 200)
BLOCK_WEIGHTS = (0.1, 0.2, 0.4, 0.7, 1.0)  # of a modality beside the best one
INVERSE_PENALTIES = (1.0, 10.0, 100.0, 1000.0)  # scikit-learn's C, for cells of mean length 1
SHRINKAGES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
TEMPERATURES = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4)  # inverse: they multiply logits
TUNING_CELLS = 5000  # choices are made on as many, drawn at random from larger data
FLOOR = 1e-4  # of a probability, where choices are made: one cell's part in them is bounded
PRIOR_CELLS = 5.0  # how many cells speak for equal weights of all heads, and for RARITY
THREADED_CELLS = 2000  # with fewer, a second thread takes longer to start than to be useful
RARITY = 0.3  # weight of the head that knows only which groups are rare


def logistic(Z, labels, n_groups):
    """Weights `(p, n_groups)` and biases of multinomial regression, by inverse penalty."""
    seen = np.unique(labels)
    model = LogisticRegression(solver="newton-cg", warm_start=True, max_iter=200, tol=1e-3)
    for C in INVERSE_PENALTIES:
        model.set_params(C=C).fit(Z, labels)
        weights, bias = model.coef_.T, model.intercept_
        if len(seen) == 2:  # scikit-learn gives the second group's logit only
            weights, bias = np.c_[0 * weights, weights], np.r_[0, bias]
        yield C, *_all_groups(weights, bias, seen, n_groups)


def discriminant(Z, labels, n_groups):
    """The same of linear discriminants, by shrinkage of their covariance to a multiple of I."""
    seen, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.stack([Z[labels == k].mean(0) for k in range(len(seen))])
    within = Z - means[labels]
    within = within.T @ within / max(len(Z) - len(seen), 1)
    identity = np.eye(len(within)) * max(np.trace(within) / len(within), 1e-12)
    for shrinkage in SHRINKAGES:
        weights = np.linalg.solve((1 - shrinkage) * within + shrinkage * identity, means.T)
        bias = np.log(counts / counts.sum()) - 0.5 * (means.T * weights).sum(0)
        yield shrinkage, *_all_groups(weights, bias, seen, n_groups)


def _all_groups(weights, bias, seen, n_groups):
    """Add the groups that these cells lack, with next to no probability."""
    all_weights, all_bias = np.zeros((len(weights), n_groups)), np.full(n_groups, bias.min() - 20)
    all_weights[:, seen], all_bias[seen] = weights, bias
    return all_weights, all_bias


KINDS = {"logistic": logistic, "discriminant": discriminant}


def solutions(kind: str, Z: np.ndarray, labels: np.ndarray, n_groups: int):
    """Setting, weights and biases in turn; a constant where there is nothing to tell apart."""
    seen = np.unique(labels)
    if len(seen) > 1:
        yield from KINDS[kind](Z, labels, n_groups)
        return
    bias = np.zeros(n_groups)
    bias[np.setdiff1d(np.arange(n_groups), seen)] = -20.0 if len(seen) else 0.0
    for setting in INVERSE_PENALTIES if kind == "logistic" else SHRINKAGES:
        yield setting, np.zeros((Z.shape[1], n_groups)), bias


@dataclass
class Head:
    """One linear classifier: of which modalities' components, weighted how, with what setting."""

    kind: str
    blocks: dict[int, tuple[int, float]]  # modality: (components, weight)
    setting: float  # inverse penalty or shrinkage
    temperature: float  # inverse: it multiplies the logits
    loss: float
    logs: np.ndarray  # (N, C) out-of-fold log-probabilities, none below the floor
    weights: dict[int, np.ndarray] | None = None  # modality: (p, C)
    bias: np.ndarray | None = None  # (C,)

    def inputs(self, scores: list[np.ndarray]) -> np.ndarray:
        """Weighted components side by side."""
        return np.hstack([weight * scores[i][:, :p] for i, (p, weight) in self.blocks.items()])

    def has(self, present: np.ndarray) -> np.ndarray:
        """Which cells have all of its modalities."""
        return present[:, list(self.blocks)].all(1)

    def fit(self, scores, present, labels, n_groups) -> None:
        """Solve for all cells with the setting that was chosen."""
        rows = self.has(present)
        found = solutions(self.kind, self.inputs(scores)[rows], labels[rows], n_groups)
        weights, bias = next(wb for setting, *wb in found if setting == self.setting)
        weights, self.bias = self.temperature * weights, self.temperature * bias
        ends = np.cumsum([p for p, _ in self.blocks.values()])
        parts = zip(self.blocks.items(), np.split(weights, ends[:-1]), strict=True)
        self.weights = {i: weight * part for (i, (_, weight)), part in parts}


def fit_heads(
    scores: list[np.ndarray],
    present: np.ndarray,
    labels: np.ndarray,
    n_groups: int,
    fold: np.ndarray,
    seed: int = 0,
) -> list[Head]:
    """Give the heads of every modality and kind, then those of several modalities together.

    Parameters
    ----------
    scores
        Components by modality, `(N, p)`, mean squared length of a cell about 1.
    present, labels, fold
        `(N, M)` bool, `(N,)` group numbers, `(N,)` which fold a cell is held out in.
    """
    search = _Search(scores, present, labels, n_groups, fold, seed)
    modalities = [i for i in range(len(scores)) if present[:, i].any()]
    with threadpool_limits(1 if len(labels) < THREADED_CELLS else None):
        heads = [search.single(i, kind) for i, kind in product(modalities, KINDS)]
        if len(modalities) > 1:
            together = [search.together(heads, kind) for kind in KINDS]
            heads += [head for head in together if len(head.blocks) > 1]
        for head in heads:
            head.fit(scores, present, labels, n_groups)
    return [*heads, _rarity(labels, n_groups)]


def _rarity(labels, n_groups) -> Head:
    """Speaks for rare groups: heads see few of their cells, and say so too rarely."""
    count = np.bincount(labels, minlength=n_groups)
    bias = np.where(count > 0, -np.log(np.maximum(count, 1) / len(labels)), 0.0)
    logs = np.tile(log_softmax(bias), (len(labels), 1))
    return Head("rarity", {}, 0.0, 1.0, 0.0, logs, {}, bias)


class _Search:
    """The choice of a head's settings by out-of-fold log-loss."""

    def __init__(self, scores, present, labels, n_groups, fold, seed):
        self.scores, self.present, self.labels = scores, present, labels
        self.n_groups, self.fold = n_groups, fold
        self.tuning = np.zeros(len(labels), bool)
        self.tuning[np.random.default_rng(seed).permutation(len(labels))[:TUNING_CELLS]] = True

    def single(self, i: int, kind: str) -> Head:
        """The best number of components of one modality."""
        sizes = sorted({min(p, self.scores[i].shape[1]) for p in N_COMPONENTS})
        return min((self.tune(kind, {i: (p, 1.0)}) for p in sizes), key=lambda head: head.loss)

    def together(self, singles: list[Head], kind: str) -> Head:
        """From the best modality on, add each with the weight that lowers the loss most, if any."""
        best, *others = sorted((h for h in singles if h.kind == kind), key=lambda h: h.loss)
        for other in others:
            ((i, (p, _)),) = other.blocks.items()
            options = [self.tune(kind, best.blocks | {i: (p, w)}) for w in BLOCK_WEIGHTS]
            rows = self.tuning & options[0].has(self.present)
            loss = self._least_loss(best.logs, rows)[0] if rows.any() else -np.inf
            better = min(options, key=lambda head: head.loss)
            best = better if better.loss < loss else best
        return best

    def tune(self, kind: str, blocks: dict) -> Head:
        """The best setting for these blocks, judged on cells that its fit has not seen."""
        head = Head(kind, blocks, 0.0, 1.0, np.inf, None)
        has, Z = head.has(self.present), head.inputs(self.scores)
        logits = {}
        for k in range(self.fold.max() + 1):
            train, held_out = has & self.tuning & (self.fold != k), has & (self.fold == k)
            found = solutions(kind, Z[train], self.labels[train], self.n_groups)
            for setting, weights, bias in found:
                out = logits.setdefault(setting, np.zeros((len(Z), self.n_groups)))
                out[held_out] = Z[held_out] @ weights + bias
        rows = has & self.tuning
        for setting, out in logits.items():
            loss, temperature = self._least_loss(out, rows) if rows.any() else (0.0, 1.0)
            if loss < head.loss:
                head.loss, head.setting, head.temperature = loss, setting, temperature
                head.logs = floored(temperature * out) * has[:, None]
        return head

    def _least_loss(self, logits, rows) -> tuple[float, float]:
        logits, labels = logits[rows], self.labels[rows]
        return min((log_loss(t * logits, labels), t) for t in TEMPERATURES)


def floored(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, none below the floor."""
    return np.log(softmax(logits, 1) + FLOOR)


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over cells, with floored probabilities."""
    return -float(floored(logits)[np.arange(len(labels)), labels].mean())


def fusion_weights(
    logs: np.ndarray, labels: np.ndarray, start: np.ndarray | None = None
) -> np.ndarray:
    """Non-negative weights of log-probabilities whose weighted sum has the least log-loss.

    A convex problem. A single head's weight is an inverse temperature (Guo et al. 2017).

    Parameters
    ----------
    logs
        Log-probabilities `(n_heads, n_cells, n_groups)`, of cells not trained on; zeros where a
        head says nothing.
    labels
        Group numbers `(n_cells,)`.
    start
        Weights `(n_heads,)` that `PRIOR_CELLS` cells speak for; default: none do.
    """
    cells, prior = np.arange(len(labels)), 0.0 if start is None else PRIOR_CELLS
    start = np.full(len(logs), 1 / len(logs)) if start is None else start

    def loss(weights):
        total = log_softmax(np.tensordot(weights, logs, 1), 1)
        slope = np.einsum("ng,eng->e", np.exp(total), logs) - logs[:, cells, labels].sum(1)
        away = weights - start
        value = prior * away @ away - total[cells, labels].sum()
        return value / len(cells), (slope + 2 * prior * away) / len(cells)

    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, 3)] * len(logs)).x


def tell_more_than_frequencies(logs: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> bool:
    """Whether weighted heads predict cells held out better than the groups' frequencies do.

    By more than one standard error of the log-loss over cells. Arguments as of
    :func:`fusion_weights`; the last head is the one that knows only which groups are rare.
    """
    cells = np.arange(len(labels))
    fused = log_softmax(np.tensordot(weights, logs, 1), 1)[cells, labels]
    gain = fused - log_softmax(-logs[-1], 1)[cells, labels]
    return gain.mean() > gain.std() / len(gain) ** 0.5
