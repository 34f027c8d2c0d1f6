"""What each kind of values goes through before scaling, and back; on one block of cells.

A block is an array or a CSR matrix, cells × features, float64. Every step takes a cell by itself
and sends zero to zero, so that sparse blocks stay sparse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmoe.data.blocks import gaps

TF_IDF_TOTAL = 1e4  # a cell's total before the logarithm, as in Signac (Stuart et al. 2021)
LARGEST_LOG = 50.0  # no measurement reaches it, and its exponential is still a float32


@dataclass
class Fitted:
    """What the training cells taught about one modality.

    `per_cell` is a typical cell's total (counts, peaks) or geometric mean (protein); `look` what
    the values look like (see `kinds.other_kind`; empty: not known). `names` are all measured
    features, `used` marks those that vary, `constant` is their training mean as measured (NaN
    where no cell has it), with which missing values are filled. Per used feature: `idf` (peaks),
    and `mean` and `scale` of the values after the step.
    """

    kind: str
    why: str
    sparse: bool
    per_cell: float
    look: dict[str, float]
    names: pd.Index
    used: np.ndarray
    constant: np.ndarray
    idf: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    def fits(self) -> bool:
        """Whether the parts, read from a file, are of the sizes and kinds that fitting gives."""
        n, used, per_feature = len(self.names), self.used, (self.idf, self.mean, self.scale)
        return (
            used.shape == self.constant.shape == (n,)
            and used.dtype == bool
            and all(values.shape == (used.sum(),) for values in per_feature)
            and all(np.isfinite(values).all() for values in (self.idf, self.mean, self.per_cell))
            and bool((self.scale > 0).all())
        )

    def fill(self, block, columns: np.ndarray | None = None):
        """The block with its missing values filled; `columns` are those of the measured features.

        What is on or off is filled with what most cells have.
        """
        if (missing := gaps(block)) is None:
            return block
        typical = np.rint(self.constant) if self.kind == "binary" else self.constant
        typical = np.nan_to_num(typical if columns is None else typical[columns])
        return np.where(missing, typical, block)


def fit_step(fitted: Fitted, blocks: Callable[[], Iterable], n_cells: int) -> None:
    """Fit what the kind's own step needs."""
    size_of = {"counts": totals, "peaks": totals, "protein": geometric_means}.get(fitted.kind)
    if size_of is not None:
        sizes = np.concatenate([size_of(block) for block in blocks()])
        fitted.per_cell = float(np.median(sizes[sizes > 0])) if (sizes > 0).any() else 1.0
    if fitted.kind == "peaks":
        found = sum(column_sums(apply(lambda x: (x > 0) * 1.0, block)) for block in blocks())
        fitted.idf = np.log1p(n_cells / np.maximum(found, 1))


def step(block, fitted: Fitted):
    """The kind's own step."""
    if fitted.kind == "counts":
        return apply(np.log1p, times_rows(block, fitted.per_cell / _or_one(totals(block))))
    if fitted.kind == "protein":
        return apply(np.log1p, times_rows(block, 1 / geometric_means(block)))
    if fitted.kind == "peaks":
        block = times_rows(block, TF_IDF_TOTAL / _or_one(totals(block)))
        return apply(np.log1p, times_columns(block, fitted.idf))
    if fitted.kind == "binary":
        return apply(lambda x: np.where(x > 0, 1.0, 0.0), block)
    return block


def unstep(block: np.ndarray, fitted: Fitted) -> np.ndarray:
    """Undo `step`, for a typical training cell's total."""
    if fitted.kind in ("counts", "protein", "peaks"):
        block = np.expm1(np.clip(block, 0, LARGEST_LOG))
    if fitted.kind == "protein":
        block = block * fitted.per_cell
    if fitted.kind == "peaks":
        block = block / fitted.idf * (fitted.per_cell / TF_IDF_TOTAL)
    if fitted.kind == "normalised":
        block = np.maximum(block, 0)
    return np.clip(block, 0, 1) if fitted.kind == "binary" else block


def moments(blocks: Iterable, n_features: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and largest absolute value of each feature, of what is not NaN.

    Blocks are merged by the pairwise update of Chan, Golub and LeVeque (1983), which stays
    accurate where the mean is large against the deviation. The mean of nothing is NaN.
    """
    n, mean, m2, largest = 0, np.zeros(n_features), np.zeros(n_features), np.zeros(n_features)
    for block in blocks:
        k = block.shape[0]
        if sp.issparse(block):
            block_mean = column_sums(block) / k
            deviation = (block.data - block_mean[block.indices]) ** 2
            zeros = k - np.bincount(block.indices, minlength=n_features)
            block_m2 = np.bincount(block.indices, deviation, n_features) + zeros * block_mean**2
            np.maximum.at(largest, block.indices, np.abs(block.data))
        else:
            if (missing := gaps(block)) is not None:
                k = k - missing.sum(axis=0)
            block_mean = np.nansum(block, axis=0) / np.maximum(k, 1)
            block_m2 = np.nansum((block - block_mean) ** 2, axis=0)
            np.fmax(largest, np.fmax.reduce(np.abs(block), axis=0), out=largest)
        delta = block_mean - mean
        both = np.maximum(n + k, 1)
        mean += delta * (k / both)
        m2 += block_m2 + delta**2 * (n * k / both)
        n = n + k
    return np.where(n, mean, np.nan), np.sqrt(m2 / np.maximum(n, 1)), largest


def totals(block) -> np.ndarray:
    """Sum of each cell."""
    return np.asarray(block.sum(axis=1)).ravel()


def column_sums(block) -> np.ndarray:
    """Sum of each feature."""
    if sp.issparse(block):
        return np.bincount(block.indices, block.data, block.shape[1])
    return block.sum(axis=0)


def geometric_means(block) -> np.ndarray:
    """Geometric mean of 1 + x of each cell, over all features, its zeros among them."""
    return np.exp(totals(apply(np.log1p, block)) / block.shape[1])


def apply(function: Callable[[np.ndarray], np.ndarray], block):
    """A function of single values, one that sends zero to zero."""
    if sp.issparse(block):
        return sp.csr_matrix((function(block.data), block.indices, block.indptr), block.shape)
    return function(block)


def times_rows(block, factor: np.ndarray):
    """Multiply each cell by its factor."""
    if sp.issparse(block):
        return apply(lambda data: data * np.repeat(factor, np.diff(block.indptr)), block)
    return block * factor[:, None]


def times_columns(block, factor: np.ndarray):
    """Multiply each feature by its factor."""
    if sp.issparse(block):
        return apply(lambda data: data * factor[block.indices], block)
    return block * factor


def _or_one(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, 1.0)
