"""What we leave on disk: whole or not at all, known by its content, put aside when damaged."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from scipy import sparse

try:
    import fcntl
except ImportError:  # Windows: what killed writers left is not told from what live ones work at
    fcntl = None

DAMAGED = (ValueError, LookupError, TypeError, AttributeError, RecursionError, IsADirectoryError)
LARGEST = 1 << 28  # bytes of JSON; 100,000 names of features take a hundredth
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


@contextmanager
def replaced(path: str | os.PathLike) -> Iterator[Path]:
    """Give a name to write a file or a folder under, which then takes the place of `path`.

    It is on disk before it does; should anything fail, `path` is what it was. A writer that was
    killed is tidied up after by the next, and of two at one place the later one stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    draft, lock = _draft(path)
    new, old = draft / f"new{path.suffix}", draft / "old"
    try:
        yield new
        for part in [new, *new.rglob("*")] if new.is_dir() else [new]:
            _sync(part)
        if new.is_dir():
            _swap(new, path, old)
        else:
            os.replace(new, path)
        _sync(path.parent)
    finally:
        if path.exists() or not old.exists():  # else `old` is all there is: the next puts it back
            shutil.rmtree(draft, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def recover(path: str | os.PathLike) -> None:
    """Put back what a killed writer had moved aside of `path`, and remove what else it left."""
    path = Path(path)
    draft_of_it = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}\.partial")
    drafts = path.parent.iterdir() if path.parent.is_dir() else []
    for draft in [draft for draft in drafts if draft_of_it.fullmatch(draft.name)]:
        old = draft / "old"
        try:
            lock = _lock(draft, wait=old.exists())  # a live one is about to put the new in place
        except OSError:  # at work, gone by now, or nothing can be locked here
            continue
        if old.exists() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(draft, ignore_errors=True)
        os.close(lock)


def set_aside(path: str | os.PathLike) -> Path:
    """Rename a damaged file or folder, so that it is in nobody's way; give its new name."""
    path = Path(path)
    names = (f"{path.name}.damaged{n or ''}" for n in itertools.count())
    other = next(other for name in names if not (other := path.with_name(name)).exists())
    os.rename(path, other)
    return other


def write_json(path: str | os.PathLike, content: object, **options) -> Path:
    """Write JSON, so that a reader finds the old file or the new one, never half of one."""
    with replaced(path) as new:
        new.write_text(json.dumps(content, indent=1, **options) + "\n", encoding="utf-8")
    return Path(path)


def read_json(path: Path) -> object:
    """Parse a file of JSON; where it is none, or absurdly large, that is one of `DAMAGED`."""
    probe(path)
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it is larger than {LARGEST:,} bytes")
    return json.loads(path.read_bytes())


def probe(path: Path) -> None:
    """Raise what reading a file would, clearer than safetensors does; a pipe would never end."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no plain file")
    path.open("rb").close()


def digest(*values: object) -> str:
    """SHA-256 of text, arrays, sparse matrices, and what is made of them by mappings and lists.

    Names, types and shapes count, the order of a mapping does not.
    """
    found = hashlib.sha256()
    for value in values:
        _feed(found, value)
    return found.hexdigest()


def _feed(found, value) -> None:
    if sparse.issparse(value):
        rows = value.tocsr()
        value = [str(rows.shape), rows.data, rows.indices, rows.indptr]
    if isinstance(value, Mapping):
        value = [part for name in sorted(value) for part in (name, value[name])]
    if isinstance(value, np.ndarray):
        found.update(f"{value.dtype.str} {value.shape} ".encode())
        found.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    elif isinstance(value, str):
        text = value.encode(errors="surrogatepass")
        found.update(f"text {len(text)} ".encode() + text)
    else:
        found.update(f"list {len(value)} ".encode())
        for part in value:
            _feed(found, part)


def _draft(path: Path) -> tuple[Path, int | None]:
    """New folder beside `path`, and what locks it for as long as this process lives."""
    while True:
        draft = Path(tempfile.mkdtemp(".partial", f".{path.name}.", path.parent))
        try:
            lock = _lock(draft)
        except (BlockingIOError, FileNotFoundError):  # taken for a left-over before it was locked
            continue
        except OSError:  # nothing can be locked here
            return draft, None
        if draft.exists():
            return draft, lock
        os.close(lock)


def _lock(folder: Path, wait: bool = False) -> int:
    if fcntl is None:
        raise OSError(f"{folder} cannot be locked")
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(lock)
        raise
    return lock


def _sync(path: Path) -> None:
    """Have a file, or a folder's list of files, on disk."""
    if not path.is_dir():
        with open(path, "r+b") as file:
            os.fsync(file.fileno())
        return
    with suppress(OSError):  # not every system can do this with a folder
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _swap(new: Path, path: Path, old: Path) -> None:
    """Put a folder in the place of another one, which is first moved to `old`."""
    while True:
        with suppress(FileNotFoundError):
            os.rename(path, old)
        try:
            os.rename(new, path)
            return
        except OSError as error:
            if error.errno not in TAKEN:
                if old.exists():
                    os.rename(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)  # another writer was quicker: once more
