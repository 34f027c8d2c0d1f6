"""The recorded search for the strict recipe: what was tried, and whether it helped.

Nothing in it reads a published test cell: a published fold's training and validation cells are cut
again, into four inner folds, and what is called test below is one of these.

``python -m benchmarks.search`` adds to results/search.jsonl what is missing (half an hour).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from time import perf_counter

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD

from scmoe import Config, ScMoE, baselines, evaluate
from scmoe.data import Split, Transform, load, simulate_dyngen, split_mudata
from scmoe.data.split import stratified

N_INNER = 4
RESULTS = Path(__file__).parent / "results" / "search.jsonl"
SEARCHED = (
    "patchseq", "dbitseq", "atacseq s1d1", "dyngen bifurcating default", "dyngen linear hard"
)  # fmt: skip
ALONE = dict(linear_path=False, refit=False)
EXPERTS, ENSEMBLE, BY_EXPRESSION = (
    "experts alone",
    "mean of three networks",
    "patches by expression",
)


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


def pooled(split: Split) -> md.MuData:
    """Training and validation cells together."""
    parts = split.train, split.val
    pool = md.MuData({m: ad.concat([p[m] for p in parts], merge="same") for m in split.modalities})
    pool.obs[split.label_key] = pd.concat([p.obs[split.label_key].astype(str) for p in parts])
    return pool


def nested(split: Split, k: int) -> Split:
    """Inner fold ``k``: its "test" cells are training or validation cells of ``split``."""
    pool = pooled(split)
    labels = pool.obs[split.label_key].to_numpy()
    rng = np.random.default_rng(7)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), int)
    fold[order] = np.arange(len(labels)) % N_INNER
    return _cut(split, pool, fold == k, k)


def next_block(number: int) -> Split:
    """Of DBiT-seq without block ``number``, the next block held out."""
    split, other = (load("dbitseq", f"block-{b % 5}") for b in (number, number + 1))
    pool = pooled(split)
    return _cut(split, pool, pool.obs_names.isin(other.test.obs_names), number)


def _cut(split: Split, pool: md.MuData, test: np.ndarray, seed: int) -> Split:
    labels, names, rest = (
        pool.obs[split.label_key].to_numpy(),
        pool.obs_names,
        np.flatnonzero(~test),
    )
    val = names[rest[stratified(labels[rest], 0.15, seed)]]
    inner = split_mudata(pool, split.label_key, test=list(names[test]), val=list(val), seed=seed)
    inner.name, inner.fold, inner.data_source = split.name, split.fold, split.data_source
    return inner


VARIANTS = {  # of the strict configuration; most without the linear path, which would hide them
    "strict": {},
    "strict, dense of equal weights": dict(n_experts=1, top_k=1, hidden=8 * 128),
    "strict, label smoothing": dict(label_smoothing=0.1),
    EXPERTS: ALONE,
    "wider": ALONE | dict(d=128),
    "sixteen experts": ALONE | dict(n_experts=16),
    "dense of equal weights": ALONE | dict(n_experts=1, top_k=1, hidden=8 * 128),
    "one router": ALONE | dict(n_routers=1),
    "no modality dropout": ALONE | dict(modality_dropout=0.0),
    "more dropout": ALONE | dict(dropout=0.3),
    "label smoothing": ALONE | dict(label_smoothing=0.1),
    "smaller steps": ALONE | dict(lr=3e-4),
    "stronger decay": ALONE | dict(weight_decay=0.1),
    BY_EXPRESSION: ALONE,
    ENSEMBLE: ALONE,
}


class Ensemble:
    """The mean of what several models say."""

    def __init__(self, models: list[ScMoE]):
        self.models = models

    def __getattr__(self, name):
        return getattr(self.models[0], name)

    def predict(self, mdata) -> pd.DataFrame:
        """Groups by mean probability."""
        mean = sum(m.predict(mdata).drop(columns="group") for m in self.models) / len(self.models)
        mean.insert(0, "group", mean.idxmax(axis=1))
        return mean

    def translate(self, *args, **settings) -> np.ndarray:
        """Mean translation."""
        return np.mean([m.translate(*args, **settings) for m in self.models], 0)


def by_expression(split: Split) -> Split:
    """The same split, features sorted so that those that vary together share a patch."""
    n_patches, order = Config().model.n_patches, {}
    for name, part in Transform().fit(split.train).transform(split.train).mod.items():
        loadings = TruncatedSVD(min(20, part.n_vars - 1), random_state=0).fit(part.X).components_.T
        directions = loadings / np.linalg.norm(loadings, axis=1, keepdims=True).clip(1e-12)
        alike = KMeans(n_patches, n_init=3, random_state=0).fit_predict(directions)
        kept = part.var_names[np.argsort(alike, kind="stable")]
        order[name] = [*kept, *split.train[name].var_names.difference(kept)]
    parts = {}
    for part in ("train", "val", "test"):
        cells = getattr(split, part)
        parts[part] = md.MuData({n: a[:, order[n]].copy() for n, a in cells.mod.items()})
        parts[part].obs = cells.obs
    return replace(split, **parts)


def simple(task: str) -> list:
    """The simple methods that the recipe is held against."""
    b = baselines
    if task == "unsupervised":
        return [b.KMeans(), b.Leiden(), b.WNN()]
    groups = [kind(fusion) for kind in (b.LogisticRegression, b.DiscriminantAnalysis)
              for fusion in ("late", "early")]  # fmt: skip
    return [*groups, b.Ridge(), b.PLS(), b.ReducedRank(), b.KernelRidge()]


def fitted(variant: str, task: str, seed: int, split: Split):
    """Fit a variant."""
    config = Config().replace(**VARIANTS[variant])
    seeds = range(3 * seed, 3 * seed + 3) if variant == ENSEMBLE else [seed]
    models = [ScMoE(task, config, s).fit(split, device="cpu", progress=False) for s in seeds]
    return models[0] if len(models) == 1 else Ensemble(models)


def rows(name: str, k: int, task: str, variant: str, seed: int, split: Split) -> list[dict]:
    """Scores on the inner fold's held-out cells of one variant, or of the simple methods."""
    start = perf_counter()
    if variant == "simple":
        models = [(m.method, m) for m in [m.fit(split) for m in simple(task)]]
    else:
        split = by_expression(split) if variant == BY_EXPRESSION else split
        model = fitted(variant, task, seed, split)
        models = [(variant, model)]
        if model.config.model.linear_path:
            models.append((f"{variant}, linear path", model.without_experts()))
    seconds, found = perf_counter() - start, []
    for label, model in models:
        table = evaluate(model, split.test, split.label_key)
        groups = table[table["task"] != "translation"].set_index("metric")["value"]
        r2 = table.loc[table["metric"] == "r2", "value"].mean()
        row = dict(set=name, inner=k, task=task, seed=seed, variant=variant, method=label)
        row |= {metric: float(value) for metric, value in groups.items()}
        found.append(row | dict(r2=float(r2), seconds=seconds))
    return found


def main() -> None:
    """Append one JSON line per (set, inner fold, seed, variant, method); skip what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS, "simple"])
    parser.add_argument("--sets", nargs="+", default=SEARCHED)
    parser.add_argument("--tasks", nargs="+", default=["supervised"])
    parser.add_argument("--inner", nargs="+", type=int, default=[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    keys = "set", "inner", "task", "variant", "seed"
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    done = {tuple(json.loads(line)[key] for key in keys) for line in lines}
    for name, k in product(args.sets, args.inner):
        split = nested(sets()[name](), k)
        for task, variant, seed in product(args.tasks, args.variants, args.seeds):
            if (name, k, task, variant, seed) not in done:
                found = rows(name, k, task, variant, seed, split)
                with RESULTS.open("a") as file:
                    file.write("".join(json.dumps(row) + "\n" for row in found))


if __name__ == "__main__":
    main()
