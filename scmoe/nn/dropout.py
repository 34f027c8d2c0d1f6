"""Dropout that costs a CPU little: draw the entries to drop, not a number for every entry.

The gaps between dropped entries of independent Bernoulli draws are geometric, so drawing the gaps
gives exactly their distribution from a tenth of the random numbers (at the usual rate of 0.1).
Other devices use their own kernels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1 << 13  # entries; below, a draw for each costs less than the launches here
BLOCK_BYTES = 1 << 22  # attention weights are made so many bytes at a time: they stay in the cache


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """``F.dropout``: entries are 0 with probability ``p``, the others grow by ``1 / (1 - p)``."""
    if not training or p == 0:
        return x
    if x.device.type != "cpu" or x.numel() < SMALLEST or p > 0.5:
        return F.dropout(x, p)
    return _Dropout.apply(x, p)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, p: float = 0.0
) -> Tensor:
    """Scaled dot-product attention of ``(B, H, T, d/H)`` with dropout ``p`` of its weights.

    ``mask`` ``(B, 1, T, T)`` is True where a query may look; ``None``: everywhere.
    """
    if p == 0 or p > 0.5 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
    return _Attention.apply(q, k, v, mask, p)


def dropped(n: int, p: float) -> Tensor:
    """Increasing positions, each of ``0 ... n - 1`` there with probability ``p``, independently."""
    expected = n * p + 6 * math.sqrt(n * p * (1 - p)) + 16
    found = torch.empty(0, dtype=torch.long)
    while not len(found) or found[-1] < n:  # more than one turn is a six-sigma event
        gaps = torch.rand(int(expected)).neg_().log1p_().mul_(1 / math.log1p(-p)).long()
        start = found[-1] if len(found) else -1
        found = torch.cat([found, gaps.add_(1).cumsum(0).add_(start)])
    return found[: int(torch.searchsorted(found, n))]


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p):
        ctx.p, ctx.gone = p, dropped(x.numel(), p)
        return _without(x, ctx)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return _without(grad, ctx), None


def _without(x, ctx):
    out = x.contiguous() * (1 / (1 - ctx.p))
    out.view(-1).index_fill_(0, ctx.gone, 0.0)
    return out


class _Attention(torch.autograd.Function):
    """Attention with dropout, some cells at a time, so that the weights stay in the cache."""

    @staticmethod
    def forward(ctx, q, k, v, mask, p):
        b, h, t, _ = q.shape
        size = max(1, BLOCK_BYTES // (h * t * t * q.element_size()))
        ctx.p, ctx.scale, ctx.blocks, out = p, q.shape[-1] ** -0.5, [], []
        for start in range(0, b, size):
            rows = slice(start, start + size)
            scores = (_flat(q[rows]) * ctx.scale) @ _flat(k[rows]).transpose(1, 2)
            if mask is not None:
                scores.view(-1, h, t, t).masked_fill_(~mask[rows], -math.inf)
            weights = scores.softmax(-1)
            kept = weights.clone()
            kept.view(-1).index_fill_(0, dropped(weights.numel(), p), 0.0)
            out.append(kept @ _flat(v[rows]))
            ctx.blocks.append((rows, weights, kept))
        out = torch.cat(out).mul_(1 / (1 - p)).view_as(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        q, k, v, out = ctx.saved_tensors
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
        for rows, weights, kept in ctx.blocks:
            g = _flat(grad[rows]) * (1 / (1 - ctx.p))
            mean = (grad[rows] * out[rows]).sum(-1).view(*g.shape[:2], 1)  # softmax's own term
            to_scores = g @ _flat(v[rows]).transpose(1, 2)
            to_scores.mul_(kept).addcmul_(weights, mean, value=-1)
            to_q = to_scores @ (_flat(k[rows]) * ctx.scale)
            to_k = to_scores.transpose(1, 2) @ (_flat(q[rows]) * ctx.scale)
            for whole, part in zip(grads, (to_q, to_k, kept.transpose(1, 2) @ g), strict=True):
                whole[rows] = part.view_as(whole[rows])
        return *grads, None, None


def _flat(x: Tensor) -> Tensor:
    """``(B, H, T, c)`` as a contiguous ``(B*H, T, c)``."""
    return x.reshape(-1, *x.shape[2:])
