"""Cells on a device, ready to be cut into batches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """Some cells for each of K members. ``M`` modalities; one not handed over is ``None``."""

    x: list[Tensor | None]  # per modality (K, B, F_m) float32, zeros where the cell lacks it
    present: Tensor  # (K, B, M) bool
    labels: Tensor | None  # (K, B) long; -1 where unknown


class SparseRows:
    """A CSR matrix on a device whose rows are gathered into dense batches."""

    def __init__(self, matrix, present: np.ndarray, device):
        self.width = matrix.shape[1]
        self.starts = torch.as_tensor(matrix.indptr.astype(np.int64))  # kept on the host: no sync
        self.columns = torch.as_tensor(matrix.indices.astype(np.int32)).to(device)
        values = matrix.data.astype(np.float32)
        values[np.repeat(~present, np.diff(matrix.indptr))] = 0
        self.values = torch.as_tensor(values).to(device)

    def rows(self, index: Tensor) -> Tensor:
        """Dense ``(K, B, F)`` rows; ``index`` ``(K, B)`` lies on the host."""
        shape, index, device = index.shape, index.flatten(), self.values.device
        lengths = self.starts[index + 1] - self.starts[index]
        total = int(lengths.sum())
        row = torch.repeat_interleave(torch.arange(len(index)), lengths, output_size=total)
        first = lengths.cumsum(0) - lengths
        source = (torch.arange(total) - first[row] + self.starts[index][row]).to(device)
        out = torch.zeros(len(index), self.width, device=device)
        out[row.to(device), self.columns[source].long()] = self.values[source]
        return out.view(*shape, -1)


class Cells:
    """All cells of a split on one device.

    ``matrices`` has for each modality a dense array or CSR matrix ``(N, F_m)``, or ``None`` when
    not handed over; rows of cells that lack the modality, by ``present`` ``(N, M)`` bool, are
    ignored, whatever stands there. ``labels`` are ``(N,)`` group numbers, -1 where unknown.
    """

    def __init__(self, matrices: list, present: np.ndarray, labels=None, device="cpu"):
        self.matrices = [
            None if m is None else _to_device(m, present[:, i], device)
            for i, m in enumerate(matrices)
        ]
        self.device = torch.device(device)
        self.present = torch.as_tensor(present, dtype=torch.bool, device=device)
        self.labels = labels
        if labels is not None:
            self.labels = torch.as_tensor(labels, dtype=torch.long, device=device)

    def __len__(self) -> int:
        """Count the cells."""
        return len(self.present)

    def batch(self, index: Tensor) -> Batch:
        """The cells at ``index`` (row numbers ``(K, B)``, on the host) as dense tensors."""
        on_device = index.to(self.device)
        x = [
            None if m is None else m.rows(index) if isinstance(m, SparseRows) else m[on_device]
            for m in self.matrices
        ]
        labels = None if self.labels is None else self.labels[on_device]
        return Batch(x, self.present[on_device], labels)

    def batches(self, size: int):
        """All cells in order, ``size`` at a time, the same for all members (K = 1)."""
        for index in torch.arange(len(self)).split(size):
            yield self.batch(index[None])


def _to_device(matrix, present, device):
    if hasattr(matrix, "indptr"):
        return SparseRows(matrix.tocsr(), present, device)
    if not present.all():
        matrix = np.where(present[:, None], matrix, np.float32(0))
    return torch.as_tensor(np.asarray(matrix, dtype=np.float32)).to(device)
