"""How well groups and translations are recovered: numbers, and the tidy table of a run."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from mudata import MuData
from scipy import sparse, stats
from scipy.optimize import linear_sum_assignment
from sklearn import metrics as sk

from scmoe.data.blocks import gaps, matrix, row_blocks
from scmoe.data.check import DataError, as_text, expect_mudata, near

COLUMNS = [
    "dataset", "data_source", "protocol", "method", "task", "fold", "seed", "modalities",
    "metric", "target_modality", "source_modality", "value",
]  # fmt: skip
NAMES = {  # metric: its title, in the order in which tables have them
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1",
    "ari": "ARI", "nmi": "NMI", "ece": "calibration error", "r2": "R²", "r2_median": "median R²",
    "pearson": "correlation", "auroc": "AUROC", "auprc": "AUPRC",
}  # fmt: skip
CHUNK = 256  # features held dense at a time, for ranks


def classification_metrics(truth, predicted, probabilities=None) -> dict[str, float]:
    """Score named groups; a cell whose group was never seen in training counts as an error.

    `truth` and `predicted` are groups `(n_cells,)`. Gives `accuracy`, `balanced_accuracy` (recall
    averaged over the groups in `truth`), `macro_f1` (averaged over those in either), `ari`, `nmi`,
    and, where there are `probabilities` `(n_cells, n_groups)`, `ece`.
    """
    truth, predicted = np.asarray(truth, str), np.asarray(predicted, str)
    present = np.unique(truth)
    scores = {
        "accuracy": sk.accuracy_score(truth, predicted),
        "balanced_accuracy": sk.recall_score(
            truth, predicted, labels=present, average="macro", zero_division=0
        ),
        "macro_f1": sk.f1_score(truth, predicted, average="macro", zero_division=0),
        "ari": sk.adjusted_rand_score(truth, predicted),
        "nmi": sk.normalized_mutual_info_score(truth, predicted),
    }
    if probabilities is not None:
        confidence = np.asarray(probabilities, float).max(1)
        scores["ece"] = expected_calibration_error(truth == predicted, confidence)
    return {name: float(value) for name, value in scores.items()}


def expected_calibration_error(correct, confidence) -> float:
    """Mean gap between confidence and accuracy over 15 equal bins (Guo et al. 2017, eq. 3).

    Was each cell's most probable group the right one, and how probable was it? Both `(n_cells,)`.
    """
    correct, confidence = np.asarray(correct, float), np.asarray(confidence, float)
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    gap = np.bincount(bins, confidence - correct, minlength=15)
    return float(np.abs(gap).sum() / len(correct))


def clustering_metrics(truth, clusters) -> dict[str, float]:
    """Score clusters `(n_cells,)` without names: `ari`, `nmi`, `accuracy` (see `matched`)."""
    truth, clusters = np.asarray(truth, str), np.asarray(clusters, str)
    return {
        "accuracy": float((matched(truth, clusters) == truth).mean()),
        "ari": float(sk.adjusted_rand_score(truth, clusters)),
        "nmi": float(sk.normalized_mutual_info_score(truth, clusters)),
    }


def translation_metrics(truth, predicted) -> dict[str, float]:
    """Score a predicted modality, feature by feature over cells, both `(n_cells, n_features)`.

    The truth, dense or sparse, is read in chunks of cells; what is NaN in a dense one was not
    measured, and has no part in any score. Gives `r2`: 1 - residual / total sum of squares, both
    summed over features (variance-weighted); `r2_median` and `pearson`: median R² and mean
    correlation over the features that vary in the truth, 0 for a constant prediction.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth has shape {truth.shape}, the prediction {predicted.shape}")
    n = sum(np.broadcast_to(seen, t.shape).sum(0) for t, _, seen in _chunks(truth, predicted))
    n = np.maximum(n, 1)
    mean_t = sum(t.sum(0) for t, _, _ in _chunks(truth, predicted)) / n
    mean_p = sum(p.sum(0) for _, p, _ in _chunks(truth, predicted)) / n
    residual, total, spread, joint = np.zeros((4, truth.shape[1]))
    for t, p, seen in _chunks(truth, predicted):
        residual += ((t - p) ** 2).sum(0)
        t, p = (t - mean_t) * seen, (p - mean_p) * seen
        total += (t**2).sum(0)
        spread += (p**2).sum(0)
        joint += (t * p).sum(0)
    varies = total > 1e-10 * n
    if not varies.any():
        return {"r2": np.nan, "r2_median": np.nan, "pearson": np.nan}
    scale = np.sqrt(total * spread)[varies]
    correlation = np.divide(joint[varies], scale, out=np.zeros_like(scale), where=scale > 1e-10)
    return {
        "r2": float(1 - residual.sum() / total.sum()),
        "r2_median": float(np.median(1 - residual[varies] / total[varies])),
        "pearson": float(correlation.mean()),
    }


