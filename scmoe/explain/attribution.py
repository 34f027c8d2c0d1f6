"""What each feature adds to an answer, by one interface for every method.

The primary method, named before any was scored, is **expert-resolved gradient × input**: one
forward pass and one backward pass, kept apart by the expert it flowed through. All methods explain
the same number (see `scmoe.explain.answer`), in scaled units, against the same baseline: the mean
of the training cells (a missing feature is an average one).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from mudata import MuData

from scmoe.data.check import expect_known
from scmoe.explain import gradients, shapley
from scmoe.explain.answer import Answer
from scmoe.explain.gradients import PRIMARY

METHODS = gradients.METHODS | shapley.METHODS
BUDGETS = {"integrated_gradients": 32, "shap_gradient": 200, "shap_permutation": 10}


@dataclass
class Explanation:
    """Attributions of some cells' answers to features.

    Attributes
    ----------
    values
        Modality -> `(n_cells, n_outputs, n_features)`: what each feature adds to each answer.
    outputs
        Names of the answers; `["own group"]` when each cell's predicted group was asked for.
    features, cells, groups
        Names; of groups each cell's predicted one, or None for a translation.
    inputs
        Modality -> `(n_cells, n_features)`: the features that were read, scaled.
    seconds
        Of the processor, which other work on the machine does not stretch; on a GPU, by the clock.
    shares, share_names
        Expert-resolved only: modality -> `(n_shares, n_cells, n_outputs, n_features)`; the sum over
        shares is `values`. Shares are the linear part, the networks' residual streams (no expert)
        and each expert of the last layer, of every member.
    """

    outputs: list[str]
    values: dict[str, np.ndarray]
    features: dict[str, pd.Index]
    cells: pd.Index
    groups: np.ndarray | None
    inputs: dict[str, np.ndarray]
    budget: int | None
    seconds: float
    shares: dict[str, np.ndarray] | None = None
    share_names: list[str] = field(default_factory=list)

    @property
    def flat(self) -> np.ndarray:
        """All modalities side by side, `(n_cells, n_outputs, n_features)`."""
        return np.concatenate(list(self.values.values()), axis=2)

    @property
    def index(self) -> pd.MultiIndex:
        """(modality, feature) of each column of `flat`."""
        pairs = [(m, name) for m in self.values for name in self.features[m]]
        return pd.MultiIndex.from_tuples(pairs, names=["modality", "feature"])

    def table(self, by: Sequence[str] | None = None, signed: bool = False) -> pd.DataFrame:
        """Mean absolute attribution by (modality, feature), one column per answer.

        With `by`, a label per cell, one column per label instead, over its cells and all answers.
        With `signed`, mean attribution, with its sign.
        """
        flat = self.flat if signed else np.abs(self.flat)
        if by is None:
            return pd.DataFrame(flat.mean(0).T, index=self.index, columns=self.outputs)
        by = np.asarray(by, str)
        means = {label: flat[by == label].mean((0, 1)) for label in sorted(set(by))}
        return pd.DataFrame(means, index=self.index)

    def share_table(self) -> pd.DataFrame:
        """Share of all absolute attribution that flowed through each expert; a modality's sum to 1.

        Rows modalities, columns `share_names`.
        """
        sizes = {m: np.abs(values).sum((2, 3)).sum(1) for m, values in self.shares.items()}
        shares = {m: size / max(size.sum(), np.finfo(float).tiny) for m, size in sizes.items()}
        return pd.DataFrame.from_dict(shares, orient="index", columns=self.share_names)


def attribute(
    model, mdata: MuData, method: str = PRIMARY, target: str = "group",
    outputs: Sequence[str] | None = None, source: str | Sequence[str] | None = None,
    background: MuData | None = None, budget: int | None = None, seed: int = 0,
) -> Explanation:  # fmt: skip
    """Say what each feature of each cell adds to the model's answers, by one of `METHODS`.

    Parameters
    ----------
    model
        A fitted `scmoe.ScMoE`, or one of its parts: `model.experts`, `model.linear`.
    target
        `"group"`, or a modality: then translations are explained.
    outputs
        Groups (default: each cell's own predicted one), or features of the target (default: all).
    source
        Modalities to read; default all but the target.
    background
        Training cells that say what a typical cell is. SHAP Gradient draws from them; the others
        use their mean, for which the training mean that the model stores will do.
    budget
        Steps (integrated gradients), samples (SHAP Gradient), permutations (SHAP Permutation) or
        coalitions (SHAP Kernel) per cell.

    SHAP's methods need every modality of every cell, and raise a `DataError` where one is missing.
    Gradient × input: Shrikumar et al. 2017. Integrated gradients: Sundararajan et al. 2017, eq. 1.
    SHAP: Lundberg and Lee 2017; expected gradients: Erion et al. 2021, eq. 4.
    """
    expect_known("method", method, METHODS)
    answer = Answer(model, target, outputs, source)
    own = target == "group" and outputs is None
    budget = BUDGETS.get(method) if budget is None else budget
    clock = time.perf_counter if answer.device.type == "cuda" else time.process_time
    start, split, shares = clock(), method == PRIMARY, None
    if method in gradients.METHODS:
        explain = gradients.explainer(method, answer, mdata, background, budget)
        choose = gradients.own_group if own else gradients.every
        parts = [explain(x, present, choose).numpy(force=True)
                 for x, present in answer.batches(mdata)]  # fmt: skip
        shares = np.concatenate(parts, axis=1)
        values = shares.sum(0)
    else:
        values = shapley.explain(answer, mdata, method, background, own, budget, seed)
    seconds = clock() - start
    inputs = torch.cat([x for x, _ in answer.batches(mdata)]).numpy(force=True)
    return Explanation(
        outputs=["own group"] if own else answer.outputs,
        values=answer.by_modality(values),
        features={m: model.transform_.features[m] for m in answer.modalities},
        cells=mdata.obs_names,
        groups=model.predict(mdata)["group"].to_numpy() if target == "group" else None,
        inputs=answer.by_modality(inputs),
        budget=budget,
        seconds=seconds,
        shares=answer.by_modality(shares) if split else None,
        share_names=gradients.share_names(answer) if split else [],
    )
