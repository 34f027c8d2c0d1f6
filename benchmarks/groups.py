"""The recorded search for how far rare groups are raised where groups are named.

Nested sets (see search.py), and of each block of DBiT-seq the next one, so that a shift between
parts of a tissue is among what is chosen on. The linear path alone: networks would add noise.

``python -m benchmarks.groups`` adds to results/groups.json what is missing (five minutes).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from benchmarks.search import nested, next_block, sets
from scmoe import Config, ScMoE
from scmoe.data import Split
from scmoe.metrics import classification_metrics
from scmoe.nn.linear import RARE_SHIFT
from scmoe.report_tried import group_shifts

RESULTS = Path(__file__).parent / "results" / "groups.json"
SHIFTS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "ari", "ece")


def splits() -> Iterator[tuple[str, str, Callable[[], Split]]]:
    """Kind, name, and how to get the split."""
    for name, k in product(sets(), (0, 1)):
        kind = "Dyngen" if name.startswith("dyngen") else name.split(" ")[0]
        if "block" not in name:
            yield kind, f"{name}, inner {k}", lambda n=name, k=k: nested(sets()[n](), k)
    for block in range(5):
        yield "dbitseq, next block", f"block {block}", lambda b=block: next_block(b)


def measure(split: Split) -> list[dict]:
    """Score the linear path with rare groups raised by each shift."""
    model = ScMoE(config=Config().replace(epochs=1)).fit(split, device="cpu", progress=False)
    model = model.without_experts()
    predicted = model.predict(split.test).drop(columns="group")
    rare = model.network_.linear.rare.numpy() / RARE_SHIFT
    logits = np.log(predicted.to_numpy().clip(1e-30)) - RARE_SHIFT * rare
    truth, groups, found = split.test.obs[split.label_key].astype(str), predicted.columns, []
    for shift in SHIFTS:
        p = softmax(logits + shift * rare, 1)
        table = pd.DataFrame(p, columns=groups)
        scores = classification_metrics(truth, groups[p.argmax(1)], table.to_numpy())
        found.append(dict(shift=shift) | {name: float(scores[name]) for name in METRICS})
    return found


def main() -> None:
    """Measure what results/groups.json lacks."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    done = {row["set"] for row in rows}
    for kind, name, get in splits():
        if name not in done:
            rows += [dict(kind=kind, set=name) | row for row in measure(get())]
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(group_shifts(pd.DataFrame(rows)).round(4).to_string())


if __name__ == "__main__":
    main()
