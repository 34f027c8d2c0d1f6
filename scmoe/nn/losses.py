"""Losses, one function each; every one is a mean over cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA = 0.15  # squared width of the kernel, in median squared distances


def ddc(logits: Tensor, hidden: Tensor) -> Tensor:
    """Deep divergence clustering, first and third terms (Kampffmeyer 2019; Trosten 2021).

    Cauchy-Schwarz divergence between groups of the soft assignments (of ``logits`` ``(B, C)``), and
    of their closeness to the corners of the simplex, under a gaussian kernel on the hidden
    representation ``(B, d)``.
    """
    assign, norm = logits.softmax(1), hidden.square().sum(1)
    squared = (norm[:, None] + norm - 2 * hidden @ hidden.T).clamp(min=0)  # no (B, B, d) on the way
    width = (SIGMA * squared.detach().median()).clamp(min=1e-9)
    kernel = torch.exp(-squared / (2 * width)).clamp(min=1e-9)
    # |a - e_c|^2 = |a|^2 + 1 - 2 a_c
    corners = assign.square().sum(1, keepdim=True) + 1 - 2 * assign
    return _divergence(assign, kernel) + _divergence(torch.exp(-corners), kernel)


def _divergence(a: Tensor, kernel: Tensor) -> Tensor:
    """Mean over pairs of groups of the normalised overlap ``a_i' K a_j``."""
    overlap = a.T @ kernel @ a  # (C, C)
    norm = overlap.diagonal().clamp(min=1e-9).sqrt()
    ratio = overlap / (norm[:, None] * norm[None]).clamp(min=1e-9)
    n = len(ratio)
    return ratio.triu(1).sum() * 2 / max(n * (n - 1), 1)


def cross_entropy(logits: Tensor, labels: Tensor, on_softmax: bool = False) -> Tensor:
    """Cross-entropy of ``(K, B, C)`` over cells with a label ``(K, B)`` (-1: none), ``(K,)``.

    ``on_softmax`` feeds softmax outputs where logits belong, as the reference does: with C groups
    it cannot fall below ``log(1 + (C - 1) / e)``.
    """
    scores = logits.softmax(-1) if on_softmax else logits
    known = labels >= 0
    loss = F.cross_entropy(scores.transpose(1, 2), labels.clamp(min=0), reduction="none")
    return (loss * known).sum(1) / known.sum(1).clamp(min=1)
