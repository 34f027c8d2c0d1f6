"""The SHAP package's explainers, asked the same question as our own methods."""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import shap
import torch
from torch import Tensor
from tqdm import tqdm


def gradient(answer, mdata, background, own, budget, seed, progress) -> list[np.ndarray]:
    """Expected gradients (Erion et al. 2021): per source `(n_cells, n_outputs, F)`."""
    reference = answer.inputs(_needed(background, "SHAP Gradient"))
    explainer = shap.GradientExplainer(answer, reference, batch_size=max(budget, 50))
    options = {"nsamples": budget, "rseed": seed}
    if own:
        options["ranked_outputs"] = 1
    parts = []
    for x in _one_by_one(answer.inputs(mdata), progress):
        values = explainer.shap_values(x, **options)
        values = values[0] if own else values
        parts.append([_outputs_second(v) for v in _per_source(values)])
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def deep(answer, mdata, background, own, budget, seed, progress) -> list[np.ndarray]:
    """DeepLIFT rules as SHAP Deep has them; it knows none for layer norm, attention and experts.

    Its sums need not come out right here: see `scmoe.explain.faithfulness.additivity_error`.
    """
    reference = answer.inputs(_needed(background, "SHAP Deep"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "unrecognized nn.Module", once a kind
        explainer = shap.DeepExplainer(_Single(answer, None), reference)
        options = {"check_additivity": False}
        if own:
            options["ranked_outputs"] = 1
        parts = []
        for x in _one_by_one(answer.inputs(mdata), progress):
            with contextlib.redirect_stdout(io.StringIO()):
                values = explainer.shap_values(x, **options)
            values = values[0] if own else values
            parts.append([_outputs_second(v) for v in _per_source(values)])
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def permutation(answer, mdata, background, own, budget, seed, progress) -> list[np.ndarray]:
    """Shapley values by permutations, forwards and backwards; absent features are average ones."""

    def explain(predict, mean, row):
        masker = shap.maskers.Independent(mean[None], max_samples=1)
        explainer = shap.PermutationExplainer(predict, masker, seed=seed)
        calls = budget * (2 * len(row) + 1)
        return explainer(row[None], max_evals=calls, batch_size=512, silent=True).values[0]

    return _model_free(answer, mdata, background, own, seed, progress, explain)


def kernel(answer, mdata, background, own, budget, seed, progress) -> list[np.ndarray]:
    """Shapley values by weighted regression on coalitions; absent features are average ones."""

    def explain(predict, mean, row):
        n_samples = "auto" if budget is None else budget
        explainer = shap.KernelExplainer(predict, mean[None], silent=True)
        return explainer.shap_values(row, nsamples=n_samples, l1_reg=False, silent=True)

    return _model_free(answer, mdata, background, own, seed, progress, explain)


EXPLAINERS = {
    "shap_gradient": gradient,
    "shap_deep": deep,
    "shap_permutation": permutation,
    "shap_kernel": kernel,
}


def _model_free(answer, mdata, background, own, seed, progress, explain) -> list[np.ndarray]:
    """Explain cell by cell with a function of all features side by side.

    A single average cell is the background: the cheapest that these explainers take.
    """
    mean = torch.cat(answer.means(background)).cpu().numpy().astype(np.float64)
    widths = answer.widths
    rows = []
    state = np.random.get_state()  # noqa: NPY002 -- these explainers draw from it
    np.random.seed(seed)  # noqa: NPY002
    try:
        for x in _one_by_one(answer.inputs(mdata), progress):
            with torch.no_grad():
                column = int(answer(*x).argmax()) if own else None
            predict = _as_function(answer, column, widths)
            row = torch.cat(x, 1)[0].cpu().numpy().astype(np.float64)
            values = np.asarray(explain(predict, mean, row))  # (F,) or (F, K)
            rows.append(values.reshape(len(row), -1).T)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    ends = np.cumsum(widths)[:-1]
    return [part.astype(np.float32) for part in np.split(np.stack(rows), ends, axis=2)]


def _as_function(answer, column: int | None, widths: list[int]):
    """A function of arrays `(B, F)`: all answers, or one of them."""
    device = answer.device

    @torch.no_grad()
    def predict(rows: np.ndarray) -> np.ndarray:
        values = torch.as_tensor(rows, dtype=torch.float32, device=device)
        out = torch.cat([answer(*part.split(widths, 1)) for part in values.split(4096)])
        return (out if column is None else out[:, column]).double().cpu().numpy()

    return predict


class _Single(torch.nn.Module):
    """All answers as they are; hides the answer's own attributes from SHAP's module search."""

    def __init__(self, answer, _):
        super().__init__()
        self.answer = answer

    def forward(self, *x: Tensor) -> Tensor:
        return self.answer(*x)


def _one_by_one(x: list[Tensor], progress: bool):
    cells = range(len(x[0]))
    for i in tqdm(cells, desc="explaining", unit="cell", disable=not progress, leave=False):
        yield [values[i : i + 1] for values in x]


def _per_source(values):
    return values if isinstance(values, list) else [values]


def _outputs_second(values: np.ndarray) -> np.ndarray:
    """`(n_cells, F, K)`, or `(n_cells, F)` for a single answer, to `(n_cells, K, F)`."""
    values = np.asarray(values, np.float32)
    return values[:, None] if values.ndim == 2 else values.transpose(0, 2, 1)


def _needed(background, method):
    if background is None:
        raise ValueError(f"{method} draws from background cells: pass background=split.train")
    return background
