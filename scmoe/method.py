"""What all methods share: ours, simple ones and peers fit, predict and translate alike."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from mudata import MuData
from scipy import sparse
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.model_selection import KFold, StratifiedKFold

from scmoe.data import DataError, Split, Transform
from scmoe.data.blocks import row_blocks
from scmoe.data.check import (
    expect,
    expect_known,
    expect_mudata,
    expect_seed,
    near,
    select_modalities,
    some,
)

N_FOLDS = 5
MAX_COMPONENTS = 512  # enough to keep all that a few hundred cells tell
MAX_TOLD = 100  # leading components of a target that a translation predicts
LARGE, OF_LARGE = 1500, 100  # cells and features beyond which fewer components are kept


class Method:
    """A method with the interface of :class:`scmoe.ScMoE`; a subclass adds what it can do.

    Parameters
    ----------
    modalities
        Use these only; default: all that the split has.
    seed
        Of everything random, and the seed that its records carry; default: the split's.

    Attributes
    ----------
    method : name in tables.
    groups_, modalities_, label_key_, transform_, info_ : what it was fitted to.
    """

    task = "supervised"

    def __init__(self, modalities: Sequence[str] | None = None, seed: int | None = None):
        self.modalities = None if modalities is None else list(modalities)
        if seed is not None:
            expect_seed(seed)
        self.seed = None if seed is None else int(seed)  # a file takes no numpy integer

    def _start(self, split: Split, transform: Transform | None = None) -> None:
        """Set the attributes that every method has; the transform sees `split.train` alone."""
        self.modalities_ = select_modalities(split.train, self.modalities or None)
        self.label_key_ = split.label_key
        supervised = self.task == "supervised"
        if supervised and split.label_key is None:
            raise DataError(
                "these cells have no labels (label_key is None): learning groups needs some; "
                "task='unsupervised' finds clusters"
            )
        if supervised and "group" in map(str, split.groups):
            raise DataError("a group is called 'group', as a column of predictions is: rename it")
        self.groups_ = [g if supervised else str(i) for i, g in enumerate(map(str, split.groups))]
        if len(self.groups_) < 2 and self.task != "translation":
            raise DataError(
                f"{len(self.groups_)} groups in the training cells' obs[{split.label_key!r}]; at "
                "least 2 are needed (without labels, split.groups says how many to look for: "
                "['0', '1'], say)"
            )
        self.transform_ = transform or Transform().fit(split.train)
        self.seed_ = split.seed if self.seed is None else self.seed
        self.info_ = {
            "dataset": split.name,
            "data_source": split.data_source,
            "protocol": "strict",
            "fold": split.fold,
            "seed": self.seed_,
        }

    def _training_cells(self, split: Split) -> tuple[dict, dict, np.ndarray]:
        """Scaled training and validation cells (see :meth:`_matrices`), and their labels."""
        parts = [self._matrices(part, self.modalities_) for part in (split.train, split.val)]
        matrices = {m: stack([x[m] for x, _ in parts]) for m in self.modalities_}
        present = {m: np.concatenate([has[m] for _, has in parts]) for m in self.modalities_}
        return matrices, present, self._labels(split)

    def _labels(self, split: Split) -> np.ndarray:
        """Groups of training and validation cells as positions in `split.groups`; -1: none."""
        if split.label_key is None:
            return np.full(split.train.n_obs + split.val.n_obs, -1)
        names = [part.obs[split.label_key].astype(str) for part in (split.train, split.val)]
        return pd.Index(map(str, split.groups)).get_indexer(np.concatenate(names))

    def transform(self, mdata: MuData) -> MuData:
        """Cells as the method sees them: filtered, scaled, features named."""
        return self.transform_.transform(mdata, self._available(mdata))

    def _available(self, mdata: MuData) -> list[str]:
        if not hasattr(self, "transform_"):
            raise RuntimeError("This model is not fitted; call fit(split) or load(path) first.")
        expect_mudata(mdata)
        available = [m for m in self.modalities_ if m in mdata.mod]
        if not available:
            raise DataError(
                f"none of the modalities {', '.join(self.modalities_)} is in this MuData "
                f"(it has {', '.join(mdata.mod)})"
            )
        return available

    def _matrices(self, mdata: MuData, modalities: Sequence[str] | None = None):
        """Scaled values of every cell and which cells have them, by modality.

        Returns
        -------
        `{modality: (n_cells, n_features)}`, dense or CSR, zero where a cell lacks the modality, and
        `{modality: (n_cells,)}` bool.
        """
        modalities = modalities or self._available(mdata)
        scaled = self.transform_.transform(mdata, modalities)
        matrices, present = {}, {}
        for m in modalities:
            rows = mdata.obs_names.get_indexer(scaled[m].obs_names)
            present[m] = np.zeros(mdata.n_obs, bool)
            present[m][rows] = True
            n, place = len(rows), (rows, np.arange(len(rows)))
            place = sparse.csr_matrix((np.ones(n, np.float32), place), (mdata.n_obs, n))
            matrices[m] = place @ scaled[m].X
        return matrices, present

    def _write(self, block_of, present: np.ndarray, target: str, units: str, out) -> np.ndarray:
        """Fill `out` a block of cells at a time, with NaN where nothing can be predicted.

        `block_of(rows)` gives the scaled values of the cells in that slice; `present` says which
        cells have a source.
        """
        shape = len(present), len(self.transform_.features[target])
        for start, rows in row_blocks(np.broadcast_to(np.float32(0), shape)):
            here = slice(start, start + len(rows))
            block = np.asarray(block_of(here), np.float32)
            block = block if units == "scaled" else self.transform_.inverse(block, target)
            if out is None:
                out = np.empty((len(present), block.shape[1]), np.float32)
            out[here] = np.where(present[here, None], block, np.nan)
        return out

    def _group_table(self, probabilities: np.ndarray, cells: pd.Index) -> pd.DataFrame:
        """The table that `predict` gives: column `group`, then a probability per group."""
        table = pd.DataFrame(probabilities, index=cells, columns=self.groups_)
        table.insert(0, "group", np.array(self.groups_)[probabilities.argmax(1)])
        return table


class Translator(Method):
    """A method that predicts one modality from others; a subclass has ``_told``."""

    def translate(
        self,
        mdata: MuData,
        target: str,
        source: str | Sequence[str],
        units: str = "measured",
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Predict modality ``target`` from ``source``; the target is never read.

        Parameters
        ----------
        target
            A modality seen in training; ``mdata`` need not have it.
        source
            One modality, or several.
        units
            ``measured`` for the units the data came in, all features; ``scaled`` for the space that
            :meth:`transform` gives.
        out
            Array ``(n_cells, n_features)`` to write into, for instance a memory map.

        Returns
        -------
        Array ``(n_cells, n_features)``; rows of cells without any source modality are NaN.

        Raises
        ------
        scmoe.data.DataError
            For a modality that was not seen in training, or a source that is not in ``mdata``.
        ValueError
            If the target is also a source, or for other units.
        """
        self._available(mdata)
        sources = [source] if isinstance(source, str) else list(source or ())
        expect(sources, "source", source, "one modality, or several")
        for name in (target, *sources):
            if name not in self.modalities_:
                raise DataError(
                    f"modality '{name}' was not seen in training; known: "
                    f"{some(self.modalities_, 20)}{near(name, self.modalities_)}"
                )
        if target in sources:
            raise ValueError(f"target {target!r} is also a source; it must not be read")
        expect_known("units", units, ("measured", "scaled"))
        values_of, has = self._told(mdata, target, sources)
        return self._write(values_of, has, target, units, out)

    def _told(self, mdata: MuData, target: str, sources: list[str]):
        """Give scaled values by rows, and which cells have a source.

        Returns
        -------
        A function of a slice of cells, giving ``(n, n_features)``, and ``(n_cells,)`` bool.
        """
        raise NotImplementedError


