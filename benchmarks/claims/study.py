"""The numbers of the interpretability page: every method scored on the same cells of one run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from mudata import MuData
from scipy.sparse import issparse

from scmoe import summary
from scmoe.data import DATASETS, Split
from scmoe.data.cells import make_mudata
from scmoe.explain import faithfulness, recovery
from scmoe.explain.attribution import METHODS, PRIMARY, Explanation, attribute
from scmoe.metrics import COLUMNS
from scmoe.model import ScMoE
from scmoe.networks import Experts
from scmoe.record import SIMULATION, Run, source_hash

REFERENCE = "shap_permutation"  # the SHAP that agreement is measured with: exact but for sampling
CHEAP = (PRIMARY, "gradient_x_input", "integrated_gradients", "routing")


@dataclass(frozen=True)
class Plan:
    """How many cells and draws a study takes; SHAP's budgets are tried in order."""

    n_cells: int = 24  # scored by every cheap method
    n_shap: int = 6  # by SHAP Gradient
    n_slow: int = 2  # by SHAP Permutation and SHAP Kernel
    n_draws: int = 3  # replacements and random orders a cell, in deletion and insertion
    n_random: int = 40  # random concepts
    kernel: bool = False
    n_seeds: int = 0  # further models, for stability and the matching of experts
    n_folds: int = 0  # further models, for stability
    n_networks: int = 0  # simulated anew for each backbone, for recovery
    gradient_budgets: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024)
    permutation_budgets: tuple[int, ...] = (2, 4, 8, 16, 32)


PLANS = {
    "quick": Plan(),
    "full": Plan(60, 20, 6, 5, 100, True, 1, 1, 5),
}


def plan_of(run: Run) -> Plan:
    """The plan of a run's profile; the paper's models take long to train, so there are fewer."""
    plan = PLANS[run.profile]
    few_models = {"n_seeds": min(plan.n_seeds, 1), "n_folds": 0}
    return replace(plan, **few_models) if run.protocol == "paper" else plan


@dataclass
class Study:
    """What was found.

    Attributes
    ----------
    table
        Method × score: `seconds` (per 1000 cells), `peak_mb`, `budget`, `split_half`, `cells`,
        `deletion`, `insertion` (areas better than random order, with `_low`, `_high` of their 95 %
        interval), `infidelity`, `sensitivity` (medians), `agreement` (Spearman) and `overlap` (top
        20) with SHAP Permutation, `stability` over seeds and `stability_folds`.
    versus
        Per SHAP method: by how much the primary method's deletion and insertion are better on the
        same cells (mean and 95 % interval), and how many times cheaper it is.
    curves
        `method, what, fraction, answer`, as `faithfulness.deletion_insertion` gives them.
    explanations
        By method.
    cells
        The cells that were scored.
    additivity
        Mean |gap| of SHAP Deep's sums, as a share of the answers' size.
    """

    table: pd.DataFrame
    versus: pd.DataFrame
    curves: pd.DataFrame
    explanations: dict[str, Explanation]
    cells: MuData
    additivity: float = float("nan")


def fitted(run: Run, split: Split) -> Experts:
    """Load the model that a page of this data set left beside this run's folder, or train one.

    Its experts are what is explained.

    A neighbour's model is taken when its parameters, data and sources are those of this run.
    """
    wanted = _identity(run.parameters, split.data_source, split.checksums, source_hash())
    for file in sorted(run.out_dir.parent.glob("*/metrics.json")):
        found = json.loads(file.read_text())["provenance"]
        left = found["data_source"], found["checksums"], found["sources"]
        same = found["dataset"] == run.dataset and _identity(found["parameters"], *left) == wanted
        if same and (file.parent / "model").is_dir():
            run.trained = f"loaded from {file.parent}"
            model = ScMoE.load(file.parent / "model", device=run.device)
            if file.parent != run.out_dir:
                model.save(run.out_dir / "model", overwrite=True)
            return model.experts
    return run.fit(ScMoE(run.task, run.config(), run.seed), split).experts


def further(run: Run, plan: Plan) -> dict[str, list[Experts]]:
    """Models of this run's other `seeds` and `folds`, as many as the plan asks for."""
    folds = [fold for fold in DATASETS[run.dataset].folds if fold != run.fold]
    changes = {
        "seeds": [{"seed": run.seed + 1 + i} for i in range(plan.n_seeds)],
        "folds": [{"fold": fold} for fold in folds[: plan.n_folds]],
    }
    return {what: [_other(run, change) for change in each] for what, each in changes.items()}


