"""Chosen files out of an archive that nobody has vouched for."""

import errno
import lzma
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from scmoe.data.download import FetchError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS = 100_000
MAX_BYTES = 100 << 30  # of all members together; the collection is a few gigabytes
MAX_RATIO = 300  # unpacked to packed; a matrix of zeros compresses far, a bomb farther
MAX_HEADER = 1 << 20  # bytes of one member's long name or other remarks
MAX_SECONDS = 3600
CHUNK = 1 << 20
DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, lzma.LZMAError, zlib.error,
    struct.error, ValueError, LookupError, RuntimeError, OverflowError,
)  # fmt: skip


class UnsafeArchiveError(FetchError):
    """An archive with members that no data set needs: refused as a whole."""


@dataclass
class _Member:
    name: str
    size: int
    is_file: bool
    is_link: bool
    open: Callable[[], IO[bytes]]


def is_archive(name: str) -> bool:
    """Tell by its name whether a file is an archive that `unpack` reads."""
    return name.lower().endswith(SUFFIXES)


def unpack(archive: Path, choose: Callable[[list[str]], dict[str, Path]]) -> None:
    """Unpack chosen members of a zip or tar archive.

    Every member is looked at before any is written. Nothing is created but the files chosen:
    no folder, permission, owner or link of the archive is reproduced.

    Parameters
    ----------
    archive
        The file; its format is told from its content.
    choose
        Given the names of all files in the archive, where to write which.

    Raises
    ------
    UnsafeArchiveError
        A member has an absolute path, a `..`, or a drive; is a link or a device; sizes are absurd
        or not those announced; or it takes hours.
    FetchError
        Not an archive, or damaged.
    """
    limits = _Limits(archive)
    try:
        with _members(archive, limits) as members:
            for member in members:
                _refuse_unsafe(member, archive)
            files = {member.name: member for member in members if member.is_file}
            if not files:
                raise ValueError("it holds no files")
            for name, target in choose(list(files)).items():
                _write(files[name], target, archive, limits)
    except DAMAGED as error:
        raise FetchError(f"{archive.name} is damaged or no archive: {error}") from error
    except OSError as error:
        if isinstance(error, FetchError) or error.errno not in (None, errno.EINVAL):
            raise  # a full disk, say, is not the archive's fault
        raise FetchError(f"{archive.name} is damaged or no archive: {error}") from error


class _Limits:
    """What an archive has used up of what it may: members, bytes and time."""

    def __init__(self, archive: Path):
        self.name, self.members, self.bytes = archive.name, 0, 0
        self.most = min(MAX_BYTES, MAX_RATIO * archive.stat().st_size + (1 << 20))
        self.end = time.monotonic() + MAX_SECONDS

    def count(self, size: int) -> None:
        self.members += 1
        self.bytes += size
        if self.members > MAX_MEMBERS or self.bytes > self.most or size < 0:
            raise UnsafeArchiveError(
                f"{self.name} would unpack to {self.bytes:,} bytes in {self.members:,} members; "
                "refused"
            )
        self.check_time()

    def check_time(self) -> None:
        if time.monotonic() > self.end:
            raise UnsafeArchiveError(f"{self.name} takes over {MAX_SECONDS:,} s to unpack; refused")


class _Header(tarfile.TarInfo):
    """A tar header whose remarks, which are read whole, are of a size that names have."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        header = super().frombuf(buf, encoding, errors)
        if not header.isreg() and header.size > MAX_HEADER:
            raise UnsafeArchiveError(f"a header of {header.size:,} bytes; refused")
        return header


@contextmanager
def _members(archive: Path, limits: _Limits) -> Iterator[list[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for i in file.infolist():
                limits.count(i.file_size)
            yield [
                _Member(
                    i.filename,
                    i.file_size,
                    not i.is_dir(),
                    stat.S_IFMT(i.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR),
                    lambda i=i: file.open(i),
                )
                for i in file.infolist()
            ]
    else:
        with tarfile.open(archive, tarinfo=_Header) as file:
            members = []
            for i in file:  # one by one: a bomb is noticed before its end
                limits.count(i.size)
                is_link = not (i.isreg() or i.isdir())
                open_ = lambda i=i: file.extractfile(i)  # noqa: E731
                members.append(_Member(i.name, i.size, i.isreg(), is_link, open_))
            yield members


def _refuse_unsafe(member: _Member, archive: Path) -> None:
    path = PurePosixPath(member.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in member.name or "\0" in member.name:
        raise UnsafeArchiveError(
            f"{archive.name} has a member outside its folder ({member.name!r}); refused"
        )
    if member.is_link:
        raise UnsafeArchiveError(f"{archive.name} has a link or device ({member.name!r}); refused")


def _write(member: _Member, target: Path, archive: Path, limits: _Limits) -> None:
    """Copy one member, trusting the size that was checked and not the one that arrives."""
    left = member.size
    try:
        source = member.open()
    except RuntimeError as error:  # zipfile's word for encrypted
        raise FetchError(f"{archive.name}: cannot read {member.name!r}: {error}") from error
    with source, open(target, "xb") as out:
        while chunk := source.read(CHUNK):
            left -= len(chunk)
            limits.check_time()
            if left < 0:
                raise UnsafeArchiveError(
                    f"{archive.name}: {member.name!r} is larger than it says; refused"
                )
            out.write(chunk)
    if left:
        raise FetchError(f"{archive.name}: {member.name!r} is cut off")
