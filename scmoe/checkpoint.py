"""One file, renamed into place, from which a run continues to the same weights."""

from __future__ import annotations

import json
import os
import time
import warnings
from pathlib import Path
from tempfile import TemporaryFile

from safetensors import SafetensorError
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor

from scmoe.keep import DAMAGED, digest, probe, recover, replaced, set_aside

SAVE_EVERY = 5.0  # seconds; a resumed run is the same wherever it was cut
SHARE = 0.02  # of the time that saving may take


class Checkpoint:
    """The state of a run in ``folder``, or nowhere when that is ``None``.

    ``fingerprint`` names the run; the file of another one is refused.
    """

    def __init__(self, folder: str | Path | None, fingerprint: str):
        if not isinstance(folder, str | os.PathLike | None):
            raise ValueError(f"checkpoint={folder!r}: it takes a folder, or None")
        self.path = None if folder is None else Path(folder) / "checkpoint.safetensors"
        self.fingerprint = fingerprint
        self.next = time.monotonic() + SAVE_EVERY

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return self.path is not None and time.monotonic() >= self.next

    def load(self) -> tuple[dict[str, dict[str, Tensor]], dict] | None:
        """Groups of tensors by name, and the note saved with them; ``None`` if there is no file.

        A damaged file is renamed with a warning, and counts as none; another run's is a
        `ValueError`.
        """
        if self.path is None:
            return None
        recover(self.path)
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.path.parent):  # or fail now, not when it is time to save
                return None
        try:
            tensors, note = _read(self.path)
        except (SafetensorError, *DAMAGED) as error:
            warnings.warn(
                f"{self.path} is damaged ({error}): it is {set_aside(self.path).name} now, and the "
                "run starts anew.",
                stacklevel=2,
            )
            return None
        if note.pop("fingerprint") != self.fingerprint:
            raise ValueError(
                f"The checkpoint in {self.path.parent} belongs to another run (other data, "
                "settings or seed): delete it, or choose another folder."
            )
        groups: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            group, _, rest = name.partition(":")
            groups.setdefault(group, {})[rest] = value
        return groups, note

    def save(self, groups: dict[str, dict[str, Tensor]], note: dict) -> None:
        """Replace the file, at once or not at all."""
        if self.path is None:
            return
        start = time.monotonic()
        tensors = {
            f"{group}:{name}": value.detach().cpu().contiguous().clone()  # no two share memory
            for group, values in groups.items()
            for name, value in values.items()
        }
        note = json.dumps({"fingerprint": self.fingerprint, **note})
        with replaced(self.path) as new:
            save_file(tensors, new, metadata={"note": note, "sha256": _digest(note, tensors)})
        now = time.monotonic()
        self.next = now + max(SAVE_EVERY, (now - start) / SHARE)


def _read(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and note of a file that is what was saved."""
    probe(path)
    with safe_open(path, "pt") as file:
        told = file.metadata() or {}
    tensors = load_file(path)
    if told["sha256"] != _digest(told["note"], tensors):
        raise ValueError("its content is not what was saved")
    return tensors, json.loads(told["note"])


def _digest(note: str, tensors: dict[str, Tensor]) -> str:
    return digest(note, {name: value.numpy() for name, value in tensors.items()})
