"""The ATAC + gene pair, built from the original bone marrow multiome in bounded memory.

The recipe is that of the pair's authors. Genes: counts, the 4,000 most variable (seurat_v3),
library sizes equalised over those, log1p, scaled over all cells and clipped at 4. Peaks: scanpy's
default selection of variable features on X as stored, then 0/1.
"""

from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scanpy as sc
from anndata.io import read_elem, sparse_dataset
from scipy.sparse import csr_matrix, vstack

from scmoe.data.download import FetchError

N_GENES = 4000
CLIP = 4  # of the scaled genes, on the upper and lower side
ROWS = 2000  # cells read at a time
COLUMNS = 200  # genes scaled at a time


def build_pair(original: Path, folder: Path, n_genes: int = N_GENES) -> dict[str, Path]:
    """Build `atac_processed.h5ad` and `gex_processed.h5ad` in a folder.

    Never held are all genes or all peaks: only the chosen genes, dense in float32, and then the
    chosen peaks, sparse.

    Parameters
    ----------
    original
        h5ad with genes and peaks side by side (`var["feature_types"]` "GEX" or "ATAC"), counts in
        `layers["counts"]`, X as its authors stored it, `obs["cell_type"]` and `obs["batch"]`.
    folder
        Where the two files go.
    n_genes
        Genes to keep.

    Returns
    -------
    The files by name.

    Raises
    ------
    FetchError
        The file lacks one of these parts.
    ImportError
        Without scikit-misc, which scanpy needs for seurat_v3.
    """
    files = {name: folder / name for name in ("atac_processed.h5ad", "gex_processed.h5ad")}
    with h5py.File(original) as file:
        try:
            obs, var = read_elem(file["obs"])[["cell_type", "batch"]], read_elem(file["var"])
            kind = var["feature_types"].astype(str).to_numpy()
            counts, stored = sparse_dataset(file["layers/counts"]), sparse_dataset(file["X"])
        except (KeyError, TypeError) as error:
            raise FetchError(f"{original.name} is not the multiome expected: no {error}") from error
        genes = np.flatnonzero(kind == "GEX")
        peaks = np.flatnonzero(kind == "ATAC")
        genes = most_variable(counts, genes, n_genes)
        scaled = ad.AnnData(_scaled(_columns(counts, genes)), obs, var.iloc[genes])
        scaled.write_h5ad(files["gex_processed.h5ad"])
        del scaled
        moments = _moments(stored, peaks, lambda x, _: np.expm1(x))
        peaks = peaks[variable_features(*moments)]
        opened = _columns(stored, peaks)
        opened.data[:] = 1
        ad.AnnData(opened, obs, var.iloc[peaks]).write_h5ad(
            files["atac_processed.h5ad"], compression="gzip"
        )
    return files


def _rows(dataset) -> Iterator[csr_matrix]:
    for start in range(0, dataset.shape[0], ROWS):
        yield csr_matrix(dataset[start : start + ROWS])


def _columns(dataset, columns: np.ndarray) -> csr_matrix:
    """Some columns of a matrix on disk, float32, without explicit zeros."""
    blocks = []
    for block in _rows(dataset):
        block = block[:, columns].astype(np.float32)
        block.eliminate_zeros()
        blocks.append(block)
    return vstack(blocks, format="csr", dtype=np.float32)


def most_variable(dataset, columns: np.ndarray, n_features: int) -> np.ndarray:
    """Choose the features that vary most by Seurat v3's measure, as scanpy's "seurat_v3" does.

    A feature's variance, of values clipped at sqrt(n) expected standard deviations, is divided by
    the variance expected at its mean (a loess of log variance on log mean). scanpy does this on
    counts in memory; here they are read twice, in blocks of cells.

    Parameters
    ----------
    dataset
        Counts on disk or in memory, cells × features.
    columns
        The features to choose from.
    n_features
        How many.

    Returns
    -------
    The chosen columns, in order.
    """
    from skmisc.loess import loess

    n = dataset.shape[0]
    mean, variance = _moments(dataset, columns, lambda x, _: x)
    varies = variance > 0
    fit = loess(np.log10(mean[varies]), np.log10(variance[varies]), span=0.3, degree=2)
    fit.fit()
    expected = np.ones(len(columns))
    expected[varies] = 10**fit.outputs.fitted_values
    limit = np.sqrt(expected * n) + mean
    total, squares = _sums(dataset, columns, lambda x, column: np.minimum(x, limit[column]))
    normalised = (n * mean**2 + squares - 2 * total * mean) / ((n - 1) * expected)
    return np.sort(columns[np.argsort(-normalised)[:n_features]])


def _scaled(counts: csr_matrix) -> np.ndarray:
    """Dense genes, library sizes equalised, logged, standardised and clipped."""
    genes = ad.AnnData(counts)
    sc.pp.normalize_total(genes)
    sc.pp.log1p(genes)
    X = genes.X.toarray()
    for start in range(0, X.shape[1], COLUMNS):  # scanpy's intermediates have twice the precision
        block = slice(start, start + COLUMNS)
        X[:, block] = sc.pp.scale(X[:, block].copy(), max_value=CLIP)
    return X


def _sums(dataset, columns: np.ndarray, change) -> tuple[np.ndarray, np.ndarray]:
    """Sum and sum of squares of some columns, after `change(values, their columns)`."""
    total, squares = np.zeros(len(columns)), np.zeros(len(columns))
    for block in _rows(dataset):
        block = block[:, columns].astype(np.float64)
        block.data = change(block.data, block.indices)
        total += np.bincount(block.indices, block.data, len(columns))
        squares += np.bincount(block.indices, block.data**2, len(columns))
    return total, squares


def _moments(dataset, columns: np.ndarray, change) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (n - 1) variance of some columns, after `change(values, their columns)`."""
    n = dataset.shape[0]
    total, squares = _sums(dataset, columns, change)
    return total / n, (squares - total**2 / n) / (n - 1)


def variable_features(mean: np.ndarray, variance: np.ndarray, n_bins: int = 20) -> np.ndarray:
    """Choose variable features as scanpy's default does, from moments alone.

    Dispersion (variance over mean, logged) is standardised within bins of the logged mean; kept
    are features with a standardised dispersion above .5 and a logged mean in (.0125, 3). scanpy
    does this on a matrix in memory; moments can be had from one on disk.

    Parameters
    ----------
    mean, variance
        ``(features,)``, of the values before log1p.

    Returns
    -------
    Which features are kept, ``(features,)``.
    """
    mean = np.where(mean == 0, 1e-12, mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        dispersion = np.log(np.where(variance > 0, variance / mean, np.nan))
    mean = np.log1p(mean)
    table = pd.DataFrame({"dispersion": dispersion, "bin": pd.cut(mean, n_bins)})
    bins = table.groupby("bin", observed=True)["dispersion"]
    centre, spread = bins.transform("mean"), bins.transform("std")
    alone = spread.isna()  # one feature in its bin: standardised dispersion 1
    spread, centre = spread.where(~alone, centre), centre.where(~alone, 0)
    normalised = np.nan_to_num((table["dispersion"] - centre) / spread)
    return (normalised > 0.5) & (mean > 0.0125) & (mean < 3)
