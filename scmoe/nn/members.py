"""Layers of K members at once: each has its own weights, and one product computes all.

Parameters lead with the axis of the members, and a member's gradient is that of its own loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """``(K, ..., n_in)`` to ``(K, ..., n_out)``.

    Parameters
    ----------
    members, n_in, n_out
        K and widths.
    bias
        False leaves it out.
    zero
        Start with weights and biases of 0 instead of PyTorch's own uniform draw.
    """

    def __init__(self, members: int, n_in: int, n_out: int, bias: bool = True, zero: bool = False):
        super().__init__()
        bound = 0.0 if zero else n_in**-0.5
        self.weight = nn.Parameter(torch.empty(members, n_out, n_in).uniform_(-bound, bound))
        self.bias = (
            nn.Parameter(torch.empty(members, n_out).uniform_(-bound, bound)) if bias else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Each member's map of its own rows."""
        if len(self.weight) == 1:  # a plain product, without the batched one's detours
            return F.linear(x, self.weight[0], None if self.bias is None else self.bias[0])
        flat, weight = x.flatten(1, -2), self.weight.transpose(1, 2)
        if self.bias is None:
            out = torch.bmm(flat, weight)
        else:
            out = torch.baddbmm(self.bias[:, None], flat, weight)
        return out.view(*x.shape[:-1], -1)


class LayerNorm(nn.Module):
    """Layer norm over the last axis of ``(K, ..., d)``."""

    def __init__(self, members: int, d: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, d))
        self.bias = nn.Parameter(torch.zeros(members, d))

    def forward(self, x: Tensor) -> Tensor:
        """Each member's own scale and shift."""
        if len(self.weight) == 1:
            return F.layer_norm(x, x.shape[-1:], self.weight[0], self.bias[0])
        shape = len(self.weight), *[1] * (x.ndim - 2), -1
        return torch.addcmul(
            self.bias.view(shape), F.layer_norm(x, x.shape[-1:]), self.weight.view(shape)
        )
