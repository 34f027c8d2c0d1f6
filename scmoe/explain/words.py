"""What the interpretability page says, worded from its numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown

from scmoe import report
from scmoe.colours import title_of
from scmoe.data import Split
from scmoe.explain.attribution import METHODS, PRIMARY
from scmoe.explain.known import Concepts
from scmoe.explain.study import REFERENCE, Study
from scmoe.record import Run

CHEAPER = {"shap_gradient": 10, "shap_permutation": 100, "shap_kernel": 100}  # set in advance
COLUMNS = {
    "seconds": "s / 1000 cells", "peak_mb": "memory (MB)", "budget": "budget",
    "split_half": "split-half", "cells": "cells", "deletion": "deletion", "insertion": "insertion",
    "infidelity": "infidelity", "agreement": "agreement", "overlap": "top-20 overlap",
    "stability": "stability",
}  # fmt: skip


def takeaway(study: Study) -> Markdown:
    """Word the page's answer: what the primary method costs and is worth, and what routing is."""
    table, versus = study.table, study.versus
    cost = " and ".join(
        f"{row['cheaper']:,.0f} times less than {METHODS[name]}" for name, row in versus.iterrows()
    )
    verdicts = [
        f"its {what} is {_verdict(row, what)} that of {METHODS[name]}"
        for name, row in versus.iterrows()
        for what in ("deletion", "insertion")
        if _verdict(row, what) != "not told apart from"
    ]
    worth = (
        f"On the same cells, {'; '.join(verdicts)}."
        if verdicts
        else "On the same cells, its deletion and insertion scores are not told apart from theirs."
    )
    routing = table.loc["routing"]
    says = (
        "says more than chance about which features matter"
        if routing["deletion_low"] > 0
        else "does not say which features matter better than chance"
    )
    return Markdown(
        f"**Takeaway.** Explaining a prediction by one backward pass, split by expert, costs "
        f"{cost}. "
        f"{worth} What the router alone says {says} (deletion {routing['deletion']:.2f} against "
        f"{table.at[PRIMARY, 'deletion']:.2f}, 0 being random order)."
    )


def about_cost(study: Study) -> Markdown:
    """Hold the costs against what was asked for in advance, and say where it falls short."""
    said = []
    for name, row in study.versus.iterrows():
        asked = CHEAPER[name]
        met = (
            "met"
            if row["cheaper"] >= asked
            else f"missed by a factor of {asked / row['cheaper']:.1f}"
        )
        budget = study.table.loc[name]
        worse = [
            f"{what} is worse by {-row[what]:.3f}"
            for what in ("deletion", "insertion")
            if row[f"{what}_high"] < 0
        ]
        said.append(
            f"- **{METHODS[name]}** agrees with itself at a budget of {budget['budget']:.0f} "
            f"(split-half rank correlation {budget['split_half']:.2f}). Asked for: at least "
            f"{asked} "
            f"times cheaper than that. Found: {row['cheaper']:,.0f} times: {met}. "
            + (f"Our {' and '.join(worse)}." if worse else "Our scores are no worse than its.")
        )
    return Markdown("\n".join(said))


def methods_table(study: Study) -> HTML:
    """Show every method's scores."""
    table = study.table.reindex(columns=list(COLUMNS)).rename(columns=COLUMNS, index=METHODS)
    for what in ("deletion", "insertion"):
        table[what] = [
            f"{row[what]:.3f} ({row[f'{what}_low']:.3f} to {row[f'{what}_high']:.3f})"
            for _, row in study.table.iterrows()
        ]
    table = table.astype({"cells": int, "budget": int}).dropna(axis=1, how="all")
    return report.table(table, "Every method on the same test cells; in brackets 95 % intervals", 2)


