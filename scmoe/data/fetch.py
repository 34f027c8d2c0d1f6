"""Fetch the data sets' files: from Zenodo, or for ATAC + gene built from the original at GEO.

Nothing here runs by itself: `load` never downloads. While a download lasts, its partial files
lie in `<root>/UnitedNet_NatComm_data/.download/`; after a failure that folder keeps what has
arrived (`*.part`, and whole files whose checksum was right), and the next call goes on from it.
A `fetched.json` beside the files says where they came from.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import h5py
import pooch
from filelock import FileLock, Timeout

from scmoe.data.catalog import DATASETS, Dataset
from scmoe.data.check import DataError, expect, near
from scmoe.data.download import FetchError, Http
from scmoe.data.manifest import describe, is_from_zenodo, read_manifest, unchanged, write_manifest
from scmoe.data.unpack import is_archive, unpack

__all__ = ["FetchError", "Http", "fetch", "is_from_zenodo"]

RECORD = 7708592
DOI = f"10.5281/zenodo.{RECORD}"
ZENODO = "https://zenodo.org/api"  # or $SCMOE_ZENODO_URL, for a mirror
MULTIOME = "GSE194122_openproblems_neurips2021_multiome_BMMC_processed.h5ad"
GEO = f"https://ftp.ncbi.nlm.nih.gov/geo/series/GSE194nnn/GSE194122/suppl/{MULTIOME}.gz"
CHECKSUM = re.compile("md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}")  # and nothing that names a file
MAX_UNPACKED = 60 << 30  # bytes; the multiome file has about 10 GiB


@dataclass(frozen=True)
class RemoteFile:
    """A file of the record: its key, size in bytes, checksum (`md5:…`) and address."""

    key: str
    size: int
    checksum: str
    url: str

    @property
    def local_name(self) -> str:
        """A name that is safe here, and that changes when the content does."""
        return f"{self.checksum[-8:]}-{_basename(self.key)}"


def fetch(
    name: str,
    root: str | os.PathLike | None = None,
    yes: bool = False,
    source: str = "zenodo",
    url: str | None = None,
    progress: bool = True,
    http: Http | None = None,
) -> Path:
    """Download a data set's missing files, verify them and put them where `load` looks.

    Files that are there stay as they are, unless they were fetched and have changed since.

    Parameters
    ----------
    name
        "dyngen", "dbitseq", "patchseq", "atacseq" or "mop".
    root
        Folder that holds `UnitedNet_NatComm_data/`; default `$SCMOE_DATA`, then `data/`.
    yes
        Download without asking.
    source
        "zenodo"; for atacseq also "geo": build the pair from the original multiome (2.7 GB).
    url
        Address of the API (zenodo) or of the file (geo); default the public ones, or
        `$SCMOE_ZENODO_URL`.
    progress
        Show a bar for each file.
    http
        Time-outs and retries.

    Returns
    -------
    The folder with the files.

    Raises
    ------
    DataError
        No such data set, or no such source for it.
    FetchError
        Declined, not there, wrong checksum, unusable archive, or too little space.
    """
    if name not in DATASETS:
        raise DataError(
            f"no data set '{name}'; there are: {', '.join(DATASETS)}{near(name, DATASETS)}"
        )
    expect(isinstance(yes, bool), "yes", yes, "True or False")
    expect(http is None or isinstance(http, Http), "http", http, "an Http, or None")
    if source not in ("zenodo", "geo") or (source == "geo" and name != "atacseq"):
        raise DataError(f"{name} cannot be fetched from '{source}'; only atacseq is at GEO")
    dataset, http = DATASETS[name], http or Http()
    folder = dataset.place(root)
    if not _wanted(dataset, folder):
        print(f"{name}: the files are in {folder}")
        return folder
    if source == "geo":
        if importlib.util.find_spec("skmisc") is None:
            raise FetchError("building the pair needs scikit-misc: pip install scikit-misc")
        url = url or GEO
        size = http.size(url)
        _ask(dataset, [MULTIOME], size, url, folder, yes, need=(size or 0) * 6)
        with _alone(folder.parent) as place:
            if _wanted(dataset, folder):
                _build_from_geo(url, size, folder, place, http, progress)
        return folder
    if dataset.address:
        url = (url or dataset.address).rstrip("/")
        remote = [
            RemoteFile(name, http.size(f"{url}/{name}") or 0, f"sha256:{its}", f"{url}/{name}")
            for name, its in dataset.checksums.items()
        ]
    else:
        url = (url or os.environ.get("SCMOE_ZENODO_URL") or ZENODO).rstrip("/")
        remote = read_record(f"{url}/records/{RECORD}", http)
    chosen = _choose(dataset, _wanted(dataset, folder), remote)
    size = sum(file.size for file in chosen)
    archived = any(is_archive(file.key) for file in chosen)
    _ask(dataset, [f.key for f in chosen], size, url, folder, yes, need=size * (1 + 3 * archived))
    with _alone(folder.parent) as place:
        if wanted := _wanted(dataset, folder):  # another process may have been here meanwhile
            chosen = _choose(dataset, wanted, remote)
            _download(dataset, chosen, folder.parent, place, http, progress)
    return folder


def read_record(url: str, http: Http) -> list[RemoteFile]:
    """List a Zenodo record's files; the API's older and newer spellings are both understood."""
    files = []
    record = http.json(url)
    listed = record.get("files") if isinstance(record, dict) else None
    for item in listed if isinstance(listed, list) else []:
        try:
            links = item.get("links", {})
            checksum = item["checksum"]
            file = RemoteFile(
                key=item.get("key") or item["filename"],
                size=int(item["size"] if "size" in item else item["filesize"]),
                checksum=checksum if ":" in checksum else f"md5:{checksum}",
                url=links.get("content") or links.get("download") or links["self"],
            )
            fits = CHECKSUM.fullmatch(file.checksum) and _basename(file.key) and file.size >= 0
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FetchError(f"{url} lists a file without {error}: {item}") from error
        if not fits or not isinstance(file.url, str):
            raise FetchError(f"{url} lists a file of no such checksum, size or address: {item}")
        files.append(file)
    if not files:
        raise FetchError(f"{url} lists no files; is the record open?")
    return files


def _basename(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name


def _best(name: str, folder: str, candidates: Iterable[str]) -> str | None:
    """Which path of several is this file: the one in the data set's folder, or the only one."""
    found = [path for path in candidates if _basename(path) == name]
    inside = [path for path in found if folder in path.replace("\\", "/").split("/")[:-1]]
    found = inside or found
    if len(found) > 1:
        raise FetchError(f"several files could be {folder}/{name}: {', '.join(sorted(found))}")
    return found[0] if found else None


