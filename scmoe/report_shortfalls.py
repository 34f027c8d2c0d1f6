"""How scMoE does against each kind of rival, where it is lower, and what hindsight has to do."""

from __future__ import annotations

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown

from scmoe import contest, report
from scmoe.report_compare import RIVALS, TASKS, Found, entry_of, ranges, signed


def summary(found: Found) -> HTML | Markdown:
    """Show the mean difference to each rival, over all entries and by task."""
    rows = []
    for name, words in RIVALS.items():
        for task, title in ({"": "all"} | TASKS).items():
            entries = found.entries[name]
            total = contest.overall(entries[entries["task"].eq(task)] if task else entries)
            known = total if total["sets"] > 2 else total | {"low": np.nan, "high": np.nan}
            rows.append({"minus": words, "task": title, "difference": total["mean"]} | known)
    table = pd.DataFrame(rows).query("entries > 0")
    if table.empty:
        return Markdown("There are no stored records yet.")
    table["difference"], table["95 % interval"] = table["difference"].map(signed), ranges(table)
    table = table.rename(columns={"below": "clearly lower", "above": "clearly higher"})
    columns = ["difference", "95 % interval", "clearly lower", "clearly higher", "entries"]
    table = table.set_index(["minus", "task"])[columns]
    return report.table(table, "scMoE minus a rival, on average", flat=True)


def why(found: Found) -> Markdown:
    """Say what hindsight is worth, by task, and how many rivals read only some modalities."""
    both = _beside(found)
    if both.empty:
        return Markdown("There are no stored records yet.")
    said = []
    for task, part in both.groupby("task", sort=False):
        with_it, without = part["difference"].mean(), part["difference_there"].mean()
        if with_it >= 0:
            end = "there is no shortfall on average"
        elif without >= 0:
            end = "the shortfall is what hindsight is worth, on average"
        else:
            end = f"{without / with_it:.0%} of the shortfall is left without hindsight"
        words = f"{signed(with_it)} with hindsight, {signed(without)} without: {end}."
        whole = found.entries["whole"].query("task == @task")["difference"].mean()
        if whole > with_it:
            words += f" Of rivals that read all modalities, with hindsight: {signed(whole)}."
        said.append(f"- {TASKS[task].capitalize()}: {words}")
    low, worth = both[both["below"]], (both["difference_there"] - both["difference"]).mean()
    partial = low["rival"].isin(found.table.loc[found.table["partial"], "entrant"]).sum()
    return Markdown(
        f"Hindsight is worth {worth:.3f} on average over {len(both)} entries. scMoE is clearly "
        f"lower in {len(low)} entries with it, of which {low['below_there'].sum()} remain without "
        f"it; in {partial} of the {len(low)} the best simple method reads only some "
        "of the modalities.\n\n" + "\n".join(said)
    )


def _beside(found: Found) -> pd.DataFrame:
    """Put each entry's rival chosen on other folds (`_there`) beside the best with hindsight."""
    there = found.entries["elsewhere"][[*contest.ENTRY, "rival", "difference", "below"]]
    return found.entries["simple"].merge(there, on=contest.ENTRY, suffixes=("", "_there"))


def pattern(found: Found) -> HTML | Markdown:
    """Count the entries in which scMoE is clearly lower, by set and task."""
    both = _beside(found)
    if not both["below"].any():
        return Markdown("There is no entry in which scMoE is clearly lower.")
    both["metrics"] = both["metric"].map(report.NAMES).where(both["below"], "")
    both["task"] = pd.Categorical(both["task"].map(TASKS), TASKS.values())
    rows = {
        key: {
            "entries": len(part),
            "clearly lower": part["below"].sum(),
            "without hindsight": part["below_there"].sum(),
            "mean difference": signed(part["difference"].mean()),
            "lower in": ", ".join(filter(None, part["metrics"].unique())),
        }
        for key, part in both.groupby(["set", "task"], observed=True)
        if part["below"].any()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=["set", "task"])
    return report.table(
        table, "Entries in which scMoE is lower than the best simple method", flat=True
    )


def shortfalls(found: Found, n: int | None = None) -> HTML | Markdown:
    """Show the `n` largest shortfalls against the best simple method and peer; None lists all."""
    peer = found.entries["peer"].assign(difference_there=np.nan)
    parts = {"simple": _beside(found), "peer": peer}
    low = [part[part["below"]].assign(against=RIVALS[name]) for name, part in parts.items()
           if part["below"].any()]  # fmt: skip
    if not low:
        return Markdown("There is no such entry.")
    table = pd.concat(low).sort_values("difference").iloc[:n]
    shown = pd.DataFrame(
        {
            "set": table["set"],
            "entry": entry_of(table),
            "ahead": table["rival"],
            "difference": table["difference"].map(signed),
            "without hindsight": table["difference_there"].map(signed, na_action="ignore"),
            "scMoE": table["ours"],
            "rival": table["theirs"],
            "standard error": table["se"],
            "against": table["against"].str.removesuffix(", with hindsight"),
        }
    ).set_index(["set", "entry"])
    if n:
        return report.table(shown, f"The {len(shown)} largest shortfalls", flat=True)
    return report.table(shown, "Every entry in which scMoE is clearly lower", folded=True)
