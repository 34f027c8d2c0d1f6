"""Every way to explain a model, scored on the same test cells of one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from mudata import MuData

from scmoe.data import Split
from scmoe.explain import METHODS, PRIMARY, Explanation, attribute, complete, faithfulness

REFERENCE = "shap_permutation"  # the SHAP that agreement is measured with: exact but for sampling
AGAINST = "primary against it, "


@dataclass(frozen=True)
class Plan:
    """How many cells and draws a study takes; SHAP's budgets are tried in order."""

    n_cells: int = 60  # scored by every cheap method
    n_shap: int = 20  # by SHAP Gradient
    n_slow: int = 6  # by SHAP Permutation and SHAP Kernel
    n_draws: int = 5  # replacements and random orders a cell, in deletion and insertion
    kernel: bool = True
    n_seeds: int = 1  # further models, for stability
    n_folds: int = 1  # further models, for stability
    gradient_budgets: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024)
    permutation_budgets: tuple[int, ...] = (2, 4, 8, 16, 32)


def cheap(model) -> list[str]:
    """Name the methods of a few passes that a model has, the primary one first."""
    plain = ["gradient_x_input", "integrated_gradients"]
    return [PRIMARY, *plain, "routing"] if hasattr(model, "network_") else plain


def score(
    model, split: Split, plan: Plan, others: Mapping[str, Sequence] | None = None, seed: int = 0
) -> pd.DataFrame:
    """Explain the same test cells by every method, and score each.

    `model` is `scMoE experts`, its linear neighbour or the published one, and `others` the same of
    other `seeds` and `folds`, for stability.

    Gives method × score: `seconds` (per 1000 cells), `budget`, `split_half`, `cells`, `deletion`,
    `insertion` (areas better than random order, with `_low`, `_high` of their 95 % interval),
    `infidelity`, `sensitivity` (medians), `agreement` (Spearman) with SHAP Permutation, `stability`
    over seeds and `stability_folds`; and for SHAP's methods, with `AGAINST` before it, how many
    times `cheaper` the primary method is and by how much its deletion and insertion are better on
    the same cells, with intervals.
    """
    cells, background = complete(split.test, plan.n_cells, seed), split.train
    quick, why, spent = cheap(model), {}, {}
    attribute(model, cells[:2], quick[0], background=background)  # warm up at no one's cost
    for method in quick:
        e = why[method] = attribute(model, cells, method, background=background)
        spent[method] = {"budget": e.budget or 1, "seconds": 1000 * e.seconds / len(e.cells)}
    tried = {"shap_gradient": (plan.n_shap, plan.gradient_budgets)}
    tried[REFERENCE] = plan.n_slow, plan.permutation_budgets
    if plan.kernel:
        # fewer coalitions than twice the features do not determine the regression
        n_features = why[quick[0]].flat.shape[2]
        tried["shap_kernel"] = max(plan.n_slow // 3, 2), [4 * n_features * k for k in (1, 2, 4)]
    for method, (n, budgets) in tried.items():
        found, why[method] = enough(model, cells[:n], method, budgets, background=background)
        spent[method] = found.iloc[-1].to_dict()
    draws = {"n_draws": plan.n_draws, "n_random": plan.n_draws, "seed": seed}
    _, scores = faithfulness.deletion_insertion(model, cells, why, background, **draws)
    own = {name: part.set_index("cell") for name, part in scores.groupby("method")}
    own = {name: own[name][["deletion", "insertion"]] for name in why}
    ahead = {name: own[quick[0]].loc[own[name].index] - own[name] for name in tried}
    ahead = faithfulness.intervals(pd.concat(ahead, names=["method"]).reset_index())
    ahead["cheaper"] = [spent[n]["seconds"] / spent[quick[0]]["seconds"] for n in ahead.index]
    table = pd.DataFrame.from_dict(spent, orient="index").fillna({"split_half": 1.0})
    table = table.join(faithfulness.intervals(scores)).join(ahead.add_prefix(AGAINST))
    table["cells"] = [len(e.cells) for e in why.values()]
    for name, e in why.items():
        error = faithfulness.infidelity(model, cells[: len(e.cells)], e, background)
        table.loc[name, "infidelity"] = np.median(error)
        both = {"this": e, "reference": why[REFERENCE]}
        table.loc[name, "agreement"] = faithfulness.agreement(both).iloc[0, 1]
    for name in quick:
        some = cells[: plan.n_shap]
        moved = faithfulness.sensitivity(model, some, name, background=background)
        table.loc[name, "sensitivity"] = np.median(moved)
        for what, column in (("seeds", "stability"), ("folds", "stability_folds")):
            if models := (others or {}).get(what, []):
                same = [attribute(m, cells, name, background=background) for m in models]
                table.loc[name, column] = stability([why[name], *same])
    return table.rename(index=METHODS)


def enough(
    model, mdata: MuData, method: str, budgets: Iterable[int], threshold: float = 0.9, **options
) -> tuple[pd.DataFrame, Explanation]:
    """Find what a sampling method needs to agree with itself.

    At each budget, two runs with half of it and different seeds are compared; the search stops at
    the first that reaches `threshold`. Gives a row per budget tried: `budget`, `split_half` (mean
    Spearman over cells) and `seconds` per 1000 cells at the whole budget; and the mean of the last
    two runs, an explanation at the whole budget.
    """
    rows = []
    for size in budgets:
        first, second = (
            attribute(model, mdata, method, budget=size // 2, seed=seed, **options)
            for seed in (1, 2)
        )
        mean = {m: (v + second.values[m]) / 2 for m, v in first.values.items()}
        whole = replace(first, values=mean, budget=size, seconds=first.seconds + second.seconds)
        row = {"budget": size, "split_half": float(faithfulness.spearman(first, second).mean())}
        rows.append(row | {"seconds": 1000 * whole.seconds / mdata.n_obs})
        if row["split_half"] >= threshold:
            break
    return pd.DataFrame(rows), whole


def stability(explanations: Sequence[Explanation]) -> float:
    """Mean rank correlation over all pairs of explanations of the same cells by different models.

    A pair is compared on the features that both models use and the cells that both put into the
    same group: what is explained is then the same.
    """
    pairs = [_alike(a, b) for i, a in enumerate(explanations) for b in explanations[:i]]
    if not pairs:
        raise ValueError("stability needs the explanations of at least two models")
    scores = [faithfulness.spearman(a, b).mean() for a, b in pairs if len(a.cells)]
    return float(np.mean(scores)) if scores else float("nan")


def _alike(first: Explanation, second: Explanation) -> tuple[Explanation, Explanation]:
    """Two models' explanations cut to what is the same in both: cells in one group, features."""
    rows = np.flatnonzero(np.asarray(first.groups) == np.asarray(second.groups))
    features = {m: first.features[m].intersection(second.features[m]) for m in first.values}

    def cut(e):
        columns = {m: e.features[m].get_indexer(names) for m, names in features.items()}
        values = {m: e.values[m][rows][:, :, columns[m]] for m in features}
        return replace(e, values=values, features=features, cells=e.cells[rows])

    return cut(first), cut(second)