def _choose(dataset: Dataset, wanted: list[str], remote: list[RemoteFile]) -> list[RemoteFile]:
    """The record's files to download: loose ones, else the archives that may hold them."""
    by_key = {file.key: file for file in remote}
    keys = [_best(name, dataset.folder, by_key) for name in wanted]
    if all(keys):
        return [by_key[key] for key in keys]
    archives = [file for file in remote if is_archive(file.key)]
    own = [file for file in archives if dataset.folder.lower() in file.key.lower()]
    if not archives:
        raise FetchError(
            f"the record has neither {', '.join(wanted)} nor an archive; it has: "
            f"{', '.join(by_key)}"
        )
    return own or archives


def _ask(dataset, names, size, url, folder, yes, need) -> None:
    """Say what would be downloaded; go on only if that is wanted and fits."""
    told = "of unknown size" if size is None else f"{size / 1e6:,.1f} MB"
    print(f"{dataset.name}: {', '.join(names)} ({told})\n  from {url}\n  to   {folder}")
    print(f"  licence: {dataset.licence}")
    there = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(there).free
    if free < need:
        raise FetchError(f"{there} has {free / 1e9:.1f} GB left; {need / 1e9:.1f} GB are needed")
    if yes:
        return
    try:
        answer = input("Download? [y/N] ")
    except EOFError:
        raise FetchError("nobody to ask; agree with --yes (or yes=True)") from None
    if answer.strip().lower() not in ("y", "yes"):
        raise FetchError("not downloaded")


