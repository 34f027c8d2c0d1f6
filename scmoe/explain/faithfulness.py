"""Whether an explanation is true of the model, and whether others say the same.

All scores are of one cell's answer at a time, its own predicted group's centred logit, and are
averaged over cells.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from captum.metrics import sensitivity_max
from mudata import MuData

from scmoe.explain import gradients
from scmoe.explain.answer import Answer
from scmoe.explain.attribution import BUDGETS, PRIMARY, Explanation

FRACTIONS = (0, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
SCORES = ["deletion", "insertion"]


def deletion_insertion(
    model, mdata: MuData, explanations: Mapping[str, Explanation], background: MuData,
    n_draws: int = 5, n_random: int = 5, seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Replace features in the order of their attribution, and watch the answer.

    Deletion replaces the features that speak most for the answer first; insertion starts from a
    cell with everything replaced and puts them back first. Replacements are the values of a
    `background` (training) cell drawn at random, the same `n_draws` for all methods; for comparison
    there are `n_random` random orders. An answer is put on a scale from 0 (everything replaced,
    mean over draws) to 1 (nothing replaced) with one scale for all cells. `explanations` are by
    name, of each cell's own group, of all cells or, where a method is dear, of the first ones.

    Returns
    -------
    Curves (columns `method, what, fraction, answer`), and scores: one row per cell and method with
    `deletion` (area by which the answer falls faster than in random order) and `insertion` (by
    which it rises faster). Larger is better; 0 is random.
    """
    rng = np.random.default_rng(seed)
    answer = Answer(model)
    x, pool = answer.inputs(mdata), answer.inputs(background)
    draws = pool[torch.as_tensor(rng.integers(len(pool), size=(n_draws, len(x))))]  # (D, N, F)
    curves = {name: _curves(answer, x, draws, ranks(-e.flat[:, 0]))
              for name, e in explanations.items()}  # fmt: skip
    some = ranks(x.cpu().numpy())
    random = [_curves(answer, x, draws, rng.permuted(some, axis=1)) for _ in range(n_random)]
    curves["random"] = np.mean(random, axis=0)
    empty, full = (curves["random"][0, :, at].mean() for at in (-1, 0))
    curves = {name: (c - empty) / max(full - empty, 1e-12) for name, c in curves.items()}
    shown, scores = [], []
    for name, curve in curves.items():
        for what, values in zip(SCORES, curve.mean(1), strict=True):
            part = {"method": name, "what": what, "fraction": FRACTIONS, "answer": values}
            shown.append(pd.DataFrame(part))
        n = curve.shape[1]
        area = np.trapezoid(curve - curves["random"][:, :n], FRACTIONS, axis=2)
        part = {"cell": mdata.obs_names[:n], "method": name, "deletion": -area[0]}
        scores.append(pd.DataFrame(part | {"insertion": area[1]}))
    return pd.concat(shown, ignore_index=True), pd.concat(scores, ignore_index=True)


def _curves(answer, x, draws, order) -> np.ndarray:
    """Answers `(2, n_cells, n_fractions)`: features replaced, and all others replaced."""
    n, rank = len(order), torch.as_tensor(order, device=x.device)
    x, draws, result = x[:n], draws[:, :n], np.zeros((2, n, len(FRACTIONS)))
    own = _answers(answer, x).argmax(1, keepdim=True)
    for j, fraction in enumerate(FRACTIONS):
        top = rank < round(fraction * x.shape[1])
        for drawn in draws:
            for i, replaced in enumerate((top, ~top)):
                out = _answers(answer, torch.where(replaced, drawn, x)).gather(1, own)
                result[i, :, j] += out[:, 0].cpu().numpy() / len(draws)
    return result


@torch.no_grad()
def _answers(answer, rows: torch.Tensor) -> torch.Tensor:
    """Answers `(N, K)` about cells given as rows of all sources' features side by side."""
    return torch.cat([answer(part) for part in rows.split(1024)])


def ranks(values: np.ndarray) -> np.ndarray:
    """Place of each feature in ascending order of `values`, row by row."""
    return values.argsort(1, kind="stable").argsort(1, kind="stable")


