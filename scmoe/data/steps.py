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

TF_IDF_TOTAL = 1e4  # a cell's total before the logarithm, as in Signac (Stuart et al. 2021)
LARGEST_LOG = 50.0  # no measurement reaches it, and its exponential is still a float32


@dataclass
class Fitted:
    """What the training cells taught about one modality.

    `names` are all measured features, `used` marks those that vary. Per used feature: `mean` and
    `scale` of the values after the step, and `idf` (peaks). Per measured feature: `constant`, the
    training mean as measured. `per_cell` is a typical cell's total (counts, peaks) or geometric
    mean (protein).
    """

    kind: str
    why: str
    sparse: bool
    names: pd.Index
    used: np.ndarray
    constant: np.ndarray
    per_cell: float
    idf: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


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
    """Mean, standard deviation and largest absolute value of each feature.

    Blocks are merged by the pairwise update of Chan, Golub and LeVeque (1983), which stays
    accurate where the mean is large against the deviation.
    """
    n, mean, m2, largest = 0, np.zeros(n_features), np.zeros(n_features), np.zeros(n_features)
    for block in blocks:
        k = block.shape[0]
        block_mean = column_sums(block) / k
        if sp.issparse(block):
            deviation = (block.data - block_mean[block.indices]) ** 2
            zeros = k - np.bincount(block.indices, minlength=n_features)
            block_m2 = np.bincount(block.indices, deviation, n_features) + zeros * block_mean**2
            np.maximum.at(largest, block.indices, np.abs(block.data))
        else:
            block_m2 = ((block - block_mean) ** 2).sum(axis=0)
            np.maximum(largest, np.abs(block).max(axis=0), out=largest)
        delta = block_mean - mean
        mean += delta * (k / (n + k))
        m2 += block_m2 + delta**2 * (n * k / (n + k))
        n += k
    return mean, np.sqrt(m2 / n), largest


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
