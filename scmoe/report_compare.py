"""What the comparison of all methods says: sentences, tables and one figure, from records alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown

from scmoe import contest, plot, report
from scmoe.collect import BOOK, TABLE, read_table
from scmoe.colours import in_order, title_of
from scmoe.record import Run, read_records

RIVALS = {
    "simple": "best simple method, with hindsight",
    "whole": "best that reads all modalities, with hindsight",
    "elsewhere": "simple method chosen on other folds",
    "fixed": "one simple method a task",
    "peer": "best peer, with hindsight",
    "linear": "its linear part alone",
    "wide": "one dense expert of equal parameters",
    "narrow": "one dense expert of equal arithmetic",
}
TASKS = {"supervised": "groups", "unsupervised": "clusters", "translation": "translation"}
PAPER = BOOK / "paper_results.csv"  # a header alone, until somebody has the paper's tables
CALIBRATION = {"supervised": ["ece"]}
# R² of (target, source) on Patch-seq, mean of ten test folds, each scaled by itself: the outputs of
# the notebook that UnitedNet's authors published with their code (Tang et al. 2023)
UNITEDNET = {
    ("rna", "ephys"): 0.143, ("rna", "morph"): 0.096, ("ephys", "rna"): 0.272,
    ("ephys", "morph"): 0.065, ("morph", "rna"): 0.130, ("morph", "ephys"): 0.049,
}  # fmt: skip


@dataclass
class Found:
    """Records of both kinds, and what the stored ones say."""

    own: pd.DataFrame  # the reader's runs, quick
    stored: pd.DataFrame  # the table of record
    provenance: dict
    table: pd.DataFrame  # the strict ones of `stored` that count, from `contest.prepare`
    differences: dict[str, pd.DataFrame]  # by rival
    entries: dict[str, pd.DataFrame]


def load(run: Run) -> Found:
    """Read the reader's own records and the table of record, and compare.

    The run's further parameters `records` (a folder) and `reference` (a table) say where; None is
    what this repository has.
    """
    folder = Path(run.extra.get("records") or BOOK / "runs" / "quick")
    own = read_records(folder if folder.exists() else [])
    named = [Path(run).parent.name.startswith(name)
             for run, name in zip(own["run"], own["dataset"], strict=True)]  # fmt: skip
    own = own[np.array(named, bool)]  # pages about something else have records of their own
    stored, provenance = read_table(run.extra.get("reference") or TABLE)
    table = contest.prepare(stored)
    whole = table.loc[table["kind"].eq("simple") & ~table["partial"], "entrant"].unique()
    rivals = {"simple": "simple", "whole": whole, "fixed": contest.fixed(table), "peer": "peer",
              "linear": [contest.LINEAR], "wide": [contest.WIDE],
              "narrow": [contest.NARROW]}  # fmt: skip
    differences = {name: contest.differences(table, who) for name, who in rivals.items()}
    differences["elsewhere"] = contest.chosen_elsewhere(table)
    entries = {name: contest.by_entry(found) for name, found in differences.items()}
    return Found(own, stored, provenance, table, differences, entries)


def banner(found: Found) -> HTML:
    """Say which cells, folds and seeds the numbers are from: the stored ones, and the reader's."""
    report.mark(None)  # sets are marked one by one
    told = []
    for what, records in (("Table of record", found.stored), ("Your own runs", found.own)):
        ours = records[records["method"].eq(contest.OURS) & records["protocol"].eq("strict")]
        if ours.empty:
            told.append(f"<strong>{what}:</strong> no records of scMoE yet.")
            continue
        pairs = ours[["dataset", "data_source"]].drop_duplicates()
        by_source = pairs.groupby("data_source")["dataset"].agg(list)
        sets = "; ".join(
            f"{next(filter(None, report.SOURCES[source]))}: {_counted(names)}"
            for source, names in by_source.items()
        )
        units = ours[["dataset", "fold", "seed"]].astype(str).drop_duplicates()
        told.append(f"<strong>{what}:</strong> {len(units)} runs of scMoE, each a set, a fold and "
                    f"a seed ({sets}).")  # fmt: skip
    simulated = found.stored["data_source"].isin(["stand-in"]).any()
    return report.box("<br>".join(told), "scmoe-compare", bool(simulated))


