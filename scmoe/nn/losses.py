"""Losses, one function each; every one is a mean over cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ddc(logits: Tensor, hidden: Tensor, sigma: float = 0.15) -> Tensor:
    """Deep divergence clustering, first and third terms (Kampffmeyer 2019; Trosten 2021).

    Cauchy-Schwarz divergence between groups of the soft assignments, and of their closeness to the
    corners of the simplex, under a gaussian kernel on the hidden representation whose squared width
    is ``sigma`` x the (detached) median squared distance.

    Parameters
    ----------
    logits
        ``(B, C)``.
    hidden
        ``(B, d)``.
    """
    assign = logits.softmax(1)
    kernel = _gaussian_kernel(hidden, sigma)
    # |a - e_c|^2 = |a|^2 + 1 - 2 a_c
    corners = assign.square().sum(1, keepdim=True) + 1 - 2 * assign
    return _divergence(assign, kernel) + _divergence(torch.exp(-corners), kernel)


def _gaussian_kernel(x: Tensor, sigma: float) -> Tensor:
    norm = x.square().sum(1)
    squared = (norm[:, None] + norm - 2 * x @ x.T).clamp(min=0)  # (B, B); no (B, B, d) on the way
    width = (sigma * squared.detach().median()).clamp(min=1e-9)
    return torch.exp(-squared / (2 * width)).clamp(min=1e-9)


def _divergence(a: Tensor, kernel: Tensor) -> Tensor:
    """Mean over pairs of groups of the normalised overlap ``a_i' K a_j``."""
    overlap = a.T @ kernel @ a  # (C, C)
    norm = overlap.diagonal().clamp(min=1e-9).sqrt()
    ratio = overlap / (norm[:, None] * norm[None]).clamp(min=1e-9)
    n = len(ratio)
    return ratio.triu(1).sum() * 2 / max(n * (n - 1), 1)


def cross_entropy(logits: Tensor, labels: Tensor, on_softmax: bool = False) -> Tensor:
    """Cross-entropy over labelled cells (label -1: none), a mean for each member ``(K,)``.

    ``on_softmax`` feeds softmax outputs where logits belong, as the reference does: with C groups
    it cannot fall below ``log(1 + (C - 1) / e)``.

    Parameters
    ----------
    logits, labels
        ``(K, B, C)``, ``(K, B)``.
    """
    scores = logits.softmax(-1) if on_softmax else logits
    known = labels >= 0
    loss = F.cross_entropy(scores.transpose(1, 2), labels.clamp(min=0), reduction="none")
    return (loss * known).sum(1) / known.sum(1).clamp(min=1)
