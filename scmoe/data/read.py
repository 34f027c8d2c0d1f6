"""The user's own cells, from objects and files of the usual formats."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from anndata.io import read_elem, sparse_dataset
from mudata import MuData

from scmoe.data.blocks import on_disk
from scmoe.data.cells import make_mudata, prefixed, quiet, typed
from scmoe.data.check import DataError, DataWarning, check_unique, some
from scmoe.data.screen import reading
from scmoe.data.write import ALIGNED, MARK, unescaped

FEATURE_TYPES = {"Gene Expression": "rna", "Antibody Capture": "protein", "Peaks": "atac"}


def read(
    source: MuData | AnnData | str | os.PathLike | Sequence | Mapping[str, object],
    backed: bool = False,
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
    backed
        Leave the matrices X of h5mu, h5ad and zarr in their files, which may be larger than memory;
        layers, graphs and tables of features by cell (`obsm` of a modality) are not read.

    Returns
    -------
    MuData whose `obs` has the modalities' columns too, each with its own type: under their own
    names where modalities are given apart and agree on the cells they share; as "rna:leiden", say,
    where they come from a MuData's file. Matrices of AnnData given in memory are not copied.

    Raises
    ------
    DataError
        No such file, a damaged one, one of another format, or one that might run code or bring in
        another file's content; cells that repeat.
    """
    if isinstance(source, MuData):
        return source
    if isinstance(source, Mapping):
        mod = {str(name): _open(part, backed) for name, part in source.items()}
        for name in (name for name, part in mod.items() if isinstance(part, MuData)):
            raise DataError(f"modality '{name}' is a whole MuData; give one of its modalities")
    elif isinstance(source, Sequence) and not isinstance(source, str | bytes):
        mod = {}
        for i, part in enumerate(source):
            for name, adata in _by_type(
                _open(part, backed), _stem(part) or f"modality{i + 1}"
            ).items():
                if name in mod:
                    raise DataError(
                        f"two modalities called '{name}'; name them: read({{'{name}': …, …}})"
                    )
                mod[name] = adata
    else:
        opened = _open(source, backed)
        if isinstance(opened, MuData):
            return opened
        mod = _by_type(opened, _stem(source) or "rna")
    if not mod:
        raise DataError("nothing to read: no modality given")
    for name, adata in mod.items():
        check_unique(adata.obs_names, name, "obs_names", "drop the copies, or")
    mdata = make_mudata(mod)
    mdata.obs = _shared_columns(mod, mdata.obs_names)
    return mdata


def _open(part, backed: bool) -> AnnData | MuData:
    """An object as it is, or a file's content."""
    if isinstance(part, (AnnData, MuData)):
        return part
    if not isinstance(part, (str, os.PathLike)):
        raise DataError(
            f"cannot read a {type(part).__name__}; give a MuData, AnnData, or a path to h5mu, "
            "h5ad, zarr or 10x h5"
        )
    path = Path(part)
    whole, one = (partial(reader, backed=backed) for reader in (_read_mudata, _read_one))
    readers = {".h5mu": whole, ".h5ad": one, ".h5": _read_10x}
    readers[".zarr"] = whole if (path / "mod").is_dir() else one
    if path.exists() and path.suffix not in readers:
        raise DataError(f"cannot read {path}: known endings are {some(readers)}")
    with reading(path), quiet():
        return readers[path.suffix](path)


def _group(path: Path) -> h5py.File | zarr.Group:
    return zarr.open_group(path, mode="r") if path.suffix == ".zarr" else h5py.File(path)


def _read_one(path: Path, backed: bool) -> AnnData:
    if backed:
        return _in_file(_group(path))
    return _sound((anndata.read_zarr if path.suffix == ".zarr" else anndata.read_h5ad)(path))


def _in_file(group) -> AnnData:
    """One modality whose X stays in its file, open for as long as it is used."""
    X = group["X"]
    held = {part: read_elem(group[part]) for part in ("obs", "var", "uns") if part in group}
    return _sound(AnnData(X if on_disk(X) else sparse_dataset(X), **held))


def _sound(adata: AnnData) -> AnnData:
    """The same, if each row of a sparse matrix lies where it says; else a ValueError."""
    if sp.issparse(adata.X):
        adata.X.check_format()
    elif isinstance(adata.X, CSRDataset | CSCDataset):
        start = adata.X.group["indptr"][:]
        if start[0] or (np.diff(start) < 0).any() or start[-1] != adata.X.group["indices"].shape[0]:
            raise ValueError("its rows do not follow each other")
    return adata


def _read_mudata(path: Path, backed: bool) -> MuData:
    """A MuData's file, whatever version wrote it; mudata's own reading changes columns' types."""
    file, element = _group(path), _in_file if backed else read_elem
    with nullcontext() if backed or path.suffix == ".zarr" else file:
        if file.attrs.get("axis", 0) != 0:
            raise DataError(f"{path}: modalities share features, not cells")
        names = list(file["mod"].attrs.get("mod-order", file["mod"]))
        if sorted(names) != sorted(file["mod"]):
            raise ValueError(f"its mod-order, {some(names)}, is not of its modalities")
        mod = {name: _sound(element(file["mod"][name])) for name in names}
        parts = ("obs", *ALIGNED, "uns", "obsmap")
        held = {part: read_elem(file[part]) for part in parts if part in file}
        if file.attrs.get("encoder") == MARK:
            mod, held = unescaped(mod), unescaped(held)
    obs, masks = held.pop("obs"), {*mod, *held.pop("obsmap", ())}  # of who has which modality
    obsm, varm, obsp, varp = (
        {key: value for key, value in held.get(part, {}).items() if key not in masks}
        for part in ALIGNED
    )
    mdata = make_mudata(mod, obs, obsm, obsp, held.get("uns", {}))
    mdata.varm.update(varm)
    mdata.varp.update(varp)
    lost = obs.index[~obs.index.isin(mdata.obs_names)]
    if len(lost):
        warnings.warn(
            f"{path}: {len(lost)} cells have no modality and are left out: {some(lost)}",
            DataWarning,
            stacklevel=6,
        )
    pulled = {name: column for name, column in prefixed(mdata) if name not in mdata.obs}
    mdata.obs = pd.concat([mdata.obs, pd.DataFrame(pulled, mdata.obs_names)], axis=1)
    return mdata


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
        parts = [adata.obs[column] for adata in mod.values() if column in adata.obs]
        merged, *others = (part.astype(object).reindex(cells) for part in parts)
        for other in others:
            both = merged.notna() & other.notna()
            if not merged[both].equals(other[both]):
                break
            merged = merged.where(merged.notna(), other)
        else:
            obs[column] = typed(merged, [part.dtype for part in parts])
    return obs
