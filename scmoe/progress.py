"""How far a run is: a bar where somebody watches, one line an epoch where output goes to a log."""

from __future__ import annotations

import math
import sys
import time

from tqdm import tqdm


class Progress:
    """Says epoch, losses, speed and time left on standard error, if it is ``on``.

    ``epochs`` and ``n_steps`` are the length of the run and of an epoch, ``n_cells`` how many cells
    that is, ``done`` the steps that a run did which this one resumes.
    """

    def __init__(self, on: bool, epochs: int, n_steps: int, n_cells: int, done: int = 0):
        self.on, self.epochs, self.n_steps, self.n_cells = on, epochs, n_steps, n_cells
        self.start, self.first = time.perf_counter(), done
        self.bar = tqdm(
            total=epochs * n_steps,
            initial=done,
            bar_format="epoch {desc} |{bar}| {elapsed}, {remaining} left{postfix}",
            dynamic_ncols=True,
            disable=not (on and _watched()),
        )

    def step(self, epoch: int) -> None:
        """One batch more."""
        self.bar.set_description_str(f"{epoch}/{self.epochs}", refresh=False)
        self.bar.update()

    def epoch(self, row: dict) -> None:
        """One epoch more, with its losses."""
        if not self.on:
            return
        steps = row["epoch"] * self.n_steps - self.first
        seconds = time.perf_counter() - self.start
        shown = {"loss": row["loss"], "validation": row["val_loss"]}
        parts = [f"{name} {value:.3f}" for name, value in shown.items() if math.isfinite(value)]
        parts.append(f"{steps * self.n_cells / self.n_steps / seconds:.0f} cells/s")
        self.bar.set_postfix_str(", ".join(parts), refresh=False)
        if self.bar.disable:
            left = seconds / steps * (self.epochs - row["epoch"]) * self.n_steps
            told = ", ".join([*parts, f"at most {left:.0f} s left"])
            # one write and a flush: a log collector must not cut or join lines
            sys.stderr.write(f"epoch {row['epoch']}/{self.epochs}: {told}\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()


def _watched() -> bool:
    """Whether somebody watches: a terminal, or a notebook that could ask its user for input."""
    if "ipykernel" not in sys.modules or sys.stderr.isatty():
        return sys.stderr.isatty()
    from IPython import get_ipython

    # papermill, nbconvert and the like run notebooks with input forbidden
    return bool(getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", False))
