"""Seconds and memory as data and network grow; ATAC + gene at its full size.

    python -m benchmarks.scaling [--whole]

Cells of the ATAC shape are simulated (13,634 peaks, 3 % of them open, sparse, and 4,000 dense
genes). Each size is trained in a process of its own, whose peak memory is reported; it holds the
cells, the network and its optimiser. An epoch's seconds follow from some of its steps; ``--whole``
takes all steps of the full size too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import median

import numpy as np
import pandas as pd
import torch

from benchmarks import common
from scmoe.config import preset
from scmoe.fit import fit
from scmoe.nn.cells import Cells
from scmoe.nn.network import Network
from scmoe.record import _peak_memory

ATAC = [5_000, 10_000, 20_000, 40_000, 69_249]
STEPS = 150  # timed of an epoch, at every size the same number, their cells drawn from all
SWEEPS = {  # of a step, Patch-seq's number of cells and width; one quantity at a time
    "cells in a batch": [16, 32, 64, 128, 256],
    "features": [250, 500, 1000, 2000, 4000],
    "modalities": [2, 3, 4, 6, 8],
    "experts": [4, 8, 16, 32, 64],
}


def atac(n_cells: int, whole: bool) -> dict:
    """Train on so many cells, for an epoch or for some steps of one; in this process."""
    config, shape = preset("atacseq", "paper"), common.SHAPES["atacseq"]
    x, labels = common.atac_cells(n_cells)
    present = np.ones((n_cells, 2), bool)
    size = sum(m.data.nbytes + m.indices.nbytes if hasattr(m, "indptr") else m.nbytes for m in x)
    cells = Cells(x, present, labels)
    torch.manual_seed(0)
    network = Network(config.model, [m.shape[1] for m in x], shape.n_groups)
    if whole:
        train = config.replace(epochs=1).train
        start = time.perf_counter()
        fold = common.held_by_none(cells)
        fit(network, cells, fold, train, supervised=True, modalities=["atac", "rna"],
            progress=False)  # fmt: skip
        taken = (time.perf_counter() - start) / round(n_cells / train.batch_size)
    else:
        pair = common.Pair(config, None, network, cells, None, True)
        run, steps = pair.step(), min(STEPS, n_cells // 16)
        order = torch.randperm(n_cells)[: 16 * steps].split(16)
        for index in order[:5]:
            run(index)
        taken = median(common.seconds(lambda i=index: run(i)) for index in order)
    return {
        "cells": n_cells,
        "ms a step of 16 cells": common.rounded(1000 * taken),
        "seconds an epoch": common.rounded(taken * n_cells / 16),
        "measured": "a whole epoch" if whole else f"median of {steps} steps",
        "data, GB": common.rounded(size / 1e9),
        "peak memory, GB": common.rounded(_peak_memory() / 1e9),
    }


def in_a_process(n_cells: int, whole: bool) -> dict:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scaling", str(n_cells), str(int(whole))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def step_ms(batch=64, features=1000, modalities=3, experts=32, rounds=5) -> float:
    """Milliseconds of one step of the Patch-seq preset with 16 patches, sizes changed."""
    config = preset("patchseq", "paper").replace(
        n_patches=16, n_experts=experts, batch_size=batch, input_noise={}
    )
    x, labels = common.dense_cells([features] * modalities, batch, 10)
    torch.manual_seed(0)
    network = Network(config.model, [features] * modalities, 10)
    cells = Cells(x, np.ones((batch, modalities), bool), labels)
    run = common.Pair(config, None, network, cells, None, True).step()
    index = torch.arange(batch)
    return 1000 * common.interleaved({"step": lambda: run(index)}, rounds)["step"]


def sweeps(tiny: bool) -> list[dict]:
    """Rows of the sweeps, with each one's log-log slope."""
    names = dict(zip(SWEEPS, ("batch", "features", "modalities", "experts"), strict=True))
    rows = []
    for what, values in SWEEPS.items():
        values = values[:2] if tiny else values
        taken = [step_ms(**{names[what]: v}, rounds=1 if tiny else 2) for v in values]
        rows += [
            {"what grows": what, "to": v, "ms a step": common.rounded(t)}
            for v, t in zip(values, taken, strict=True)
        ]
        rows[-1]["log-log slope"] = common.rounded(common.slope(values, taken), 2)
    return rows


def measure(tiny: bool = False, whole: bool = False) -> dict[str, pd.DataFrame]:
    """Tables: ATAC by number of cells, and one step as each size grows."""
    sizes = [48, 96] if tiny else ATAC
    rows = [in_a_process(n, whole=False) for n in sizes]
    per_epoch = [row["seconds an epoch"] for row in rows]
    rows += [in_a_process(sizes[-1], whole=True)] if whole else []
    rows[-1]["log-log slope of an epoch"] = common.rounded(common.slope(sizes, per_epoch))
    return {
        "ATAC + gene at full size": pd.DataFrame(rows),
        "A step as one size grows": pd.DataFrame(sweeps(tiny)),
    }


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].isdigit():
        torch.set_num_threads(common.THREADS)
        print(json.dumps(atac(int(sys.argv[1]), whole=sys.argv[2] == "1")))
    else:
        common.main("scaling", measure, "whole")
