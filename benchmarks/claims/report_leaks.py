"""What the page on leaks shows and says, worded from the records."""

from __future__ import annotations

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from benchmarks.claims import leaks
from scmoe import metrics, page, plot
from scmoe.colours import FAINT

LEAKY, HONEST = "#CC6677", "#332288"
NAMES = metrics.NAMES | {"r2_off_diag": "R², pairs i < j", "r2": "R²"}


def takeaway(live: pd.DataFrame, record: pd.DataFrame, data_source: str) -> Markdown:
    """Word the page's answer: what the largest leak is worth, and whether ours is the published."""
    said, here = [], []
    for name, table in (("In the table of record", record), ("In this run", live)):
        found = leaks.sizes(table, "dbitseq").set_index(["leak", "metric"])
        if (key := ("target read → source alone", "r2")) not in found.index:
            continue
        if table is live and data_source == "stand-in":
            name = "In this run, on simulated stand-in pixels"
        row = found.loc[key]
        (here if table is live else said).append(
            f"{name} (seeds: {row['seeds']:.0f}), DBiT-seq translations "
            f"score R² {row['with it']:.3f} as published, and {row['without']:.3f} when the model "
            f"no longer reads the target: the score is {_copied(row)}."
        )
    compared = leaks.beside_published_code(record)
    known = compared["agrees"].dropna().astype(bool)
    if len(known):
        said.append(
            f"The reimplementation agrees with the published code in {known.sum()} of "
            f"{len(known)} numbers that have a spread over seeds."
        )
    return Markdown("**Takeaway.** " + "\n\n".join(" ".join(part) for part in (said, here) if part))


def _copied(row) -> str:
    return "copied, not predicted" if row["without"] < 0.2 * row["with it"] else "in part predicted"


def changes(table: pd.DataFrame, dataset: str, title: str) -> Figure:
    """Draw each leak's score with it and without it; bars are standard deviations over seeds."""
    found = leaks.sizes(table, dataset)
    fig = Figure(figsize=(plot.WIDTH, 0.9 + 0.34 * len(found)), layout="constrained")
    ax = fig.subplots()
    fig.suptitle(title)
    rows = np.arange(len(found))[::-1]
    low, high = found["with it"], found["without"].clip(lower=-1)
    ax.hlines(rows, low, high, color=FAINT, lw=1.2, zorder=1)
    spread = found["sd of change"].fillna(0).to_numpy()
    ax.errorbar(high, rows, xerr=spread, fmt="o", color=HONEST, ms=7, label="without it")
    ax.plot(low, rows, "s", color=LEAKY, ms=7, label="with the leak")
    for row, value in zip(rows, found["without"], strict=True):
        if value < -1:
            ax.annotate(f"{value:.1f}", (-1, row), (0, 6), textcoords="offset points", fontsize=9)
    names = found["leak"] + " (" + found["metric"].map(NAMES) + ")"
    ax.set_yticks(rows, names)
    ax.axvline(0, color=FAINT, lw=0.8, ls=":")
    ax.set(ylim=(-0.6, len(found) - 0.4), xlabel="score")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def sizes(table: pd.DataFrame, dataset: str, caption: str) -> HTML:
    """Show what each leak is worth."""
    found = leaks.sizes(table, dataset)
    found["metric"] = found["metric"].map(NAMES)
    return page.table(found.set_index(["leak", "metric"]), caption)


def beside_published_code(record: pd.DataFrame) -> HTML:
    """Show our numbers beside those that the published code gave."""
    found = leaks.beside_published_code(record)
    found["metric"] = found["metric"].map(NAMES)
    found["agrees"] = (
        found["agrees"].map({True: "yes", False: "no"}).fillna("no spread to judge by")
    )
    index = ["dataset", "metric", "epoch", "reading"]
    return page.table(found.set_index(index), "Ours and the published code's, unsupervised")


def disagreements(record: pd.DataFrame) -> Markdown:
    """Say where the two do not agree."""
    found = leaks.beside_published_code(record)
    off = found[found["agrees"].map(lambda yes: yes is False)]
    if off.empty:
        return Markdown("They agree wherever there is a spread over seeds to judge by.")
    listed = "; ".join(
        f"{row.dataset}, {NAMES[row.metric]} ({row.reading}, {row.epoch} epoch): {row.ours:.3f} "
        f"against {row[8]:.3f}"
        for row in off.itertuples()
    )
    few = found.groupby("dataset")[["seeds", "its seeds"]].min()
    seeds = "; ".join(f"{n}: {r['seeds']} and {r['its seeds']}" for n, r in few.iterrows())
    return Markdown(
        f"They do not agree here: {listed}. Seeds, ours and the published code's at the least: "
        f"{seeds}. What the two do not share: its last batch of an epoch is a small one, ours are "
        "of equal size; it scales Patch-seq on all cells before the split, ours on the training "
        "cells and, when scoring, on those scored; features that do not vary are dropped here."
    )


def grids(records: pd.DataFrame, dataset: str, title: str) -> Figure:
    """Draw R² of every ordered pair, as published and from the source alone."""
    panels = {
        words: leaks.grid(records, dataset, scoring)
        for words, scoring in (("as published", leaks.AS_PUBLISHED),
                               ("target zeroed", "target zeroed"),
                               ("source alone", "others masked"))
    }  # fmt: skip
    return plot.translation_heatmap(panels, title)


def softmax_floor(table: pd.DataFrame, n_groups: int) -> Markdown:
    """Say where cross-entropy on softmax outputs ends, and where on logits."""
    loss = {
        name: leaks.spread(table, training=name, metric="training_loss")
        for name in (leaks.SOFTMAX, leaks.LOGITS)
    }
    soft, logits = loss[leaks.SOFTMAX], loss[leaks.LOGITS]
    if not soft["count"]:
        return Markdown("No supervised training is in these records.")
    return Markdown(
        f"With {n_groups} groups the loss on softmax outputs cannot fall below "
        f"{leaks.floor(n_groups):.3f}; training ended at {soft['mean']:.3f}, on logits at "
        f"{logits['mean']:.3f}."
    )


def origin() -> Markdown:
    """Say where the table of record comes from: the first lines of its file."""
    return page.provenance(leaks.BOOK / "reference_leaks.csv")


def left(run, records: pd.DataFrame) -> Markdown:
    """Write the records of this run, and say where."""
    path = run.finish(records)
    return Markdown(f"Every number of this run is in `{path}`, and its models beside it.")
