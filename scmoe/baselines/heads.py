"""Two kinds of linear classifiers, for all settings at once, and the loss they are chosen by."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

N_COMPONENTS = (25, 50, 100, 200)
BLOCK_WEIGHTS = (0.1, 0.2, 0.4, 0.7, 1.0)  # of a modality beside the best one
INVERSE_PENALTIES = (1.0, 10.0, 100.0, 1000.0)  # scikit-learn's C, for cells of mean length 1
SHRINKAGES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
TEMPERATURES = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4)  # inverse: they multiply logits
TUNING_CELLS = 5000  # choices are made on as many, drawn at random from larger data
FLOOR = 1e-4  # of a probability, where choices are made: one cell's part in them is bounded


def logistic(Z, labels, n_groups):
    """Weights `(p, n_groups)` and biases of multinomial regression, by inverse penalty."""
    seen = np.unique(labels)
    model = LogisticRegression(solver="newton-cg", warm_start=True, max_iter=200, tol=1e-3)
    for C in INVERSE_PENALTIES:
        model.set_params(C=C).fit(Z, labels)
        weights, bias = model.coef_.T, model.intercept_
        if len(seen) == 2:  # scikit-learn gives the second group's logit only
            weights, bias = np.c_[0 * weights, weights], np.r_[0, bias]
        yield C, *_all_groups(weights, bias, seen, n_groups)


def discriminant(Z, labels, n_groups):
    """The same of linear discriminants, by shrinkage of their covariance to a multiple of I."""
    seen, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.stack([Z[labels == k].mean(0) for k in range(len(seen))])
    within = Z - means[labels]
    within = within.T @ within / max(len(Z) - len(seen), 1)
    identity = np.eye(len(within)) * max(np.trace(within) / len(within), 1e-12)
    for shrinkage in SHRINKAGES:
        weights = np.linalg.solve((1 - shrinkage) * within + shrinkage * identity, means.T)
        bias = np.log(counts / counts.sum()) - 0.5 * (means.T * weights).sum(0)
        yield shrinkage, *_all_groups(weights, bias, seen, n_groups)


def _all_groups(weights, bias, seen, n_groups):
    """Add the groups that these cells lack, with next to no probability."""
    all_weights, all_bias = np.zeros((len(weights), n_groups)), np.full(n_groups, bias.min() - 20)
    all_weights[:, seen], all_bias[seen] = weights, bias
    return all_weights, all_bias


KINDS = {"logistic": logistic, "discriminant": discriminant}


def floored(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, none below the floor."""
    return np.log(softmax(logits, 1) + FLOOR)


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over cells, with floored probabilities."""
    return -float(floored(logits)[np.arange(len(labels)), labels].mean())
