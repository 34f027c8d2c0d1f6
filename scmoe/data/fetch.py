"""Fetch the data sets' files from where they are published, verified and whole.

Nothing here runs by itself: `load` never downloads. Unfinished files lie in `.download/` below the
data root's collection, and the next call goes on from them. A `fetched.json` beside the files says
where they came from.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import h5py
from filelock import FileLock

from scmoe.data.catalog import DATASETS, Dataset
from scmoe.data.check import expect_known
from scmoe.data.download import FetchError, Http
from scmoe.data.unpack import is_archive, unpack
from scmoe.keep import DAMAGED, read_json, write_json

RECORD = 7708592
DOI = f"10.5281/zenodo.{RECORD}"
ZENODO = "https://zenodo.org/api"  # or $SCMOE_ZENODO_URL, for a mirror
CHECKSUM = re.compile("md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}")  # and nothing that names a file
NOTE = "fetched.json"


@dataclass(frozen=True)
class RemoteFile:
    """A file to download: its key, size in bytes, checksum (`md5:…`, `sha256:…`) and address."""

    key: str
    size: int
    checksum: str
    url: str


def fetch(
    name: str,
    root: str | os.PathLike | None = None,
    yes: bool = False,
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
    yes, progress
        Download without asking; show a bar for each file.
    url
        Address of Zenodo's API, or of mop's folder; default the public one, or `$SCMOE_ZENODO_URL`.
    http
        Time-outs and retries.

    Returns
    -------
    The folder with the files. A FetchError where it was declined, is not there, has a wrong
    checksum or an unusable archive.
    """
    expect_known("name", name, DATASETS)
    dataset, http = DATASETS[name], http or Http()
    folder = dataset.place(root)
    if not (wanted := _wanted(dataset, folder)):
        print(f"{name}: the files are in {folder}")
        return folder
    if dataset.address:
        url = (url or dataset.address).rstrip("/")
        remote = [
            RemoteFile(key, size, f"sha256:{digits}", f"{url}/{key}")
            for key, (size, digits) in dataset.pinned.items()
        ]
    else:
        url = (url or os.environ.get("SCMOE_ZENODO_URL") or ZENODO).rstrip("/")
        remote = read_record(f"{url}/records/{RECORD}", http)
    _ask(dataset, _choose(dataset, wanted, remote), url, folder, yes)
    place = folder.parent / ".download"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "lock"):
        if wanted := _wanted(dataset, folder):  # another process may have been here meanwhile
            _download(dataset, _choose(dataset, wanted, remote), folder, place, http, progress)
    return folder


def is_from_zenodo(path: Path) -> bool:
    """Tell whether a file is, byte for byte, one that `fetch` got from Zenodo."""
    noted = read_note(path.parent).get(path.name)
    return noted is not None and noted["from"] == DOI and _unchanged(path, noted)


def read_note(folder: Path) -> dict[str, dict]:
    """What `fetch` noted of its files here, by name; empty where nothing can be read."""
    try:
        note = read_json(folder / NOTE)
        return note if all({"md5", "from"} <= its.keys() for its in note.values()) else {}
    except (OSError, *DAMAGED):
        return {}


def read_record(url: str, http: Http) -> list[RemoteFile]:
    """List a Zenodo record's files."""
    record = http.json(url)
    listed = record.get("files") if isinstance(record, dict) else None
    files = []
    for item in listed if isinstance(listed, list) else []:
        try:
            links = item["links"]
            file = RemoteFile(item["key"], int(item["size"]), item["checksum"], links["self"])
            fits = CHECKSUM.fullmatch(file.checksum) and file.size >= 0 and _basename(file.key)
            if not fits or not isinstance(file.url, str):
                raise ValueError("its checksum, size, name or address")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FetchError(f"{url} lists a file that cannot be ({error}): {item}") from error
        files.append(file)
    if not files:
        raise FetchError(f"{url} lists no files; is the record open?")
    return files


def hash_of(path: Path, algorithm: str) -> str:
    """Give the hash of a file's bytes in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _unchanged(path: Path, noted: dict) -> bool:
    return path.is_file() and hash_of(path, "md5") == noted["md5"]


def _wanted(dataset: Dataset, folder: Path) -> list[str]:
    """Files that are absent, or were fetched and have changed since."""
    noted, names = read_note(folder), dataset.files
    changed = [n for n in names if n in noted and not _unchanged(folder / n, noted[n])]
    return [n for n in names if n in changed or not (folder / n).is_file()]


def _basename(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name


def _best(name: str, folder: str, candidates: Iterable[str]) -> str | None:
    """Which path of several is this file: the one in the data set's folder, or the only one."""
    found = [path for path in candidates if _basename(path) == name]
    found = [path for path in found if folder in PurePosixPath(path).parts] or found
    if len(found) > 1:
        raise FetchError(f"several files could be {folder}/{name}: {', '.join(sorted(found))}")
    return found[0] if found else None


