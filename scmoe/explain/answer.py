"""What is explained: one number per cell, as a function of the features it was read from.

For a group that number is its **centred logit**: the logit minus the mean logit of all groups, the
log-odds of the group against a typical one (the geometric mean of all). The normaliser of the
softmax drops out of it: it does not saturate where a cell is sure, and the linear path is linear in
the features. For a translation the number is the translated feature, scaled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mudata import MuData
from torch import Tensor, nn

from scmoe.data import DataError

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
    modalities, outputs : names of what is read and of the K answers.
    """

    def __init__(
        self,
        model,
        target: str = "group",
        outputs: Sequence[str] | None = None,
        source: str | Sequence[str] | None = None,
    ):
        super().__init__()
        names, self.network, self.model = model.modalities_, model.network_.eval(), model
        self.target = None if target == "group" else _index(names, [target], "target")[0]
        source = [source] if isinstance(source, str) else source
        self.modalities = [m for m in names if m != target] if source is None else list(source)
        self.sources = _index(names, self.modalities, "source")
        if self.target in self.sources:
            raise ValueError(f"target {target!r} is also a source; it is never read")
        known = model.groups_ if self.target is None else list(model.transform_.features[target])
        self.outputs = known if outputs is None else [str(name) for name in outputs]
        self.columns = _index(known, self.outputs, "output")

    def forward(self, *x: Tensor, present: Tensor | None = None) -> Tensor:
        """Answers `(B, K)`; `present` `(B, M)` bool, default every source of every cell."""
        return self.linear_part(*x, present=present) + self.network_part(*x, present=present)

    def linear_part(self, *x: Tensor, present: Tensor | None = None) -> Tensor:
        """What the linear path contributes, `(B, K)`."""
        full, present = self._arguments(x, present)
        linear = self.network.linear
        if linear is None or (self.target is None and not linear.has_groups):
            return x[0].new_zeros(len(x[0]), len(self.columns))
        if self.target is None:
            return self._centred(linear.group_logits(full, present) + linear.rare)
        return linear.translate(full, present, self.target)[:, self.columns]

    def network_part(self, *x: Tensor, present: Tensor | None = None) -> Tensor:
        """What attention and experts contribute, `(B, K)`."""
        network = self.network
        if self.target is None:
            return network.group_scale * self.opinion(*x, present=present)
        full, present = self._arguments(x, present)
        linear, network.linear = network.linear, None
        try:
            return network.translate(full, present, self.target)[:, self.columns]
        finally:
            network.linear = linear

    def opinion(self, *x: Tensor, present: Tensor | None = None) -> Tensor:
        """The network's own centred logits `(B, K)`, however much of them the model uses."""
        full, present = self._arguments(x, present)
        return self._centred(self.network.group_logits(self.network.encode(full, present)))

    def _arguments(self, x, present):
        n_modalities = len(self.network.n_features)
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
        cells = self.model.tensors(mdata, self.modalities)
        for batch in cells.batches(size):
            yield [batch.x[i] for i in self.sources], batch.present

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

        Default: over the cells that the linear path was fitted to.

        Raises
        ------
        ValueError
            Without background, when the model has no linear path, which stores the training mean.
        """
        if background is None:
            linear = self.network.linear
            if linear is None:
                raise ValueError("this model stores no training mean: pass background=split.train")
            return [linear.get_buffer(f"mean_{i}") for i in self.sources]
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
