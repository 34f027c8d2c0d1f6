"""Reading a cells × features matrix a block of rows at a time.

Everything in `scmoe.data` that looks at values does it through these helpers, so that a sparse
matrix is never made dense as a whole and a matrix on disk is never read as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import h5py
import numpy as np
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.abc import CSRDataset

BLOCK_ENTRIES = 2**20  # dense entries a block may hold: 8 MB in float64


def is_sparse(X) -> bool:
    """Whether X is sparse, in memory or in a backed file."""
    return getattr(X, "format", "dense") != "dense"


def matrix(adata: AnnData):
    """The matrix `adata.X`, ready for row blocks: dense, CSR, or a backed dataset.

    A CSC matrix becomes CSR (slicing rows of CSC is slow), entries stored twice are summed.
    The matrix of a view is copied once, here, unless it is in a file.
    """
    if (rows := rows_on_disk(adata)) is not None:
        return rows
    X = adata.X
    if sp.issparse(X):
        X.check_format()  # indices that lead nowhere would be followed
    if getattr(X, "format", "csr") == "csc":
        X = (X.to_memory() if hasattr(X, "to_memory") else X).tocsr()
    if sp.issparse(X) and not X.has_canonical_format:
        X = X.tocsr(copy=True)
        X.sum_duplicates()
    return X


def on_disk(X) -> bool:
    """Whether a matrix is in a file: rows of it are read when asked for."""
    return isinstance(X, h5py.Dataset | zarr.Array | CSRDataset)


class Rows:
    """Some rows of a matrix in a file, read when they are sliced; like a matrix otherwise.

    A file is quick to read on and slow to pick from: of every run of rows that holds some of those
    asked for, all between the first and the last are read.
    """

    def __init__(self, X, rows: np.ndarray):
        self.X, self.rows = X, rows
        self.shape, self.dtype = (len(rows), X.shape[1]), X.dtype
        self.format = getattr(X, "format", "dense")

    def __getitem__(self, part: slice) -> np.ndarray | sp.csr_matrix:
        """Read rows, in the order in which they are asked for."""
        rows = self.rows[part]
        order, run = np.argsort(rows, kind="stable"), _rows_of(self.X)
        there, found = rows[order], [self.X[:0]]
        for cells in np.split(there, np.flatnonzero(np.diff(there // run)) + 1):
            if len(cells):
                found.append(self.X[cells[0] : cells[-1] + 1][cells - cells[0]])
        whole = np.concatenate(found) if self.format == "dense" else sp.vstack(found, format="csr")
        return whole if (order[1:] > order[:-1]).all() else whole[np.argsort(order)]


def rows_on_disk(adata: AnnData) -> Rows | None:
    """What a view shows of a matrix in a file; None where it is in memory, or lacks features."""
    if not adata.is_view or not on_disk(X := adata._adata_ref.X):
        return None
    rows, columns = (
        np.arange(n)[index] for n, index in zip(X.shape, (adata._oidx, adata._vidx), strict=True)
    )
    return Rows(X, rows) if np.array_equal(columns, np.arange(X.shape[1])) else None


def in_file(adata: AnnData) -> bool:
    """Whether a modality's matrix is read only when asked for."""
    return rows_on_disk(adata) is not None if adata.is_view else on_disk(adata.X)


def row_blocks(X) -> Iterator[tuple[int, np.ndarray | sp.csr_matrix]]:
    """Yield `(first row, block)`; a block is an array or a CSR matrix in X's own dtype."""
    rows = _rows_of(X)
    for start in range(0, X.shape[0], rows):
        block = X[start : start + rows]
        yield start, sp.csr_matrix(block) if sp.issparse(block) else np.asarray(block)


def _rows_of(X) -> int:
    """How many rows of a matrix are a block."""
    f = X.shape[1]
    rows = max(1, BLOCK_ENTRIES // max(f, 1)) * (8 if is_sparse(X) else 1)
    chunk = (getattr(X, "chunks", None) or (1,))[0]
    if rows % chunk and chunk * f < 16 * BLOCK_ENTRIES:  # decompress each chunk of a file once
        rows = chunk * max(1, rows // chunk)
    return rows


def values(block) -> np.ndarray:
    """The stored values of a block: all of a dense one, the explicit entries of a sparse one."""
    return block.data if sp.issparse(block) else block


def gaps(block) -> np.ndarray | None:
    """Where values of a dense block are missing (NaN), as a mask; None where none is."""
    if sp.issparse(block) or block.dtype.kind != "f":
        return None
    mask = np.isnan(block)
    return mask if mask.any() else None


def take_rows(X, rows: np.ndarray) -> np.ndarray | sp.csr_matrix:
    """Copy rows out of a matrix; of one in a file never more is held than these and one block."""
    if on_disk(X):
        return Rows(X, rows)[:]
    return Rows(X.X, X.rows[rows])[:] if isinstance(X, Rows) else X[rows]
