"""Figures from arrays and tables: one look and one set of sizes for the whole book."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib as mpl
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from pandas.api.types import is_numeric_dtype

from scmoe.colours import (
    FAINT,
    INK,
    SHARES,
    TOL_MUTED,
    group_colours,
    in_order,
    ink_of,
    ink_on,
    method_colour,
    modality_colour,
    title_of,
)
from scmoe.metrics import NAMES

WIDTH = 6.6  # inches: with 11 pt text still legible on a phone's 350 pixels
MARKERS = "osD^vPX<>"
TRACES = [("", "training", "--", FAINT), ("val_", "held out", "-", "#332288")]


def style() -> None:
    """Set up all figures made from here on: sizes, colours, sharp output in notebooks."""
    mpl.rcParams.update(
        {
            "font.size": 11, "axes.titlesize": 11, "axes.labelsize": 11, "legend.fontsize": 10,
            "xtick.labelsize": 10, "ytick.labelsize": 10, "figure.titlesize": 12,
            "figure.dpi": 100, "savefig.dpi": 200, "figure.facecolor": "white",
            "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#666666",
            "axes.prop_cycle": cycler(color=TOL_MUTED), "image.cmap": "cividis",
            "legend.frameon": False, "lines.linewidth": 1.8, "svg.hashsalt": "scmoe",
        }
    )  # fmt: skip
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})
    except (ImportError, AttributeError):  # not in a notebook
        return


def scores(table: pd.DataFrame, metrics: Sequence[str], title: str) -> Figure:
    """Draw methods beside each other: one dot per method, one panel per metric that was scored.

    Parameters
    ----------
    table
        Methods in rows, best first; metrics in columns (`scmoe.metrics.wide`). A method with none
        of the metrics is left out.
    """
    table = table.reindex(columns=[m for m in metrics if m in table]).dropna(how="all")
    fig, axes = figure(title, 1, table.shape[1], height=0.7 + 0.36 * len(table), sharey=True)
    rows = np.arange(len(table))[::-1]
    for ax, column in zip(axes, table, strict=True):
        words = NAMES.get(column, column)
        values = table[column].to_numpy(float)
        low = min(0.0, np.nanmin(values, initial=0.0))
        high = max(np.nanmax(values, initial=0.0), 0.1)
        ax.hlines(rows, low, values, color="#dddddd", lw=1.5, zorder=1)
        for row, value, name in zip(rows, values, table.index, strict=True):
            ours = str(name).startswith("scMoE")
            if np.isfinite(value):
                ax.plot(value, row, "o" if ours else "s", color=method_colour(name), ms=8)
                ax.annotate(f"{value:.2f}", (value, row), (7, 0), textcoords="offset points",
                            va="center", fontsize=10, weight="bold" if ours else None)  # fmt: skip
        span = high - low
        ax.set(
            title=words, xlim=(low - 0.04 * span, low + 1.35 * span), ylim=(-0.6, len(table) - 0.4)
        )
        ax.set_yticks(rows, table.index)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    return fig


def standings(tables: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Draw how far each method (rows) is behind the best of each set (columns), a panel per task.

    Parameters
    ----------
    tables
        Task -> method × set: mean score, NaN (grey) where a method did not take part.
    """
    rows = [len(table) for table in tables.values()]
    fig, axes = figure(title, len(tables), height=2.4 + 0.2 * sum(rows), height_ratios=rows)
    for ax, (task, table) in zip(axes, tables.items(), strict=True):
        behind = table.max() - table
        table = table.loc[behind.mean(axis=1).sort_values().index, in_order(table)]
        behind = behind.reindex_like(table)
        mesh = heat(ax, behind, 0, 0.2, behind.eq(0).replace({True: "●", False: ""}), size=7)
        ax.set(title=task, facecolor="#d8d8d8")
        ax.tick_params(labelsize=8)
        ax.tick_params(axis="x", rotation=90, labelbottom=ax is axes[-1])
    fig.colorbar(mesh, ax=list(axes), label="behind the best of the set", extend="max", shrink=0.5)
    return fig


