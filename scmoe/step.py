"""The losses of one batch, of the validation cells, and what they need at hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scmoe.config import TrainConfig
from scmoe.nn import losses
from scmoe.nn.cells import Batch, Cells
from scmoe.nn.linear import CrossFit
from scmoe.nn.network import Network

EVAL_BATCH = 512


class Step:
    """Losses of ``network``; see :func:`scmoe.fit.fit` for the parameters."""

    def __init__(
        self,
        network: Network,
        config: TrainConfig,
        train: Cells,
        supervised: bool,
        crossfit: CrossFit | None = None,
        input_noise: list[float] | None = None,
    ):
        self.network, self.config, self.train, self.supervised = network, config, train, supervised
        self.crossfit, self.input_noise = crossfit, input_noise
        m = len(network.n_features)
        self.sources = [  # of each target
            [j for j in range(m) if i != j or config.sum_pairs or m == 1] for i in range(m)
        ]
        self.use_ddc = config.ddc_weight > 0 and (not supervised or config.ddc_when_supervised)
        self.fold = self.inputs = None
        if crossfit is not None:
            self.fold, self.n_folds = crossfit.fold.cpu(), int(crossfit.fold.max()) + 1
            self.inputs = self._inputs(train)

    @torch.no_grad()
    def _inputs(self, cells):
        """What translations read of all cells, per modality ``(N, q)``: it never changes."""
        parts = [
            [self.network.linear.inputs(i, x) for i, x in enumerate(batch.x)]
            for batch in cells.batches(EVAL_BATCH)
        ]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def arrange(self, index: Tensor) -> Tensor:
        """A batch's rows in the order of their folds, so that each fold is a slice."""
        return index if self.fold is None else index[self.fold[index].argsort(stable=True)]

    def __call__(self, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and its parts over the training cells at ``index`` (on the host)."""
        batch, c = self.train.batch(index), self.config
        x = batch.x
        if self.input_noise is not None:
            noise = zip(x, self.input_noise, strict=True)
            x = [v + s * torch.randn_like(v) if s else v for v, s in noise]
        rows = index.to(batch.present.device)
        with self._precision():
            if c.target_visible:
                shown = batch.present
                joint = alone = self.network.encode(x, shown)
            else:
                shown = self._drop_modalities(batch.present)
                joint, alone = self.network.encode_both(x, shown, batch.present)
        offset = residuals = None
        if self.crossfit is not None:
            offset = self._group_offset(rows, shown)
            residuals = self._residuals(batch, index, rows)
        return self._losses(batch, joint, alone, offset, residuals)

    def _precision(self):
        """bf16 where it is asked for; losses and the linear path stay in float32."""
        on = self.config.precision == "bf16"
        return torch.autocast(self.train.device.type, torch.bfloat16, enabled=on)

    @torch.no_grad()
    def validate(self, cells: Cells | None) -> dict[str, float]:
        """Losses of validation cells, all modalities shown, no noise."""
        if not cells:
            return {"loss": math.nan}
        self.network.eval()
        linear = self.network.linear
        sums, n = {}, 0
        for batch in cells.batches(EVAL_BATCH):
            with self._precision():
                joint = alone = self.network.encode(batch.x, batch.present)
                if not self.config.target_visible:
                    alone = self.network.encode(batch.x, batch.present, "alone")
            offset = residuals = None
            if linear is not None:
                # clusters are the linear path's own: nothing is added to them, nothing compared
                offset = linear.group_logits(batch.x, batch.present) if self.supervised else None
                inputs = [linear.inputs(j, v) for j, v in enumerate(batch.x)]
                residuals = self._residuals_from(
                    batch, lambda i, j, z=inputs: z[j] @ getattr(linear, f"pair_{i}_{j}")
                )
            loss, parts = self._losses(batch, joint, alone, offset, residuals)
            for name, value in {"loss": loss, **parts}.items():
                sums[name] = sums.get(name, 0.0) + value.float() * len(batch.present)
            n += len(batch.present)
        return {name: float(value) / n for name, value in sums.items()}

    def _losses(self, batch, joint, alone, offset, residuals):
        network, c = self.network, self.config
        logits = network.group_logits(joint).float()
        logits = logits if offset is None else logits + offset
        parts = {}
        if self.supervised:
            smoothing = c.label_smoothing if network.training else 0.0
            parts["group"] = losses.cross_entropy(logits, batch.labels, c.ce_on_softmax, smoothing)
        decoder = self._decoder_losses(batch, alone, residuals)
        parts |= {f"decoder {i}": v for i, v in enumerate(decoder)}
        if self.use_ddc:
            parts["ddc"] = losses.ddc(logits, network.clustering_space(joint).float())
        if network.training:
            parts["gate"] = joint.balance
        total = c.decoder_weight * torch.stack(decoder).sum()
        weights = {"group": c.group_weight, "ddc": c.ddc_weight, "gate": c.gate_weight}
        for name, weight in weights.items():
            if name in parts:
                total = total + weight * parts[name]
        return total, parts

    def _decoder_losses(self, batch: Batch, encoded, residuals) -> list[Tensor]:
        """Loss of each target: summed over all M x M pairs, or averaged over pairs of two.

        What is to be decoded is the target itself or, with a linear path, ``residuals[i]``
        ``(B, sources, F_i)``: what the linear path leaves of it.
        """
        scale = 1.0 if self.config.sum_pairs else 1 / sum(map(len, self.sources))
        out, m = [], len(self.sources)
        for i, sources in enumerate(self.sources):
            latents = encoded.latents if len(sources) == m else encoded.latents[:, sources]
            with self._precision():
                decoded = self.network.decoders[i](latents).float()
            true = batch.x[i][:, None] if residuals is None else residuals[i]
            error = (decoded - true).square().mean(2)  # (B, sources)
            both = (batch.present[:, i, None] & batch.present[:, sources]).to(error.dtype)
            out.append(scale * ((error * both).sum(0) / both.sum(0).clamp(min=1)).sum())
        return out

    def _residuals(self, batch, index, rows):
        """What the out-of-fold linear path leaves of each target, ``(B, sources, F_i)`` each."""
        sizes = torch.bincount(self.fold[index], minlength=self.n_folds).tolist()
        inputs = [z[rows].split(sizes) for z in self.inputs]

        def translated(i, j):
            weights = self.crossfit.weights[i, j]  # (K, q, F)
            return torch.cat([z @ w for z, w in zip(inputs[j], weights, strict=True)])

        return self._residuals_from(batch, translated)

    def _residuals_from(self, batch, translated):
        """``translated(i, j)`` is the linear path's target i from source j, less its mean."""
        linear, out = self.network.linear, []
        for i, sources in enumerate(self.sources):
            centred = batch.x[i] - getattr(linear, f"mean_{i}")
            parts = [centred - translated(i, j) if i != j else batch.x[i] for j in sources]
            out.append(torch.stack(parts, 1))
        return out

    def _group_offset(self, rows, shown):
        if self.crossfit.groups is None:
            return None
        weights = self.network.linear.fusion_weights(shown)
        return torch.einsum("be,bec->bc", weights, self.crossfit.groups[rows])

    def _drop_modalities(self, present):
        """Hide modalities at random, leaving every cell one of its own."""
        rate = self.config.modality_dropout
        if rate == 0 or present.shape[1] == 1:
            return present
        draw = torch.rand(present.shape, device=present.device).masked_fill(~present, -1.0)
        kept = draw >= rate
        return kept | (draw == draw.amax(1, keepdim=True)) & present
