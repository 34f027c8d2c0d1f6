"""One file, renamed into place, from which a run continues to the same weights."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor

SAVE_EVERY = 5.0  # seconds; a resumed run is the same wherever it was cut
SHARE = 0.02  # of the time that saving may take


class Checkpoint:
    """The state of a run in ``folder``, or nowhere when that is ``None``.

    Parameters
    ----------
    folder
        Where ``checkpoint.safetensors`` lies or will lie.
    fingerprint
        Names the run; the file of another one is refused.
    """

    def __init__(self, folder: str | Path | None, fingerprint: str):
        self.path = None if folder is None else Path(folder) / "checkpoint.safetensors"
        self.fingerprint = fingerprint
        self.next = time.monotonic() + SAVE_EVERY

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return self.path is not None and time.monotonic() >= self.next

    def load(self) -> tuple[dict[str, dict[str, Tensor]], dict] | None:
        """Groups of tensors by name, and the note saved with them; ``None`` if there is no file.

        Raises
        ------
        ValueError
            If the file belongs to another run.
        """
        if self.path is None or not self.path.exists():
            return None
        with safe_open(self.path, "pt") as file:
            note = json.loads(file.metadata()["note"])
        if note.pop("fingerprint") != self.fingerprint:
            raise ValueError(
                f"The checkpoint in {self.path.parent} belongs to another run (other data, "
                "settings or seed): delete it, or choose another folder."
            )
        groups: dict[str, dict[str, Tensor]] = {}
        for name, value in load_file(self.path).items():
            group, _, rest = name.partition(":")
            groups.setdefault(group, {})[rest] = value
        return groups, note

    def save(self, groups: dict[str, dict[str, Tensor]], note: dict) -> None:
        """Replace the file, at once or not at all; the old one stays until the new one is whole."""
        if self.path is None:
            return
        start = time.monotonic()
        tensors = {
            f"{group}:{name}": value.detach().cpu().contiguous().clone()  # no two share memory
            for group, values in groups.items()
            for name, value in values.items()
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for left_over in self.path.parent.glob("checkpoint.*.partial"):  # of a killed run
            left_over.unlink()
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        note = json.dumps({"fingerprint": self.fingerprint, **note})
        save_file(tensors, partial, metadata={"note": note})
        partial.replace(self.path)
        now = time.monotonic()
        self.next = now + max(SAVE_EVERY, (now - start) / SHARE)
