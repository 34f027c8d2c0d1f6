"""The data sets, four of the paper and a larger one: files, modalities, labels, folds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import pandas as pd

COLLECTION = "UnitedNet_NatComm_data"  # the folder of Zenodo record 7708592
UNITEDNET = (
    "Tang X. et al., Explainable multi-task learning for multi-modality biological data "
    "analysis, Nat Commun 14, 2546 (2023); data: doi:10.5281/zenodo.7708592"
)
LICENCE = "as stated on Zenodo record 7708592"
BMMC_BATCHES = (  # site and donor
    "s1d1", "s1d2", "s1d3", "s2d1", "s2d4", "s2d5", "s3d3", "s3d6", "s3d7", "s3d10",
    "s4d1", "s4d8", "s4d9",
)  # fmt: skip

MOP_FILES = "https://raw.githubusercontent.com/PeterZZQ/scMoMaT/dbd954d/data/real/MOp_5batches"
MOP_PINNED = {  # bytes, sha256
    "GxC1.npz": (2501346, "44e48e6243954feafe0541f33b6b116093ca1ed4a25fc2f3ca146d89d1ab1bab"),
    "RxC1.npz": (2245606, "59d6f46dc4e908194bfc859b7773bc666d96ab74d9386b0a8f92d6b29dfcacf7"),
    "genes.txt": (10792, "9d722d1d281f5ff152dc8a1fb257fec883b8aa28ea3f4f79783d0595dd8b4833"),
    "meta_c1.csv": (475343, "05ea13be8042f66ee51516ccf9fd28ca43972498a69748a9e89b5b1ca280b037"),
    "regions.txt": (614999, "d77319b1ad8a51af2c97ffa5d23d5458e95356b1926e9ae4e0ab821cc7e492a3"),
}
MOP_BATCHES = tuple(f"09{letter}" for letter in "ABCDEFGHIJKL")

DYNGEN_FILES = tuple(
    f"adata_pPRm_{part}_cv_{k}.h5ad" for k in range(5) for part in ("train", "test")
)


@dataclass(frozen=True)
class Dataset:
    """What is known of a data set before its files are opened.

    `files_by_modality` are names below `folder`, in the order of modalities: one file with all
    cells, or a training and a test file (dyngen: such a pair per fold, shared by its modalities).
    Sizes are those of the complete set.
    """

    name: str
    title: str
    folder: str
    files_by_modality: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, str]  # what the values are; a modality left out is recognised
    label_key: str
    n_cells: int
    n_features: Mapping[str, int]
    n_groups: int
    folds: tuple
    source: str
    licence: str = LICENCE
    notes: tuple[str, ...] = ()  # known circularities that no split can undo
    collection: str = COLLECTION  # the folder below the data root that holds `folder`
    address: str | None = None  # where files lie that are not on Zenodo
    pinned: Mapping[str, tuple] = field(default_factory=dict)  # size and sha256, where known

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in order."""
        return tuple(self.files_by_modality)

    @property
    def files(self) -> tuple[str, ...]:
        """All the data set's files."""
        return tuple(dict.fromkeys(chain.from_iterable(self.files_by_modality.values())))

    @property
    def n_folds(self) -> int:
        """Number of stratified folds."""
        return sum(isinstance(fold, int) for fold in self.folds)

    def place(self, root: str | os.PathLike | None = None) -> Path:
        """The folder with the files."""
        return data_root(root) / self.collection / self.folder

    def files_of(self, modality: str, fold: int | str) -> tuple[str, ...]:
        """The files that hold a modality in one fold."""
        names = self.files_by_modality[modality]
        if self.name == "dyngen":
            names = tuple(name for name in names if name.endswith(f"_cv_{fold}.h5ad"))
        return names


DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in [
        Dataset(
            name="dyngen",
            title="Dyngen: simulated cells of a linear trajectory",
            folder="Dyngen",
            files_by_modality=dict.fromkeys(("dna", "pre_mrna", "mrna", "protein"), DYNGEN_FILES),
            kinds={},
            label_key="label",
            n_cells=500,
            n_features={"dna": 100, "pre_mrna": 100, "mrna": 100, "protein": 100},
            n_groups=3,
            folds=tuple(range(5)),
            source=UNITEDNET + "; simulator: Cannoodt et al., Nat Commun 12, 3942 (2021)",
        ),
        Dataset(
            name="dbitseq",
            title="DBiT-seq: a mouse embryo, RNA and protein by pixel",
            folder="DBiTSeq",
            files_by_modality={
                "rna": ("adata_rna_train.h5ad", "adata_rna_test.h5ad"),
                "protein": ("adata_protein_train.h5ad", "adata_protein_test.h5ad"),
                "niche": ("adata_niche_rna_train.h5ad", "adata_niche_rna_test.h5ad"),
            },
            kinds={"rna": "normalised", "protein": "normalised", "niche": "normalised"},
            label_key="cell_type",
            n_cells=936,
            n_features={"rna": 568, "protein": 22, "niche": 568},
            n_groups=13,
            folds=(0, *(f"block-{k}" for k in range(5))),
            source=UNITEDNET + "; measured by Liu Y. et al., Cell 183, 1665 (2020)",
            notes=(
                "the groups are regions of tissue, and fold 0 is random over pixels: coordinates "
                "alone then classify as well as all modalities do; block-0 … block-4 are honest",
                "the published niche averages neighbours on the whole grid, so that the RNA of "
                'test pixels is part of the training niche (niche="train" undoes that)',
            ),
        ),
        Dataset(
            name="patchseq",
            title="Patch-seq: inhibitory neurons of the mouse visual cortex",
            folder="patchseq",
            files_by_modality={
                "rna": ("adata_RNA_TEM.h5ad",),
                "ephys": ("adata_Ephys_TEM.h5ad",),
                "morph": ("adata_Morph_TEM.h5ad",),
            },
            kinds={"rna": "normalised", "ephys": "continuous", "morph": "continuous"},
            label_key="cell_type_TEM",
            n_cells=448,
            n_features={"rna": 1252, "ephys": 68, "morph": 514},
            n_groups=27,
            folds=tuple(range(10)),
            source=UNITEDNET + "; measured by Gouwens N. et al., Cell 183, 935 (2020)",
            notes=(
                "the MET types were defined from these very modalities",
                "the genes were selected by the data's authors on all cells",
            ),
        ),
        Dataset(
            name="atacseq",
            title="ATAC + gene expression: human bone marrow, 13 batches",
            folder="ATACseq",
            files_by_modality={"atac": ("atac_processed.h5ad",), "rna": ("gex_processed.h5ad",)},
            kinds={"atac": "binary", "rna": "scaled"},
            label_key="cell_type",
            n_cells=69_249,
            n_features={"atac": 13_634, "rna": 4_000},
            n_groups=22,
            folds=BMMC_BATCHES,
            source=UNITEDNET + "; measured by Luecken M. et al., NeurIPS 2021, GEO GSE194122",
            notes=(
                "genes and peaks were selected, and genes scaled, by the data's authors on all "
                "cells, test cells among them",
            ),
        ),
        Dataset(
            name="mop",
            title="Mouse cortex: RNA and chromatin of 10,309 nuclei, 12 batches",
            folder="MOp_SNAREseq2",
            collection="",
            address=MOP_FILES,
            pinned=MOP_PINNED,
            files_by_modality={
                "rna": ("GxC1.npz", "genes.txt", "meta_c1.csv"),
                "atac": ("RxC1.npz", "regions.txt", "meta_c1.csv"),
            },
            kinds={"rna": "counts", "atac": "peaks"},
            label_key="Ident",
            n_cells=10_309,
            n_features={"rna": 1_677, "atac": 25_734},
            n_groups=23,
            folds=(*range(5), *MOP_BATCHES),
            source="measured by Chen S. et al., Nat Biotechnol 37, 1452 (2019), GEO GSE126074: "
            "SNARE-seq of adult mouse cerebral cortex; files: github.com/PeterZZQ/scMoMaT, commit "
            "dbd954d, data/real/MOp_5batches, where they stand for primary motor cortex",
            licence="of the files, as stated at github.com/PeterZZQ/scMoMaT",
            notes=(
                "the types were defined by the data's authors from this very RNA",
                "genes and peaks were selected by others on all cells",
                "the type Mis is a rest: nuclei that no other type would have",
            ),
        ),
    ]
}


def data_root(root: str | os.PathLike | None = None) -> Path:
    """The folder that holds the collection: `root`, else `$SCMOE_DATA`, else `data`."""
    return Path(root or os.environ.get("SCMOE_DATA") or "data")


def list_datasets(root: str | os.PathLike | None = None) -> pd.DataFrame:
    """The data sets, one row each, and in column `available` whether their files are here.

    The others are name, cells, modalities, features, labels, folds, licence.
    """
    rows = [
        {
            "name": d.name,
            "cells": d.n_cells,
            "modalities": ", ".join(d.modalities),
            "features": ", ".join(str(d.n_features[m]) for m in d.modalities),
            "labels": f"{d.label_key} ({d.n_groups})",
            "folds": ", ".join(str(fold) for fold in d.folds),
            "licence": d.licence,
            "available": all((d.place(root) / name).is_file() for name in d.files),
        }
        for d in DATASETS.values()
    ]
    return pd.DataFrame(rows)
