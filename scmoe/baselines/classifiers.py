"""Linear group identification: the modalities' principal components, one linear map, and fusion.

Every choice (components, penalty, fusion) has the least log-loss on inner folds of the training
and validation cells; then everything is fitted to all of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd
from mudata import MuData
from scipy.special import softmax
from sklearn.neighbors import KNeighborsClassifier

from scmoe.baselines.components import UnitComponents
from scmoe.baselines.heads import (
    BLOCK_WEIGHTS,
    KINDS,
    N_COMPONENTS,
    TEMPERATURES,
    TUNING_CELLS,
    floored,
    log_loss,
)
from scmoe.data import DataError, Split
from scmoe.method import Method, inner_folds
from scmoe.parts import fusion_weights


@dataclass
class Classifier:
    """One linear classifier: of which modalities' components, weighted how, with what settings."""

    head: str
    blocks: dict[str, tuple[int, float]]  # modality: (components, weight)
    setting: float  # inverse penalty or shrinkage
    temperature: float
    loss: float
    out_of_fold: np.ndarray  # (n_tuning_cells, n_groups) log-probabilities
    weights: np.ndarray | None = None
    bias: np.ndarray | None = None

    def inputs(self, scores: dict[str, np.ndarray]) -> np.ndarray:
        """Weighted components side by side; they are zero, the mean, where a cell lacks them."""
        return np.hstack([weight * scores[m][:, :p] for m, (p, weight) in self.blocks.items()])

    def log_probabilities(self, scores: dict[str, np.ndarray]) -> np.ndarray:
        """`(n_cells, n_groups)`, none below the floor."""
        return floored(self.temperature * (self.inputs(scores) @ self.weights + self.bias))


class LinearGroups(Method):
    """Group identification by linear maps of principal components.

    Parameters
    ----------
    fusion
        ``late``: one classifier a modality (and head); their log-probabilities are summed with
        non-negative weights. ``early``: one classifier of all components side by side, each
        modality with a weight of its own.
    modalities, seed
        As for every baseline; one modality needs no fusion.

    Attributes
    ----------
    classifiers_ : the classifiers, with the settings that were chosen.
    choices : a table of those settings.
    """

    heads: tuple[str, ...]
    name: str

    def __init__(
        self,
        fusion: Literal["late", "early"] = "late",
        modalities: Sequence[str] | None = None,
        seed: int | None = None,
    ):
        super().__init__(modalities, seed)
        if fusion not in ("late", "early"):
            raise ValueError(f"fusion={fusion!r} must be 'late' or 'early'")
        self.fusion = fusion

    def fit(self, split: Split) -> LinearGroups:
        """Fit to training and validation cells; `split.test` is not touched."""
        self._start(split)
        single = len(self.modalities_) == 1
        self.method = f"{self.name} ({self.modalities_[0] if single else f'{self.fusion} fusion'})"
        matrices, present, labels = self._training_cells(split)
        self.components_ = {
            m: UnitComponents(x[present[m]], max(N_COMPONENTS), self.seed_)
            for m, x in matrices.items()
        }
        scores = self._scores(matrices, present)
        tuning = np.sort(np.random.default_rng(self.seed_).permutation(len(labels))[:TUNING_CELLS])
        search = _Search(
            {m: z[tuning] for m, z in scores.items()},
            {m: has[tuning] for m, has in present.items()},
            labels[tuning],
            len(self.groups_),
            self.seed_,
        )
        singles = [search.single(m, head) for m, head in product(self.modalities_, self.heads)]
        self.classifiers_ = singles
        if self.fusion == "early" and not single:
            self.classifiers_ = [search.early(singles, head) for head in self.heads]
        # where data lack a modality of an early fusion, single modalities' classifiers step in
        self._all_classifiers = list({id(e): e for e in [*self.classifiers_, *singles]}.values())
        self._tuned, self._fused = (search.labels, search.present), {}
        for classifier in self._all_classifiers:
            rows = _any_of(present, classifier.blocks)
            Z = classifier.inputs(scores)[rows]
            settings = KINDS[classifier.head](Z, labels[rows], len(self.groups_))
            classifier.weights, classifier.bias = next(
                wb for s, *wb in settings if s == classifier.setting
            )
        return self

    def _scores(self, matrices, present) -> dict[str, np.ndarray]:
        return {m: self.components_[m](x) * present[m][:, None] for m, x in matrices.items()}

    @property
    def choices(self) -> pd.DataFrame:
        """What the inner folds chose, one row per classifier."""
        weights = self._fusion_weights(tuple(range(len(self.classifiers_))))
        rows = [
            {
                "modalities": " + ".join(
                    m if w == 1 else f"{w:g} {m}" for m, (_, w) in classifier.blocks.items()
                ),
                "head": classifier.head,
                "components": " + ".join(str(p) for p, _ in classifier.blocks.values()),
                "setting": classifier.setting,
                "log_loss": classifier.loss,
                "fusion_weight": weight,
            }
            for classifier, weight in zip(self.classifiers_, weights, strict=True)
        ]
        return pd.DataFrame(rows)

    def predict(self, mdata: MuData) -> pd.DataFrame:
        """Group of every cell, from whichever of the trained modalities `mdata` has.

        Returns
        -------
        Table by cell name: column ``group`` and a probability per group.
        """
        matrices, present = self._matrices(mdata)
        scores = self._scores(matrices, present)
        usable = [i for i, e in enumerate(self._all_classifiers) if set(e.blocks) <= set(scores)]
        usable = [i for i in usable if i < len(self.classifiers_)] or usable
        total = np.zeros((mdata.n_obs, len(self.groups_)))
        for i, weight in zip(usable, self._fusion_weights(tuple(usable)), strict=True):
            has = _any_of(present, self._all_classifiers[i].blocks)
            total += weight * has[:, None] * self._all_classifiers[i].log_probabilities(scores)
        return self._group_table(softmax(total, 1), mdata.obs_names)

    def _fusion_weights(self, chosen: tuple[int, ...]) -> np.ndarray:
        """Weights of these classifiers' log-probabilities with the least out-of-fold log-loss."""
        if chosen not in self._fused:
            labels, present = self._tuned
            logs = np.stack(
                [
                    e.out_of_fold * _any_of(present, e.blocks)[:, None]
                    for e in (self._all_classifiers[i] for i in chosen)
                ]
            )
            self._fused[chosen] = fusion_weights(logs, labels, prior=0.0)
        return self._fused[chosen]