def group_sizes(table: pd.DataFrame, title: str) -> Figure:
    """Draw how many cells each group (rows) has in each part (columns), stacked."""
    table = table.fillna(0).loc[in_order(table.index)]
    fig, (ax,) = figure(title, height=1.3 + 0.21 * len(table))
    rows, left = np.arange(len(table))[::-1], np.zeros(len(table))
    for column, colour in zip(table, ["#BBBBBB", "#77AADD", "#EE8866", "#EEDD88"], strict=False):
        ax.barh(rows, table[column], 0.8, left, label=column, color=colour)
        left += table[column].to_numpy()
    ax.set(xlabel="cells", ylim=(-0.6, len(table) - 0.4))
    ax.set_yticks(rows, table.index)
    return legend(fig, table.shape[1])


def batches(table: pd.DataFrame, held_out: Sequence[str], title: str) -> Figure:
    """Draw which groups (rows) occur in which batches (columns), as shares of a batch.

    `held_out` are the batches of the test cells. A cross marks a group that a batch lacks.
    """
    share = 100 * table / table.sum()
    fig, (ax,) = figure(title, height=1.3 + 0.24 * len(table))
    mesh = heat(ax, share, 0, max(share.to_numpy().max(), 1))
    for row, column in np.argwhere(table.to_numpy() == 0):
        ax.text(column + 0.5, row + 0.5, "×", ha="center", va="center", color=INK, fontsize=9)
    names = [f"{b}\n{table[b].sum():,} cells{' (test)' * (b in held_out)}" for b in table]
    crowded = table.shape[1] > 4
    ax.set_xticks(np.arange(table.shape[1]) + 0.5, names, rotation=90 if crowded else 0)
    fig.colorbar(mesh, ax=ax, label="cells of the batch (%)")
    return fig


