"""Whether an explanation is true of the model, and of what it costs to be sure.

All scores are of one cell's answer at a time (its own predicted group's centred logit, unless the
explanation is of something else) and are averaged over cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from mudata import MuData
from scipy.stats import rankdata

from scmoe.explain.answer import BATCH, Answer
from scmoe.explain.attribution import PRIMARY, Explanation, attribute, explain_answer

FRACTIONS = (0, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)


# --- deletion and insertion ---


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
    n_draws
        Replacements per cell.
    n_random
        Random orders per cell, for comparison.

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
    orders = {name: _ranks(-e.flat[:, 0]) for name, e in explanations.items()}
    random = [rng.permuted(_ranks(x.cpu().numpy()), axis=1) for _ in range(n_random)]

    def curves_of(ranks):
        n = len(ranks)
        return _curves(answer, x[:n], draws[:, :n], own[:n], ranks)

    curves = {name: curves_of(ranks) for name, ranks in orders.items()}
    curves["random"] = np.mean([curves_of(ranks) for ranks in random], axis=0)
    return _on_one_scale(curves, mdata.obs_names)


def _on_one_scale(curves, cells) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Curves `(2, n_cells, n_fractions)` by method to the tables of `deletion_insertion`."""
    full = curves["random"][0, :, 0].mean()
    empty = curves["random"][0, :, -1].mean()
    scaled = {name: (c - empty) / max(full - empty, 1e-12) for name, c in curves.items()}
    area = {name: np.trapezoid(c, FRACTIONS, axis=2) for name, c in scaled.items()}
    shown, scores = [], []
    for name, c in scaled.items():
        for what, values in zip(("deletion", "insertion"), c.mean(1), strict=True):
            part = {"method": name, "what": what, "fraction": FRACTIONS, "answer": values}
            shown.append(pd.DataFrame(part))
        n = len(c[0])
        deletion = area["random"][0, :n] - area[name][0]
        insertion = area[name][1] - area["random"][1, :n]
        part = {"cell": cells[:n], "method": name, "deletion": deletion, "insertion": insertion}
        scores.append(pd.DataFrame(part))
    return pd.concat(shown, ignore_index=True), pd.concat(scores, ignore_index=True)


def _curves(answer, x, draws, own, ranks) -> np.ndarray:
    """Answers `(2, n_cells, n_fractions)`: features replaced, and all others replaced."""
    rank = torch.as_tensor(ranks, device=x.device)
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
    widths = answer.widths
    return torch.cat([answer(*part.split(widths, 1)) for part in rows.split(1024)])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Place of each feature in ascending order of `values`, row by row."""
    return values.argsort(1, kind="stable").argsort(1, kind="stable")


def bootstrap(values: np.ndarray, n: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of values of cells and its 95 % interval (percentiles over resampled cells)."""
    values = np.asarray(values, float)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(n, len(values)))].mean(1)
    return (float(values.mean()), *map(float, np.percentile(means, [2.5, 97.5])))


# --- infidelity, sensitivity, additivity ---


def infidelity(
    model,
    mdata: MuData,
    explanation: Explanation,
    background: MuData | None = None,
    n_draws: int = 20,
    seed: int = 0,
) -> np.ndarray:
    """Infidelity of each cell's explanation (Yeh et al. 2019, eq. 1), as a share.

    Random sets of features, of random sizes, are replaced by their means; the change of the answer
    is held against the sum of their attributions. Mean square of the difference over mean square
    of the change: 0 is perfect, 1 is no better than predicting no change.
    """
    rng = np.random.default_rng(seed)
    answer = Answer(model)
    x = torch.cat(answer.inputs(mdata), 1)
    mean = torch.cat(answer.means(background))
    values = torch.as_tensor(explanation.flat[:, 0], device=x.device)
    before = _answers(answer, x)
    own = before.argmax(1, keepdim=True)
    error, size = np.zeros(len(x)), np.zeros(len(x))
    for _ in range(n_draws):
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
    seed: int = 0,
    **options,
) -> np.ndarray:
    """Largest relative change of a cell's explanation under small noise (Yeh et al. 2019, eq. 5).

    Uniform noise of at most `radius` standard deviations is added to every scaled feature, and
    the same group explained. `options` go to `attribute`.
    """
    groups = model.predict(mdata)["group"].to_numpy()
    names = sorted(set(groups))
    column = np.array([names.index(group) for group in groups])

    def explain(noise):
        why = explain_answer(_Noisy(model, names, mdata, noise), mdata, method, **options)
        return why.flat[np.arange(len(column)), column]

    plain = explain(0.0)
    largest = np.zeros(len(plain))
    torch.manual_seed(seed)
    for _ in range(n_draws):
        change = np.linalg.norm(explain(radius) - plain, axis=1)
        largest = np.maximum(largest, change)
    return largest / np.maximum(np.linalg.norm(plain, axis=1), 1e-12)


