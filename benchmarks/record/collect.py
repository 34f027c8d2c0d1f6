"""Gather the records of the full profile into the table of record.

``python -m benchmarks.record.collect`` adds every `metrics.json` below `book/runs/full` to
`book/reference_results.csv`, and says beside it, in a JSON, where each number comes from. A number
that is there already is replaced. The table never mixes two versions of ours in one task: when the
model's sources changed, what the old ones left is dropped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from scmoe.metrics import COLUMNS
from scmoe.record import PACKAGE

BOOK = PACKAGE.parent / "book"
TABLE = BOOK / "reference_results.csv"
KEY = [name for name in COLUMNS if name not in ("value", "data_source")]
CLAIMS = ("leaks", "conflict")  # pages with a table of record of their own
OURS = ("scmoe", "dense")  # groups of methods that the model's sources decide
MADE_FROM = ["commit", "data_source", "checksums", "platform", "device", "threads"]
TEXT = dict.fromkeys(["fold", "modalities", "target_modality", "source_modality"], str)


def read_table(path: str | Path = TABLE) -> tuple[pd.DataFrame, dict]:
    """Read the table of record and where it comes from.

    The records have the columns `scmoe.metrics.COLUMNS`, folds as text; the provenance is `runs`, a
    list of what some runs were made from with their seconds, and `refused`, by set and method.
    """
    path = Path(path)
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS), {"runs": [], "refused": {}}
    records = pd.read_csv(path, dtype=TEXT, keep_default_na=False)
    return records, json.loads(path.with_suffix(".json").read_text())


def collect(files: Iterable[Path], path: str | Path = TABLE) -> int:
    """Add runs' records to the table of record; give how many outdated ones of ours went."""
    old, provenance = read_table(path)
    runs = {name: made | {"seconds": seconds} for made in provenance["runs"]
            for name, seconds in made.pop("seconds").items()}  # fmt: skip
    refused, tables = provenance["refused"], []
    for file in sorted(files, key=lambda file: file.stat().st_mtime):
        if file.parent.name in CLAIMS:
            continue
        content = json.loads(file.read_text())
        if not content["records"] or content["records"][0]["task"] == "interpretability":
            continue  # explanations have a table of their own: benchmarks.claims
        table, its = pd.DataFrame(content["records"], columns=COLUMNS), content["provenance"]
        tables.append(table)
        name, made = _run(table, its)
        runs.pop(name, None)  # what is collected last comes last
        runs[name] = made
        dataset = table["dataset"].iloc[0]
        for row in its.get("refused", []):
            refused.setdefault(dataset, {})[row["method"]] = row["reason"]
    new = pd.concat([*([old] if len(old) else []), *tables], ignore_index=True)
    new = new.assign(fold=new["fold"].astype(str)).drop_duplicates(KEY, keep="last")
    runs, new, dropped = _one_version(runs, new)
    for dataset, method in new[["dataset", "method"]].drop_duplicates().itertuples(index=False):
        refused.get(dataset, {}).pop(method, None)  # it has run after all
    _write(new, runs, refused, Path(path))
    return dropped


def _run(table: pd.DataFrame, its: dict) -> tuple[str, dict]:
    """Name a run, and give what it was made from."""
    stamp = its.get("made_from", {"methods": "page", "sources": its["sources"], "versions": {}})
    first, parameters = table.iloc[0], its["parameters"]
    parts = [first["dataset"], stamp["methods"], parameters["task"], parameters["protocol"]]
    name = " ".join(map(str, [*parts, "fold", first["fold"], "seed", first["seed"]]))
    made = {key: its[key] for key in MADE_FROM}
    versions = its["versions"] | {k: v for k, v in stamp["versions"].items() if v}
    made |= {"methods": stamp["methods"], "sources": stamp["sources"], "versions": versions}
    return name, made | {"seconds": round(its["seconds"]["total"], 1)}


def _one_version(runs: dict, records: pd.DataFrame) -> tuple[dict, pd.DataFrame, int]:
    """Keep of ours, by task, only what the sources of the newest run made."""
    newest, kept = {}, dict(runs)  # runs are in the order in which they were collected
    for name, made in runs.items():
        newest[made["methods"], name.split(" ")[2]] = made["sources"]
    drop = pd.Series(False, index=records.index)
    for name, made in runs.items():
        dataset, group, task, protocol, *_, fold, _, seed = name.split(" ")
        if group not in OURS or made["sources"] == newest[group, task]:
            continue
        del kept[name]
        dense = records["method"].str.contains("dense")
        mine = records["method"].str.startswith("scMoE") & (dense == (group == "dense"))
        at = ["dataset", "protocol", "fold", "seed"]
        here = (records[at].astype(str) == [dataset, protocol, fold, seed]).all(axis=1)
        also = ["translation"] if task == "supervised" else []
        drop |= mine & here & records["task"].isin([task, *also])
    return kept, records[~drop], int(drop.sum())


def _write(records: pd.DataFrame, runs: dict, refused: dict, path: Path) -> None:
    """Write table and provenance, sorted; runs that were made alike are told together."""
    alike: dict[str, dict] = {}
    for name, made in sorted(runs.items()):
        kept = {key: made[key] for key in made if key != "seconds"}
        group = alike.setdefault(json.dumps(kept, sort_keys=True), kept | {"seconds": {}})
        group["seconds"][name] = made["seconds"]
    content = {"runs": list(alike.values()), "refused": {k: v for k, v in refused.items() if v}}
    records = records[COLUMNS].sort_values(COLUMNS[:-1]).round({"value": 6})
    records.to_csv(path, index=False)
    path.with_suffix(".json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_claim(name: str, folder: Path = BOOK) -> pd.DataFrame:
    """Read the table of record of a page on a claim, `leaks` or `conflict`."""
    table = pd.read_csv(folder / f"reference_{name}.csv", comment="#", keep_default_na=False)
    return table.astype({"value": float})


def collect_claim(file: Path, folder: Path = BOOK) -> Path:
    """Write what a page on a claim left as its table of record, its origin in the first lines.

    `file` is the `metrics.json` of a run of `leaks` or `conflict`, in the folder of that name.
    """
    content = json.loads(file.read_text())
    its, records = content["provenance"], pd.DataFrame(content["records"], columns=COLUMNS)
    seeds = records.groupby("dataset")["seed"].nunique()
    threads, versions = its["threads"]["torch"], its["versions"]
    path = folder / f"reference_{file.parent.name}.csv"
    path.write_text(
        f"# The {file.parent.name} page's records in the {its['parameters']['profile']} profile.\n"
        f"# Seeds: {'; '.join(f'{name} {n}' for name, n in seeds.items())}.\n"
        f"# Sources {its['sources']}, torch {versions['torch']}, {its['device']}, "
        f"threads: {threads}, {its['seconds']['total']:.0f} s.\n"
        + records.to_csv(index=False, float_format="%.5g")
    )
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", nargs="?", default=BOOK / "runs" / "full", type=Path)
    parser.add_argument("--to", default=TABLE, type=Path, help="the table (CSV)")
    given = parser.parse_args()
    for claim in CLAIMS:
        if (file := given.folder / claim / "metrics.json").exists():
            print(collect_claim(file, given.to.parent))
    n_dropped = collect(given.folder.rglob("metrics.json"), given.to)
    print(f"{given.to}: {len(read_table(given.to)[0])} records, {n_dropped} outdated ones dropped")