def _other(run: Run, change: dict) -> Experts:
    name = "-".join(f"{key}_{value}" for key, value in change.items())
    other = replace(run, **change, out_dir=run.out_dir / name, seconds={}, split=None)
    split = other.load()
    return other.fit(ScMoE(run.task, run.config(), other.seed), split).experts


def _identity(parameters, data_source, checksums, sources) -> str:
    decide = ("task", "protocol", "fold", "seed", "epochs", "modalities")
    made_from = {name: parameters.get(name) for name in decide}
    made_from |= {name: parameters.get(name, usual) for name, usual in SIMULATION.items()}
    return json.dumps([made_from, data_source, checksums, sources], sort_keys=True, default=str)


def score(
    model: Experts,
    split: Split,
    plan: Plan,
    others: Mapping[str, Sequence[Experts]] | None = None,
    seed: int = 0,
) -> Study:
    """Explain the same test cells by every method, and score each.

    Parameters
    ----------
    others
        Models of other `seeds` and `folds`, for stability.

    Returns
    -------
    Study
    """
    cells, background = complete(split.test, plan.n_cells, seed), split.train
    why, spent = {}, {}
    attribute(model, few(cells, 2), background=background)  # warm up, so that no method pays for it
    for method in CHEAP:
        why[method] = attribute(model, cells, method, background=background)
        spent[method] = _spent(why[method])
    tried = {"shap_gradient": (plan.n_shap, plan.gradient_budgets)}
    tried[REFERENCE] = plan.n_slow, plan.permutation_budgets
    if plan.kernel:
        # fewer coalitions than twice the features do not determine the regression
        n_features = why[PRIMARY].flat.shape[2]
        tried["shap_kernel"] = max(plan.n_slow // 3, 2), [4 * n_features * k for k in (1, 2, 4)]
    for method, (n, budgets) in tried.items():
        found, why[method] = faithfulness.budget(
            model, few(cells, n), method, budgets, background=background
        )
        spent[method] = found.iloc[-1].to_dict()
    draws = {"n_draws": plan.n_draws, "n_random": plan.n_draws, "seed": seed}
    curves, per_cell = faithfulness.deletion_insertion(model, cells, why, background, **draws)
    table = pd.DataFrame.from_dict(spent, orient="index")
    table["cells"] = [len(e.cells) for e in why.values()]
    for name in why:
        own = per_cell[per_cell["method"] == name]
        for what in ("deletion", "insertion"):
            bounds = faithfulness.bootstrap(own[what].to_numpy())
            table.loc[name, [what, f"{what}_low", f"{what}_high"]] = bounds
        error = faithfulness.infidelity(model, few(cells, len(own)), why[name], background)
        table.loc[name, "infidelity"] = np.median(error)
        if name in CHEAP:
            some = few(cells, plan.n_shap)
            moved = faithfulness.sensitivity(model, some, name, background=background)
            table.loc[name, "sensitivity"] = np.median(moved)
        both = faithfulness.common(why[name], why[REFERENCE])
        table.loc[name, "agreement"] = faithfulness.spearman(*both).mean()
        table.loc[name, "overlap"] = faithfulness.top_overlap(*both).mean()
        for what, column in (("seeds", "stability"), ("folds", "stability_folds")):
            models = (others or {}).get(what, []) if name in CHEAP else []
            if models:
                same = [attribute(m, cells, name, background=background) for m in models]
                table.loc[name, column] = faithfulness.stability([why[name], *same])
    two, some = few(cells, 2), few(background, 20)
    deep = attribute(model, two, "shap_deep", background=some)
    gap = faithfulness.additivity_error(model, two, deep, some)
    versus = _versus(per_cell, table, [name for name in why if name.startswith("shap")])
    return Study(table, versus, curves, why, cells, float(np.abs(gap).mean()))


def _spent(why: Explanation) -> dict:
    return {
        "budget": why.budget or 1,
        "split_half": 1.0,
        "seconds": 1000 * why.seconds / len(why.cells),
        "peak_mb": why.peak_mb,
    }


def _versus(per_cell, table, names) -> pd.DataFrame:
    """The primary method against each other one, cell by cell."""
    ours = per_cell[per_cell["method"] == PRIMARY].set_index("cell")
    rows = {}
    for name in names:
        theirs = per_cell[per_cell["method"] == name].set_index("cell")
        row = {"cheaper": table.at[name, "seconds"] / table.at[PRIMARY, "seconds"]}
        for what in ("deletion", "insertion"):
            gain = (ours.loc[theirs.index, what] - theirs[what]).to_numpy()
            row |= dict(
                zip(
                    (what, f"{what}_low", f"{what}_high"), faithfulness.bootstrap(gain), strict=True
                )
            )
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def complete(mdata: MuData, n: int, seed: int) -> MuData:
    """At most `n` cells that have every modality, drawn at random."""
    has_all = np.logical_and.reduce([mdata.obs_names.isin(a.obs_names) for a in mdata.mod.values()])
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(has_all))[:n]
    return _these(mdata, np.sort(rows))


