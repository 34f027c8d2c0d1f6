"""What each feature adds to an answer, by one interface for every method.

The primary method, named before any was scored, is **expert-resolved gradient × input**: one
forward pass and one backward pass, kept apart by the expert it flowed through. All methods explain
the same number (see `scmoe.explain.answer`), in scaled units, against the same baseline: the mean
of the training cells (a missing feature is an average one).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from mudata import MuData

from scmoe.explain import gradients, shapley
from scmoe.explain.answer import Answer

PRIMARY = "expert_gradient_x_input"
METHODS = {
    PRIMARY: "expert-resolved gradient × input",
    "gradient_x_input": "gradient × input",
    "integrated_gradients": "integrated gradients",
    "routing": "routing relevance",
    "shap_gradient": "SHAP Gradient",
    "shap_permutation": "SHAP Permutation",
    "shap_kernel": "SHAP Kernel",
}
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
    features, cells
        Names.
    groups
        Predicted group of each cell.
    inputs
        Modality -> `(n_cells, n_features)`: the features that were read, scaled.
    seconds
        Of the processor, which other work on the machine does not stretch; on a GPU, by the clock.
    shares, share_names
        Expert-resolved only: modality -> `(n_shares, n_cells, n_outputs, n_features)`; the sum over
        shares is `values`. Shares are the linear part, the networks' residual streams (no expert)
        and each expert of the last layer, of every member.
    """

    method: str
    target: str
    outputs: list[str]
    values: dict[str, np.ndarray]
    features: dict[str, pd.Index]
    cells: pd.Index
    groups: np.ndarray | None
    budget: int | None = None
    inputs: dict[str, np.ndarray] | None = None
    seconds: float = 0.0
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

        Parameters
        ----------
        by
            A label per cell: one column per label instead, over its cells and all answers.
        signed
            Mean attribution, with its sign.
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
    model,
    mdata: MuData,
    method: str = PRIMARY,
    target: str = "group",
    outputs: Sequence[str] | None = None,
    source: str | Sequence[str] | None = None,
    background: MuData | None = None,
    budget: int | None = None,
    seed: int = 0,
) -> Explanation:
    """Say what each feature of each cell adds to the model's answers, by one of `METHODS`.

    Parameters
    ----------
    model
        A fitted `scmoe.ScMoE`, or one of its parts: `model.experts`, `model.linear`.
    target
        `"group"`, or a modality: then translations are explained.
    outputs
        Groups, or features of the target modality. Default: each cell's own predicted group; all
        features of the target modality.
    source
        Modalities to read; default all but the target.
    background
        Training cells that say what a typical cell is. SHAP Gradient draws from them; the
        other methods use their mean, for which the training mean that the model stores will do.
    budget
        Steps (integrated gradients), samples (SHAP Gradient), permutations (SHAP Permutation) or
        coalitions (SHAP Kernel) per cell.
    Raises
    ------
    scmoe.data.DataError
        When a method that needs every modality meets a cell that lacks one.

    References
    ----------
    Gradient × input: Shrikumar et al. 2017. Integrated gradients: Sundararajan et al. 2017, eq. 1.
    SHAP: Lundberg and Lee 2017; expected gradients: Erion et al. 2021, eq. 4.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    answer = Answer(model, target, outputs, source)
    own = target == "group" and outputs is None
    budget = BUDGETS.get(method) if budget is None else budget
    shares, names = None, []
    with _clock(answer.device) as seconds:
        if method in gradients.METHODS:
            explain = gradients.explainer(method, answer, mdata, background, budget)
            choose = gradients.own_group if own else gradients.every
            parts = [[v.detach().cpu().numpy() for v in explain(x, present, choose)]
                     for x, present in answer.batches(mdata)]  # fmt: skip
            shares = [np.concatenate(part, axis=1) for part in zip(*parts, strict=True)]
            values = [part.sum(0) for part in shares]
            names = gradients.share_names(answer) if method == PRIMARY else []
        else:
            values = shapley.explain(answer, mdata, method, background, own, budget, seed)
    read = answer.modalities
    inputs = [torch.cat(parts).numpy(force=True)
              for parts in zip(*(x for x, _ in answer.batches(mdata)), strict=True)]  # fmt: skip
    return Explanation(
        method=method,
        target=target,
        outputs=["own group"] if own else answer.outputs,
        values=dict(zip(read, values, strict=True)),
        features={m: model.transform_.features[m] for m in read},
        cells=mdata.obs_names,
        groups=model.predict(mdata)["group"].to_numpy() if target == "group" else None,
        budget=budget,
        inputs=dict(zip(read, inputs, strict=True)),
        seconds=seconds[0],
        shares=dict(zip(read, shares, strict=True)) if names else None,
        share_names=names,
    )


@contextmanager
def _clock(device):
    """Put the seconds that a block takes into a list when it is left."""
    clock, seconds = time.process_time, []
    if device.type == "cuda":
        clock = time.perf_counter
        torch.cuda.synchronize()
    start = clock()
    yield seconds
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds.append(clock() - start)