def binary_translation_metrics(truth, predicted) -> dict[str, float]:
    """Score a predicted on/off modality: mean `auroc` and `auprc` over features.

    The truth `(n_cells, n_features)`, dense or sparse, is on where positive and not scored where
    NaN; of the prediction only the order matters.

    Features that are on in every cell, or in none, have no such score and are left out.
    """
    truth = sparse.csc_matrix(truth) if sparse.issparse(truth) else np.asarray(truth)
    auroc, auprc = [], []
    for start in range(0, truth.shape[1], CHUNK):
        part = truth[:, start : start + CHUNK]
        part = part.toarray() if sparse.issparse(part) else part
        for j in np.flatnonzero((part > 0).any(0) & ~(part > 0).all(0)):
            seen = ~np.isnan(part[:, j])
            on, score = part[seen, j] > 0, predicted[seen, start + j]
            n_on = on.sum()
            if n_on == len(on):
                continue
            ranks = stats.rankdata(score)[on].sum() - n_on * (n_on + 1) / 2
            auroc.append(ranks / (n_on * (len(score) - n_on)))  # Mann-Whitney U
            auprc.append(average_precision(on, score))
    if not auroc:
        return {"auroc": np.nan, "auprc": np.nan}
    return {"auroc": float(np.mean(auroc)), "auprc": float(np.mean(auprc))}


def average_precision(on: np.ndarray, score: np.ndarray) -> float:
    """Average precision `(n_cells,)`; scikit-learn's checks of each column take ten times as long.

    Cells with equal scores come at once.
    """
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)  # of each run of equal scores
    hits, seen = on[order].cumsum()[last], np.flatnonzero(last) + 1
    return float((np.diff(hits, prepend=0) * hits / seen).sum() / on.sum())


def evaluate(model, mdata: MuData, label_key: str | None = None) -> pd.DataFrame:
    """Score everything that a fitted model, any method of this package, can do on these cells.

    Groups are predicted from all of the model's modalities that `mdata` has, and held against
    `label_key` of its `obs`; default: the one the model was fitted with. Every ordered pair of
    modalities is translated (or those in `model.pairs_`, where a method has fewer), and scored in
    scaled units, on the cells that have both modalities and the values of these that were measured.

    Raises
    ------
    DataError
        When `mdata` is no MuData, or the label column is missing or has empty entries.
    """
    expect_mudata(mdata)
    modalities = [m for m in model.modalities_ if m in mdata.mod]
    rows, label_key = [], label_key or model.label_key_
    if hasattr(model, "predict") and label_key is not None:
        truth, table = _labels(mdata, label_key), model.predict(mdata)
        groups, probabilities = table["group"], table.drop(columns="group").to_numpy()
        if model.task == "supervised":
            scores = classification_metrics(truth, groups, probabilities)
        else:
            scores = clustering_metrics(truth, groups)
        rows += [(model.task, name, "", "", value) for name, value in scores.items()]
    if hasattr(model, "translate"):
        scaled = model.transform(mdata)
        pairs = [(t, s) for t in modalities for s in modalities if t != s]
        for target, source in getattr(model, "pairs_", pairs):
            scores = _translation_scores(model, mdata, scaled, target, source)
            rows += [("translation", name, target, source, value) for name, value in scores.items()]
    return as_records(rows, model, modalities="+".join(modalities or model.modalities_))


def as_records(rows: Iterable[tuple], model, **columns: str) -> pd.DataFrame:
    """Give scores, `(task, metric, target, source, value)`, as a model's records."""
    names = ["task", "metric", "target_modality", "source_modality", "value"]
    known = {"method": model.method, "modalities": "+".join(model.modalities_)} | columns
    return pd.DataFrame(rows, columns=names).assign(**model.info_, **known)[COLUMNS]


