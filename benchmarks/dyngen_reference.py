"""Measure the simulator against real output of dyngen, and renew the summary of that output.

    python -m benchmarks.dyngen_reference --root DATA [--seeds 10]

DATA holds `dyngen_reference/`: linear_4000x120.h5ad (dynverse/dyngen_manuscript, MIT) and
chromatin_200x150.h5ad (openproblems-bio/neurips2021_multimodal_viash, MIT). Only means and
standard deviations go into the summary, book/dyngen_reference_summary.json.
"""

import argparse
import hashlib
import json
from pathlib import Path

from benchmarks.claims import resemblance

SOURCES = {
    resemblance.LINEAR: "output of dyngen, dynverse/dyngen_manuscript (MIT)",
    resemblance.CHROMATIN: "output of dyngen, openproblems-bio/neurips2021_multimodal_viash (MIT)",
}


def summarise(folder: Path, n_seeds: int) -> dict:
    """Give the statistics of dyngen's output with where they come from, as plain values."""
    tables = resemblance.describe_reference(folder, range(n_seeds))
    return {
        "made_by": "python -m benchmarks.dyngen_reference",
        "what": f"linear: mean and sd over {n_seeds} random subsamples of {resemblance.N_CELLS} "
        f"cells and {resemblance.N_GENES} genes; chromatin: all cells, one value",
        "files": {
            name: {"source": words, "md5": hashlib.md5((folder / name).read_bytes()).hexdigest()}
            for name, words in SOURCES.items()
        },
    } | {
        name: json.loads(table.reset_index().round(4).to_json(orient="records"))
        for name, table in tables.items()
    }


def main() -> None:
    """Write the summary and print ours beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, type=Path)
    parser.add_argument("--seeds", default=10, type=int)
    chosen = parser.parse_args()
    content = summarise(chosen.root / resemblance.FOLDER, chosen.seeds)
    resemblance.SUMMARY.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    found = resemblance.compare(chosen.seeds, chosen.root)
    for table in (found.linear, found.chromatin, found.hard.agg(["mean", "std", "min"]).T):
        print(table.round(3).to_string(), end="\n\n")


if __name__ == "__main__":
    main()
