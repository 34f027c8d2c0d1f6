"""Steps of the four presets on a GPU: naive, eager, compiled, as a CUDA graph, with FastMoE.

    python -m benchmarks.gpu          # under eight minutes on one GPU
    python -m benchmarks.gpu --tiny   # tries the code, on a CPU too (without the graph)

A step that fails leaves its error in the table instead of stopping the rest.
"""

from __future__ import annotations

import importlib.util
import sys

import pandas as pd
import torch

from benchmarks import common, experts
from scmoe.fit import _repeatable, clip_gradients
from scmoe.nn.cells import Batch
from scmoe.step import Step

TARGET = {"dyngen": 10.0, "dbitseq": 10.0}  # naive / ours
PASSES = 10  # over each parameter in a step: forward, backward, gradient, and seven of Adam's
WARM_UP = 3


class Held:
    """One batch at a fixed place in memory, which a graph reads again and again."""

    def __init__(self, cells, index):
        self.cells, self.device = cells, cells.device
        self.held = cells.batch(index)

    def batch(self, index) -> Batch:
        """The held batch, whatever is asked for."""
        return self.held

    def load(self, index) -> None:
        """Put other cells into its place."""
        new = self.cells.batch(index)
        for old, value in zip(self.held.x, new.x, strict=True):
            old.copy_(value)
        self.held.present.copy_(new.present)
        self.held.labels.copy_(new.labels)


def stepper(pair, cells, precision="float32", forward=None, capturable=False):
    """One step of training, as :func:`scmoe.fit.fit` takes it."""
    config = pair.config.replace(precision=precision).train
    fold = common.held_by_none(pair.train)
    step = Step(pair.network.train(), config, cells, fold, pair.supervised)
    forward = step if forward is None else forward(step)
    optimiser = torch.optim.AdamW(
        pair.network.parameters(), lr=config.lr, weight_decay=0.0, fused=True, capturable=capturable
    )

    def run(index):
        optimiser.zero_grad(set_to_none=True)
        forward(index)[0].sum().backward()
        clip_gradients(pair.network, config.clip)
        optimiser.step()

    return run


def graphed(pair, index, precision="float32"):
    """The step captured once and replayed; a new batch is copied to where it reads."""
    cells, on_device = Held(pair.train, index), index.cuda()
    run = stepper(pair, cells, precision, capturable=True)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            run(on_device)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(on_device)

    def replay():
        cells.load(index)
        graph.replay()

    return replay


def with_backend(pair, backend, precision="float32"):
    """The eager step with one backend of the experts."""
    run = stepper(pair, pair.train, precision)

    def chosen(index):
        for layer in pair.network.layers:
            layer.experts.backend = backend
        run(index)
        for layer in pair.network.layers:
            layer.experts.backend = "auto"

    return chosen


def variants(pair, index) -> dict:
    """Functions that build each row's call; what cannot be built says why."""
    cuda = pair.train.device.type == "cuda"
    xs, labels = next(iter(pair.naive.train_loader))
    naive = pair.naive
    naive.network.train()

    def call(run):
        return lambda: run(index)

    built = {
        "naive": lambda: lambda: naive.step(xs, labels),
        "eager": lambda: call(stepper(pair, pair.train)),
        "eager bf16": lambda: call(stepper(pair, pair.train, "bf16")),
        "eager, dense experts": lambda: call(with_backend(pair, "dense")),
        "eager, grouped experts": lambda: call(with_backend(pair, "grouped")),
    }
    if cuda:
        built["compiled"] = lambda: call(stepper(pair, pair.train, forward=torch.compile))
        built["CUDA graph"] = lambda: graphed(pair, index)
        built["CUDA graph bf16"] = lambda: graphed(pair, index, "bf16")
    if importlib.util.find_spec("fmoe"):
        built["eager, FastMoE's experts"] = lambda: call(with_backend(pair, "fastmoe"))
    return built


def kernels(call) -> int:
    """Launches of one call."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        call()
        torch.cuda.synchronize()
    return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in profile.events())


def launch_seconds(n: int = 2000) -> float:
    """Seconds between launches of something tiny, one after the other."""
    x = torch.zeros(1, device="cuda")
    return min(common.seconds(lambda: [x.add_(1) for _ in range(n)]) for _ in range(3)) / n


def copy_rate(n: int = 1 << 28) -> float:
    """Bytes a second of a large copy, read and written."""
    x = torch.empty(n, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    return 2 * n / min(common.seconds(lambda: y.copy_(x)) for _ in range(5))


def measure_preset(name: str, tiny: bool, device: str) -> list[dict]:
    """Rows of one preset."""
    pair = common.pair(name, tiny, device)
    index = torch.arange(pair.config.train.batch_size)[None]
    calls, errors = {}, {}
    for row, build in variants(pair, index).items():
        try:
            calls[row] = build()
            for _ in range(WARM_UP):
                calls[row]()
        except Exception as error:
            calls.pop(row, None)
            errors[row] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    with _repeatable(pair.train.device):
        taken = common.interleaved(calls, 1 if tiny else 20)
    bounds = {}
    if device == "cuda":
        n_bytes = PASSES * 4 * sum(p.numel() for p in pair.network.parameters())
        bounds["bandwidth bound, ms"] = common.rounded(1000 * n_bytes / copy_rate())
        if "eager" in calls:
            bound = launch_seconds() * kernels(calls["eager"])
            bounds["launch bound of eager, ms"] = common.rounded(1000 * bound)
    rows = [
        {
            "preset": name,
            "row": row,
            "ms a step": common.rounded(1000 * value),
            "naive / this": common.rounded(taken["naive"] / value) if "naive" in taken else None,
            "asked": TARGET.get(name),
            **bounds,
        }
        for row, value in taken.items()
    ]
    return rows + [{"preset": name, "row": row, "error": why} for row, why in errors.items()]


def expert_rows(tiny: bool, device: str) -> list[dict]:
    """One layer of experts at the presets' shapes, by backend."""
    names = ["loop", "grouped", "dense", "grouped bf16", "dense bf16"]
    names += ["fastmoe"] if importlib.util.find_spec("fmoe") and device == "cuda" else []
    shapes = {"dyngen": (16, 4, 2, 16)} if tiny else experts.PRESETS
    rows = []
    for preset, shape in shapes.items():
        for skew in (False, True):
            times = experts.milliseconds(shape, skew, names, 1 if tiny else 10, device)
            rows.append({"preset": preset, "router": "skewed" if skew else "even", **times})
    return rows


def measure(tiny: bool = False) -> dict[str, pd.DataFrame]:
    """Tables: steps of the presets, and a layer of experts."""
    cuda = torch.cuda.is_available()
    if not (cuda or tiny):
        sys.exit("No CUDA device here: nothing was measured. --tiny tries the code on a CPU.")
    device = "cuda" if cuda else "cpu"
    rows = [row for preset in common.SHAPES for row in measure_preset(preset, tiny, device)]
    return {
        "A training step on a GPU": pd.DataFrame(rows),
        "One layer of experts on a GPU, ms": pd.DataFrame(expert_rows(tiny, device)),
    }


if __name__ == "__main__":
    common.main("gpu", measure)
