"""Figures of explanations, from arrays and tables, in the look of `scmoe.plot`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from scmoe.colours import FAINT, INK, SHARES, group_colours, modality_colour, title_of
from scmoe.explain.attribution import METHODS, PRIMARY
from scmoe.plot import figure

COLOURS = {  # Paul Tol's bright and vibrant schemes: ours in blues, SHAP's in reds and yellow
    PRIMARY: "#332288", "gradient_x_input": "#4477AA", "integrated_gradients": "#66CCEE",
    "routing": "#228833", "shap_gradient": "#EE6677", "shap_permutation": "#AA3377",
    "shap_kernel": "#CCBB44", "shap_deep": "#EE7733", "random": FAINT,
}  # fmt: skip
DIVERGING = "RdBu_r"


def frontier(table: pd.DataFrame, title: str) -> Figure:
    """Draw what each method costs against what its explanations are worth.

    Parameters
    ----------
    table
        Method × `seconds`, `deletion`, `insertion` and their `_low` and `_high`.
    """
    fig, axes = figure(title, 1, 2, height=4.2, sharex=True)
    for ax, what in zip(axes, ("deletion", "insertion"), strict=True):
        for name, row in table.iterrows():
            error = [[row[what] - row[f"{what}_low"]], [row[f"{what}_high"] - row[what]]]
            ax.errorbar(row["seconds"], row[what], error, color=COLOURS[name], fmt=_marker(name),
                        ms=8, capsize=3, lw=1.2, label=METHODS[name])  # fmt: skip
        ax.axhline(0, color=FAINT, lw=0.8, ls=":")
        ax.set(xscale="log", xlabel="seconds per 1000 cells", title=what)
    axes[0].set_ylabel("area better than random order")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def deletion_curves(curves: pd.DataFrame, title: str) -> Figure:
    """Draw how the answer falls and rises as features are replaced and put back.

    Parameters
    ----------
    curves
        Columns `method, what, fraction, answer`.
    """
    fig, axes = figure(title, 1, 2, height=4.2, sharey=True)
    for ax, what in zip(axes, ("deletion", "insertion"), strict=True):
        for name, part in curves[curves["what"] == what].groupby("method", sort=False):
            style = ":" if name == "random" else "-"
            ax.plot(100 * part["fraction"], part["answer"], style, color=COLOURS[name],
                    label=METHODS.get(name, "random order"))  # fmt: skip
        ax.set(title=what, xlabel="features (%)")
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axes[0].set_ylabel("centred logit, rescaled")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def heatmap(table: pd.DataFrame, title: str, label: str, signed: bool = False,
            digits: int | None = 2, rows: str = "", columns: str = "") -> Figure:  # fmt: skip
    """Draw a table as coloured cells.

    Parameters
    ----------
    label
        What colour means, with its unit.
    signed
        Colours on both sides of zero.
    digits
        Of the number in each cell; None for no numbers.
    rows, columns
        What rows and columns are.
    """
    values = table.to_numpy(float)
    finite = values[np.isfinite(values)]
    high = max(np.abs(finite).max(initial=0), 1e-9)
    low = -high if signed else min(finite.min(initial=0), 0)
    fig, axes = figure(title, height=1.5 + 0.27 * len(table))
    mesh = axes[0].pcolormesh(np.ma.masked_invalid(values), cmap=DIVERGING if signed else SHARES,
                              vmin=low, vmax=high, edgecolors="#e4e4e4", linewidth=0.5)  # fmt: skip
    axes[0].set(ylim=(len(table), 0), ylabel=rows, xlabel=columns)
    turned = sum(len(str(name)) + 2 for name in table) > 62
    axes[0].set_xticks(np.arange(table.shape[1]) + 0.5, table.columns, rotation=90 if turned else 0)
    axes[0].set_yticks(np.arange(len(table)) + 0.5, table.index)
    axes[0].tick_params(length=0)
    axes[0].spines[:].set_visible(False)
    if digits is not None and table.shape[1] <= 12:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = abs(value) > 0.6 * high
                axes[0].text(column + 0.5, row + 0.5, f"{value:.{digits}f}", ha="center",
                             va="center", fontsize=9, color="white" if dark else INK)  # fmt: skip
    fig.colorbar(mesh, ax=axes[0], label=label, shrink=0.9)
    return fig


def beeswarm(values: pd.DataFrame, inputs: pd.DataFrame, title: str, n: int = 15) -> Figure:
    """Draw each cell's attribution to the features that matter most.

    Parameters
    ----------
    values, inputs
        Cell × (modality, feature): attribution in logits, and the scaled value that colours a dot.
    n
        Features shown, by mean |attribution|.
    """
    top = values.abs().mean().sort_values(ascending=False).index[:n]
    fig, axes = figure(title, height=1.0 + 0.3 * len(top))
    rng = np.random.default_rng(0)
    for row, feature in enumerate(top):
        at = len(top) - 1 - row + rng.uniform(-0.3, 0.3, len(values))
        dots = axes[0].scatter(values[feature], at, c=inputs[feature], cmap="cividis", s=11,
                               vmin=-2, vmax=2, linewidths=0)  # fmt: skip
    axes[0].axvline(0, color=FAINT, lw=0.8)
    axes[0].set_yticks(np.arange(len(top))[::-1], [name for _, name in top])
    for tick, (modality, _) in zip(axes[0].get_yticklabels(), top, strict=True):
        tick.set_color(modality_colour(modality))
    axes[0].set(xlabel="attribution to the predicted group (logits)", ylim=(-0.6, len(top) - 0.4))
    fig.colorbar(dots, ax=axes[0], label="scaled value", shrink=0.8, extend="both")
    return fig


def flows(table: pd.DataFrame, title: str) -> Figure:
    """Draw which modalities (left) the translations to each modality (right) rest on, as bands.

    Parameters
    ----------
    table
        Target × source: shares, rows sum to 1, NaN where target is source.
    """
    fig, axes = figure(title, height=1.2 + 0.8 * len(table))
    ax, shares = axes[0], table.fillna(0)
    left = _stacked(shares.sum())
    right = _stacked(shares.sum(axis=1))
    at_left, at_right = dict(left), dict(right)
    for target in shares.index:
        for source in shares.columns:
            size = shares.at[target, source]
            if size > 0:
                _band(ax, at_left[source], at_right[target], size, modality_colour(source))
                at_left[source] += size
                at_right[target] += size
    for x, side, starts, sizes in (
        (0, "right", left, shares.sum()),
        (1, "left", right, shares.sum(axis=1)),
    ):
        for name, start in starts.items():
            ax.plot([x, x], [start, start + sizes[name]], lw=6, color=modality_colour(name),
                    solid_capstyle="butt")  # fmt: skip
            ax.annotate(title_of(name), (x, start + sizes[name] / 2), (-8 if x == 0 else 8, 0),
                        textcoords="offset points", ha=side, va="center")  # fmt: skip
    ax.set(xlim=(-0.25, 1.25), title="read from                                         predicted")
    ax.invert_yaxis()
    ax.axis("off")
    ax.set_axis_on()
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return fig


def atlas(xy: np.ndarray, experts: Mapping[str, np.ndarray], title: str, tissue=False) -> Figure:
    """Draw cells coloured by the expert that serves them most, one panel per modality.

    Parameters
    ----------
    xy
        `(n_cells, 2)`: a layout, or positions in the tissue (then drawn with rows downwards).
    experts
        Modality -> expert of each cell, as text; "" where the cell lacks the modality.
    """
    names = {name for by_cell in experts.values() for name in by_cell} - {""}
    colours = group_colours(names)
    fig, axes = figure(title, 1, len(experts), height=2.9, sharex=True, sharey=True)
    for ax, (modality, by_cell) in zip(axes, experts.items(), strict=True):
        for expert, colour in colours.items():
            ax.scatter(*xy[by_cell == expert].T, s=9, color=colour, linewidths=0, label=expert,
                       marker="s" if tissue else "o")  # fmt: skip
        ax.set(xticks=[], yticks=[], box_aspect=1)
        ax.set_title(title_of(modality), color=modality_colour(modality), weight="bold")
        ax.spines[:].set_visible(False)
    if tissue:
        axes[0].invert_yaxis()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", title="expert",
               ncols=min(len(colours), 8), markerscale=2, handletextpad=0.1)  # fmt: skip
    return fig


def _marker(name: str) -> str:
    return "s" if name.startswith("shap") else "o"


def _stacked(sizes: pd.Series, gap: float = 0.12) -> dict[str, float]:
    """Where each bar starts when they stand below each other with a gap."""
    ends = (sizes + gap).cumsum()
    return dict(zip(sizes.index, ends - sizes - gap, strict=True))


def _band(ax, left: float, right: float, size: float, colour: str) -> None:
    """A band of constant height from the left to the right edge."""
    upper = [(0, left), (0.5, left), (0.5, right), (1, right)]
    lower = [(1, right + size), (0.5, right + size), (0.5, left + size), (0, left + size)]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3]
    ax.add_patch(PathPatch(Path([*upper, *lower], codes), color=colour, alpha=0.45, lw=0))