def stack(parts: list):
    """Matrices on top of each other, dense or CSR."""
    return sparse.vstack(parts, format="csr") if sparse.issparse(parts[0]) else np.vstack(parts)


@dataclass
class Components:
    """Leading principal components, scaled together so that a score's mean square is 1.

    Sparse values are not centred before their axes are found (that would make them dense): theirs
    are those of the truncated singular value decomposition.
    """

    mean: np.ndarray  # (F,)
    axes: np.ndarray  # (p, F), orthonormal rows
    scale: float  # of all scores
    variance: float  # mean squared length of a centred cell, all F features, in units of scale²

    @classmethod
    def fit(cls, X, n_components: int = MAX_COMPONENTS, seed: int = 0) -> Components:
        """Find the axes of the cells in ``X`` ``(n_cells, n_features)``, dense or CSR."""
        large = min(X.shape) > LARGE or sparse.issparse(X)
        n = max(1, min(OF_LARGE if large else n_components, X.shape[1], X.shape[0] - 1))
        mean = np.asarray(X.mean(0), np.float64).ravel()
        if sparse.issparse(X):
            n = max(1, min(n, X.shape[1] - 1))
            axes = TruncatedSVD(n, n_iter=4, random_state=seed).fit(X).components_
            total = X.multiply(X).mean(0).sum() - mean @ mean
        else:
            solver = "randomized" if large else "full"
            axes = PCA(n, svd_solver=solver, random_state=seed).fit(X).components_
            total = np.square(X - mean).sum(1).mean()
        axes = np.ascontiguousarray(axes, np.float32)  # as a file gives them back
        scores = np.asarray(X @ axes.T) - mean @ axes.T
        scale = float(np.sqrt(np.square(scores).mean())) or 1.0
        return cls(mean.astype(np.float32), axes, scale, float(total) / scale**2 or 1.0)

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.axes)

    @property
    def n_told(self) -> int:
        """How many of them, the leading ones, translations predict."""
        return min(self.n, MAX_TOLD)

    def __call__(self, X) -> np.ndarray:
        """Scores ``(n_cells, n)`` of scaled values ``(n_cells, n_features)``."""
        return ((np.asarray(X @ self.axes.T) - self.mean @ self.axes.T) / self.scale).astype("f4")

    def inverse(self, Z: np.ndarray) -> np.ndarray:
        """Scaled values ``(n_cells, n_features)`` of leading scores ``(n_cells, at most n)``."""
        return (self.scale * Z) @ self.axes[: Z.shape[1]] + self.mean


def inner_folds(labels: np.ndarray | None, n_cells: int, seed: int, n_folds: int = N_FOLDS):
    """Cells that each of some folds holds out, stratified by label where labels are given."""
    n_folds = min(n_folds, n_cells)
    if labels is None:
        folds = KFold(n_folds, shuffle=True, random_state=seed)
        return [test for _, test in folds.split(np.empty(n_cells))]
    n_folds = min(n_folds, np.unique(labels, return_counts=True)[1].max())
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # groups smaller than the number of folds: meant
        warnings.filterwarnings("ignore", message="The least populated class")
        return [test for _, test in folds.split(labels, labels)]