def bootstrap(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of values of cells and its 95 % interval (percentiles over 1000 resamples of cells)."""
    values = np.asarray(values, float)
    drawn = np.random.default_rng(0).integers(len(values), size=(1000, len(values)))
    means = values[drawn].mean(1)
    return (float(values.mean()), *map(float, np.percentile(means, [2.5, 97.5])))


def intervals(scores: pd.DataFrame) -> pd.DataFrame:
    """Method × mean `deletion` and `insertion` over cells, with `_low` and `_high` of the interval.

    `scores` are those of `deletion_insertion`.
    """
    parts = []
    for what in SCORES:
        found = scores.groupby("method", sort=False)[what].apply(bootstrap)
        names = [what, f"{what}_low", f"{what}_high"]
        parts.append(pd.DataFrame(found.tolist(), list(found.index), names))
    return pd.concat(parts, axis=1)


def infidelity(
    model, mdata: MuData, explanation: Explanation, background: MuData | None = None
) -> np.ndarray:
    """Infidelity of each cell's explanation (Yeh et al. 2019, eq. 1), as a share.

    Random sets of features, of random sizes, are replaced by their means; the change of the answer
    is held against the sum of their attributions. Mean square of the difference over mean square
    of the change: 0 is perfect, 1 is no better than predicting no change.
    """
    rng, answer = np.random.default_rng(0), Answer(model)
    x, mean = answer.inputs(mdata), answer.mean(background)
    values = torch.as_tensor(explanation.flat[:, 0], device=x.device)
    before = _answers(answer, x)
    own = before.argmax(1, keepdim=True)
    error, size = np.zeros(len(x)), np.zeros(len(x))
    for _ in range(20):
        share = rng.random((len(x), 1))
        chosen = torch.as_tensor(rng.random(x.shape) < share, device=x.device)
        after = _answers(answer, torch.where(chosen, mean, x))
        change = (before - after).gather(1, own)[:, 0]
        error += (change - (values * chosen).sum(1)).square().cpu().numpy()
        size += change.square().cpu().numpy()
    return error / np.maximum(size, 1e-12)


def sensitivity(
    model, mdata: MuData, method: str = PRIMARY, radius: float = 0.1,
    background: MuData | None = None,
) -> np.ndarray:  # fmt: skip
    """Largest relative change of a cell's explanation under small noise (Yeh et al. 2019, eq. 5).

    Uniform noise of at most `radius` standard deviations is added five times to every scaled
    feature, and the same group explained, by a method that is no SHAP.
    """
    answer = Answer(model)
    x, widths = answer.inputs(mdata), answer.widths
    explain = gradients.explainer(method, answer, mdata, background, BUDGETS.get(method))
    with torch.no_grad():
        (own,) = gradients.own_group(answer(x))

    @torch.enable_grad()
    def attributions(x, additional_forward_args):
        shape = len(x[0]), len(model.modalities_)
        present = torch.ones(shape, dtype=torch.bool, device=x[0].device)
        shares = explain(torch.cat(x, 1), present, lambda _: [*additional_forward_args])
        return shares.detach().sum(0)[:, 0].split(widths, 1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sensitivity_max(
            attributions, x.split(widths, 1), perturb_radius=radius, n_perturb_samples=5,
            additional_forward_args=(own,),
        ).numpy(force=True)  # fmt: skip


def shuffled(model, seed: int = 0):
    """Give a copy of a part of scMoE whose weights are shuffled within each matrix.

    An explanation of the model must not look like one of this (Adebayo et al. 2018). Components and
    what weighs views stay.
    """
    rng, other = np.random.default_rng(seed), copy.copy(model)

    def mixed(values):
        return rng.permutation(values.ravel()).reshape(values.shape)

    if hasattr(model, "network_"):
        other.network_ = copy.deepcopy(model.network_)
        with torch.no_grad():
            for weights in other.network_.parameters():
                weights.copy_(torch.as_tensor(mixed(weights.numpy(force=True))))
    else:
        other.heads_ = [head._replace(weights=mixed(head.weights)) for head in model.heads_]
        other.maps_ = {
            pair: [*map(mixed, maps), bias] for pair, (*maps, bias) in model.maps_.items()
        }
    return other


def spearman(first: Explanation, second: Explanation) -> np.ndarray:
    """Rank correlation of two explanations of the same cells and answers, one value per cell."""
    a, b = (pd.DataFrame(np.concatenate(e.flat, 0)).rank(axis=1) for e in (first, second))
    return a.corrwith(b, axis=1).fillna(0).to_numpy()


def agreement(explanations: Mapping[str, Explanation], score=spearman) -> pd.DataFrame:
    """Method × method: mean `score` over the cells that both explain, the first ones."""
    names = list(explanations)
    table = pd.DataFrame(np.eye(len(names)), names, names)
    for i, a in enumerate(names):
        for b in names[:i]:
            pair = explanations[a], explanations[b]
            n = min(len(e.cells) for e in pair)
            cut = [replace(e, values={m: v[:n] for m, v in e.values.items()}) for e in pair]
            table.loc[a, b] = table.loc[b, a] = float(score(*cut).mean())
    return table
