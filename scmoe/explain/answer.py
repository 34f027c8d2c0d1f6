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
import torch
from mudata import MuData
from torch import Tensor, nn

from scmoe.baselines.linear import HEAD_COMPONENTS, KERNEL_COMPONENTS
from scmoe.data import DataError
from scmoe.networks import Features
from scmoe.nn.cells import Cells

BATCH = 256  # cells explained together


class Answer(nn.Module):
    """A model's answers about cells: `(B, F_1), (B, F_2), ... -> (B, K)`.

    Parameters
    ----------
    model
        A fitted `scmoe.ScMoE`.
    target
        `"group"`, or the modality that is translated to.
    outputs
        Names of groups, or of features of the target modality; default all.
    source
        Modalities to read; default all but the target.

    Attributes
    ----------
    modalities, widths, outputs : names of what is read, its features, names of the K answers.
    """

    def __init__(
        self,
        model,
        target: str = "group",
        outputs: Sequence[str] | None = None,
        source: str | Sequence[str] | None = None,
    ):
        super().__init__()
        self.model = model
        parts = {
            "experts": getattr(model, "experts", model),
            "linear": getattr(model, "linear", None),
        }
        if not hasattr(parts["experts"], "network_"):
            parts = {"experts": None, "linear": model}
        self.experts, self.linear = parts["experts"], parts["linear"]
        self.network = None if self.experts is None else self.experts.network_.eval()
        self.device = torch.device("cpu" if self.network is None else self.network.position.device)
        names = model.modalities_
        self.target = None if target == "group" else _index(names, [target], "target")[0]
        source = [source] if isinstance(source, str) else source
        self.modalities = [m for m in names if m != target] if source is None else list(source)
        self.sources = _index(names, self.modalities, "source")
        if self.target in self.sources:
            raise ValueError(f"target {target!r} is also a source; it is never read")
        known = model.groups_ if self.target is None else list(model.transform_.features[target])
        self.widths = [len(model.transform_.features[name]) for name in self.modalities]
        self.outputs = known if outputs is None else [str(name) for name in outputs]
        self.columns = _index(known, self.outputs, "output")

    def forward(self, *x: Tensor, present: Tensor | None = None) -> Tensor:
        """Answers `(B, K)`; `present` `(B, M)` bool, default every source of every cell."""
        return self._answers(self._mixed, x, present)

    def network_part(self, *x: Tensor, present: Tensor | None = None) -> Tensor:
        """What the experts alone would answer, `(B, K)`, weighed as the model weighs them."""
        return self._answers(self._by_experts, x, present)

    def _answers(self, of, x, present) -> Tensor:
        """Answers of `of(z, subset)`, which is given the scores of cells with these modalities."""
        full, present = self._arguments(x, present)
        z = [None if v is None else self._scores(i, v) for i, v in enumerate(full)]
        out = x[0].new_zeros(len(x[0]), len(self.columns))
        for pattern in present.unique(dim=0):
            subset = tuple(pattern.nonzero()[:, 0].tolist())
            if not subset:
                continue
            rows = (present == pattern).all(1).nonzero()[:, 0]
            told = of([None if v is None else v[rows] for v in z], subset)
            out = out.index_put((rows,), told)
        return out

    def _scores(self, i: int, x: Tensor) -> Tensor:
        """What the parts read of scaled features `(B, F)`: components, or features themselves."""
        its = self.model.components_[self.model.modalities_[i]]
        if isinstance(its, Features):
            return x
        mean, axes = self._map(i)
        return (x - mean) @ axes.T / its.scale

    def _map(self, i: int) -> tuple[Tensor, Tensor]:
        its = self.model.components_[self.model.modalities_[i]]
        return self._tensor(its.mean), self._tensor(its.axes)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(values, np.float32), device=self.device)

    def _weight(self, source: int | None) -> float:
        """What the experts count for."""
        if self.experts is None or self.linear is None:
            return float(self.experts is not None)
        names = self.model.modalities_
        return self.model.weight(*([] if source is None else [names[self.target], names[source]]))

    def _by_experts(self, z: list, subset: tuple[int, ...]) -> Tensor:
        return self._told(z, subset, lambda w, ours, other: w * ours, linear=False)

    def _mixed(self, z: list, subset: tuple[int, ...]) -> Tensor:
        return self._told(z, subset, lambda w, ours, other: w * ours + (1 - w) * other)

    def _told(self, z, subset, mix, linear: bool = True) -> Tensor:
        """Answers of both parts to cells that have the modalities `subset`, put together."""
        if self.target is None:
            w = self._weight(None)
            ours = self._expert_groups(z, subset) if w > 0 else 0.0
            other = self._linear_groups(z, subset) if linear and w < 1 else 0.0
            total = mix(w, ours, other)
            if linear:
                total = total + self._tensor(self.model.rare_)
            return self._centred(total)
        names, target = self.model.modalities_, self.model.modalities_[self.target]
        shares = self.model.shares(target, [names[j] for j in subset])
        total = 0.0
        for share, j in zip(shares, subset, strict=True):
            w = self._weight(j)
            ours = self._expert_pair(z[j], j) if w > 0 else 0.0
            other = self._linear_pair(z[j], j) if linear and w < 1 else 0.0
            total = total + float(share) * mix(w, ours, other)
        its = self.model.components_[target]
        if isinstance(its, Features):
            return total[:, self.columns]
        mean, axes = self._map(self.target)
        told = its.scale * total @ axes[: total.shape[1], self.columns]
        return told + mean[self.columns] if linear else told

    def _expert_groups(self, z: list, subset: tuple[int, ...]) -> Tensor:
        read = [
            None if v is None else v[None, :, : self.network.n_features[i]] for i, v in enumerate(z)
        ]
        if self.experts.published:
            shown = torch.zeros(1, len(z[subset[0]]), len(z), dtype=torch.bool, device=self.device)
            shown[..., list(subset)] = True
            return self.network.group_logits(self.network.encode(read, shown))[0]
        views = self.experts.views_of_members(read, subset)
        logs = views.logsumexp(1) - math.log(views.shape[1])  # (views, B, C)
        weights = self._tensor(self.experts.fusion_.get(subset, np.full(len(logs), 1 / len(logs))))
        return torch.einsum("v,vbc->bc", weights, logs).log_softmax(1)

    def _expert_pair(self, z: Tensor, source: int) -> Tensor:
        read = z[None, :, : self.network.n_features[source]]
        there = torch.ones(1, len(z), dtype=torch.bool, device=self.device)
        told = self.network.translate(read, there, self.target, source).mean(0)
        n = self.model.components_[self.model.modalities_[self.target]].n_told
        return nn.functional.pad(told, (0, n - told.shape[1]))

    def _linear_groups(self, z: list, subset: tuple[int, ...]) -> Tensor:
        logs = []
        for head in self.linear.heads_:
            if set(head.reads) <= set(subset):
                inputs = torch.cat([z[i][:, :HEAD_COMPONENTS] for i in head.reads], 1)
                logits = inputs @ self._tensor(head.weights) + self._tensor(head.bias)
                logs.append(logits.log_softmax(1))
        weights = self.linear.fusion_.get(subset, np.full(len(logs), 1 / len(logs)))
        total = torch.einsum("v,vbc->bc", self._tensor(weights), torch.stack(logs))
        return total.log_softmax(1)

    def _linear_pair(self, z: Tensor, source: int) -> Tensor:
        names = self.model.modalities_
        linear, *kernels, bias = self.linear.maps_[names[self.target], names[source]]
        total = z @ self._tensor(linear) + self._tensor(bias)
        for kernel, q, weights in zip(
            self.linear.kernels_[names[source]], KERNEL_COMPONENTS, kernels, strict=True
        ):
            landmarks = self._tensor(kernel.components_)
            squared = (z[:, None, :q] - landmarks).square().sum(2)
            root = self._tensor(kernel.normalization_).T @ self._tensor(weights)
            total = total + torch.exp(-kernel.gamma * squared) @ root
        return total

    def opinion(self, *x: Tensor, present: Tensor | None = None) -> Tensor:
        """The experts' own centred group log-odds `(B, K)`, however much the model uses them."""
        return self._answers(
            lambda z, subset: self._centred(self._expert_groups(z, subset)), x, present
        )

    def _arguments(self, x, present):
        n_modalities = len(self.model.modalities_)
        full: list = [None] * n_modalities
        for i, values in zip(self.sources, x, strict=True):
            full[i] = values
        read = torch.zeros(n_modalities, dtype=torch.bool, device=x[0].device)
        read[self.sources] = True
        present = read.expand(len(x[0]), -1) if present is None else present & read
        return full, present

    def _centred(self, logits: Tensor) -> Tensor:
        return (logits - logits.mean(1, keepdim=True))[:, self.columns]

    def batches(self, mdata: MuData, size: int = BATCH):
        """Cells as `(x, present)`: dense features `(B, F)` of each source, and `(B, M)` bool."""
        x, has = self.model._matrices(mdata, self.modalities)
        present = np.zeros((mdata.n_obs, len(self.model.modalities_)), bool)
        for i, name in zip(self.sources, self.modalities, strict=True):
            present[:, i] = has[name]
        cells = Cells(
            [x[name] for name in self.modalities], present[:, self.sources], device=self.device
        )
        for start in range(0, mdata.n_obs, size):
            rows = torch.arange(start, min(start + size, mdata.n_obs))
            there = torch.as_tensor(present[rows.numpy()], device=self.device)
            yield [v[0] for v in cells.batch(rows[None]).x], there

    def inputs(self, mdata: MuData) -> list[Tensor]:
        """All cells at once, for methods that need every source of every cell.

        Raises
        ------
        DataError
            When a cell lacks a source.
        """
        parts = list(self.batches(mdata))
        for i, name in zip(self.sources, self.modalities, strict=True):
            if not all(bool(present[:, i].all()) for _, present in parts):
                raise DataError(
                    f"modality {name!r} is missing in some cells: this explanation needs cells "
                    "with every modality it reads; select those, or leave it out of source"
                )
        return [torch.cat([x[j] for x, _ in parts]) for j in range(len(self.sources))]

    def means(self, background: MuData | None = None) -> list[Tensor]:
        """Give the baseline: each source's mean over `background`, `(F,)`.

        Default: over the cells that the components were fitted to.

        Raises
        ------
        ValueError
            Without background, when the model reads features and stores no mean of theirs.
        """
        if background is None:
            its = [self.model.components_[name] for name in self.modalities]
            if any(isinstance(part, Features) for part in its):
                raise ValueError("this model stores no training mean: pass background=split.train")
            return [self._tensor(part.mean) for part in its]
        sums, counts = [0.0] * len(self.sources), [0] * len(self.sources)
        for x, present in self.batches(background):
            for j, i in enumerate(self.sources):
                sums[j] = sums[j] + torch.where(present[:, i, None], x[j], 0.0).sum(0)
                counts[j] += int(present[:, i].sum())
        return [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]


def _index(known: Sequence[str], wanted: Sequence[str], what: str) -> list[int]:
    known = [str(name) for name in known]
    place = {name: i for i, name in enumerate(known)}
    if unknown := [name for name in wanted if name not in place]:
        shown = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
        raise ValueError(f"unknown {what} {unknown[0]!r}; known: {shown}")
    return [place[name] for name in wanted]
