"""What is timed: epochs, parts of a step, a layer of experts, growing data, steps on a GPU.

Ours stands beside the naive row of the same run. Cells are simulated at the sizes that the
reference trains on, with its architecture, losses and hyper-parameters.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from anndata import AnnData
from mudata import MuData
from threadpoolctl import threadpool_limits
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from benchmarks.common import Pair, rounded
from benchmarks.naive import ddc
from scmoe.config import preset
from scmoe.data import split_mudata
from scmoe.fit import fit, repeatable
from scmoe.model import ScMoE
from scmoe.nn import losses
from scmoe.nn.cells import Cells
from scmoe.nn.experts import FASTEST, Experts
from scmoe.nn.network import Network
from scmoe.record import peak_memory

# of each preset: rounds of `epochs`, epochs a round, rounds of `parts`
ROUNDS = {"dyngen": (4, 3, 9), "dbitseq": (4, 3, 7), "patchseq": (2, 1, 3), "atacseq": (2, 1, 7)}
TARGETS = {  # naive / ours, of an epoch
    ("dyngen", "float32"): 2.0, ("dbitseq", "float32"): 2.0, ("patchseq", "float32"): 2.0,
    ("patchseq", "bf16"): 4.0, ("atacseq", "float32"): 2.5,
}  # fmt: skip
LAYERS = {  # tokens, experts, k, width
    "dyngen": (2048, 16, 2, 64), "dbitseq": (3072, 32, 2, 128),
    "patchseq": (12288, 32, 2, 128), "atacseq": (128, 32, 2, 256),
}  # fmt: skip
TINY = (16, 4, 2, 16)
SWEEP = [
    *product((32, 256, 2048), (1, 2, 4, 8, 16), (1, 2), (64,)),
    *product((256, 2048), (8, 32), (1, 4, 8), (64, 256)),
]
BOTH = ("grouped", "dense")
GAIN = 1.1  # a backend other than grouped has to be this much faster
ATAC = [5_000, 10_000, 20_000, 40_000, 69_249]  # cells
STEPS = 150  # timed of an epoch, at every size the same number, their cells drawn from all


def matmul_rate(dtype=torch.float32, n: int = 2048, rounds: int = 5) -> float:
    """Floating-point operations a second of a large matrix product: the arithmetic bound."""
    a, b = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
    a @ b
    return 2 * n**3 / min(common.seconds(lambda: a @ b) for _ in range(rounds))


@cache
def precisions() -> tuple[str, ...]:
    """What is worth measuring: bf16 only where a processor's products in it are the faster ones.

    One without instructions for it takes a hundred times as long.
    """
    rates = [matmul_rate(kind, n=512, rounds=1) for kind in (torch.float32, torch.bfloat16)]
    return ("float32", "bf16") if rates[1] > rates[0] else ("float32",)


# --- epochs -------------------------------------------------------------------------------------


def epochs(tiny: bool) -> dict[str, pd.DataFrame]:
    """An epoch of the naive row trains once over all cells and evaluates twice, as the reference.

    Ours trains once and validates once, in one call of :func:`scmoe.fit.fit`.
    """
    rows = [row for name in common.SHAPES for row in _epochs_of(name, tiny)]
    return {"Epochs of the four presets": pd.DataFrame(rows)}


def _epochs_of(name: str, tiny: bool) -> list[dict]:
    pair, (rounds, n, _) = common.pair(name, tiny), (1, 1, 1) if tiny else ROUNDS[name]

    def fitted(cells, precision):
        fold = torch.where(torch.arange(len(cells)) < len(pair.train), -1, 0)
        config = pair.config.replace(precision=precision, epochs=n).train
        names = [str(i) for i in pair.network.n_features]
        return lambda: fit(
            pair.network, cells, fold, config, supervised=pair.supervised, modalities=names,
            progress=False,
        )  # fmt: skip

    functions = {
        ("naive", "training"): lambda: [pair.naive.train_epoch() for _ in range(n)],
        ("naive", "epoch"): lambda: [pair.naive.epoch() for _ in range(n)],
    }
    for precision in precisions():
        functions[precision, "training"] = fitted(pair.train, precision)
        functions[precision, "epoch"] = fitted(pair.both, precision)
    taken = common.interleaved(functions, rounds, keep_memory=False)
    taken = {key: value / n for key, value in taken.items()}
    size, rows = pair.config.train.batch_size, []
    xs, labels = next(iter(pair.naive.train_loader))
    pair.naive.network.train()
    with FlopCounterMode(display=False) as counter:  # in the matrix products of a naive step
        pair.naive.step(xs, labels)
    flops = counter.get_total_flops() / len(labels) * len(pair.train)
    for which in ("naive", *precisions()):
        kind = torch.bfloat16 if which == "bf16" else torch.float32
        training, epoch = taken[which, "training"], taken[which, "epoch"]
        whole = -(-len(pair.train) // size)
        steps = whole if which == "naive" else max(1, round(len(pair.train) / size))
        rows.append({
            "preset": name,
            "row": "naive" if which == "naive" else f"scmoe {which}",
            "seconds an epoch": rounded(epoch),
            "of which training": rounded(training),
            "steps": steps,
            "ms a step": rounded(1000 * training / steps),
            "epoch, naive / this": rounded(taken["naive", "epoch"] / epoch),
            "training, naive / this": rounded(taken["naive", "training"] / training),
            "asked": TARGETS.get((name, which)),
            "fraction of arithmetic bound": rounded(flops / matmul_rate(kind) / training),
        })  # fmt: skip
    return rows


# --- parts of a step ----------------------------------------------------------------------------


def parts(tiny: bool) -> dict[str, pd.DataFrame]:
    """Each part goes forward and backward by itself on the input that it has in a step."""
    rows = [row for name in common.SHAPES for row in _parts_of(name, tiny)]
    compiled = [] if tiny else [_compiled("dyngen")]  # the one that launches bind most
    return {
        "A training step by part": pd.DataFrame(rows),
        "torch.compile on a CPU": pd.DataFrame(compiled),
    }


def _parts_of(name: str, tiny: bool) -> list[dict]:
    pair = common.pair(name, tiny)
    calls = {("ours", k): v for k, v in _our_parts(pair).items()}
    calls |= {("naive", k): v for k, v in _naive_parts(pair).items()}
    taken = common.interleaved(calls, 1 if tiny else ROUNDS[name][2])
    taken = {key: 1000 * value for key, value in taken.items()}
    both = taken.pop(("naive", "router and experts"))
    taken["naive", "experts"] = both - taken["naive", "router"]
    taken["naive", "step"] += taken["naive", "batch"]
    names = [k for which, k in calls if which == "ours" and k != "step"]
    for which in ("ours", "naive"):
        taken[which, "the rest"] = taken[which, "step"] - sum(taken[which, k] for k in names)
    return [
        {
            "preset": name,
            "part": k,
            "naive, ms": rounded(taken["naive", k]),
            "scmoe, ms": rounded(taken["ours", k]),
            "scmoe, share": rounded(taken["ours", k] / taken["ours", "step"], 2),
        }
        for k in [*names, "the rest", "step"]
    ]


def _backward(function, *inputs):
    """A call of ``function`` that goes forward and backward."""
    inputs = [
        v.detach().requires_grad_() if torch.is_tensor(v) and v.is_floating_point() else v
        for v in inputs
    ]

    def run():
        out = function(*inputs)
        (out if out.dim() == 0 else out.square().mean()).backward()

    return run


def _seen(module, call) -> dict:
    """What each module below ``module`` is given in one call."""
    given = {}
    hooks = [
        part.register_forward_pre_hook(lambda m, x: given.setdefault(m, []).append(x))
        for part in module.modules()
    ]
    call()
    for hook in hooks:
        hook.remove()
    return given


def _our_parts(pair: Pair) -> dict:
    network, index = pair.network.train(), torch.arange(pair.config.train.batch_size)[None]
    batch, layer = pair.train.batch(index), network.layers[0]
    given = _seen(network, lambda: network.encode(batch.x, batch.present))
    encoded = network.encode(batch.x, batch.present)
    tokens = layer.norm1(encoded.embedded)
    (mixed,), (routed,) = given[layer.experts], given[layer.router]
    step = pair.losses()
    run = pair.step(step)
    run(index)  # leaves gradients
    adam = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    logits, hidden = network.group_logits(encoded), network.clustering_space(encoded)

    def decoders(latents):
        return torch.stack(step.decoder_losses(batch, encoded._replace(latents=latents))).sum()

    return {
        "batch": lambda: pair.train.batch(index),
        "embedding": _backward(lambda: network.tokens(batch.x, batch.present)[0]),
        "attention": _backward(lambda x: layer.attend(x, None), tokens),
        "router": _backward(lambda x, p: layer.router(x, p).weights, *routed),
        "experts": _backward(layer.experts, *mixed),
        "decoders and their loss": _backward(decoders, encoded.latents),
        "clustering loss": _backward(losses.ddc, logits[0], hidden[0]),
        "optimiser": adam.step,
        "step": lambda: run(index),
    }


def _naive_parts(pair: Pair) -> dict:
    row, size = pair.naive, pair.config.train.batch_size
    network, data = row.network.train(), row.train_loader.dataset
    collate = torch.utils.data.default_collate
    xs, labels = collate([data[i] for i in range(size)])
    given = _seen(network, lambda: network(xs))
    moe, gates = network.moe, list(network.moe.gates)
    row.step(xs, labels)
    *_, logits, hidden, _ = network(xs)
    latents = [given[network.decoders[0]][j][0] for j in range(len(xs))]
    patches = [given[e][0][0] for e in network.embed]

    def embedding():
        return torch.cat([e(p) for e, p in zip(network.embed, patches, strict=True)], 1)

    def decoders(*latents):
        pairs = [(d(z), x) for d, x in zip(network.decoders, xs, strict=True) for z in latents]
        return sum(F.mse_loss(y, x) for y, x in pairs)

    def each(calls):
        runs = [_backward(function, *inputs) for function, inputs in calls]
        return lambda: [run() for run in runs]

    return {
        "batch": lambda: collate([data[i] for i in range(size)]),
        "embedding": _backward(embedding),
        "attention": _backward(network.attention, *given[network.attention][0]),
        "router": each([(lambda x, g=g: g(x)[1], x) for g in gates for x in given[g]]),
        "router and experts": each([(moe, x) for x in given[moe]]),
        "decoders and their loss": _backward(decoders, *latents),
        "clustering loss": _backward(
            lambda a, h: ddc(a.softmax(1), h, row.n_groups), logits, hidden
        ),
        "optimiser": row.optimiser.step,
        "step": lambda: row.step(xs, labels),
    }


def _compiled(name: str) -> dict:
    """One preset's step with the losses compiled, against eager."""
    pair = common.pair(name)
    index, step = torch.arange(pair.config.train.batch_size)[None], pair.losses()
    forward, start = torch.compile(lambda i: step(i)[0].sum()), time.perf_counter()
    for _ in range(3):
        forward(index).backward()
    compiling = time.perf_counter() - start
    calls = {
        "eager": lambda: step(index)[0].sum().backward(),
        "compiled": lambda: forward(index).backward(),
    }
    taken = common.interleaved(calls, 9)
    saved = taken["eager"] - taken["compiled"]
    steps = compiling / saved if saved > 0 else float("inf")
    epochs = steps / max(1, round(len(pair.train) / pair.config.train.batch_size))
    return {
        "preset": name,
        "seconds to compile": rounded(compiling),
        **{f"{k}, ms forward and backward": rounded(1000 * v) for k, v in taken.items()},
        "epochs until it pays": rounded(epochs),
        "epochs of the preset": pair.config.train.epochs,
    }


