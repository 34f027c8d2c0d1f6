"""The table of record of explanations: study a model, its linear neighbour and the published one.

    python -m benchmarks.claims.reference runs/explained --sets dyngen patchseq dbitseq

fits what is not fitted yet below the folder, explains and scores it, and puts the scores into
`book/reference_interpretability.csv` (records) and `.json` (where they come from), in the place of
those of the same data set and subject.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from benchmarks.claims.study import Plan, score
from benchmarks.claims.truth import recovered
from benchmarks.common import trained
from benchmarks.record.collect import BOOK
from scmoe.data import DATASETS, Split
from scmoe.metrics import COLUMNS
from scmoe.model import ScMoE
from scmoe.record import Run

FILE = BOOK / "reference_interpretability.csv"
KEPT = ("parameters", "data_source", "checksums", "commit", "sources", "versions", "platform",
        "device", "threads", "seconds", "peak_memory_mb")  # fmt: skip
SUBJECTS = {  # who is explained: protocol of the run, part of the model, protocol of the records
    "scMoE experts": ("strict", "experts", "strict"),
    "scMoE linear": ("strict", "linear", "strict, linear part"),
    "scMoE published": ("paper", "experts", "paper"),
}


def study(run: Run, plan: Plan, part: str = "experts") -> list[pd.DataFrame]:
    """Fit, explain and score: tables method × score."""
    split = run.load()
    model = _fitted(run, split, part)
    folds = [fold for fold in DATASETS[run.dataset].folds if fold != run.fold]
    changes = {
        "seeds": [{"seed": run.seed + 1 + i} for i in range(plan.n_seeds)],
        "folds": [{"fold": fold} for fold in folds[: plan.n_folds]],
    }
    others = {what: [_other(run, part, each) for each in some] for what, some in changes.items()}
    with run.clock("explain"):
        tables = [score(model, split, plan, others, run.seed)]
    if "truth" in split.train.uns:
        table = recovered(model, split, plan, run.seed).unstack("what")
        tables.append(table.set_axis([f"{score} of {what}" for score, what in table], axis=1))
    return tables


def _fitted(run: Run, split: Split, part: str):
    model = ScMoE(run.task, run.config(), run.seed)
    return getattr(trained(model, split, run.out_dir, run.device), part)


def _other(run: Run, part: str, change: dict):
    name = "-".join(f"{key}_{value}" for key, value in change.items())
    other = replace(run, **change, out_dir=run.out_dir / name, seconds={}, split=None)
    return _fitted(other, other.load(), part)


def as_records(tables: Sequence[pd.DataFrame], run: Run, protocol: str) -> pd.DataFrame:
    """Scores as records: `task` is "interpretability", `method` the way to explain."""
    parts = [
        table.rename_axis("method").reset_index().melt("method", var_name="metric")
        for table in tables if not table.empty
    ]  # fmt: skip
    split = run.split
    return pd.concat(parts, ignore_index=True).dropna(subset="value").assign(
        dataset=split.name, data_source=split.data_source, protocol=protocol, fold=split.fold,
        seed=run.seed, task="interpretability", modalities="+".join(split.modalities),
        target_modality="", source_modality="",
    )[COLUMNS]  # fmt: skip


def put(metrics: Path, file: Path = FILE) -> None:
    """Put the records of a `metrics.json` into the file, and where they come from beside it."""
    found, provenance = json.loads(metrics.read_text()), {}
    table = pd.DataFrame(found["records"], columns=COLUMNS)
    dataset, protocol = table.loc[0, ["dataset", "protocol"]]
    if file.exists():
        kept = pd.read_csv(file)
        same = kept["dataset"].eq(dataset) & kept["protocol"].eq(protocol)
        table = pd.concat([kept[~same], table])
        provenance = json.loads(file.with_suffix(".json").read_text())
    provenance[f"{dataset}, {protocol}"] = {key: found["provenance"][key] for key in KEPT}
    table.to_csv(file, index=False, float_format="%.5g", lineterminator="\n")
    file.with_suffix(".json").write_text(json.dumps(provenance, indent=1) + "\n")


def main() -> None:
    """Study what is asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--sets", nargs="+", default=["dyngen", "dbitseq", "patchseq"])
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=SUBJECTS)
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    for dataset in asked.sets:
        for subject in asked.subjects:
            protocol, part, name = SUBJECTS[subject]
            folder = asked.out / f"{dataset}-{protocol}"
            run = Run(dataset, protocol=protocol, device=asked.device, out_dir=folder)
            plan = Plan() if protocol == "strict" else Plan(n_folds=0)
            records = as_records(study(run, plan, part), run, name)
            put(run.finish(records))


if __name__ == "__main__":
    main()