def training_curves(history: pd.DataFrame, title: str) -> Figure:
    """Draw the losses of training cells and of cells held out, by epoch; one panel per loss.

    Parameters
    ----------
    history
        As `scmoe.ScMoE.history_` has it: `epoch`, losses, and `val_` losses.
    """
    losses = history.set_index("epoch").dropna(axis=1, how="all")
    losses = losses.drop(columns=["watched", "improved"], errors="ignore")
    parts = [name for name in losses if not name.startswith("val_")]
    n_rows = -(-len(parts) // 3)
    fig, axes = figure(title, n_rows, min(len(parts), 3), height=0.9 + 2.1 * n_rows)
    for ax, part in zip(axes, parts, strict=False):
        for prefix, words, line, colour in TRACES:
            if (column := f"{prefix}{part}") in losses:
                ax.plot(losses.index, losses[column], line, color=colour, label=words,
                        marker="o" if len(losses) < 3 else None)  # fmt: skip
        kind, _, modality = part.partition(" ")
        words = {"decoder": "translation to", "gate": "load balance"}.get(kind, kind)
        ax.set(title=f"{words} {title_of(modality)}".strip(), xlabel="epoch")
    for ax in axes[len(parts) :]:
        ax.set_visible(False)
    axes[0].set_ylabel("loss")
    return legend(fig, 2)


def confusion(truth, predicted, title: str) -> Figure:
    """Draw which groups (rows, true) are taken for which (columns, predicted).

    Colour is the share of the true group's cells, and the numbers are cells. Columns have the
    rows' order; what else was predicted comes last.
    """
    table = pd.crosstab(np.asarray(truth, str), np.asarray(predicted, str))
    rows = in_order(table.index)
    columns = [c for c in rows if c in table]
    table = table.loc[rows, columns + in_order(set(table) - set(columns))]
    share = table.div(table.sum(1), axis=0)
    many = len(table) > 14
    fig, (ax,) = figure(title, height=1.6 + (0.2 if many else 0.32) * len(table))
    heat(ax, share, 0, 1, table.replace(0, "").astype(str), size=8 if many else 10)
    ax.set(ylabel="true group", xlabel="predicted group")
    ax.tick_params(axis="x", rotation=90, labelsize=9 if many else 10)
    ax.tick_params(axis="y", labelsize=9 if many else 10)
    return fig


def cells(xy: np.ndarray, panels: Mapping[str, Sequence], title: str, behind=None,
          outlined=None, tissue: bool = False) -> Figure:  # fmt: skip
    """Draw cells in the plane, once per panel: coloured by a group each has, or by a number.

    Parameters
    ----------
    xy
        `(n_cells, 2)`, without units; in a `tissue`, column and row of pixels, rows downwards.
    panels
        Title of a panel -> group of each cell (text), or a number each.
    behind
        `(n, 2)`: further cells, drawn as small grey dots behind.
    outlined
        `(n_cells,)` of bool: cells with a dark edge, such as the test cells.
    """
    named = {words for words, values in panels.items() if not is_numeric_dtype(np.asarray(values))}
    colours = group_colours({str(value) for words in named for value in panels[words]})
    n_columns = int(np.clip(68 // (max(map(len, colours), default=1) + 4), 1, 7))
    height = 0.9 + min(0.9 * WIDTH / len(panels), 3.0) + 0.2 * -(-len(colours) // n_columns)
    fig, axes = figure(title, 1, len(panels), height=height, sharex=True, sharey=True)
    size = _pixel_size(xy, len(panels)) if tissue else np.clip(9000 / max(len(xy), 1), 2, 26)
    edges = np.where(np.zeros(len(xy), bool) if outlined is None else outlined, INK, "none")
    for ax, (words, values) in zip(axes, panels.items(), strict=True):
        if behind is not None:
            ax.scatter(*behind.T, s=5, color="#d8d8d8", linewidths=0, rasterized=len(behind) > 1000)
        look = {"s": size, "linewidths": 0.9, "rasterized": len(xy) > 1000}
        if words in named:
            values = np.asarray(values, str)
            for i, (group, colour) in enumerate(colours.items()):
                here, shape = values == group, "s" if tissue else MARKERS[i % len(MARKERS)]
                ax.scatter(*xy[here].T, c=colour, marker=shape, ec=edges[here], **look)
        else:
            shape = "s" if tissue else "o"
            dots = ax.scatter(*xy.T, c=values, cmap="cividis", marker=shape, ec=edges, **look)
            fig.colorbar(dots, ax=ax, shrink=0.6)
        ax.set(title=fill(words, 64 // len(panels)), xticks=[], yticks=[])
        ax.set(aspect="equal") if tissue else ax.set_box_aspect(1)
        ax.spines[:].set_visible(False)
    if tissue:
        axes[0].invert_yaxis()
    handles = [
        mpl.lines.Line2D([], [], ls="", color=colour, label=group, ms=6,
                         marker="s" if tissue else MARKERS[i % len(MARKERS)])
        for i, (group, colour) in enumerate(colours.items())
    ]  # fmt: skip
    if handles:
        fig.legend(handles=handles, loc="outside lower center", ncols=n_columns, fontsize=9.5,
                   handletextpad=0.1, columnspacing=0.9)  # fmt: skip
    return fig


def _pixel_size(xy: np.ndarray, n_panels: int) -> float:
    """Area of a marker, in points², at which neighbouring pixels just touch."""
    steps = np.diff(np.unique(xy[:, 0]))
    pitch = np.median(steps[steps > 1e-9]) if (steps > 1e-9).any() else 1.0
    extent = np.ptp(xy, axis=0).max() / pitch + 1
    return (72 * 0.9 * min(WIDTH / n_panels, 3.2) / extent) ** 2


def translation_heatmap(tables: Mapping[str, pd.DataFrame], title: str):
    """Draw how well each modality (rows) is predicted from each other one (columns), per method.

    Parameters
    ----------
    tables
        Method -> table target × source, NaN where there is no such pair (`scmoe.metrics.grids`).

    Returns
    -------
    The figure; None without tables, as where there is one modality.
    """
    if not tables:
        return None
    high = max(max(np.nanmax(table.to_numpy(), initial=0) for table in tables.values()), 0.1)
    n = len(next(iter(tables.values())))
    fig, axes = figure(
        title, 1, len(tables), height=1.2 + 2.0 * n / (n + 1) + 0.25 * n, sharey=True
    )
    for ax, (method, table) in zip(axes, tables.items(), strict=True):
        words = table.map(lambda value: "–" if np.isnan(value) else f"{value:.2f}")
        named = table.rename(index=title_of, columns=title_of)
        mesh = heat(ax, named, 0, high, words)
        ax.set_title(fill(method, 56 // len(tables)), color=ink_of(method_colour(method)),
                     weight="bold")  # fmt: skip
        ax.set_xlabel("from (source)")
        ax.set_xticks(
            np.arange(n) + 0.5, named.columns, rotation=35, ha="right", rotation_mode="anchor"
        )
    axes[0].set_ylabel("predicted (target)")
    fig.colorbar(mesh, ax=list(axes), label="R²", shrink=0.9, extend="min")
    return fig


def expert_usage(usage: pd.DataFrame, title: str) -> Figure:
    """Draw which experts (columns) serve which groups (rows), one panel per modality.

    Parameters
    ----------
    usage
        (modality, group) × expert; a row holds shares of gate weight and sums to 1
        (`scmoe.explain.routing.usage`).
    """
    tables = {m: part.droplevel(0) for m, part in usage.groupby(level=0, sort=False)}
    n_rows = usage.index.get_level_values(1).nunique()
    size = 9 if n_rows > 14 else 10
    fig, axes = figure(title, 1, len(tables), height=1.3 + 0.2 * max(n_rows, 5), sharey=True)
    high = usage.to_numpy().max()
    for ax, (modality, table) in zip(axes, tables.items(), strict=True):
        table = table.loc[in_order(table.index)]
        mesh = heat(ax, table, 0, high)
        ax.set_title(title_of(modality), color=ink_of(modality_colour(modality)), weight="bold")
        ax.set_xlabel("expert")
        every = max(1, table.shape[1] // 5)
        ax.set_xticks(np.arange(0, table.shape[1], every) + 0.5, table.columns[::every])
        ax.tick_params(axis="y", labelsize=size)
    fig.colorbar(mesh, ax=list(axes), label="share of gate weight", shrink=0.9)
    return fig


class _Figure(Figure):
    """A figure in which dollars of users' names are no mathematics; on a log axis they are."""

    def draw(self, renderer):
        """Draw all text as it is, but for what matplotlib itself has written."""
        for text in self.findobj(Text):
            if "$" in text.get_text() and r"\mathdefault" not in text.get_text():
                text.set_parse_math(False)
        super().draw(renderer)


def figure(title: str, n_rows=1, n_columns=1, height=3.0, **options):
    """Make a figure of the book's width, and its axes in a flat array."""
    fig = _Figure(figsize=(WIDTH, height), layout="constrained")
    axes = fig.subplots(n_rows, n_columns, squeeze=False, **options)
    fig.suptitle(fill(title, 70))
    return fig, axes.ravel()


def legend(fig: Figure, n_columns: int) -> Figure:
    """Put one legend below all panels, each name once."""
    handles = {}
    for ax in fig.axes:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=n_columns)
    return fig


def heat(ax: Axes, table: pd.DataFrame, low, high, words=None, size=10):
    """Draw a table as coloured cells, first row on top; `words` go into the cells."""
    values = np.ma.masked_invalid(table.to_numpy(float))
    mesh = ax.pcolormesh(
        values, cmap=SHARES, vmin=low, vmax=high, edgecolors="#e4e4e4", linewidth=0.5
    )
    ax.set(ylim=(len(table), 0))
    ax.set_xticks(np.arange(table.shape[1]) + 0.5, table.columns)
    ax.set_yticks(np.arange(len(table)) + 0.5, table.index)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if words is not None:
        for (row, column), value in np.ndenumerate(values.filled(low)):
            ink = ink_on(mesh.to_rgba(value))
            ax.text(column + 0.5, row + 0.5, words.iat[row, column], ha="center", va="center",
                    fontsize=size, color=ink)  # fmt: skip
    return mesh