# --- one layer of experts -----------------------------------------------------------------------


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
                part = F.linear(F.gelu(F.linear(x[token], w1, b1)), w2, b2)
                out.index_add_(0, token, (part * weights[token, slot, None]).to(out.dtype))
        return out[None]


def experts(tiny: bool, choose: bool = False, device: str = "cpu") -> dict[str, pd.DataFrame]:
    """Shapes of the presets, and a sweep over tokens, experts, k, width and skew of the router."""
    rate, names = matmul_rate(), ["loop", *BOTH]
    names += [f"{backend} bf16" for backend in BOTH if "bf16" in precisions() or device == "cuda"]
    names += ["fastmoe"] if importlib.util.find_spec("fmoe") and device == "cuda" else []
    layers, sweep = LAYERS, [s for s in dict.fromkeys(SWEEP) if s[1] >= s[2]]
    if tiny:
        layers, sweep = {"dyngen": TINY}, sweep[:2]
    rows, swept = [], []
    for (name, shape), router in product(layers.items(), ("even", "skewed")):
        times = _milliseconds(shape, router, names, 1 if tiny else 5, device)
        tokens, _, k, d = shape  # three products a linear map, two maps
        bound = rounded(1000 * 3 * 2 * (2 * tokens * k * d * 2 * d) / rate)
        rows.append({"preset": name, "router": router, **times, "float32 bound": bound})
    for shape, router in product(sweep, ("even", "skewed")):
        sizes = dict(zip(("tokens", "experts", "k", "width"), shape, strict=True))
        times = _milliseconds(shape, router, names[1:], 1 if tiny else 2, device)
        swept.append({**sizes, "router": router, **times})
    table = pd.DataFrame(swept)
    if choose:
        content = {"made_by": "python -m benchmarks experts --choose", "processor":
                   common.machine()["processor"], "threads": torch.get_num_threads()}  # fmt: skip
        lines = ",\n  ".join(json.dumps(row) for row in winners(table))
        head = json.dumps(content, indent=1)[:-2]
        FASTEST.write_text(f'{head},\n "rows": [\n  {lines}\n ]\n}}\n')
    return {
        "One layer of experts, forward and backward, ms": pd.DataFrame(rows),
        "Sweep over shapes, ms": table,
    }


