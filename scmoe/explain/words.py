"""What the interpretability page says, worded from its numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown

from scmoe import report
from scmoe.colours import title_of
from scmoe.data import Split
from scmoe.explain import faithfulness, reference
from scmoe.explain.attribution import METHODS, PRIMARY
from scmoe.explain.known import Concepts
from scmoe.explain.study import ALONE, CHEAP, REFERENCE, Study
from scmoe.explain.truth import PATTERN, RANDOM, SHUFFLED, SIGNED
from scmoe.record import Run

CHEAPER = {"shap_gradient": 10, "shap_permutation": 100, "shap_kernel": 100}  # set in advance
NOTHING = (RANDOM, SHUFFLED)  # models that must not recover anything
PROTOCOLS = ("strict", f"strict{ALONE}", "paper")  # as they are stored
MARGIN = 0.005  # of deletion and insertion, below which a difference is none to speak of
COLUMNS = {
    "seconds": "s / 1000 cells", "peak_mb": "memory (MB)", "budget": "budget",
    "split_half": "split-half", "cells": "cells", "deletion": "deletion", "insertion": "insertion",
    "infidelity": "infidelity", "sensitivity": "sensitivity",
    "agreement": "agreement", "overlap": "top-20 overlap",
    "by_patch": "by patch", "stability": "stable over seeds", "stability_folds": "over folds",
}  # fmt: skip


def takeaway(study: Study) -> Markdown:
    """Word the page's answer: what the primary method costs and is worth, and what routing is."""
    table, versus = study.table, study.versus
    cost = " and ".join(
        f"{row['cheaper']:,.0f} times less than {METHODS[name]}" for name, row in versus.iterrows()
    )
    held: dict[str, list[str]] = {}
    for name, row in versus.iterrows():
        held.setdefault(_against(row), []).append(METHODS[name])
    worth = "; ".join(f"{verdict} {' and '.join(names)}" for verdict, names in held.items())
    return Markdown(
        f"**Takeaway.** Explaining a prediction by one backward pass, split by expert, costs "
        f"{cost}. Held against SHAP on the same cells by deletion and insertion, it is {worth}. "
        + _about_routing_alone(table.loc["routing"], table.loc[PRIMARY])
        + _about_linear(study.explanations[PRIMARY].share_table()["linear path"].mean())
    )


def _about_linear(share: float) -> str:
    """Say so where what is explained is a linear model, for which gradients are exact."""
    if share < 0.9:
        return ""
    return (
        f" Mind that the linear path carries {share:.0%} of this model's answers, of which "
        "gradient × input is exact and cheap by construction.\n\nThat holds with experts or "
        "without, and the router explains translations at most. Models without a linear path, "
        "further down, are the test."
    )


def _against(row: pd.Series) -> str:
    """Is the primary method as faithful? Differences below MARGIN count as none."""
    verdicts = {what: _verdict(row, what) for what in ("deletion", "insertion")}
    if set(verdicts.values()) == {0}:
        return "as faithful as"
    said = [
        f"{'more' if v > 0 else 'less'} faithful ({what} {row[what]:+.2f})"
        for what, v in verdicts.items()
        if v
    ]
    return f"{' and '.join(said)} than" if said else "as faithful as"


def _about_routing_alone(routing: pd.Series, ours: pd.Series) -> str:
    share = np.mean([routing[what] / ours[what] for what in ("deletion", "insertion")])
    above = routing["deletion_low"] > 0 and routing["insertion_low"] > 0
    return (
        f"The router alone {'beats' if above else 'does not beat'} random order and reaches "
        f"{share:.0%} of that faithfulness: read off one forward pass, it "
        + ("suffices" if share > 0.9 else "does not suffice")
        + " to tell which features matter."
    )


def of_record(dataset: str) -> Markdown:
    """Show the stored scores of a data set in every protocol that there is, and what they say."""
    shown = []
    for protocol in PROTOCOLS:
        if (study := reference.stored(dataset, protocol)) is None:
            continue
        profile = reference.profile(dataset, protocol)
        caption = f"Table of record: {protocol} protocol, {profile} profile"
        shown += [methods_table(study, caption).data, about_cost(study).data]
        shown += [other_ways(study).data]
    if not shown:
        return Markdown("No scores of this data set are stored with the book.")
    return Markdown("\n\n".join(shown))


def agreement(study: Study) -> pd.DataFrame:
    """Rank correlation of every two methods, columns numbered in the order of the rows."""
    table = faithfulness.agreement(study.explanations)
    numbers = range(1, len(table) + 1)
    rows = [f"{i} {METHODS[name]}" for i, name in zip(numbers, table.index, strict=True)]
    return table.set_axis(rows).set_axis(list(numbers), axis=1)


def about_cost(study: Study) -> Markdown:
    """Hold the costs against what was asked for in advance, and say where it falls short."""
    said = []
    for name, row in study.versus.iterrows():
        asked, own = CHEAPER[name], study.table.loc[name]
        met = row["cheaper"] >= asked
        short = "met" if met else f"missed by a factor of {asked / row['cheaper']:.1f}"
        worse = [
            f"{what} is worse by {-row[what]:.3f} ({-row[f'{what}_high']:.3f} to "
            f"{-row[f'{what}_low']:.3f})"
            for what in ("deletion", "insertion")
            if _verdict(row, what) < 0
        ]
        said.append(
            f"- **{METHODS[name]}**, at a budget of {own['budget']:.0f}, has halves that correlate "
            f"by {own['split_half']:.2f}"
            + ("" if own["split_half"] >= 0.9 else ", short of .9: it would cost more yet")
            + f". Asked for: at least {asked} times cheaper than that. Found: "
            f"{row['cheaper']:,.0f} times: {short}. On {own['cells']:.0f} cells "
            + (
                f"our {' and '.join(worse)}: here SHAP is worth its price."
                if worse
                else "our deletion and insertion are no worse: here its price buys nothing."
            )
        )
    return Markdown("\n".join(said))


