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
from scmoe.data.dyngen import simulate_dyngen
from scmoe.data.fetch import hash_of, is_from_zenodo
from scmoe.data.screen import reading
from scmoe.data.standin import standin

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
    return hash_of(path, "sha256")[:16]


def checksums(paths: Sequence[str | os.PathLike]) -> dict[str, str]:
    """Each file's checksum by its name; where files share one, by as many folders as tell them."""
    paths, depth = [Path(path).absolute() for path in paths], 1
    while len({path.parts[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    return {"/".join(path.parts[-depth:]): checksum(path) for path in paths}


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
    if missing and not allow_standin:
        raise DataError(
            f"{dataset.name}: no file {some(missing, 12)}. Fetch them with "
            f"`python -m scmoe.data fetch {dataset.name}`, set SCMOE_DATA to the folder that "
            f"holds {dataset.collection or dataset.folder}/, or pass allow_standin=True to work "
            "with simulated cells"
        )
    if missing:
        cells, source, notes = _simulated(dataset)
        cells.mod = {name: cells.mod[name] for name in modalities}
    else:
        read = {"dyngen": _from_obsm, "mop": _from_npz}.get(dataset.name, _from_files)
        cells = read(dataset, paths)
        source, notes = _compare_with_catalogue(dataset, cells, distinct)
    for name, adata in cells.mod.items():
        if name in dataset.kinds:
            adata.uns["kind"] = dataset.kinds[name]
    found = {} if missing else checksums(distinct)
    pinned = {name: value[:16] for name, (_, value) in dataset.pinned.items()}
    if source == "local" and pinned and found.items() <= pinned.items():
        source = "published"
    return Opened(cells, source, notes, found)


def _read_parts(dataset: Dataset, files: list[Path]) -> list[AnnData]:
    """A modality's file; of two files, one has the training, one the test cells."""
    parts = [read_h5ad(path, backed=len(files) == 1) for path in files]
    for part, path, half in zip(parts, files, ("train", "test"), strict=False):
        if dataset.label_key not in part.obs:
            raise DataError(
                f"{path}: no column '{dataset.label_key}' in obs; there are: "
                f"{some(part.obs, 20) or 'none'}; fetch the file again"
            )
        if len(parts) == 2:
            part.obs["published_split"] = half
    return parts


def _from_files(dataset: Dataset, paths: dict[str, list[Path]]) -> Cells:
    """Modalities in files of their own, all about the same cells."""
    mod = {}
    for name, files in paths.items():
        parts = _read_parts(dataset, files)
        mod[name] = parts[0] if len(parts) == 1 else anndata.concat(parts, merge="same")
        first = next(iter(mod.values()))
        obs, spatial = first.obs, first.obsm.get("spatial")
        said = f"modality '{name}' ({some([path.name for path in files])})"
        names = mod[name].obs_names
        if not names.is_unique:
            raise DataError(f"{said}: cell names repeat; fetch the files again")
        rows = names.get_indexer(obs.index)
        if (rows < 0).any() or len(rows) != len(names):
            raise DataError(
                f"{said} is not about the same cells as the other files: "
                f"{(rows >= 0).sum()} of {len(obs)} cells are shared; fetch the files again"
            )
        for column in {dataset.label_key, "published_split"} & set(obs):
            if (mod[name].obs[column].iloc[rows].astype(str) != obs[column].astype(str)).any():
                raise DataError(
                    f"{said}: obs['{column}'] differs from the other files'; fetch the files again"
                )
    for adata in mod.values():
        adata.obs = adata.obs[[]]  # annotation is about cells, not about one modality
    return Cells(obs, mod, {} if spatial is None else {"spatial": np.array(spatial)})


def _from_npz(dataset: Dataset, paths: dict[str, list[Path]]) -> Cells:
    """Mop's layout: sparse counts, features × cells; names of features; a table of cells."""
    mod = {}
    for name, (matrix, features, table) in paths.items():
        try:
            X = sp.load_npz(matrix).T.tocsr().astype(np.float32)  # never with pickle
            obs = pd.read_csv(table, index_col=0)
            names = features.read_text().split()
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"cannot read one of {matrix}, {features}, {table}: it is damaged ({error}); fetch "
                "it again"
            ) from error
        columns = [dataset.label_key, "Batch"]
        if X.shape != (obs.index.nunique(), len(names)) or not set(columns) <= set(obs):
            raise DataError(
                f"{matrix} is {X.shape[0]} cells × {X.shape[1]} features, {table.name} has "
                f"{len(obs)} cells (columns {some(obs.columns)}) and {features.name} "
                f"{len(names)} names: they do not belong together; fetch the files again"
            )
        obs = obs[columns].rename(columns={"Batch": "batch"}).astype(str).astype("category")
        mod[name] = AnnData(X, obs=obs[[]], var=pd.DataFrame(index=names))
    return Cells(obs, mod)


def _from_obsm(dataset: Dataset, paths: dict[str, list[Path]]) -> Cells:
    """Dyngen's layout: a training and a test file, modalities in `obsm` under one-letter keys."""
    files = next(iter(paths.values()))
    parts = _read_parts(dataset, files)
    keys = {name: DYNGEN_KEYS[name] for name in paths}
    for part, path in zip(parts, files, strict=True):
        if not set(keys.values()) <= set(part.obsm):
            raise DataError(
                f"{path}: obsm needs {some(keys.values())}; there are: {some(part.obsm) or 'none'}"
            )
    obs = pd.concat([part.obs for part in parts])
    if not obs.index.is_unique:  # both files number their cells from zero
        obs.index = obs["published_split"] + "-" + obs.index
    mod = {}
    for name, key in keys.items():
        blocks = [part.obsm[key] for part in parts]
        genes = getattr(blocks[0], "columns", None)
        if genes is None:
            same = blocks[0].shape[1] == parts[0].n_vars
            genes = parts[0].var_names if same else range(blocks[0].shape[1])
        var = pd.DataFrame(index=pd.Index(genes).astype(str))
        X = np.vstack([b.toarray() if sp.issparse(b) else np.asarray(b) for b in blocks])
        mod[name] = AnnData(X.astype(np.float32), obs=obs[[]], var=var)
    return Cells(obs, mod)


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


def _simulated(dataset: Dataset) -> tuple[Cells, str, list[str]]:
    """Simulated cells in the data set's place; a warning says so for the measured sets."""
    if dataset.name == "dyngen":
        mdata, n = simulate_dyngen(seed=0), dataset.n_cells
        note = f"simulated: {n} cells by scmoe.data.simulate_dyngen, not the published files"
        return Cells.of(mdata), "simulated", [note]
    mdata = standin(dataset.name, seed=0)
    warnings.warn(
        f"files of {dataset.name} not found: using a {mdata.uns['standin']}. Nothing computed from "
        f"it is about real cells; `python -m scmoe.data fetch {dataset.name}` gets them",
        stacklevel=4,
    )
    return Cells.of(mdata), "stand-in", [mdata.uns["standin"]]
