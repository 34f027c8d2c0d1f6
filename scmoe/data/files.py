"""The data sets' files, or simulated cells in their place, opened but not yet cut."""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scmoe.data.catalog import Dataset
from scmoe.data.cells import Cells
from scmoe.data.check import DataError, some
from scmoe.data.fetch import is_from_zenodo
from scmoe.data.screen import reading

DYNGEN_KEYS = {"dna": "D", "pre_mrna": "p", "mrna": "m", "protein": "P"}  # inferred, not documented

EXCERPT = 0.9  # of the published number of cells or features; less is an excerpt


class Opened(NamedTuple):
    """A data set's cells and where they came from."""

    cells: Cells
    data_source: str
    notes: list[str]
    checksums: dict[str, str]


def read_h5ad(path: Path, backed: bool = False) -> AnnData:
    """Read an h5ad file; a damaged one is a DataError that names it."""
    with reading(path, "; fetch it again"):
        return anndata.read_h5ad(path, backed="r" if backed else None)


def checksum(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256; of a folder's (zarr), over all its files."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()} {checksum(file)}\n".encode())
        return digest.hexdigest()[:16]
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def checksums(paths: Sequence[str | os.PathLike]) -> dict[str, str]:
    """Each file's checksum by its name; where files share one, by as many folders as tell them."""
    paths = [Path(path).absolute() for path in paths]
    for depth in range(1, 1 + max((len(path.parts) for path in paths), default=0)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return {name: checksum(path) for name, path in zip(names, paths, strict=True)} if paths else {}


def open_set(
    dataset: Dataset,
    fold: int | str,
    root: str | os.PathLike | None,
    modalities: list[str],
    allow_standin: bool,
) -> Opened:
    """Open a data set's files, or simulate its stand-in where files are missing and it may be."""
    folder = dataset.place(root)
    paths = {m: [folder / name for name in dataset.files_of(m, fold)] for m in modalities}
    distinct = list(dict.fromkeys(path for group in paths.values() for path in group))
    missing = [path for path in distinct if not path.is_file()]
    if missing and allow_standin:
        return _simulated(dataset, modalities)
    if missing:
        raise DataError(
            f"{dataset.name}: no file {some(missing, 12)}. Fetch them with "
            f"`python -m scmoe.data fetch {dataset.name}`, set SCMOE_DATA to the folder that "
            f"holds {dataset.collection or dataset.folder}/, or pass allow_standin=True to work "
            "with simulated cells"
        )
    if dataset.name == "dyngen":
        cells = _from_obsm(dataset, distinct, modalities)
    elif dataset.name == "mop":
        cells = _from_npz(dataset, paths)
    else:
        cells = _from_files(dataset, paths)
    found = checksums(distinct)
    source, notes = _compare_with_catalogue(dataset, cells, distinct)
    pinned = {name: value[:16] for name, (_, value) in dataset.pinned.items()}
    if source == "local" and pinned and found.items() <= pinned.items():
        source = "published"
    return Opened(cells, source, notes, found)


def _from_files(dataset: Dataset, paths: dict[str, list[Path]]) -> Cells:
    """Modalities in files of their own; of two files, one has the training, one the test cells."""
    mod, obs, rows = {}, None, {}
    for name, files in paths.items():
        parts = [read_h5ad(path, backed=len(files) == 1) for path in files]
        for part, path in zip(parts, files, strict=True):
            if dataset.label_key not in part.obs:
                raise DataError(
                    f"{path}: no column '{dataset.label_key}' in obs; there are: "
                    f"{some(part.obs.columns, 20)}; fetch the file again"
                )
        if len(parts) == 2:
            for part, half in zip(parts, ("train", "test"), strict=True):
                part.obs["published_split"] = half
        mod[name] = parts[0] if len(parts) == 1 else anndata.concat(parts, merge="same")
        if obs is None:
            obs = mod[name].obs
            spatial = mod[name].obsm.get("spatial")
        rows[name] = _aligned(mod[name], obs, dataset.label_key, name, files)
    for adata in mod.values():
        adata.obs = adata.obs[[]]  # annotation is about cells, not about one modality
    obsm = {} if spatial is None else {"spatial": np.array(spatial)}
    return Cells(obs, mod, rows, dataset.label_key, dataset.kinds, obsm)


def _from_npz(dataset: Dataset, paths: dict[str, list[Path]]) -> Cells:
    """Mop's layout: sparse counts, features × cells; names of features; a table of cells."""
    mod = {}
    for name, (matrix, features, table) in paths.items():
        try:
            X = sp.load_npz(matrix).T.tocsr().astype(np.float32)  # never with pickle
            obs = pd.read_csv(table, index_col=0)
            names = features.read_text().split()
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            listed = ", ".join(str(path) for path in (matrix, features, table))
            raise DataError(
                f"cannot read one of {listed}: it is damaged ({error}); fetch it again"
            ) from error
        columns = [dataset.label_key, "Batch"]
        if X.shape != (len(obs), len(names)) or not set(columns) <= set(obs):
            raise DataError(
                f"{matrix} is {X.shape[0]} cells × {X.shape[1]} features, {table.name} has "
                f"{len(obs)} cells (columns {some(obs.columns)}) and {features.name} "
                f"{len(names)} names: they do not belong together; fetch the files again"
            )
        obs = obs[columns].rename(columns={"Batch": "batch"}).astype(str).astype("category")
        mod[name] = AnnData(X, obs=obs[[]], var=pd.DataFrame(index=names))
    rows = dict.fromkeys(mod, np.arange(len(obs)))
    return Cells(obs, mod, rows, dataset.label_key, dataset.kinds)


def _aligned(adata: AnnData, obs: pd.DataFrame, label_key: str, name: str, files) -> np.ndarray:
    """Where the cells of `obs` are in `adata`; refuses other cells and other labels."""
    listed = some([path.name for path in files])
    if not adata.obs_names.is_unique:
        raise DataError(f"modality '{name}' ({listed}): cell names repeat; fetch the files again")
    rows = adata.obs_names.get_indexer(obs.index)
    if (rows < 0).any() or len(rows) != adata.n_obs:
        raise DataError(
            f"modality '{name}' ({listed}) is not about the same cells as the other files: "
            f"{(rows >= 0).sum()} of {len(obs)} cells are shared; fetch the files again"
        )
    theirs = adata.obs.iloc[rows]
    for column in {label_key, "published_split"} & set(obs):
        if not np.array_equal(theirs[column].astype(str), obs[column].astype(str)):
            raise DataError(
                f"modality '{name}' ({listed}): obs['{column}'] differs from the other files'; "
                "fetch the files again"
            )
    return rows


def _from_obsm(dataset: Dataset, files: list[Path], modalities: list[str]) -> Cells:
    """Dyngen's layout: a training and a test file, modalities in `obsm` under one-letter keys."""
    parts = [read_h5ad(path) for path in files]
    for part, path, half in zip(parts, files, ("train", "test"), strict=True):
        keys = [DYNGEN_KEYS[name] for name in modalities]
        absent = [key for key in keys if key not in part.obsm]
        if absent or dataset.label_key not in part.obs:
            raise DataError(
                f"{path}: obsm needs {some(keys)} and obs '{dataset.label_key}'; there are obsm: "
                f"{some(part.obsm.keys()) or 'none'}, obs: {some(part.obs.columns, 20) or 'none'}"
            )
        part.obs["published_split"] = half
    obs = pd.concat([part.obs for part in parts])
    if not obs.index.is_unique:  # both files number their cells from zero
        obs.index = obs["published_split"] + "-" + obs.index
    mod = {}
    for name in modalities:
        blocks = [part.obsm[DYNGEN_KEYS[name]] for part in parts]
        genes = getattr(blocks[0], "columns", None)
        if genes is None:
            same = blocks[0].shape[1] == parts[0].n_vars
            genes = parts[0].var_names if same else range(blocks[0].shape[1])
        var = pd.DataFrame(index=pd.Index(genes).astype(str))
        X = np.vstack([b.toarray() if sp.issparse(b) else np.asarray(b) for b in blocks])
        mod[name] = AnnData(X.astype(np.float32), obs=obs[[]], var=var)
    rows = dict.fromkeys(modalities, np.arange(len(obs)))
    return Cells(obs, mod, rows, dataset.label_key, dataset.kinds)


def _compare_with_catalogue(
    dataset: Dataset, cells: Cells, paths: list[Path]
) -> tuple[str, list[str]]:
    """Name the source, and say by how much the files differ from the published ones.

    Much smaller files are an excerpt; "zenodo" are only files that `scmoe.data.fetch` got from
    there and that are still the same, byte for byte.
    """
    sizes = [("cells", len(cells.obs), dataset.n_cells)]
    sizes += [(f"{m} features", a.n_vars, dataset.n_features[m]) for m, a in cells.mod.items()]
    other = ", ".join(f"{have:,} of {all_:,} {what}" for what, have, all_ in sizes if have != all_)
    if any(have < EXCERPT * all_ for _, have, all_ in sizes):
        return "excerpt", [f"excerpt: {other}"]
    if other:
        return "local", [f"not the published size: {other}"]
    return ("zenodo" if all(map(is_from_zenodo, paths)) else "local"), []


def _simulated(dataset: Dataset, modalities: list[str]) -> Opened:
    """Simulated cells in the data set's place; a warning says so for the measured sets."""
    if dataset.name == "dyngen":
        from scmoe.data.dyngen import simulate_dyngen

        mdata, source = simulate_dyngen(seed=0), "simulated"
        note = (
            f"simulated: {mdata.n_obs} cells by scmoe.data.simulate_dyngen, not the published files"
        )
    else:
        from scmoe.data.standin import standin

        mdata, source = standin(dataset.name, seed=0), "stand-in"
        note = mdata.uns["standin"]
        warnings.warn(
            f"files of {dataset.name} not found: using a {note}. Nothing computed from it is about "
            f"real cells; `python -m scmoe.data fetch {dataset.name}` gets them",
            stacklevel=4,
        )
    cells = Cells.of(mdata, dataset.label_key, dataset.kinds)
    cells.mod = {name: cells.mod[name] for name in modalities}
    return Opened(cells, source, [note], {})
