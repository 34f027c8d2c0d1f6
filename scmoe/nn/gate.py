"""Noisy top-k routers."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 256  # tokens


class Routing(NamedTuple):
    """Where the tokens of K members go, ``k`` experts each."""

    experts: Tensor  # (K, B, M, P, k) index of expert
    weights: Tensor  # (K, B, M, P, k) gate, sums to 1 over k
    logits: Tensor  # (K, B, M, P, E) clean, of all experts
    balance: Tensor  # (K,) load-balance loss, summed over modalities

    @property
    def probs(self) -> Tensor:
        """Softmax of the clean logits over all experts, ``(K, B, M, P, E)``."""
        return self.logits.softmax(-1)


class Router(nn.Module):
    """Noisy top-k gating (Shazeer et al. 2017, eqs. 3-5), several routers in one call.

    Parameters
    ----------
    router_of
        Router of each modality, length M; two modalities with the same number share one.
    fan_in_experts
        Initialise as upstream FastMoE does, with the number of experts as the fan-in.
    members
        K, each with routers of its own.
    """

    def __init__(
        self, d: int, n_experts: int, top_k: int, router_of: list[int],
        fan_in_experts: bool = False, members: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.top_k = top_k
        self.register_buffer("router_of", torch.tensor(router_of), persistent=False)
        shape = members, max(router_of) + 1, d, n_experts
        bound = 1 / math.sqrt(n_experts if fan_in_experts else d)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.noise = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def forward(self, x: Tensor, present: Tensor) -> Routing:
        """Route tokens ``(K, B, M, P, d)``.

        Those of modalities that are not ``present`` ``(K, B, M)`` do not count in the balance loss.
        """
        x = x.float()  # which experts a token goes to should not hang on bf16's three digits
        with torch.autocast(x.device.type, enabled=False):
            clean, noisy, scale = self._logits(x)
            top, index = noisy.topk(min(self.top_k + 1, clean.shape[-1]), dim=-1)
            experts = index[..., : self.top_k]
            weights = top[..., : self.top_k].softmax(-1)
            balance = self._balance(clean, noisy, scale, top, experts, weights, present)
        return Routing(experts, weights, clean, balance)

    def _logits(self, x):
        """Clean and noisy logits ``(K, B, M, P, E)``; scale of the noise (``None``: no noise)."""
        weight = torch.cat([self.weight, self.noise], 3) if self.training else self.weight
        k, b, m, p, d = x.shape
        if weight.shape[1] == 1:
            logits = _Product.apply(x.reshape(k, -1, d), weight[:, 0]).view(k, b, m, p, -1)
        else:
            by_modality = x.transpose(1, 2).reshape(k * m, b * p, d)
            logits = _Product.apply(by_modality, weight[:, self.router_of].flatten(0, 1))
            logits = logits.view(k, m, b, p, -1).transpose(1, 2)
        if not self.training:
            return logits, logits, None
        clean, raw = logits.chunk(2, -1)
        scale = F.softplus(raw) + 0.01
        return clean, clean + torch.randn_like(scale) * scale, scale

    def _balance(self, clean, noisy, scale, top, experts, weights, present) -> Tensor:
        """CV^2 of importance + CV^2 of load, per modality, summed: ``(K,)``."""
        gates = torch.zeros_like(clean).scatter(-1, experts, weights)
        counted = present[..., None, None].to(gates.dtype)
        if scale is None or top.shape[-1] <= self.top_k:
            chosen = (gates > 0).to(gates.dtype)
        else:  # smooth estimate: probability of being among the k under new noise
            last_in, first_out = top[..., self.top_k - 1, None], top[..., self.top_k, None]
            threshold = torch.where(noisy > first_out, first_out, last_in)
            # beyond 12 nothing changes but speed: the slope, exp(-z² / 2), gets too small to
            # be a normal number, with which a CPU is sixty times slower
            chosen = torch.special.ndtr(((clean - threshold) / scale).clamp(-12, 12))
        importance, load = ((v * counted).sum((1, 3)) for v in (gates, chosen))  # (K, M, E) each
        return (_cv_squared(importance) + _cv_squared(load)).sum(1)


class _Product(torch.autograd.Function):
    """``(R, N, d) @ (R, d, E)``; the weight's gradient is summed over blocks of tokens.

    A CPU's library is ten times slower at one product with so long a sum and so small a result.
    """

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        n = x.shape[1] // BLOCK
        to_weight = x[:, n * BLOCK :].transpose(1, 2) @ grad[:, n * BLOCK :]
        x, blocks = (v[:, : n * BLOCK].unflatten(1, (n, BLOCK)) for v in (x, grad))
        to_weight += (x.transpose(2, 3) @ blocks).sum(1)
        return grad @ weight.transpose(1, 2), to_weight


def _cv_squared(x: Tensor) -> Tensor:
    """Squared coefficient of variation over the last axis; 0 for a single expert."""
    if x.shape[-1] == 1:
        return x.new_zeros(x.shape[:-1])
    return x.var(-1) / (x.mean(-1).square() + 1e-10)
