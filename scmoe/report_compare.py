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
    "simple": "best simple method",
    "fixed": "one simple method",
    "peer": "best peer",
    "linear": "linear path alone",
}
PAPER = BOOK / "paper_results.csv"  # a header alone, until somebody has the paper's tables
CALIBRATION = {"supervised": ["ece"]}


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
    rivals = {"simple": "simple", "fixed": contest.fixed(table), "peer": "peer",
              "linear": [contest.LINEAR]}  # fmt: skip
    differences = {name: contest.differences(table, who) for name, who in rivals.items()}
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
            f"{next(filter(None, report.SOURCES[source]))}: {', '.join(in_order(names))}"
            for source, names in by_source.items()
        )
        units = ours[["dataset", "fold", "seed"]].astype(str).drop_duplicates()
        told.append(f"<strong>{what}:</strong> {len(units)} sets × folds × seeds ({sets}).")
    simulated = found.stored["data_source"].isin(["stand-in"]).any()
    return report.box("<br>".join(told), "scmoe-compare", bool(simulated))


def takeaway(found: Found) -> Markdown:
    """Word the answer: gains against the best of each kind, and what the experts add."""
    said = []
    for name, words in (("simple", "simple method"), ("peer", "peer")):
        total = contest.overall(found.entries[name])
        if total["entries"]:
            said.append(
                f"Against the best {words} of each entry, scMoE differs by {_interval(total)}, "
                f"{_verdict(total)}, on average over {total['entries']} entries of "
                f"{total['sets']} sets, and is lower in {total['below']} of them "
                f"by more than {contest.LEAST} and a standard error."
            )
    one = contest.overall(found.entries["fixed"])
    if one["entries"]:
        names = ", ".join(found.entries["fixed"]["rival"].unique())
        said.append(f"Against one simple method a task, the same everywhere ({names}): "
                    f"{_interval(one)}.")  # fmt: skip
    experts = contest.overall(found.entries["linear"])
    if experts["entries"]:
        said.append(f"Over its own linear path, the experts add {_interval(experts)}.")
    return Markdown("**Takeaway.** " + (" ".join(said) or "There are no stored records yet."))


def _verdict(total: dict) -> str:
    """Say which side the interval of a mean difference lies on."""
    if total["sets"] < 3 or total["low"] <= 0 <= total["high"]:
        return "which could be chance"
    return "which is better" if total["low"] > 0 else "which is worse"


def _interval(total: dict) -> str:
    if total["sets"] < 3:
        return f"{total['mean']:+.3f} (too few sets for an interval)"
    return f"{total['mean']:+.3f} (95 % interval {total['low']:+.3f} to {total['high']:+.3f})"


def figure(found: Found):
    """Draw, per set and task, the mean difference to each rival with its interval."""
    panels = {}
    for name, words in RIVALS.items():
        groups = contest.by_group(found.differences[name])
        if len(groups):
            groups.index = groups["set"] + ", " + groups["task"]
            panels[f"minus {words}"] = groups.loc[in_order(groups.index)]
    if not panels:
        return Markdown("There is nothing to draw yet.")
    return plot.differences(panels, "scMoE's mean difference by set and task")


def ranks(found: Found) -> HTML:
    """Show mean ranks per metric."""
    wide = contest.ranks(found.table)
    wide.columns = [_heading(*column) for column in wide.columns]
    return report.table(wide.rename_axis(None), "Mean rank over entries (1 is best)", digits=1)


def _heading(task: str, metric: str = "") -> str:
    words = {"unsupervised": "clusters: ", "supervised": ""}.get(task, "")
    return words + report.NAMES.get(metric, metric) if metric else task


def gains(found: Found, rival: str) -> HTML:
    """Show each entry's difference to a rival, with its interval and corrected p-value."""
    table = found.entries[rival]
    shown = pd.DataFrame(
        {
            "set": table["set"],
            "entry": _entry(table),
            "scMoE": table["ours"],
            RIVALS[rival]: table["theirs"],
            "which": table["rival"],
            "difference": table["difference"],
            "95 % interval": _ranges(table),
            "p (Holm)": table["p_holm"],
            "repeats": table["n"],
        }
    ).set_index(["set", "entry"])
    if rival == "linear":
        shown = shown.drop(columns="which")
    return report.table(shown, f"scMoE minus {RIVALS[rival]}, test cells")


def _entry(table: pd.DataFrame) -> pd.Series:
    pair = table["target_modality"].map(title_of) + " ← " + table["source_modality"].map(title_of)
    names = table["metric"].map(report.NAMES)
    clusters = np.where(table["task"].eq("unsupervised"), "clusters: ", "")
    return (clusters + names).where(table["task"].ne("translation"), names + " " + pair)


def _ranges(table: pd.DataFrame) -> list[str]:
    pairs = zip(table["low"], table["high"], strict=True)
    return [f"{low:+.3f} to {high:+.3f}" if np.isfinite(low) else "–" for low, high in pairs]


def shortfalls(found: Found) -> HTML | Markdown:
    """List the entries in which scMoE is lower than the best simple method or peer."""
    parts = [found.entries[name].query("below").assign(against=RIVALS[name])
             for name in ("simple", "peer")]  # fmt: skip
    table = pd.concat(parts)
    if table.empty:
        return Markdown("There is no such entry.")
    table = table.assign(entry=_entry(table)).sort_values("difference")
    columns = ["set", "entry", "against", "rival", "ours", "theirs", "difference", "se"]
    return report.table(table[columns].set_index(["set", "entry"]), "Where scMoE is lower")


def record(found: Found) -> HTML:
    """Show the table of record beside the reader's own runs, and an empty column for the paper's.

    R² is the mean over ordered pairs. The best of a kind is the best in that entry.
    """
    columns = {"scMoE": ["ours", contest.OURS], "linear path": ["ours", contest.LINEAR],
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
    return report.table(table, "Stored: all folds and seeds. Yours: one fold, one seed")


def calibration(found: Found) -> HTML | Markdown:
    """Show the calibration error of scMoE and of logistic regression on all modalities."""
    table = contest.prepare(found.stored, CALIBRATION)
    rivals = ["logistic regression (late fusion)", "logistic regression (early fusion)"]
    entries = contest.by_entry(contest.differences(table.assign(value=-table["value"]), rivals))
    if entries.empty:
        return Markdown("There are no stored records yet.")
    shown = pd.DataFrame({"set": entries["set"], "scMoE": -entries["ours"],
                          "logistic regression": -entries["theirs"], "fusion": entries["rival"],
                          "lower by": entries["difference"], "95 % interval": _ranges(entries),
                          }).set_index("set")  # fmt: skip
    return report.table(shown, "Calibration error (lower is better)")


def absent(found: Found) -> HTML | Markdown:
    """List the peers that could not be used on a set, and why."""
    refused = found.provenance["refused"]
    rows = [(reason, method, name) for name, by in refused.items() for method, reason in by.items()]
    if not rows:
        return Markdown("Every peer ran on every set.")
    table = pd.DataFrame(rows, columns=["why", "peer", "sets"])
    table["why"] = [why.replace(name, "this set") for why, _, name in rows]
    table = table.groupby(["peer", "why"])["sets"].agg(lambda s: ", ".join(in_order(s)))
    return report.table(table.to_frame().reset_index("why"), "Peers that were not used")


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
