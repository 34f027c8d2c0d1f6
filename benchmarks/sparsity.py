"""Does sparsity help? Experts, how many of them a token meets, and shared or separate routers.

All networks have the same number of expert weights (experts x hidden width is constant), and no
linear path, so that what is compared has to come from them. Dense networks stand in for the experts
at equal weights and at equal arithmetic. Scored on validation cells; no test cell is read.

``python -m benchmarks.sparsity --seconds 240`` adds what is missing to results/sparsity.json.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.common import machine
from scmoe import Config, ScMoE, evaluate
from scmoe.data import load, simulate_dyngen, split_mudata

RESULTS = Path(__file__).parent / "results" / "sparsity.json"
TOTAL_HIDDEN = 1024  # over all experts: the strict recipe's 8 x 128
DEAD = 0.01  # an expert is dead below this share of what a balanced router would give it
SETTINGS = dict(linear_path=False, refit=False, epochs=60, patience=10)
SETS = {
    "patchseq, fold 0": lambda: load("patchseq", 0),
    "simulated, bifurcating": lambda: split_mudata(
        simulate_dyngen(backbone="bifurcating", seed=101), "label"
    ),
}


def variants() -> dict[str, dict]:
    """Name and settings of every network."""
    found = {}
    for hidden in (32, 64, 128, 256, 512, 1024):
        found[f"dense, width {hidden}"] = dict(n_experts=1, top_k=1, n_routers=1, hidden=hidden)
    for n, k, shared in product((4, 16, 32), (1, 2, 4), (True, False)):
        name = f"{n} experts, {k} a token, {'one router' if shared else 'a router each'}"
        found[name] = dict(
            n_experts=n, top_k=k, hidden=TOTAL_HIDDEN // n, n_routers=1 if shared else None
        )
    return found


def measure(split, settings: dict, seed: int) -> dict:
    """Train one network and score it on the validation cells."""
    model = ScMoE(config=Config().replace(**SETTINGS, **settings), seed=seed)
    model.fit(split, device="cpu", progress=False)
    best = model.history_.loc[model.history_["val_loss"].idxmin()]
    table = evaluate(model, split.val, split.label_key)
    groups = table[table["task"] == "supervised"].set_index("metric")["value"]
    routing = model.get_routing(split.val)
    share = np.asarray(routing.X.sum(0)).ravel()
    use = [share[routing.var["expert"].to_numpy() == e].sum() for e in range(settings["n_experts"])]
    use = np.array(use) / np.sum(use) * len(use)  # 1: as much as a balanced router gives
    experts = model.network_.layers[0].experts
    return dict(
        loss=float(best["val_loss"]),
        group_loss=float(best["val_group"]),
        accuracy=float(groups["accuracy"]),
        macro_f1=float(groups["macro_f1"]),
        r2=float(table.loc[table["metric"] == "r2", "value"].mean()),
        epochs=int(best["epoch"]),
        weights=sum(p.numel() for p in experts.parameters()),
        met=settings["top_k"] * settings["hidden"],  # hidden units a token meets: its arithmetic
        imbalance=float(use.std()),  # coefficient of variation of the experts' use
        dead=int((use < DEAD).sum()),
    )


def main() -> None:
    """Measure what results/sparsity.json lacks, for as long as is allowed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    done = {(row["set"], row["variant"], row["seed"]) for row in rows}
    start = perf_counter()
    for seed, name in product(range(args.seeds), SETS):
        split = SETS[name]()
        for variant, settings in variants().items():
            if (name, variant, seed) in done or perf_counter() - start > args.seconds:
                continue
            row = dict(set=name, variant=variant, seed=seed, **settings)
            rows.append(row | measure(split, settings, seed))
            note = dict(machine=machine(), settings=SETTINGS, total_hidden=TOTAL_HIDDEN, rows=rows)
            RESULTS.write_text(json.dumps(note, indent=1) + "\n")


if __name__ == "__main__":
    main()
