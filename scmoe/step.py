"""The losses of one batch and of the cells that members hold out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scmoe.config import TrainConfig
from scmoe.nn import losses
from scmoe.nn.cells import Batch, Cells
from scmoe.nn.network import Encoded, Network
from scmoe.ranks import share

EVAL_BATCH = 512


class Step:
    """Losses of ``network``; see :func:`scmoe.fit.fit` for the parameters."""

    def __init__(
        self,
        network: Network,
        config: TrainConfig,
        cells: Cells,
        fold: Tensor,
        supervised: bool,
        scales: list[float] | None = None,
        input_noise: list[float] | None = None,
    ):
        self.network, self.config, self.cells, self.supervised = network, config, cells, supervised
        self.input_noise = input_noise
        m = len(network.n_features)
        self.scales = scales or [1.0] * m
        self.sources = [  # of each target
            [j for j in range(m) if i != j or config.sum_pairs or m == 1] for i in range(m)
        ]
        self.use_ddc = config.ddc_weight > 0
        self.held_out = _held_out(fold, network.config.members)

    def __call__(self, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss of each member, and its parts, ``(K,)``, over the cells at ``(K, B)``."""
        batch, c = self.cells.batch(index), self.config
        x = batch.x
        if self.input_noise is not None:
            noise = zip(x, self.input_noise, strict=True)
            x = [v + s * torch.randn_like(v) if s else v for v, s in noise]
        with self._precision():
            if c.target_visible:
                joint = alone = self.network.encode(x, batch.present)
            else:
                shown = self._drop_modalities(batch.present)
                joint, alone = self.network.encode_both(x, shown, batch.present)
        return self._losses(batch, joint, alone)

    def _precision(self):
        """bf16 where it is asked for; losses stay in float32."""
        on = self.config.precision == "bf16"
        return torch.autocast(self.cells.device.type, torch.bfloat16, enabled=on)

    @torch.no_grad()
    def validate(self) -> dict[str, Tensor]:
        """Losses ``(K,)`` of the cells that each member holds out, all modalities shown."""
        rows, real = self.held_out
        if not rows.shape[1]:
            return {"loss": torch.full((len(rows),), math.nan)}
        self.network.eval()
        starts, sums = range(0, rows.shape[1], EVAL_BATCH), {}
        for part in share(self._held_out_losses, starts):
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + value
        return {name: value / real.sum(1) for name, value in sums.items()}

    def _held_out_losses(self, start: int) -> dict[str, Tensor]:
        """Sums ``(K,)`` over some of the cells held out."""
        rows, there = (v[:, start : start + EVAL_BATCH] for v in self.held_out)
        batch = self.cells.batch(rows)
        padding = ~there.to(batch.present.device)
        batch.present.masked_fill_(padding[..., None], False)
        if batch.labels is not None:
            batch.labels.masked_fill_(padding, -1)
        with self._precision():
            joint = alone = self.network.encode(batch.x, batch.present)
            if self.network.config.attention and not self.config.target_visible:
                alone = self.network.encode(batch.x, batch.present, "alone")
        loss, parts = self._losses(batch, joint, alone)
        n = there.sum(1)
        return {name: value.float().cpu() * n for name, value in {"loss": loss, **parts}.items()}

    def _losses(self, batch: Batch, joint: Encoded, alone: Encoded):
        network, c = self.network, self.config
        logits = network.group_logits(joint).float()
        parts = {}
        if self.supervised:
            parts["group"] = losses.cross_entropy(logits, batch.labels, c.ce_on_softmax)
        decoder = self.decoder_losses(batch, alone)
        parts |= {f"decoder {i}": v for i, v in enumerate(decoder)}
        if self.use_ddc:
            spaces = network.clustering_space(joint).float()
            pairs = zip(logits, spaces, strict=True)
            parts["ddc"] = torch.stack([losses.ddc(*pair) for pair in pairs])
        if network.training:
            parts["gate"] = joint.balance
        total = c.decoder_weight * torch.stack(decoder).sum(0)
        weights = {"group": c.group_weight, "ddc": c.ddc_weight, "gate": c.gate_weight}
        for name, weight in weights.items():
            if name in parts:
                total = total + weight * parts[name]
        return total, parts

    def decoder_losses(self, batch: Batch, encoded: Encoded) -> list[Tensor]:
        """Loss of each target ``(K,)``: summed over all M x M pairs, or averaged over pairs."""
        pairs = 1.0 if self.config.sum_pairs else 1 / sum(map(len, self.sources))
        out, m = [], len(self.sources)
        for i, sources in enumerate(self.sources):
            with self._precision():
                decoded = self.network.decode(encoded, i, sources if len(sources) < m else None)
            error = (decoded.float() - batch.x[i][:, :, None]).square().mean(3)  # (K, B, sources)
            both = batch.present[:, :, i, None] & batch.present[:, :, sources]
            error = (error * both).sum(1) / both.sum(1).clamp(min=1)
            out.append(pairs * self.scales[i] * error.sum(1))
        return out

    def _drop_modalities(self, present):
        """Hide modalities at random, leaving every cell one of its own."""
        rate = self.config.modality_dropout
        if rate == 0 or present.shape[2] == 1:
            return present
        draw = torch.rand(present.shape, device=present.device).masked_fill(~present, -1.0)
        kept = draw >= rate
        return kept | (draw == draw.amax(2, keepdim=True)) & present


def _held_out(fold: Tensor, members: int) -> tuple[Tensor, Tensor]:
    """Rows that each member holds out ``(K, n)``, and which of these are no padding."""
    rows = [(fold == k).nonzero()[:, 0] for k in range(members)]
    real = torch.zeros(members, max(map(len, rows)), dtype=torch.bool)
    out = torch.zeros(real.shape, dtype=torch.long)
    for k, index in enumerate(rows):
        real[k, : len(index)] = True
        out[k, : len(index)] = index
    return out, real
