"""One layer of experts, forward and backward, by backend; makes the table that ``auto`` reads.

    python -m benchmarks.experts

Shapes of the four presets, and a sweep over experts, k, width, tokens and skew of the router. With
``--choose`` the sweep's winners are written to scmoe/nn/fastest.json.
"""

from __future__ import annotations

import itertools
import json

import pandas as pd
import torch
from torch import nn

from benchmarks import common
from scmoe.nn.experts import FASTEST, Experts

# tokens, experts, k, width
PRESETS = {
    "dyngen": (2048, 16, 2, 64),
    "dbitseq": (3072, 32, 2, 128),
    "patchseq": (12288, 32, 2, 128),
    "atacseq": (128, 32, 2, 256),
}
SWEEP = [
    *itertools.product((32, 256, 2048), (1, 2, 4, 8, 16), (1, 2), (64,)),
    *itertools.product((256, 2048), (8, 32), (1, 4, 8), (64, 256)),
]
BOTH = ("grouped", "dense")
GAIN = 1.1  # a backend other than grouped has to be this much faster


class Loop(nn.Module):
    """The plain way: one expert after the other."""

    def __init__(self, experts: Experts):
        super().__init__()
        self.experts = experts

    def forward(self, x, experts, weights):
        x, experts, weights = x[0], experts[0], weights[0]
        out = torch.zeros_like(x)
        parameters = (p.unbind() for p in self.experts.parameters())
        for i, (w1, b1, w2, b2) in enumerate(zip(*parameters, strict=True)):
            token, slot = torch.where(experts == i)
            if len(token):
                hidden = nn.functional.gelu(nn.functional.linear(x[token], w1, b1))
                part = nn.functional.linear(hidden, w2, b2)
                out.index_add_(0, token, (part * weights[token, slot, None]).to(out.dtype))
        return out[None]


def routed(tokens, n_experts, k, skew):
    """Expert indices and gates ``(tokens, k)``; skewed: expert e is e^-1 as likely as the first."""
    chance = torch.arange(1, n_experts + 1).float().pow(-1.0 if skew else 0.0)
    experts = torch.multinomial(chance.expand(tokens, -1), k)
    return experts, torch.rand(tokens, k).softmax(1)


def pass_of(module, x, experts, weights, bf16):
    """A call that goes forward and backward once."""
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    direction = torch.randn_like(x)

    def run():
        module.zero_grad(set_to_none=True)
        x.grad = weights.grad = None
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            out = module(x[None], experts[None], weights[None])[0]
        out.backward(direction.to(out.dtype))

    return run


def milliseconds(shape, skew, backends, rounds, device="cpu") -> dict[str, float]:
    """Milliseconds of each ``backend`` or ``backend bf16``, in turn."""
    tokens, n_experts, k, d = shape
    torch.manual_seed(0)
    inputs = [torch.randn(tokens, d), *routed(tokens, n_experts, k, skew)]
    inputs = [v.to(device) for v in inputs]
    calls = {}
    for name in backends:
        backend, _, kind = name.partition(" ")
        module = Experts(n_experts, d, 2 * d).to(device)
        module.backend = "grouped" if backend == "loop" else backend
        module = Loop(module) if backend == "loop" else module
        calls[name] = pass_of(module, *inputs, bf16=kind == "bf16")
    return {k: common.rounded(1000 * v) for k, v in common.interleaved(calls, rounds).items()}


def bound(shape, rate) -> float:
    """Milliseconds of the arithmetic alone: three products a linear map, two maps."""
    tokens, _, k, d = shape
    return common.rounded(1000 * 3 * 2 * (2 * tokens * k * d * 2 * d) / rate)


def winners(table: pd.DataFrame) -> list[dict]:
    """For each shape of the sweep the backend to take, the worse of both routers counting."""
    shape = ["tokens", "experts", "k", "width"]
    kinds = [("float32", ""), ("bfloat16", " bf16")][: 2 if "grouped bf16" in table else 1]
    worst = table.groupby(shape, sort=False)[[b + end for _, end in kinds for b in BOTH]]
    rows = []
    for key, times in worst.max().iterrows():
        for kind, end in kinds:
            wins = GAIN * times[f"dense{end}"] < times[f"grouped{end}"]
            backend = "dense" if wins else "grouped"
            sizes = dict(zip(shape, map(int, key), strict=True))
            rows.append({"device": "cpu", "dtype": kind, **sizes, "backend": backend})
    return rows


def measure(tiny: bool = False, choose: bool = False) -> dict[str, pd.DataFrame]:
    """Tables: the presets' shapes, and the sweep."""
    rate, rows, names = common.matmul_rate(), [], ["loop", *BOTH]
    names += [f"{backend} bf16" for backend in BOTH if "bf16" in common.precisions()]
    shapes = {"dyngen": (16, 4, 2, 16)} if tiny else PRESETS
    for (preset, shape), skew in itertools.product(shapes.items(), (False, True)):
        times = milliseconds(shape, skew, names, 1 if tiny else 5)
        rows.append({"preset": preset, "router": "skewed" if skew else "even", **times,
                     "float32 bound": bound(shape, rate)})  # fmt: skip
    presets, rows = pd.DataFrame(rows), []
    sweep = [s for s in dict.fromkeys(SWEEP) if s[1] >= s[2]]
    for shape, skew in itertools.product(sweep[:2] if tiny else sweep, (False, True)):
        times = milliseconds(shape, skew, names[1:], 1 if tiny else 2)
        sizes = dict(zip(("tokens", "experts", "k", "width"), shape, strict=True))
        rows.append({**sizes, "router": "skewed" if skew else "even", **times})
    table = pd.DataFrame(rows)
    if choose:
        content = {"made_by": "python -m benchmarks.experts --choose", "processor":
                   common.machine()["processor"], "threads": torch.get_num_threads()}  # fmt: skip
        lines = ",\n  ".join(json.dumps(row) for row in winners(table))
        head = json.dumps(content, indent=1)[:-2]
        FASTEST.write_text(f'{head},\n "rows": [\n  {lines}\n ]\n}}\n')
    return {
        "One layer of experts, forward and backward, ms": presets,
        "Sweep over shapes, ms": table,
    }


if __name__ == "__main__":
    common.main("experts", measure, "choose")
