"""One transformer layer whose perceptron is a sparse mixture of experts."""

from __future__ import annotations

from torch import Tensor, nn

from scmoe.config import ModelConfig
from scmoe.nn.dropout import attention, dropout
from scmoe.nn.experts import Experts
from scmoe.nn.gate import Router, Routing


class Layer(nn.Module):
    """Attention over the tokens of all modalities, then experts."""

    def __init__(self, config: ModelConfig, n_modalities: int):
        super().__init__()
        d = config.d
        n_routers = config.n_routers or n_modalities
        self.config = config
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d, bias=not config.published_layers)
        self.out = nn.Linear(d, d)
        self.router = Router(
            d,
            config.n_experts,
            config.top_k,
            [min(i, n_routers - 1) for i in range(n_modalities)],
            config.fastmoe_init,
        )
        self.experts = Experts(config.n_experts, d, config.hidden or 2 * d, config.fastmoe_init)

    def forward(self, x: Tensor, mask: Tensor | None, present: Tensor) -> tuple[Tensor, Routing]:
        """Tokens ``(B, M, P, d)``; ``mask`` ``(B, 1, M*P, M*P)`` is True where a query may look."""
        b, m, p, d = x.shape
        attended = self._attend(self.norm1(x).reshape(b, m * p, d), mask)
        attended = attended.view(b, m, p, d).to(x.dtype)  # sums of layers stay in float32
        if self.config.published_layers:
            attended = dropout(attended, self.config.dropout, self.training)
        dropped = dropout(attended, self.config.dropout, self.training)
        x = (x if self.config.input_residual else attended) + dropped
        normed = self.norm2(x)
        routing = self.router(normed, present)
        k = routing.experts.shape[-1]
        mixed = self.experts(
            normed.reshape(-1, d), routing.experts.reshape(-1, k), routing.weights.reshape(-1, k)
        )
        return x + dropout(mixed.view(b, m, p, d), self.config.dropout, self.training), routing

    def attention(self, x: Tensor, mask: Tensor) -> Tensor:
        """Where each token looks: ``(B, M*P, M*P)``, rows sum to 1, mean over heads."""
        q, k, _ = self._heads(self.norm1(x).flatten(1, 2))
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
        return scores.softmax(-1).mean(1)

    def _heads(self, x: Tensor) -> Tensor:
        """Queries, keys and values of tokens ``(B, T, d)``: ``(3, B, H, T, d/H)``."""
        b, t, d = x.shape
        heads = self.config.n_heads
        return self.qkv(x).view(b, t, 3, heads, d // heads).permute(2, 0, 3, 1, 4)

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self._heads(x)
        p = self.config.attention_dropout if self.training else 0.0
        mixed = attention(q, k, v, mask, p)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))