def few(mdata: MuData, n: int) -> MuData:
    """The first cells, at most `n`."""
    return _these(mdata, np.arange(min(n, mdata.n_obs)))


def _these(mdata: MuData, rows: np.ndarray) -> MuData:
    """A copy of some cells, whichever modalities they have."""
    obs = mdata.obs.iloc[rows]
    mod = {m: a[obs.index[obs.index.isin(a.obs_names)]].copy() for m, a in mdata.mod.items()}
    return make_mudata(mod, obs)


def records(
    study: Study, model: Experts, split: Split, run: Run, further: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """The page's numbers as records: `task` is "interpretability", `method` the explainer.

    Parameters
    ----------
    further
        Tables of other parts of the page, method × score, by what precedes the score's name.
    """
    versus = study.versus.add_prefix("primary against it, ")
    tables = {"": study.table.join(versus).rename(index=METHODS)} | dict(further)
    tables["gap of "] = pd.DataFrame({"sums": [study.additivity]}, index=[METHODS["shap_deep"]])
    parts = [
        table.add_prefix(before)
        .rename_axis(index="method")
        .reset_index()
        .melt("method", var_name="metric")
        .dropna(subset="value")
        for before, table in tables.items()
    ]
    info = model.info_ | {"protocol": run.protocol, "task": "interpretability"}
    info |= {"modalities": "+".join(split.modalities), "target_modality": "", "source_modality": ""}
    return pd.concat(parts, ignore_index=True).assign(**info)[COLUMNS]


def swarm(why: Explanation, model: Experts, cells: MuData) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Attributions of complete cells, and scaled inputs: cell × (modality, feature)."""
    scaled = model.transform(cells)
    dense = [scaled[m].X for m in why.values]
    dense = [x.toarray() if issparse(x) else np.asarray(x) for x in dense]
    inputs = np.concatenate(dense, axis=1)
    return tuple(pd.DataFrame(v, why.cells, why.index) for v in (why.flat[:, 0], inputs))


def places(model: Experts, cells: MuData, seed: int = 0) -> tuple[np.ndarray, bool]:
    """Where to draw cells `(n_cells, 2)`: in the tissue (True), or in a layout of their latent."""
    if "spatial" in cells.obsm:
        return np.asarray(cells.obsm["spatial"]), True
    return summary.layout(model.get_latent_representation(cells), seed=seed)[0], False


def flows(model: Experts, cells: MuData, background: MuData, n_outputs: int = 20) -> pd.DataFrame:
    """Share of |attribution| that each source has when a modality is predicted from all others.

    Target × source, rows sum to 1. Explained are the `n_outputs` target features whose predictions
    vary most.
    """
    rows = {}
    for target in model.modalities_:
        sources = [m for m in model.modalities_ if m != target]
        spread = model.translate(cells, target, sources, units="scaled").std(0)
        names = model.transform_.features[target][np.argsort(-spread)[:n_outputs]]
        asked = {"target": target, "outputs": list(names), "background": background}
        why = attribute(model, cells, "gradient_x_input", **asked)
        size = {m: np.abs(v).sum() for m, v in why.values.items()}
        rows[target] = {m: float(v / max(sum(size.values()), 1e-12)) for m, v in size.items()}
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=model.modalities_)


def likeness_to_random(study: Study, model: Experts, background: MuData, n: int = 3) -> float:
    """Mean rank correlation of explanations with those of models with random weights."""
    asked = {"outputs": model.groups_, "background": background}
    trained = attribute(model, study.cells, **asked)
    random = [attribute(recovery.randomised(model, s), study.cells, **asked) for s in range(n)]
    return float(np.mean([faithfulness.spearman(trained, other).mean() for other in random]))
