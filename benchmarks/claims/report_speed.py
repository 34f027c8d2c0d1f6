"""What the page on speed shows and says, worded from the benchmarks' committed results."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from scmoe import page, plot
from scmoe.colours import FAINT, INK, METHODS
from scmoe.plot import figure

RESULTS = Path(__file__).resolve().parents[1] / "results"
AMX = RESULTS / "amx"  # measured on a processor that multiplies in bf16 itself
EPOCHS = "Epochs of the four presets"
QUALITY = "Time to the naive row's final validation accuracy"
ATAC = "ATAC + gene at full size"
PRESETS = {"dyngen": "Dyngen", "dbitseq": "DBiT-seq", "patchseq": "Patch-seq", "atacseq": "ATAC"}
SOONER = 10  # times, asked
TITLES = {"naive": "plain implementation"}


def load(folder: str | Path = RESULTS) -> dict[str, dict]:
    """Read what `make bench` left: one entry per benchmark of speed, empty where none has run."""
    plot.style()
    found = {
        path.stem: json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))
    }
    return {name: content for name, content in found.items() if "tables" in content}


def frame(found: dict[str, dict], caption: str) -> pd.DataFrame:
    """Give a table by its caption; an empty one where it was not measured."""
    for content in found.values():
        if caption in content["tables"]:
            return pd.DataFrame(content["tables"][caption])
    return pd.DataFrame()


def origin(found: dict[str, dict]) -> HTML:
    """Say what was measured on which machine, and that no GPU's numbers are among them."""
    machines: dict[str, list[str]] = {}
    for name, content in found.items():
        m = content["machine"]
        words = f"{m['processor']}, {m['threads']} threads, torch {m['torch']}"
        machines.setdefault(words, []).append(name)
    lines = [
        f"<strong>Measured on</strong> {html.escape(machine)}: {', '.join(names)}."
        for machine, names in machines.items()
    ]
    if "gpu" not in found:
        lines.append("<strong>No GPU was to be had</strong>: its tables are empty.")
    if not found:
        lines.append("No benchmark has run yet: <code>make bench</code>.")
    return page.box("<br>".join(lines), "scmoe-speed", "gpu" not in found)


def takeaway(found: dict[str, dict], amx: dict[str, dict]) -> Markdown:
    """Word the page's answer: how much faster, an epoch and to a quality; bf16's from `amx`."""
    said, other = [], frame(amx, EPOCHS)
    epochs = frame(found, EPOCHS)
    if len(epochs):
        ours = epochs[epochs["row"] == "scmoe float32"].set_index("preset")
        ratio = ours["epoch, naive / this"]
        said.append(
            "An epoch is "
            + ", ".join(f"{value:.1f} times ({PRESETS[name]})" for name, value in ratio.items())
            + " faster than in the plain implementation, in float32."
        )
        bf16 = other[other["row"].eq("scmoe bf16")] if len(other) else other
        both = pd.concat([epochs[epochs["row"].ne("scmoe bf16")], bf16])
        short = both[both["epoch, naive / this"] < both["asked"].astype(float)]
        said += [
            f"The target for {PRESETS[row['preset']]} in {row['row'].removeprefix('scmoe ')}, "
            f"{row['asked']:g} times, is missed ({row['epoch, naive / this']:.1f})."
            for _, row in short.iterrows()
        ]
    quality = frame(found, QUALITY)
    for data, rows in quality.groupby("data", sort=False) if len(quality) else ():
        best = rows.loc[rows.iloc[1:]["naive / this"].idxmax()]
        short = best["naive / this"] < SOONER
        said.append(
            f"Its accuracy after {rows['epochs trained'].iloc[0]:.0f} epochs on {data} is reached "
            f"{best['naive / this']:.1f} times sooner at best ({best['row']})"
            + (f"; {SOONER} times were asked." if short else ".")
        )
    return Markdown("**Takeaway.** " + " ".join(said or ["Nothing was measured yet."]))


def table(found: dict[str, dict], caption: str) -> HTML | Markdown:
    """Show a table, or say that it was not measured."""
    rows = frame(found, caption)
    if not len(rows):
        return _missing(caption)
    if "preset" in rows:
        rows["preset"] = rows["preset"].map(lambda name: PRESETS.get(name, name))
    for name in rows.select_dtypes("object"):
        rows[name] = rows[name].replace(TITLES).fillna("–")
    for name in rows.select_dtypes("number"):
        rows[name] = rows[name].map(_short)
    return page.table(rows.set_index(rows.columns[0]).rename_axis(None), caption)


