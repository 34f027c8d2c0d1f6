"""What the data page shows: each set as it is, and what DBiT-seq's split and niche give away."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure
from mudata import MuData
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from scmoe import baselines, page, plot
from scmoe.colours import in_order, title_of
from scmoe.data import DATASETS, Split, Transform
from scmoe.data import load as load_set
from scmoe.data.kinds import summarise
from scmoe.data.split import held_out
from scmoe.metrics import evaluate
from scmoe.record import Run

NAMES = {"dyngen": "Dyngen", "dbitseq": "DBiT-seq", "patchseq": "Patch-seq", "atacseq": "ATAC",
         "mop": "Mop"}  # fmt: skip
NICHES = {"published": "published niche", "train": "niche of training pixels"}
FOLDS = {0: "pixels at random", "block-0": "block 0", "block-1": "block 1"}
PARTS = {"training, validation": "#BBBBBB", "test": "#EE8866"}
PICTURED = 800  # cells in a t-SNE, so that the page takes no minute


def load(run: Run) -> dict[str, Split]:
    """Load each set's first published fold; a stand-in takes the place of missing files."""
    plot.style()
    with run.clock("load"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="files of .* not found")  # the page says it
        options = {"root": run.data_root, "allow_standin": run.allow_standin}
        sets = {name: load_set(name, seed=run.seed, **options) for name in DATASETS}
    run.split = sets["dbitseq"]  # which the records are about
    return sets


def banner(sets: dict[str, Split]) -> HTML:
    """Say of each set whether it is the published one; call it before anything is shown."""
    lines = []
    for name, split in sets.items():
        n = split.train.n_obs + split.val.n_obs + split.test.n_obs
        lines.append(f"<li>{NAMES[name]}: {page.origin(split)} ({n:,} cells)</li>")
    loud = any(page.SOURCES[split.data_source][0] for split in sets.values())
    body = f'<strong>Data:</strong><ul style="margin:.2em 0 0">{"".join(lines)}</ul>'
    return page.box(body, "scmoe-data", loud)


def overview(sets: dict[str, Split]) -> HTML:
    """Show all sets beside each other: what was published, and what is here."""
    rows = {}
    for name, split in sets.items():
        known, parts = DATASETS[name], (split.train, split.val, split.test)
        rows[NAMES[name]] = {
            "published cells": f"{known.n_cells:,}",
            "cells here": f"{sum(part.n_obs for part in parts):,}",
            "these are": page.SOURCES[split.data_source][0] or "data files",
            "groups": len(_cells_of(split)),
            "smallest group": int(_cells_of(split).sum(axis=1).min()),
            "features": " + ".join(
                f"{split.train[m].n_vars:,} {title_of(m)}" for m in split.modalities
            ),
            "folds": len(known.folds),
        }
    return page.table(pd.DataFrame.from_dict(rows, orient="index"), "The data sets")


def values(split: Split) -> HTML:
    """Show, for each modality, what kind of numbers it has (training cells)."""
    kinds = Transform().fit(split.train).describe()
    rows = {}
    for name in split.modalities:
        seen = summarise(split.train[name].X)
        rows[title_of(name)] = {
            "cells": split.train[name].n_obs,
            "features": split.train[name].n_vars,
            "that vary": kinds.at[name, "kept"],
            "zeros": f"{seen.zeros:.0%}",
            "smallest": seen.smallest,
            "largest": seen.largest,
            "whole numbers": "yes" if seen.whole else "no",
            "stored": kinds.at[name, "stored"],
            "taken for": f"{kinds.at[name, 'kind']} ({kinds.at[name, 'why']})",
        }
    caption = f"{_name(split)}: values of the training cells"
    return page.table(pd.DataFrame.from_dict(rows, orient="index"), caption, digits=2)


def origin(split: Split) -> Markdown:
    """Say where a set comes from, under which licence, and what is known to be wrong with it."""
    known = DATASETS[split.name]
    words, where = page.origin(split), "none: nothing was read from files"
    if split.checksums:
        where = ", ".join(f"`{file}` ({digits})" for file, digits in split.checksums.items())
    points = [
        f"**Here:** {words}.",
        f"**Origin** of the published set: {known.source}.",
        f"**Licence:** {known.licence}.",
        f"**Files** (first digits of SHA-256): {where}.",
        *(f"**Note:** {note}." for note in split.notes),
    ]
    return Markdown("\n".join(f"- {point}" for point in points))


def group_sizes(split: Split) -> Figure:
    """Draw the groups' sizes in training, validation and test cells."""
    return plot.group_sizes(_cells_of(split), f"{_name(split)}: cells of each group")


def tissue(split: Split) -> Figure:
    """Draw pixels where they lie, coloured by region; the published test pixels are outlined."""
    pixels = _together(split)
    panel = {"regions (outlined: test pixels)": pixels["groups"]}
    title = f"{_name(split)}: the tissue"
    return plot.cells(pixels["positions"], panel, title, None, pixels["tested"], tissue=True)