class _Noisy(Answer):
    """Answers about some cells with uniform noise in their features, others as they are."""

    def __init__(self, model, outputs, cells, radius):
        super().__init__(model, outputs=outputs)
        self.cells, self.radius = cells, radius

    def batches(self, mdata, size=BATCH):
        for x, present in super().batches(mdata, size):
            if mdata is self.cells:
                x = [v + self.radius * (2 * torch.rand_like(v) - 1) for v in x]
            yield x, present


def additivity_error(
    model, mdata: MuData, explanation: Explanation, background: MuData | None = None
) -> np.ndarray:
    """Gap between a cell's attributions' sum and the answer they should add up to, as a share.

    They should sum to the answer less the baseline's: the mean answer of `background`, or the
    answer about the training mean. Relative to the mean size of that difference over cells.
    """
    answer = Answer(model)
    x = torch.cat(answer.inputs(mdata), 1)
    if background is None:
        base = _answers(answer, torch.cat(answer.means())[None])
    else:
        base = _answers(answer, torch.cat(answer.inputs(background), 1)).mean(0, keepdim=True)
    out = _answers(answer, x)
    wanted = (out - base).gather(1, out.argmax(1, keepdim=True))[:, 0].cpu().numpy()
    gap = explanation.flat[:, 0].sum(1) - wanted
    return gap / max(np.abs(wanted).mean(), 1e-12)


# --- agreement, stability, budgets ---


def common(first: Explanation, second: Explanation) -> tuple[Explanation, Explanation]:
    """Two explanations cut to the cells that they share, the first ones of the longer."""
    n = min(len(first.cells), len(second.cells))

    def cut(e):
        return replace(e, values={m: v[:n] for m, v in e.values.items()}, cells=e.cells[:n])

    return cut(first), cut(second)


def spearman(first: Explanation, second: Explanation) -> np.ndarray:
    """Rank correlation of two explanations of the same cells and answers, one value per cell."""
    a, b = (rankdata(e.flat.reshape(-1, e.flat.shape[-1]), axis=1) for e in (first, second))
    a, b = (v - v.mean(1, keepdims=True) for v in (a, b))
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return (a * b).sum(1) / np.maximum(scale, 1e-12)


def top_overlap(first: Explanation, second: Explanation, k: int = 20) -> np.ndarray:
    """Share of the `k` features with the largest |attribution| that two explanations share."""
    a, b = (_ranks(-np.abs(e.flat.reshape(-1, e.flat.shape[-1]))) < k for e in (first, second))
    return (a & b).sum(1) / k


def agreement(explanations: Mapping[str, Explanation], score=spearman) -> pd.DataFrame:
    """Method × method: mean of `score` (`spearman`, `top_overlap`) over the cells both explain."""
    names = list(explanations)
    table = pd.DataFrame(np.eye(len(names)), names, names)
    for i, a in enumerate(names):
        for b in names[:i]:
            value = float(score(*common(explanations[a], explanations[b])).mean())
            table.loc[a, b] = table.loc[b, a] = value
    return table


def stability(explanations: Sequence[Explanation], score=spearman) -> float:
    """Mean `score` over all pairs of explanations of the same cells by different models.

    A pair is compared on the features that both models use and the cells that both put into the
    same group: what is explained is then the same.
    """
    pairs = [_alike(a, b) for i, a in enumerate(explanations) for b in explanations[:i]]
    if not pairs:
        raise ValueError("stability needs the explanations of at least two models")
    scores = [score(a, b).mean() for a, b in pairs if len(a.cells)]
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


def budget(
    model, mdata: MuData, method: str, budgets: Iterable[int], threshold: float = 0.9, **options
) -> tuple[pd.DataFrame, Explanation]:
    """Find what a sampling method needs to agree with itself.

    At each budget, two runs with half of it and different seeds are compared; the search stops at
    the first that reaches `threshold`.

    Returns
    -------
    One row per budget tried: `budget`, `split_half` (mean Spearman over cells), `seconds` per 1000
    cells at the whole budget and `peak_mb`; and the mean of the last two runs, an explanation at
    the whole budget.
    """
    rows = []
    for size in budgets:
        first, second = (
            attribute(model, mdata, method, budget=size // 2, seed=seed, **options)
            for seed in (1, 2)
        )
        whole = replace(
            first,
            values={m: (v + second.values[m]) / 2 for m, v in first.values.items()},
            budget=size,
            seconds=first.seconds + second.seconds,
            peak_mb=max(first.peak_mb, second.peak_mb),
        )
        row = {"budget": size, "split_half": float(spearman(first, second).mean())}
        row |= {"seconds": 1000 * whole.seconds / mdata.n_obs, "peak_mb": whole.peak_mb}
        rows.append(row)
        if row["split_half"] >= threshold:
            break
    return pd.DataFrame(rows), whole
