"""What the page on sparsity shows and says, worded from the benchmark's committed results."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from scmoe import conflict, plot, report
from scmoe.plot import _panels

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "sparsity.json"
WEIGHTS, ARITHMETIC = "equal weights", "equal arithmetic"
SCORES = {"accuracy": "accuracy", "macro_f1": "macro F1", "r2": "R²", "loss": "validation loss"}
COLOURS = {1: "#CC6677", 4: "#88CCEE", 16: "#44AA99", 32: "#332288"}  # by number of experts
SETS = {"patchseq, fold 0": "Patch-seq, fold 0", "simulated, bifurcating": "Dyngen, simulated"}
LEAST_PAIRS = 3  # of set and seed, for a verdict
UNIT, ALL, PANELS = ["set", "seed"], "all sets", ["accuracy", "r2"]


def load(path: str | Path = RESULTS) -> dict:
    """Read what ``python -m benchmarks.sparsity`` left; no rows where it has not run.

    A set and seed on which not all networks have been trained is left out.
    """
    report.mark(None)
    if not Path(path).exists():
        return {"rows": pd.DataFrame()}
    found = json.loads(Path(path).read_text())
    rows = pd.DataFrame(found["rows"]).replace({"set": SETS})
    rows["sparse"] = rows["top_k"] < rows["n_experts"]  # a token meets some of several experts
    n = rows.groupby(UNIT)["variant"].transform("nunique")
    return found | {"rows": rows[n == rows["variant"].nunique()]}


def against_dense(found: dict, at: str) -> pd.DataFrame:
    """Give sparse less dense networks, at `WEIGHTS` or `ARITHMETIC`.

    Differences are averaged over all sparse networks of a set and seed; intervals are over those.
    """
    rows, names = found["rows"], ["sparse", "dense"]
    sparse, dense = rows[rows["sparse"]], rows[rows["n_experts"] == 1]
    if at == WEIGHTS:
        return _paired(names, sparse, dense[dense["met"] == found["total_hidden"]])
    return _paired(names, sparse, dense, "met")


def shared_routers(found: dict) -> pd.DataFrame:
    """Give networks whose modalities share a router less those with a router for each."""
    rows = found["rows"][found["rows"]["n_experts"] > 1]
    own = rows["n_routers"].isna()
    return _paired(["one router", "a router each"], rows[~own], rows[own], "n_experts", "top_k")


def _paired(names: list[str], first: pd.DataFrame, second: pd.DataFrame, *keys: str):
    """Give means of both and their difference with its interval, by set and score."""
    both, found = first.merge(second, on=[*UNIT, *keys], suffixes=(" 1", " 2")), []
    for name, part in [(ALL, both), *both.groupby("set", sort=False)]:
        for score, words in SCORES.items():
            a, b = part[f"{score} 1"], part[f"{score} 2"]
            change = (a - b).groupby([part[key] for key in UNIT]).mean()
            numbers = [a.mean(), b.mean(), *conflict.interval(change), len(change)]
            found.append([name, words, *numbers])
    columns = ["set", "score", *names, "difference", "low", "high", "pairs"]
    return pd.DataFrame(found, columns=columns).set_index(["set", "score"])


def networks(found: dict) -> pd.DataFrame:
    """Give every network's scores and use of experts: means over seeds."""
    names = {"n_experts": "experts", "top_k": "a token", "hidden": "width"}
    rows = found["rows"].rename(columns=SCORES | names)
    dense, own = rows["experts"] == 1, rows["n_routers"].isna()
    rows["routers"] = np.select([dense, own], ["–", "own"], "shared")
    rows.loc[dense, ["imbalance", "dead"]] = np.nan
    columns = ["accuracy", "R²", "imbalance", "dead"]
    keys = ["set", "experts", "a token", "width", "routers"]
    return rows.groupby(keys, sort=False)[columns].mean()


TABLES = {
    "Sparse less dense at equal weights, 95 % intervals": partial(against_dense, at=WEIGHTS),
    "Sparse less dense at equal arithmetic, 95 % intervals": partial(against_dense, at=ARITHMETIC),
    "One router less a router each, 95 % intervals": shared_routers,
    "Every network, means over seeds": networks,
}
AT_WEIGHTS, AT_ARITHMETIC, ROUTERS, NETWORKS = TABLES


