"""The learning curve: who is ahead of whom, by number of training cells, paired by seed.

The table of record is ``book/reference_scale.jsonl``: lines of ``python -m benchmarks.runner curve``.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks import runner
from benchmarks.claims.conflict import interval
from benchmarks.record.collect import BOOK
from scmoe import plot
from scmoe.colours import method_colour, title_of
from scmoe.metrics import NAMES

TABLE = BOOK / "reference_scale.jsonl"
EXPERTS, LINEAR, LOGISTIC = "scMoE experts", "scMoE linear", "logistic regression"
PARTS = ["scMoE", EXPERTS, LINEAR]  # one case of the runner, which trains and times them together
DENSE = list(runner.DENSE)
METHODS = [*PARTS, *DENSE, *runner.RIVALS]
COLOURS = dict(zip(DENSE, ("#CC6677", "#882255"), strict=True)) | {
    "kernel ridge": "#117733", "kernel ridge ensemble": "#88CCEE", "gradient boosting": "#AA4499",
}  # fmt: skip
CONTRASTS = [(EXPERTS, LINEAR), (EXPERTS, LOGISTIC), *((EXPERTS, dense) for dense in DENSE)]
SCORES = ["accuracy", "macro_f1", "r2"]
WORDS = NAMES | {"seconds": "seconds", "gigabytes": "gigabytes"}
SETS = {"mop": "mouse cortex"}
LEAST_SEEDS = 3  # of fewer, no interval is worth a look


def read(path: Path = TABLE) -> pd.DataFrame:
    """Read a curve: one row per set, number of cells, method and seed; each metric is a column.

    `r2` is the mean over ordered pairs of modalities, and `r2 rna from atac` one of them. Seconds
    and memory are of a whole case: the two parts of scMoE, trained with it, have none of their own.
    """
    rows = []
    for case in runner.read(path.stem, path.parent):
        for method, found in case["scores"].items():
            pairs = [value for name, value in found.items() if name.startswith("r2 ")]
            found = found | {"method": method, "r2": np.mean(pairs) if pairs else np.nan}
            if method != case["method"]:
                found |= {"seconds": np.nan, "gigabytes": np.nan}
            rows.append(case | found)
    return pd.DataFrame(rows).drop(columns="scores")


def differences(
    table: pd.DataFrame, contrasts: Iterable[tuple[str, str]], metrics: Iterable[str] = SCORES
) -> pd.DataFrame:
    """Give paired differences, the first method less the second, with 95 % intervals over seeds.

    A seed has test cells of its own, on which both methods are scored. Sizes that fewer than
    `LEAST_SEEDS` seeds of both methods have are left out.
    """
    rows = []
    for ours, theirs in contrasts:
        for metric in metrics:
            wide = table.pivot(index=["set", "cells", "seed"], columns="method", values=metric)
            wide = wide.reindex(columns=[ours, theirs])
            found = (wide[ours] - wide[theirs]).dropna()
            for (name, cells), values in found.groupby(["set", "cells"]):
                if len(values) >= LEAST_SEEDS:
                    mean, low, high = interval(values)
                    rows.append((name, metric, ours, theirs, cells, mean, low, high, len(values)))
    columns = ["set", "metric", "ours", "theirs", "cells", "difference", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def missing(table: pd.DataFrame) -> pd.DataFrame:
    """Count cases of the runner's curve that are planned, and that the table lacks, by set."""
    done = set(zip(table["set"], table["cells"], table["method"], table["seed"], strict=True))
    plan = pd.DataFrame(runner.curve(None, None, range(LEAST_SEEDS)))
    plan["what"] = np.where(plan["method"].isin(runner.GRID), "number of experts × k", "curve")
    plan["missing"] = [row not in done for row in plan.iloc[:, :4].itertuples(index=False)]
    counts = plan.groupby(["set", "what"], sort=False)["missing"].agg(["size", "sum"])
    return counts.rename(columns={"size": "planned", "sum": "not measured yet"})


