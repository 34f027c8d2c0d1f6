"""Reading a cells × features matrix a block of rows at a time.

Everything in `scmoe.data` that looks at values does it through these helpers, so that a sparse
matrix is never made dense as a whole and a matrix on disk is never read as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

BLOCK_ENTRIES = 2**20  # dense entries a block may hold: 8 MB in float64


def is_sparse(X) -> bool:
    """Whether X is sparse, in memory or in a backed file."""
    return sp.issparse(X) or hasattr(X, "to_memory")


def matrix(adata: AnnData):
    """The matrix `adata.X`, ready for row blocks: dense, CSR, or a backed dataset.

    A CSC matrix becomes CSR (slicing rows of CSC is slow), entries stored twice are summed.
    """
    X = adata.X
    if getattr(X, "format", "csr") == "csc":
        X = (X.to_memory() if hasattr(X, "to_memory") else X).tocsr()
    if sp.issparse(X) and not X.has_canonical_format:
        X = X.tocsr(copy=True)
        X.sum_duplicates()
    return X


def row_blocks(X) -> Iterator[tuple[int, np.ndarray | sp.csr_matrix]]:
    """Yield `(first row, block)`; a block is an array or a CSR matrix in X's own dtype."""
    n, f = X.shape
    rows = max(1, BLOCK_ENTRIES // max(f, 1)) * (8 if is_sparse(X) else 1)
    chunk = (getattr(X, "chunks", None) or (1,))[0]
    if rows % chunk and chunk * f < 16 * BLOCK_ENTRIES:  # decompress each chunk of a file once
        rows = chunk * max(1, rows // chunk)
    for start in range(0, n, rows):
        block = X[start : start + rows]
        yield start, sp.csr_matrix(block) if sp.issparse(block) else np.asarray(block)


def values(block) -> np.ndarray:
    """The stored values of a block: all of a dense one, the explicit entries of a sparse one."""
    return block.data if sp.issparse(block) else block


def gaps(block) -> np.ndarray | None:
    """Where values of a dense block are missing (NaN), as a mask; None where none is."""
    if sp.issparse(block) or block.dtype.kind != "f":
        return None
    mask = np.isnan(block)
    return mask if mask.any() else None


def take_rows(X, parts: list[np.ndarray]) -> list[np.ndarray | sp.csr_matrix]:
    """Copy the rows of each part, which share none, out of X (n, f), in the part's own order.

    A file is read once, in order, so that one larger than memory can be cut into parts while
    never holding more than those parts and one block.
    """
    if sp.issparse(X) or isinstance(X, np.ndarray):
        return [X[rows] for rows in parts]
    part_of, place = np.full(X.shape[0], -1), np.empty(X.shape[0], dtype=np.int64)
    for i, rows in enumerate(parts):
        part_of[rows], place[rows] = i, np.arange(len(rows))
    sparse = is_sparse(X)
    pieces = [[sp.csr_matrix((0, X.shape[1]), dtype=X.dtype)] for _ in parts]
    taken = [np.empty((0 if sparse else len(rows), X.shape[1]), X.dtype) for rows in parts]
    for start, block in row_blocks(X):
        here = part_of[start : start + block.shape[0]]
        for i in np.unique(here[here >= 0]):
            rows = np.flatnonzero(here == i)
            if sparse:
                pieces[i].append(block[rows])
            else:
                taken[i][place[start + rows]] = block[rows]
    if sparse:  # stacked in the file's order: bring into the part's
        stacked = [sp.vstack(part, format="csr") for part in pieces]
        ordered = [(np.diff(rows) >= 0).all() for rows in parts]
        taken = [
            X if as_is else X[np.argsort(np.argsort(rows))]
            for X, rows, as_is in zip(stacked, parts, ordered, strict=True)
        ]
    return taken