def table(found: dict, caption: str) -> HTML | Markdown:
    """Show one of `TABLES`, or say that it was not measured."""
    if found["rows"].empty:
        return _missing(caption)
    return report.table(TABLES[caption](found), caption)


def _missing(what: str) -> Markdown:
    return Markdown(f"*{what}: not measured yet.*")


def takeaway(found: dict) -> Markdown:
    """Word the answer: does sparsity help, at equal weights and at equal arithmetic?"""
    if found["rows"].empty:
        return Markdown("**Takeaway.** Nothing was measured yet.")
    changes = {at: against_dense(found, at).xs(ALL) for at in (WEIGHTS, ARITHMETIC)}
    said = [f"At {at}, sparsity {_verdict(new)}: {_listed(new)}." for at, new in changes.items()]
    pairs, settings = changes[WEIGHTS]["pairs"].iloc[0], found["settings"]
    return Markdown(
        f"**Takeaway.** {' '.join(said)}\n\nDifferences are sparse less dense on validation cells, "
        f"brackets 95 % intervals over {pairs} pairs of set and seed; {settings['epochs']} epochs "
        f"at most, stopped after {settings['patience']} without a lower loss."
    )


def _verdict(part: pd.DataFrame) -> str:
    """Say what a difference does, by the intervals that lie on one side of 0; less loss is more."""
    if (n := part["pairs"].iloc[0]) < LEAST_PAIRS:
        return f"cannot be judged from so few runs ({n})"
    sign = np.where(part.index == SCORES["loss"], -1, 1)
    clear = sign * np.select([part["low"] > 0, part["high"] < 0], [1, -1], 0)
    counts = {"helps": (clear > 0).sum(), "hurts": (clear < 0).sum()}
    said = " and ".join(f"{verb} {count}" for verb, count in counts.items() if count)
    return f"clearly {said} of {len(clear)} scores" if said else "makes no clear difference"


def _listed(part: pd.DataFrame) -> str:
    said = "{0} {1.difference:+.3f} [{1.low:+.3f}, {1.high:+.3f}]".format
    return ", ".join(said(*row) for row in part.iterrows()).replace(" [+nan, +nan]", "")


def about_routers(found: dict) -> Markdown:
    """Say what a shared router changes, and how evenly experts are used."""
    if found["rows"].empty:
        return _missing(ROUTERS)
    change = shared_routers(found).xs(ALL)
    use = found["rows"][found["rows"]["sparse"]].groupby("n_experts")[["imbalance", "dead"]].mean()
    uses = [f"{row.imbalance:.2f} with {n} ({row.dead:.1f} dead)" for n, row in use.iterrows()]
    return Markdown(
        f"One router for all modalities {_verdict(change)}: {_listed(change)}. Where routing is "
        f"sparse, the coefficient of variation of the experts' use is {', '.join(uses)}."
    )


def figure(found: dict) -> Figure | Markdown:
    """Draw scores by the hidden units that a token meets: a row a set; bars span the seeds."""
    if found["rows"].empty:
        return _missing("Scores by arithmetic")
    panels = [(*part, s) for part in found["rows"].groupby("set", sort=False) for s in PANELS]
    fig, axes = _panels("Scores by the arithmetic of a token", len(panels) // 2, 2,
                             height=1.2 + len(panels), sharex=True)  # fmt: skip
    for ax, (name, rows, score) in zip(axes, panels, strict=True):
        for number, (n, part) in enumerate(rows.groupby("n_experts")):
            seeds = part.groupby(["met", "seed"])[score].mean().groupby("met")
            mean, low, high = seeds.mean(), seeds.min(), seeds.max()
            ax.errorbar(mean.index * 1.05 ** (number - 1.5), mean, [mean - low, high - mean],
                        fmt=f"{plot.MARKERS[number]}-", ms=5, lw=1.4, elinewidth=0.8,
                        color=COLOURS[n], label=f"{n} experts" if n > 1 else "dense")  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.set_xticks(met := np.unique(rows["met"]), met)
        ax.set(title=name, ylabel=SCORES[score])
    for ax in axes[-2:]:
        ax.set_xlabel("hidden units a token meets")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig
