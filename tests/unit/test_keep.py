"""Whatever stops a writer, and whenever: the old or the new is there, whole, and nothing else."""

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from scmoe import keep

KEPT = {".place.tgz.drafts", "place.drafts", ".place.abc.drafts", ".place"}
FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
needs_fork = pytest.mark.skipif(FORK is None, reason="stops processes forked from this one")
CALLS = ("mkdir", "rename", "replace", "fsync", "rmdir", "unlink")


@pytest.fixture(params=["locks", "no locks"])
def locks(request, monkeypatch) -> bool:
    """Whether the file system has locks; if not, what killed writers left goes after a day."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    if request.param == "no locks":
        monkeypatch.setattr(keep.fcntl, "flock", refuse)
    return request.param == "locks"


def a_day_later(folder: Path) -> None:
    for left in folder.glob(".*.drafts/*"):
        os.utime(left, times=(0, 0))


def put(path: Path, text: str, kind: str) -> None:
    with keep.replaced(path) as new:
        if kind == "folder":
            new.mkdir()
            for name in ("a", "b"):
                (new / name).write_text(text)
        else:
            new.write_text(text)


def held(path: Path) -> set[str]:
    files = list(path.iterdir()) if path.is_dir() else [path]
    assert len(files) == (2 if path.is_dir() else 1)
    return {file.read_text() for file in files}


def counted(act) -> None:
    """Do ``act`` before each of the calls that change what is on disk."""

    def wrap(original):
        def call(*args, **kwargs):
            act()
            return original(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))


def die_at(path: Path, kind: str, number: int) -> None:
    left = [number]

    def die():
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    counted(die)
    put(path, "new", kind)


@needs_fork
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("first", [True, False])
def test_a_writer_killed_before_any_call_leaves_the_old_or_the_new(kind, first, locks, tmp_path):
    seen = set()
    for number in range(100):
        path = tmp_path / str(number) / "place"
        path.parent.mkdir()
        if not first:
            put(path, "old", kind)
        process = FORK.Process(target=die_at, args=(path, kind, number))
        process.start()
        process.join()
        keep.recover(path)
        if path.exists():
            seen |= (found := held(path))
            assert len(found) == 1  # not half of each
        else:
            assert first
        locks or a_day_later(path.parent)
        put(path, "next", kind)
        assert held(path) == {"next"}
        assert [p.name for p in path.parent.iterdir()] == ["place"]
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert process.exitcode == 0 and number > 3
    assert seen == ({"new"} if first else {"old", "new"})


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_writer_that_fails_at_any_call_leaves_the_old_or_the_new(kind, tmp_path, monkeypatch):
    for name in CALLS:
        monkeypatch.setattr(os, name, getattr(os, name))  # as they were, afterwards
    path, count = tmp_path / "place", [0, None]

    def fail():
        count[0] += 1
        if count[0] == count[1]:
            raise OSError("disk full")

    counted(fail)
    put(path, "old", kind)
    failed = 0
    for number in range(1, 100):
        count[:] = [0, number]
        try:
            put(path, "new", kind)
        except OSError as error:
            failed += "disk full" in str(error)
        if count[0] < number:
            break
        count[1] = None
        keep.recover(path)
        assert held(path) in ({"old"}, {"new"})
        put(path, "old", kind)
        assert [p.name for p in tmp_path.iterdir()] == ["place"]
    assert failed >= 3


def write_often(path: Path, text: str, kind: str) -> None:
    for _ in range(60):
        put(path, text, kind)
        keep.recover(path)  # as readers do


@needs_fork
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_writers_at_one_place_all_end_well(kind, locks, tmp_path):
    path = tmp_path / "place"
    writers = [FORK.Process(target=write_often, args=(path, text, kind)) for text in "xyz"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert held(path) in ({"x"}, {"y"}, {"z"})
    assert [p.name for p in tmp_path.iterdir()] == ["place"]


def test_only_what_a_writer_of_this_very_path_left_is_removed(tmp_path):
    for name in [*KEPT, ".place.drafts/killed"]:
        (tmp_path / name).mkdir(parents=True)
    with keep.replaced(tmp_path / "place") as new:
        keep.recover(tmp_path / "place")  # the next one's: this one is at work
        new.write_text("whole")
    assert {p.name for p in tmp_path.iterdir()} == KEPT | {"place"}


def test_without_locks_what_another_may_be_writing_is_left_alone_for_a_day(locks, tmp_path):
    path = tmp_path / "place"
    with keep.replaced(path) as new:
        new.write_text("slow")
        if not locks:  # else the second would wait for the first
            put(path, "quick", "file")
            assert held(path) == {"quick"}
    assert held(path) == {"slow"}
    (tmp_path / ".place.drafts" / "killed").mkdir(parents=True)
    keep.recover(path)
    assert (tmp_path / ".place.drafts").exists() != locks
    a_day_later(tmp_path)
    keep.recover(path)
    assert [p.name for p in tmp_path.iterdir()] == ["place"]


def test_what_is_put_aside_takes_no_ones_place(tmp_path):
    for number in range(3):
        (tmp_path / "a.json").write_text(str(number))
        keep.set_aside(tmp_path / "a.json")
    names = ["a.json.damaged", "a.json.damaged1", "a.json.damaged2"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert [(tmp_path / name).read_text() for name in names] == ["0", "1", "2"]


def test_a_digest_is_of_values_types_shapes_names_and_order():
    x = np.arange(6.0)
    different = [
        x, x[::-1], x.astype("f4"), x.reshape(2, 3), x.reshape(3, 2), x.view("i8"), x[:0],
        sp.csr_matrix(x.reshape(2, 3)), sp.csr_matrix(x.reshape(3, 2)),
        {"a": x}, {"b": x}, {"a": x, "b": x}, [x], [x, x], [[x], x], [], "", "a", ["a"], ["a", "b"],
        ["ab"], ["a", ["b"]],
    ]  # fmt: skip
    assert len({keep.digest(value) for value in different}) == len(different)
    assert keep.digest({"a": x, "b": x[1:]}) == keep.digest({"b": x[1:].copy(), "a": x})
    assert keep.digest(x.reshape(2, 3).T) == keep.digest(np.ascontiguousarray(x.reshape(2, 3).T))