def by_size(table: pd.DataFrame, metrics: list[str], title: str) -> Figure:
    """Draw metrics (columns) of each set (rows) by number of training cells.

    A line is the mean over seeds, a bar reaches from the lowest seed to the highest. Sizes with
    fewer than `LEAST_SEEDS` seeds are left out.
    """
    sets = list(dict.fromkeys(table["set"]))
    fig, axes = plot.figure(title, len(sets), len(metrics), height=1.3 + 2.3 * len(sets))
    for ax, (name, metric) in zip(axes, ((s, m) for s in sets for m in metrics), strict=True):
        for i, method in enumerate(METHODS):
            rows = table[(table["set"] == name) & (table["method"] == method)]
            found = rows.groupby("cells")[metric].agg(["mean", "min", "max", "count"])
            found = found[found["count"] >= LEAST_SEEDS]
            if len(found):
                spread = np.abs([found["mean"] - found["min"], found["max"] - found["mean"]])
                x = found.index * 1.02 ** (i - len(METHODS) / 2)
                ax.errorbar(x, found["mean"], spread, fmt=f"{plot.MARKERS[i % 9]}-", ms=4, lw=1.2,
                            elinewidth=0.8, color=_colour(method), label=method)  # fmt: skip
        _cells_axis(ax, table["cells"], name, metric)
    return plot.legend(fig, 3)


def ahead(found: pd.DataFrame, title: str, bar: float | None = None) -> Figure:
    """Draw paired differences with their intervals, sets in rows and metrics in columns.

    A dotted line is the `bar` that was asked of accuracy.
    """
    sets, metrics = (list(dict.fromkeys(found[name])) for name in ("set", "metric"))
    fig, axes = plot.figure(title, len(sets), len(metrics), height=1.1 + 2.3 * len(sets))
    for ax, (name, metric) in zip(axes, ((s, m) for s in sets for m in metrics), strict=True):
        here = found[(found["set"] == name) & (found["metric"] == metric)]
        ax.axhline(0, color="#888888", lw=1)
        if bar is not None and metric == "accuracy":
            ax.axhline(bar, color="#888888", lw=1, ls=":")
        for i, theirs in enumerate(dict.fromkeys(found["theirs"])):
            rows = here[here["theirs"] == theirs]
            mean, low, high = rows[["difference", "low", "high"]].to_numpy().T
            ax.errorbar(rows["cells"] * 1.06 ** (i - 1.5), mean, [mean - low, high - mean], ms=4,
                        fmt=plot.MARKERS[i], lw=1.2, color=_colour(theirs),
                        label=f"less {theirs}")  # fmt: skip
        _cells_axis(ax, found["cells"], name, metric)
    return plot.legend(fig, 2)


def project(measured: pd.DataFrame, sizes: Iterable[int], below: int) -> pd.DataFrame:
    """Give what straight lines through the measured sizes `below` one say of other sizes.

    Both tables have numbers of cells as index, and a column for each quantity.
    """
    few, sizes = measured[measured.index < below], list(sizes)
    lines = {name: np.polyfit(few.index, few[name], 1) for name in measured}
    told = {name: np.polyval(line, sizes) for name, line in lines.items()}
    return pd.DataFrame(told, pd.Index(sizes, name="cells"))


def on_paper(measured: pd.DataFrame, told: pd.DataFrame, below: int, title: str) -> Figure:
    """Draw each quantity by number of cells: lines as `project` gives them, and what was measured.

    A hollow mark is a size that no line was drawn through.
    """
    fig, axes = plot.figure(title, 1, len(told.columns), height=3.2)
    for ax, name in zip(axes, told, strict=True):
        ax.plot(told.index, told[name], "--", color="#888888", lw=1.2)
        for rows, face in ((measured.index < below, None), (measured.index >= below, "none")):
            ax.plot(measured.index[rows], measured[name][rows], "o", color="#0a5f96", mfc=face)
        ax.set(xscale="log", yscale="log", title=name)
        ax.set_xlabel("cells", fontsize=9)
    return fig


def _colour(method: str) -> str:
    return COLOURS.get(method) or method_colour(method)


def _cells_axis(ax, cells: pd.Series, name: str, metric: str) -> None:
    ticks = sorted(set(cells))
    ax.set(xscale="log")
    ax.set_xlabel("training cells", fontsize=9)
    ax.set_title(f"{SETS.get(name, title_of(name))}: {WORDS[metric]}", fontsize=10)
    ax.set_xticks(ticks, [f"{n:,}" for n in ticks], fontsize=8, rotation=45)
    ax.set_xticks([], minor=True)
    ax.tick_params(axis="y", labelsize=8)
