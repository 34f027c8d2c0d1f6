"""Linear group identification: the modalities' principal components, one linear map, and fusion.

Every choice (components, penalty, fusion) has the least log-loss on inner folds of the training
and validation cells; then everything is fitted to all of those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd
from mudata import MuData
from scipy.special import softmax
from sklearn import linear_model
from sklearn.neighbors import KNeighborsClassifier

from scmoe.baselines.components import OnComponents
from scmoe.data import DataError, Split
from scmoe.data.check import expect_known
from scmoe.method import Method, inner_folds
from scmoe.parts import fusion_weights

N_COMPONENTS = (25, 50, 100, 200)
BLOCK_WEIGHTS = (0.1, 0.2, 0.4, 0.7, 1.0)  # of a modality beside the best one
INVERSE_PENALTIES = (1.0, 10.0, 100.0, 1000.0)  # scikit-learn's C, for cells of mean length 1
SHRINKAGES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
TEMPERATURES = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4)  # inverse: they multiply logits
TUNING_CELLS = 5000  # choices are made on as many, drawn at random from larger data
FLOOR = 1e-4  # of a probability, where choices are made: one cell's part in them is bounded

# setting, weights (p, n_groups) and biases (n_groups,) of a linear map, by setting
Solutions = Iterator[tuple[float, np.ndarray, np.ndarray]]


def logistic(Z, labels, n_groups) -> Solutions:
    """Multinomial regression, by inverse penalty."""
    seen = np.unique(labels)
    model = linear_model.LogisticRegression(
        solver="newton-cg", warm_start=True, max_iter=200, tol=1e-3
    )
    for C in INVERSE_PENALTIES:
        model.set_params(C=C).fit(Z, labels)
        weights, bias = model.coef_.T, model.intercept_
        if len(seen) == 2:  # scikit-learn gives the second group's logit only
            weights, bias = np.c_[0 * weights, weights], np.r_[0, bias]
        yield C, *_all_groups(weights, bias, seen, n_groups)


def discriminant(Z, labels, n_groups) -> Solutions:
    """Linear discriminants, by shrinkage of their covariance to a multiple of I."""
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


@dataclass
class Classifier:
    """One linear classifier: of which modalities' components, weighted how, with what settings."""

    head: Callable[..., Solutions]
    blocks: dict[str, tuple[int, float]]  # modality: (components, weight)
    setting: float  # inverse penalty or shrinkage
    temperature: float
    loss: float
    out_of_fold: np.ndarray  # (n_tuning_cells, n_groups) log-probabilities, 0 for what is not there
    weights: np.ndarray | None = None
    bias: np.ndarray | None = None

    def fit(self, scores, present, labels, n_groups) -> None:
        """Fit to all cells that have one of the blocks."""
        rows = _any_of(present, self.blocks)
        solved = self.head(_beside(scores, self.blocks)[rows], labels[rows], n_groups)
        self.weights, self.bias = next(wb for s, *wb in solved if s == self.setting)

    def log_probabilities(self, scores, present) -> np.ndarray:
        """`(n_cells, n_groups)`, none below the floor; 0 for cells that have none of the blocks."""
        logits = _beside(scores, self.blocks) @ self.weights + self.bias
        return _any_of(present, self.blocks)[:, None] * _floored(self.temperature * logits)


class LinearGroups(OnComponents):
    """Group identification by linear maps of principal components.

    With ``late`` fusion, one classifier a modality (and head); their log-probabilities are summed
    with non-negative weights. With ``early``, one classifier of all components side by side, each
    modality with a weight of its own. One modality needs no fusion.
    """

    n_components = max(N_COMPONENTS)
    heads: tuple[Callable[..., Solutions], ...]
    name: str

    def __init__(
        self,
        fusion: Literal["late", "early"] = "late",
        modalities: Sequence[str] | None = None,
        seed: int | None = None,
    ):
        super().__init__(modalities, seed)
        expect_known("fusion", fusion, ("late", "early"))
        self.fusion = fusion

    def fit(self, split: Split) -> LinearGroups:
        """Fit to training and validation cells; `split.test` is not touched."""
        self._start(split)
        single, n_groups = len(self.modalities_) == 1, len(self.groups_)
        self.method = f"{self.name} ({self.modalities_[0] if single else f'{self.fusion} fusion'})"
        matrices, present, labels = self._training_cells(split)
        scores = self._fit_inputs(matrices, present)
        tuning = _Tuning(scores, present, labels, n_groups, self.seed_)
        singles = [tuning.single(m, head) for m, head in product(self.modalities_, self.heads)]
        early = self.fusion == "early" and not single
        first = [tuning.early(singles, head) for head in self.heads] if early else singles
        # where data lack a modality of an early fusion, single modalities' classifiers step in
        self._classifiers = first, singles
        for classifier in {id(c): c for c in [*first, *singles]}.values():
            classifier.fit(scores, present, labels, n_groups)
        self._tuning_labels = tuning.labels
        return self

    def predict(self, mdata: MuData) -> pd.DataFrame:
        """Group of every cell, from whichever of the trained modalities `mdata` has.

        A table by cell name: column ``group``, then a probability per group.
        """
        matrices, present = self._matrices(mdata)
        scores = self._inputs(matrices, present)
        usable = ([c for c in some if c.blocks.keys() <= scores.keys()]
                  for some in self._classifiers)  # fmt: skip
        chosen = next(filter(None, usable))
        out_of_fold = np.stack([c.out_of_fold for c in chosen])
        weights = fusion_weights(out_of_fold, self._tuning_labels, prior=0.0)
        logs = [c.log_probabilities(scores, present) for c in chosen]
        total = sum(weight * log for weight, log in zip(weights, logs, strict=True))
        return self._group_table(softmax(total, 1), mdata.obs_names)


