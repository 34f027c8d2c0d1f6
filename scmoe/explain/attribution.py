"""What each feature adds to an answer, by one interface for every method.

The primary method, named before any was scored, is **expert-resolved gradient × input**: one
forward pass and one backward pass, kept apart by the expert it flowed through. All methods explain
the same number (see `scmoe.explain.answer`), in scaled units, against the same baseline: the mean
of the training cells (a missing feature is an average one).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import torch
from mudata import MuData
from scipy.stats import spearmanr

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
    "shap_deep": "SHAP Deep",
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
    seconds, peak_mb
        What explaining took: processor seconds (which other work on the machine does not stretch)
        and growth of resident memory; on a GPU, seconds by the clock and allocated memory.
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
    seconds: float = 0.0
    peak_mb: float = 0.0
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

    def share_table(self, by: Sequence[str] | None = None) -> pd.DataFrame:
        """Share of all absolute attribution that flowed through each expert, by modality and label.

        Rows (modality, label), columns shares; a row sums to 1. `by` as for `table`.
        """
        by = np.full(len(self.cells), "all") if by is None else np.asarray(by, str)
        rows = {}
        for modality, values in self.shares.items():
            size = np.abs(values).sum((2, 3))  # (n_shares, n_cells)
            for label in sorted(set(by)):
                part = size[:, by == label].sum(1)
                rows[modality, label] = part / max(part.sum(), np.finfo(float).tiny)
        index = pd.MultiIndex.from_tuples(rows, names=["modality", "label"])
        return pd.DataFrame(np.stack(list(rows.values())), index, self.share_names)


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
    progress: bool = False,
) -> Explanation:
    """Say what each feature of each cell adds to the model's answers.

    Parameters
    ----------
    model
        A fitted `scmoe.ScMoE`.
    mdata
        Cells as measured.
    method
        One of `METHODS`.
    target
        `"group"`, or a modality: then translations are explained.
    outputs
        Groups, or features of the target modality. Default: each cell's own predicted group; all
        features of the target modality.
    source
        Modalities to read; default all but the target.
    background
        Training cells that say what a typical cell is. SHAP Gradient and Deep draw from them; the
        other methods use their mean, for which the training mean that the model stores will do.
    budget
        Steps (integrated gradients), samples (SHAP Gradient), permutations (SHAP Permutation) or
        coalitions (SHAP Kernel) per cell.
    seed
        Of the methods that draw.
    progress
        Show a bar over batches, or cells.

    Raises
    ------
    ValueError
        For an unknown method, output or source, or a background that is needed and missing.
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
    return explain_answer(answer, mdata, method, own, background, budget, seed, progress)


def explain_answer(
    answer: Answer,
    mdata: MuData,
    method: str = PRIMARY,
    own: bool = False,
    background: MuData | None = None,
    budget: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Explanation:
    """Explain a question that is put already; `own`: each cell's largest answer alone."""
    budget = BUDGETS.get(method) if budget is None else budget
    shares, names = None, []
    with _metered(answer.device) as cost:
        if method in gradients.EXPLAINERS:
            explainer = gradients.EXPLAINERS[method]
            parts = explainer(answer, mdata, background, own, budget, progress)
            shares = [np.concatenate(part, axis=1) for part in zip(*parts, strict=True)]
            values = [part.sum(0) for part in shares]
            names = gradients.share_names(answer) if len(shares[0]) > 1 else []
        else:
            explainer = shapley.EXPLAINERS[method]
            values = explainer(answer, mdata, background, own, budget, seed, progress)
    model, read = answer.model, answer.modalities
    return Explanation(
        method=method,
        target="group" if answer.target is None else model.modalities_[answer.target],
        outputs=["own group"] if own else answer.outputs,
        values=dict(zip(read, values, strict=True)),
        features={m: model.transform_.features[m] for m in read},
        cells=mdata.obs_names,
        groups=model.predict(mdata)["group"].to_numpy() if answer.target is None else None,
        budget=budget,
        seconds=cost[0],
        peak_mb=cost[1],
        shares=dict(zip(read, shares, strict=True)) if names else None,
        share_names=names,
    )


# --- SHAP beside one backward pass ---


class Attributions(NamedTuple):
    """Two explanations of the same cells."""

    shares: pd.DataFrame  # (modality, feature) x method: mean |value|, as a share of its sum
    seconds: dict[str, float]  # by method, for all cells
    agreement: float  # Spearman correlation of the two columns of shares
    n_cells: int


def compare_attributions(
    model, cells: MuData, background: MuData, n_samples: int = 100, seed: int = 0
) -> Attributions:
    """Explain the same cells' groups by SHAP Gradient and by the primary method, and time both.

    Parameters
    ----------
    cells, background
        Cells as measured, with every modality of the model; training cells for the background.
    n_samples
        Points per cell that SHAP draws.
    """
    shares, seconds = {}, {}
    for name, method in {"SHAP": "shap_gradient", "gradient × input": PRIMARY}.items():
        why = attribute(
            model, cells, method, background=background, seed=seed,
            budget=n_samples if name == "SHAP" else None,
        )  # fmt: skip
        size = why.table()["own group"]
        shares[name], seconds[name] = size / max(size.sum(), np.finfo(float).tiny), why.seconds
    table = pd.DataFrame(shares).sort_values("SHAP", ascending=False)
    agreement = float(spearmanr(*(table[name] for name in table)).statistic)
    return Attributions(table, seconds, agreement, cells.n_obs)


# --- cost ---


@contextmanager
def _metered(device):
    """Fill a list with seconds and growth of memory in MB, when the block is left."""
    cuda = device.type == "cuda"
    process, cost, peak, done = psutil.Process(), [], [0], threading.Event()

    def watch():
        while not done.wait(0.01):
            peak[0] = max(peak[0], process.memory_info().rss)

    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else process.memory_info().rss
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    try:
        yield cost
        if cuda:
            torch.cuda.synchronize()
        seconds = clock() - start
    finally:
        done.set()
        thread.join()
    highest = torch.cuda.max_memory_allocated() if cuda else peak[0]
    cost += [seconds, max(highest - before, 0) / 1e6]
