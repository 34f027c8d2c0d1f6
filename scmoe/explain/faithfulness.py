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
from scipy.stats import rankdata

from scmoe.explain import gradients
from scmoe.explain.answer import Answer
from scmoe.explain.attribution import BUDGETS, PRIMARY, Explanation

FRACTIONS = (0, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)


def deletion_insertion(
    model,
    mdata: MuData,
    explanations: Mapping[str, Explanation],
    background: MuData,
    n_draws: int = 5,
    n_random: int = 5,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Replace features in the order of their attribution, and watch the answer.

    Deletion replaces the features that speak most for the answer first; insertion starts from a
    cell with everything replaced and puts them back first. Replacements are the values of a
    training cell drawn at random, the same draws for all methods. An answer is put on a scale from
    0 (everything replaced, mean over draws) to 1 (nothing replaced) with one scale for all cells.

    Parameters
    ----------
    explanations
        Name -> explanation of each cell's own group, of all the cells of `mdata` or, where a
        method is dear, of the first ones.
    background
        Training cells to draw from.
    n_draws, n_random
        Replacements, and random orders for comparison, per cell.

    Returns
    -------
    Curves (columns `method, what, fraction, answer`), and scores: one row per cell and method with
    `deletion` (area by which the answer falls faster than in random order) and `insertion` (by
    which it rises faster). Larger is better; 0 is random.
    """
    rng = np.random.default_rng(seed)
    answer = Answer(model)
    x = torch.cat(answer.inputs(mdata), 1)
    pool = torch.cat(answer.inputs(background), 1)
    draws = pool[torch.as_tensor(rng.integers(len(pool), size=(n_draws, len(x))))]  # (D, N, F)
    own = _answers(answer, x).argmax(1)
    orders = {name: ranks(-e.flat[:, 0]) for name, e in explanations.items()}
    random = [rng.permuted(ranks(x.cpu().numpy()), axis=1) for _ in range(n_random)]

    def curves_of(order):
        n = len(order)
        return _curves(answer, x[:n], draws[:, :n], own[:n], order)

    curves = {name: curves_of(order) for name, order in orders.items()}
    curves["random"] = np.mean([curves_of(order) for order in random], axis=0)
    empty, full = (curves["random"][0, :, at].mean() for at in (-1, 0))
    shown, scores = [], []
    scaled = {name: (c - empty) / max(full - empty, 1e-12) for name, c in curves.items()}
    by_chance = np.trapezoid(scaled["random"], FRACTIONS, axis=2)
    for name, curve in scaled.items():
        for what, values in zip(("deletion", "insertion"), curve.mean(1), strict=True):
            part = {"method": name, "what": what, "fraction": FRACTIONS, "answer": values}
            shown.append(pd.DataFrame(part))
        area, n = np.trapezoid(curve, FRACTIONS, axis=2), curve.shape[1]
        part = {"deletion": by_chance[0, :n] - area[0], "insertion": area[1] - by_chance[1, :n]}
        scores.append(pd.DataFrame({"cell": mdata.obs_names[:n], "method": name} | part))
    return pd.concat(shown, ignore_index=True), pd.concat(scores, ignore_index=True)


def _curves(answer, x, draws, own, order) -> np.ndarray:
    """Answers `(2, n_cells, n_fractions)`: features replaced, and all others replaced."""
    rank = torch.as_tensor(order, device=x.device)
    n_features, column = x.shape[1], own[:, None]
    result = np.zeros((2, len(x), len(FRACTIONS)))
    for j, fraction in enumerate(FRACTIONS):
        top = rank < round(fraction * n_features)
        for drawn in draws:
            for i, replaced in enumerate((top, ~top)):
                out = _answers(answer, torch.where(replaced, drawn, x))
                result[i, :, j] += out.gather(1, column)[:, 0].cpu().numpy() / len(draws)
    return result


@torch.no_grad()
def _answers(answer, rows: torch.Tensor) -> torch.Tensor:
    """Answers `(N, K)` about cells given as rows of all sources' features side by side."""
    return torch.cat([answer(*part.split(answer.widths, 1)) for part in rows.split(1024)])


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
    rows = {}
    for method, part in scores.groupby("method", sort=False):
        means = {what: bootstrap(part[what]) for what in ("deletion", "insertion")}
        rows[method] = {w + end: v for w, values in means.items()
                        for end, v in zip(("", "_low", "_high"), values, strict=True)}  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def infidelity(
    model, mdata: MuData, explanation: Explanation, background: MuData | None = None
) -> np.ndarray:
    """Infidelity of each cell's explanation (Yeh et al. 2019, eq. 1), as a share.

    Random sets of features, of random sizes, are replaced by their means; the change of the answer
    is held against the sum of their attributions. Mean square of the difference over mean square
    of the change: 0 is perfect, 1 is no better than predicting no change.
    """
    rng = np.random.default_rng(0)
    answer = Answer(model)
    x = torch.cat(answer.inputs(mdata), 1)
    mean = torch.cat(answer.means(background))
    values = torch.as_tensor(explanation.flat[:, 0], device=x.device)
    before = _answers(answer, x)
    own = before.argmax(1, keepdim=True)
    error, size = np.zeros(len(x)), np.zeros(len(x))
    for _ in range(20):
        share = rng.random((len(x), 1))
        chosen = torch.as_tensor(rng.random(x.shape) < share, device=x.device)
        after = _answers(answer, torch.where(chosen, mean, x))
        change = (before - after).gather(1, own)[:, 0]
        said = (values * chosen).sum(1)
        error += (change - said).square().cpu().numpy()
        size += change.square().cpu().numpy()
    return error / np.maximum(size, 1e-12)


def sensitivity(
    model,
    mdata: MuData,
    method: str = PRIMARY,
    radius: float = 0.1,
    n_draws: int = 5,
    background: MuData | None = None,
) -> np.ndarray:
    """Largest relative change of a cell's explanation under small noise (Yeh et al. 2019, eq. 5).

    Uniform noise of at most `radius` standard deviations is added to every scaled feature, and
    the same group explained, by a method that is no SHAP.
    """
    answer = Answer(model)
    x = tuple(answer.inputs(mdata))
    explain = gradients.explainer(method, answer, mdata, background, BUDGETS.get(method))
    with torch.no_grad():
        (own,) = gradients.own_group(answer(*x))

    @torch.enable_grad()
    def attributions(x, additional_forward_args):
        present = torch.ones(
            len(x[0]), len(model.modalities_), dtype=torch.bool, device=x[0].device
        )
        shares = explain([v.clone() for v in x], present, lambda _: [*additional_forward_args])
        return tuple(part.detach().sum(0)[:, 0] for part in shares)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sensitivity_max(
            attributions, x, perturb_radius=radius, n_perturb_samples=n_draws,
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
    a, b = (rankdata(e.flat.reshape(-1, e.flat.shape[-1]), axis=1) for e in (first, second))
    a, b = (v - v.mean(1, keepdims=True) for v in (a, b))
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return (a * b).sum(1) / np.maximum(scale, 1e-12)


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
