"""One transformer layer whose perceptron is a sparse mixture of experts."""

from __future__ import annotations

from torch import Tensor, nn

from scmoe.config import ModelConfig
from scmoe.nn.dropout import attention, dropout
from scmoe.nn.experts import Experts
from scmoe.nn.gate import Router, Routing
from scmoe.nn.members import LayerNorm, Linear


class Layer(nn.Module):
    """Attention over the tokens of all modalities (where it is configured), then experts."""

    def __init__(self, config: ModelConfig, n_modalities: int):
        super().__init__()
        d, members = config.d, config.members
        n_routers = config.n_routers or n_modalities
        self.config = config
        if config.attention:
            self.norm1 = LayerNorm(members, d)
        self.norm2 = LayerNorm(members, d)
        if config.attention:
            self.qkv = Linear(members, d, 3 * d, bias=not config.published_layers)
            self.out = Linear(members, d, d)
        self.router = Router(
            d,
            config.n_experts,
            config.top_k,
            [min(i, n_routers - 1) for i in range(n_modalities)],
            config.fastmoe_init,
            members,
        )
        self.experts = Experts(
            config.n_experts, d, config.hidden or 2 * d, config.fastmoe_init, members
        )

    def forward(self, x: Tensor, mask: Tensor | None, present: Tensor) -> tuple[Tensor, Routing]:
        """Mix tokens ``(K, B, M, P, d)``; ``present`` is ``(K, B, M)``.

        ``mask`` ``(K*B, 1, M*P, M*P)`` is True where a query may look; None: everywhere.
        """
        if self.config.attention:
            attended = self.attend(self.norm1(x), mask)
            if self.config.published_layers:
                attended = dropout(attended, self.config.dropout, self.training)
            dropped = dropout(attended, self.config.dropout, self.training)
            x = (x if self.config.input_residual else attended) + dropped
        normed = self.norm2(x)
        routing = self.router(normed, present)
        mixed = self.experts(normed, routing.experts, routing.weights)
        return x + dropout(mixed, self.config.dropout, self.training), routing

    def attention(self, x: Tensor, mask: Tensor) -> Tensor:
        """Where each token looks: ``(K*B, M*P, M*P)``, rows sum to 1, mean over heads."""
        q, k, _ = self._heads(self.norm1(x))
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
        return scores.softmax(-1).mean(1)

    def _heads(self, x: Tensor) -> Tensor:
        """Queries, keys and values of tokens ``(K, B, M, P, d)``: ``(3, K*B, H, M*P, d/H)``."""
        members, b, m, p, d = x.shape
        heads = self.config.n_heads
        both = self.qkv(x).view(members * b, m * p, 3, heads, d // heads)
        return both.permute(2, 0, 3, 1, 4)

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What attention makes of normed tokens, ``(K, B, M, P, d)``."""
        q, k, v = self._heads(x)
        p = self.config.attention_dropout if self.training else 0.0
        mixed = attention(q, k, v, mask, p)
        # sums of layers stay in float32
        return self.out(mixed.transpose(1, 2).reshape(x.shape)).to(x.dtype)
