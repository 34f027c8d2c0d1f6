"""Which method is better, and how sure is that? Paired differences over folds and seeds.

An *entry* is one number that methods compete for: a set of cells, a task, a metric and, for a
translation, its target and source. Methods are compared on the same folds and seeds.

Seeds of one fold share their test cells, so they are averaged first, and folds are what is
repeated. Folds share most of their training cells, so intervals use the variance that
Nadeau and Bengio (2003) correct for that: times 1/n + 1/(k - 1) instead of 1/n, for n folds run of
the k that there are. With fewer than three folds, seeds are what is repeated, and nothing is said
of other cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from scmoe.data import DATASETS
from scmoe.data.catalog import MOP_BATCHES

ENTRY = ["set", "task", "metric", "target_modality", "source_modality"]
UNIT = ["fold", "seed"]
COLUMNS = [*ENTRY, *UNIT, "ours", "rival", "theirs", "difference"]
METRICS = {
    "supervised": ["accuracy", "balanced_accuracy", "macro_f1", "ari"],
    "unsupervised": ["ari", "nmi"],
    "translation": ["r2"],
}
OURS, EXPERTS, LINEAR = "scMoE", "scMoE experts", "scMoE linear"  # the blend and its parts
WIDE, NARROW = (f"{EXPERTS}, dense of equal {what}" for what in ("parameters", "arithmetic"))
LOCATION = "coordinates alone (nearest neighbours)"  # reads no modality: not a rival, a warning
PEERS = ["UnitedNet", "MOFA+", "UniVI", "totalVI", "MultiVI", "Matilda"]
LEAST = 0.01  # a smaller difference counts as none, unless its standard error is larger
N_BOOTSTRAP = 10_000


def prepare(records: pd.DataFrame) -> pd.DataFrame:
    """Keep the strict records of the metrics that count, and name sets, entrants and their kind.

    DBiT-seq's published split and its blocks are sets of their own, and so are the batches of
    mouse cortex and each batch of ATAC + gene: they ask different questions. An entrant is a method
    with the modalities it reads, where those are not all. Further columns are `kind` ("ours",
    "peer", "simple" or "location") and `partial`: does it identify groups from some of the
    modalities only?
    """
    counts = pd.Series(False, index=records.index)
    for task, names in METRICS.items():
        counts |= records["task"].eq(task) & records["metric"].isin(names)
    single = ~records["source_modality"].astype(str).str.contains("+", regex=False)
    table = records[counts & single & records["protocol"].eq("strict")].copy()
    table["fold"] = table["fold"].astype(str)
    table["set"] = table["dataset"]
    table.loc[table["fold"].str.startswith("block"), "set"] += " blocks"
    table.loc[table["fold"].isin(MOP_BATCHES), "set"] += " batches"
    batch = table["dataset"].eq("atacseq")
    table.loc[batch, "set"] += " " + table.loc[batch, "fold"]
    n_read = table["modalities"].str.count(r"\+")
    some = n_read < n_read.groupby(table["dataset"]).transform("max")
    named = [m in name for m, name in zip(table["modalities"], table["method"], strict=True)]
    some &= table["modalities"].ne("coordinates") & table["task"].ne("translation")
    told = ~some | np.array(named, bool)
    table["entrant"] = table["method"].where(told, table["method"] + " of " + table["modalities"])
    peer, place = table["method"].isin(PEERS), table["method"].eq(LOCATION)
    ours = table["method"].str.startswith(OURS)
    kind = np.select([ours, peer, place], ["ours", "peer", "location"], "simple")
    return table.assign(kind=kind, partial=some)


def differences(table: pd.DataFrame, rivals: str | Sequence[str], ours: str = OURS) -> pd.DataFrame:
    """Give ours minus the best rival, for each entry, fold and seed: a table with `COLUMNS`.

    `table` is from `prepare`; `rivals` are a kind, or names of entrants. The best one of an entry
    is the one by which ours is beaten most, or beats least, on average over the folds and seeds of
    both: chosen on the very cells that it is scored on, which favours it.
    """
    both = _pairs(table, rivals, ours)
    return both.merge(_best(both, ENTRY), on=[*ENTRY, "rival"])[COLUMNS]


def chosen_elsewhere(table: pd.DataFrame) -> pd.DataFrame:
    """Give ours minus the simple rival that is best elsewhere: no fold chooses its own rival.

    As `differences`, but the rival of an entry is chosen for each fold: on the set's other folds,
    or, where there are fewer than two of those, on the other sets of the same data. Where there is
    no elsewhere, there is no row.
    """
    both = _pairs(table, "simple", OURS)
    key, parts = ENTRY[1:], [both[:0]]
    for (data, name, fold), part in both.groupby(["dataset", "set", "fold"], sort=False):
        others = both[both["set"].eq(name) & both["fold"].ne(fold)]
        if others["fold"].nunique() < 2:
            others = both[both["dataset"].eq(data) & both["set"].ne(name)]
        others = others.merge(part[[*key, "rival"]].drop_duplicates())  # those that ran here, too
        parts.append(part.merge(_best(others, key), on=[*key, "rival"]))
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def _pairs(table: pd.DataFrame, rivals: str | Sequence[str], ours: str) -> pd.DataFrame:
    """Give ours beside each rival, on the folds and seeds of both."""
    mine = table[table["entrant"].eq(ours)].set_index([*ENTRY, *UNIT])["value"].rename("ours")
    chosen = table["kind"].eq(rivals) if isinstance(rivals, str) else table["entrant"].isin(rivals)
    other = table[chosen & table["entrant"].ne(ours)]
    other = other.rename(columns={"entrant": "rival", "value": "theirs"})
    both = other[["dataset", *ENTRY, *UNIT, "rival", "theirs"]]
    both = both.merge(mine.reset_index(), on=[*ENTRY, *UNIT])
    return both.assign(difference=both["ours"] - both["theirs"])


def _best(both: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """Name, for each key, the rival that ours is behind most, or ahead of least, on average."""
    mean = both.groupby([*key, "rival"])["difference"].mean().reset_index()
    best = mean.sort_values("difference", kind="stable").drop_duplicates(key)
    return best[[*key, "rival"]]


def folds_of(name: str) -> int:
    """Give into how many folds a set is cut."""
    if name == "mop batches":
        return len(MOP_BATCHES)
    known = DATASETS.get(name.split("-")[0])
    return known.n_folds or len(known.folds) if known else 5  # five, too, of blocks


def paired(difference: pd.Series, k: int = 5) -> dict[str, float]:
    """Summarise differences, indexed by fold and seed, of cells that are cut into `k` folds.

    Gives `difference` (the mean), `se` (the plain paired standard error), `low` and `high` (the
    95 % interval, corrected for overlapping training cells) and `n` (how often it was repeated:
    folds, or seeds where there are fewer than three folds). Undefined values are NaN.
    """
    units = difference.groupby(level="fold").mean()
    folds = len(units) >= 3
    units = units if folds else difference
    n, mean = len(units), float(units.mean())
    spread = float(units.std()) if n > 1 else np.nan
    wide = spread * np.sqrt(1 / n + (1 / (k - 1) if folds else 0))
    half = stats.t.ppf(0.975, n - 1) * wide if n > 1 else np.nan
    low, high = mean - half, mean + half
    return {"difference": mean, "se": spread / np.sqrt(n), "low": low, "high": high, "n": n}


def by_entry(found: pd.DataFrame) -> pd.DataFrame:
    """Summarise each entry: the difference with its interval, and whether it is clear.

    `below` says that ours is lower by more than a standard error and by more than `LEAST`, and
    `above` the reverse. The rival named is the one that was chosen most often.
    """
    rows = [
        dict(zip(ENTRY, key, strict=True))
        | {"rival": part["rival"].mode()[0]}
        | paired(part.set_index(UNIT)["difference"], folds_of(key[0]))
        for key, part in found.groupby(ENTRY, sort=False)
    ]
    columns = [*ENTRY, "rival", "difference", "se", "low", "high", "n"]
    table = pd.DataFrame(rows, columns=columns)
    noise = table["se"].fillna(0).clip(lower=LEAST)
    table["below"], table["above"] = table["difference"] < -noise, table["difference"] > noise
    return table


def overall(entries: pd.DataFrame) -> dict[str, float]:
    """Give the mean difference over all entries, with a 95 % interval.

    Entries of one set are alike, so the interval comes from drawing sets (with all their entries)
    with replacement; with fewer than three sets there is none. Metrics count as they are: all lie
    between 0 and 1, R² below 1.
    """
    low = high = np.nan
    sums = entries.groupby("set")["difference"].agg(["sum", "count"]).to_numpy(float)
    if len(sums) >= 3:
        drawn = np.random.default_rng(0).integers(len(sums), size=(N_BOOTSTRAP, len(sums)))
        totals = sums[drawn].sum(1)  # (N_BOOTSTRAP, 2)
        low, high = np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5])
    counts = {name: int(entries[name].sum()) for name in ("below", "above")}
    counts |= {"entries": len(entries), "sets": entries["set"].nunique()}
    return {"mean": entries["difference"].mean(), "low": low, "high": high} | counts