def wide(records: pd.DataFrame) -> pd.DataFrame:
    """Give one row per method: its group metrics, and translation metrics averaged over pairs.

    Best accuracy first, then best R². A method that read some of several modalities says which.
    """
    read = records[records["task"] != "translation"].groupby("method")["modalities"].unique()
    full = {method: max(names, key=len) for method, names in read.items() if len(names) > 1}
    rows = zip(records["method"], records["modalities"], strict=True)
    names = [m if full.get(m, used) == used else f"{m} of {used}" for m, used in rows]
    table = records.assign(method=names)
    table = table.pivot_table(index="method", columns="metric", values="value", aggfunc="mean")
    table = table.reindex(columns=[name for name in NAMES if name in table])
    table = table.rename_axis(index=None, columns=None)
    return table.sort_values([c for c in ("accuracy", "r2") if c in table], ascending=False)


def pairs(records: pd.DataFrame, metric: str = "r2") -> pd.DataFrame:
    """Give one metric of every translation: (target, source) × method.

    No rows, and every method, where there is one modality.
    """
    place = ["target_modality", "source_modality"]
    table = records[records["metric"] == metric].drop_duplicates([*place, "method"])
    table = table.set_index([*place, "method"])["value"].astype(float).unstack("method")
    table = table.rename_axis(index=["target", "source"], columns=None)
    return table.reindex(columns=records["method"].unique())


def grids(records: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Give R² of each method that translates, a table target × source; NaN on the diagonal."""
    table = pairs(records).dropna(axis=1, how="all")
    order = table.index.get_level_values("target").unique()
    wide = {name: column.unstack().reindex(index=order) for name, column in table.items()}
    return {n: t[order].rename_axis(index=None, columns=None) for n, t in wide.items()}


def error(ours: float, theirs: float, n_cells: int) -> float:
    """Standard error of the difference between two accuracies on the same cells.

    That of independent methods: methods that err on the same cells differ by less.
    """
    return float(np.sqrt((ours * (1 - ours) + theirs * (1 - theirs)) / n_cells))


def matched(truth, clusters) -> np.ndarray:
    """Name each cluster after the group that it matches best, one cluster to one group.

    So that most cells agree (the Hungarian algorithm); clusters left over are `cluster <n>`.
    """
    truth, clusters = np.asarray(truth, str), np.asarray(clusters, str)
    counts = pd.crosstab(clusters, truth)
    rows, columns = linear_sum_assignment(counts.to_numpy(), maximize=True)
    names = {counts.index[r]: counts.columns[c] for r, c in zip(rows, columns, strict=True)}
    return np.array([names.get(cluster, f"cluster {cluster}") for cluster in clusters])


def _translation_scores(model, mdata, scaled, target, source) -> dict[str, float]:
    predicted = model.translate(mdata, target=target, source=source, units="scaled")
    rows = scaled[target].obs_names.get_indexer(mdata.obs_names)  # -1: the cell lacks the target
    both = (rows >= 0) & mdata.obs_names.isin(scaled[source].obs_names)
    truth, predicted = scaled[target].X[rows[both]], np.asarray(predicted)[both]
    if (missing := _missing(mdata[target], scaled[target])) is not None:
        truth = np.where(missing[rows[both]], np.nan, truth)
    scores = translation_metrics(truth, predicted)
    if model.transform_.kinds[target] in ("binary", "peaks"):
        scores |= binary_translation_metrics(truth, predicted)
    return scores


def _missing(measured, scaled) -> np.ndarray | None:
    """Where values of a dense modality were filled, shaped as scaled; None where none was."""
    if all(gaps(block) is None for _, block in row_blocks(matrix(measured))):
        return None
    rows = measured.obs_names.get_indexer(scaled.obs_names)
    columns = measured.var_names.get_indexer(scaled.var_names)
    return np.isnan(np.asarray(matrix(measured)[:])[rows][:, columns])


def _labels(mdata, label_key) -> np.ndarray:
    if label_key not in mdata.obs:
        raise DataError(
            f"mdata.obs has no column {label_key!r}; it has {list(mdata.obs.columns)}. "
            f"Give label_key the name of the column with the true groups"
            f"{near(label_key, mdata.obs.columns)}."
        )
    labels = mdata.obs[label_key]
    if labels.isna().any():
        raise DataError(
            f"mdata.obs[{label_key!r}] is empty for {labels.isna().sum()} cells; drop them to score"
        )
    return as_text(labels).to_numpy()


def _chunks(truth, predicted):
    """Dense float64 arrays of some cells each, and which entries count; the others are 0."""
    for start, p in row_blocks(predicted):
        t = truth[start : start + len(p)]
        t = np.asarray(t.toarray() if sparse.issparse(t) else t, float)
        p, missing = np.asarray(p, float), np.isnan(t)
        if missing.any():
            yield np.where(missing, 0, t), np.where(missing, 0, p), ~missing
        else:
            yield t, p, True
