"""From a run's cells, model and records to the tables that figures and sentences are made of."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from scmoe import paper
from scmoe.baselines.roster import simple_methods
from scmoe.colours import in_order, title_of
from scmoe.data import Split, Transform
from scmoe.metrics import evaluate
from scmoe.record import Run

METRICS = ["accuracy", "balanced_accuracy", "macro_f1", "ari", "nmi", "ece", "r2", "r2_median",
           "pearson", "auroc", "auprc"]  # fmt: skip


def groups(mdata: MuData, split: Split) -> pd.Series:
    """Give the true group of each cell."""
    return mdata.obs[split.label_key].astype(str)


def some_cells(mdata: MuData, n: int, seed: int = 0) -> MuData:
    """Draw at most `n` cells at random, in their order."""
    if mdata.n_obs <= n:
        return mdata
    return mdata[np.sort(np.random.default_rng(seed).choice(mdata.n_obs, n, replace=False))]


def cells_of(split: Split) -> pd.DataFrame:
    """Count the cells of each group (rows) in training, validation and test (columns)."""
    parts = {"training": split.train, "validation": split.val, "test": split.test}
    counts = {name: groups(part, split).value_counts() for name, part in parts.items()}
    frame = pd.DataFrame(counts).fillna(0).astype(int)
    return frame.loc[in_order(frame.index)]


def compare(run: Run, model, split: Split) -> pd.DataFrame:
    """Fit the simple methods, and score them, the model and its parts on the test cells.

    In the paper protocol the model is also scored as the published code scores its own.

    Returns
    -------
    The records of all methods, as `scmoe.evaluate` gives them.
    """
    tables = [score_ours(run, model, split)]
    tables += [score(run, m, split) for m in simple_methods(run.task, split, run.profile)]
    return pd.concat(tables, ignore_index=True)


def score_ours(run: Run, model, split: Split) -> pd.DataFrame:
    """Score a fitted model, and its parts, where it has two, on the test cells."""
    parts = [] if model.linear is None else [model.experts, model.linear]
    with run.clock("evaluate"):
        tables = [evaluate(m, split.test, split.label_key) for m in [model, *parts]]
        if run.protocol == "paper":
            tables.insert(1, paper.score(model, split))
    return pd.concat(tables, ignore_index=True).assign(protocol=run.protocol)


def score(run: Run, method, split: Split) -> pd.DataFrame:
    """Fit another method and score it on the test cells."""
    with run.clock("baselines"):
        method.fit(split)
    with run.clock("evaluate"):
        return evaluate(method, split.test, split.label_key).assign(protocol=run.protocol)


def scores(records: pd.DataFrame) -> pd.DataFrame:
    """Give one row per method: its group metrics, and translation metrics averaged over pairs.

    Best accuracy first, then best R². A method that read some of several modalities says which.
    """
    records = records.assign(method=_told_apart(records))
    wide = records.pivot_table(index="method", columns="metric", values="value", aggfunc="mean")
    wide = wide.reindex(columns=[name for name in METRICS if name in wide])
    return wide.sort_values([c for c in ("accuracy", "r2") if c in wide], ascending=False)


def _told_apart(records: pd.DataFrame) -> list[str]:
    """Name methods by their modalities too where one name stands for several of those."""
    read = records[records["task"] != "translation"].groupby("method")["modalities"].unique()
    full = {method: max(names, key=len) for method, names in read.items() if len(names) > 1}
    rows = zip(records["method"], records["modalities"], strict=True)
    return [m if full.get(m, used) == used else f"{m} of {used}" for m, used in rows]


def translation_grids(records: pd.DataFrame, metric: str = "r2") -> dict[str, pd.DataFrame]:
    """Give, for each method, a table target × source of one metric; NaN on the diagonal."""
    rows = records[records["metric"] == metric]
    order = list(dict.fromkeys(rows["target_modality"]))
    return {
        method: part.pivot(index="target_modality", columns="source_modality", values="value")
        .reindex(index=order, columns=order)
        .rename_axis(index=None, columns=None)
        for method, part in rows.groupby("method", sort=False)
    }


def losses(model) -> tuple[pd.DataFrame, int]:
    """Give a model's history as `plot.training_curves` takes it, and the epoch that was kept."""
    history = model.history_.set_index("epoch").drop(
        columns=["watched", "improved"], errors="ignore"
    )
    history = history.dropna(axis=1, how="all")
    chosen = model.config.train.patience is not None and "val_loss" in history
    kept = history["val_loss"].idxmin() if chosen else history.index[-1]
    parts = [name for name in history if not name.startswith("val_")]
    columns = {f"train {part}": history[part] for part in parts}
    columns |= {f"val {p}": history[f"val_{p}"] for p in parts if f"val_{p}" in history}
    return pd.DataFrame(columns).rename(columns=_named_loss), int(kept)


