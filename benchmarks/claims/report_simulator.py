"""What the simulator's page shows and says: ours beside dyngen's, worded from the numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure
from mudata import MuData
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import roc_auc_score

from benchmarks.claims import resemblance
from benchmarks.claims.resemblance import (
    LAYERS,
    Resemblance,
    gene_correlation,
    mean_variance,
    spectrum,
)
from scmoe import page, plot
from scmoe.colours import FAINT, INK, modality_colour, title_of
from scmoe.record import Run

N_NETWORKS = {"quick": 3, "full": 10}
CLOSE = 0.03  # how near a share, a correlation or an accuracy should come to dyngen's
ORIGIN = {
    "files": "dyngen's output is on this machine, and every number of dyngen is computed from it.",
    "summary": "**dyngen's output is not on this machine.** Its numbers are read from a stored "
    "summary, and figures of single genes or cells show only ours.",
    "nothing": "**Neither dyngen's output nor its summary is on this machine**: ours stands alone.",
}


def compare(run: Run) -> Resemblance:
    """Simulate a few networks (full profile: more), and set them beside dyngen's output."""
    plot.style()
    return resemblance.compare(N_NETWORKS[run.profile], run.data_root, run.seed)


def origin(found: Resemblance) -> Markdown:
    """Say where the numbers of dyngen come from, or that there are none."""
    stored = "summary" if found.linear["dyngen"].notna().any() else "nothing"
    return Markdown(ORIGIN["files" if found.reference is not None else stored])


def takeaway(found: Resemblance) -> Markdown:
    """Word the page's answer: how near to dyngen, and what the hard setting asks for."""
    known = found.linear.dropna(subset="difference")
    unit = ~known.index.get_level_values("statistic").str.startswith("mean–variance")
    said = []
    if unit.any():
        near = known[unit]["difference"].abs()
        statistic, layer = near.idxmax()
        layer = f"{statistic}, {_title(layer)}"
        said.append(
            f"Of {unit.sum()} shares, correlations and accuracies, "
            f"{(near <= CLOSE).sum()} lie within {CLOSE} of dyngen's; the farthest "
            f"({layer}) is off by {near.max():.3f}."
        )
    mean = found.hard.mean()
    single = mean.drop("all")
    gain = found.hard["all"] - found.hard.drop(columns="all").max(axis=1)
    said.append(
        f"In the hard setting the best single modality ({title_of(single.idxmax())}) gives the "
        f"milestone of {single.max():.0%} of the cells, all four together of {mean['all']:.0%}; "
        f"the smallest gain over the best one, in {len(gain)} networks, is {gain.min():.3f}."
    )
    return Markdown("**Takeaway.** " + " ".join(said))


def statistics(table: pd.DataFrame, caption: str) -> HTML:
    """Show every statistic of ours beside dyngen's."""
    shown = table.reset_index()
    shown["layer"] = shown["layer"].map(_title)
    return page.table(shown.set_index(["statistic", "layer"]), caption)


def accuracies(found: Resemblance) -> Figure:
    """Draw how well milestones are read off each layer, in both settings, beside dyngen."""
    fig, axes = _figure("Simulator: milestones by logistic regression", 2, 2.9, sharey=True)
    names = list(found.hard)
    rows = np.arange(len(names))[::-1]
    default = found.linear.loc["accuracy"].reindex(names)
    for ax, title, ours in (
        (axes[0], "default", default[["ours", "ours sd"]].to_numpy()),
        (axes[1], "hard", found.hard.agg(["mean", "std"]).T.to_numpy()),
    ):
        for row, name, (mean, sd) in zip(rows, names, ours, strict=True):
            colour = INK if name == "all" else modality_colour(name)
            ax.errorbar(mean, row, xerr=sd, fmt="o", color=colour, ms=6)
        ax.set(title=title, xlabel="accuracy", ylim=(-0.6, len(names) - 0.4))
    axes[0].errorbar(default["dyngen"], rows - 0.22, xerr=default["dyngen sd"], fmt="D",
                     color=FAINT, mfc="white", ms=5, label="dyngen")  # fmt: skip
    axes[0].plot([], [], "o", color=INK, label="ours")
    axes[0].legend(loc="lower left")
    axes[0].set_yticks(rows, [title_of(name) for name in names])
    return fig


