"""What was tried on the strict recipe, and whether it helped: from the recorded searches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown

from scmoe import conflict, report
from scmoe.data import DATASETS
from scmoe.nn import clusters
from scmoe.nn.linear import RARE_SHIFT
from scmoe.report_compare import ranges, signed

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
MARGINS = 0.0, 0.1, 0.2, 0.3, 0.5
SCORES = {"accuracy": "accuracy", "macro_f1": "macro F1", "r2": "R²"}
STRICT, ALONE = "strict", "experts alone"  # what variants are held against
BEFORE, HINDSIGHT = "rivals alone, the highest product", "best of the recipe's ways, in hindsight"
USED = " (used)"
KERNEL, BERNOULLI = "group heads on a Gaussian kernel", "a Bernoulli loss for peaks"
UNIT = ["set", "inner", "seed"]


def load(folder: Path = RESULTS) -> dict[str, pd.DataFrame]:
    """Read what the searches left; empty tables where one has not run."""
    found = {}
    for name in ("clusters.json", "groups.json", "heads.json", "search.jsonl"):
        file = folder / name
        lines = file.suffix == ".jsonl"
        found[file.stem] = pd.read_json(file, lines=lines) if file.exists() else pd.DataFrame()
    return found


def cluster_rules(rows: pd.DataFrame) -> pd.DataFrame:
    """ARI of what each rule would have kept: rules in rows, kinds of sets and their mean.

    Parameters
    ----------
    rows
        A clustering each: `kind`, `set`, `way`, `modalities`, `ari`, `stability`, `agreement`
        (the last two missing for ways that are not among the recipe's).
    """
    found = {}
    for (kind, name), part in rows.groupby(["kind", "set"], sort=False):
        part = part.assign(score=part["stability"] * part["agreement"])
        unused = part["score"].isna()  # ways that the recipe does not have: scored, never judged
        kept = list(part[~unused].itertuples())
        rivals = [c for c in kept if c.way != clusters.SHARED]
        plain = next(c for c in kept if c.way == "k-means")  # the first is of all modalities
        column = {"k-means of all modalities": plain, BEFORE: clusters.winner(rivals)}
        for margin in MARGINS:
            used = USED if margin == clusters.MARGIN else ""
            words = f"shared axes, or a rival {margin:.0%} better{used}"
            column[words] = clusters.winner(kept, margin)
        column["shared axes always"] = clusters.winner(kept, np.inf)
        column |= {f"{c.way}, always": c for c in part[unused].itertuples()}
        column[HINDSIGHT] = max(kept, key=lambda c: c.ari)
        found[kind, name] = {rule: c.ari for rule, c in column.items()}
    table = pd.DataFrame(found)
    means = table.T.groupby(level=0, sort=False).mean().T
    return means.assign(mean=means.mean(axis=1))


def group_shifts(rows: pd.DataFrame) -> pd.DataFrame:
    """Every metric by shift; kinds of sets count alike, and sets within a kind."""
    metrics = [name for name in report.NAMES if name in rows]
    by_kind = rows.groupby(["kind", "shift"])[metrics].mean()
    table = by_kind.groupby(level="shift").mean().rename(columns=report.NAMES)
    return table.rename(lambda s: f"{s:g}{USED if s == RARE_SHIFT else ''}").rename_axis("shift")


def other_heads(rows: pd.DataFrame) -> pd.DataFrame:
    """Give what heads that are left out would change, paired over nested sets.

    Parameters
    ----------
    rows
        Scores of a set without and with them: `tried`, `set`, `used`, and a column a metric.

    Returns
    -------
    Indexed by what was tried and score: `without`, `with it`, `difference`, `low`, `high`, `sets`.
    """
    found, metrics = {}, [name for name in report.NAMES if name in rows]
    for tried, part in rows.groupby("tried", sort=False):
        wide = part.pivot(index="set", columns="used", values=metrics)
        for name in (m for m in metrics if part[m].notna().all()):
            without, used = wide[name, False], wide[name, True]
            change = conflict.interval(used - without)
            found[tried, report.NAMES[name]] = [without.mean(), used.mean(), *change, len(wide)]
    names = pd.MultiIndex.from_tuples(found, names=["tried", "score"])
    columns = ["without", "with it", "difference", "low", "high", "sets"]
    return pd.DataFrame([*found.values()], names, columns)


def variants(rows: pd.DataFrame) -> pd.DataFrame:
    """Give each variant less what it varies, paired over sets, inner folds and seeds.

    Returns
    -------
    Indexed by what it is held against, variant and score: `difference`, `low`, `high`, `sets`.
    """
    found, wide = {}, _complete(rows).set_index(UNIT)
    for name in wide["variant"].unique():
        base = STRICT if name.startswith(STRICT) else ALONE
        if name == base:
            continue
        for score, words in SCORES.items():
            mine, its = (wide.loc[wide["variant"].eq(v), score] for v in (name, base))
            change = (mine - its).dropna()
            key = base, name.removeprefix(f"{STRICT}, "), words
            found[key] = [*conflict.interval(change), len(change)]
    names = pd.MultiIndex.from_tuples(found, names=["held against", "variant", "score"])
    return pd.DataFrame([*found.values()], names, ["difference", "low", "high", "sets"])


def _complete(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the whole models of those sets on which every variant has been tried."""
    whole = rows[rows["method"].eq(rows["variant"])]
    n = whole.groupby(UNIT)["variant"].transform("nunique")
    return whole[n == whole["variant"].nunique()]


def show(found: dict[str, pd.DataFrame], name: str) -> HTML | Markdown:
    """Show one search as a table, or say that it has not run."""
    rows = found[name]
    if rows.empty:
        return Markdown(f"*benchmarks.{name} has not run yet.*")
    n = rows["set"].nunique()
    if name == "clusters":
        words = f"Mean ARI of clusters by the rule that keeps them, {n} sets"
        table = cluster_rules(rows).rename(
            columns={k: d.title.split(":")[0] for k, d in DATASETS.items()}
        )
        return report.table(table, words, flat=True)
    if name == "groups":
        return report.table(
            group_shifts(rows), f"Share of a group's log frequency taken off, {n} nested splits"
        )
    if name == "heads":
        table = other_heads(rows)
        table["difference"] = table["difference"].map(signed)
        table["95 % interval"] = ranges(table)
        words = "Closed-form heads that are left out, on nested sets"
        return report.table(table.drop(columns=["low", "high"]), words)
    table, n = variants(rows), _complete(rows)["set"].nunique()
    pairs = zip(table["difference"].map(signed), ranges(table), strict=True)
    said = pd.Series([f"{mean} ({interval})" for mean, interval in pairs], table.index)
    wide = said.unstack("score", sort=False)
    words = f"Variants of the network less what they vary, 95 % intervals, {n} nested sets"
    return report.table(wide, words)


def said(found: dict[str, pd.DataFrame]) -> Markdown:
    """Say what each search found."""
    points = []
    if not found["clusters"].empty:
        mean = cluster_rules(found["clusters"])["mean"]
        used = mean[mean.index.str.endswith(USED)].iloc[0]
        points.append(
            "Clusters: k-means on shared axes, unless a rival is clearly better, has a mean ARI "
            f"of {used:.3f}, the rivals alone {mean[BEFORE]:.3f}; the best of its ways for each "
            f"set, which takes labels to find, {mean[HINDSIGHT]:.3f}."
        )
    if not found["groups"].empty:
        table = group_shifts(found["groups"])
        used = table[table.index.str.endswith(USED)].iloc[0]
        changes = [f"{name} {signed(used[name] - table.loc['0', name])}" for name in table]
        points.append(f"Rare groups: raising them changes {', '.join(changes)}.")
    if not found["heads"].empty:
        table = other_heads(found["heads"])
        clear = table[(table["low"] > 0) | (table["high"] < 0)]
        listed = [f"{' '.join(key[::-1])}: {signed(d)}" for key, d in clear["difference"].items()]
        words = "; ".join(listed) or "no clear difference"
        points.append(f"Heads that are not linear ({KERNEL}; {BERNOULLI}): {words}.")
    if not found["search"].empty:
        table = variants(found["search"])
        clear = table[(table["low"] > 0) | (table["high"] < 0)].reset_index()
        listed = [f"{r.variant} ({r.score} {signed(r.difference)})" for r in clear.itertuples()]
        n = len(table.index.droplevel("score").unique())
        points.append(
            f"Network: of {n} variants, a clear difference in {'; '.join(listed)}." if listed
            else f"Network: none of {n} variants makes a clear difference."
        )  # fmt: skip
    return Markdown("\n".join(f"- {point}" for point in points) or "Nothing was searched yet.")
