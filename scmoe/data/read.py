"""The user's own cells, from objects or files of the usual formats."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import anndata
import mudata
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scmoe.data.cells import make_mudata, quiet
from scmoe.data.check import DataError, check_unique, some

FEATURE_TYPES = {"Gene Expression": "rna", "Antibody Capture": "protein", "Peaks": "atac"}


def read(
    source: MuData | AnnData | str | os.PathLike | Sequence | Mapping[str, object],
) -> MuData:
    """Make a MuData of cells as measured.

    Parameters
    ----------
    source
        One of: a MuData (given back as it is); an AnnData; a path to h5mu, h5ad, zarr or 10x
        h5; a list of AnnData or paths; a dict of them by modality name. A list's modalities are
        called by their feature types ("rna", "protein", "atac"), else by their file's name, else
        "modality1", "modality2", … One matrix of several feature types becomes several
        modalities. Cells are matched by `obs_names`; one that a modality lacks stays missing.

    Returns
    -------
    MuData whose `obs` has the modalities' columns too, where these agree on the cells they share.
    Matrices of AnnData given in memory are not copied.

    Raises
    ------
    DataError
        No such file, a damaged one, or one of another format; cells that repeat.
    """
    if isinstance(source, MuData):
        return source
    if isinstance(source, Mapping):
        mod = {str(name): _single(part, str(name)) for name, part in source.items()}
    elif isinstance(source, Sequence) and not isinstance(source, str):
        mod = {}
        for i, part in enumerate(source):
            for name, adata in _by_type(_open(part), _stem(part) or f"modality{i + 1}").items():
                if name in mod:
                    raise DataError(
                        f"two modalities called '{name}'; name them: read({{'{name}': …, …}})"
                    )
                mod[name] = adata
    else:
        opened = _open(source)
        if isinstance(opened, MuData):
            return opened
        mod = _by_type(opened, _stem(source) or "rna")
    if not mod:
        raise DataError("nothing to read: no modality given")
    for name, adata in mod.items():
        check_unique(adata, name)
    mdata = make_mudata(mod)
    mdata.obs = _shared_columns(mod, mdata.obs_names)
    return mdata


def _single(part, name: str) -> AnnData:
    adata = _open(part)
    if isinstance(adata, MuData):
        raise DataError(f"modality '{name}' is a whole MuData; give one of its modalities")
    return adata


def _open(part) -> AnnData | MuData:
    """An object as it is, or a file's content."""
    if isinstance(part, (AnnData, MuData)):
        return part
    if not isinstance(part, (str, os.PathLike)):
        raise DataError(
            f"cannot read a {type(part).__name__}; give a MuData, AnnData, or a path to h5mu, "
            "h5ad, zarr or 10x h5"
        )
    path = Path(part)
    if not path.exists():
        raise DataError(f"no file {path}")
    readers = {".h5mu": mudata.read_h5mu, ".h5ad": anndata.read_h5ad, ".h5": _read_10x}
    readers[".zarr"] = mudata.read_zarr if (path / "mod").is_dir() else anndata.read_zarr
    if path.suffix not in readers:
        raise DataError(f"cannot read {path}: known endings are {some(readers)}")
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how older files were written
            return readers[path.suffix](path)
    except Exception as error:
        raise DataError(
            f"cannot read {path}: it is damaged, or not of the format its ending says ({error})"
        ) from error


def _read_10x(path: Path) -> AnnData:
    from scanpy import read_10x_h5  # slow to import, and for this only

    adata = read_10x_h5(path, gex_only=False)
    adata.var_names_make_unique()  # gene symbols repeat; the identifiers stay in var["gene_ids"]
    return adata


def _stem(part) -> str:
    return Path(part).stem if isinstance(part, (str, os.PathLike)) else ""


def _by_type(adata: AnnData | MuData, name: str) -> dict[str, AnnData]:
    """Modalities by feature type, where the features have types; else one, called `name`."""
    if isinstance(adata, MuData):
        return dict(adata.mod)
    if "feature_types" not in adata.var:
        return {name: adata}
    types = adata.var["feature_types"].astype(str)
    called = {kind: FEATURE_TYPES.get(kind, kind) for kind in dict.fromkeys(types)}
    if len(called) == 1:
        return {called[types.iloc[0]]: adata}
    return {new: adata[:, (types == kind).to_numpy()].copy() for kind, new in called.items()}


def _shared_columns(mod: Mapping[str, AnnData], cells: pd.Index) -> pd.DataFrame:
    """The modalities' annotation of cells, by column, where modalities do not disagree."""
    obs = pd.DataFrame(index=cells)
    for column in dict.fromkeys(column for adata in mod.values() for column in adata.obs):
        merged, *others = (
            adata.obs[column].astype(object).reindex(cells)
            for adata in mod.values()
            if column in adata.obs
        )
        for other in others:
            both = merged.notna() & other.notna()
            if not merged[both].equals(other[both]):
                break
            merged = merged.where(merged.notna(), other)
        else:
            obs[column] = merged.infer_objects()
    return obs