def folds(split: Split) -> Figure:
    """Draw which pixels are held out: at random, as published, and in contiguous blocks."""
    obs = pd.concat([part.obs for part in (split.train, split.val, split.test)])
    panels = {
        words: np.where(held_out(DATASETS["dbitseq"], obs, fold), "test", "training, validation")
        for fold, words in FOLDS.items()
    }
    positions = _together(split)["positions"]
    return plot.cells(positions, panels, f"{_name(split)}: what is held out", tissue=True)


def trajectory(split: Split) -> Figure:
    """Draw simulated cells on the principal axes of their mRNA."""
    cells = _together(split)
    xy = _principal_axes(split, Transform().fit(split.train), "mrna")
    panels = {"group": cells["groups"], "simulated time": cells["pseudotime"]}
    return plot.cells(xy, panels, f"{_name(split)}: principal components of mRNA")


def neighbours(split: Split, modality: str, seed: int = 0) -> Figure:
    """Draw training cells by t-SNE of one modality, coloured by group."""
    scaled = Transform().fit(split.train).transform(split.train, [modality])
    some = _some_cells(scaled, PICTURED, seed)
    X = some[modality].X
    (xy,) = _layout(X.toarray() if hasattr(X, "toarray") else np.asarray(X), seed=seed)
    truth = _groups(some, split)
    title = f"{_name(split)}: {title_of(modality)} of {len(xy)} training cells"
    return plot.cells(xy, {"group": truth}, title)


def batches(split: Split) -> Figure:
    """Draw which groups occur in which batches."""
    return plot.batches(*_batches(split), f"{_name(split)}: groups in each batch")


# --- what DBiT-seq's split and niche give away ---


def leaks(run: Run) -> pd.DataFrame:
    """Name the regions of test pixels from RNA and niche, and from coordinates alone.

    Each with pixels held out at random, as published, and with two contiguous blocks; the niche
    as published, and averaged from training pixels alone.

    Returns
    -------
    Records, as `scmoe.evaluate` gives them.
    """
    tables = []
    with run.clock("leaks"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="files of .* not found")
        for fold in FOLDS:
            for niche, words in NICHES.items():
                split = load_set(
                    "dbitseq", fold, run.seed, run.data_root,
                    allow_standin=run.allow_standin, niche=niche,
                )  # fmt: skip
                model = baselines.LogisticRegression("late", ["rna", "niche"]).fit(split)
                table = evaluate(model, split.test)
                tables.append(table.assign(method=f"logistic regression, RNA + {words}"))
            tables.append(evaluate(baselines.CoordinateNeighbours().fit(split), split.test))
    return pd.concat(tables, ignore_index=True)


def accuracies(records: pd.DataFrame) -> pd.DataFrame:
    """Give accuracy by method (rows) and fold (columns)."""
    rows = records[records["metric"] == "accuracy"]
    wide = rows.pivot(index="method", columns="fold", values="value")
    wide = wide.reindex(index=rows["method"].unique(), columns=list(FOLDS))
    return wide.rename_axis(index=None, columns=None)


def leak_figure(records: pd.DataFrame, split: Split) -> Figure:
    """Draw the accuracies, one panel a fold."""
    title = f"{_name(split)}: accuracy on test pixels, by what is held out"
    return plot.scores(accuracies(records).rename(columns=FOLDS), list(FOLDS.values()), title)


def takeaway(records: pd.DataFrame, sets: dict[str, Split]) -> Markdown:
    """Word the page's answer: which sets are real, and what DBiT-seq's split gives away."""
    real = [n for n, s in sets.items() if s.data_source in ("zenodo", "local", "excerpt")]
    simulated = [NAMES[name] for name in sets if name not in real]
    cut = [NAMES[name] for name in real if sets[name].data_source == "excerpt"]
    said = f"Of the five sets, {len(real)} are measured cells here"
    said += f" ({', '.join(cut)}: an excerpt)" if cut else ""
    if simulated:
        said += f"; {', '.join(simulated)} {'is' if len(simulated) == 1 else 'are'} simulated"
    table = accuracies(records)
    published, again, place = (table.loc[method] for method in table.index)
    blocks = [fold for fold in FOLDS if fold != 0]
    n = sets["dbitseq"].test.n_obs  # a block, a fifth of the tissue, has about as many
    moves = [
        f"{100 * (published - again)[held].mean():+.1f} points {where} ".replace("-", "−")
        + f"({_verdict(published[held].mean(), again[held].mean(), n * len(held))})"
        for where, held in (("on random pixels", [0]), ("on blocks", blocks))
    ]
    region = "region" if sets["dbitseq"].data_source != "stand-in" else "stand-in's region"
    return Markdown(
        f"**Takeaway.** {said}. "
        f"In DBiT-seq's published split, coordinates alone name the {region} of {place[0]:.0%} of "
        f"the test pixels, RNA and niche of {published[0]:.0%}; where a block of tissue is held "
        f"out, {place[blocks].mean():.0%} and {published[blocks].mean():.0%}. "
        f"Against a niche of training pixels alone, the published one, which has seen test "
        f"pixels, is worth {moves[0]} and {moves[1]}."
    )


