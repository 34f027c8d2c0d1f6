"""The parts of scMoE and their blend: methods that read and write components of the modalities."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import combinations, permutations

import numpy as np
import pandas as pd
from mudata import MuData
from scipy.optimize import minimize, nnls
from scipy.special import log_softmax, softmax
from sklearn.metrics import confusion_matrix

from scmoe.clusters import find_clusters
from scmoe.data import DataError, Split
from scmoe.data.cells import Cells
from scmoe.method import MAX_TOLD, Components, Translator, inner_folds, stack

SHIFTS = (0.5, 0.25, 0.75, 0.0, 1.0)  # shares of a group's log frequency that may be taken off
SHARE_CELLS = 20.0  # how many cells a share has to win for each unit that it is off the first
PRIOR_CELLS = 5.0  # how many cells speak for equal weights of all sources, or of all views
CLUSTERED = 20  # leading components that clusters are looked for in
MAX_SUBSETS = 4  # modalities of which every subset has weights of its own

SAMPLE = 16_384  # beyond so many cells all but the transform and the network learns from a sample

Subset = tuple[int, ...]  # positions of modalities, increasing


@dataclass
class Known:
    """Training and validation cells as a part learns from them.

    Attributes
    ----------
    scores : by modality, ``(N, p)``, zero where a cell lacks it.
    present : ``(N, M)`` bool.
    labels : ``(N,)`` group numbers, -1 where unknown; clusters, where no label is to be seen.
    fold : ``(N,)`` which of K folds holds a cell out.
    held_out : ``(N,)`` bool, whether something was trained that did not learn from a cell.
    watch : of a device, gives what scores the network after each epoch (``paper`` protocol only).
    watched : values and labels of the cells that it scores.
    sample : the rows, increasing, that all but the network learns from; None: every one.
    """

    scores: dict[str, np.ndarray]
    present: np.ndarray
    labels: np.ndarray
    n_groups: int
    fold: np.ndarray
    held_out: np.ndarray
    watch: Callable | None = None
    watched: list = field(default_factory=list)
    sample: np.ndarray | None = None

    def few(self) -> Known:
        """The cells of the sample; itself where there is none."""
        if self.sample is None:
            return self
        scores = {m: z[self.sample] for m, z in self.scores.items()}
        names = ("present", "labels", "fold", "held_out")
        rest = {name: getattr(self, name)[self.sample] for name in names}
        return replace(self, scores=scores, sample=None, **rest)

    @property
    def n_folds(self) -> int:
        """How many parts the cells are cut into."""
        return int(self.fold.max()) + 1

    def target(self, modality: str, rows) -> np.ndarray:
        """What translations of a modality are to tell of some cells, ``(n, p)``."""
        return self.scores[modality][rows, :MAX_TOLD]

    def both(self, target: int, source: int) -> np.ndarray:
        """Cells that have two modalities, ``(N,)`` bool."""
        return self.present[:, target] & self.present[:, source]


@dataclass
class OutOfFold:
    """What a part says of training cells that it did not learn from."""

    groups: np.ndarray  # (N, C) log-probabilities
    pairs: dict[tuple[str, str], np.ndarray]  # (target, source): (N, n_told of the target)


class Part(Translator):
    """A method on components. A subclass has ``_fit``, ``_views`` and ``_pair``.

    The components of every modality are fixed linear maps of its scaled features, fitted to
    training and validation cells. A subclass says several things about a cell's group, its views;
    they are fused by non-negative weights, for every set of modalities that a cell may have.
    """

    n_folds = n_held_out = 6  # parts that the cells are cut into; how many of them are held out

    def fit(self, split: Split, device="auto", progress=True, checkpoint=None) -> Part:
        """Fit to training and validation cells; ``split.test`` is not touched.

        Parameters
        ----------
        split
            From :func:`scmoe.data.load` or :func:`scmoe.data.split_mudata`.
        device
            ``auto``, ``cpu``, ``cuda`` or ``cuda:1``; only networks use it.
        progress
            Show a bar (or one line an epoch in logs).
        checkpoint
            Folder to save to and to resume from; the same call continues a run that was cut off.

        Raises
        ------
        scmoe.data.DataError
            If the data cannot be used; before any training.
        """
        known = self._prepare(split)
        if (held_out := self._fit(known, device, progress, checkpoint)) is not None:
            self._finish(known.few(), held_out)
        return self

    def _prepare(self, split: Split) -> Known:
        """Fit transform and components, and give the cells in terms of these."""
        self._start(split)
        labels, n_train, sample, some = self._labels(split), split.train.n_obs, None, split
        if len(labels) > SAMPLE:
            sample = np.random.default_rng(self.seed_).permutation(len(labels))[:SAMPLE]
            sample = np.sort(sample)
            first, then = sample[sample < n_train], sample[sample >= n_train] - n_train
            some = replace(split, train=_take(split.train, first), val=_take(split.val, then))
        matrices, present, _ = self._training_cells(some)
        self.components_ = {
            m: Components.fit(x[present[m]], seed=self.seed_) for m, x in matrices.items()
        }
        if sample is None:
            has = np.stack([present[m] for m in self.modalities_], 1)
            scores = self._components_of(matrices, present)
        else:
            scores, has = _joined([self._scores(part) for part in (split.train, split.val)])
        fold, n_groups = np.empty(len(labels), int), len(self.groups_)
        supervised = self.task == "supervised"
        known_labels = labels if supervised else None
        held_out = inner_folds(known_labels, len(labels), self.seed_, self.n_folds)
        for k, rows in enumerate(held_out):
            fold[rows] = k
        if not supervised:
            leading = [z[:, :CLUSTERED] for z in scores.values()]
            blocks = [z / max(np.sqrt(np.square(z).sum(1).mean()), 1e-6) for z in leading]
            labels = find_clusters(blocks, has, n_groups, fold, self.seed_)
        count = np.bincount(labels[labels >= 0], minlength=n_groups)
        self.rare_ = np.zeros(n_groups)
        if supervised:
            self.rare_[count > 0] = -np.log(count[count > 0] / count.sum())
        held_out = fold < self.n_held_out
        return Known(scores, has, labels, n_groups, fold, held_out, sample=sample)

    def _share(self, other: Part) -> None:
        """Take over what :meth:`_prepare` found from another part."""
        for name in ("modalities_", "label_key_", "groups_", "transform_", "seed_", "info_",
                     "components_", "rare_"):  # fmt: skip
            setattr(self, name, getattr(other, name))

    def _finish(self, known: Known, held_out: OutOfFold) -> None:
        """Choose how far rare groups are raised, and keep how to weigh several sources.

        The share is the one with the best mean of accuracy, balanced accuracy and macro F1 on cells
        held out, drawn towards a half: among few cells, that mean is mostly chance.
        """
        rows = np.flatnonzero((known.labels >= 0) & known.held_out)
        if self.rare_.any() and len(rows):
            truth, logs = known.labels[rows], held_out.groups[rows]
            scores = {
                shift: _group_scores(truth, (logs + shift * self.rare_).argmax(1))
                - SHARE_CELLS / len(rows) * abs(shift - SHIFTS[0])
                for shift in SHIFTS
            }
            self.rare_ = max(scores, key=scores.get) * self.rare_
        m = len(self.modalities_)
        self.gram_, self.cross_ = np.zeros((m, m, m)), np.zeros((m, m))
        for t, target in enumerate(self.modalities_):
            for s, source in enumerate(self.modalities_):
                if s == t:
                    continue
                rows = known.both(t, s)
                said = held_out.pairs[target, source]
                self.cross_[t, s] = np.vdot(said[rows], known.target(target, rows))
                for o, other in enumerate(self.modalities_):
                    if o != t:
                        three = rows & known.present[:, o]
                        theirs = held_out.pairs[target, other][three]
                        self.gram_[t, s, o] = np.vdot(said[three], theirs)

    # --- groups ---

    def _fuse(self, known: Known, views_of) -> None:
        """Fit the weights of views by their log-loss on cells held out.

        ``views_of(rows, subset)`` gives some cells' views by these modalities, each ``(n, C)``.
        """
        m = len(self.modalities_)
        sizes = range(1, m + 1) if m <= MAX_SUBSETS else (1, m)
        self.fusion_: dict[Subset, np.ndarray] = {}
        for subset in (s for size in sizes for s in combinations(range(m), size)):
            usable = known.present[:, subset].all(1) & (known.labels >= 0) & known.held_out
            rows = np.flatnonzero(usable)
            self.fusion_[subset] = fusion_weights(
                np.stack(views_of(rows, subset)), known.labels[rows]
            )

    def _by_pattern(self, present: np.ndarray, views_of) -> np.ndarray:
        """Fused log-probabilities ``(n, C)``; ``views_of`` as of :meth:`_fuse`."""
        out = np.zeros((len(present), len(self.groups_)))
        for pattern in np.unique(present, axis=0):
            rows = np.flatnonzero((present == pattern).all(1))
            subset = tuple(np.flatnonzero(pattern))
            if not subset:
                continue
            views = views_of(rows, subset)
            weights = self.fusion_.get(subset, np.full(len(views), 1 / len(views)))
            out[rows] = np.tensordot(weights, np.stack(views), 1)
        return log_softmax(out, 1)

    def _log_probabilities(self, scores, present) -> np.ndarray:
        """Log-probability of every group ``(n_cells, C)`` by the modalities that a cell has."""

        def views_of(rows, subset):
            return self._views({m: z[rows] for m, z in scores.items()}, subset)

        return self._by_pattern(present, views_of)

    # --- what it gives ---

    def predict(self, mdata: MuData) -> pd.DataFrame:
        """Group of every cell, from whichever of the trained modalities ``mdata`` has.

        Rare groups are raised (logit adjustment, Menon et al. 2021), here and nowhere in training,
        as far as cells held out speak for it: fitted to the log-loss, few cells of a group rarely
        outvote many of another.

        Returns
        -------
        DataFrame by cell name: column ``group`` and a probability per group; NaN for cells that
        have none of the modalities.
        """
        scores, present = self._scores(mdata)
        logits = self._log_probabilities(scores, present) + self.rare_
        table = self._group_table(softmax(np.asarray(logits, np.float64), 1), mdata.obs_names)
        table.loc[~present.any(1)] = np.nan  # nothing was measured that could tell
        return table

    def _told(self, mdata, target, sources):
        scores, present = self._scores(mdata, sources)
        values, inverse = (
            self._translated(scores, present, target),
            self.components_[target].inverse,
        )
        return lambda rows: inverse(values[rows]), present.any(1)

    def _translated(self, scores, present, target: str) -> np.ndarray:
        """Components of ``target`` ``(n_cells, p)`` from all sources in ``scores``."""
        said = {s: self._pair(z, target, s) for s, z in scores.items() if s != target}
        if len(said) == 1:
            return next(iter(said.values()))
        order = [self.modalities_.index(s) for s in said]
        out = np.zeros_like(next(iter(said.values())))
        patterns, which = np.unique(present[:, order], axis=0, return_inverse=True)
        for k, pattern in enumerate(patterns):
            used = [s for s, there in zip(said, pattern, strict=True) if there]
            rows = which.ravel() == k
            for source, weight in zip(used, self.shares(target, used), strict=True):
                out[rows] += weight * said[source][rows]
        return out

    def shares(self, target: str, sources: list[str]) -> np.ndarray:
        """Weight of each source's translation where these are at hand, by least squares.

        Equal weights, where nothing was held out to learn others from.
        """
        t, rows = self.modalities_.index(target), [self.modalities_.index(s) for s in sources]
        if len(rows) < 2 or not hasattr(self, "gram_"):
            return np.ones(len(rows)) / max(len(rows), 1)
        gram = self.gram_[t][np.ix_(rows, rows)]
        prior = PRIOR_CELLS * self.components_[target].n_told
        root = np.linalg.cholesky(gram + prior * np.eye(len(rows)))
        return nnls(root.T, np.linalg.solve(root, self.cross_[t][rows] + prior / len(rows)))[0]

    def _scores(self, mdata: MuData, modalities: list[str] | None = None):
        """Components of new cells by modality, ``(n_cells, p)``, and which they have ``(n, M)``.

        Of many cells, so many at a time that their features are never held all at once.
        """
        wanted = modalities or self._available(mdata)
        if missing := [m for m in wanted if m not in mdata.mod]:
            raise DataError(
                f"modality {missing[0]!r} is not in this MuData (it has {', '.join(mdata.mod)})."
            )
        components = all(isinstance(its, Components) for its in self.components_.values())
        if mdata.n_obs > SAMPLE and components:
            return self._scores_in_parts(mdata, wanted)
        matrices, has = self._matrices(mdata, wanted)
        present = np.zeros((mdata.n_obs, len(self.modalities_)), bool)
        for m in wanted:
            present[:, self.modalities_.index(m)] = has[m]
        return self._components_of(matrices, has), present

    def _scores_in_parts(self, mdata: MuData, wanted: list[str]):
        """The same, so many cells at a time, into arrays of single precision."""
        cells, n = Cells(mdata.obs, {m: mdata.mod[m] for m in wanted}), mdata.n_obs
        scores, present = {}, np.zeros((n, len(self.modalities_)), bool)
        for part in np.array_split(np.arange(n), -(-n // SAMPLE)):
            (some,) = cells.take([part])
            rows = part[mdata.obs_names[part].get_indexer(some.obs_names)]
            found, present[rows] = self._scores(some, wanted)
            for m, z in found.items():
                if m not in scores:
                    scores[m] = np.zeros((n, z.shape[1]), np.float32)
                scores[m][rows] = z
            del some, found
            gc.collect()  # an AnnData refers to itself, and would hold its values for long
        return scores, present

    def _components_of(self, matrices: dict, has: dict) -> dict[str, np.ndarray]:
        """Scores by modality ``(n_cells, p)``, zero where a cell lacks it."""
        return {m: self.components_[m](x) * has[m][:, None] for m, x in matrices.items()}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Ordered pairs (target, source)."""
        return list(permutations(self.modalities_, 2))


