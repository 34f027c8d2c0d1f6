"""Steps of the four presets on a GPU: naive, eager, compiled, as a CUDA graph, with FastMoE."""

from __future__ import annotations

import importlib.util

import pandas as pd
import torch

from benchmarks import common
from benchmarks.common import Pair, rounded
from benchmarks.speed import experts
from scmoe.fit import repeatable
from scmoe.nn.cells import Cells


class Held:
    """One batch at a fixed place in memory, which a graph reads again and again."""

    def __init__(self, cells: Cells, index):
        self.cells, self.device, self.held = cells, cells.device, cells.batch(index)

    def batch(self, index):
        """The held batch, whatever is asked for."""
        return self.held

    def load(self, index) -> None:
        """Put other cells into its place."""
        new = self.cells.batch(index)
        for old, value in zip([*self.held.x, *self.held[1:]], [*new.x, *new[1:]], strict=True):
            old.copy_(value)


def gpu(tiny: bool) -> dict[str, pd.DataFrame]:
    """Steps naive, eager, compiled and as a CUDA graph; a step that fails leaves its error.

    ``tiny`` tries the code on a CPU too.
    """
    cuda = torch.cuda.is_available()
    if not (cuda or tiny):
        raise SystemExit("No CUDA device here: nothing was measured. --tiny tries the code.")
    device = "cuda" if cuda else "cpu"
    rows = [row for name in common.SHAPES for row in _steps_of(name, tiny, device)]
    return {"A training step on a GPU": pd.DataFrame(rows)} | experts(tiny, device=device)


def _steps_of(name: str, tiny: bool, device: str) -> list[dict]:
    pair, calls, rows = common.pair(name, tiny, device), {}, []
    index = torch.arange(pair.config.train.batch_size)[None]
    xs, labels = next(iter(pair.naive.train_loader))
    pair.naive.network.train()

    def eager(precision="float32", backend="auto", change=lambda losses: losses):
        run = pair.step(change(pair.losses(precision)))

        def call():
            for layer in pair.network.layers:
                layer.experts.backend = backend
            run(index)

        return call

    built = {
        "naive": lambda: lambda: pair.naive.step(xs, labels),
        "eager": eager,
        "eager bf16": lambda: eager("bf16"),
        "eager, dense experts": lambda: eager(backend="dense"),
        "eager, grouped experts": lambda: eager(backend="grouped"),
    }
    if importlib.util.find_spec("fmoe"):
        built["eager, FastMoE's experts"] = lambda: eager(backend="fastmoe")
    if device == "cuda":
        built["compiled"] = lambda: eager(change=torch.compile)
        built["CUDA graph"] = lambda: _graphed(pair, index, "float32")
        built["CUDA graph bf16"] = lambda: _graphed(pair, index, "bf16")
    for row, build in built.items():
        try:
            call = build()
            for _ in range(3):
                call()
            calls[row] = call
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
            rows.append({"preset": name, "row": row, "error": why})
    with repeatable(pair.train.device):
        taken = common.interleaved(calls, 1 if tiny else 20)
    for row, value in taken.items():
        times = rounded(taken["naive"] / value) if "naive" in taken else None
        rows.append(
            {"preset": name, "row": row, "ms a step": rounded(1000 * value), "naive / this": times}
        )
    return rows


def _graphed(pair: Pair, index, precision: str):
    """The step captured once and replayed; a new batch is copied to where it reads."""
    cells, on_device = Held(pair.train, index), index.cuda()
    run = pair.step(pair.losses(precision, cells), capturable=True)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            run(on_device)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(on_device)

    def replay():
        cells.load(index)
        graph.replay()

    return replay