def _short(value: float) -> str:
    """Three significant digits, never an exponent."""
    if not np.isfinite(value):
        return "–"
    return (
        np.format_float_positional(value, precision=3, unique=False, fractional=False, trim="-")
        if abs(value) < 1000
        else f"{value:,.0f}"
    )


def _missing(caption: str) -> Markdown:
    return Markdown(f"*{caption}: not measured yet.*")


def epochs(found: dict[str, dict]) -> Figure | Markdown:
    """Draw how much faster an epoch is than the plain implementation's, by preset."""
    rows = frame(found, EPOCHS)
    if not len(rows):
        return _missing(EPOCHS)
    rows = rows[rows["row"] != "naive"]
    fig, (ax,) = figure("An epoch: plain implementation / ours", height=2.8)
    names = list(dict.fromkeys(rows["preset"]))
    kinds = rows["row"].nunique()
    for number, (row, part) in enumerate(rows.groupby("row", sort=False)):
        place = np.arange(len(names)) + 0.36 * (number - (kinds - 1) / 2)
        values = part.set_index("preset").loc[names, "epoch, naive / this"]
        ax.bar(place, values, 0.34, label=row, color=list(METHODS.values())[number])
        for x, value in zip(place, values, strict=True):
            ax.annotate(f"{value:.1f}", (x, value), (0, 2), textcoords="offset points", ha="center")
    for x, name in enumerate(names):
        asked = rows.loc[rows["preset"] == name, "asked"].dropna()
        ax.hlines(asked, x - 0.36, x + 0.36, color=INK, ls="--", lw=1)
    ax.axhline(1, color=FAINT, lw=1)
    ax.set_xticks(range(len(names)), [PRESETS[name] for name in names])
    ax.set_ylabel("times faster")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def quality(found: dict[str, dict]) -> Figure | Markdown:
    """Draw the seconds to the plain implementation's final accuracy, one change after another."""
    rows = frame(found, QUALITY)
    if not len(rows):
        return _missing(QUALITY)
    sets = list(dict.fromkeys(rows["data"]))
    fig, axes = figure(
        "Seconds to the plain implementation's final validation accuracy",
        1, len(sets), height=2.6, sharey=True,
    )  # fmt: skip
    for ax, name in zip(axes, sets, strict=True):
        part = rows[rows["data"] == name]
        place = np.arange(len(part))[::-1]
        colours = [FAINT, *[METHODS["scMoE"]] * (len(part) - 1)]
        ax.barh(place, part["seconds to it"].astype(float), color=colours)
        for y, value in zip(place, part["seconds to it"].astype(float), strict=True):
            words = f"{value:.3g} s" if np.isfinite(value) else "never"
            ax.annotate(words, (value if np.isfinite(value) else 0.1, y), (3, 0),
                        textcoords="offset points", va="center")  # fmt: skip
        ax.set_yticks(place, part["row"].replace(TITLES))
        ax.set(title=name, xscale="log", xlabel="seconds")
        ax.margins(x=0.25)
    return fig


def atac(found: dict[str, dict]) -> Markdown:
    """Word the cost of the largest data set."""
    rows = frame(found, ATAC)
    if not len(rows):
        return _missing(ATAC)
    whole = rows.iloc[-1]
    slope = rows["log-log slope of an epoch"].dropna().iloc[0]
    return Markdown(
        f"At {whole['cells']:,.0f} cells an epoch takes {whole['seconds an epoch']:.0f} s and "
        f"memory peaks at {whole['peak memory, GB']:.2f} GB; seconds an epoch grow with the "
        f"number of cells to the power {slope:.2f}."
    )


def tidy(found: dict[str, dict]) -> pd.DataFrame:
    """Every table in one: benchmark, table, row, column, value."""
    parts = [
        pd.DataFrame(rows).melt(ignore_index=False, var_name="column").rename_axis("row")
        for content in found.values()
        for rows in content["tables"].values()
    ]
    names = [(name, caption) for name, content in found.items() for caption in content["tables"]]
    return pd.concat(parts, keys=names, names=["benchmark", "table"]) if parts else pd.DataFrame()
