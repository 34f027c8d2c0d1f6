"""Files that nobody has vouched for are looked at before any value in them is read."""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import h5py
import psutil
import zarr

from scmoe.data.check import DataError, DataWarning, near, some

DEEPEST = 32  # groups within groups; what AnnData and MuData write has fewer than ten
MAX_RATIO = 1000  # values to stored bytes: gzip compresses no farther
MAX_METADATA = 1 << 26  # bytes of one JSON file of a zarr folder
# Codecs of zarr and numcodecs that only ever turn bytes into numbers and text. Others, such as
# numcodecs' "pickle", can run code when they decode.
CODECS = {
    "adler32", "astype", "bitround", "blosc", "bytes", "bz2", "categorize", "crc32", "crc32c",
    "delta", "endian", "fixedscaleoffset", "fletcher32", "gzip", "jenkins_lookup3", "lz4", "lzma",
    "packbits", "quantize", "sharding_indexed", "shuffle", "transpose", "vlen-array", "vlen-bytes",
    "vlen-utf8", "zlib", "zstd",
}  # fmt: skip
CODEC_KEYS = ("filters", "compressor", "codecs", "index_codecs")
NEVER_EMPTY = {"X", "data", "indices", "indptr", "_index"}  # arrays that are not all zero


@contextmanager
def reading(path: Path, remedy: str = "") -> Iterator[None]:
    """Screen a file, and turn whatever goes wrong while it is read into a DataError naming it."""
    if not path.exists():
        others = path.parent.iterdir() if path.parent.is_dir() else ()
        raise DataError(f"no file {path}{near(path.name, (other.name for other in others))}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how older files were written
            warnings.simplefilter("always", DataWarning)
            screen(path)
            yield
    except DataError:
        raise
    except PermissionError as error:
        raise DataError(f"cannot read {path}: you have no permission to") from error
    except Exception as error:
        if isinstance(error, MemoryError) or "allocat" in str(error):  # as HDF5 says it
            raise DataError(f"not enough memory to read {path} ({error})") from error
        raise DataError(
            f"cannot read {path}: it is damaged, or not of the format its ending says "
            f"({error}){remedy}"
        ) from error


def screen(path: Path) -> None:
    """Refuse a file, or zarr folder, that could run code, hang, or bring in another file's content.

    Looks at kinds of files, links and metadata, and reads no values.

    Raises
    ------
    DataError
        Not a plain file or folder of such; links or storage that lead elsewhere; a zarr codec that
        is not known to be harmless; chunks that are missing; more values than there is memory.
    """
    if path.suffix == ".zarr":
        n_bytes, stored = _screen_zarr(path)
    else:
        _expect_plain(path, path, path.stat())
        n_bytes, stored = _screen_hdf5(path), path.stat().st_size
    told = f"it says that it holds {n_bytes / 1e9:,.0f} GB of values"
    if n_bytes > MAX_RATIO * stored + (1 << 30):
        _refuse(path, f"{told}, in {stored / 1e6:,.1f} MB: it is damaged")
    if n_bytes > psutil.virtual_memory().total:
        _refuse(path, f"{told}, more than this machine has memory")


def _refuse(path: Path, why: str) -> NoReturn:
    raise DataError(f"cannot read {path}: {why}")


def _expect_plain(path: Path, file: Path, its: os.stat_result) -> None:
    if not stat.S_ISREG(its.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
        kind = kinds.get(stat.S_IFMT(its.st_mode), "device or pipe")
        _refuse(path, f"{file} is a {kind}, not a plain file")


def _screen_hdf5(path: Path) -> int:
    """Walk all links without following any that is not a plain one; give the values' bytes."""
    sizes, again = [], "write the file again with the values themselves"

    def refusal(name: str, link: object) -> str | None:
        if not isinstance(link, h5py.HardLink):
            return f"/{name} is a link to something else, perhaps in another file; {again}"
        if name.count("/") > DEEPEST:
            return f"/{name[:60]} … lies too deep"
        item = file[name]
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                return f"the values of /{name} are kept in another file; {again}"
            sizes.append(item.size * item.dtype.itemsize if item.shape else 0)

    with h5py.File(path, "r") as file:
        if why := file.visititems_links(refusal):
            _refuse(path, why)
    return sum(sizes)


def _screen_zarr(path: Path) -> tuple[int, int]:
    """Look at every file of the folder, at the codecs, and at which chunks are there.

    Gives the values' bytes and the files'.
    """
    stored = 0
    for folder, folders, files in os.walk(path):
        for name in files + [f for f in folders if Path(folder, f).is_symlink()]:
            file = Path(folder, name)
            _expect_plain(path, file, file.lstat())
            stored += file.stat().st_size
            if name in ("zarr.json", ".zarray", ".zmetadata"):
                if file.stat().st_size > MAX_METADATA:
                    _refuse(path, f"{file} is absurdly large")
                if unknown := set(_codecs(json.loads(file.read_bytes()))) - CODECS:
                    _refuse(
                        path,
                        f"{file.relative_to(path)} asks for the codec {some(sorted(unknown))}, "
                        "which is not known to be harmless and might run code; write the file "
                        "again with a usual one",
                    )
    total, blank = 0, []
    group = zarr.open_group(path, mode="r")
    for name, array in group.members(max_depth=None):
        if not isinstance(array, zarr.Array) or not array.shape or not array.size:
            continue
        total += array.nbytes
        if "blosc" in str(array.compressors).lower() and not array.shards:
            _expect_whole(path, path / name)
        there = array.nchunks_initialized
        if there < array.nchunks:
            parent, _, last = name.rpartition("/")
            several = last == "codes" and group[f"{parent}/categories"].size > 1
            if there or last in NEVER_EMPTY or several:
                _refuse(
                    path,
                    f"of {name}, {array.nchunks - there} of {array.nchunks} chunks are missing. "
                    "They were lost, or hold nothing but zeros: then write the file again as h5ad "
                    "or h5mu",
                )
            blank.append(name)
    if blank:
        warnings.warn(
            f"{path}: no values are stored for {some(blank)}: read as zeros, which they are unless "
            "files were lost",
            DataWarning,
            stacklevel=5,
        )
    return total, stored


def _expect_whole(path: Path, array: Path) -> None:
    """Refuse chunks that are not as long as their header says; Blosc would give other values."""
    for chunk in (file for file in array.rglob("[!.]*") if file.is_file()):
        with chunk.open("rb") as file:
            said = int.from_bytes(file.read(16)[12:], "little")
        if chunk.name != "zarr.json" and said != chunk.stat().st_size:
            _refuse(path, f"{chunk.relative_to(path)} is damaged")


def _codecs(metadata: object) -> Iterator[str]:
    """Names of all codecs that zarr metadata ask for, in any version, also of nested ones."""
    if isinstance(metadata, list):
        for part in metadata:
            yield from _codecs(part)
    if not isinstance(metadata, dict):
        return
    for key, value in metadata.items():
        if key in CODEC_KEYS:
            for codec in value if isinstance(value, list) else [value]:
                if codec is not None:
                    name = codec.get("id", codec.get("name")) if isinstance(codec, dict) else codec
                    yield str(name).removeprefix("numcodecs.")
        if key != "attributes" and not key.endswith(".zattrs"):  # the user's own words
            yield from _codecs(value)
