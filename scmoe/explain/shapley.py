"""The SHAP package's explainers, asked the same question as our own methods."""

from __future__ import annotations

import numpy as np
import shap
import torch
from tqdm import tqdm

METHODS = {
    "shap_gradient": "SHAP Gradient",
    "shap_permutation": "SHAP Permutation",
    "shap_kernel": "SHAP Kernel",
}


def explain(answer, mdata, method, background, own, budget, seed) -> np.ndarray:
    """Attributions by one of SHAP's explainers: `(n_cells, n_outputs, F)`.

    Gradient: expected gradients (Erion et al. 2021). Permutation and Kernel ask the model alone;
    their background is a single average cell, the cheapest that they take. SHAP Deep is not among
    them: it has no rules for layer norm, attention and experts.
    """
    x = answer.inputs(mdata)
    if method != "shap_gradient":
        mean = answer.mean(background).cpu().numpy().astype(np.float64)[None]
    elif background is None:
        raise ValueError(f"{method} draws from background cells: pass background=split.train")
    else:
        reference, size = answer.inputs(background), max(budget, 50)
        sampler = shap.GradientExplainer(answer, reference, batch_size=size)

    @torch.no_grad()
    def ask(rows) -> np.ndarray:
        rows = torch.as_tensor(rows, dtype=torch.float32, device=answer.device)
        return torch.cat([answer(part) for part in rows.split(4096)]).double().cpu().numpy()

    def values_of(row):
        """`(F,)`, or one column for each answer."""
        if method == "shap_gradient":
            ranked = 1 if own else None
            found = sampler.shap_values(row, nsamples=budget, rseed=seed, ranked_outputs=ranked)
            return found[0] if own else found
        row = row.cpu().numpy().astype(float)
        column = int(ask(row).argmax()) if own else slice(None)

        def answers(rows):
            return ask(rows)[:, column]

        if method == "shap_permutation":
            masker, calls = shap.maskers.Independent(mean, max_samples=1), budget * 2 * row.shape[1]
            explainer = shap.PermutationExplainer(answers, masker, seed=seed)
            return explainer(row, max_evals=calls + budget, batch_size=512, silent=True).values
        explainer = shap.KernelExplainer(answers, mean, silent=True)
        return explainer.shap_values(row, nsamples=budget or "auto", l1_reg=False, silent=True)

    rows, state = [], np.random.get_state()  # noqa: NPY002 -- these explainers draw from it
    np.random.seed(seed)  # noqa: NPY002
    try:  # in a terminal, with a bar
        for row in tqdm(x.split(1), "explaining", unit="cell", leave=False, disable=None):
            rows.append(np.reshape(values_of(row), (x.shape[1], -1)).T)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return np.stack(rows).astype(np.float32)
