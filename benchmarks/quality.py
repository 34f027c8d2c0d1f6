"""Time to the naive row's final validation quality, and where the time saved comes from.

    python -m benchmarks.quality [--whole]

Supervised, the reference's architecture and hyper-parameters, one change at a time: the engine; the
loss (cross-entropy of logits instead of softmax outputs); the closed-form start (the linear path,
its fitting counted). The naive row trains for some epochs, with ``--whole`` for all of the
preset's, scores the validation cells twice an epoch, as the reference does, and its clock stops
when it first is as good as it ends. The other rows score them once an epoch.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import pandas as pd
import torch

import scmoe
from benchmarks import common
from benchmarks.common import precisions
from benchmarks.naive import Naive
from scmoe.fit import fit
from scmoe.nn.cells import Cells
from scmoe.nn.linear import fit_linear_path
from scmoe.nn.network import Network

EPOCHS = {"patchseq": 45, "atacseq": 12}  # of the naive row, if not whole
CELLS = 1000  # simulated for training
LAST = 3  # epochs whose median accuracy is what the naive row ends with
SIGNAL = 0.25  # of a group in a simulated gene, in standard deviations: not learned in one epoch


class Data:
    """Training and validation cells: matrices and group numbers."""

    def __init__(self, train, labels, val, val_labels, n_groups, source):
        self.train, self.labels, self.val, self.val_labels = train, labels, val, val_labels
        self.n_groups, self.source = n_groups, source
        self.present = np.ones((len(labels), len(train)), bool)

    def cells(self) -> tuple[Cells, Cells]:
        """The same as ours takes them."""
        present = np.ones((len(self.val_labels), len(self.val)), bool)
        return (
            Cells(self.train, self.present, self.labels),
            Cells(self.val, present, self.val_labels),
        )


def patchseq(tiny: bool) -> Data:
    """The cells of fold 0, real ones where there are files."""
    split = scmoe.data.load("patchseq", fold=0, allow_standin=True)
    if tiny:
        split = scmoe.data.split_mudata(split.train[:80], split.label_key)
    transform = scmoe.data.Transform().fit(split.train)
    parts = []
    for part in (split.train, split.val):
        names = part.obs[split.label_key].astype(str)
        parts.append([m.X for m in transform.transform(part).mod.values()])
        parts.append(pd.Index(map(str, split.groups)).get_indexer(names))
    return Data(*parts, len(split.groups), split.data_source)


def atacseq(tiny: bool) -> Data:
    """Simulated cells of the ATAC shape."""
    shape, n = common.SHAPES["atacseq"], 100 if tiny else CELLS
    x, labels = common.atac_cells(n + n // 4, *shape.features, shape.n_groups, signal=SIGNAL)
    parts = [x_[:n] for x_ in x], labels[:n], [x_[n:] for x_ in x], labels[n:]
    return Data(*parts, shape.n_groups, "simulated")


class Reached(Exception):
    """The network is as good as asked."""


def naive_curve(data: Data, config, epochs: int) -> list[tuple[float, float]]:
    """Seconds since the start and validation accuracy after each epoch."""
    start, curve = time.perf_counter(), []
    dense = [
        [m.toarray() if hasattr(m, "indptr") else m for m in x] for x in (data.train, data.val)
    ]
    naive = Naive(config, dense[0], data.labels, dense[1], data.val_labels, data.n_groups, True)
    for _ in range(epochs):
        accuracy = naive.epoch()["accuracy"]
        curve.append((time.perf_counter() - start, accuracy))
    return curve


def ours(data: Data, config, goal: float) -> tuple[float, int, float]:
    """Seconds and epochs to an accuracy of ``goal``, and the best accuracy seen."""
    train, val = data.cells()
    start, seen = time.perf_counter(), []
    linear = crossfit = None
    if config.model.linear_path:
        linear, crossfit = fit_linear_path(data.train, data.present, data.labels, data.n_groups)
    torch.manual_seed(0)
    network = Network(config.model, [m.shape[1] for m in data.train], data.n_groups, linear)

    @torch.no_grad()
    def accuracy(network) -> float:
        network.eval()
        found = [network.predict_groups(b.x, b.present).argmax(1) for b in val.batches(512)]
        seen.append((torch.cat(found) == val.labels).float().mean().item())
        if seen[-1] >= goal:
            raise Reached
        return seen[-1]

    try:
        if linear is not None:  # it may be there before the first step; the head starts at nothing
            network.group_scale.zero_()
            accuracy(network)
            network.group_scale.fill_(1)
            seen.pop()
        names = [str(i) for i in range(len(data.train))]
        fit(network, train, None, config.train, supervised=True, modalities=names,
            crossfit=crossfit, watch=accuracy, progress=False)  # fmt: skip
    except Reached:
        return time.perf_counter() - start, len(seen), max(seen)
    return float("nan"), len(seen), max(seen)


def measure_set(name: str, data: Data, epochs: int, tiny: bool) -> list[dict]:
    """Rows of one data set: naive, then one change after the other."""
    config = scmoe.preset(name, "paper")
    if tiny:
        config = config.replace(d=16, n_patches=4, n_heads=2, n_experts=4)
    curve = naive_curve(data, config, epochs)
    goal = median(accuracy for _, accuracy in curve[-LAST:])
    reached = next(i for i, (_, accuracy) in enumerate(curve) if accuracy >= goal)
    naive = curve[reached][0]
    found = {"naive": (naive, reached + 1, max(a for _, a in curve))}
    changes = {
        "engine": {},
        "engine + loss": {"ce_on_softmax": False},
        "engine + loss + closed-form start": {"ce_on_softmax": False, "linear_path": True},
        "engine + loss + closed-form start, bf16": {
            "ce_on_softmax": False, "linear_path": True, "precision": "bf16"},
    }  # fmt: skip
    for row, change in changes.items():
        if change.get("precision", "float32") not in precisions():
            continue
        found[row] = ours(data, config.replace(epochs=epochs, **change), goal)
    rows, before = [], naive
    for row, (taken, n, best) in found.items():
        rows.append({
            "data": f"{name} ({data.source})", "row": row, "validation accuracy asked": goal,
            "seconds to it": common.rounded(taken), "epochs to it": n,
            "naive / this": common.rounded(naive / taken),
            "row before / this": common.rounded(before / taken), "best seen": best,
        })  # fmt: skip
        before = taken
    rows[0]["epochs trained"] = epochs
    rows[0]["seconds trained"] = common.rounded(curve[-1][0])
    return rows


def precision_rows(name: str, tiny: bool) -> list[dict]:
    """Scores of validation cells by the strict recipe's network alone, in float32 and in bf16."""
    split = scmoe.data.load(name, fold=0, allow_standin=True)
    rows = []
    for precision in precisions():
        config = scmoe.preset(name).replace(precision=precision, refit=False, linear_path=False)
        model = scmoe.ScMoE("supervised", config.replace(epochs=1) if tiny else config)
        start = time.perf_counter()
        model.fit(split, "cpu", progress=False)
        taken = time.perf_counter() - start
        table = scmoe.evaluate(model, split.val, split.label_key)
        means = table.groupby("metric")["value"].mean()
        wanted = ("accuracy", "balanced_accuracy", "ari", "ece", "r2", "pearson")
        scores = {k: common.rounded(means[k]) for k in wanted}
        rows.append({"data": f"{name} ({split.data_source})", "row": precision, **scores,
                     "epochs": len(model.history_), "seconds": common.rounded(taken)})  # fmt: skip
    return rows


def measure(tiny: bool = False, whole: bool = False) -> dict[str, pd.DataFrame]:
    """Table: time to the naive row's quality."""
    rows = []
    for name, load in {"patchseq": patchseq, "atacseq": atacseq}.items():
        epochs = scmoe.preset(name, "paper").train.epochs if whole else EPOCHS[name]
        rows += measure_set(name, load(tiny), 1 if tiny else epochs, tiny)
    sets = ("dbitseq",) if tiny else ("patchseq", "dbitseq")
    return {
        "Time to the naive row's final validation accuracy": pd.DataFrame(rows),
        "bf16 and the metrics": pd.DataFrame([r for s in sets for r in precision_rows(s, tiny)]),
    }


if __name__ == "__main__":
    common.main("quality", measure, "whole")
