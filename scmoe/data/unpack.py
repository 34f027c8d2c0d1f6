"""Chosen files out of an archive that nobody has vouched for."""

import stat
import tarfile
import zipfile
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
CHUNK = 1 << 20


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
        A member has an absolute path, a `..`, or a drive; is a link or a device; or sizes are
        absurd or not those announced.
    FetchError
        Not an archive, or damaged.
    """
    try:
        with _members(archive) as members:
            for member in members:
                _refuse_unsafe(member, archive)
            _refuse_absurd(members, archive)
            files = {member.name: member for member in members if member.is_file}
            for name, target in choose(list(files)).items():
                _write(files[name], target, archive)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError) as error:
        raise FetchError(f"{archive.name} is damaged or no archive: {error}") from error


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
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
        with tarfile.open(archive) as file:
            members = []
            for i in file:  # one by one: a bomb is noticed before its end
                is_link = not (i.isreg() or i.isdir())
                open_ = lambda i=i: file.extractfile(i)  # noqa: E731
                members.append(_Member(i.name, i.size, i.isreg(), is_link, open_))
                _refuse_absurd(members, archive)
            yield members


def _refuse_unsafe(member: _Member, archive: Path) -> None:
    path = PurePosixPath(member.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in member.name or "\0" in member.name:
        raise UnsafeArchiveError(
            f"{archive.name} has a member outside its folder ({member.name!r}); refused"
        )
    if member.is_link:
        raise UnsafeArchiveError(f"{archive.name} has a link or device ({member.name!r}); refused")


def _refuse_absurd(members: list[_Member], archive: Path) -> None:
    total = sum(member.size for member in members)
    limit = min(MAX_BYTES, MAX_RATIO * archive.stat().st_size + (1 << 20))
    if len(members) > MAX_MEMBERS or total > limit or any(member.size < 0 for member in members):
        raise UnsafeArchiveError(
            f"{archive.name} would unpack to {total:,} bytes in {len(members):,} members; refused"
        )


def _write(member: _Member, target: Path, archive: Path) -> None:
    """Copy one member, trusting the size that was checked and not the one that arrives."""
    left = member.size
    try:
        source = member.open()
    except RuntimeError as error:  # zipfile's word for encrypted
        raise FetchError(f"{archive.name}: cannot read {member.name!r}: {error}") from error
    with source, open(target, "xb") as out:
        while chunk := source.read(CHUNK):
            left -= len(chunk)
            if left < 0:
                raise UnsafeArchiveError(
                    f"{archive.name}: {member.name!r} is larger than it says; refused"
                )
            out.write(chunk)
    if left:
        raise FetchError(f"{archive.name}: {member.name!r} is cut off")