@contextmanager
def _alone(collection: Path) -> Iterator[Path]:
    """Folder for unfinished files, held by one process at a time; tidied before and after."""
    place = collection / ".download"
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("another process is downloading; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        _tidy(place)
        yield place
    finally:
        _tidy(place)
        lock.release()


def _tidy(place: Path) -> None:
    """Remove what a killed process may have left: folders, and pooch's temporary files."""
    for path in place.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name.startswith("tmp"):
            path.unlink()


def _download(dataset, chosen: list[RemoteFile], collection, place, http, progress) -> None:
    """Get the chosen files and put them, or what their archives hold, into their folders."""
    with tempfile.TemporaryDirectory(dir=place) as fresh:
        ready: dict[str, dict[str, Path]] = {}  # data set -> file name -> where it lies now
        origin = {}
        for file in chosen:
            path = _get_verified(file, place, http, progress)
            if is_archive(file.key):
                names = _unpack_sets(path, collection, Path(fresh), ready)
                path.unlink()
            else:
                names = [_basename(file.key)]
                ready.setdefault(dataset.name, {})[names[0]] = path
            origin |= dict.fromkeys(names, file.key)
        folder = collection / dataset.folder
        absent = set(_wanted(dataset, folder)) - set(ready.get(dataset.name, {}))
        if absent:
            keys = ", ".join(file.key for file in chosen)
            raise FetchError(f"{keys} does not hold {', '.join(sorted(absent))}")
        for name, files in ready.items():
            its = DATASETS[name]
            where = ("github", its.address) if its.address else ("zenodo", DOI)
            _place(its, files, collection, *where, origin)


def _get_verified(file: RemoteFile, place: Path, http: Http, progress: bool) -> Path:
    """Download one file of the record and compare its checksum with the record's."""
    part = place / f"{file.local_name}.part"

    def resume(url: str, output: str, _) -> None:
        http.download(url, part, file.size, progress)
        os.replace(part, output)

    store = pooch.create(
        place,
        base_url="",
        registry={file.local_name: file.checksum},
        urls={file.local_name: file.url},
        # What was continued may have been spoilt before: then once more from the start.
        retry_if_failed=int(part.exists()),
    )
    try:
        return Path(store.fetch(file.local_name, downloader=resume))
    except ValueError as error:
        raise FetchError(
            f"{file.key} arrived with another checksum than {file.checksum}; "
            "it was deleted, fetch it again"
        ) from error


def _unpack_sets(archive: Path, collection: Path, fresh: Path, ready: dict) -> list[str]:
    """Unpack what an archive holds of any data set whose files are missing here."""
    found: list[str] = []

    def choose(members: list[str]) -> dict[str, Path]:
        targets = {}
        for dataset in (d for d in DATASETS.values() if not d.address):
            wanted = _wanted(dataset, collection / dataset.folder)
            paths = {name: _best(name, dataset.folder, members) for name in wanted}
            for name in (name for name, member in paths.items() if member):
                (fresh / dataset.folder).mkdir(exist_ok=True)
                target = fresh / dataset.folder / name
                targets[paths[name]] = ready.setdefault(dataset.name, {})[name] = target
                found.append(name)
        return targets

    try:
        unpack(archive, choose)
    except FetchError:
        archive.unlink()
        raise
    return found


def _place(dataset, files: dict[str, Path], collection, source, address, origin) -> None:
    """Check finished files, note where they came from, and rename them into their folder.

    The note comes first: it names checksums, so that it is wrong at no moment.
    """
    for name, path in files.items():
        if name.endswith(".h5ad"):
            _check_h5ad(path, name)
    folder = collection / dataset.folder
    folder.mkdir(parents=True, exist_ok=True)
    noted = {name: describe(path, origin[name]) for name, path in files.items()}
    write_manifest(folder, source, address, noted)
    for name, path in files.items():
        os.replace(path, folder / name)
    print(f"{dataset.name}: {len(files)} files in {folder}")


def _check_h5ad(path: Path, name: str) -> None:
    try:
        with h5py.File(path) as file:
            if "obs" in file and ("X" in file or "obsm" in file):
                return
        problem = "it has no cells"
    except OSError as error:
        problem = str(error)
    path.unlink()
    raise FetchError(f"{name} was downloaded, but is not an h5ad file: {problem}")


def _wanted(dataset: Dataset, folder: Path) -> list[str]:
    """Files that are absent, or were fetched and have changed since."""
    noted = read_manifest(folder).get("files", {})
    return [
        name
        for name in dataset.files
        if not (folder / name).is_file()
        or (name in noted and not unchanged(folder / name, noted[name]))
    ]


def _build_from_geo(url, size, folder: Path, place: Path, http: Http, progress: bool) -> None:
    """Download the original multiome, unzip it, and build the processed pair from it."""
    from scmoe.data.multiome import build_pair

    part = place / f"{MULTIOME}.gz.part"
    http.download(url, part, size, progress)
    with tempfile.TemporaryDirectory(dir=place) as fresh:
        original = Path(fresh) / MULTIOME
        try:
            _gunzip(part, original)
        except (OSError, EOFError, zlib.error) as error:
            part.unlink()
            raise FetchError(f"{url} arrived damaged ({error}); fetch it again") from error
        files = build_pair(original, Path(fresh))
        origin = dict.fromkeys(files, f"{MULTIOME}.gz")
        _place(DATASETS["atacseq"], files, folder.parent, "geo", url, origin)
    part.unlink()


def _gunzip(source: Path, target: Path) -> None:
    with gzip.open(source) as packed, open(target, "wb") as out:
        while chunk := packed.read(1 << 22):
            out.write(chunk)
            if out.tell() > MAX_UNPACKED:
                raise OSError("it unpacks to an absurd size")
