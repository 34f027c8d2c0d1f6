"""The recorded search for the strict recipe; nothing in it reads a published test cell.

A published fold's training and validation cells are cut again, into four inner folds: what is
called test below is one of these. ``python -m benchmarks.search --variants strict simple``
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from time import perf_counter

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd

from scmoe import Config, ScMoE, baselines, evaluate
from scmoe.data import Split, load, simulate_dyngen, split_mudata
from scmoe.data.split import stratified

N_INNER = 4


def sets() -> dict:
    """The sets that are searched on: a published fold each, and simulated cells."""
    real = {
        "patchseq": ("patchseq", 0),
        "dbitseq": ("dbitseq", 0),
        "dbitseq block-0": ("dbitseq", "block-0"),
        "dbitseq block-3": ("dbitseq", "block-3"),
        "atacseq s1d1": ("atacseq", "s1d1"),
        "atacseq s1d2": ("atacseq", "s1d2"),
    }
    found = {name: (lambda a=a: load(*a)) for name, a in real.items()}
    for setting in ("default", "hard"):
        for number, backbone in enumerate(("linear", "bifurcating", "cycle")):
            found[f"dyngen {backbone} {setting}"] = lambda b=backbone, s=setting, n=number: (
                split_mudata(simulate_dyngen(backbone=b, setting=s, seed=n + 100), "label")
            )
    return found


def nested(split: Split, k: int) -> Split:
    """Inner fold ``k``: its "test" cells are training or validation cells of ``split``."""
    parts = split.train, split.val
    pool = md.MuData({m: ad.concat([p[m] for p in parts], merge="same") for m in split.modalities})
    pool.obs[split.label_key] = pd.concat([p.obs[split.label_key].astype(str) for p in parts])
    labels = pool.obs[split.label_key].astype(str).to_numpy()
    rng = np.random.default_rng(7)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), int)
    fold[order] = np.arange(len(labels)) % N_INNER
    rest = np.flatnonzero(fold != k)
    val = rest[stratified(labels[rest], 0.15, k)]
    names = pool.obs_names
    inner = split_mudata(
        pool, split.label_key, test=list(names[fold == k]), val=list(names[val]), seed=k
    )
    inner.name, inner.fold, inner.data_source = split.name, split.fold, split.data_source
    return inner


VARIANTS = {  # of the strict configuration; None: a baseline
    "strict": {},
    "wider": dict(d=128),
    "more experts": dict(n_experts=16),
    "one expert": dict(n_experts=1, top_k=1),
    "label smoothing": dict(label_smoothing=0.1),
    "no modality dropout": dict(modality_dropout=0.0),
    "more dropout": dict(dropout=0.3),
    "smaller steps": dict(lr=3e-4),
    "stronger decay": dict(weight_decay=0.1),
    "no linear path": dict(linear_path=False),
}


def simple(task: str) -> list:
    """The simple methods that the recipe is held against."""
    b = baselines
    if task == "unsupervised":
        return [b.KMeans(), b.Leiden(), b.WNN()]
    groups = [kind(fusion) for kind in (b.LogisticRegression, b.DiscriminantAnalysis)
              for fusion in ("late", "early")]  # fmt: skip
    return [*groups, b.Ridge(), b.PLS(), b.ReducedRank(), b.KernelRidge()]


def rows(name: str, k: int, task: str, variant: str, seed: int, split: Split) -> list[dict]:
    """Scores on the inner fold's held-out cells, and the validation loss, of one variant."""
    if variant == "simple":
        models = [(m.method if hasattr(m, "method") else "", m.fit(split)) for m in simple(task)]
    else:
        config = Config().replace(**VARIANTS[variant])
        model = ScMoE(task, config, seed)
        start = perf_counter()
        model.fit(split, device="cpu", progress=False)
        seconds = perf_counter() - start
        models = [(variant, model)]
        if config.model.linear_path:
            models.append((f"{variant}, linear path", model.without_experts()))
    found = []
    for label, model in models:
        table = evaluate(model, split.test, split.label_key)
        groups = table[table["task"] != "translation"].set_index("metric")["value"]
        r2 = table[table["metric"] == "r2"]
        pairs = dict(zip(r2["target_modality"] + "<-" + r2["source_modality"], r2["value"],
                         strict=True))  # fmt: skip
        row = dict(set=name, inner=k, task=task, seed=seed, variant=variant)
        row |= dict(method=label if variant != "simple" else model.method, r2=pairs)
        row |= {metric: float(value) for metric, value in groups.items()}
        if variant != "simple":
            row |= dict(seconds=seconds, scale=float(model.network_.group_scale))
        found.append(row)
    return found


def main() -> None:
    """Append one JSON line per (set, inner fold, seed, variant, method); skip what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("search.jsonl"))
    parser.add_argument("--variants", nargs="+", default=["strict", "simple"])
    parser.add_argument("--sets", nargs="+", default=list(sets()))
    parser.add_argument("--tasks", nargs="+", default=["supervised"])
    parser.add_argument("--inner", nargs="+", type=int, default=[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    keys = "set", "inner", "task", "variant", "seed"
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    done = {tuple(json.loads(line)[key] for key in keys) for line in lines}
    for name, k in product(args.sets, args.inner):
        split = nested(sets()[name](), k)
        for task, variant, seed in product(args.tasks, args.variants, args.seeds):
            if (name, k, task, variant, seed) in done:
                continue
            with args.out.open("a") as file:
                for row in rows(name, k, task, variant, seed, split):
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