def _verdict(first: float, second: float, n: int) -> str:
    """Whether two accuracies on `n` cells differ by more than two standard errors."""
    noise = np.sqrt((first * (1 - first) + second * (1 - second)) / n)
    return "more than noise" if abs(first - second) > 2 * noise else "within noise"


def leak_table(records: pd.DataFrame, split: Split) -> HTML:
    """Show the accuracies that the figure draws."""
    return page.table(accuracies(records), f"{_name(split)}: accuracy on test pixels, by fold")


def about_niche(records: pd.DataFrame, split: Split) -> Markdown:
    """Say how far these differences can be told from chance."""
    n, p = split.test.n_obs, accuracies(records).iloc[0, 0]
    return Markdown(
        f"With {n} test pixels at random, an accuracy of {p:.2f} has a standard error of "
        f"{np.sqrt(p * (1 - p) / n):.3f}, neighbouring pixels taken as independent, which they "
        "are not. A niche of training pixels is also a different feature: farther neighbours "
        "stand in for those held out, so that in a block it is a look across its border."
    )


def coverage(sets: dict[str, Split]) -> HTML:
    """Show which sets have batches, coordinates or a known truth."""
    rows = {
        NAMES[name]: {
            "batches": s.train.obs["batch"].nunique() if "batch" in s.train.obs else 0,
            "coordinates": "yes" if "spatial" in s.train.obsm else "no",
            "pseudotime": "yes" if "pseudotime" in s.train.obs else "no",
            "cells lacking a modality": int(
                sum((~s.train.obs_names.isin(s.train[m].obs_names)).sum() for m in s.modalities)
            ),
        }
        for name, s in sets.items()
    }
    return page.table(pd.DataFrame.from_dict(rows, orient="index"), "Structure, training cells")


# --- cells as tables and arrays ---


def _name(split: Split) -> str:
    return NAMES[split.name] + page.mark(split)


def _groups(mdata: MuData, split: Split) -> pd.Series:
    """Give the true group of each cell."""
    return mdata.obs[split.label_key].astype(str)


def _some_cells(mdata: MuData, n: int, seed: int = 0) -> MuData:
    """Draw at most `n` cells at random, in their order."""
    if mdata.n_obs <= n:
        return mdata
    return mdata[np.sort(np.random.default_rng(seed).choice(mdata.n_obs, n, replace=False))]


def _cells_of(split: Split) -> pd.DataFrame:
    """Count the cells of each group (rows) in training, validation and test (columns)."""
    parts = {"training": split.train, "validation": split.val, "test": split.test}
    counts = {name: _groups(part, split).value_counts() for name, part in parts.items()}
    frame = pd.DataFrame(counts).fillna(0).astype(int)
    return frame.loc[in_order(frame.index)]


def _layout(*latents: np.ndarray, seed: int = 0) -> list[np.ndarray]:
    """Place cells in the plane, all sets of them together, by t-SNE of principal components.

    Parameters
    ----------
    latents
        Sets of cells, each `(n_cells, d)`.

    Returns
    -------
    An array `(n_cells, 2)` for each set.
    """
    values = np.concatenate(latents).astype(np.float64)
    reduced = PCA(min(30, *values.shape), random_state=seed).fit_transform(values)
    perplexity = min(30.0, max(2.0, (len(values) - 1) / 4))
    xy = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return np.split(xy, np.cumsum([len(latent) for latent in latents])[:-1])


def _principal_axes(split: Split, transform: Transform, modality: str) -> np.ndarray:
    """Give all cells' first two principal components in one modality, rows as in `together`."""
    parts = (split.train, split.val, split.test)
    X = [transform.transform(part, [modality])[modality].X for part in parts]
    dense = [x.toarray() if sparse.issparse(x) else np.asarray(x) for x in X]
    return PCA(2, random_state=0).fit_transform(np.concatenate(dense))


def _together(split: Split) -> dict[str, np.ndarray]:
    """Give what is known of all cells: training, then validation, then test cells.

    Returns
    -------
    `groups` and `tested` (is it a test cell?), shape `(n_cells,)`, and, where the data have them,
    `pseudotime`, `batch` and `positions` `(n_cells, 2)`.
    """
    parts = [split.train, split.val, split.test]
    known = {
        "groups": np.concatenate([_groups(part, split) for part in parts]),
        "tested": np.repeat([False, False, True], [part.n_obs for part in parts]),
    }
    for name in ("pseudotime", "batch"):
        if name in split.train.obs:
            known[name] = np.concatenate([part.obs[name].to_numpy() for part in parts])
    if "spatial" in split.train.obsm:
        known["positions"] = np.concatenate([part.obsm["spatial"] for part in parts])
    return known


def _batches(split: Split) -> tuple[pd.DataFrame, list[str]]:
    """Count the cells of each group (rows) in each batch (columns), and name the test batches."""
    cells = _together(split)
    counts = pd.crosstab(cells["groups"], cells["batch"].astype(str))
    counts = counts.loc[in_order(counts.index), in_order(counts)].rename_axis(
        index=None, columns=None
    )
    return counts, in_order(cells["batch"][cells["tested"]])
