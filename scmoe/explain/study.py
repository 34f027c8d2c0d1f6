"""The numbers of the interpretability page: every method scored on the same cells of one run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from mudata import MuData
from scipy.sparse import issparse

from scmoe.data import Split
from scmoe.explain import faithfulness, recovery
from scmoe.explain.attribution import METHODS, PRIMARY, Explanation, attribute
from scmoe.metrics import COLUMNS
from scmoe.model import ScMoE
from scmoe.record import Run, source_hash

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
    seeds: tuple[int, ...] = ()  # further models, for stability and the matching of experts
    gradient_budgets: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024)
    permutation_budgets: tuple[int, ...] = (2, 4, 8, 16, 32)


PLANS = {
    "quick": Plan(),
    "full": Plan(100, 40, 10, 10, 100, True, (1, 2)),
}


@dataclass
class Study:
    """What was found.

    Attributes
    ----------
    table
        Method × score: `seconds` (per 1000 cells), `peak_mb`, `budget`, `split_half`, `cells`,
        `deletion`, `insertion` (areas better than random order, with `_low`, `_high` of their 95 %
        interval), `infidelity`, `agreement` (Spearman) and `overlap` (top 20) with SHAP
        Permutation, `stability` over seeds.
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
    others: list[ScMoE] = field(default_factory=list)


def fitted(run: Run, split: Split, seed: int | None = None) -> ScMoE:
    """Load the model that a page of this data set left beside this run's folder, or train one.

    A neighbour's model is taken when its parameters, data and sources are those of this run.

    Parameters
    ----------
    seed
        Of a further model, trained anew; default the run's.
    """
    if seed is not None:
        other = replace(run, seed=seed, out_dir=run.out_dir / f"seed{seed}")
        return other.fit(ScMoE(run.task, run.config(), seed), split)
    wanted = _identity(run.parameters, split.data_source, split.checksums, source_hash())
    for file in sorted(run.out_dir.parent.glob("*/metrics.json")):
        found = json.loads(file.read_text())["provenance"]
        left = found["data_source"], found["checksums"], found["sources"]
        same = found["dataset"] == run.dataset and _identity(found["parameters"], *left) == wanted
        if same and (file.parent / "model").is_dir():
            run.trained = f"loaded from {file.parent}"
            return ScMoE.load(file.parent / "model", device=run.device)
    return run.fit(ScMoE(run.task, run.config(), run.seed), split)


def _identity(parameters, data_source, checksums, sources) -> str:
    decide = ("task", "protocol", "fold", "seed", "epochs", "modalities")
    made_from = {name: parameters.get(name) for name in decide}
    return json.dumps([made_from, data_source, checksums, sources], sort_keys=True, default=str)


def score(model: ScMoE, split: Split, plan: Plan, others: Sequence[ScMoE] = (), seed: int = 0):
    """Explain the same test cells by every method, and score each.

    Parameters
    ----------
    others
        Models of other seeds, for stability.

    Returns
    -------
    Study
    """
    cells, background = complete(split.test, plan.n_cells, seed), split.train
    why, spent = {}, {}
    attribute(
        model, cells[:2].copy(), background=background
    )  # warm up, so that no method pays for it
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
            model, cells[:n].copy(), method, budgets, background=background
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
        error = faithfulness.infidelity(model, cells[: len(own)].copy(), why[name])
        table.loc[name, "infidelity"] = np.median(error)
        table.loc[name, "agreement"] = faithfulness.spearman(
            *_common(why[name], why[REFERENCE])
        ).mean()
        overlap = faithfulness.top_overlap(*_common(why[name], why[REFERENCE]))
        table.loc[name, "overlap"] = overlap.mean()
        if others and name in CHEAP:
            same = [attribute(m, cells, name, background=background) for m in others]
            table.loc[name, "stability"] = faithfulness.stability([why[name], *same])
    deep = attribute(model, cells[:2].copy(), "shap_deep", background=background[:20].copy())
    gap = faithfulness.additivity_error(model, cells[:2].copy(), deep, background[:20].copy())
    versus = _versus(per_cell, table, [name for name in why if name.startswith("shap")])
    return Study(table, versus, curves, why, cells, float(np.abs(gap).mean()), list(others))


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


def _common(first: Explanation, second: Explanation) -> tuple[Explanation, Explanation]:
    """The cells that two explanations share: the first ones."""
    n = min(len(first.cells), len(second.cells))
    cut = lambda e: replace(e, values={m: v[:n] for m, v in e.values.items()}, cells=e.cells[:n])  # noqa: E731
    return cut(first), cut(second)


def complete(mdata: MuData, n: int, seed: int) -> MuData:
    """At most `n` cells that have every modality, drawn at random."""
    has_all = np.logical_and.reduce([mdata.obs_names.isin(a.obs_names) for a in mdata.mod.values()])
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(has_all))[:n]
    return mdata[np.sort(rows)].copy()


def records(study: Study, model: ScMoE, split: Split, run: Run) -> pd.DataFrame:
    """The study's table as records: `task` is "interpretability", `method` the explainer."""
    names = ["seconds", "peak_mb", "deletion", "insertion", "infidelity", "agreement", "stability"]
    wide = study.table.reindex(columns=names).rename(index=METHODS)
    long = wide.rename_axis("method").reset_index().melt("method", var_name="metric")
    info = model.info_ | {"protocol": run.protocol, "task": "interpretability"}
    info |= {"modalities": "+".join(split.modalities), "target_modality": "", "source_modality": ""}
    return long.assign(**info)[COLUMNS]


def swarm(study: Study, model: ScMoE) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Attributions by the primary method, and scaled inputs: cell × (modality, feature)."""
    why = study.explanations[PRIMARY]
    scaled = model.transform(study.cells)
    dense = [scaled[m].X for m in why.values]
    dense = [x.toarray() if issparse(x) else np.asarray(x) for x in dense]
    inputs = np.concatenate(dense, axis=1)
    return tuple(pd.DataFrame(v, why.cells, why.index) for v in (why.flat[:, 0], inputs))


def flows(model: ScMoE, cells: MuData, n_outputs: int = 20) -> pd.DataFrame:
    """Share of |attribution| that each source has when a modality is predicted from all others.

    Target × source, rows sum to 1. Explained are the `n_outputs` target features whose predictions
    vary most.
    """
    rows = {}
    for target in model.modalities_:
        sources = [m for m in model.modalities_ if m != target]
        spread = model.translate(cells, target, sources, units="scaled").std(0)
        names = model.transform_.features[target][np.argsort(-spread)[:n_outputs]]
        why = attribute(model, cells, "gradient_x_input", target=target, outputs=list(names))
        size = {m: np.abs(v).sum() for m, v in why.values.items()}
        rows[target] = {m: float(v / max(sum(size.values()), 1e-12)) for m, v in size.items()}
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=model.modalities_)


def likeness_to_random(study: Study, model: ScMoE, n: int = 3) -> float:
    """Mean rank correlation of explanations with those of models with random weights."""
    trained = attribute(model, study.cells, outputs=model.groups_)
    random = [
        attribute(recovery.randomised(model, seed), study.cells, outputs=model.groups_)
        for seed in range(n)
    ]
    return float(np.mean([faithfulness.spearman(trained, other).mean() for other in random]))
