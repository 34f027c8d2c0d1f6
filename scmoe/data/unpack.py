"""Chosen files out of an archive that nobody has vouched for."""

import errno
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from scmoe.data.download import FetchError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS = 100_000
MAX_BYTES = 100 << 30  # of all members together; the collection is a few gigabytes
MAX_RATIO = 300  # unpacked to packed; a matrix of zeros compresses far, a bomb farther
MAX_HEADER = 1 << 20  # bytes of one member's long name or other remarks
MAX_SECONDS = 3600
CHUNK = 1 << 20


class UnsafeArchiveError(FetchError):
    """An archive with members that no data set needs: refused as a whole."""


class _Member(NamedTuple):
    name: str
    size: int
    is_file: bool
    is_odd: bool  # a link, a device
    open: Callable[[], IO[bytes]]


def is_archive(name: str) -> bool:
    """Tell by its name whether a file is an archive that `unpack` reads."""
    return name.lower().endswith(SUFFIXES)


def unpack(archive: Path, choose: Callable[[list[str]], dict[str, Path]]) -> None:
    """Unpack chosen members of a zip or tar archive, told apart by content.

    Every member is looked at before any is written. Nothing is created but the files chosen: no
    folder, permission, owner or link of the archive is reproduced. `choose` is given the names of
    all files in the archive, and says where to write which.

    Raises
    ------
    FetchError
        Not an archive, or damaged. UnsafeArchiveError: a member has an absolute path, a `..`, or a
        drive; is a link or a device; sizes are absurd or not those announced; or it takes hours.
    """
    end = time.monotonic() + MAX_SECONDS
    most = min(MAX_BYTES, MAX_RATIO * archive.stat().st_size + (1 << 20))
    zipped = zipfile.is_zipfile(archive)
    try:
        with zipfile.ZipFile(archive) if zipped else tarfile.open(archive, tarinfo=_Header) as file:
            files, n_bytes = {}, 0
            for count, member in enumerate(_members(file), 1):  # a bomb is noticed before its end
                n_bytes += member.size
                if count > MAX_MEMBERS or n_bytes > most or member.size < 0:
                    raise UnsafeArchiveError(
                        f"{archive.name} would unpack to {n_bytes:,} bytes in {count:,} members; "
                        "refused"
                    )
                _refuse_unsafe(member, archive, end)
                if member.is_file:
                    files[member.name] = member
            if not files:
                raise ValueError("it holds no files")
            for name, target in choose(list(files)).items():
                _write(files[name], target, archive, end)
    except (FetchError, MemoryError):
        raise
    except Exception as error:  # of the many that damaged archives raise
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # a full disk, say, is not the archive's fault
        raise FetchError(f"{archive.name} is damaged or no archive: {error}") from error


class _Header(tarfile.TarInfo):
    """A tar header whose remarks, which are read whole, are of a size that names have."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        header = super().frombuf(buf, encoding, errors)
        if not header.isreg() and header.size > MAX_HEADER:
            raise UnsafeArchiveError(f"a header of {header.size:,} bytes; refused")
        return header


def _members(file: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Member]:
    if isinstance(file, tarfile.TarFile):
        for i in file:
            odd = not (i.isreg() or i.isdir())
            yield _Member(i.name, i.size, i.isreg(), odd, partial(file.extractfile, i))
        return
    for i in file.infolist():
        odd = stat.S_IFMT(i.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
        yield _Member(i.filename, i.file_size, not i.is_dir(), odd, partial(file.open, i))


def _refuse_unsafe(member: _Member, archive: Path, end: float) -> None:
    path = PurePosixPath(member.name.replace("\\", "/"))
    outside = path.is_absolute() or ".." in path.parts or ":" in member.name or "\0" in member.name
    for holds, says in (
        (outside, f"has a member outside its folder ({member.name!r})"),
        (member.is_odd, f"has a link or device ({member.name!r})"),
        (time.monotonic() > end, f"takes over {MAX_SECONDS:,} s to unpack"),
    ):
        if holds:
            raise UnsafeArchiveError(f"{archive.name} {says}; refused")


def _write(member: _Member, target: Path, archive: Path, end: float) -> None:
    """Copy one member, trusting the size that was checked and not the one that arrives."""
    left = member.size
    with member.open() as source, open(target, "xb") as out:
        while chunk := source.read(CHUNK):
            left -= len(chunk)
            _refuse_unsafe(member, archive, end)
            if left < 0:
                raise UnsafeArchiveError(
                    f"{archive.name}: {member.name!r} is larger than it says; refused"
                )
            out.write(chunk)
    if left:
        raise FetchError(f"{archive.name}: {member.name!r} is cut off")
