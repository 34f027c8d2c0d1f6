"""A few epochs of each of the four presets, ours beside the naive row of the same run.

    python -m benchmarks.epochs

The reference's architecture, losses and hyper-parameters, attention dropout kept; cells simulated
at the sizes that the reference trains on. An epoch of the naive row trains once over all cells and
evaluates twice, as the reference does; ours trains once and validates once, in one call of
:func:`scmoe.fit.fit`.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from scmoe.fit import fit

ROUNDS = {"dyngen": 4, "dbitseq": 4, "patchseq": 2, "atacseq": 2}
EPOCHS = {"dyngen": 3, "dbitseq": 3, "patchseq": 1, "atacseq": 1}  # a round
TARGETS = {  # naive / ours, of an epoch
    ("dyngen", "float32"): 2.0,
    ("dbitseq", "float32"): 2.0,
    ("patchseq", "float32"): 2.0,
    ("patchseq", "bf16"): 4.0,
    ("atacseq", "float32"): 2.5,
}
# The reference itself, on two cores of another machine: milliseconds a training step, seconds of an
# epoch's training and of its two evaluations, as (low, high). ATAC: of 10,000 cells.
REFERENCE = {
    "dyngen": ((24, 34), (0.17, 0.24), (0.03, 0.05)),
    "dbitseq": ((71, 81), (0.21, 0.24), (0.04, 0.05)),
    "patchseq": ((350, 366), (2.5, 2.5), (1.2, 1.3)),
    "atacseq": ((53, 68), (31, 39), (1.1, 1.2)),
}


def fitted(pair: common.Pair, precision: str, epochs: int):
    """Two calls of :func:`scmoe.fit.fit` for some epochs: without validation cells, and with."""
    config = pair.config.replace(precision=precision, epochs=epochs).train

    def call(cells):
        fold = torch.where(torch.arange(len(cells)) < len(pair.train), -1, 0)
        fit(
            pair.network, cells, fold, config, supervised=pair.supervised,
            modalities=[str(i) for i in pair.network.n_features], progress=False,
        )  # fmt: skip

    return lambda: call(pair.train), lambda: call(pair.both)


def naive_flops(pair: common.Pair) -> float:
    """Floating-point operations in the matrix products of a naive epoch's training."""
    xs, labels = next(iter(pair.naive.train_loader))
    pair.naive.network.train()
    with FlopCounterMode(display=False) as counter:
        pair.naive.step(xs, labels)
    return counter.get_total_flops() / len(labels) * len(pair.train)


def measure_preset(name: str, tiny: bool) -> list[dict]:
    """Rows of one preset: naive, ours in float32 and, where it pays, in bf16."""
    pair = common.pair(name, tiny)
    epochs = 1 if tiny else EPOCHS[name]
    functions = {
        ("naive", "training"): lambda: [pair.naive.train_epoch() for _ in range(epochs)],
        ("naive", "epoch"): lambda: [pair.naive.epoch() for _ in range(epochs)],
    }
    for precision in common.precisions():
        train, both = fitted(pair, precision, epochs)
        functions[precision, "training"], functions[precision, "epoch"] = train, both
    taken = common.interleaved(functions, 1 if tiny else ROUNDS[name], memory_kept=False)
    taken = {key: value / epochs for key, value in taken.items()}
    flops, size = naive_flops(pair), pair.config.train.batch_size
    steps = {"naive": -(-len(pair.train) // size), "ours": max(1, round(len(pair.train) / size))}
    naive, rows = taken["naive", "epoch"], []
    for which in ("naive", *common.precisions()):
        kind = torch.bfloat16 if which == "bf16" else torch.float32
        training = taken[which, "training"]
        epoch = taken[which, "epoch"]
        n_steps = steps["naive" if which == "naive" else "ours"]
        rows.append({
            "preset": name,
            "row": "naive" if which == "naive" else f"scmoe {which}",
            "seconds an epoch": common.rounded(epoch),
            "of which training": common.rounded(training),
            "steps": n_steps,
            "ms a step": common.rounded(1000 * training / n_steps),
            "epoch, naive / this": common.rounded(naive / epoch),
            "training, naive / this": common.rounded(taken["naive", "training"] / training),
            "asked": TARGETS.get((name, which)),
            "fraction of arithmetic bound": common.rounded(
                flops / common.matmul_rate(kind) / training
            ),
        })  # fmt: skip
    return rows


def measure(tiny: bool = False) -> dict[str, pd.DataFrame]:
    """Tables: epochs, and the naive row beside the reference's own times."""
    table = pd.DataFrame([row for name in common.SHAPES for row in measure_preset(name, tiny)])
    naive = table[table["row"] == "naive"].set_index("preset")
    beside = []
    for name, (step, training, evaluation) in REFERENCE.items():
        ours, scale = (
            naive.loc[name],
            10_000 / common.SHAPES[name].n_train if name == "atacseq" else 1,
        )
        beside.append({
            "preset": name,
            "naive, ms a step": ours["ms a step"],
            "reference, ms a step": "{}–{}".format(*step),
            "naive, s of training": common.rounded(scale * ours["of which training"]),
            "reference, s of training": "{}–{}".format(*training),
            "naive, s of two evaluations": common.rounded(
                scale * (ours["seconds an epoch"] - ours["of which training"]), 2
            ),
            "reference, s of two evaluations": "{}–{}".format(*evaluation),
        })  # fmt: skip
    return {
        "Epochs of the four presets": table,
        "The naive row is no straw man: beside the reference's own times": pd.DataFrame(beside),
    }


if __name__ == "__main__":
    common.main("epochs", measure)