def _counted(names: list[str]) -> str:
    """List sets; those that differ only in how they were simulated share a name."""
    counts = Counter(name.split("-")[0] for name in names)
    return ", ".join(f"{k} ({n} sets)" if n > 1 else k for k, n in sorted(counts.items()))


def takeaway(found: Found) -> Markdown:
    """Word the answer: gains against each kind of rival, and what the experts add."""
    names = ", ".join(found.entries["fixed"]["rival"].unique())
    words = {
        "simple": "the best simple method of each entry in hindsight",
        "elsewhere": "the simple method that is best on other folds",
        "fixed": f"one simple method a task ({names})",
        "peer": "the best peer in hindsight",
    }
    total = {name: contest.overall(entries) for name, entries in found.entries.items()}
    said: dict[str, list[str]] = {}
    for name, rival in words.items():
        if total[name]["entries"]:
            said.setdefault(_verdict(total[name]), []).append(f"{rival}, {_interval(total[name])}")
    if not said:
        return Markdown("**Takeaway.** There are no stored records yet.")
    lines = [
        f"On average scMoE is {verdict} {', and '.join(rivals)}."
        for verdict, rivals in said.items()
    ]
    if (best := total["simple"])["entries"]:
        lines.append(
            f"It is clearly lower than hindsight's best, by over {contest.LEAST} and a standard "
            f"error, in {best['below']} of {best['entries']} entries, and clearly higher in "
            f"{best['above']}."
        )
    if total["linear"]["entries"]:
        added = f"Over its linear part, its experts add {_interval(total['linear'])}"
        if total["wide"]["entries"]:
            added += f"; over one dense expert of as many parameters, {_interval(total['wide'])}"
        lines.append(f"{added}.")
    first, words, rest = " ".join(lines).partition("95 % interval ")  # said once is enough
    return Markdown(f"**Takeaway.** {first}{words}{rest.replace(words, '')}")


def _verdict(total: dict) -> str:
    if total["sets"] < 3 or total["low"] <= 0 <= total["high"]:
        return "not clearly better or worse than"
    return "better than" if total["low"] > 0 else "worse than"


def _interval(total: dict) -> str:
    inside = f"95 % interval {signed(total['low'])} to {signed(total['high'])}"
    few = "too few sets for an interval"
    return f"{signed(total['mean'])} ({few if total['sets'] < 3 else inside})"


def signed(value: float) -> str:
    """Write a difference with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def ranges(table: pd.DataFrame) -> list[str]:
    """Write intervals; a dash where there is none."""
    pairs = zip(table["low"], table["high"], strict=True)
    return [f"{signed(a)} to {signed(b)}" if np.isfinite(a) else "–" for a, b in pairs]


def figure(found: Found):
    """Draw, per set and task, the mean difference to three rivals with its interval."""
    parts = [contest.by_group(found.differences[name]).assign(against=f"minus {RIVALS[name]}")
             for name in ("simple", "elsewhere", "peer")]  # fmt: skip
    table = pd.concat(parts)
    if table.empty:
        return Markdown("There is nothing to draw yet.")
    table["name"] = pd.Categorical(table["set"], in_order(set(table["set"])))
    table["task"] = pd.Categorical(table["task"].map(TASKS), TASKS.values())
    table = table.sort_values(["task", "name"], kind="stable").astype({"name": str, "task": str})
    return plot.differences(table, "scMoE's mean difference by set and task")


def by_set(found: Found, task: str) -> HTML | Markdown:
    """Show one row per set for a task's first metric, and each set's lowest entry of all."""
    first, columns, which = contest.METRICS[task][0], {}, {}
    for name in ("simple", "elsewhere", "peer"):
        part = found.differences[name].query("task == @task and metric == @first")
        groups, sets = contest.by_group(part).set_index("set"), part.groupby("set")
        if name == "simple":
            columns |= {"scMoE": sets["ours"].mean(), "best simple": sets["theirs"].mean()}
        half = (groups["high"] - groups["difference"]).map(" ± {:.3f}".format)
        half = half.where(groups["high"].notna(), "")
        label = {"elsewhere": "chosen on other folds"}.get(name, f"best {name}")
        columns[f"minus {label}"] = groups["difference"].map(signed) + half
        if name != "elsewhere":
            which[f"{label} is"] = sets["rival"].agg(lambda names: names.mode()[0])
    entries = found.entries["simple"].query("task == @task")
    if entries.empty:
        return Markdown("There are no stored records yet.")
    worst = entries.loc[entries.groupby("set")["difference"].idxmin()].set_index("set")
    which["lowest against best simple"] = entry_of(worst) + " " + worst["difference"].map(signed)
    table = pd.DataFrame(columns | which)
    table = table.loc[in_order(table.index)].rename_axis(None)
    caption = f"{TASKS[task].capitalize()}: {report.NAMES[first]}, test cells"
    return report.table(table, caption, flat=True)


def ranks(found: Found) -> HTML:
    """Show mean ranks per metric."""
    wide = contest.ranks(found.table)
    wide.columns = [_heading(*column) for column in wide.columns]
    caption = "Mean rank over entries (1 is best)"
    return report.table(wide.rename_axis(None), caption, digits=1, flat=True)


def _heading(task: str, metric: str = "") -> str:
    words = {"unsupervised": "clusters: ", "supervised": ""}.get(task, "")
    return words + report.NAMES.get(metric, metric) if metric else task


def gains(found: Found, rival: str) -> HTML:
    """List each entry's difference to a rival, with its interval and corrected p-value."""
    table = found.entries[rival]
    shown = pd.DataFrame(
        {
            "set": table["set"],
            "entry": entry_of(table),
            "scMoE": table["ours"],
            "rival": table["theirs"],
            "which": table["rival"],
            "difference": table["difference"].map(signed),
            "95 % interval": ranges(table),
            "p (Holm)": table["p_holm"],
            "repeats": table["n"],
        }
    ).set_index(["set", "entry"])
    if rival in ("linear", "wide", "narrow"):
        shown = shown.drop(columns="which")
    return report.table(shown, f"Every entry: scMoE minus {RIVALS[rival]}", folded=True)