class LogisticRegression(LinearGroups):
    """Multinomial logistic regression on principal components."""

    heads, name = ("logistic",), "logistic regression"


class DiscriminantAnalysis(LinearGroups):
    """Linear discriminants on principal components, with a shrunken covariance."""

    heads, name = ("discriminant",), "discriminant analysis"


class LinearEnsemble(LinearGroups):
    """Both, as classifiers of one fusion: they err differently on small groups."""

    heads, name = ("logistic", "discriminant"), "linear ensemble"


class _Search:
    """The choice of a classifier's settings on inner folds."""

    def __init__(self, scores, present, labels, n_groups, seed):
        self.scores, self.present, self.labels, self.n_groups = scores, present, labels, n_groups
        self.held_out = np.zeros(len(labels), int)
        for k, test in enumerate(inner_folds(labels, len(labels), seed)):
            self.held_out[test] = k

    def single(self, modality: str, head: str) -> Classifier:
        """The best number of components of one modality."""
        sizes = sorted({min(p, self.scores[modality].shape[1]) for p in N_COMPONENTS})
        return min((self.tune(head, {modality: (p, 1.0)}) for p in sizes), key=lambda e: e.loss)

    def early(self, singles: list[Classifier], head: str) -> Classifier:
        """From the best modality on, add each with the weight that lowers the loss most, if any."""
        best, *others = sorted((e for e in singles if e.head == head), key=lambda e: e.loss)
        for other in others:
            (modality, (p, _)) = next(iter(other.blocks.items()))
            options = [self.tune(head, best.blocks | {modality: (p, w)}) for w in BLOCK_WEIGHTS]
            best = min([best, *options], key=lambda e: e.loss)
        return best

    def tune(self, head: str, blocks: dict) -> Classifier:
        """The best setting of a head for these blocks, and its out-of-fold log-probabilities."""
        has = _any_of(self.present, blocks)
        Z = Classifier(head, blocks, 0, 1, 0, None).inputs(self.scores)
        logs = {}
        for k in np.unique(self.held_out):
            train, test = has & (self.held_out != k), has & (self.held_out == k)
            for setting, weights, bias in KINDS[head](Z[train], self.labels[train], self.n_groups):
                out = logs.setdefault(setting, np.zeros((len(Z), self.n_groups)))
                out[test] = Z[test] @ weights + bias
        options = product(logs, TEMPERATURES)
        loss, setting, t = min((log_loss(t * logs[s], self.labels), s, t) for s, t in options)
        return Classifier(head, blocks, setting, t, loss, floored(t * logs[setting]))


def _any_of(present: dict[str, np.ndarray], modalities) -> np.ndarray:
    return np.any([present[m] for m in modalities if m in present], axis=0)


class CoordinateNeighbours(Method):
    """Groups from where a cell lies in the tissue alone: the vote of the nearest training cells.

    No modality is read. What it scores is what a set's split gives away by location.
    """

    method = "coordinates alone (nearest neighbours)"

    def fit(self, split: Split) -> CoordinateNeighbours:
        """Remember the training and validation cells' coordinates, `obsm["spatial"]`."""
        self._start(split)
        self.modalities_ = ["coordinates"]
        where = np.vstack([_coordinates(part) for part in (split.train, split.val)])
        labels = np.concatenate(
            [part.obs[split.label_key].astype(str) for part in (split.train, split.val)]
        )
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
