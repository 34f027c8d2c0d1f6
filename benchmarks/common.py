"""What the benchmarks share: shapes, simulated cells, a fair clock, and where tables go."""

from __future__ import annotations

import gc
import json
import math
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from benchmarks.naive import Naive
from scmoe.config import Config, preset
from scmoe.data import Split
from scmoe.fit import clip_gradients, memory_kept
from scmoe.keep import digest, read_json, write_json
from scmoe.nn.cells import Cells
from scmoe.nn.network import Network
from scmoe.record import source_hash
from scmoe.step import Step

RESULTS = Path(__file__).parent / "results"
OPEN = 0.03  # share of peaks that are open in a cell


class Shape(NamedTuple):
    """Size of a data set as the reference trains on it."""

    features: list[int]
    n_train: int
    n_evaluated: int
    n_groups: int
    supervised: bool


SHAPES = {
    "dyngen": Shape([100] * 4, 400, 100, 3, False),
    "dbitseq": Shape([568, 22, 568], 748, 188, 13, False),
    "patchseq": Shape([1252, 68, 514], 403, 448, 27, False),  # evaluated on training cells too
    "atacseq": Shape([4000, 4000], 800, 28, 22, True),  # fewer cells: an epoch is linear in them
}


def dense_cells(features, n_cells, n_groups) -> tuple[list[np.ndarray], np.ndarray]:
    """Gaussian groups: matrices ``(N, F_m)`` float32 and group numbers ``(N,)``."""
    rng = np.random.default_rng(0)
    labels, matrices = rng.integers(n_groups, size=n_cells), []
    for f in features:
        centres = rng.standard_normal((n_groups, f), dtype=np.float32)
        matrices.append(0.5 * centres[labels] + rng.standard_normal((n_cells, f), dtype=np.float32))
    return matrices, labels


def atac_cells(n_cells, n_peaks=13_634, n_genes=4_000, n_groups=22, signal=0.5):
    """0/1 peaks (CSR, 3 % open) and dense genes of groups, made a block of cells at a time."""
    rng = np.random.default_rng(0)
    labels = rng.integers(n_groups, size=n_cells)
    chance = (OPEN * (1 + signal * rng.uniform(-1, 1, (n_groups, n_peaks)))).astype(np.float32)
    centres = signal * rng.standard_normal((n_groups, n_genes), dtype=np.float32)
    genes, blocks = np.empty((n_cells, n_genes), np.float32), []
    for start in range(0, n_cells, 1000):
        group = labels[start : start + 1000]
        drawn = rng.random((len(group), n_peaks), dtype=np.float32) < chance[group]
        blocks.append(sp.csr_matrix(drawn, dtype=np.float32))
        genes[start : start + 1000] = centres[group]
        genes[start : start + 1000] += rng.standard_normal((len(group), n_genes), dtype=np.float32)
    return [sp.vstack(blocks, format="csr"), genes], labels


class Pair(NamedTuple):
    """The naive implementation and ours on the same cells."""

    config: Config
    naive: Naive | None
    network: Network
    train: Cells
    both: Cells | None  # training cells, then those that an epoch evaluates
    supervised: bool

    def losses(self, precision="float32") -> Step:
        """Our losses of a batch of training cells."""
        config = self.config.replace(precision=precision).train
        fold = torch.full((len(self.train),), -1)  # the only member learns from all
        return Step(self.network.train(), config, self.train, fold, self.supervised)

    def step(self, losses: Callable) -> Callable[[torch.Tensor], None]:
        """One training step of ours, as :func:`scmoe.fit.fit` does it, for timing alone."""
        optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=self.config.train.lr, weight_decay=0.0, fused=True
        )

        def run(index):
            optimiser.zero_grad(set_to_none=True)
            losses(index)[0].sum().backward()
            clip_gradients(self.network, self.config.train.clip)
            optimiser.step()

        return run