def about_shares(shares: pd.DataFrame) -> Markdown:
    """Say how much of all attribution flowed through the linear path and through experts."""
    mean = shares.mean()
    experts = mean.drop(["linear path", "no expert"])
    words = (
        f"The linear path carries {mean['linear path']:.0%} of all attribution, attention and what "
        f"passes the experts by {mean['no expert']:.0%}, and the experts {experts.sum():.0%}"
    )
    if experts.sum() > 0:
        words += f", of which {experts.idxmax()} has most ({experts.max():.1%})"
    else:
        words += (
            ": validation cells gave the network no say in this model's groups, and whatever the "
        )
        words += "router does explains translations, not groups"
    return Markdown(words + ".")


def about_routing(special: pd.DataFrame, load: pd.DataFrame) -> Markdown:
    """Say what experts specialise in, against chance, and how evenly they are used."""
    rows = special.drop(index="modality")
    best, modality = rows["bits"].idxmax(), special.loc["modality"]
    clear = [name.removeprefix("label in ") for name, row in rows.iterrows() if row["p"] < 0.05]
    return Markdown(
        f"A token's expert tells {modality['bits']:.2f} of {modality['most']:.2f} bits about its "
        f"modality (chance: {modality['null']:.3f}) and at most {rows.at[best, 'bits']:.2f} of "
        f"{rows.at[best, 'most']:.2f} bits about its cell's group "
        f"({title_of(best.removeprefix('label in '))}; chance: {rows.at[best, 'null']:.3f}). Above "
        f"chance at p < .05: {', '.join(map(title_of, clear)) or 'no modality'}. "
        f"{load.at['all', 'effective']:.1f} of the experts are in effective use, "
        f"{load.at['all', 'idle']:.0f} idle."
    )


def about_ablation(drops: pd.DataFrame) -> Markdown:
    """Say which expert matters to whom."""
    if drops.abs().to_numpy().max() == 0:
        return Markdown("No group loses anything: the network has no say in this model's groups.")
    group, expert = drops.stack().idxmax()
    size = drops.mean()
    return Markdown(
        f"On average over groups, silencing an expert costs between {size.min():.2f} and "
        f"{size.max():.2f} logits; {group} loses most, {drops.at[group, expert]:.2f} without "
        f"expert "
        f"{expert}."
    )


def about_matching(matches: list[dict]) -> Markdown:
    """Say whether experts of other seeds specialise alike."""
    if not matches:
        return Markdown(
            "Experts are matched over seeds in the full profile, which trains more models."
        )
    found, null = (np.mean([m[key] for m in matches]) for key in ("similarity", "null"))
    return Markdown(
        f"Matched over {len(matches)} further seeds, experts' usage correlates by {found:.2f}; "
        f"matching alone, of permuted usage, gives {null:.2f} (p ≤ "
        f"{max(m['p'] for m in matches):.3f})."
    )


def about_concepts(found: Concepts) -> Markdown:
    """Say which concepts the tokens hold, and how often the network uses them."""
    probes, uses, false_positives = found.probes, found.uses, found.false_positives
    known = probes[probes["q"] < 0.05]
    best = known.sort_values("accuracy", ascending=False)
    words = (
        f"{len(known)} of {len(probes)} probes (concept × modality × place) beat random "
        f"concepts at "
        f"a corrected p < .05; of 100 random concepts {false_positives:.0%} pass at an uncorrected "
        "p < .05. "
    )
    if len(best):
        top = best.iloc[0]
        words += (
            f"Best read is “{top['concept']}” in {title_of(top['modality'])} tokens {top['place']} "
            f"attention: {top['accuracy']:.0%} of held-out cells, balanced. "
        )
    extreme = uses["tcav"].isin([0, 1]).mean()
    words += (
        f"The network's logits depend on a concept beyond chance in "
        f"{(uses['q'] < 0.05).mean():.0%} of "
        f"{len(uses)} combinations with groups. TCAV's share of cells is 0 or 1 in "
        f"{extreme:.0%} of "
        "them: there all cells of the group agree, and only the size of the derivative can "
        "tell more."
    )
    return Markdown(words)


