"""What is known of the four data sets, to hold explanations against: genes, truth, states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from mudata import MuData

from scmoe.data import Split
from scmoe.explain import recovery
from scmoe.explain.attribution import METHODS, PRIMARY, attribute
from scmoe.explain.concepts import Concept, concept_scores, expert_map, false_positive_rate
from scmoe.explain.study import Plan
from scmoe.explain.truth import recovered, recovery_study
from scmoe.model import ScMoE
from scmoe.record import Run

MARKERS = ("Pvalb", "Sst", "Vip", "Lamp5", "Sncg")  # each names a subclass of Patch-seq's neurons
GENES_OF_PROTEINS = {  # DBiT-seq's antibodies whose names are not their genes'
    "CD201.EPCR": "Procr", "CD304.NPR1": "Nrp1", "Folate.Receptor": "Folr1", "Ly.6A.E": "Ly6a",
    "MAdCAM.1": "Madcam1", "SiglecH.SIGLEC": "Siglech", "CD326.Ep.CAM": "Epcam",
    "PanendothelialCellAntigen": "Plvap",
}  # fmt: skip
PROGRAMMES = {  # genes that go up together in a state; matched without regard to case
    "cell cycle": "Mki67 Top2a Pcna Mcm2 Mcm3 Mcm4 Mcm5 Mcm6 Cdk1 Ccnb1 Ccnb2 Tyms Rrm2 Hmgb2",
    "immediate early": "Fos Fosb Fosl2 Jun Junb Egr1 Egr2 Egr3 Egr4 Npas4 Arc Nr4a1 Nr4a3 Ier2",
    "haemoglobin": "Hba-a1 Hba-a2 Hba-x Hbb-bs Hbb-bt Hbb-bh1 Hbb-y Hbb Hba1 Hba2 Alas2",
    "interferon": "Isg15 Ifit1 Ifit3 Ifi6 Ifi44l Mx1 Stat1 Irf7 Ifitm3 Oas1 Xaf1",
}
FEWEST_GENES = 3  # of a programme, in the data


def marker_ranks(model: ScMoE, mdata: MuData, labels: Sequence[str]) -> pd.DataFrame:
    """Rank of Patch-seq's marker genes in the explanation of their own subclass.

    Columns: rank by the primary method (mean attribution, with its sign, to the own group of the
    subclass's cells), by correlation with membership in the subclass and by logistic regression's
    coefficient; `of` so many genes.
    """
    subclass = np.array([label.split("-")[0].split(" ")[0] for label in np.asarray(labels, str)])
    signed = attribute(model, mdata, background=mdata).table(subclass, signed=True).loc["rna"]
    simple = recovery.simple_scores(model, mdata, subclass)
    rows = {}
    for name in MARKERS:
        if name in signed.index and name in signed.columns:
            scores = {METHODS[PRIMARY]: signed[name]}
            scores |= {how: table.loc["rna"][name] for how, table in simple.items()}
            rows[name] = {how: int((v > v[name]).sum()) + 1 for how, v in scores.items()}
            rows[name] |= {"of": len(signed), "cells": int((subclass == name).sum())}
    return pd.DataFrame.from_dict(rows, orient="index")


def same_gene_ranks(model: ScMoE, mdata: MuData, background: MuData) -> pd.DataFrame:
    """Rank of each protein's own gene when the protein is predicted from RNA (DBiT-seq).

    Columns: the gene, its rank among all genes by the primary method (mean |attribution|) and by
    |correlation| with the protein; `of` so many genes.
    """
    genes = model.transform_.features["rna"]
    lower = {gene.lower(): gene for gene in genes}
    pairs = {}
    for protein in model.transform_.features["protein"]:
        symbol = GENES_OF_PROTEINS.get(protein, protein.split(".")[-1])
        if symbol.lower() in lower:
            pairs[protein] = lower[symbol.lower()]
    if not pairs:
        return pd.DataFrame(columns=["gene", METHODS[PRIMARY], "correlation", "of"])
    asked = {"target": "protein", "source": "rna", "outputs": list(pairs)}
    why = attribute(model, mdata, background=background, **asked)
    scaled = model.transform(mdata)
    x, y = (np.asarray(scaled[m].X, float) for m in ("rna", "protein"))
    columns = model.transform_.features["protein"].get_indexer(list(pairs))
    plain = pd.DataFrame(np.abs(recovery.correlations(x, y[:, columns])), genes, list(pairs))
    size = why.table().loc["rna"]
    rank = lambda v, gene: int((v > v[gene]).sum()) + 1  # noqa: E731
    rows = {
        protein: {
            "gene": gene,
            METHODS[PRIMARY]: rank(size[protein], gene),
            "correlation": rank(plain[protein], gene),
            "of": len(genes),
        }
        for protein, gene in pairs.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def concepts_of(model: ScMoE, mdata: MuData, labels: Sequence[str]) -> list[Concept]:
    """Concepts that can be made from what is known of the cells, not the label itself if possible.

    Matched within labels: library size, position, pseudotime, gene programmes. Where labels have
    families ("Sst-MET-3", "Sst-MET-4"), the largest family against the others, a known cell state.
    """
    labels, made = np.asarray(labels, str), []
    family = np.array([label.replace("-", " ").split(" ")[0] for label in labels])
    names, counts = np.unique(family, return_counts=True)
    if 1 < len(names) < len(set(labels)):
        largest = names[counts.argmax()]
        made.append(Concept.of_cells(f"{largest} cells", family == largest))
    counted = [m for m, kind in model.transform_.kinds.items() if kind in ("counts", "normalised")]
    if counted:
        part = mdata[counted[0]]
        total = pd.Series(np.asarray(part.X.sum(1)).ravel(), part.obs_names)
        made.append(Concept.of_values("much RNA", total.reindex(mdata.obs_names), labels))
    if "pseudotime" in mdata.obs:
        made.append(Concept.of_values("late in its group", mdata.obs["pseudotime"], labels))
    if "spatial" in mdata.obsm:
        for axis, name in enumerate(["right in its region", "low in its region"]):
            made.append(Concept.of_values(name, np.asarray(mdata.obsm["spatial"])[:, axis], labels))
    if "rna" in model.modalities_:
        known = {f.lower(): f for f in model.transform_.features["rna"]}
        for name, genes in PROGRAMMES.items():
            found = [known[g.lower()] for g in genes.split() if g.lower() in known]
            if len(found) >= FEWEST_GENES:
                made.append(Concept.of_programme(name, model, mdata, "rna", found, labels))
    if "batch" in mdata.obs and mdata.obs["batch"].nunique() > 1:
        batch = mdata.obs["batch"].astype(str).to_numpy()
        made.append(Concept.of_cells(f"batch {batch[0]}", batch == batch[0]))
    made = [c for c in made if min(c.shows.sum(), c.lacks.sum()) >= 20]
    if not made:
        names, counts = np.unique(labels, return_counts=True)
        largest = names[counts.argmax()]
        made = [Concept.of_cells(f"{largest} cells (the label itself)", labels == largest)]
    return made


def check(model: ScMoE, split: Split, plan: Plan, seed: int = 0) -> tuple[str, pd.DataFrame]:
    """Hold explanations against whatever is known of these cells.

    Returns
    -------
    What it is (`"truth"`, `"markers"`, `"pairs"`, or `""` for nothing), and its table.
    """
    if "truth" in split.train.uns:
        return "truth", recovered(model, split, plan, seed)
    if split.name == "patchseq" and "rna" in model.modalities_:
        return "markers", marker_ranks(model, split.train, split.train.obs[split.label_key])
    if split.name == "dbitseq" and {"rna", "protein"} <= set(model.modalities_):
        return "pairs", same_gene_ranks(model, split.test, split.train)
    return "", pd.DataFrame()


def as_scores(what: str, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The table of `check` as method × score, by what precedes a score's name in a record."""
    if what == "truth":
        return {f"{column} of ": table[column].unstack("what") for column in table}
    ranks = table.drop(columns=["of", "cells", "gene"], errors="ignore")
    return {"rank of ": ranks.T} if what else {}


def many_networks(run: Run, plan: Plan) -> pd.DataFrame:
    """`scmoe.explain.truth.recovery_study` where cells are simulated and the plan has it."""
    simulated = run.dataset == "dyngen" and plan.n_networks
    return recovery_study(run, plan, plan.n_networks) if simulated else pd.DataFrame()


def scores_of_networks(studied: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The table of `many_networks` as method × score, by what precedes a score's name."""
    if studied.empty:
        return {}
    where = studied["backbone"] + " " + studied["seed"].astype(str)
    return {
        f"{column} over networks of ": studied.assign(score=studied["what"] + ", " + where).pivot(
            index="by", columns="score", values=column
        )
        for column in ("auprc", "chance")
    }


@dataclass
class Concepts:
    """What tokens know of some concepts.

    Attributes
    ----------
    offered
        The concepts that could be made.
    probes, uses
        As `concepts.concept_scores` gives them, before and after attention.
    false_positives
        Share of random concepts that pass at p < .05.
    through
        Expert × modality: mean |derivative| of the groups' logits along the first concept.
    """

    offered: list[Concept]
    probes: pd.DataFrame
    uses: pd.DataFrame
    false_positives: float
    through: pd.DataFrame

    @property
    def read(self) -> pd.DataFrame:
        """Concept × modality: held-out accuracy above one half, after attention."""
        after = self.probes[self.probes["place"] == "after"]
        return after.pivot(index="concept", columns="modality", values="accuracy") - 0.5

    @property
    def scores(self) -> pd.DataFrame:
        """What goes into the record: the best probe of each concept, and the false positives."""
        found = self.probes.groupby("concept").agg(accuracy=("accuracy", "max"), q=("q", "min"))
        row = {f"{name} of {c}": v for c, each in found.iterrows() for name, v in each.items()}
        row["false positives"] = self.false_positives
        return pd.DataFrame(row, index=["concept probes"])


def concept_study(model, mdata: MuData, labels: Sequence[str], n_random: int, seed=0) -> Concepts:
    """Probe the concepts that these cells offer, before and after attention."""
    offered = concepts_of(model, mdata, labels)
    tables = [
        concept_scores(model, mdata, offered, place=place, n_random=n_random, seed=seed)
        for place in ("before", "after")
    ]
    probes, uses = (pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))
    through = expert_map(model, mdata, offered[0], seed=seed).abs()
    through = through.groupby(level=0, sort=False).mean().T
    false_positives = false_positive_rate(model, mdata, offered[0], seed=seed)
    return Concepts(offered, probes, uses, false_positives, through)