def pair(name: str, tiny: bool = False, device: str = "cpu") -> Pair:
    """Build both for one of ``SHAPES``; peaks are sparse for ours and dense for the naive row.

    ``tiny``: sizes so small that only the code is tried.
    """
    shape, config = SHAPES[name], preset(name, "paper")
    if tiny:
        features = [max(8, f // 20) for f in shape.features]
        shape = shape._replace(features=features, n_train=24, n_evaluated=8, n_groups=3)
        config = config.replace(d=16, n_patches=4, n_heads=2, n_experts=4, batch_size=8)
    n_train, n_all = shape.n_train, shape.n_train + shape.n_evaluated
    if name == "atacseq":
        x, labels = atac_cells(n_all, *shape.features, shape.n_groups)
        plain = [x[0].toarray(), x[1]]
    else:
        x, labels = plain, _ = dense_cells(shape.features, n_all, shape.n_groups)
    parts = [([m[s] for m in plain], labels[s]) for s in (slice(n_train), slice(n_train, None))]
    naive = Naive(config, *parts, shape.n_groups, shape.supervised, device)
    torch.manual_seed(0)
    network = Network(config.model, shape.features, shape.n_groups).to(device)
    train, both = (
        Cells([m[:n] for m in x], np.ones((n, len(x)), bool), labels[:n], device)
        for n in (n_train, n_all)
    )
    return Pair(config, naive, network, train, both, shape.supervised)


def trained(model, split: Split, folder: Path, device: str = "auto"):
    """Train a model, or load the one that the same sources, settings and cells left in a folder."""
    cells = [split.name, split.data_source, split.fold, split.seed, split.modalities]
    stamp = {"cells": cells, "checksums": split.checksums, "sources": source_hash(),
             "model": [model.task, model.seed, model.config.to_dict()]}  # fmt: skip
    note, stamp = folder / "made_from.json", json.loads(json.dumps(stamp))
    if note.exists() and read_json(note) == stamp:
        return type(model).load(folder / "model", device)
    checkpoint = folder / f"checkpoint-{digest(json.dumps(stamp))[:12]}"
    model.fit(split, device=device, progress=False, checkpoint=checkpoint)
    note.unlink(missing_ok=True)
    model.save(folder / "model", overwrite=True)
    write_json(note, stamp)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return model


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call, a GPU's work included."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def interleaved(functions: dict[str, Callable], rounds: int, keep_memory=True) -> dict[str, float]:
    """Median seconds of each function, called in turn: what slows one round slows all alike.

    ``keep_memory``: parts of a step find memory as they do in training. A whole training looks
    after its own.
    """
    gc.collect()
    with memory_kept() if keep_memory else nullcontext():
        times = [{k: seconds(call) for k, call in functions.items()} for _ in range(rounds + 1)]
    return {name: median(turn[name] for turn in times[1:]) for name in functions}  # a warm-up first


def slope(x, y) -> float:
    """Log-log slope of a least-squares line."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def machine() -> dict:
    """What the numbers were measured on."""
    return {
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "sources": source_hash(),
    }


def _processor() -> str:
    """Name of the processor, and its instructions for matrix products."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = [line.partition(":") for line in info.read_text().splitlines()]
    found = {key.strip(): value.strip() for key, _, value in lines}
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    flags = [f for f in known if f in found.get("flags", "").split()]
    return f"{found.get('model name', platform.machine())} ({', '.join(flags)})"


def write(path: Path, tables: dict[str, pd.DataFrame], note: dict) -> None:
    """Print the tables, and keep them as JSON: the old file stays until the new one is whole."""
    content = {"machine": machine(), **note, "tables": {}}
    for caption, table in tables.items():
        print(f"\n{caption}\n{table.to_string(index=False, na_rep='-')}", flush=True)
        rows = json.loads(table.to_json(orient="records", double_precision=6))
        content["tables"][caption] = rows
    write_json(path, content, ensure_ascii=False)


def rounded(value: float, digits: int = 3) -> float:
    """``value`` to so many significant digits: more would be noise."""
    if not math.isfinite(value) or value == 0:
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))
