"""The whole network: embed, attend, route, decode, and the linear path beneath."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scmoe.config import ModelConfig
from scmoe.nn.gate import Routing
from scmoe.nn.linear import LinearPath
from scmoe.nn.transformer import Layer


class Encoded(NamedTuple):
    """What the encoder makes of a batch of B cells with M modalities of P tokens each."""

    embedded: Tensor  # (B, M, P, d) tokens before attention
    tokens: Tensor  # (B, M, P, d) tokens after the last layer
    latents: Tensor  # (B, M, d) mean over a modality's tokens; zeros where absent
    present: Tensor  # (B, M) bool, which modalities were encoded
    routing: list[Routing]  # one per layer

    @property
    def fused(self) -> Tensor:
        """Mean latent over the modalities a cell has, ``(B, d)``."""
        return self.latents.sum(1) / self.present.sum(1, keepdim=True).clamp(min=1)

    def part(self, rows: slice) -> Encoded:
        """Some of the cells; the balance loss stays that of the whole batch."""
        routing = [Routing(*(v[rows] for v in r[:-1]), r.balance) for r in self.routing]
        return Encoded(*(v[rows] for v in self[:-1]), routing)

    @property
    def balance(self) -> Tensor:
        """Load-balance loss summed over layers and modalities, ``()``."""
        return torch.stack([r.balance for r in self.routing]).sum()


class Network(nn.Module):
    """Sparse mixture-of-experts transformer over the patches of several modalities.

    Parameters
    ----------
    config
        Sizes and switches.
    n_features
        Features of each modality, in the order of the modalities.
    n_groups
        Groups to be told apart.
    linear
        The closed-form linear path, or ``None``.
    """

    def __init__(
        self,
        config: ModelConfig,
        n_features: list[int],
        n_groups: int,
        linear: LinearPath | None = None,
    ):
        super().__init__()
        d, n_modalities = config.d, len(n_features)
        self.config, self.n_features, self.n_groups = config, n_features, n_groups
        self.n_patches = config.n_patches
        # ceil(F / P) features a patch, the last ones zero-padded
        self.patch_sizes = [math.ceil(f / self.n_patches) for f in n_features]
        self.embed = nn.ModuleList(nn.Linear(size, d) for size in self.patch_sizes)
        start = 0.0 if config.published_layers else 0.02
        self.position = nn.Parameter(torch.randn(n_modalities, self.n_patches, d) * start)
        self.layers = nn.ModuleList(Layer(config, n_modalities) for _ in range(config.n_layers))
        width, act = (d, nn.ReLU) if config.published_layers else (2 * d, nn.GELU)
        self.decoders = nn.ModuleList(
            nn.Sequential(nn.Linear(d, width), act(), nn.Linear(width, f)) for f in n_features
        )
        self.head = nn.Linear(d, n_groups, bias=False)
        self.hidden = nn.Linear(n_modalities * d, d)
        self.linear = linear
        # How much the network may add to the linear path: set on validation cells after training.
        self.register_buffer("group_scale", torch.ones(()))
        self.register_buffer(
            "pair_scale", torch.ones(n_modalities, n_modalities)
        )  # [target, source]

    def encode(
        self, x: list[Tensor | None], present: Tensor, view: Literal["joint", "alone"] = "joint"
    ) -> Encoded:
        """Tokens and latents of a batch.

        Parameters
        ----------
        x
            Per modality ``(B, F_m)``, or ``None`` for one that is not to be read.
        present
            ``(B, M)`` bool; what is False is neither read nor attended to.
        view
            ``joint``: tokens of all present modalities see each other; ``alone``: each modality
            sees only itself, so that a latent depends on that modality and on no other.
        """
        embedded, present = self._embed(x, present)
        # nothing to hide: faster without a mask (but asking another device would make it wait)
        whole = view == "joint" and present.device.type == "cpu" and bool(present.all())
        return self._attend(
            embedded, present, None if whole else self.attention_mask(present, view)
        )

    def encode_both(
        self, x: list[Tensor], shown: Tensor, present: Tensor
    ) -> tuple[Encoded, Encoded]:
        """Joint view of the modalities ``shown`` and alone view of those ``present``, in one pass.

        Both ``(B, M)`` bool. The batch is doubled and a block attention mask keeps the views apart.
        """
        embedded, present = self._embed(x, present)
        both = torch.cat([shown & present, present])
        masks = (
            self.attention_mask(both[: len(present)], "joint"),
            self.attention_mask(present, "alone"),
        )
        encoded = self._attend(torch.cat([embedded, embedded]), both, torch.cat(masks))
        return encoded.part(slice(None, len(present))), encoded.part(slice(len(present), None))

    def _embed(self, x, present):
        if any(v is None for v in x):  # asking the device only then: a graph could not be captured
            present = present & torch.tensor([v is not None for v in x], device=present.device)
        tokens = [self._patches(i, v, present[:, i]) for i, v in enumerate(x)]
        return torch.stack(tokens, 1), present  # (B, M, P, d)

    def _attend(self, embedded, present, mask) -> Encoded:
        tokens, routing = embedded, []
        for layer in self.layers:
            tokens, routed = layer(tokens, mask, present)
            routing.append(routed)
        latents = tokens.mean(2) * present[..., None]
        return Encoded(embedded, tokens, latents, present, routing)

    def attention_mask(self, present: Tensor, view: str) -> Tensor:
        """``(B, 1, M*P, M*P)`` bool. A modality always sees itself, so that no row is empty."""
        itself = torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
        blocks = itself.expand(len(present), -1, -1)  # (B, M, M) query, key
        if view == "joint":
            blocks = blocks | present[:, None, :]
        p = self.n_patches
        return blocks.repeat_interleave(p, 1).repeat_interleave(p, 2)[:, None]

    def _patches(self, i: int, x: Tensor | None, present: Tensor) -> Tensor:
        if x is None:
            return self.position[i].expand(len(present), -1, -1)
        x = torch.where(
            present[:, None], x, 0.0
        )  # where, not product: NaN of an absent cell must not leak
        padded = F.pad(x, (0, self.patch_sizes[i] * self.n_patches - x.shape[1]))
        return self.embed[i](padded.view(len(x), self.n_patches, -1)) + self.position[i]

    def group_logits(self, encoded: Encoded) -> Tensor:
        """The network's own logits ``(B, C)``, without the linear path."""
        return self.head(encoded.fused)

    def clustering_space(self, encoded: Encoded) -> Tensor:
        """Hidden representation ``(B, d)`` whose neighbourhoods the clustering loss looks at."""
        return self.hidden(encoded.latents.flatten(1))

    def decode(self, encoded: Encoded, target: int) -> Tensor:
        """Modality ``target`` from every latent: ``(B, M, F_target)``, without the linear path."""
        return self.decoders[target](encoded.latents)

    def predict_groups(self, x: list[Tensor | None], present: Tensor) -> Tensor:
        """Logits ``(B, C)`` from the modalities given: linear path plus scaled network.

        Rare groups are raised (logit adjustment, Menon et al. 2021), here and nowhere in training:
        fitted to the log-loss, few cells of a group rarely outvote many of another.
        """
        logits = self.group_scale * self.group_logits(self.encode(x, present))
        if self.linear is not None and self.linear.has_groups:
            logits = logits + self.linear.group_logits(x, present) + self.linear.rare
        return logits

    def translate(self, x: list[Tensor | None], present: Tensor, target: int) -> Tensor:
        """Modality ``target``, scaled, from the others given: ``(B, F_target)``.

        The target's own slot is emptied first, so that nothing of it can be read.
        """
        x = [None if i == target else v for i, v in enumerate(x)]
        sources = present & torch.tensor([v is not None for v in x], device=present.device)
        encoded = self.encode(x, sources, "alone")
        scale = (
            self.pair_scale[target] * sources / sources.sum(1, keepdim=True).clamp(min=1)
        )  # (B, M)
        # the last decoder layer is linear: weigh the sources before it, not after (F can be 10^4)
        first, act, last = self.decoders[target]
        inner = (act(first(encoded.latents)) * scale[..., None]).sum(1)
        out = F.linear(inner, last.weight) + scale.sum(1, keepdim=True) * last.bias
        if self.linear is not None:
            out = out + self.linear.translate(x, sources, target)
        return out
