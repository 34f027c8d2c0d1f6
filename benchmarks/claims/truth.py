"""Explanations of simulated cells against the network that made them, one data set or many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeCV

from benchmarks.claims import recovery
from benchmarks.claims.study import Plan, cheap
from benchmarks.common import trained
from scmoe.data import Split
from scmoe.explain import METHODS, attribute, complete, faithfulness
from scmoe.explain.answer import Answer
from scmoe.model import ScMoE
from scmoe.record import Run

GROUPS, EDGES = "group-defining features", "edges, protein → DNA"
SIGNED, PATTERN = "group means of gradient × input", "correlation with the model's answers"
SHUFFLED, RANDOM = "shuffled labels", "shuffled weights"
BACKBONES = ("linear", "bifurcating")


def recovered(model, split: Split, plan: Plan, seed: int = 0, shuffled=None) -> pd.DataFrame:
    """How well methods find the truth of simulated cells: AUPRC, with chance in a column.

    Rows (what, by). Group-defining features: mean |attribution| to the own group over test cells.
    Edges: mean |attribution| of a regulator's protein to the target's accessibility, which is what
    the protein acts on. Beside: two other ways to sum up what the model says, correlation and
    coefficients of linear models of the training cells, and models that must recover nothing: one
    with shuffled weights, one that learned `shuffled` labels.
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
    simple = recovery.simple_scores(model, split.train, split.train.obs[split.label_key])
    groups["correlation"] = simple["correlation"].abs().max(axis=1)
    groups["logistic coefficients"] = simple["logistic coefficients"].abs().mean(axis=1)
    why = explained(model, cells, ours)
    groups[SIGNED] = why.table(why.groups, signed=True).abs().max(axis=1)
    groups[PATTERN] = _patterns(model, cells)
    groups[RANDOM] = own(random, cells, ours)
    if shuffled is not None:
        groups[SHUFFLED] = own(shuffled, cells, ours)
    rows = {
        (GROUPS, name): recovery.group_recovery(importance, truth["differs"])
        for name, importance in groups.items()
    }
    if {"protein", "dna"} <= set(model.modalities_):
        by = {METHODS[ours]: edges(model, cells, "gradient_x_input")}
        by[sampled] = edges(model, few[:4], "shap_gradient", budget=50)
        by |= _simple_edges(model, split)
        by[RANDOM] = edges(random, cells, "gradient_x_input")
        for name, importance in by.items():
            rows[EDGES, name] = recovery.edge_recovery(importance, truth["edges"])
    return pd.DataFrame(list(rows.values()), pd.MultiIndex.from_tuples(rows, names=["what", "by"]))


def _patterns(model, cells) -> pd.Series:
    """Largest |correlation| of a feature with an answer of the model (Haufe et al. 2014)."""
    answer = Answer(model)
    x = answer.inputs(cells)
    with torch.no_grad():
        out = answer(*x).double().cpu().numpy()
    size = np.abs(recovery.correlations(torch.cat(x, 1).double().cpu().numpy(), out)).max(1)
    pairs = [(m, f) for m in answer.modalities for f in model.transform_.features[m]]
    return pd.Series(size, pd.MultiIndex.from_tuples(pairs))


def _simple_edges(model, split: Split) -> dict[str, pd.DataFrame]:
    """|correlation| and |ridge coefficients| of proteins and accessibilities, training cells."""
    scaled = model.transform(split.train)
    x, y = (np.asarray(scaled[m].X, float) for m in ("protein", "dna"))
    names = [model.transform_.features[m] for m in ("protein", "dna")]
    ridge = RidgeCV(np.logspace(-1, 4, 11)).fit(x, y).coef_.T
    tables = {"correlation": recovery.correlations(x, y), "ridge coefficients": ridge}
    return {name: pd.DataFrame(np.abs(values), *names) for name, values in tables.items()}


def recovery_study(
    run: Run, plan: Plan, backbones: Sequence[str] = BACKBONES, part: str = "experts"
) -> pd.DataFrame:
    """`recovered` on networks and cells simulated anew, a model for each.

    Models are left below the run's folder, and taken up again from there. One model of each
    backbone learns shuffled labels.

    Returns
    -------
    By × `auprc` and `chance` "over networks of", what, backbone and seed.
    """
    tables = []
    for backbone in backbones:
        for seed in range(plan.n_networks):
            model, split = _fitted(run, backbone, seed, part)
            shuffled = None if seed else _fitted(run, backbone, seed, part, shuffle=True)[0]
            table = recovered(model, split, plan, seed, shuffled).unstack("what")
            names = [f"{score} over networks of {what}, {backbone} {seed}" for score, what in table]
            tables.append(table.set_axis(names, axis=1))
    return pd.concat(tables, axis=1) if tables else pd.DataFrame()


def _fitted(run: Run, backbone: str, seed: int, part: str, shuffle: bool = False):
    name = f"{backbone}_{seed}" + "-shuffled" * shuffle
    extra = run.extra | {"backbone": backbone, "simulation": seed}
    other = replace(run, extra=extra, out_dir=run.out_dir / name, seconds={}, split=None)
    split = other.load()
    if shuffle:
        rng = np.random.default_rng(seed)
        for cells in (split.train, split.val):
            labels = rng.permutation(cells.obs[split.label_key].astype(str))
            cells.obs[split.label_key] = pd.Categorical(labels)
    model = ScMoE(run.task, run.config(), run.seed)
    return getattr(trained(model, split, other.out_dir, run.device), part), split
