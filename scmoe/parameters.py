"""Are a notebook's parameters known, and of the right type? papermill itself only warns."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from scmoe.data import DATASETS

CHOICES = {
    "task": ("supervised", "unsupervised"),
    "protocol": ("strict", "paper"),
    "profile": ("quick", "full"),
}


FOLD = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9][\w.-]*", re.ASCII)  # may be part of a file's name


def check_names(cells: Sequence[str], known: Sequence[str]) -> None:
    """Refuse names that the parameters cell, or what papermill put below it, assigns unasked.

    Parameters
    ----------
    cells
        Sources of the cells that ran, in order.
    known
        Names of the parameters.

    Raises
    ------
    ValueError
        The message has the known names and the nearest.
    """

    def names(cell):
        try:
            body = ast.parse(cell).body
        except SyntaxError:  # a cell magic
            return []
        targets = [t for node in body if isinstance(node, ast.Assign) for t in node.targets]
        return [target.id for target in targets if isinstance(target, ast.Name)]

    assigned = [names(cell) for cell in cells]
    is_template = [len(set(found) & set(known)) > len(known) / 2 for found in assigned]
    # In a live session cells run many times: the last time counts.
    last = max((i for i, yes in enumerate(is_template) if yes), default=0)
    injected = [
        found
        for cell, found in zip(cells[last:], assigned[last:], strict=True)
        if cell.startswith("# Parameters\n")
    ]
    names = (assigned[last] if any(is_template) else []) + (injected[-1] if injected else [])
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"unknown parameter {name!r}.{hint} The parameters are {', '.join(known)}."
            )


def check_values(run) -> None:
    """Refuse a parameter of the wrong type or range.

    Parameters
    ----------
    run
        Anything with the parameters, and `dataset`, as attributes.

    Raises
    ------
    ValueError
        The message names the parameter and what it may be.
    """

    def need(name, fine, wanted):
        if not fine:
            raise ValueError(f"parameter {name}={getattr(run, name)!r}: must be {wanted}")

    def whole(value, least):
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    for name, choices in CHOICES.items():
        need(name, getattr(run, name) in choices, " or ".join(map(repr, choices)))
    need(
        "fold",
        whole(run.fold, 0) or (isinstance(run.fold, str) and FOLD.fullmatch(run.fold)),
        "a whole number from 0, or a fold's name such as 'block-0' or '09A'",
    )
    need("seed", whole(run.seed, 0) and run.seed < 2**32, "a whole number from 0 to 2**32 - 1")
    for name in ("epochs", "threads"):
        value = getattr(run, name)
        need(name, value is None or whole(value, 1), "a whole number from 1, or None")
    need(
        "device",
        isinstance(run.device, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", run.device),
        "'auto', 'cpu', 'cuda' or 'cuda:<number>'",
    )
    need("allow_standin", isinstance(run.allow_standin, bool), "True or False")
    for name in ("data_root", "out_dir"):
        value = getattr(run, name)
        need(
            name, value is None or (isinstance(value, str | Path) and str(value)), "a path, or None"
        )
    names = run.modalities
    listed = isinstance(names, list | tuple) and all(isinstance(m, str) and m for m in names)
    need(
        "modalities",
        names is None or (listed and len(names) == len(set(names)) > 0),
        "a list of names, names with commas between, or None for all",
    )
    known = DATASETS[run.dataset].modalities if run.dataset in DATASETS else names
    need("modalities", set(names or []) <= set(known or []), f"among {known}")
