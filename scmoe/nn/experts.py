"""The experts: E two-layer perceptrons, each token through k of them.

Three ways to compute the same, held against a float64 oracle in the tests:

``grouped``
    Tokens sorted by expert, one grouped matrix product a layer: no padding is computed, and where
    the device has a kernel for it the host never learns how many tokens an expert got.
``dense``
    Every token through every expert in two plain products, the gates of experts not chosen being 0.
    More arithmetic, hardly any launches, static shapes.
``fastmoe``
    ``grouped`` with FastMoE's kernel, where its ``fmoe`` package is installed; CUDA, float32.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BACKENDS = ("grouped", "dense", "fastmoe")
FASTEST = Path(__file__).with_name("fastest.json")
DENSE_ENTRIES = 1 << 27  # hidden units of all experts, half a gigabyte


class Experts(nn.Module):
    """Sparse mixture of two-layer perceptrons ``d -> hidden -> d`` with GELU.

    No token is dropped, whatever the router does. Under autocast the products run in its type and
    the parameters keep theirs. ``backend`` is "auto" (by :func:`fastest`), or one of ``BACKENDS``.

    Parameters
    ----------
    fastmoe_init
        Start as upstream FastMoE does: Kaiming on a 3-d tensor, so that the bound is
        ``sqrt(out features)`` too small; biases zero.
    members
        K, each with ``n_experts`` experts of its own: all are one grouped product.
    """

    def __init__(
        self, n_experts: int, d: int, hidden: int, fastmoe_init: bool = False, members: int = 1
    ):
        super().__init__()
        self.n_experts, self.members, self.backend = n_experts, members, "auto"
        n = members * n_experts
        self.w1 = nn.Parameter(torch.empty(n, hidden, d))
        self.b1 = nn.Parameter(torch.zeros(n, hidden))
        self.w2 = nn.Parameter(torch.empty(n, d, hidden))
        self.b2 = nn.Parameter(torch.zeros(n, d))
        for weight in (self.w1, self.w2):
            _, n_out, n_in = weight.shape
            bound = 1 / math.sqrt(n_in * n_out if fastmoe_init else n_in)
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of each token's experts, ``(K, ..., d)`` like the tokens ``x``.

        ``experts``, each at most once a token, and their gates ``weights`` are ``(K, ..., k)``.
        """
        tokens, chosen, backend = self._prepared(x, experts)
        gates = weights.reshape(chosen.shape)
        if backend == "dense":
            mixed = self._dense(tokens, chosen, gates.to(tokens.dtype))
        else:
            outputs, rows = self._sorted(tokens, chosen, backend)
            mixed = _Collect.apply(outputs, gates.to(outputs.dtype), rows)
        return mixed.view(x.shape)

    def each(self, x: Tensor, experts: Tensor) -> Tensor:
        """What each chosen expert makes of its token, before the gate: ``(K, ..., k, d)``."""
        tokens, chosen, backend = self._prepared(x, experts)
        outputs, rows = self._sorted(tokens, chosen, "grouped" if backend == "dense" else backend)
        return outputs.index_select(0, rows.back.flatten()).view(*experts.shape, -1)

    def _prepared(self, x, experts):
        """Tokens ``(T, d)``, their experts ``(T, k)`` numbered over members, and the backend."""
        if self.members > 1:
            first = torch.arange(self.members, device=x.device) * self.n_experts
            experts = experts + first.view(-1, *[1] * (experts.ndim - 1))
        kind, chosen = x.device.type, experts.flatten(0, -2)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        tokens, backend = x.reshape(-1, x.shape[-1]).to(dtype), self.backend
        if backend == "auto":
            (n, d), k = tokens.shape, chosen.shape[1]
            backend = fastest(kind, dtype, n, self.members * self.n_experts, k, d)
        if backend not in BACKENDS:
            raise ValueError(f"backend={backend!r} must be 'auto' or one of {', '.join(BACKENDS)}.")
        return tokens, chosen, backend

    def _sorted(self, x, experts, backend):
        """Outputs by expert ``(R, d)``, and where to find a token's."""
        rows = _rows(experts, len(self.w1), padded=x.device.type == "cpu" and x.dtype.itemsize < 4)
        inputs = _Spread.apply(x, rows)
        linear = _fastmoe_linear if backend == "fastmoe" else _Grouped.apply
        hidden = F.gelu(linear(inputs, self.w1, self.b1, rows))
        return linear(hidden, self.w2, self.b2, rows), rows

    def _dense(self, x, experts, gates):
        """Every token through all experts of its member; gates of those not chosen are 0."""
        k, e, (_, hidden, d) = self.members, self.n_experts, self.w1.shape
        w1, b1, w2, b2 = (p.to(x.dtype) for p in self.parameters())
        experts, gates = (v.view(k, -1, v.shape[1]) for v in (experts % e, gates))
        gates = x.new_zeros(k, len(x) // k, e).scatter(2, experts, gates)
        w1 = w1.view(k, e * hidden, d).transpose(1, 2)
        first = torch.baddbmm(b1.view(k, 1, e * hidden), x.view(k, -1, d), w1)
        inner = F.gelu(first).view(k, -1, e, hidden) * gates[..., None]
        w2 = w2.view(k, e, d, hidden).transpose(2, 3).reshape(k, e * hidden, d)
        return (inner.flatten(2) @ w2 + gates @ b2.view(k, e, d)).flatten(0, 1)


@cache
def fastest(
    device: str, dtype: torch.dtype, n_tokens: int, n_experts: int, top_k: int, d: int
) -> str:
    """Name of the backend that was fastest for the nearest shape measured.

    ``python -m benchmarks experts --choose`` writes ``fastest.json``. Where nothing was measured
    it is by reasoning: on CUDA a grouped float32 product makes the host wait for the sizes of the
    groups, dense ones do not, and their extra arithmetic is cheap while it fits.
    """
    if d * dtype.itemsize % 16:  # the grouped kernel wants rows that start at multiples of 16 bytes
        return "dense"
    name, measured = str(dtype).removeprefix("torch."), json.loads(FASTEST.read_text())["rows"]
    rows = [r for r in measured if (r["device"], r["dtype"]) == (device, name)]
    if not rows:
        fits = n_tokens * n_experts * 2 * d <= DENSE_ENTRIES
        return "dense" if device == "cuda" and dtype == torch.float32 and fits else "grouped"
    shape = {"tokens": n_tokens, "experts": n_experts, "k": top_k, "width": d}

    def distance(row):
        return sum(math.log(row[key] / value) ** 2 for key, value in shape.items())

    return min(rows, key=distance)["backend"]


class _Rows(NamedTuple):
    """Tokens in the order of their experts; R rows, T*k or, with padding, some more."""

    source: Tensor  # (R,) token of each row
    group: Tensor  # (R,) expert of each row, increasing
    counts: Tensor  # (E,) rows of each expert
    back: Tensor  # (T, k) row of each token's k-th expert


def _rows(experts: Tensor, n_experts: int, padded: bool) -> _Rows:
    """Sort tokens by expert.

    ``padded`` rounds each expert's rows up to one of few sizes, by an eighth at most: a CPU
    compiles a bf16 product for every size it meets, which takes longer than the product. Rows that
    pad belong to token 0, have no gate and are not read.
    """
    flat, k, device = experts.reshape(-1), experts.shape[1], experts.device
    group, order = flat.sort(stable=True)
    # not bincount: it makes a GPU's host wait, and its order of summation there is not fixed
    ends = torch.searchsorted(group, torch.arange(n_experts, device=device), right=True)
    counts = ends.diff(prepend=ends.new_zeros(1))
    source, place = order // k, torch.arange(len(flat), device=device)
    if padded:
        room = torch.tensor([_rounded(n) for n in counts.tolist()])
        place = place + ((room - counts).cumsum(0) - (room - counts))[group]
        source = torch.zeros(int(room.sum()), dtype=torch.long).index_copy_(0, place, source)
        group = torch.repeat_interleave(torch.arange(n_experts), room, output_size=len(source))
        counts = room
    back = torch.empty_like(flat).index_copy_(0, order, place).view_as(experts)
    return _Rows(source, group, counts, back)


def _rounded(n: int) -> int:
    """``n`` rounded up to 4 significant bits, and to a multiple of 16."""
    unit = max(16, 1 << max(n.bit_length() - 4, 0))
    return -(-n // unit) * unit


class _Spread(torch.autograd.Function):
    """Each token k times, in the order of experts; the gradient is a sum in a fixed order."""

    @staticmethod
    def forward(ctx, x, rows):
        ctx.back = rows.back
        return x.index_select(0, rows.source)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return _weighted_sum(grad, ctx.back), None


class _Collect(torch.autograd.Function):
    """Gated sum of each token's k outputs."""

    @staticmethod
    def forward(ctx, outputs, weights, rows):
        ctx.save_for_backward(outputs, weights)
        ctx.rows = rows
        return _weighted_sum(outputs, rows.back, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (outputs, weights), rows = ctx.saved_tensors, ctx.rows
        grad = grad.index_select(0, rows.source)  # (R, d)
        to_gate = torch.linalg.vecdot(grad, outputs)[rows.back]  # (T, k)
        gate = weights.new_zeros(len(outputs))
        gate.index_copy_(0, rows.back.flatten(), weights.flatten())
        return grad * gate[:, None], to_gate, None


def _weighted_sum(rows: Tensor, back: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum over k of ``weights * rows[back]``: ``(T, d)``."""
    if rows.device.type == "cpu":  # one fused pass
        return F.embedding_bag(back, rows, mode="sum", per_sample_weights=weights)
    rows = rows.index_select(0, back.flatten()).view(*back.shape, -1)
    return (rows if weights is None else rows * weights[..., None]).sum(1)


class _Grouped(torch.autograd.Function):
    """Rows of ``x`` ``(R, in)``, by expert, times their expert's weight: ``(R, out)``."""

    @staticmethod
    def forward(ctx, x, weight, bias, rows):
        weight, ends = weight.to(x.dtype), rows.counts.cumsum(0)
        ctx.save_for_backward(x, weight, ends)
        out = F.grouped_mm(x, weight.transpose(1, 2), offs=ends.to(torch.int32))
        return out.add_(bias.to(x.dtype).index_select(0, rows.group))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight, ends = ctx.saved_tensors
        grad, offs = grad.contiguous(), ends.to(torch.int32)
        grad_x, grad_w, grad_b = F.grouped_mm(grad, weight, offs=offs), None, None
        if ctx.needs_input_grad[1]:
            grad_w = F.grouped_mm(grad.T, x, offs=offs).float()
            every = torch.arange(len(grad), device=grad.device)
            starts = F.pad(ends[:-1], (1, 0))
            grad_b = F.embedding_bag(every, grad, starts, mode="sum").float()
        return grad_x, grad_w, grad_b, None


def _fastmoe_linear(x: Tensor, weight: Tensor, bias: Tensor, rows: _Rows) -> Tensor:
    """The same by FastMoE's kernel. Never run where this was written: there was no GPU."""
    from fmoe.linear import MOELinear

    return MOELinear.apply(x.float(), rows.counts.cpu(), weight, bias)
