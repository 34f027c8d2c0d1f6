"""Fixtures shared by all tests: the published files where there are any, and a tiny MuData."""

import os
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from hypothesis import settings
from scipy import sparse

FOLDER = "UnitedNet_NatComm_data"
MARKS = {"real_data", "real_patchseq", "real_dbitseq", "real_atacseq"}

md.set_options(pull_on_update=False)
settings.register_profile("same cases every time", derandomize=True)
settings.load_profile("same cases every time")


def pytest_collection_modifyitems(items):
    """Mark what asks for a published file, so that ``-m real_data`` selects it."""
    for item in items:
        if MARKS & set(getattr(item, "fixturenames", ())):
            item.add_marker("real_data")


def _real(below: str = "") -> Path:
    """Give the data root, or skip and say what is missing."""
    root = os.environ.get("SCMOE_DATA")
    if not root:
        pytest.skip("SCMOE_DATA is not set: the published files are not here")
    folder = Path(root).expanduser().resolve() / FOLDER / below
    if not folder.is_dir():
        pytest.skip(f"$SCMOE_DATA has no {FOLDER}/{below}")
    return Path(root).expanduser().resolve()


@pytest.fixture
def real_data() -> Path:
    """Root of the published files; skips where there are none."""
    return _real()


@pytest.fixture
def real_patchseq() -> Path:
    """Root of the published files, when Patch-seq is among them."""
    return _real("patchseq")


@pytest.fixture
def real_dbitseq() -> Path:
    """Root of the published files, when DBiT-seq is among them."""
    return _real("DBiTSeq")


@pytest.fixture
def real_atacseq() -> Path:
    """Root of the published files, when ATAC + gene (or an excerpt of it) is among them."""
    return _real("ATACseq")


def make_tiny(n_cells: int = 60, seed: int = 0) -> md.MuData:
    """Simulate three groups of cells in three modalities, one of each storage in use.

    Returns
    -------
    MuData with ``rna`` (CSR counts, 24 features), ``protein`` (dense log counts, 8) and
    ``morph`` (dense continuous, 10); the groups are in ``obs["cell_type"]``.
    """
    rng = np.random.default_rng(seed)
    group = np.arange(n_cells) % 3
    cells = [f"cell{i}" for i in range(n_cells)]

    def modality(prefix, n_features, values):
        means = rng.normal(0, 1, (3, n_features))[group]
        names = pd.Index([f"{prefix}{i}" for i in range(n_features)])
        return ad.AnnData(values(means), pd.DataFrame(index=cells), pd.DataFrame(index=names))

    mdata = md.MuData(
        {
            "rna": modality(
                "gene", 24, lambda m: sparse.csr_matrix(rng.poisson(np.exp(m)).astype(np.float32))
            ),
            "protein": modality(
                "protein", 8, lambda m: np.log1p(rng.poisson(np.exp(m + 2))).astype(np.float32)
            ),
            "morph": modality("size", 10, lambda m: rng.normal(m, 0.5).astype(np.float32)),
        }
    )
    mdata.obs["cell_type"] = pd.Categorical([f"type{g}" for g in group])
    return mdata


@pytest.fixture
def tiny() -> md.MuData:
    """Sixty cells, three modalities, three groups: new for each test, free to be damaged."""
    return make_tiny()