def predicted_groups(model, split: Split) -> np.ndarray:
    """Name the group of each test cell; clusters take the name of the group they match best.

    One cluster goes to one group, so that most cells agree (the Hungarian algorithm); clusters
    left over are `cluster <n>`.
    """
    predicted = model.predict(split.test)["group"].to_numpy(str)
    if model.task == "supervised":
        return predicted
    counts = pd.crosstab(predicted, groups(split.test, split).to_numpy())
    rows, columns = linear_sum_assignment(counts.to_numpy(), maximize=True)
    names = {counts.index[r]: counts.columns[c] for r, c in zip(rows, columns, strict=True)}
    return np.array([names.get(cluster, f"cluster {cluster}") for cluster in predicted])


def layout(*latents: np.ndarray, seed: int = 0) -> list[np.ndarray]:
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


def principal_axes(split: Split, transform: Transform, modality: str) -> np.ndarray:
    """Give all cells' first two principal components in one modality, rows as in `together`."""
    parts = (split.train, split.val, split.test)
    X = [transform.transform(part, [modality])[modality].X for part in parts]
    dense = [x.toarray() if sparse.issparse(x) else np.asarray(x) for x in X]
    return PCA(2, random_state=0).fit_transform(np.concatenate(dense))


def together(split: Split) -> dict[str, np.ndarray]:
    """Give what is known of all cells: training, then validation, then test cells.

    Returns
    -------
    `groups` and `tested` (is it a test cell?), shape `(n_cells,)`, and, where the data have them,
    `pseudotime`, `batch` and `positions` `(n_cells, 2)`.
    """
    parts = [split.train, split.val, split.test]
    known = {
        "groups": np.concatenate([groups(part, split) for part in parts]),
        "tested": np.repeat([False, False, True], [part.n_obs for part in parts]),
    }
    for name in ("pseudotime", "batch"):
        if name in split.train.obs:
            known[name] = np.concatenate([part.obs[name].to_numpy() for part in parts])
    if "spatial" in split.train.obsm:
        known["positions"] = np.concatenate([part.obsm["spatial"] for part in parts])
    return known


def batches(split: Split) -> tuple[pd.DataFrame, list[str]]:
    """Count the cells of each group (rows) in each batch (columns), and name the test batches."""
    cells = together(split)
    counts = pd.crosstab(cells["groups"], cells["batch"].astype(str))
    counts = counts.loc[in_order(counts.index), in_order(counts)].rename_axis(
        index=None, columns=None
    )
    return counts, in_order(cells["batch"][cells["tested"]])


def usage(routing: AnnData, truth) -> dict[str, pd.DataFrame]:
    """Summarise a routing: for each modality a table group × expert of shares of gate weight.

    Parameters
    ----------
    routing
        From `ScMoE.get_routing`.
    truth
        Group of each of its cells.
    """
    X = routing.X
    result = {}
    for modality in dict.fromkeys(routing.var["modality"]):
        part = (routing.var["modality"] == modality).to_numpy()
        experts = routing.var["expert"][part].to_numpy()
        by_expert = pd.DataFrame(np.asarray(X[:, part])).T.groupby(experts).sum().T
        by_group = by_expert.groupby(np.asarray(truth, str)).sum()
        by_group = by_group.loc[in_order(by_group.index)]
        total = by_group.sum(axis=1)
        result[modality] = by_group[total > 0].div(total[total > 0], axis=0)
    return result


def _named_loss(name: str) -> str:
    """`train decoder rna` -> `train translation to RNA`."""
    if " decoder " not in name:
        return name.replace(" gate", " load balance")
    part, modality = name.split(" decoder ")
    return f"{part} translation to {title_of(modality)}"