def _choose(dataset: Dataset, wanted: list[str], remote: list[RemoteFile]) -> list[RemoteFile]:
    """The files to download: loose ones, else the archives that may hold them."""
    by_key = {file.key: file for file in remote}
    keys = [_best(name, dataset.folder, by_key) for name in wanted]
    if all(keys):
        return [by_key[key] for key in keys]
    archives = [file for file in remote if is_archive(file.key)]
    if not archives:
        raise FetchError(
            f"the record has neither {', '.join(wanted)} nor an archive; it has: "
            f"{', '.join(by_key)}"
        )
    return [file for file in archives if dataset.folder.lower() in file.key.lower()] or archives


def _ask(dataset: Dataset, chosen: list[RemoteFile], url: str, folder: Path, yes: bool) -> None:
    """Say what would be downloaded; go on only if that is wanted."""
    size, names = sum(file.size for file in chosen), ", ".join(file.key for file in chosen)
    print(f"{dataset.name}: {names} ({size / 1e6:,.1f} MB)\n  from {url}\n  to   {folder}")
    print(f"  licence: {dataset.licence}")
    try:
        if not yes and input("Download? [y/N] ").strip().lower() not in ("y", "yes"):
            raise FetchError("not downloaded")
    except EOFError:
        raise FetchError("nobody to ask; agree with --yes (or yes=True)") from None


def _download(dataset, chosen: list[RemoteFile], folder: Path, place, http, progress) -> None:
    """Get the chosen files and put them, or what their archives hold, into their folders."""
    collection, unpacked = folder.parent, place / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a killed process
    ready: dict[Path, tuple[Path, str]] = {}  # where a file goes: where it lies, what it came in
    try:
        for file in chosen:
            path = _verified(file, place, http, progress)
            if is_archive(file.key):
                _unpack_sets(path, file.key, collection, unpacked, ready)
            else:
                ready[folder / _basename(file.key)] = path, file.key
        absent = [name for name in _wanted(dataset, folder) if folder / name not in ready]
        if absent:
            keys = ", ".join(file.key for file in chosen)
            raise FetchError(f"{keys} does not hold {', '.join(absent)}")
        source = dataset.address or DOI
        for its in dict.fromkeys(target.parent for target in ready):
            _place(its, {t.name: was for t, was in ready.items() if t.parent == its}, source)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def _verified(file: RemoteFile, place: Path, http: Http, progress: bool) -> Path:
    """Download one file and compare its checksum with the record's."""
    part = place / f"{file.checksum[-8:]}-{_basename(file.key)}.part"
    algorithm, digits = file.checksum.split(":")
    for again in (part.exists(), False):  # what is continued may have been spoilt before
        http.download(file.url, part, file.size, progress)
        if hash_of(part, algorithm) == digits:
            return part
        part.unlink()
        if not again:
            break
    raise FetchError(
        f"{file.key} arrived with another checksum than {file.checksum}; it was deleted, fetch it "
        "again"
    )


def _unpack_sets(archive: Path, key: str, collection: Path, fresh: Path, ready: dict) -> None:
    """Unpack what an archive holds of any data set whose files are missing here."""

    def choose(members: list[str]) -> dict[str, Path]:
        targets = {}
        for its in (d for d in DATASETS.values() if not d.address):
            for name in _wanted(its, collection / its.folder):
                if member := _best(name, its.folder, members):
                    targets[member] = fresh / its.folder / name
                    targets[member].parent.mkdir(parents=True, exist_ok=True)
                    ready[collection / its.folder / name] = targets[member], key
        return targets

    try:
        unpack(archive, choose)
    except FetchError:
        archive.unlink()
        raise
    archive.unlink()


def _place(folder: Path, files: dict[str, tuple[Path, str]], source: str) -> None:
    """Check finished files, note where they came from, and rename them into their folder.

    The note comes first: it names checksums, so that it is wrong at no moment.
    """
    note = read_note(folder)
    for name, (path, key) in files.items():
        if name.endswith(".h5ad") and not h5py.is_hdf5(path):
            path.unlink()
            raise FetchError(f"{name} was downloaded, but is not an h5ad file")
        note[name] = {"md5": hash_of(path, "md5"), "from": source, "in": key}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NOTE, note)
    for name, (path, _) in files.items():
        os.replace(path, folder / name)
    print(f"{folder.name}: {len(files)} files in {folder}")
