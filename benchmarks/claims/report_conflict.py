"""What the page on optimization conflict shows and says, worded from the records."""

from __future__ import annotations

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from benchmarks.claims import conflict
from scmoe import page, plot
from scmoe.colours import FAINT, title_of

COLOURS = {
    conflict.SPARSE: "#332288", conflict.DENSE: "#CC6677", conflict.EARLY: "#DDAA33",
    conflict.LATE: "#999933", conflict.STRICT: "#117733",
}  # fmt: skip
LADDERS = {
    "dyngen": "Dyngen", "dyngen, hard": "Dyngen, hard", "patchseq": "Patch-seq",
    "dbitseq": "DBiT-seq, blocks",
}  # fmt: skip
NAMES = {"accuracy": "accuracy", "r2": "R²"}


def takeaway(table: pd.DataFrame) -> Markdown:
    """Word the answer: who loses by adding modalities, and whether sparse experts are spared."""
    found = conflict.changes(table)
    if found["low"].isna().all():
        return Markdown("**Takeaway.** One seed has no spread: nothing can be said from it.")
    spared = conflict.spared(table)
    clear = spared[spared["low"] > 0]
    worse = spared[spared["high"] < 0]
    lost = found[(found["method"] == conflict.DENSE) & (found["high"] < 0)]
    saved = clear.merge(lost, on=["ladder", "metric"])
    said = [
        f"Further modalities clearly harm a dense network in {_listed(lost)}."
        if len(lost)
        else "Further modalities clearly harm a dense network on no ladder: no conflict shows.",
        f"Sparse experts gain clearly more from them in {len(clear)} of {len(spared)} comparisons, "
        f"clearly less in {len(worse)}: that they avoid a conflict "
        + (f"holds for {_listed(saved)}." if len(saved) else "is not borne out here."),
    ]
    strict = found[found["method"] == conflict.STRICT]
    if len(strict):
        harmed, helped = strict[strict["high"] < 0], strict[strict["low"] > 0]
        said.append(
            f"The strict recipe is clearly harmed on {_listed(harmed) or 'no ladder'} and clearly "
            f"helped on {_listed(helped) or 'none'}."
        )
    counts = [
        _tally(found, "accuracy", "accuracy, from one modality to all"),
        _tally(found, "r2", "R² of the same translations, from two to all"),
        "Clear means that a 95 % interval excludes 0; by chance alone one in twenty would.",
    ]
    linear = found[found["method"].isin([conflict.EARLY, conflict.LATE]) & (found["high"] < 0)]
    if len(linear):
        said.append(
            f"Logistic regression, which has no experts and one task, loses too ({_listed(linear)})"
            ": adding modalities can hurt any method."
        )
    return Markdown(f"**Takeaway.** {' '.join(said)}\n\n{' '.join(counts)}")


def _tally(found, metric, words) -> str:
    """Count the ladders on which an interval lies below 0, and above, by method."""
    part, counts = found[found["metric"] == metric], []
    for method in conflict.METHODS:
        rows = part[part["method"] == method]
        if len(rows):
            down, up = (rows["high"] < 0).sum(), (rows["low"] > 0).sum()
            counts.append(f"{method} {down} and {up}")
    n = part["ladder"].nunique()
    return f"Clear losses and gains on {n} ladders, {words}: {'; '.join(counts)}."


def _listed(rows) -> str:
    pairs = rows["ladder"].map(LADDERS) + " (" + rows["metric"].map(NAMES) + ")"
    return "; ".join(dict.fromkeys(pairs))


def climbing(table: pd.DataFrame, metric: str, title: str) -> Figure:
    """Draw a metric by number of modalities, one panel a ladder, with 95 % intervals."""
    part = table[table["metric"] == metric]
    ladders = [name for name in LADDERS if name in set(part["dataset"])]
    n_columns = min(2, len(ladders))
    n_rows = -(-len(ladders) // n_columns)
    fig = Figure(figsize=(plot.WIDTH, 0.9 + 2.4 * n_rows), layout="constrained")
    axes = fig.subplots(n_rows, n_columns, squeeze=False).ravel()
    fig.suptitle(title)
    for ax, ladder in zip(axes, ladders, strict=False):
        for shift, method in enumerate(conflict.METHODS):
            rows = part[(part["dataset"] == ladder) & (part["method"] == method)]
            if rows.empty:
                continue
            values = rows.groupby("n")["value"].agg(lambda v: conflict.interval(v))
            mean, low, high = np.array(values.tolist(), float).T
            x = values.index + 0.06 * (shift - 2)
            error = np.nan_to_num([mean - low, high - mean])
            ax.errorbar(x, mean, error, fmt=f"{plot.MARKERS[shift]}-", ms=5, lw=1.2, elinewidth=0.8,
                        color=COLOURS[method], label=method)  # fmt: skip
        names = conflict.LADDERS[ladder]
        words = [title_of(names[0]), *(f"+ {title_of(name)}" for name in names[1:])]
        ax.set_xticks(np.arange(len(names)) + 1, words, fontsize=9)
        ax.set(title=LADDERS[ladder], ylabel=NAMES[metric], xlim=(0.7, len(names) + 0.3))
    handles = {}
    for ax in axes:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=2, fontsize=9)
    return fig


