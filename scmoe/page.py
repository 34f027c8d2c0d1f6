"""What pages have in common: where their cells come from, and tables."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from IPython.display import HTML, Markdown

from scmoe.data import Split
from scmoe.record import Run

TEXT = "mathjax_ignore tex2jax_ignore"  # a name with dollars is no mathematics

SOURCES = {  # data source: (what figures and tables are marked with, what the banner says)
    "zenodo": ("", "the published files"),
    "published": ("", "the published files, by their checksums"),
    "local": ("", "data files found on this machine, not compared with the published ones"),
    "excerpt": ("excerpt of the data", "<strong>an excerpt</strong> of the published data"),
    "simulated": ("simulated cells", "<strong>simulated cells</strong>, whose truth is known"),
    "stand-in": (
        "stand-in: simulated, not measured",
        "<strong>a simulated stand-in</strong>, because the data files are not on this machine: "
        "nothing below says anything about real cells",
    ),
}


def mark(split: Split) -> str:
    """Give what follows a set's name in titles and captions where its cells are no published ones.

    Empty for measured cells, else such as " (stand-in: simulated, not measured)".
    """
    words, _ = SOURCES[split.data_source]
    return f" ({words})" if words else ""


def origin(split: Split) -> str:
    """Say where cells come from (HTML)."""
    if (split.name, split.data_source) == ("own", "local"):
        return "your own files"
    return SOURCES[split.data_source][1]


def banner(run: Run, split: Split) -> HTML:
    """Say where the cells come from and what to know of them, before anything else is shown."""
    counts = f"{split.train.n_obs} training, {split.val.n_obs} validation, {split.test.n_obs} test"
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in split.notes)
    return box(
        f"<strong>Data:</strong> {origin(split)} ({counts} cells; "
        f"fold {html.escape(str(split.fold))}, seed {split.seed}).<br>"
        f"<strong>Run:</strong> {run.task}, {run.protocol} protocol, {run.profile} profile, "
        f"from {html.escape(' + '.join(split.modalities))}."
        + (f'<ul style="margin:.4em 0 0">{notes}</ul>' if notes else ""),
        f"scmoe-{split.data_source}",
        loud=bool(mark(split)),
    )


def box(body: str, name: str, loud: bool) -> HTML:
    """Set off HTML that a reader has to know first; `loud` where it limits all that follows."""
    edge, ground = ("#a94900", "#fff4e5") if loud else ("#0a5f96", "#eef5fa")
    style = (
        f"border-left:5px solid {edge};background:{ground};color:#222;padding:.6em 1em;"
        "margin:.5em 0;line-height:1.4;font-size:.95em"
    )
    return HTML(f'<div class="scmoe-banner {name} {TEXT}" style="{style}">{body}</div>')


def table(frame: pd.DataFrame, caption: str, digits: int = 3, folded: bool = False) -> HTML:
    """Show a table, its text escaped; it scrolls where it is too wide.

    A `folded` one opens when its caption is clicked, in a box that scrolls where it is too long.
    """
    content = frame.to_html(
        border=0, na_rep="–", float_format=f"{{:.{digits}f}}".format, classes="scmoe-table"
    )
    words = html.escape(caption)
    if folded:
        return HTML(
            f'<details class="scmoe-folded {TEXT}"><summary>{words}: {len(frame)} rows</summary>'
            f'<div tabindex="0" style="overflow:auto;max-height:80vh">{content}</div></details>'
        )
    content = content.replace("<thead>", f"<caption>{words}</caption><thead>", 1)
    return HTML(f'<div class="{TEXT}" style="overflow-x:auto">{content}</div>')


def explore(
    rows: pd.DataFrame,
    choices: dict[str, str],
    label: str,
    caption: str,
    columns: Sequence[str] = ("value",),
    marked: Sequence[str] = (),
    bars: bool = False,
) -> HTML:
    """Show one choice of many numbers; in the book a reader chooses, sorts, searches, downloads.

    Parameters
    ----------
    rows
        Numbers; an interval of the first that is shown in `low` and `high`, where it has one.
    choices
        Columns that a reader chooses by, and how: `select` or `slider`. The first row's values are
        chosen first.
    label
        Column that names a row of what is shown.
    columns
        What is shown of a row beside its name; the first has a bar, and decides the order.
    marked
        Names that stand out.
    bars
        Each column has a bar, on a scale of its own.
    """
    first = rows[(rows[list(choices)] == rows[list(choices)].iloc[0]).all(axis=1)]
    still = first.sort_values(columns[0], ascending=False).set_index(label)[list(columns)]
    data = {
        "choices": [{"name": name, "kind": kind} for name, kind in choices.items()],
        "label": label,
        "columns": list(columns),
        "marked": list(marked),
        "bars": bars,
        "file": re.sub(r"\W+", "-", caption.lower()).strip("-"),
        **_packed(rows),
    }
    return HTML(
        f'<div class="scmoe-explore">{_script(data)}'
        f"{table(still.rename_axis(None), caption).data}</div>"
    )


def linked(
    cells: pd.DataFrame,
    places: dict[str, tuple[str, str]],
    colours: dict[str, dict[str, str]],
    caption: str,
) -> HTML:
    """Show maps of the same cells; in the book a reader points at one and sees it in all.

    Parameters
    ----------
    cells
        One cell a row: coordinates, and what is told of the cell that is pointed at.
    places
        By title of a map, the columns of its coordinates, across and down.
    colours
        Of the words in a column: `{"region": {"heart": "#882255"}}`. Numbers are on a scale.
    """
    data = {"places": places, "colours": colours, **_packed(cells)}
    return HTML(
        f'<div class="scmoe-linked">{_script(data)}<p>{html.escape(caption)}</p>'
        '<p class="scmoe-unscripted">A figure to point at: it needs the book\'s pages and '
        "JavaScript.</p></div>"
    )


def _packed(rows: pd.DataFrame) -> dict:
    """Rows as JSON holds them, a word of text stored once."""
    named = rows.select_dtypes(exclude="number").astype("category")
    coded = rows.assign(**{name: named[name].cat.codes for name in named})
    return {
        "names": list(rows),
        "words": {name: list(map(str, named[name].cat.categories)) for name in named},
        "rows": json.loads(coded.to_json(orient="values", double_precision=4)),
    }


def _script(data: dict) -> str:
    """Data for a page's scripts; nothing in it can end the element."""
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>'


def provenance(path: Path) -> Markdown:
    """Say where a stored table of record comes from: the comment on top of its file."""
    lines = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    return Markdown("*The table of record.* " + " ".join(lines))