def about_recovery(table: pd.DataFrame) -> Markdown:
    """Say how well the truth is recovered, and where simpler things do better."""
    said = []
    for what, part in table.groupby(level=0, sort=False):
        auprc, chance = part["auprc"].droplevel(0), part["chance"].iloc[0]
        ours = auprc[METHODS[PRIMARY]]
        others = auprc.drop([METHODS[PRIMARY], "random weights"], errors="ignore")
        others = others.drop([name for name in others.index if name in METHODS.values()])
        better = others[others > ours]
        said.append(
            f"**{what[0].upper()}{what[1:]}**: area under the precision–recall curve {ours:.2f}, "
            f"chance {chance:.2f} ({ours / chance:.1f} times chance), a model with random weights "
            f"{auprc['random weights']:.2f}"
            + (
                f"; better without any model: "
                f"{', '.join(f'{n} {v:.2f}' for n, v in better.items())}."
                if len(better)
                else f"; correlation {others['correlation']:.2f}."
            )
        )
    return Markdown(" ".join(said))


def about_ranks(ranks: pd.DataFrame, what: str) -> Markdown:
    """Say where known genes rank."""
    if ranks.empty:
        return Markdown(f"These cells have no {what}.")
    ours = ranks[METHODS[PRIMARY]]
    listed = ", ".join(f"{name} {rank}" for name, rank in ours.items())
    return Markdown(
        f"Ranks of {what} among {ranks['of'].iloc[0]} genes by {METHODS[PRIMARY]}: {listed} "
        f"(median {ours.median():.0f}; by correlation {ranks['correlation'].median():.0f}; at "
        f"random "
        f"{ranks['of'].iloc[0] / 2:.0f})."
    )


def about_known(what: str, table: pd.DataFrame) -> Markdown:
    """Say how explanations fare against what is known of the cells."""
    if what == "truth":
        return about_recovery(table)
    if what == "markers":
        return about_ranks(table, "marker genes in their own subclass")
    if what == "pairs":
        return about_ranks(table, "proteins' own genes")
    return Markdown("Of these cells nothing is known that an explanation could be held against.")


def caveats(run: Run, split: Split, study: Study) -> Markdown:
    """List what could be wrong with this page."""
    slow = study.table.loc[REFERENCE, "cells"]
    points = [
        *split.notes,
        f"SHAP Permutation was affordable for {slow:.0f} cells: its scores, and agreement with it, "
        "rest on these",
        "deletion and insertion replace features by those of other cells: mixtures that no cell "
        "is, about which a model may say anything",
        "features of a modality go together: a method that names one of several does not say that "
        "the others do not matter",
        "an attribution says what the model uses, which need not be what differs between groups",
        "the linear path was fitted in closed form and the network given only the say that "
        "validation cells granted: what experts do for groups is bounded by that",
    ]
    if not study.others:
        points.append("one seed: how stable explanations are over seeds is for the full profile")
    if run.task == "unsupervised":
        points.append("clusters are explained, and which group a cluster is was not asked")
    return Markdown("\n".join(f"- {point[0].upper()}{point[1:]}." for point in points))


def about_sanity(similar: float, deep: float, study: Study) -> Markdown:
    """Say what a random model's explanations look like, and whether SHAP Deep adds up."""
    return Markdown(
        f"Explanations of a model with random weights correlate with the trained model's by "
        f"{similar:.2f} (Spearman, mean over {len(study.cells)} cells and all groups). SHAP Deep's "
        f"attributions miss the answer that they should add up to by {deep:.0%} of its size: "
        f"it has "
        f"no rules for layer norm, GELU, attention or routing."
    )


def _verdict(row: pd.Series, what: str) -> str:
    if row[f"{what}_low"] > 0:
        return "better than"
    return "worse than" if row[f"{what}_high"] < 0 else "not told apart from"
