"""Everything a MuData holds into an h5mu file, with its own types and under its own names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem
from mudata import MuData
from pandas.api.types import infer_dtype, is_extension_array_dtype, is_object_dtype

from scmoe.data.cells import prefixed
from scmoe.data.check import DataError, check_cells, expect, expect_mudata
from scmoe.data.screen import DEEPEST
from scmoe.keep import replaced

LIBVER = "v108"  # HDF5's older layout cannot hold the names of a table of more than 4,000 columns
MARK = "scmoe"  # encoder of a file in which names may be escaped
ALIGNED = ("obsm", "varm", "obsp", "varp")
TYPES = {"boolean": ("bool", "boolean"), "integer": ("int64", "Int64")}  # and with missing ones
NUMBERS = ("floating", "mixed-integer-float", "empty")


def write(mdata: MuData, path: str | os.PathLike) -> Path:
    """Write an h5mu file, whole or not at all, that `scmoe.data.read` gives back as it was.

    Columns keep their types; one that HDF5 has no type for (dates, intervals, values of several
    types) is written as text. Names that HDF5 cannot hold ("HLA-A/B/C", "_index", one that occurs
    twice) are escaped, and read as they were. `mdata` itself is left as it is.

    Raises
    ------
    DataError
        Something in `uns`, say, that no file can hold; `check_writable` finds it beforehand.
    """
    named = isinstance(path, str | os.PathLike) and Path(path).suffix == ".h5mu"
    expect(named, "path", path, "a name that ends in .h5mu")
    path = Path(path)
    with replaced(path) as part:
        with h5py.File(part, "w", libver=LIBVER, userblock_size=512) as file:
            _put(file, mdata)
        with open(part, "r+b") as file:
            file.write(f"MuData (format-version={mudata.__mudataversion__};creator=scmoe)".encode())
    return path


def check_writable(mdata: MuData) -> None:
    """Raise now the DataError that `write` would; all but the matrices is tried in memory."""
    with h5py.File("tried", "w", driver="core", backing_store=False, libver=LIBVER) as file:
        _put(file, mdata, matrices=False)


def _put(file: h5py.File, mdata: MuData, matrices: bool = True) -> None:
    expect_mudata(mdata)
    check_cells(mdata, list(mdata.mod))
    with anndata.settings.override(allow_write_nullable_strings=True):
        for place, value in _elements(mdata):
            _put_one(file, place, value, matrices)
    kinds = [(file, "MuData", mudata.__mudataversion__)]
    kinds += [(group, "anndata", mudata.__anndataversion__) for group in file["mod"].values()]
    for group, kind, version in kinds:
        group.attrs.update({"encoding-type": kind, "encoding-version": version, "encoder": MARK})
    file["mod"].attrs["mod-order"] = [escape(name) for name in mdata.mod]
    file.attrs["axis"] = mdata.axis


def _elements(mdata: MuData) -> Iterator[tuple[tuple[str, ...], object]]:
    """All parts of a MuData and where they go."""
    held = mdata.obs
    twice = [name for name, column in prefixed(mdata) if name in held and held[name].equals(column)]
    yield ("obs",), held.drop(columns=twice)  # `read` makes these from the modalities again
    parts = ("var", *ALIGNED, "uns", "obsmap", "varmap")
    yield from (((name,), getattr(mdata, name)) for name in parts)
    for name, adata in mdata.mod.items():
        parts = ("X", "obs", "var", *ALIGNED, "layers", "uns")
        yield from ((("mod", name, part), getattr(adata, part)) for part in parts)
        if adata.raw is not None:
            parts = {part: getattr(adata.raw, part) for part in ("X", "var", "varm")}
            yield ("mod", name, "raw"), parts


def _put_one(file: h5py.File, place: tuple, value, matrices: bool) -> None:
    """Write one part; a dict's entries one by one, so that an error can say which it is."""
    key = "/".join(map(escape, place))
    if len(place) > DEEPEST or (
        isinstance(value, Mapping) and len({str(name) for name in value}) < len(value)
    ):
        why = "lies too deep" if len(place) > DEEPEST else "has two keys of one name"
        raise DataError(f"{'/'.join(place[:9])} cannot be written to a file: it {why}")
    if isinstance(value, Mapping):
        kind = "raw" if place[:1] + place[2:] == ("mod", "raw") else "dict"
        group = file.require_group(key)
        group.attrs.update({"encoding-type": kind, "encoding-version": "0.1.0"})
        for name, part in value.items():
            _put_one(file, (*place, str(name)), part, matrices)
        return
    if isinstance(value, (tuple, set, frozenset)):
        value = list(value)
    numbers = getattr(getattr(value, "dtype", None), "kind", None) in tuple("fiub")
    if (value is None and place[-1] == "X") or (numbers and np.ndim(value) > 1 and not matrices):
        return
    try:
        write_elem(file, key, _table(value) if isinstance(value, pd.DataFrame) else value)
    except Exception as error:
        notes = [str(note).split(" of <")[0] for note in getattr(error, "__notes__", ())]
        said = "; ".join([*str(error).strip().splitlines()[:1], *notes])
        raise DataError(
            f"{'/'.join(place)} cannot be written to a file: it is a {type(value).__name__} "
            f"({said}); remove it, or make it text or numbers"
        ) from error


