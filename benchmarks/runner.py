"""One runner for whatever asks "what if": the learning curve, and the search over the recipe.

    python -m benchmarks.runner curve [--sets mop] [--sizes 500 2000 8000] [--seeds 0 1 2] [--minutes 60]
    python -m benchmarks.runner search [--sets patchseq dbitseq ...]

A case trains one method on some cells and scores it once. What is done stays done: each case adds a
line to ``benchmarks/results/<table>.jsonl``, and one that is there for these sources is not run
again. Several processes may share a table. The curve is scored on test cells, with which nothing was
chosen; the search on a fifth of the training cells, and test cells are not even loaded into it.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

import scmoe
from benchmarks.common import RESULTS, rounded
from benchmarks.record.ensembles import Boosting, KernelEnsemble
from scmoe import baselines
from scmoe.data import Split
from scmoe.data.cells import Cells
from scmoe.data.split import stratified
from scmoe.networks import Experts
from scmoe.record import peak_memory, source_hash

KEY = ("set", "cells", "method", "seed")  # of a case
SIZES = (500, 2000, 8000, 250, 1000, 4000)  # the most telling first
SIMULATED = {
    f"dyngen {backbone}": {"backbone": backbone} for backbone in ("bifurcating", "converging")
}
DEFAULT = scmoe.Config().model
SPARSE = DEFAULT.n_experts * (DEFAULT.hidden or 2 * DEFAULT.d)
ONE = {"n_experts": 1, "top_k": 1}
DENSE = {
    "dense, equal parameters": ONE | {"hidden": SPARSE},
    "dense, equal arithmetic": ONE | {"hidden": SPARSE * DEFAULT.top_k // DEFAULT.n_experts},
}
RIVALS = {
    "logistic regression": lambda: baselines.LogisticRegression("late"),
    "ridge": baselines.Ridge,
    "kernel ridge": baselines.KernelRidge,
    "kernel ridge ensemble": KernelEnsemble,
    "gradient boosting": Boosting,
}
GRID = {f"{e} experts, top {k}": {"n_experts": e, "top_k": k}
        for e in (2, 4, 8, 16, 32) for k in (1, 2, 4) if k <= e and (e, k) != (8, 2)}  # fmt: skip
VARIANTS = {
    "the recipe": {},
    **DENSE,
    "1 member": {"members": 1},
    "3 members": {"members": 3},
    "12 members": {"members": 12},
    "attention": {"attention": True},
    "4 patches": {"n_patches": 4},
    "4 patches, attention": {"n_patches": 4, "attention": True},
    "30 components": {"n_components": 30},
    "120 components": {"n_components": 120},
    "4 experts": {"n_experts": 4},
    "16 experts": {"n_experts": 16},
    "top 1": {"top_k": 1},
    "top 4": {"top_k": 4},
    "no balance loss": {"gate_weight": 0.0},
    "ten times the balance loss": {"gate_weight": 0.1},
    "no input dropout": {"input_dropout": 0.0},
    "no dropout": {"dropout": 0.0},
    "no modality dropout": {"modality_dropout": 0.0},
    "groups alone": {"decoder_weight": 0.0},
    "twice as wide": {"d": 128, "hidden": 64},
    "a constant rate of 0.003": {"max_steps": None, "lr": 0.003},
}
SEARCHED = ("patchseq", "dbitseq", "dyngen bifurcating hard, 500", "mop, 2000")


def load(name: str, fold: int, seed: int) -> Split:
    """Give cells of a set by the name it has in a table; the simulated ones have 10,000 cells."""
    if name in SIMULATED:
        return scmoe.data.load_simulated(
            fold, seed, ["mrna", "protein"], setting="hard", cells=10_000, **SIMULATED[name]
        )
    if name.startswith("dyngen"):
        return scmoe.data.load_simulated(fold, seed, setting="hard", backbone="bifurcating")
    return scmoe.data.load(name.split(",")[0], fold=fold, seed=seed, allow_standin=False)


def some_of(split: Split, n: int, seed: int) -> Split:
    """The split with ``n`` of its training and validation cells, in the same proportion."""
    total = split.train.n_obs + split.val.n_obs
    if n >= total:
        return split
    parts = {}
    for name in ("train", "val"):
        cells = getattr(split, name)
        rows = stratified(cells.obs[split.label_key].astype(str).to_numpy(), n / total, seed)
        (parts[name],) = Cells.of(cells).take([rows])
    return _with_groups(replace(split, **parts))


def nested(split: Split, seed: int) -> Split:
    """Training cells only: a fifth of them in the place of the test cells."""
    train = split.train
    held_out = stratified(train.obs[split.label_key].astype(str).to_numpy(), 0.2, seed)
    rest = np.setdiff1d(np.arange(train.n_obs), held_out)
    train, test = Cells.of(train).take([rest, held_out])
    return _with_groups(replace(split, train=train, test=test))


def _with_groups(split: Split) -> Split:
    known = [part.obs[split.label_key].astype(str) for part in (split.train, split.val)]
    return replace(split, groups=sorted(set(pd.concat(known))))


def curve(sets, sizes, seeds) -> Iterator[dict]:
    """Cases of the learning curve; a seed has test cells of its own, too."""
    methods = ["scMoE", *DENSE, "logistic regression", "ridge", "kernel ridge"]
    methods += ["gradient boosting", "kernel ridge ensemble"]
    for name in sets or ("mop", *SIMULATED):
        yield from _cases([name], sizes or SIZES, methods, seeds)
        yield from _cases([name], [8000], GRID, seeds)


def search(sets, sizes, seeds) -> Iterator[dict]:
    """Cases of the search, on nested cells."""
    for variant in VARIANTS:
        yield from _cases(sets or SEARCHED, [None], [variant], seeds)


def _cases(*choices) -> Iterator[dict]:
    return (dict(zip(KEY, values, strict=True)) for values in product(*choices))


def run(table: str, case: dict) -> dict:
    """Train and score one case; rows are those of :func:`scmoe.evaluate`, briefly."""
    seed, name = case["seed"], case["method"]
    split = load(case["set"], fold=seed, seed=seed)
    if table == "curve":
        split = some_of(split, case["cells"], seed)
    else:
        wanted = case["set"].partition("mop, ")[2]  # so many cells of it
        split = nested(some_of(split, int(wanted), seed) if wanted else split, seed)
    start = time.perf_counter()
    if name in RIVALS:
        parts = [RIVALS[name]().fit(split)]
    elif name == "scMoE":
        model = scmoe.ScMoE(seed=seed).fit(split, device="cpu", progress=False)
        parts = [model, model.experts, model.linear]
    else:
        changes = (DENSE | GRID | VARIANTS)[name]
        model = Experts(config=scmoe.Config().replace(**changes), seed=seed)
        parts = [model.fit(split, device="cpu", progress=False)]
    seconds = time.perf_counter() - start
    scores = {}
    for part in parts:
        label = part.method if len(parts) > 1 else name
        found = scmoe.evaluate(part, split.test, split.label_key)
        scores[label] = {
            row.metric if row.task != "translation"
            else f"{row.metric} {row.target_modality} from {row.source_modality}":
            rounded(float(row.value), 5)
            for row in found.itertuples()
            if row.metric in ("accuracy", "balanced_accuracy", "macro_f1", "ari", "r2")
        }  # fmt: skip
    if len(parts) == 1 and isinstance(parts[0], Experts):
        scores[name]["loss of cells held out"] = rounded(float(parts[0].history_["val_loss"].min()))
    return {
        **case,
        "scores": scores,
        "seconds": rounded(seconds),
        "gigabytes": rounded(peak_memory() / 2**30),
        "source": split.data_source,
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or None,
        "sources": source_hash(),
    }


def read(table: str, folder: Path = RESULTS) -> list[dict]:
    """Lines of a table, of the newest sources of each case."""
    path = folder / f"{table}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return list({_key(row): row for row in map(json.loads, lines)}.values())


def _key(row: dict) -> tuple:
    return tuple(row[name] for name in KEY)


def main() -> None:
    """Run the cases of a table that are missing, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=("curve", "search"))
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--sizes", nargs="+", type=int)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    path = given.out / f"{given.table}.jsonl"
    if given.case is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            line = json.dumps(run(given.table, given.case)) + "\n"
        given.out.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:  # one write: lines of several processes do not mix
            file.write(line)
        return
    stop = time.monotonic() + 60 * given.minutes
    done = {_key(row) for row in read(given.table, given.out) if row["sources"] == source_hash()}
    cases = {"curve": curve, "search": search}[given.table]
    for case in cases(given.sets, given.sizes, given.seeds):
        if _key(case) in done or given.methods and case["method"] not in given.methods:
            continue
        if time.monotonic() > stop:
            break
        command = [sys.executable, "-m", "benchmarks.runner", given.table, "--out", str(given.out)]
        start = time.monotonic()
        result = subprocess.run([*command, "--case", json.dumps(case)])
        outcome = "" if result.returncode == 0 else f"  failed ({result.returncode})"
        print(*_key(case), f"{time.monotonic() - start:.0f} s{outcome}", flush=True)


if __name__ == "__main__":
    main()