def entry_of(table: pd.DataFrame) -> pd.Series:
    """Name each entry within its set: its metric and, of a translation, its pair."""
    pair = table["target_modality"].map(title_of) + " ← " + table["source_modality"].map(title_of)
    names = table["metric"].map(report.NAMES)
    clusters = np.where(table["task"].eq("unsupervised"), "clusters: ", "")
    return (clusters + names).where(table["task"].ne("translation"), names + " " + pair)


def record(found: Found) -> HTML:
    """Show the table of record beside the reader's own runs, and an empty column for the paper's.

    R² is the mean over ordered pairs. The best of a kind is the best in that entry.
    """
    columns = {"scMoE": ["ours", contest.OURS], "linear part": ["ours", contest.LINEAR],
               "best simple": ["simple", None], "best peer": ["peer", None],
               "coordinates alone": ["location", None]}  # fmt: skip
    place = ["set", "task", "metric"]
    entries = found.table.groupby([*contest.ENTRY, "kind", "entrant"])["value"].mean().reset_index()
    wide = {}
    for name, (kind, entrant) in columns.items():
        rows = entries[entries["kind"].eq(kind)]
        rows = rows if entrant is None else rows[rows["entrant"].eq(entrant)]
        wide[name] = rows.groupby(contest.ENTRY)["value"].max().groupby(place).mean()
    table = pd.DataFrame(wide)
    ours = found.table[found.table["entrant"].eq(contest.OURS)]
    units = ours.groupby([*place, *contest.UNIT])["value"].mean()
    table.insert(1, "± sd", units.groupby(place).std())
    paper = pd.read_csv(PAPER).set_index(place)["value"].reindex(table.index)
    table["reported in the paper"] = paper.map("{:.3f}".format).where(paper.notna(), "")
    if len(found.own):
        own = contest.prepare(found.own)
        own = own[own["entrant"].eq(contest.OURS)]
        table["your run (quick)"] = own.groupby(place)["value"].mean()
        source = own.groupby(place)["data_source"].first().map(lambda s: report.SOURCES[s][0])
        table["your cells"] = source.reindex(table.index).replace("", "files")
    order = [(t, m) for t, names in contest.METRICS.items() for m in names]
    known = table.index.to_frame(index=False)
    rank = [order.index(pair) for pair in zip(known["task"], known["metric"], strict=True)]
    table = table.iloc[np.lexsort((rank, known["set"].map(in_order(set(known["set"])).index)))]
    sets, names = table.index.get_level_values("set"), [_heading(*key[1:]) for key in table.index]
    table.index = pd.MultiIndex.from_arrays([sets, names], names=["set", "metric"])
    return report.table(table, "Table of record: all folds and seeds", folded=True)


