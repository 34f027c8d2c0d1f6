"""A sentence that a person wrote, shown only where the run's own numbers bear it out."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from string import Formatter

import numpy as np


class FalseClaim(AssertionError):
    """A sentence about the table of record that its numbers do not bear out."""


def claim(
    text: str, /, *, holds: bool | None, tested=True, record=False, glue="", **numbers
) -> Sentence:
    """Show a sentence where it holds; elsewhere its numbers alone, never the conclusion.

    Parameters
    ----------
    text
        The sentence, Markdown, with `{named}` numbers, formatted as by `str.format`.
    holds
        The condition on the same numbers, with a margin (an interval without 0, say); None where
        there are too few numbers to tell. A number that is not finite makes it None.
    tested
        False where the cells can bear nothing out: simulated stand-ins.
    record
        The numbers are those of the committed table of record: a sentence that does not hold is
        a `FalseClaim`.
    glue
        Name under which other pages of the book can quote the sentence.
    numbers
        What `text` names, all of it and nothing else, or it is a `ValueError`. A triple is a number
        and its 95 % interval, which is shown when pointed at. Text is escaped.
    """
    fields = {name: form for _, name, form, _ in Formatter().parse(text) if name is not None}
    if fields.keys() != numbers.keys():
        differ = sorted(fields.keys() ^ numbers.keys())
        raise ValueError(f"the text and the numbers differ in {differ}: {text!r}")
    if not (holds is None or isinstance(holds, bool | np.bool_)):
        raise TypeError(f"holds={holds!r} must be True, False or None")
    shown = {name: _shown(value, fields[name]) for name, value in numbers.items()}
    values = [part for value in numbers.values() for part in _parts(value)]
    if not all(isinstance(value, str) or math.isfinite(value) for value in values):
        holds = None
    if holds and tested:
        return Sentence(text.format(**{name: _Text(value) for name, value in shown.items()}), glue)
    if record and holds is not None:
        plain = {name: _parts(value)[0] for name, value in numbers.items()}
        raise FalseClaim(f"the table of record does not bear this out: {text!r}; {plain}")
    untold = "In this run not shown" if holds is not None else "Too few numbers to tell"
    verdict = untold if tested else "Not tested on simulated stand-ins"
    listed = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())
    return Sentence(f"*{verdict}:* {listed}.", glue)


@dataclass
class Sentence:
    """What a notebook shows, and other pages find under a name: Markdown, or a drawing."""

    data: str
    glue: str = ""
    kind: str = "text/markdown"

    def _repr_mimebundle_(self, **_):
        known = {"scrapbook": {"name": self.glue, "mime_prefix": ""}} if self.glue else {}
        return {self.kind: self.data, "text/plain": self.data}, known


class _Text(str):
    """Text that ignores the format of its place: it has been formatted."""

    def __format__(self, _):
        return str(self)


def _parts(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _shown(value, form: str) -> str:
    """Format a number, with its interval where it has one; escape text, so that it stays text."""
    if isinstance(value, tuple):
        number, low, high = (_shown(part, form) for part in value)
        known = all(map(math.isfinite, value))
        return f'<abbr title="95 % interval {low} to {high}">{number}</abbr>' if known else number
    if isinstance(value, str):
        one_line = " ".join(value.split())
        return re.sub(r"[!-/:-@\[-`{-~]", lambda found: f"&#{ord(found[0])};", one_line)
    return format(value, form).replace("-", "−") if math.isfinite(value) else "–"
