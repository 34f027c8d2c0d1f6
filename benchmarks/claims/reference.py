"""The scores of explanations that are kept with the book, beside which a page shows its own run.

    python -m scmoe.explain.reference book/runs/quick book/runs/full

gathers the `metrics.json` of the interpretability runs below some folders into
`book/reference_interpretability.csv` (records) and `.json` (where they came from); of two runs of
the same data set and protocol, that of the later folder is kept, and what is there already stays
where no run replaces it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

from scmoe.explain.attribution import METHODS, PRIMARY
from scmoe.explain.study import Study
from scmoe.metrics import COLUMNS

FILE = Path(__file__).resolve().parents[2] / "book" / "reference_interpretability.csv"
KEPT = ("parameters", "data_source", "checksums", "commit", "sources", "versions", "platform",
        "device", "threads", "seconds", "peak_memory_mb")  # fmt: skip
AGAINST = "primary against it, "


def gather(*folders: Path, file: Path = FILE) -> pd.DataFrame:
    """Add the records of all interpretability runs below `folders`, and their provenance."""
    tables, provenance = {}, {}
    if file.exists():
        kept = pd.read_csv(file).groupby(["dataset", "protocol"], sort=False)
        tables = {", ".join(names): table for names, table in kept}
        provenance = json.loads(file.with_suffix(".json").read_text())
    left = "interpretability*/metrics.json"
    for path in (path for folder in folders for path in sorted(Path(folder).glob(left))):
        found = json.loads(path.read_text())
        table = pd.DataFrame(found["records"], columns=COLUMNS)
        name = f"{table['dataset'].iloc[0]}, {table['protocol'].iloc[0]}"
        tables[name] = table
        provenance[name] = {key: found["provenance"][key] for key in KEPT}
    records = pd.concat(tables.values(), ignore_index=True)
    records.to_csv(file, index=False, float_format="%.5g", lineterminator="\n")
    file.with_suffix(".json").write_text(json.dumps(provenance, indent=1) + "\n")
    return records


def profile(dataset: str, protocol: str, file: Path = FILE) -> str:
    """The profile that a data set's stored scores were made in."""
    found = json.loads(file.with_suffix(".json").read_text())[f"{dataset}, {protocol}"]
    return found["parameters"]["profile"]


def networks(dataset: str, protocol: str, file: Path = FILE) -> pd.DataFrame:
    """The stored recovery of many simulated networks: `backbone, seed, what, by, auprc, chance`."""
    records = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=COLUMNS)
    chosen = records[records["dataset"].eq(dataset) & records["protocol"].eq(protocol)]
    named = r"^(?P<column>\w+) over networks of (?P<what>.*), (?P<backbone>\w+) (?P<seed>\d+)$"
    parts = chosen["metric"].str.extract(named)
    rows = parts.assign(by=chosen["method"], value=chosen["value"]).dropna(subset="column")
    keys = ["backbone", "seed", "what", "by"]
    return rows.pivot(index=keys, columns="column", values="value").reset_index()


def stored(dataset: str, protocol: str, file: Path = FILE) -> Study | None:
    """The stored scores of a data set in a protocol, as a study without its cells; None: none."""
    if not file.exists():
        return None
    records = pd.read_csv(file)
    chosen = records[records["dataset"].eq(dataset) & records["protocol"].eq(protocol)]
    wide = chosen.pivot_table(index="method", columns="metric", values="value")
    names = {words: name for name, words in METHODS.items()}
    wide = wide[wide.index.isin(names)].rename(index=names)
    wide = wide.reindex([name for name in METHODS if name in wide.index])
    if PRIMARY not in wide.index:
        return None
    against = [name for name in wide if name.startswith(AGAINST)]
    versus = wide[against].dropna(how="all").rename(columns=lambda name: name.removeprefix(AGAINST))
    table = wide.drop(columns=against).dropna(subset="seconds")
    return Study(table, versus, pd.DataFrame(), {}, None)


if __name__ == "__main__":
    print(f"{len(gather(*map(Path, sys.argv[1:])))} records in {FILE}")
