"""What is explained: one number per cell, as a function of the features it was read from.

For a group that number is its **centred logit**: the fused log-probability minus the mean of all
groups', the log-odds of the group against a typical one (the geometric mean of all). The normaliser
of the softmax drops out of it: it does not saturate where a cell is sure. For a translation the
number is the translated feature, scaled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from mudata import MuData
from torch import Tensor, nn

from scmoe.baselines.linear import HEAD_COMPONENTS, KERNEL_COMPONENTS
from scmoe.data import DataError
from scmoe.data.check import expect_known
from scmoe.networks import Features
from scmoe.nn.cells import Cells

BATCH = 256  # cells explained together


def complete(mdata: MuData, n: int, seed: int = 0) -> MuData:
    """At most `n` cells that have every modality, drawn at random, in their order."""
    has_all = np.logical_and.reduce([mdata.obs_names.isin(a.obs_names) for a in mdata.mod.values()])
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(has_all))[:n]
    return mdata[np.sort(rows)]


class Answer(nn.Module):
    """A model's answers about cells `(B, F) -> (B, K)`: F features of all sources side by side.

    Parameters are those of :func:`scmoe.explain.attribute`, but that `outputs` are all by default.

    Attributes
    ----------
    modalities, widths, outputs : names of what is read, its features, names of the K answers.
    """

    def __init__(self, model, target="group", outputs=None, source=None):
        super().__init__()
        ours = getattr(model, "experts", model)
        self.model, self.experts = model, ours if hasattr(ours, "network_") else None
        self.linear = getattr(model, "linear", model if self.experts is None else None)
        self.network = None if self.experts is None else self.experts.network_.eval()
        self.device = torch.device("cpu" if self.network is None else self.network.position.device)
        names, features = model.modalities_, model.transform_.features
        self.target = None if target == "group" else _index(names, [target], "target")[0]
        source = [source] if isinstance(source, str) else source
        self.modalities = [m for m in names if m != target] if source is None else list(source)
        self.sources = _index(names, self.modalities, "source")
        if self.target in self.sources:
            raise ValueError(f"target {target!r} is also a source; it is never read")
        self.widths = [len(features[name]) for name in self.modalities]
        known = model.groups_ if self.target is None else list(features[target])
        self.outputs = known if outputs is None else [str(name) for name in outputs]
        self.columns = _index(known, self.outputs, "output")

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """Answers `(B, K)`; `present` is `(B, M)` bool, default every source of every cell."""
        z, present = self.scores(x, present)
        tell = self._groups if self.target is None else self._translation
        out = x.new_zeros(len(x), len(self.columns))
        for pattern in present.unique(dim=0):
            if subset := tuple(pattern.nonzero()[:, 0].tolist()):
                rows = (present == pattern).all(1).nonzero()[:, 0]
                told = tell([None if v is None else v[rows] for v in z], subset)
                out = out.index_put((rows,), told)
        return out

    def scores(self, x: Tensor, present: Tensor | None) -> tuple[list, Tensor]:
        """What the parts read, by modality `(B, q)` or None, and what each cell has `(B, M)`."""
        names = self.model.modalities_
        z, read = [None] * len(names), torch.zeros(len(names), dtype=torch.bool, device=self.device)
        read[self.sources] = True
        for i, values in zip(self.sources, x.split(self.widths, 1), strict=True):
            z[i], its = values, self.model.components_[names[i]]
            if not isinstance(its, Features):
                z[i] = (values - self._tensor(its.mean)) @ self._tensor(its.axes).T / its.scale
        return z, read.expand(len(x), -1) if present is None else present & read

    def network_inputs(self, z: list) -> list:
        """Scores as the network reads them, `(1, B, q)` by modality."""
        sizes = self.network.n_features
        return [None if v is None else v[None, :, :n] for v, n in zip(z, sizes, strict=True)]

    def _groups(self, z: list, subset: tuple[int, ...]) -> Tensor:
        w = self._weight()
        logs = z[subset[0]].new_zeros(len(z[subset[0]]), len(self.model.groups_))
        if w > 0:
            logs = logs + w * self._expert_groups(self.network_inputs(z), subset)
        if w < 1:
            logs = logs + (1 - w) * self._linear_groups(z, subset)
        logs = logs + self._tensor(self.model.rare_)
        return (logs - logs.mean(1, keepdim=True))[:, self.columns]

    def _translation(self, z: list, subset: tuple[int, ...]) -> Tensor:
        names, total = self.model.modalities_, 0.0
        target, sources = names[self.target], [names[j] for j in subset]
        its = self.model.components_[target]
        for share, j in zip(self.model.shares(target, sources), subset, strict=True):
            w, told = self._weight(target, names[j]), z[j].new_zeros(len(z[j]), its.n_told)
            if w > 0:
                told = told + w * self._expert_pair(z, j, its.n_told)
            if w < 1:
                told = told + (1 - w) * self._linear_pair(z[j], target, names[j])
            total = total + float(share) * told
        if isinstance(its, Features):
            return total[:, self.columns]
        axes, mean = self._tensor(its.axes)[: its.n_told], self._tensor(its.mean)
        return its.scale * total @ axes[:, self.columns] + mean[self.columns]

    def _weight(self, *pair: str) -> float:
        """What the experts count for: in groups, or in one (target, source)."""
        if self.experts is None or self.linear is None:
            return float(self.experts is not None)
        return self.model.weight(*pair)

    def _expert_groups(self, x: list, subset: tuple[int, ...]) -> Tensor:
        if self.experts.published:
            shown = torch.zeros(1, x[subset[0]].shape[1], len(x), device=self.device).bool()
            shown[..., list(subset)] = True
            return self.network.group_logits(self.network.encode(x, shown))[0]
        views = self.experts.views_of_members(x, subset)
        logs = views.logsumexp(1) - math.log(views.shape[1])  # (views, B, C)
        return self._fused(logs, self.experts.fusion_.get(subset))

    def _expert_pair(self, z: list, source: int, n_told: int) -> Tensor:
        x = self.network_inputs(z)[source]
        there = torch.ones(1, x.shape[1], dtype=torch.bool, device=self.device)
        told = self.network.translate(x, there, self.target, source).mean(0)
        return nn.functional.pad(told, (0, n_told - told.shape[1]))

    def _linear_groups(self, z: list, subset: tuple[int, ...]) -> Tensor:
        logs = []
        for head in self.linear.heads_:
            if set(head.reads) <= set(subset):
                inputs = torch.cat([z[i][:, :HEAD_COMPONENTS] for i in head.reads], 1)
                logits = inputs @ self._tensor(head.weights) + self._tensor(head.bias)
                logs.append(logits.log_softmax(1))
        return self._fused(torch.stack(logs), self.linear.fusion_.get(subset))

    def _fused(self, logs: Tensor, weights: np.ndarray | None) -> Tensor:
        """Views `(V, B, C)` weighed into one, `(B, C)`."""
        weights = np.full(len(logs), 1 / len(logs)) if weights is None else weights
        return torch.einsum("v,vbc->bc", self._tensor(weights), logs).log_softmax(1)

    def _linear_pair(self, z: Tensor, target: str, source: str) -> Tensor:
        linear, *kernels, bias = self.linear.maps_[target, source]
        total = z @ self._tensor(linear) + self._tensor(bias)
        maps = zip(self.linear.kernels_[source], KERNEL_COMPONENTS, kernels, strict=True)
        for kernel, q, weights in maps:
            landmarks = self._tensor(kernel.components_)
            squared = (z[:, None, :q] - landmarks).square().sum(2)
            root = self._tensor(kernel.normalization_).T @ self._tensor(weights)
            total = total + torch.exp(-kernel.gamma * squared) @ root
        return total

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(values, np.float32), device=self.device)

    # --- cells ---

    def batches(self, mdata: MuData):
        """Cells as `(x, present)`: features `(B, F)`, 0 where there are none; `(B, M)` bool."""
        matrices, has = self.model._matrices(mdata, self.modalities)
        names, nowhere = self.model.modalities_, np.zeros(mdata.n_obs, bool)
        present = np.stack([has.get(name, nowhere) for name in names], 1)
        cells = Cells([matrices.get(name) for name in names], present, device=self.device)
        for batch in cells.batches(BATCH):
            yield torch.cat([batch.x[i][0] for i in self.sources], 1), batch.present[0]

    def inputs(self, mdata: MuData) -> Tensor:
        """All cells at once `(N, F)`; a `DataError` where a cell lacks a source."""
        x, present = (torch.cat(parts) for parts in zip(*self.batches(mdata), strict=True))
        for i, name in zip(self.sources, self.modalities, strict=True):
            if not present[:, i].all():
                raise DataError(
                    f"modality {name!r} is missing in some cells: this explanation needs cells "
                    "with every modality it reads; select those, or leave it out of source"
                )
        return x

    def mean(self, background: MuData | None = None) -> Tensor:
        """Give the baseline: the mean `(F,)` over the cells of `background` that have a source.

        Default: over the cells that the components were fitted to, where the model reads these.
        """
        if background is None:
            its = [self.model.components_[name] for name in self.modalities]
            if any(isinstance(part, Features) for part in its):
                raise ValueError("this model stores no training mean: pass background=split.train")
            return torch.cat([self._tensor(part.mean) for part in its])
        total, count = 0.0, 0
        for x, present in self.batches(background):
            total, count = total + x.sum(0), count + self._there(present).sum(0)
        return total / count.clamp(min=1)

    def baseline(self, x: Tensor, present: Tensor, mean: Tensor) -> Tensor:
        """Where cells are held against `(B, F)`: the mean; themselves in what they lack."""
        return torch.where(self._there(present), mean, x)

    def _there(self, present: Tensor) -> Tensor:
        """Which features cells have, `(B, F)` bool."""
        shown = zip(self.sources, self.widths, strict=True)
        return torch.cat([present[:, i, None].expand(-1, n) for i, n in shown], 1)

    def by_modality(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Values `(..., F)` of all features, cut into those of each modality."""
        parts = np.split(values, np.cumsum(self.widths)[:-1], axis=-1)
        return dict(zip(self.modalities, parts, strict=True))


def _index(known: Sequence[str], wanted: Sequence[str], what: str) -> list[int]:
    at = pd.Index(known).astype(str).get_indexer(wanted)
    if (at < 0).any():
        expect_known(what, wanted[at.argmin()], known)
    return at.tolist()