def mean_variances(found: Resemblance) -> Figure:
    """Draw the variance of each gene's counts over its mean, by layer."""
    fig, axes = _figure("Simulator: mean and variance of the genes", len(LAYERS), 2.8)
    for ax, (name, cells, reference) in _pairs(axes, found):
        if reference is not None:
            ax.plot(*mean_variance(reference), "D", color=FAINT, mfc="none", ms=3.5, label="dyngen")
        ax.plot(*mean_variance(cells), "o", color=modality_colour(name), ms=3, label="ours")
        ax.set(title=title_of(name), xlabel="log10 mean")
    axes[0].set_ylabel("log10 variance")
    axes[0].legend(loc="upper left")
    return fig


def zeros(found: Resemblance) -> Figure:
    """Draw in how many cells each gene is not seen, genes sorted, by layer."""
    fig, axes = _figure("Simulator: cells in which a gene is not seen", len(LAYERS), 2.6)
    for ax, (name, cells, reference) in _pairs(axes, found):
        for X, style in ((reference, _DYNGEN), (cells, _ours(name))):
            if X is not None:
                share = np.sort((X == 0).mean(0))
                ax.plot(np.linspace(0, 1, len(share)), share, **style)
        ax.set(title=title_of(name), xlabel="share of genes")
    axes[0].set_ylabel("share of cells")
    axes[0].legend(loc="upper left")
    return fig


def spectra(found: Resemblance) -> Figure:
    """Draw the eigenvalues of the gene–gene correlation matrix, by layer."""
    fig, axes = _figure("Simulator: spectrum of gene–gene correlations", len(LAYERS), 2.6)
    for ax, (name, cells, reference) in _pairs(axes, found):
        for X, style in ((reference, _DYNGEN), (cells, _ours(name))):
            if X is not None:
                values = spectrum(X)[:40]
                ax.loglog(np.arange(len(values)) + 1, values, **style)
        ax.set(title=title_of(name), xlabel="rank")
    axes[0].set_ylabel("share of the sum")
    axes[0].legend(loc="lower left")
    return fig


def layer_correlations(found: Resemblance) -> Figure:
    """Draw how genes' neighbouring layers correlate over cells, as cumulative shares."""
    fig, axes = _figure("Simulator: one gene, two layers", 2, 2.8, sharey=True)
    names = list(LAYERS)
    for ax, first, second in zip(axes, names, names[1:], strict=False):
        for layers, style in ((found.reference, _DYNGEN), (found.cells, _ours(second))):
            if layers is not None:
                r = np.sort(gene_correlation(layers[first], layers[second]))
                r = r[np.isfinite(r)]
                ax.step(r, np.arange(1, len(r) + 1) / len(r), where="post", **style)
        ax.set(title=f"{title_of(first)} and {title_of(second)}", xlabel="correlation")
    axes[0].set_ylabel("share of genes")
    axes[0].legend(loc="upper left")
    return fig


def cascade(mdata: MuData, n_bins: int = 60) -> Figure:
    """Draw the TFs' levels along pseudotime in every modality, scaled to the highest twentieth."""
    fig, axes = _figure("Simulator: modules switch on, one by one", len(mdata.mod), 3.6)
    genes = mdata.uns["truth"]["genes"]
    factors = genes.index[genes["role"] == "tf"]
    bins = pd.cut(mdata.obs["pseudotime"], n_bins, labels=False).to_numpy()
    for ax, name in zip(axes, mdata.mod, strict=True):
        level = mdata[name].to_df()
        if name != "dna":  # without the library size
            level = level.div(level.sum(axis=1).clip(lower=1), axis=0)
        level = level[factors].groupby(bins).mean()
        level = (level / level.quantile(0.95).clip(lower=1e-9)).clip(upper=1)
        mesh = ax.pcolormesh(level.T, cmap="cividis", vmin=0, vmax=1, rasterized=True)
        ax.set(title=title_of(name), ylim=(len(factors), 0), yticks=[], xticks=[])
        ax.set_xlabel("pseudotime")
    axes[0].set_yticks(np.arange(len(factors)) + 0.5, factors.str.removesuffix("_TF1"), fontsize=7)
    fig.colorbar(mesh, ax=list(axes), shrink=0.7, label="mean level, scaled")
    return fig


