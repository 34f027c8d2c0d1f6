"""Figures of explanations, in the look of `scmoe.plot`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from scmoe.colours import FAINT, SHARES, ink_of, modality_colour
from scmoe.explain.attribution import METHODS, PRIMARY, Explanation
from scmoe.plot import figure, legend

COLOURS = {  # Paul Tol's bright and vibrant schemes: ours in blues, SHAP's in reds and yellow
    PRIMARY: "#332288", "gradient_x_input": "#4477AA", "integrated_gradients": "#66CCEE",
    "routing": "#228833", "shap_gradient": "#EE6677", "shap_permutation": "#AA3377",
    "shap_kernel": "#CCBB44", "random": FAINT,
}  # fmt: skip


def frontier(table: pd.DataFrame, title: str) -> Figure:
    """Draw what each method costs against what its explanations are worth.

    `table` has for each method `seconds`, `deletion`, `insertion` and their `_low` and `_high`.
    """
    fig, axes = figure(title, 1, 2, height=4.2, sharex=True)
    for ax, what in zip(axes, ("deletion", "insertion"), strict=True):
        for name, row in table.iterrows():
            error = [[row[what] - row[f"{what}_low"]], [row[f"{what}_high"] - row[what]]]
            ax.errorbar(row["seconds"], row[what], error, color=COLOURS[name], capsize=3, lw=1.2,
                        fmt="os"[name.startswith("shap")], ms=8, label=METHODS[name])  # fmt: skip
        ax.axhline(0, color=FAINT, lw=0.8, ls=":")
        ax.set(xscale="log", xlabel="seconds per 1000 cells", title=what)
    axes[0].set_ylabel("area better than random order")
    return legend(fig, 2)


def deletion_curves(curves: pd.DataFrame, title: str) -> Figure:
    """Draw how the answer falls and rises as features are replaced and put back.

    `curves` are those of `scmoe.explain.faithfulness.deletion_insertion`.
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
    return legend(fig, 2)


def heatmap(table: pd.DataFrame, title: str, label: str, signed: bool = False) -> Figure:
    """Draw a table as coloured cells, numbers in them where there is room.

    `label` says what colour means, with its unit; `signed` has colours on both sides of zero.
    """
    names = [str(name) for name in table]
    turned = sum(len(name) + 2 for name in names) > 62
    height = 1.5 + 0.27 * len(table) + 0.08 * turned * max(map(len, names))
    fig, (ax,) = figure(title, height=height)
    high = max(np.nanmax(np.abs(table.to_numpy(float)), initial=0), 1e-9)
    look = {"cmap": "RdBu_r" if signed else SHARES, "vmin": -high * signed, "vmax": high}
    sns.heatmap(table, ax=ax, annot=table.shape[1] <= 12, fmt=".2f", linewidths=0.5,
                annot_kws={"size": 9}, cbar_kws={"label": label}, **look)  # fmt: skip
    ax.tick_params(axis="x", rotation=90 * turned, length=0)
    ax.tick_params(axis="y", rotation=0, length=0)
    return fig


def beeswarm(explanation: Explanation, title: str) -> Figure:
    """Draw what the fifteen features that matter most add to each cell's answer.

    A dot is a cell, its colour the feature's value; of several answers the first is drawn.
    """
    values = pd.DataFrame(explanation.flat[:, 0], columns=explanation.index)
    inputs = np.concatenate(list(explanation.inputs.values()), axis=1)
    top = values.abs().mean().to_numpy().argsort(kind="stable")[::-1][:15]
    fig, (ax,) = figure(title, height=1.0 + 0.3 * len(top))
    rng = np.random.default_rng(0)
    for row, column in enumerate(top):
        at = len(top) - 1 - row + rng.uniform(-0.3, 0.3, len(values))
        dots = ax.scatter(values.iloc[:, column], at, c=inputs[:, column], cmap="cividis", s=11,
                          vmin=-2, vmax=2, linewidths=0)  # fmt: skip
    ax.axvline(0, color=FAINT, lw=0.8)
    ax.set_yticks(np.arange(len(top))[::-1], [explanation.index[i][1] for i in top])
    for tick, i in zip(ax.get_yticklabels(), top, strict=True):
        tick.set_color(ink_of(modality_colour(explanation.index[i][0])))
    what = "the predicted group" if explanation.outputs == ["own group"] else explanation.outputs[0]
    ax.set(xlabel=f"attribution to {what}", ylim=(-0.6, len(top) - 0.4))
    fig.colorbar(dots, ax=ax, label="scaled value", shrink=0.8, extend="both")
    return fig
