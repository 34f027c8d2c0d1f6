"""Whether explanations of simulated cells find what is true of them, and depend on the model.

The test of sanity is of Adebayo et al. (2018): a model with random weights must not be explained
like a trained one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from mudata import MuData
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import average_precision_score

from benchmarks.claims.study import Plan, cheap
from scmoe.data import Split
from scmoe.explain import METHODS, attribute, complete, faithfulness
from scmoe.explain.answer import Answer

GROUPS, EDGES = "group-defining features", "edges, protein → DNA"
SIGNED, PATTERN = "group means of gradient × input", "correlation with the model's answers"
RANDOM = "shuffled weights"


def recovered(model, split: Split, plan: Plan, seed: int = 0) -> pd.DataFrame:
    """How well methods find the truth of simulated cells: AUPRC, with chance in a column.

    Rows (what, by). Group-defining features: mean |attribution| to the own group over test cells.
    Edges: mean |attribution| of a regulator's protein to the target's accessibility, which is what
    the protein acts on. Beside: two other ways to sum up what the model says, correlation and
    coefficients of linear models of the training cells, and a model with shuffled weights, which
    must recover nothing.
    """
    truth, cells = split.train.uns["truth"], complete(split.test, plan.n_cells, seed)
    few, random = cells[: plan.n_shap], faithfulness.shuffled(model, seed)
    ours, sampled = cheap(model)[0], METHODS["shap_gradient"]

    def explained(model, cells, method, **options):
        return attribute(model, cells, method, background=split.train, **options)

    def own(*asked, **options):
        return explained(*asked, **options).table()["own group"]

    def edges(*asked, **options):
        return explained(*asked, target="dna", source="protein", **options).table().loc["protein"]

    groups = {METHODS[method]: own(model, cells, method) for method in cheap(model)}
    groups[sampled] = own(model, few, "shap_gradient", budget=200)
    simple = simple_scores(model, split.train, split.train.obs[split.label_key])
    groups["correlation"] = simple["correlation"].abs().max(axis=1)
    groups["logistic coefficients"] = simple["logistic coefficients"].abs().mean(axis=1)
    why = explained(model, cells, ours)
    groups[SIGNED] = why.table(why.groups, signed=True).abs().max(axis=1)
    groups[PATTERN] = _patterns(model, cells)
    groups[RANDOM] = own(random, cells, ours)
    rows = {
        (GROUPS, name): group_recovery(importance, truth["differs"])
        for name, importance in groups.items()
    }
    if {"protein", "dna"} <= set(model.modalities_):
        by = {METHODS[ours]: edges(model, cells, "gradient_x_input")}
        by[sampled] = edges(model, few[:4], "shap_gradient", budget=50)
        by |= _simple_edges(model, split)
        by[RANDOM] = edges(random, cells, "gradient_x_input")
        for name, importance in by.items():
            rows[EDGES, name] = edge_recovery(importance, truth["edges"])
    return pd.DataFrame(list(rows.values()), pd.MultiIndex.from_tuples(rows, names=["what", "by"]))


def _patterns(model, cells) -> pd.Series:
    """Largest |correlation| of a feature with an answer of the model (Haufe et al. 2014)."""
    answer = Answer(model)
    x = answer.inputs(cells)
    with torch.no_grad():
        out = answer(x).double().cpu().numpy()
    size = np.abs(correlations(x.double().cpu().numpy(), out)).max(1)
    pairs = [(m, f) for m in answer.modalities for f in model.transform_.features[m]]
    return pd.Series(size, pd.MultiIndex.from_tuples(pairs))


def _simple_edges(model, split: Split) -> dict[str, pd.DataFrame]:
    """|correlation| and |ridge coefficients| of proteins and accessibilities, training cells."""
    scaled = model.transform(split.train)
    x, y = (np.asarray(scaled[m].X, float) for m in ("protein", "dna"))
    names = [model.transform_.features[m] for m in ("protein", "dna")]
    ridge = RidgeCV(np.logspace(-1, 4, 11)).fit(x, y).coef_.T
    tables = {"correlation": correlations(x, y), "ridge coefficients": ridge}
    return {name: pd.DataFrame(np.abs(values), *names) for name, values in tables.items()}


def group_recovery(importance: pd.Series, differs: pd.DataFrame) -> dict[str, float]:
    """How well importance finds the features whose means truly differ between groups.

    `importance` is by (modality, feature), such as a column of `Explanation.table`; `differs` is
    feature × modality of bool: `uns["truth"]["differs"]` of simulated cells. Gives `auprc`, and
    `chance`: the share of such features.
    """
    truth = [differs.at[feature, modality] for modality, feature in importance.index]
    return _auprc(np.asarray(truth, bool), importance.to_numpy())


def edge_recovery(importance: pd.DataFrame, edges: pd.DataFrame) -> dict[str, float]:
    """How well importance of one layer's genes for another's finds who regulates whom.

    `importance` is source gene × target gene of two modalities; pairs of a gene with itself (the
    same gene in two layers) are left out. `edges` has the columns `regulator` and `target`, as
    `uns["truth"]["edges"]`; only regulators count as sources. Gives `auprc`, and `chance`.
    """
    pairs = importance.loc[importance.index.isin(edges["regulator"])].stack()
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

    `correlation` (Pearson, with membership) and `logistic coefficients` (L2 penalty 1): tables
    (modality, feature) × label, of features as the model sees them.
    """
    answer = Answer(model)
    x = answer.inputs(mdata).double().cpu().numpy()
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