def _milliseconds(shape, router: str, backends, rounds: int, device: str) -> dict[str, float]:
    """Milliseconds of each ``backend`` or ``backend bf16``, forward and backward, in turn.

    A skewed router chooses expert e with e^-1 times the chance of the first.
    """
    tokens, n_experts, k, d = shape
    torch.manual_seed(0)
    chance = torch.arange(1, n_experts + 1).float().pow(-1.0 if router == "skewed" else 0.0)
    inputs = [torch.randn(tokens, d), torch.multinomial(chance.expand(tokens, -1), k)]
    x, chosen, weights = (v.to(device)[None] for v in [*inputs, torch.rand(tokens, k).softmax(1)])
    calls = {}
    for name in backends:
        backend, _, kind = name.partition(" ")
        module = Experts(n_experts, d, 2 * d).to(device)
        module.backend = "grouped" if backend == "loop" else backend
        module = Loop(module) if backend == "loop" else module
        calls[name] = _pass(module, x, chosen, weights, bf16=kind == "bf16")
    return {k: rounded(1000 * v) for k, v in common.interleaved(calls, rounds).items()}


def _pass(module, x, chosen, weights, bf16: bool):
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    direction = torch.randn_like(x)

    def run():
        module.zero_grad(set_to_none=True)
        x.grad = weights.grad = None
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            out = module(x, chosen, weights)
        out.backward(direction.to(out.dtype))

    return run


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