def calibrated(found: Found) -> Markdown:
    """Say whether scMoE is as well calibrated as logistic regression on all modalities."""
    total = contest.overall(_calibration(found))
    if not total["entries"]:
        return Markdown("There are no stored records yet.")
    return Markdown(
        f"Logistic regression's error, of the better fusion of each set with hindsight, less "
        f"scMoE's: {_interval(total)} over {total['sets']} sets. scMoE's is clearly higher in "
        f"{total['below']}, clearly lower in {total['above']}."
    )


def calibration(found: Found) -> HTML | Markdown:
    """Show the calibration error of scMoE and of logistic regression on all modalities."""
    entries = _calibration(found)
    if entries.empty:
        return Markdown("There are no stored records yet.")
    shown = pd.DataFrame({"set": entries["set"], "scMoE": -entries["ours"],
                          "logistic regression": -entries["theirs"], "fusion": entries["rival"],
                          "lower by": entries["difference"].map(signed),
                          "95 % interval": ranges(entries)}).set_index("set")  # fmt: skip
    return report.table(shown, "Calibration error by set (lower is better)", folded=True)


def _calibration(found: Found) -> pd.DataFrame:
    """Compare calibration errors, turned round so that more is better."""
    table = contest.prepare(found.stored, CALIBRATION)
    rivals = ["logistic regression (late fusion)", "logistic regression (early fusion)"]
    return contest.by_entry(contest.differences(table.assign(value=-table["value"]), rivals))


def absent(found: Found) -> HTML | Markdown:
    """List the peers that could not be used on a set, and why."""
    refused = found.provenance["refused"]
    rows = [(reason, method, name) for name, by in refused.items() for method, reason in by.items()]
    if not rows:
        return Markdown("Every peer ran on every set.")
    table = pd.DataFrame(rows, columns=["why", "peer", "sets"])
    table["why"] = [why.replace(name, "this set") for why, _, name in rows]
    table = table.groupby(["peer", "why"])["sets"].agg(lambda s: ", ".join(in_order(s)))
    return report.table(
        table.to_frame().reset_index("why"), "Peers that were not used", folded=True
    )


def unitednet(found: Found) -> HTML | Markdown:
    """Show UnitedNet, as it is written here, beside what its authors' own code gave."""
    rows = found.table.query(
        "entrant == 'UnitedNet' and set == 'patchseq' and task == 'translation'"
    )
    if rows.empty:
        return Markdown("There are no stored records of UnitedNet on Patch-seq yet.")
    pairs = rows.groupby(["target_modality", "source_modality"])["value"].agg(["mean", "std"])
    pairs = pairs.reindex(list(UNITEDNET))
    pairs["its authors' notebook"] = list(UNITEDNET.values())
    spread = rows.groupby("fold")["value"].mean().std()
    pairs.loc["mean of pairs"] = pairs.mean().where(pairs.columns != "std", spread)
    pairs.index = [n if isinstance(n, str) else " ← ".join(map(title_of, n)) for n in pairs.index]
    names = {"mean": "written anew", "std": "sd over folds"}
    n = rows["fold"].nunique()
    return report.table(pairs.rename(columns=names), f"UnitedNet: R², Patch-seq, {n} test folds")


def origin(found: Found) -> Markdown:
    """Say what made the table of record: how many runs, how long, which versions and commits."""
    runs = found.provenance["runs"]
    if not runs:
        return Markdown("The table of record is empty.")
    seconds = sum(sum(made["seconds"].values()) for made in runs)
    n_runs = sum(len(made["seconds"]) for made in runs)
    commits = Counter(str(made["commit"])[:8] for made in runs)
    ours = {made["sources"] for made in runs if made["methods"] == "scmoe"}
    devices = ", ".join(sorted({made["device"] for made in runs}))
    torch = ", ".join(sorted({made["versions"]["torch"] for made in runs}))
    return Markdown(
        f"The table of record has {len(found.stored):,} numbers of {n_runs} runs that took "
        f"{seconds / 3600:.1f} hours in all ({devices}; PyTorch {torch}; commits "
        f"{', '.join(commits)}). All numbers of scMoE come from {len(ours)} version of its sources."
    )
