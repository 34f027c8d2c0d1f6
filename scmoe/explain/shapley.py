"""The SHAP package's explainers, asked the same question as our own methods."""

from __future__ import annotations

import numpy as np
import shap
import torch
from tqdm import tqdm


def explain(answer, mdata, method, background, own, budget, seed) -> list[np.ndarray]:
    """Attributions by one of SHAP's explainers: per source `(n_cells, n_outputs, F)`.

    Gradient: expected gradients (Erion et al. 2021). Permutation and Kernel ask the model alone.
    SHAP Deep is not among them: it has no rules for layer norm, attention and experts.
    """
    x = answer.inputs(mdata)
    told = tqdm(range(len(x[0])), "explaining", unit="cell", leave=False, disable=None)
    cells = ([values[i : i + 1] for values in x] for i in told)  # in a terminal, with a bar
    if method != "shap_gradient":
        return _by_questions(answer, cells, method, answer.means(background), own, budget, seed)
    if background is None:
        raise ValueError(f"{method} draws from background cells: pass background=split.train")
    reference = answer.inputs(background)
    explainer = shap.GradientExplainer(answer, reference, batch_size=max(budget, 50))
    options = {"nsamples": budget, "rseed": seed, "ranked_outputs": 1 if own else None}
    parts = []
    for cell in cells:
        values = explainer.shap_values(cell, **options)
        values = values[0] if own else values
        values = values if isinstance(values, list) else [values]
        # (1, F, K), or (1, F) for a single answer
        values = [np.asarray(v, np.float32).reshape(1, n, -1)
                  for v, n in zip(values, answer.widths, strict=True)]  # fmt: skip
        parts.append([v.transpose(0, 2, 1) for v in values])
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _by_questions(answer, cells, method, means, own, budget, seed) -> list[np.ndarray]:
    """Cell by cell, of all features side by side; absent features are average ones.

    A single average cell is the background: the cheapest that these explainers take.
    """
    mean = torch.cat(means).cpu().numpy().astype(np.float64)[None]
    rows, state = [], np.random.get_state()  # noqa: NPY002 -- these explainers draw from it
    np.random.seed(seed)  # noqa: NPY002
    try:
        for x in cells:
            with torch.no_grad():
                column = int(answer(*x).argmax()) if own else None
            ask, row = _as_function(answer, column), torch.cat(x, 1).cpu().numpy().astype(float)
            if method == "shap_permutation":
                masker = shap.maskers.Independent(mean, max_samples=1)
                explainer = shap.PermutationExplainer(ask, masker, seed=seed)
                calls = budget * (2 * row.shape[1] + 1)
                values = explainer(row, max_evals=calls, batch_size=512, silent=True).values[0]
            else:
                n = "auto" if budget is None else budget
                explainer = shap.KernelExplainer(ask, mean, silent=True)
                values = explainer.shap_values(row[0], nsamples=n, l1_reg=False, silent=True)
            rows.append(np.asarray(values).reshape(row.shape[1], -1).T)  # of (F,) or (F, K)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    ends = np.cumsum(answer.widths)[:-1]
    return [part.astype(np.float32) for part in np.split(np.stack(rows), ends, axis=2)]


def _as_function(answer, column: int | None):
    """A function of arrays `(B, F)`: all answers, or one of them."""

    @torch.no_grad()
    def ask(rows: np.ndarray) -> np.ndarray:
        values = torch.as_tensor(rows, dtype=torch.float32, device=answer.device)
        out = torch.cat([answer(*part.split(answer.widths, 1)) for part in values.split(4096)])
        return (out if column is None else out[:, column]).double().cpu().numpy()

    return ask
