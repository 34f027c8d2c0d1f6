"""The network of K members: embed, attend, route, decode."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scmoe.config import ModelConfig
from scmoe.nn.dropout import dropout
from scmoe.nn.gate import Routing
from scmoe.nn.layers import Layer, LayerNorm, Linear


class Encoded(NamedTuple):
    """What K members make of B cells with M modalities of P tokens each."""

    embedded: Tensor  # (K, B, M, P, d) tokens before the first layer
    latents: Tensor  # (K, B, M, d) mean over a modality's tokens; zeros where absent
    present: Tensor  # (K, B, M) bool, which modalities were encoded
    routing: list[Routing]  # one per layer

    @property
    def fused(self) -> Tensor:
        """Mean latent over the modalities a cell has, ``(K, B, d)``."""
        return self.latents.sum(2) / self.present.sum(2, keepdim=True).clamp(min=1)

    @property
    def balance(self) -> Tensor:
        """Load-balance loss of each member, summed over layers and modalities, ``(K,)``."""
        return torch.stack([r.balance for r in self.routing]).sum(0)

    def part(self, rows: slice) -> Encoded:
        """Some of the cells; the balance loss stays that of the whole batch."""
        routing = [Routing(*(v[:, rows] for v in r[:-1]), r.balance) for r in self.routing]
        return Encoded(*(v[:, rows] for v in self[:-1]), routing)


class Network(nn.Module):
    """K sparse mixture-of-experts transformers over patches of several modalities.

    The members share nothing but the batch they are computed in. ``n_features`` are the inputs of
    each modality.
    """

    def __init__(self, config: ModelConfig, n_features: list[int], n_groups: int):
        super().__init__()
        d, k, n_modalities = config.d, config.members, len(n_features)
        published = config.published_layers
        self.config, self.n_features, self.n_patches = config, list(n_features), config.n_patches
        self.input_dropout = config.input_dropout
        # ceil(F / P) features a patch, the last ones zero-padded
        self.patch_sizes = [math.ceil(f / self.n_patches) for f in n_features]
        self.embed = nn.ModuleList(Linear(k, size, d) for size in self.patch_sizes)
        start = 0.0 if published else 0.02
        self.position = nn.Parameter(torch.randn(k, n_modalities, self.n_patches, d) * start)
        self.layers = nn.ModuleList(Layer(config, n_modalities) for _ in range(config.n_layers))
        width, self.act = (d, F.relu) if published else (2 * d, F.gelu)
        self.decoders = nn.ModuleList(
            nn.ModuleList([Linear(k, d, width), Linear(k, width, f, zero=not published)])
            for f in n_features
        )
        self.head = Linear(k, d, n_groups, bias=False, zero=not published)
        if published:
            self.hidden = Linear(k, n_modalities * d, d)
        else:
            self.norm_in = nn.ModuleList(LayerNorm(k, d) for _ in n_features)
            self.norm_out = LayerNorm(k, d)

    def encode(
        self, x: list[Tensor | None], present: Tensor, view: Literal["joint", "alone"] = "joint"
    ) -> Encoded:
        """Tokens and latents of a batch.

        Parameters
        ----------
        x
            Per modality ``(K, B, F_m)``, or ``(1, B, F_m)`` where all members read the same cells,
            or ``None`` for one that is not to be read.
        present
            ``(K, B, M)`` (or K = 1) bool; what is False is neither read nor attended to.
        view
            ``joint``: tokens of all present modalities see each other; ``alone``: each modality
            sees only itself, so that a latent depends on that modality and on no other.
        """
        embedded, present = self.tokens(x, present)
        mask = None
        if self.config.attention:
            # nothing to hide: faster without a mask (but asking another device would make it wait)
            whole = view == "joint" and present.device.type == "cpu" and bool(present.all())
            mask = None if whole else self._mask(present, view)
        return self._attend(embedded, present, mask)

    def encode_both(self, x: list, shown: Tensor, present: Tensor) -> tuple[Encoded, Encoded]:
        """Joint view of the modalities ``shown`` and alone view of those ``present``, in one pass.

        ``x`` as of :meth:`encode`, the others ``(K, B, M)`` bool. The batch is doubled and a block
        attention mask keeps the views apart; without attention one view is both.
        """
        embedded, present = self.tokens(x, present)
        shown = shown & present
        if not self.config.attention:
            alone = self._attend(embedded, present, None)
            return alone._replace(latents=alone.latents * shown[..., None], present=shown), alone
        mask = torch.cat([self._mask(shown, "joint"), self._mask(present, "alone")], 1)
        both = torch.cat([shown, present], 1)
        encoded, n = self._attend(torch.cat([embedded, embedded], 1), both, mask), shown.shape[1]
        return encoded.part(slice(None, n)), encoded.part(slice(n, None))

    def tokens(self, x: list[Tensor | None], present: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens before the first layer, ``(K, B, M, P, d)``, and what is there, ``(K, B, M)``."""
        present = present.expand(self.config.members, -1, -1)
        if any(v is None for v in x):  # asking the device only then: a graph could not be captured
            present = present & torch.tensor([v is not None for v in x], device=present.device)
        tokens = [self._patches(i, v, present[..., i]) for i, v in enumerate(x)]
        return torch.stack(tokens, 2), present

    def _patches(self, i: int, x: Tensor | None, present: Tensor) -> Tensor:
        """Tokens ``(K, B, P, d)`` of a modality; its position alone where it is not read."""
        position = self.position[:, None, i]
        if x is None:
            return position.expand(*present.shape, -1, -1)
        # where, not product: NaN of an absent cell must not leak
        x = torch.where(present[..., None], x, 0.0)
        x = dropout(x, self.input_dropout, self.training)
        padded = F.pad(x, (0, self.patch_sizes[i] * self.n_patches - x.shape[2]))
        tokens = self.embed[i](padded.view(*x.shape[:2], self.n_patches, self.patch_sizes[i]))
        if self.config.published_layers:
            return tokens + position
        tokens = F.gelu(self.norm_in[i](tokens + position))
        return dropout(tokens, self.config.dropout, self.training)

    def _mask(self, present: Tensor, view: str) -> Tensor:
        """``(K, B, 1, M*P, M*P)`` bool. A modality always sees itself: no row is empty."""
        itself = torch.eye(present.shape[2], dtype=torch.bool, device=present.device)
        blocks = itself.expand(*present.shape, -1)  # (K, B, M, M) query, key
        if view == "joint":
            blocks = blocks | present[:, :, None]
        p = self.n_patches
        return blocks.repeat_interleave(p, 2).repeat_interleave(p, 3)[:, :, None]

    def _attend(self, embedded, present, mask) -> Encoded:
        tokens, routing = embedded, []
        for layer in self.layers:
            tokens, routed = layer(tokens, None if mask is None else mask.flatten(0, 1), present)
            routing.append(routed)
        if not self.config.published_layers:
            tokens = self.norm_out(tokens)
        return Encoded(embedded, tokens.mean(3) * present[..., None], present, routing)

    def group_logits(self, encoded: Encoded) -> Tensor:
        """Each member's logits ``(K, B, C)``."""
        return self.head(encoded.fused)

    def clustering_space(self, encoded: Encoded) -> Tensor:
        """Hidden representation ``(K, B, d)`` whose neighbourhoods the clustering loss looks at."""
        return self.hidden(encoded.latents.flatten(2))

    def decode(self, encoded: Encoded, target: int, sources: list[int] | None = None) -> Tensor:
        """Modality ``target`` from each latent (of ``sources``): ``(K, B, M, F_target)``."""
        first, last = self.decoders[target]
        latents = encoded.latents if sources is None else encoded.latents[:, :, sources]
        return last(self.act(first(latents)))

    def translate(self, x: Tensor, present: Tensor, target: int, source: int) -> Tensor:
        """Members' translation of ``target`` from ``source`` alone: ``(K, B, F_target)``.

        ``x`` ``(K or 1, B, F_source)``, ``present`` ``(K or 1, B)``; nothing else is at hand.
        """
        inputs = [x if j == source else None for j in range(len(self.n_features))]
        has = present[..., None].expand(-1, -1, len(inputs))  # only the source is read
        return self.decode(self.encode(inputs, has, "alone"), target, [source])[:, :, 0]