# --- growing data -------------------------------------------------------------------------------


def scaling(tiny: bool) -> dict[str, pd.DataFrame]:
    """Cells of the ATAC shape (13,634 peaks, 3 % of them open, and 4,000 dense genes).

    Each size in a process of its own, whose peak memory is reported: it holds the cells, the
    network and its optimiser. An epoch's seconds follow from some of its steps.
    """
    sizes, rows = [48, 96] if tiny else ATAC, []
    for n in sizes:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            rows.append(alone.submit(_atac, n, torch.get_num_threads()).result())
    grown = common.slope(sizes, [row["seconds an epoch"] for row in rows])
    rows[-1]["log-log slope of an epoch"] = rounded(grown)
    return {"ATAC + gene at full size": pd.DataFrame(rows)}


def _atac(n_cells: int, threads: int) -> dict:
    torch.set_num_threads(threads)
    config = preset("atacseq", "paper")
    x, labels = common.atac_cells(n_cells)
    size = sum(m.data.nbytes + m.indices.nbytes if hasattr(m, "indptr") else m.nbytes for m in x)
    cells = Cells(x, np.ones((n_cells, 2), bool), labels)
    torch.manual_seed(0)
    n_groups = common.SHAPES["atacseq"].n_groups
    network = Network(config.model, [m.shape[1] for m in x], n_groups)
    pair = Pair(config, None, network, cells, None, True)
    run, steps = pair.step(pair.losses()), min(STEPS, n_cells // 16)
    order = torch.randperm(n_cells)[: 16 * steps].split(16)
    for index in order[:5]:
        run(index[None])
    taken = median(common.seconds(lambda i=index: run(i[None])) for index in order)
    return {
        "cells": n_cells,
        "ms a step of 16 cells": rounded(1000 * taken),
        "seconds an epoch": rounded(taken * n_cells / 16),
        "measured": f"median of {steps} steps",
        "data, GB": rounded(size / 1e9),
        "peak memory, GB": rounded(peak_memory() / 1e9),
    }


# --- several processes --------------------------------------------------------------------------


def processes(tiny: bool) -> dict[str, pd.DataFrame]:
    """The whole fit by one single-threaded process, and by two that share it, in turn.

    5,000 training cells of 1,000 and 14 features; what is saved on the way counts, too.
    """
    n_cells, taken = 200 if tiny else 5_000, {1: [], 2: []}
    for _, n in product(range(1 if tiny else 3), taken):
        spawn = multiprocessing.get_context("spawn")
        with TemporaryDirectory() as folder, ProcessPoolExecutor(n, spawn) as crew:
            took = crew.map(_fitted, range(n), [n] * n, [n_cells] * n, [folder] * n)
            taken[n].append(max(took))
    alone = median(taken[1])
    rows = [
        {"cells": n_cells, "processes": n, "seconds": rounded(median(times)),
         "share of one's time": rounded(median(times) / alone)}
        for n, times in taken.items()
    ]  # fmt: skip
    return {"One model by several processes": pd.DataFrame(rows)}


def _fitted(rank: int, n: int, n_cells: int, folder: str) -> float:
    torch.set_num_threads(1)
    names = [f"cell{i}" for i in range(round(n_cells / 0.8))]  # a fifth is held out to test
    x, labels = common.dense_cells([1000, 14], len(names), 10)
    tables = [pd.DataFrame(m, names).add_prefix(f"{m.shape[1]} ") for m in x]
    mdata = MuData({name: AnnData(table) for name, table in zip("ab", tables, strict=True)})
    mdata.obs["group"] = labels.astype(str)
    split = split_mudata(mdata, "group", test=0.2)
    dist.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=n)
    with threadpool_limits(1):
        return common.seconds(lambda: ScMoE().fit(split, "cpu", False, Path(folder, "state")))


