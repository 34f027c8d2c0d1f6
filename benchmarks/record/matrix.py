"""Score a group of methods on folds of a data set, without a page: the full profile's runs.

``python -m benchmarks.record.matrix '{"dataset": "patchseq", "methods": "peers", "fold": [0, 1]}'``

The functions are those that a page calls, so its numbers are the same. Every fold leaves a
`metrics.json` in a folder of `out_dir`. A fold that the same sources, versions and parameters
have scored already is left as it is, so that a matrix that was cut off goes on.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pandas as pd

from benchmarks.common import trained
from benchmarks.record import contest, peers
from benchmarks.record.ensembles import Boosting, KernelEnsemble
from benchmarks.record.unitednet import UnitedNet
from scmoe import baselines, paper
from scmoe.data import DataError, Split
from scmoe.metrics import COLUMNS, evaluate
from scmoe.model import ScMoE
from scmoe.networks import Experts
from scmoe.record import SIMULATION, TRAINS, Run, source_hash, start_run, versions

SCORES = ["metrics.py", "paper.py"]
HERE = "../benchmarks/record"  # from the package's folder
SHARED = ["data", "method.py", f"{HERE}/matrix.py"]
SOURCES = {  # what decides the numbers of a group of methods
    "simple": [*SHARED, "clusters.py", *(f"baselines/{name}.py" for name in
               ("components", "classifiers", "regression", "clustering"))],
    "ensembles": [*SHARED, f"{HERE}/ensembles.py"],
    "unitednet": [*SHARED, f"{HERE}/unitednet.py", "nn/losses.py"],
    "peers": [*SHARED, f"{HERE}/peers.py", "clusters.py",
              *(f"baselines/{name}.py" for name in ("components", "clustering"))],
}  # fmt: skip
REGRESSIONS = [baselines.Ridge, baselines.ReducedRank, baselines.PLS, baselines.KernelRidge]
LIBRARIES = ["muon", "mofapy2", "univi", "scvi-tools", "matilda-sc"]


def ours(run: Run, split: Split) -> pd.DataFrame:
    """Train scMoE, and score it and its parts.

    Translations are those of the supervised run.
    """
    with run.clock("fit"):
        model = ScMoE(run.task, run.config(), run.seed)
        model = trained(model, split, run.out_dir, run.device)
    parts = [] if model.linear is None else [model.experts, model.linear]
    tables = [evaluate(method, split.test) for method in [model, *parts]]
    if run.protocol == "paper":
        tables.append(paper.score(model, split))
    table = pd.concat(tables, ignore_index=True)
    return table if run.task == "supervised" else table[table["task"] != "translation"]


def dense(run: Run, split: Split) -> pd.DataFrame:
    """Train the same network with one expert for all: as wide as all experts, or as those used.

    The first has the parameters of the sparse layer, the second its arithmetic per token.
    """
    config, tables = run.config(), []
    width, sizes = config.model.hidden or 2 * config.model.d, config.model
    for name, n in ((contest.WIDE, sizes.n_experts), (contest.NARROW, sizes.top_k)):
        one = config.replace(n_experts=1, top_k=1, hidden=n * width)
        model = Experts(run.task, one, run.seed)
        model.method = name
        with run.clock("fit"):
            model.fit(split, device=run.device, progress=False)
        tables.append(evaluate(model, split.test, split.label_key))
    return pd.concat(tables)


def others(group: str, split: Split) -> Iterator:
    """Give the methods of a group that are not ours, for both tasks, not yet fitted.

    Simple ones read every combination of modalities, fused early and late.
    """
    names, several = split.modalities, len(split.modalities) > 1
    if group == "peers":
        kinds = [peers.MOFA, peers.UniVI, peers.TotalVI, peers.MultiVI, peers.Matilda]
        yield from (kind() for kind in kinds + [peers.WNN] * several)
    elif group == "unitednet":
        yield from (UnitedNet("supervised"), UnitedNet("unsupervised"))
    elif group == "ensembles":
        yield from (kind() for kind in [Boosting] + [KernelEnsemble] * several)
    else:
        subsets = [list(c) for n in range(1, len(names) + 1) for c in combinations(names, n)]
        for subset in subsets:
            for fusion in ("late", "early") if len(subset) > 1 else ("late",):
                yield baselines.LogisticRegression(fusion, subset)
                yield baselines.DiscriminantAnalysis(fusion, subset)
        yield baselines.LinearEnsemble()
        if "spatial" in split.test.obsm:
            yield baselines.CoordinateNeighbours()
        for kind in REGRESSIONS if several else []:
            yield kind()
        for subset in subsets:
            yield from (baselines.KMeans(modalities=subset), baselines.Leiden(modalities=subset))


def score(run: Run, group: str, split: Split) -> tuple[pd.DataFrame, list[dict]]:
    """Fit and score the methods of a group: records, and why which method could not be used."""
    if group in ("scmoe", "dense"):
        return {"scmoe": ours, "dense": dense}[group](run, split), []
    tables, refused = [], []
    for method in others(group, split):
        try:
            table = evaluate(method.fit(split), split.test)
        except Exception as error:
            expected = isinstance(error, DataError | ImportError)
            if not expected and group != "peers":
                raise
            kind = "" if expected else f"its library failed: {type(error).__name__}: "
            refused.append({"method": method.method, "reason": f"{kind}{error}"})
            continue
        if hasattr(method, "for_task"):
            method = method.for_task("unsupervised", split)
            tables.append(table)
            table = evaluate(method, split.test, split.label_key)
        if method.task == "unsupervised":
            table = table[table["task"] != "translation"]  # the supervised one's are kept
        tables.append(table)
    return pd.concat([pd.DataFrame(columns=COLUMNS), *tables]), refused


def made_from(group: str, parameters: dict) -> dict:
    """Give what decides the numbers of a run, for comparison with a later one."""
    libraries = versions(["torch", "scikit-learn", *(LIBRARIES if group == "peers" else [])])
    sources = source_hash(SOURCES.get(group, TRAINS) + SCORES)
    kept = {k: v for k, v in parameters.items() if k not in ("out_dir", "data_root")}
    return {"methods": group, "sources": sources, "versions": libraries, "parameters": kept}


def score_folds(dataset: str, methods: str, fold, out_dir: str, **parameters) -> None:
    """Score a group of methods on each fold, and leave a `metrics.json` for each."""
    if methods not in ("scmoe", "dense", *SOURCES):
        raise ValueError(f"methods={methods!r} must be scmoe, dense, simple, unitednet or peers")
    for number in fold if isinstance(fold, list) else [fold]:
        folder = Path(out_dir) / f"fold_{number}"
        given = parameters | {"fold": number, "out_dir": str(folder), "profile": "full"}
        stamp = made_from(methods, {"dataset": dataset} | given)
        file = folder / "metrics.json"
        if file.exists() and json.loads(file.read_text())["provenance"].get("made_from") == stamp:
            continue
        run = start_run(dataset, given, [name for name in SIMULATION if name in given])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            split = run.load()
            records, refused = score(run, methods, split)
        run.finish(records, made_from=stamp, refused=refused)
        shutil.rmtree(folder / "model", ignore_errors=True)
        (folder / "made_from.json").unlink(missing_ok=True)
        print(f"{file}: {len(records)} records, {run.seconds['total']:.0f} s", flush=True)


if __name__ == "__main__":
    score_folds(**json.loads(sys.argv[1]))
