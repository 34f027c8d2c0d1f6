"""Tiny files in the layout of the published collection, so that loading is tested without it."""

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

BATCHES = ("s1d1", "s1d2", "s3d7")
MOP = "MOp_SNAREseq2"


def write_collection(
    root: Path, seed: int = 0, noise_for: dict[str, set[str]] | None = None
) -> Path:
    """Write all five sets below `root`; cells in `noise_for[set]` get other values.

    Where the files say which cells are test cells, those also get other labels.
    """
    for name, write in WRITERS.items():
        folder = root / ("" if name == MOP else "UnitedNet_NatComm_data") / name
        folder.mkdir(parents=True, exist_ok=True)
        known = "mop" if name == MOP else name.lower()
        write(folder, np.random.default_rng(0), (noise_for or {}).get(known, set()))
    return root


def _adata(X, obs, prefix, noisy=()):
    var = pd.DataFrame(index=[f"{prefix}{i}" for i in range(X.shape[1])])
    noisy = obs.index.isin(noisy)
    if noisy.any():
        X = X.tolil() if sparse.issparse(X) else X.copy()
        X[noisy] = np.random.default_rng(99).poisson(3, (noisy.sum(), X.shape[1])) > 2
        X = sparse.csr_matrix(X) if sparse.issparse(X) else X
    return AnnData(X, obs=obs.copy(), var=var)


def _log_counts(rng, group, n_features):
    means = rng.normal(0, 1, (group.max() + 1, n_features))
    return np.log1p(rng.poisson(np.exp(means[group] + 1))).astype(np.float32)


def _patchseq(folder, rng, noisy):
    group = rng.permutation(np.repeat([0, 1, 2, 3], [30, 28, 4, 2]))
    types = pd.Categorical(np.array(["Sst-1", "Vip-1", "Pvalb-1", "Sncg-1"])[group])
    obs = pd.DataFrame({"cell_type_TEM": types, "cell_type_T": types}, index=map(str, range(64)))
    morph = rng.normal(1e4, 1e3, (64, 6)).astype(np.float32)
    morph[:, 2] = 7
    modalities = {
        "RNA": _log_counts(rng, group, 12),
        "Ephys": rng.normal(group[:, None], 1, (64, 5)).astype(np.float32),
        "Morph": morph,
    }
    for name, X in modalities.items():
        _adata(X, obs, name, noisy).write_h5ad(folder / f"adata_{name}_TEM.h5ad")


def _dbitseq(folder, rng, noisy):
    row, column = np.divmod(np.arange(144), 12)
    group = (row // 4) * 2 + column // 6
    test = rng.permutation(144) < 30
    labels = np.where(test & (len(noisy) > 0), 0, group)
    obs = pd.DataFrame(
        {"array_row": row, "array_col": column, "cell_type": labels}, index=map(str, range(144))
    )
    rna = _log_counts(rng, group, 8)
    modalities = {"rna": rna, "protein": _log_counts(rng, group, 4), "niche_rna": rna / 2}
    for name, X in modalities.items():
        # RNA and its niche have the same genes
        adata = _adata(X, obs, "gene" if "rna" in name else "protein", noisy)
        adata.obsm["spatial"] = np.column_stack([row, column])
        for half, part in (("train", adata[~test]), ("test", adata[test])):
            part.copy().write_h5ad(folder / f"adata_{name}_{half}.h5ad")


def _dyngen(folder, rng, noisy):
    group = np.arange(50) % 3
    layers = {key: _log_counts(rng, group, 6) for key in "DpmP"}
    obs = pd.DataFrame({"label": [f"m{g}" for g in group]}, index=[f"cell{i}" for i in range(50)])
    for fold in range(5):
        for half, rows in (
            ("train", np.flatnonzero(np.arange(50) // 10 != fold)),
            ("test", np.flatnonzero(np.arange(50) // 10 == fold)),
        ):
            values = {key: X[rows] for key, X in layers.items()}
            labels = obs.iloc[rows].copy()
            if half == "test" and noisy:
                values = {key: X[::-1] + 1 for key, X in values.items()}
                labels["label"] = "m0"
            adata = AnnData(np.zeros((len(rows), 6), np.float32), obs=labels)
            adata.obsm.update(values)
            adata.write_h5ad(folder / f"adata_pPRm_{half}_cv_{fold}.h5ad")


def _atacseq(folder, rng, noisy):
    group = rng.integers(0, 3, 90)
    cells = [f"cell{i}" for i in range(90)]
    batch = np.array(BATCHES)[rng.integers(0, 3, 90)]
    labels = np.where(np.isin(cells, list(noisy)), "T", np.array(["B", "T", "Mono"])[group])
    labels[np.flatnonzero(batch == "s1d1")[0]] = "HSC"  # a group of its own, in one batch
    obs = pd.DataFrame({"cell_type": labels, "batch": batch}, index=cells)
    peaks = sparse.csr_matrix(
        (rng.random((90, 20)) < 0.1 + 0.1 * group[:, None]).astype(np.float32)
    )
    genes = rng.normal(group[:, None] / 2, 1, (90, 9)).clip(None, 4).astype(np.float32)
    _adata(peaks, obs, "chr1-100-20", noisy).write_h5ad(folder / "atac_processed.h5ad")
    shuffled = rng.permutation(90)  # the other file may have another order
    _adata(genes, obs, "gene", noisy)[shuffled].copy().write_h5ad(folder / "gex_processed.h5ad")


def _mop(folder, rng, noisy):
    group, batch = rng.integers(0, 3, 80), np.array(["09A", "09B"])[np.arange(80) % 2]
    cells = [f"{b}_{i}" for i, b in enumerate(batch)]
    types = np.array(["E2Rasgrf2", "InP", "Mis"])[group]
    obs = pd.DataFrame({"Batch": batch, "Ident": types}, index=cells)
    obs.to_csv(folder / "meta_c1.csv")
    for matrix, names, prefix, n in (
        ("GxC1", "genes", "Gene", 14),
        ("RxC1", "regions", "chr1_100_", 25),
    ):
        counts = rng.poisson(np.exp(rng.normal(0, 1, (3, n)))[group])
        there = np.isin(cells, list(noisy))
        counts[there] = np.random.default_rng(99).poisson(3, (there.sum(), n))
        sparse.save_npz(folder / f"{matrix}.npz", sparse.csc_matrix(counts.T))
        (folder / f"{names}.txt").write_text("".join(f"{prefix}{i}\n" for i in range(n)))


WRITERS = {
    MOP: _mop,
    "patchseq": _patchseq,
    "DBiTSeq": _dbitseq,
    "Dyngen": _dyngen,
    "ATACseq": _atacseq,
}
