"""Layers of K members at once: each has its own weights, and one product computes all.

Parameters lead with the axis of the members, and a member's gradient is that of its own loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scmoe.config import ModelConfig
from scmoe.nn.dropout import attention, dropout
from scmoe.nn.experts import Experts
from scmoe.nn.gate import Router, Routing


class Linear(nn.Module):
    """``(K, ..., n_in)`` to ``(K, ..., n_out)``; ``zero`` starts weights and biases at 0."""

    def __init__(self, members: int, n_in: int, n_out: int, bias: bool = True, zero: bool = False):
        super().__init__()

        def drawn(*shape):
            bound = 0.0 if zero else n_in**-0.5
            return nn.Parameter(torch.empty(members, *shape).uniform_(-bound, bound))

        self.weight = drawn(n_out, n_in)
        self.bias = drawn(n_out) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Each member's map of its own rows."""
        if len(self.weight) == 1:  # a plain product, without the batched one's detours
            return F.linear(x, self.weight[0], None if self.bias is None else self.bias[0])
        flat, weight = x.flatten(1, -2), self.weight.transpose(1, 2)
        if self.bias is None:
            out = flat @ weight
        else:
            out = torch.baddbmm(self.bias[:, None], flat, weight)
        return out.view(*x.shape[:-1], -1)


class LayerNorm(nn.Module):
    """Layer norm over the last axis of ``(K, ..., d)``, with each member's own scale and shift."""

    def __init__(self, members: int, d: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, d))
        self.bias = nn.Parameter(torch.zeros(members, d))

    def forward(self, x: Tensor) -> Tensor:
        """Normed tokens."""
        if len(self.weight) == 1:
            return F.layer_norm(x, x.shape[-1:], self.weight[0], self.bias[0])
        shape = len(self.weight), *[1] * (x.ndim - 2), -1
        normed = F.layer_norm(x, x.shape[-1:])
        return torch.addcmul(self.bias.view(shape), normed, self.weight.view(shape))


class Layer(nn.Module):
    """Attention over the tokens of all modalities (where it is configured), then experts."""

    def __init__(self, config: ModelConfig, n_modalities: int):
        super().__init__()
        self.config, d, members = config, config.d, config.members
        if config.attention:
            self.norm1 = LayerNorm(members, d)
        self.norm2 = LayerNorm(members, d)
        if config.attention:
            self.qkv = Linear(members, d, 3 * d, bias=not config.published_layers)
            self.out = Linear(members, d, d)
        last = (config.n_routers or n_modalities) - 1
        router_of = [min(i, last) for i in range(n_modalities)]
        like = config.fastmoe_init, members
        self.router = Router(d, config.n_experts, config.top_k, router_of, *like)
        self.experts = Experts(config.n_experts, d, config.hidden or 2 * d, *like)

    def forward(self, x: Tensor, mask: Tensor | None, present: Tensor) -> tuple[Tensor, Routing]:
        """Mix tokens ``(K, B, M, P, d)``; ``present`` is ``(K, B, M)``.

        ``mask`` ``(K*B, 1, M*P, M*P)`` is True where a query may look; None: everywhere.
        """
        c = self.config
        if c.attention:
            attended = self.attend(self.norm1(x), mask)
            if c.published_layers:
                attended = dropout(attended, c.dropout, self.training)
            dropped = dropout(attended, c.dropout, self.training)
            x = (x if c.input_residual else attended) + dropped
        normed = self.norm2(x)
        routing = self.router(normed, present)
        mixed = self.experts(normed, routing.experts, routing.weights)
        return x + dropout(mixed, c.dropout, self.training), routing

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What attention makes of normed tokens, ``(K, B, M, P, d)``."""
        members, b, m, p, d = x.shape
        heads = self.config.n_heads
        qkv = self.qkv(x).view(members * b, m * p, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        mixed = attention(*qkv, mask, self.config.attention_dropout if self.training else 0.0)
        # sums of layers stay in float32
        return self.out(mixed.transpose(1, 2).reshape(x.shape)).to(x.dtype)