def other_ways(study: Study) -> Markdown:
    """Say whether another cheap method closes the gap to SHAP that the primary one leaves."""
    table, reference = study.table, study.table.loc[REFERENCE]
    words = [
        f"{METHODS[name]} {table.at[name, 'agreement']:.2f} (deletion "
        f"{table.at[name, 'deletion']:.2f}, {table.at[name, 'seconds']:.1f} s)"
        for name in CHEAP
    ]
    return Markdown(
        f"Rank correlation with SHAP Permutation ({reference['seconds']:,.0f} s per 1000 cells): "
        f"{'; '.join(words)}. Summed over patches, the finest that routing tells apart, "
        f"{METHODS['routing']} reaches {table.at['routing', 'by_patch']:.2f} and the primary "
        f"method {table.at[PRIMARY, 'by_patch']:.2f}."
    )


def methods_table(study: Study, caption: str = "Every method on the same test cells") -> HTML:
    """Show every method's scores."""
    table = study.table.reindex(columns=list(COLUMNS)).rename(columns=COLUMNS, index=METHODS)
    for what in ("deletion", "insertion"):
        table[what] = [
            f"{row[what]:.3f} ({row[f'{what}_low']:.3f} to {row[f'{what}_high']:.3f})"
            for _, row in study.table.iterrows()
        ]
    table = table.astype({"cells": int, "budget": int}).dropna(axis=1, how="all")
    return report.table(table, f"{caption}; in brackets 95 % intervals", 2)


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
    """Say how well the truth is recovered, and where simpler things do better.

    Parameters
    ----------
    table
        Rows (what, by), columns `auprc, chance`: of one simulation, or means over several.
    """
    said = []
    for what, part in table.groupby(level=0, sort=False):
        auprc, chance = part["auprc"].droplevel(0), part["chance"].iloc[0]
        ours, shap = (auprc[METHODS[name]] for name in (PRIMARY, "shap_gradient"))
        simple = auprc.drop([name for name in auprc.index if name in METHODS.values()])
        nothing = simple[simple.index.isin(NOTHING)]
        ways = simple[simple.index.isin([SIGNED, PATTERN])]
        simple = simple.drop([*nothing.index, *ways.index])
        twice = (
            f"{ours / chance:.1f} times chance"
            if 2 * chance <= 1
            else f"twice chance, {chance:.2f}, would be more than 1"
        )
        better = simple[simple > ours]
        said.append(
            f"**{what[0].upper()}{what[1:]}.** Area under the precision–recall curve {ours:.2f} "
            f"({twice}); SHAP Gradient {shap:.2f}, "
            + ("within the .02 allowed" if ours >= shap - 0.02 else "more than .02 better")
            + "".join(f"; {name} {value:.2f}" for name, value in ways.items())
            + "; without any model, "
            + ", ".join(f"{name} {value:.2f}" for name, value in simple.items())
            + (f": {better.idxmax()} finds more" if len(better) else ": less")
            + "; of models that know nothing, "
            + ", ".join(f"{name} {value:.2f}" for name, value in nothing.items())
            + f" (chance {chance:.2f})"
            + (
                ": an input away from its mean is itself a hint, which gradient × input keeps."
                if (nothing > chance + 0.05).any()
                else "."
            )
        )
    return Markdown("\n\n".join(said))


def about_networks(studied: pd.DataFrame, run: Run) -> Markdown:
    """Say how well the truth of many simulated networks is recovered, and how often it is.

    Without a study of the run's own, the stored ones are spoken of.
    """
    if not studied.empty:
        return Markdown(_about_networks(studied))
    both = {name: reference.networks(run.dataset, name) for name in PROTOCOLS}
    said = [
        f"*Stored with the book, {name} protocol.* {_about_networks(table)}"
        for name, table in both.items()
        if len(table)
    ]
    return Markdown("\n\n".join(said) or "These cells are not simulated: there is no such study.")


def _about_networks(studied: pd.DataFrame) -> str:
    means = studied.groupby(["what", "by"], sort=False)[["auprc", "chance"]].mean()
    said = [f"Means over {studied.groupby(['backbone', 'seed']).ngroups} simulated networks."]
    for (what, backbone), part in studied.groupby(["what", "backbone"], sort=False):
        wide = part.pivot(index="seed", columns="by", values="auprc")
        ours = wide[METHODS[PRIMARY]]
        said.append(
            f"- {what}, {backbone}: {ours.mean():.2f} ± {ours.std():.2f} (standard deviation), at "
            f"least that of SHAP Gradient less .02 in "
            f"{(ours >= wide[METHODS['shap_gradient']] - 0.02).sum()} of {len(ours)} networks, of "
            f"correlation in {(ours >= wide['correlation']).sum()}, and twice chance in "
            f"{(ours.to_numpy() >= 2 * part.groupby('seed')['chance'].first()).sum()}"
        )
    return "\n".join([said[0], "", *said[1:], "", about_recovery(means).data])


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
    if "stability" not in study.table:
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


def _verdict(row: pd.Series, what: str) -> int:
    """1: better, -1: worse, 0: told apart neither by the interval nor by more than MARGIN."""
    if abs(row[what]) < MARGIN:
        return 0
    return int(row[f"{what}_low"] > 0) - int(row[f"{what}_high"] < 0)
