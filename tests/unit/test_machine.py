"""Saves, fits, kills and damage in any order: what is loaded is a model that somebody saved.

`SCMOE_EXAMPLES` says how many sequences of steps are drawn, by chance then; else the same few.
"""

import os
import shutil
import signal
import tempfile
import warnings
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import scmoe
from scmoe import checkpoint
from scmoe.data import split_mudata
from tests.conftest import make_tiny
from tests.unit.test_faults import BYTES
from tests.unit.test_keep import counted

EXAMPLES = int(os.environ.get("SCMOE_EXAMPLES", 0))
CONFIG = scmoe.Config().replace(
    d=8, n_patches=2, n_heads=2, n_experts=2, members=2, epochs=3, batch_size=16
)
FILES = ("model.json", "model.safetensors")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes it has forked")


@cache
def cells():
    return split_mudata(make_tiny(45))


def fit(seed: int, folder: Path | None = None) -> scmoe.ScMoE:
    model = scmoe.ScMoE(config=CONFIG, seed=seed)
    return model.fit(cells(), "cpu", progress=False, checkpoint=folder)


@cache
def fitted(seed: int) -> scmoe.ScMoE:
    """Undisturbed."""
    return fit(seed)


def told(model: scmoe.ScMoE) -> bytes:
    """All that a model says of the test cells, bit for bit."""
    test = cells().test
    imputed = model.translate(test, "protein", "rna")
    return model.predict(test).drop(columns="group").to_numpy().tobytes() + imputed.tobytes()


@cache
def expected(seed: int) -> bytes:
    return told(fitted(seed))


def killed_before(number: int, act) -> bool:
    """Do something in a process that dies before so many calls that change what is on disk."""
    fitted(0), fitted(1)  # for the child to have
    pid, left = os.fork(), [number]
    if pid == 0:

        def die():
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            counted(die)
            act()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1] == signal.SIGKILL


def failing_at(number: int, act) -> None:
    """Do something while one of the calls that change what is on disk fails."""
    left = [number]

    def fail():
        left[0] -= 1
        if left[0] == -1:
            raise OSError("disk full")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "fsync", "rmdir", "unlink"):
            patch.setattr(os, name, getattr(os, name))
        counted(fail)
        try:
            act()
        except OSError as error:
            assert "disk full" in str(error)


class Machine(RuleBasedStateMachine):
    """One place for a model, and one folder for checkpoints."""

    @initialize()
    def start(self):
        self.folder = Path(tempfile.mkdtemp())
        self.place = self.folder / "model"
        self.may_be: set[int | None] = {None}  # seeds of what may lie there; None: nothing
        self.damaged = self.unknown = False

    def teardown(self):
        shutil.rmtree(getattr(self, "folder", ""), ignore_errors=True)

    @rule(seed=st.integers(0, 1), overwrite=st.booleans())
    def save(self, seed, overwrite):
        try:
            fitted(seed).save(self.place, overwrite=overwrite)
        except FileExistsError:
            assert self.unknown or not overwrite
        else:
            self.may_be, self.damaged, self.unknown = {seed}, False, False

    @precondition(lambda self: not self.unknown)
    @rule(seed=st.integers(0, 1), number=st.integers(0, 12))
    def save_killed(self, seed, number):
        killed = killed_before(number, lambda: fitted(seed).save(self.place, overwrite=True))
        self._either(seed, killed)

    @precondition(lambda self: not self.unknown)
    @rule(seed=st.integers(0, 1), number=st.integers(0, 12))
    def save_failed(self, seed, number):
        failing_at(number, lambda: fitted(seed).save(self.place, overwrite=True))
        self._either(seed, True)

    def _either(self, seed: int, disturbed: bool) -> None:
        """The new is there, or what was; of a damaged one nothing is known until it is read."""
        if not disturbed:
            self.may_be, self.damaged = {seed}, False
        elif self.damaged:
            self.may_be, self.damaged = {seed, "damaged"}, False
        else:
            self.may_be = self.may_be | {seed}

    @precondition(lambda self: self.place.is_dir() and not self.unknown)
    @rule(file=st.sampled_from(FILES), fault=st.sampled_from(sorted(BYTES)))
    def damage(self, file, fault):
        BYTES[fault](self.place / file)
        self.may_be, self.damaged = {"damaged"}, True
        self.unknown = not (self.place / "model.json").is_file()

    @rule()
    def load(self):
        try:
            model = scmoe.ScMoE.load(self.place, "cpu")
        except FileNotFoundError:
            assert None in self.may_be or self.unknown
            if not self.unknown:
                self.may_be = {None}
        except ValueError as error:
            assert "damaged" in self.may_be
            assert self.place.name in str(error) and "fit the model again" in str(error)
            self.may_be, self.damaged = {"damaged"}, True
        else:
            found = [seed for seed in (0, 1) if told(model) == expected(seed)]
            assert len(found) == 1 and found[0] in self.may_be
            self.may_be = set(found)

    @rule(seed=st.integers(0, 1), number=st.integers(0, 60))
    def fit_killed(self, seed, number):
        killed_before(number, lambda: fit(seed, self.folder / f"run {seed}"))

    @rule(seed=st.integers(0, 1))
    def fit_on(self, seed):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is damaged")
            assert told(fit(seed, self.folder / f"run {seed}")) == expected(seed)

    @rule(seed=st.integers(0, 1), fault=st.sampled_from(sorted(BYTES)))
    def damage_checkpoint(self, seed, fault):
        file = self.folder / f"run {seed}" / "checkpoint.safetensors"
        if file.is_file():
            BYTES[fault](file)

    @invariant()
    def nothing_of_ours_is_in_the_way(self):
        names = {path.name.split(".damaged")[0] for path in self.folder.iterdir()}
        assert names <= {"model", ".model.drafts", "run 0", "run 1"}


def test_whatever_happens_what_is_loaded_is_what_was_saved(monkeypatch):
    monkeypatch.setattr(checkpoint, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    Machine.TestCase.settings = settings(
        max_examples=EXAMPLES or 5, stateful_step_count=10, deadline=None,
        suppress_health_check=list(HealthCheck), derandomize=not EXAMPLES, database=None,
    )  # fmt: skip
    Machine.TestCase().runTest()