def changes(table: pd.DataFrame, caption: str) -> HTML:
    """Show what all further modalities change, by ladder and method."""
    found = conflict.changes(table)
    found = found.assign(ladder=found["ladder"].map(LADDERS), metric=found["metric"].map(NAMES))
    return page.table(found.set_index(["ladder", "metric", "method"]), caption)


def spared(table: pd.DataFrame, caption: str) -> HTML:
    """Show how much more sparse experts gain than the dense network."""
    found = conflict.spared(table)
    found = found.assign(ladder=found["ladder"].map(LADDERS), metric=found["metric"].map(NAMES))
    return page.table(found.set_index(["ladder", "metric"]), caption)


def gradients(table: pd.DataFrame, title: str) -> Figure:
    """Draw the cosine of the tasks' gradients along training, sparse and dense."""
    found = conflict.gradients(table)
    ladders = [name for name in LADDERS if name in set(found["dataset"])]
    kinds = ["groups, translations", "pairs"]
    fig = Figure(figsize=(plot.WIDTH, 0.9 + 1.9 * len(ladders)), layout="constrained")
    axes = fig.subplots(len(ladders), 2, squeeze=False, sharex=True, sharey=True)
    fig.suptitle(title)
    for row, ladder in zip(axes, ladders, strict=True):
        for ax, tasks in zip(row, kinds, strict=True):
            part = found[(found["dataset"] == ladder) & (found["tasks"] == tasks)]
            for method, line in ((conflict.SPARSE, "-"), (conflict.DENSE, "--")):
                for n, many, style in ((2, "two", "o"), (part["n"].max(), "all", "s")):
                    rows = part[(part["method"] == method) & (part["n"] == n)]
                    mean = rows.groupby("epoch")["value"].mean()
                    ax.plot(mean.index, mean, line, marker=style, ms=4, color=COLOURS[method],
                            label=f"{method}, {many} modalities")  # fmt: skip
            ax.axhline(0, color=FAINT, lw=0.8, ls=":")
            ax.set_title(f"{LADDERS[ladder]}: {tasks}", fontsize=10)
        row[0].set_ylabel("cosine")
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    labels = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    fig.legend(labels.values(), labels, loc="outside lower center", ncols=2, fontsize=9)
    return fig


def about_gradients(table: pd.DataFrame) -> Markdown:
    """Say how the tasks' gradients lie to each other, and whether sparsity turns them."""
    found = conflict.gradients(table)
    per_run = found.groupby(["tasks", "method", "dataset", "n", "seed"])["value"].mean()
    said = []
    for tasks, words in (("groups, translations", "the group loss and the translations"),
                         ("pairs", "two translations")):  # fmt: skip
        both = per_run[tasks].unstack("method")
        mean = {m: both[m].mean() for m in (conflict.SPARSE, conflict.DENSE)}
        diff, low, high = conflict.interval(
            (both[conflict.SPARSE] - both[conflict.DENSE]).groupby("seed").mean()
        )
        negative = (found[found["tasks"] == tasks]["value"] < 0).mean()
        said.append(
            f"Gradients of {words} have a mean cosine of {mean[conflict.SPARSE]:.3f} with sparse "
            f"experts and {mean[conflict.DENSE]:.3f} with a dense network (difference {diff:+.3f}"
            + (f", 95 % interval {low:+.3f} to {high:+.3f}" if np.isfinite(low) else "")
            + f"); it is negative in {negative:.0%} of the comparisons."
        )
    return Markdown(" ".join(said))


def origin() -> Markdown:
    """Say where the table of record comes from: the first lines of its file."""
    return page.provenance(conflict.REFERENCE)