def _take(mdata: MuData, rows: np.ndarray) -> MuData:
    return Cells.of(mdata).take([rows])[0]


def _joined(parts: list[tuple[dict, np.ndarray]]) -> tuple[dict, np.ndarray]:
    """Scores and presence of cells that were looked at in parts."""
    scores = {m: stack([each[m] for each, _ in parts]) for m in parts[0][0]}
    return scores, np.concatenate([present for _, present in parts])


def _group_scores(truth: np.ndarray, named: np.ndarray) -> float:
    """Mean of accuracy, balanced accuracy and macro F1 over the groups that are there."""
    table = confusion_matrix(truth, named)
    right, true, said = table.diagonal(), table.sum(1), table.sum(0)
    recall = right[true > 0] / true[true > 0]
    return np.mean([right.sum() / true.sum(), recall.mean(), (2 * right / (true + said)).mean()])


def fusion_weights(logs: np.ndarray, labels: np.ndarray, prior: float = PRIOR_CELLS) -> np.ndarray:
    """Non-negative weights of log-probabilities whose weighted sum has the least log-loss.

    A convex problem. A single view's weight is an inverse temperature (Guo et al. 2017).

    Parameters
    ----------
    logs
        Log-probabilities `(n_views, n_cells, n_groups)`, of cells not trained on.
    labels
        Group numbers `(n_cells,)`.
    prior
        How many cells speak for equal weights.
    """
    cells, start = np.arange(len(labels)), np.full(len(logs), 1 / len(logs))
    if not len(cells):
        return start

    def loss(weights):
        total = log_softmax(np.tensordot(weights, logs, 1), 1)
        slope = np.einsum("ng,eng->e", np.exp(total), logs) - logs[:, cells, labels].sum(1)
        away = weights - start
        value = prior * away @ away - total[cells, labels].sum()
        return value / len(cells), (slope + 2 * prior * away) / len(cells)

    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, 3)] * len(logs)).x