# --- a GPU --------------------------------------------------------------------------------------


def gpu(tiny: bool) -> dict[str, pd.DataFrame]:
    """Steps of the four presets naive, eager, in bf16 and compiled; and the layers of experts.

    ``tiny`` tries the code on a CPU too.
    """
    cuda = torch.cuda.is_available()
    if not (cuda or tiny):
        raise SystemExit("No CUDA device here: nothing was measured. --tiny tries the code.")
    device, rows = "cuda" if cuda else "cpu", []
    for name in common.SHAPES:
        pair = common.pair(name, tiny, device)
        index = torch.arange(pair.config.train.batch_size)[None]
        cells = next(iter(pair.naive.train_loader))
        pair.naive.network.train()
        losses = {"eager": pair.losses(), "eager bf16": pair.losses("bf16")}
        losses |= {"compiled": torch.compile(pair.losses())} if cuda else {}
        steps = {row: pair.step(each) for row, each in losses.items()}
        calls = {"naive": lambda pair=pair, cells=cells: pair.naive.step(*cells)}
        calls |= {row: lambda step=step, i=index: step(i) for row, step in steps.items()}
        with repeatable(pair.train.device):
            taken = common.interleaved(calls, 1 if tiny else 20)
        for row, value in taken.items():
            times = rounded(taken["naive"] / value)
            rows.append({"preset": name, "row": row, "ms a step": rounded(1000 * value),
                         "naive / this": times})  # fmt: skip
    return {"A training step on a GPU": pd.DataFrame(rows)} | experts(tiny, device=device)
