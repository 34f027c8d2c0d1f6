"""Explanations of simulated cells against the network that made them, one data set or many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeCV

from scmoe.data import Split
from scmoe.explain import recovery
from scmoe.explain.answer import Answer
from scmoe.explain.attribution import METHODS, PRIMARY, attribute
from scmoe.explain.study import CHEAP, Plan, complete, few
from scmoe.model import ScMoE
from scmoe.networks import Experts
from scmoe.record import Run

GROUPS, EDGES = "group-defining features", "edges, protein → DNA"
SIGNED, PATTERN = "group means of gradient × input", "correlation with the model's answers"
SHUFFLED, RANDOM = "shuffled labels", "random weights"
BACKBONES = ("linear", "bifurcating")


def recovered(
    model: ScMoE, split: Split, plan: Plan, seed: int = 0, shuffled: ScMoE | None = None
) -> pd.DataFrame:
    """How well methods find the truth of simulated cells: AUPRC, with chance in a column.

    Rows (what, by). Group-defining features: mean |attribution| to the own group over test cells.
    Edges: mean |attribution| of a regulator's protein to the target's accessibility, which is what
    the protein acts on. Beside: two other ways to sum up what the model says, correlation and
    coefficients of linear models of the training cells, and models that must recover nothing: one
    with random weights, one of shuffled labels.
    """
    truth, cells = split.train.uns["truth"], complete(split.test, plan.n_cells, seed)
    background, few_cells = split.train, few(cells, plan.n_shap)
    nothing = {RANDOM: recovery.randomised(model, seed), SHUFFLED: shuffled}
    nothing = {name: other for name, other in nothing.items() if other is not None}
    rows = {}

    def groups(name, importance):
        rows[GROUPS, name] = recovery.group_recovery(importance, truth["differs"])

    for method in CHEAP:
        groups(METHODS[method], _of_groups(model, cells, background, method))
    sampled = _of_groups(model, few_cells, background, "shap_gradient", budget=200)
    groups(METHODS["shap_gradient"], sampled)
    simple = recovery.simple_importance(model, split.train, split.train.obs[split.label_key])
    for name in simple:
        groups(name, simple[name])
    groups(SIGNED, _of_groups(model, cells, background, PRIMARY, signed=True))
    groups(PATTERN, _patterns(model, cells))
    for name, other in nothing.items():
        groups(name, _of_groups(other, cells, background, PRIMARY))
    if {"protein", "dna"} <= set(model.modalities_):
        by = {METHODS[PRIMARY]: _of_edges(model, cells, background, "gradient_x_input")}
        shap = _of_edges(model, few(cells, 4), background, "shap_gradient", budget=50)
        by |= {METHODS["shap_gradient"]: shap} | _simple_edges(model, split)
        by[RANDOM] = _of_edges(nothing[RANDOM], cells, background, "gradient_x_input")
        for name, importance in by.items():
            rows[EDGES, name] = recovery.edge_recovery(importance, truth["edges"])
    return pd.DataFrame(list(rows.values()), pd.MultiIndex.from_tuples(rows, names=["what", "by"]))


def _of_groups(model, cells, background, method, signed=False, **options) -> pd.Series:
    """Mean |attribution| to the own group; signed: largest |mean| of a group's cells."""
    why = attribute(model, cells, method, background=background, **options)
    if signed:
        return why.table(why.groups, signed=True).abs().max(axis=1)
    return why.table()["own group"]


def _patterns(model, cells) -> pd.Series:
    """Largest |correlation| of a feature with an answer of the model (Haufe et al. 2014)."""
    answer = Answer(model)
    x = answer.inputs(cells)
    with torch.no_grad():
        out = answer(*x).double().cpu().numpy()
    size = np.abs(recovery.correlations(torch.cat(x, 1).double().cpu().numpy(), out)).max(1)
    pairs = [(m, f) for m in answer.modalities for f in model.transform_.features[m]]
    return pd.Series(size, pd.MultiIndex.from_tuples(pairs))


def _of_edges(model, cells, background, method, **options) -> pd.DataFrame:
    """Regulator's protein × target's accessibility."""
    asked = {"target": "dna", "source": "protein", "background": background}
    return attribute(model, cells, method, **asked, **options).table().loc["protein"]


def _simple_edges(model: ScMoE, split: Split) -> dict[str, pd.DataFrame]:
    """|correlation| and |ridge coefficients| of proteins and accessibilities, training cells."""
    scaled = model.transform(split.train)
    x, y = (np.asarray(scaled[m].X, float) for m in ("protein", "dna"))
    names = [model.transform_.features[m] for m in ("protein", "dna")]
    ridge = RidgeCV(np.logspace(-1, 4, 11)).fit(x, y).coef_.T
    tables = {"correlation": recovery.correlations(x, y), "ridge coefficients": ridge}
    return {name: pd.DataFrame(np.abs(values), *names) for name, values in tables.items()}


def recovery_study(
    run: Run, plan: Plan, n_seeds: int = 5, backbones: Sequence[str] = BACKBONES
) -> pd.DataFrame:
    """`recovered` on networks and cells simulated anew, a model for each.

    Models are left below the run's folder, and taken up again from there. One model of each
    backbone learns shuffled labels.

    Returns
    -------
    Columns `backbone, seed, what, by, auprc, chance`.
    """
    tables = []
    for backbone in backbones:
        for seed in range(n_seeds):
            model, split = _fitted(*_simulated(run, backbone, seed))
            shuffled = None
            if seed == 0:
                shuffled, _ = _fitted(*_simulated(run, backbone, seed, shuffle=True))
            table = recovered(model, split, plan, seed, shuffled).reset_index()
            tables.append(table.assign(backbone=backbone, seed=seed))
    return pd.concat(tables, ignore_index=True)


def _simulated(run: Run, backbone: str, seed: int, shuffle: bool = False) -> tuple[Run, Split]:
    name = f"{backbone}_{seed}" + "-shuffled" * shuffle
    extra = run.extra | {"backbone": backbone, "simulation": seed}
    other = replace(run, extra=extra, out_dir=run.out_dir / name, seconds={}, split=None)
    split = other.load()
    if shuffle:
        rng = np.random.default_rng(seed)
        for part in (split.train, split.val):
            labels = rng.permutation(part.obs[split.label_key].astype(str))
            part.obs[split.label_key] = pd.Categorical(labels)
    return other, split


def _fitted(run: Run, split: Split) -> tuple[Experts, Split]:
    model = run.fit(ScMoE(run.task, run.config(), run.seed), split, progress=False)
    return model.experts, split
