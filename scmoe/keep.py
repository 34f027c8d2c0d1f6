"""What we leave on disk: whole or not at all, known by its content, put aside when damaged."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from scipy import sparse

try:
    import fcntl
except ImportError:  # Windows: what killed writers left is not told from what live ones work at
    fcntl = None

DAMAGED = (ValueError, LookupError, TypeError, AttributeError, RecursionError, IsADirectoryError)
ABANDONED = 24 * 3600  # seconds after which a writer counts as killed where it holds no lock
LARGEST = 1 << 28  # bytes of JSON; 100,000 names of features take a hundredth


@contextmanager
def replaced(path: str | os.PathLike) -> Iterator[Path]:
    """Give a name to write a file or a folder under, which then takes the place of `path`.

    It is on disk before it does; should anything fail, `path` is what it was. Of two writers at one
    place the second waits for the first, and tidies up after one that was killed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path, wait=True) as draft:
        new = draft / f"new{path.suffix}"
        yield new
        for part in [new, *new.rglob("*")] if new.is_dir() else [new]:
            _sync(part)
        while not _put(new, path, draft / "old"):
            pass  # without locks, another one was here in between
        shutil.rmtree(draft / "old", ignore_errors=True)
        _sync(path.parent)


def _put(new: Path, path: Path, old: Path) -> bool:
    """Rename into place what is new; False where something came there just now."""
    folder = new.is_dir()
    if folder and os.path.lexists(path):
        shutil.rmtree(old, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.rename(path, old)
    try:
        os.replace(new, path)
    except OSError:
        if folder and path.exists():
            return False
        raise
    return True


def recover(path: str | os.PathLike) -> None:
    """Put back what a killed writer had moved aside of `path`, and remove what else it left."""
    path = Path(path)
    with suppress(OSError):  # at work, gone by now, or not ours to change
        if (drafts := _drafts(path)).exists():
            swapping = any(drafts.glob("*/old"))  # a live one is about to put the new in place
            with _alone(path, wait=swapping):
                pass


def _drafts(path: Path) -> Path:
    return path.with_name(f".{path.name}.drafts")


@contextmanager
def _alone(path: Path, wait: bool) -> Iterator[Path]:
    """Give an empty folder near `path`, to one process at a time, for as long as that lives.

    Where nothing can be locked writers are not kept apart, but neither do they touch what another
    one has there, unless that has lain for a day.
    """
    drafts, draft = _drafts(path), None
    with ExitStack() as stack:
        while draft is None:
            drafts.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # another one has just removed it
                if (lock := _lock(drafts, wait)) is not None:
                    stack.callback(os.close, lock)
                _tidy(path, drafts, alone=lock is not None)
                draft = Path(mkdtemp(dir=drafts))
        try:
            yield draft
        finally:
            _tidy(path, drafts, alone=False)  # should this fail, the next one does it
            shutil.rmtree(draft, ignore_errors=True)
            with suppress(OSError):
                drafts.rmdir()


def _lock(folder: Path, wait: bool) -> int | None:
    """Lock a folder that is still there; give what to close, or None where nothing can be."""
    if fcntl is None:
        return None
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(lock), folder.stat()):
            return lock
        raise FileNotFoundError(folder)
    except OSError as error:
        os.close(lock)
        if isinstance(error, BlockingIOError | FileNotFoundError):
            raise
        return None


def _tidy(path: Path, drafts: Path, alone: bool) -> None:
    """Put back what was moved aside of `path`; remove what is nobody's, by its age if need be."""
    for left in drafts.iterdir():
        try:
            if (left / "old").exists() and not path.exists():
                os.rename(left / "old", path)
            if alone or time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            if left.exists() and not path.exists():
                raise  # else another one was quicker


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