class LogisticRegression(LinearGroups):
    """Multinomial logistic regression on principal components."""

    heads, name = (logistic,), "logistic regression"


class DiscriminantAnalysis(LinearGroups):
    """Linear discriminants on principal components, with a shrunken covariance."""

    heads, name = (discriminant,), "discriminant analysis"


class LinearEnsemble(LinearGroups):
    """Both, as classifiers of one fusion: they err differently on small groups."""

    heads, name = (logistic, discriminant), "linear ensemble"


class _Tuning:
    """The choice of a classifier's settings on inner folds of some cells."""

    def __init__(self, scores, present, labels, n_groups, seed):
        some = np.sort(np.random.default_rng(seed).permutation(len(labels))[:TUNING_CELLS])
        self.scores = {m: z[some] for m, z in scores.items()}
        self.present = {m: has[some] for m, has in present.items()}
        self.labels, self.n_groups = labels[some], n_groups
        self.held_out = np.zeros(len(some), int)
        for k, test in enumerate(inner_folds(self.labels, len(some), seed)):
            self.held_out[test] = k

    def single(self, modality: str, head) -> Classifier:
        """The best number of components of one modality."""
        sizes = sorted({min(p, self.scores[modality].shape[1]) for p in N_COMPONENTS})
        return min((self.best(head, {modality: (p, 1.0)}) for p in sizes), key=lambda c: c.loss)

    def early(self, singles: list[Classifier], head) -> Classifier:
        """From the best modality on, add each with the weight that lowers the loss most, if any."""
        best, *others = sorted((c for c in singles if c.head == head), key=lambda c: c.loss)
        for other in others:
            ((modality, (p, _)),) = other.blocks.items()
            options = [self.best(head, best.blocks | {modality: (p, w)}) for w in BLOCK_WEIGHTS]
            best = min([best, *options], key=lambda c: c.loss)
        return best

    def best(self, head, blocks: dict) -> Classifier:
        """The best setting of a head for these blocks, and its out-of-fold log-probabilities."""
        has, Z, logits = _any_of(self.present, blocks), _beside(self.scores, blocks), {}
        for k in np.unique(self.held_out):
            train, test = has & (self.held_out != k), has & (self.held_out == k)
            for setting, weights, bias in head(Z[train], self.labels[train], self.n_groups):
                out = logits.setdefault(setting, np.zeros((len(Z), self.n_groups)))
                out[test] = Z[test] @ weights + bias

        def loss(setting, t):
            logs = _floored(t * logits[setting])
            return -float(logs[np.arange(len(logs)), self.labels].mean())

        least, setting, t = min((loss(s, t), s, t) for s, t in product(logits, TEMPERATURES))
        out_of_fold = _floored(t * logits[setting]) * has[:, None]
        return Classifier(head, blocks, setting, t, least, out_of_fold)


def _floored(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, none below the floor."""
    return np.log(softmax(logits, 1) + FLOOR)


def _beside(scores: dict[str, np.ndarray], blocks: dict) -> np.ndarray:
    """Weighted components of some modalities side by side."""
    return np.hstack([weight * scores[m][:, :p] for m, (p, weight) in blocks.items()])


def _any_of(present: dict[str, np.ndarray], modalities) -> np.ndarray:
    return np.any([present[m] for m in modalities], axis=0)


class CoordinateNeighbours(Method):
    """Groups from where a cell lies in the tissue alone: the vote of the nearest training cells.

    No modality is read. What it scores is what a set's split gives away by location.
    """

    method = "coordinates alone (nearest neighbours)"

    def fit(self, split: Split) -> CoordinateNeighbours:
        """Remember the training and validation cells' coordinates, `obsm["spatial"]`."""
        self._start(split)
        self.modalities_, parts = ["coordinates"], (split.train, split.val)
        where = np.vstack([_coordinates(part) for part in parts])
        labels = np.concatenate([part.obs[split.label_key].astype(str) for part in parts])
        self.model_ = KNeighborsClassifier(min(5, len(where))).fit(where, labels)
        self.groups_ = list(self.model_.classes_)
        return self

    def predict(self, mdata: MuData) -> pd.DataFrame:
        """Group of every cell; a group's probability is its share of the neighbours."""
        return self._group_table(self.model_.predict_proba(_coordinates(mdata)), mdata.obs_names)


def _coordinates(mdata: MuData) -> np.ndarray:
    if "spatial" not in mdata.obsm:
        raise DataError("no coordinates: mdata.obsm['spatial'] of shape (n_cells, 2) is needed")
    return np.asarray(mdata.obsm["spatial"], float)[:, :2]
