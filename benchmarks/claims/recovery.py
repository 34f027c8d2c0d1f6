"""Whether an explanation finds what is known to be true, and depends on the model at all.

Truth is that of simulated cells. Tests of sanity follow Adebayo et al. (2018): a model with random
weights, or one that learned shuffled labels, must not be explained like a trained one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from mudata import MuData
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from scmoe.explain.answer import Answer


def group_recovery(importance: pd.Series, differs: pd.DataFrame) -> dict[str, float]:
    """How well importance finds the features whose means truly differ between groups.

    Parameters
    ----------
    importance
        By (modality, feature), such as a column of `Explanation.table`.
    differs
        Feature × modality of bool: `uns["truth"]["differs"]` of simulated cells.

    Returns
    -------
    `auprc`, and `chance`: the share of such features.
    """
    truth = [differs.at[feature, modality] for modality, feature in importance.index]
    return _auprc(np.asarray(truth, bool), importance.to_numpy())


def edge_recovery(importance: pd.DataFrame, edges: pd.DataFrame) -> dict[str, float]:
    """How well importance of one layer's genes for another's finds who regulates whom.

    Parameters
    ----------
    importance
        Source gene × target gene, two different modalities. Pairs of a gene with itself (the same
        gene in two layers) are left out.
    edges
        Columns `regulator`, `target`: `uns["truth"]["edges"]`. Only regulators count as sources.

    Returns
    -------
    `auprc`, and `chance`.
    """
    table = importance.loc[importance.index.isin(edges["regulator"])]
    pairs = table.stack()
    pairs = pairs[pairs.index.get_level_values(0) != pairs.index.get_level_values(1)]
    truth = pairs.index.isin(pd.MultiIndex.from_frame(edges[["regulator", "target"]]))
    return _auprc(truth, pairs.to_numpy())


def _auprc(truth: np.ndarray, score: np.ndarray) -> dict[str, float]:
    if not truth.any():
        return {"auprc": float("nan"), "chance": 0.0}
    return {
        "auprc": float(average_precision_score(truth, np.nan_to_num(score))),
        "chance": float(truth.mean()),
    }


def simple_scores(model, mdata: MuData, labels: Sequence[str]) -> dict[str, pd.DataFrame]:
    """How features speak for labels without the model: what explanations are held against.

    Returns
    -------
    `correlation` (Pearson, with membership) and `logistic coefficients` (L2 penalty 1): tables
    (modality, feature) × label, of features as the model sees them.
    """
    answer = Answer(model)
    x = torch.cat(answer.inputs(mdata), 1).double().cpu().numpy()
    labels = np.asarray(labels, str)
    names = np.unique(labels)
    member = (labels[:, None] == names).astype(float)
    fitted = LogisticRegression(max_iter=5000).fit(x, labels).coef_
    fitted = np.concatenate([-fitted, fitted]) if len(names) == 2 else fitted
    pairs = [(m, f) for m in answer.modalities for f in model.transform_.features[m]]
    index = pd.MultiIndex.from_tuples(pairs, names=["modality", "feature"])
    return {
        "correlation": pd.DataFrame(correlations(x, member), index, names),
        "logistic coefficients": pd.DataFrame(fitted.T, index, names),
    }


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of columns of `a` with columns of `b`; 0 where one is constant."""
    a, b = (v - v.mean(0) for v in (a, b))
    a, b = (v / np.maximum(np.linalg.norm(v, axis=0), 1e-12) for v in (a, b))
    return a.T @ b