def _table(frame: pd.DataFrame) -> pd.DataFrame:
    """The same table with names and types that a file can hold."""
    index = pd.Index(frame.index.astype(str).astype(object), name=frame.index.name)
    names = escaped(frame.columns, reserved=("_index", frame.index.name))
    columns = {}
    for i, name in enumerate(names):
        try:
            columns[name] = _column(frame.iloc[:, i]).set_axis(index)
        except ValueError as error:
            error.add_note(f"column '{name}'")
            raise
    return pd.DataFrame(columns, index=index)


def _column(column: pd.Series) -> pd.Series:
    """The same values in a type that a file can hold: their own, else text."""
    dtype = column.dtype
    if isinstance(dtype, pd.SparseDtype):
        return column.sparse.to_dense()
    if isinstance(dtype, pd.CategoricalDtype):
        if infer_dtype(dtype.categories) in ("string", "integer", "floating", "empty"):
            return column
        return column.cat.rename_categories(dtype.categories.astype(str))
    kind = infer_dtype(column, skipna=True)
    if is_object_dtype(dtype) and kind in TYPES:
        with suppress(OverflowError):  # else as text
            return column.astype(TYPES[kind][int(column.isna().any())])
        kind = "large"
    if (is_object_dtype(dtype) or is_extension_array_dtype(dtype)) and kind in NUMBERS:
        return column.astype(float)
    if kind not in ("string", *TYPES, *NUMBERS):
        column = column.astype(object).where(column.isna(), column.astype(str))
    if is_object_dtype(column) and column.isna().any():
        return column.astype("category")
    return column


def escape(name: object, reserved: Iterable = ()) -> str:
    """A name as HDF5 can hold it; most are themselves."""
    name = str(name)
    bad = name in ("", ".", "..", *reserved) or re.search("[/\0]|^%-", name)
    return "%-" + quote(name, safe="") if bad else name


def escaped(names: Iterable, reserved: Iterable = ()) -> list[str]:
    """Names of columns, escaped also where they occur before."""
    taken: dict[str, None] = {}
    for name in names:
        text = escape(name, reserved)
        while text in taken:
            text = text + "%+" if text.startswith("%-") else escape(name, [str(name)])
        taken[text] = None
    return list(taken)


def unescape(name: str) -> str:
    """The name that was escaped."""
    return unquote(name[2:].rstrip("%+")) if name.startswith("%-") else name


def unescaped(value: object) -> object:
    """A table, a dict or a modality with the names as they were before they were escaped."""
    if isinstance(value, AnnData):
        for part in ("obs", "var", *ALIGNED, "layers", "uns"):
            setattr(value, part, unescaped(getattr(value, part)))
        if value.raw is not None:
            value.raw.var.columns = [unescape(column) for column in value.raw.var]
    elif isinstance(value, pd.DataFrame):
        return value.set_axis([unescape(column) for column in value], axis=1)
    elif isinstance(value, Mapping):
        return {unescape(key): unescaped(part) for key, part in value.items()}
    return value