def backbones(simulations: dict[str, MuData]) -> Figure:
    """Draw cells of each backbone where t-SNE puts their mRNA, coloured by pseudotime."""
    fig, axes = _figure("Simulator: the backbones", 3, 4.6, n_rows=2)
    for ax, (name, mdata) in zip(axes, simulations.items(), strict=False):
        counts = mdata["mrna"].X
        share = np.log1p(1e3 * counts / np.maximum(counts.sum(1, keepdims=True), 1))
        start = PCA(10, random_state=0).fit_transform(share)
        xy = TSNE(perplexity=40, init="pca", random_state=0).fit_transform(start)
        time = mdata.obs["pseudotime"]
        dots = ax.scatter(*xy.T, c=time, s=5, cmap="cividis", linewidths=0, rasterized=True)
        labels = mdata.obs["label"].to_numpy()
        box = {"fc": "white", "alpha": 0.75, "lw": 0, "pad": 1}
        for milestone in np.unique(labels):
            at = np.median(xy[labels == milestone], axis=0)
            ax.text(*at, milestone, weight="bold", fontsize=9, ha="center", bbox=box)
        ax.set(title=name, xticks=[], yticks=[])
    for ax in axes[len(simulations) :]:
        ax.set_visible(False)
    fig.colorbar(dots, ax=list(axes), shrink=0.6, label="pseudotime")
    return fig


def edges(pairs: pd.DataFrame) -> Figure:
    """Draw the correlations of regulators with targets, for true edges and all other pairs."""
    fig, (ax,) = _figure("Simulator: do true edges show?", 1, 2.8)
    kinds = {1: ("activation", "#009E73"), -1: ("repression", "#D55E00"), 0: ("no edge", FAINT)}
    for sign, (label, colour) in kinds.items():
        r = np.sort(pairs["correlation"][pairs["sign"] == sign])
        if len(r):
            line = "--" if sign == 0 else "-"
            ax.step(r, np.arange(1, len(r) + 1) / len(r), color=colour, ls=line,
                    label=f"{label} ({len(r)})")  # fmt: skip
    ax.set(
        xlabel="correlation of a TF's protein with a gene's accessibility", ylabel="share of pairs"
    )
    ax.legend(loc="upper left")
    return fig


def about_edges(pairs: pd.DataFrame) -> Markdown:
    """Say how far correlation alone tells true edges, and their signs, from other pairs."""
    edge, r = pairs["sign"] != 0, pairs["correlation"]
    ahead = {sign: roc_auc_score(pairs["sign"] == sign, sign * r) for sign in (1, -1)}
    right = (np.sign(r[edge]) == pairs["sign"][edge]).mean()
    return Markdown(
        f"An activating edge has the higher correlation of two pairs in {ahead[1]:.0%} of the "
        f"comparisons, a repressing one the lower in {ahead[-1]:.0%} (chance: 50%); {right:.0%} "
        "of the edges have the sign of their correlation. Direct and indirect regulation look "
        "alike, which is what makes recovery of the network a test."
    )


def _title(layer: str) -> str:
    return "–".join(map(title_of, layer.split("–")))


_DYNGEN = {"color": FAINT, "ls": "--", "label": "dyngen"}


def _ours(name: str) -> dict:
    return {"color": modality_colour(name), "label": "ours"}


def _pairs(axes, found: Resemblance):
    """Give each layer's axes with ours and, where it is there, dyngen's cells."""
    theirs = found.reference or {}
    return zip(axes, ((n, found.cells[n], theirs.get(n)) for n in LAYERS), strict=True)


def _figure(title: str, n: int, height: float, n_rows: int = 1, **options):
    fig = Figure(figsize=(plot.WIDTH, height), layout="constrained")
    axes = fig.subplots(n_rows, n, squeeze=False, **options)
    fig.suptitle(title)
    return fig, axes.ravel()
