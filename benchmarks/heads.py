"""The recorded search for closed-form heads that are not linear: was anything left out?

Group heads that read a Gaussian kernel beside those that read components, and a Bernoulli loss in
place of squared error where peaks are translated from RNA. Nested sets (see search.py and
groups.py), the closed-form path alone: no published test cell is read.

``python -m benchmarks.heads`` adds to results/heads.json what is missing (15 minutes).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from benchmarks.groups import splits
from benchmarks.search import nested, pooled, sets
from scmoe.data import Split, Transform
from scmoe.metrics import classification_metrics
from scmoe.nn import heads, linear
from scmoe.nn.translation import fit_kernel
from scmoe.report_tried import BERNOULLI, KERNEL

RESULTS = Path(__file__).parent / "results" / "heads.json"
PENALTIES = (1, 3, 10, 30, 100)  # of peaks' regressions, times the mean variance of an input
N_FOLDS, N_COMPONENTS = 5, max(heads.N_COMPONENTS)


def dense(x) -> np.ndarray:
    """A matrix as float64."""
    return (x.toarray() if hasattr(x, "toarray") else np.asarray(x)).astype(float)


def scaled(split: Split) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give each modality's values of training and validation cells, and of test cells."""
    transform, pool = Transform().fit(split.train), pooled(split)
    parts = transform.transform(pool), transform.transform(split.test)
    for name in split.modalities:
        yield dense(parts[0][name].X), dense(parts[1][name].X)


def kernel_heads(split: Split) -> list[dict]:
    """Score groups told by linear heads alone, and with heads on kernels of every modality."""
    groups = pd.Index([str(g) for g in split.groups])
    truth = split.test.obs[split.label_key].astype(str)
    labels = groups.get_indexer(pooled(split).obs[split.label_key].astype(str))
    fold = linear._folds(labels, len(labels), N_FOLDS, 0)
    present = np.ones((len(labels), len(split.modalities)), bool)
    plain, kernels = [], []
    for x, new in scaled(split):
        basis = linear._components(x, present[:, 0], 0)
        plain.append(_unit(linear._project(x, *basis), linear._project(new, *basis)))
        kernel = fit_kernel(x, present[:, 0], 0)
        pca = PCA(min(N_COMPONENTS, len(x) - 1), random_state=0).fit(kernel(x) @ kernel.root)
        both = (pca.transform(kernel(z) @ kernel.root) for z in (x, new))
        kernels.append(_unit(*both))

    def fitted(blocks):
        found = heads.fit_heads([z for z, _ in blocks], present, labels, len(groups), fold, 0)
        return [(head, [new for _, new in blocks]) for head in found]

    (*lines, rarity), (*curves, _) = fitted(plain), fitted(kernels)
    rare = linear.RARE_SHIFT * -np.log(np.bincount(labels, minlength=len(groups)).clip(1))
    rows = []
    for used, chosen in ((False, [*lines, rarity]), (True, [*lines, *curves, rarity])):
        logs = np.stack([head.logs for head, _ in chosen])
        start = np.full(len(chosen), 1 / (len(chosen) - 1))
        start[-1] = heads.RARITY
        weights = heads.fusion_weights(logs, labels, start)
        told = np.tensordot(weights, [log_softmax(_logits(*pair), 1) for pair in chosen], 1)
        p = softmax(told + rare, 1)
        scores = classification_metrics(truth, groups[p.argmax(1)], p)
        names = ("accuracy", "balanced_accuracy", "macro_f1", "ari", "ece")
        rows.append(dict(used=used) | {name: float(scores[name]) for name in names})
    return rows


def _unit(z, new) -> tuple[np.ndarray, np.ndarray]:
    spread = linear._spread(z)
    return z[:, :N_COMPONENTS] / spread, new[:, :N_COMPONENTS] / spread


def _logits(head, blocks) -> np.ndarray:
    parts = (blocks[i][:, : len(w)] @ w for i, w in head.weights.items())
    return sum(parts, np.tile(head.bias, (len(blocks[0]), 1)))


def peaks(split: Split) -> list[dict]:
    """Score peaks translated from RNA by ridge, and by logistic regression of every peak."""
    transform, pool = Transform().fit(split.train), pooled(split)
    kept = transform.features["atac"]
    y, truth = (dense(cells["atac"][:, kept].X > 0) for cells in (pool, split.test))
    x, new = list(scaled(split))[split.modalities.index("rna")]
    pca = PCA(50, random_state=0).fit(x)
    z, new = pca.transform(x), pca.transform(new)
    fold = np.random.default_rng(0).permutation(len(z)) % N_FOLDS
    told = (truth.sum(0) > 0) & (truth.sum(0) < len(truth))
    rows = []
    for used, fit in ((False, _ridge), (True, _bernoulli)):
        errors = [
            sum(
                np.square(fit(z[fold != k], y[fold != k], c)(z[fold == k]) - y[fold == k]).sum()
                for k in range(N_FOLDS)
            )
            for c in PENALTIES
        ]
        p = fit(z, y, PENALTIES[int(np.argmin(errors))])(new)
        r2 = 1 - np.square(p - truth).sum() / np.square(truth - truth.mean(0)).sum()
        auroc = np.mean([roc_auc_score(truth[:, j], p[:, j]) for j in np.flatnonzero(told)])
        rows.append(dict(used=used, r2=float(r2), auroc=float(auroc)))
    return rows


def _ridge(z, y, penalty):
    mean, gram = y.mean(0), z.T @ z / len(z)
    gram += penalty * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights = np.linalg.solve(gram, z.T @ (y - mean) / len(z))
    return lambda new: mean + new @ weights


def _bernoulli(z, y, penalty):
    share = (y.sum(0) + 0.5) / (len(y) + 1)
    penalty = penalty * np.square(z).mean() * np.mean(share * (1 - share))  # as ridge's, near 0
    z, y = torch.as_tensor(z), torch.as_tensor(y)
    weights = torch.zeros(z.shape[1], y.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.as_tensor(logit(share)).requires_grad_()
    solver = torch.optim.LBFGS([weights, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        logits = z @ weights + bias
        wrong = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")
        value = wrong / len(z) + penalty * weights.square().sum() / 2
        value.backward()
        return value

    solver.step(loss)
    weights, bias = weights.detach().numpy(), bias.detach().numpy()
    return lambda new: expit(new @ weights + bias)


def main() -> None:
    """Measure what results/heads.json lacks."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    done = {(row["tried"], row["set"]) for row in rows}
    todo = [(KERNEL, kernel_heads, *which) for which in splits() if "inner 1" not in which[1]]
    for name in ("atacseq s1d1", "atacseq s1d2"):
        for k in range(4):
            get = lambda name=name, k=k: nested(sets()[name](), k)  # noqa: E731
            todo.append((BERNOULLI, peaks, "atacseq", f"{name}, inner {k}", get))
    for tried, measure, kind, name, get in todo:
        if (tried, name) not in done:
            rows += [dict(tried=tried, kind=kind, set=name) | row for row in measure(get())]
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            print(tried, name, flush=True)


if __name__ == "__main__":
    main()
