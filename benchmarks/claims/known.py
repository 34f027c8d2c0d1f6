"""What is known of real cells, to hold explanations against: genes, and states of cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from mudata import MuData

from benchmarks.claims import truth
from scmoe.data import Split
from scmoe.explain import METHODS, PRIMARY, attribute, concepts
from scmoe.explain.concepts import Concept, probes, tail, tokens

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


def ranks(model, split: Split) -> pd.DataFrame:
    """Rank of the features that are known to matter, by explanations and by simple scores.

    Patch-seq: of a subclass's marker gene, in mean attribution, with its sign, to that subclass.
    DBiT-seq: of a protein's own gene, when the protein is predicted from RNA.

    Returns
    -------
    How × feature; empty for other sets.
    """
    if split.name == "patchseq" and "rna" in model.modalities_:
        return _markers(model, split.train, split.train.obs[split.label_key])
    if split.name == "dbitseq" and {"rna", "protein"} <= set(model.modalities_):
        return _own_genes(model, split)
    return pd.DataFrame()


def _markers(model, mdata: MuData, labels: Sequence[str]) -> pd.DataFrame:
    subclass = np.array([label.split("-")[0].split(" ")[0] for label in np.asarray(labels, str)])
    why = attribute(model, mdata, "gradient_x_input", background=mdata)
    tables = {METHODS[PRIMARY]: why.table(subclass, signed=True)}
    tables = {how: table.loc["rna"] for how, table in
              (tables | truth.simple_scores(model, mdata, subclass)).items()}  # fmt: skip
    there = [
        name for name in MARKERS if all(name in t.index and name in t for t in tables.values())
    ]
    place = {how: {g: _place(t[g], g) for g in there} for how, t in tables.items()}
    return pd.DataFrame.from_dict(place, orient="index")


def _own_genes(model, split: Split) -> pd.DataFrame:
    names = model.transform_.features
    genes, pairs = {gene.lower(): gene for gene in names["rna"]}, {}
    for protein in names["protein"]:
        symbol = GENES_OF_PROTEINS.get(protein, protein.split(".")[-1]).lower()
        if symbol in genes:
            pairs[protein] = genes[symbol]
    if not pairs:
        return pd.DataFrame()
    asked = {"target": "protein", "source": "rna", "outputs": list(pairs)}
    why = attribute(model, split.test, "gradient_x_input", background=split.train, **asked)
    scaled = model.transform(split.test)
    x, y = (np.asarray(scaled[m].X, float) for m in ("rna", "protein"))
    columns = names["protein"].get_indexer(list(pairs))
    plain = pd.DataFrame(np.abs(truth.correlations(x, y[:, columns])), names["rna"], list(pairs))
    tables = {METHODS[PRIMARY]: why.table().loc["rna"], "correlation": plain}
    place = {how: {p: _place(t[p], gene) for p, gene in pairs.items()} for how, t in tables.items()}
    return pd.DataFrame.from_dict(place, orient="index")


def _place(scores: pd.Series, name: str) -> int:
    return int((scores > scores[name]).sum()) + 1


def concepts_of(model, mdata: MuData, labels: Sequence[str]) -> list[Concept]:
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
    values = {}
    counted = [m for m, kind in model.transform_.kinds.items() if kind in ("counts", "normalised")]
    if counted:
        part = mdata[counted[0]]
        total = pd.Series(np.asarray(part.X.sum(1)).ravel(), part.obs_names)
        values["much RNA"] = total.reindex(mdata.obs_names)
    if "pseudotime" in mdata.obs:
        values["late in its group"] = mdata.obs["pseudotime"]
    if "spatial" in mdata.obsm:
        axes = np.asarray(mdata.obsm["spatial"]).T
        values |= dict(zip(("right in its region", "low in its region"), axes, strict=True))
    if "rna" in model.modalities_:
        part = model.transform_.transform(mdata, ["rna"])["rna"]
        for name, genes in PROGRAMMES.items():
            found = part.var_names.str.lower().isin(genes.lower().split())
            if found.sum() >= FEWEST_GENES:
                level = pd.Series(np.asarray(part.X[:, found].mean(1)).ravel(), part.obs_names)
                values[name] = level.reindex(mdata.obs_names)
    made += [Concept.of_values(name, each, labels) for name, each in values.items()]
    if "batch" in mdata.obs and mdata.obs["batch"].nunique() > 1:
        batch = mdata.obs["batch"].astype(str).to_numpy()
        made.append(Concept.of_cells(f"batch {batch[0]}", batch == batch[0]))
    made = [c for c in made if min(c.shows.sum(), c.lacks.sum()) >= 20]
    if not made:
        names, counts = np.unique(labels, return_counts=True)
        largest = names[counts.argmax()]
        made = [Concept.of_cells(f"{largest} cells (the label itself)", labels == largest)]
    return made


def concept_study(model, mdata: MuData, labels: Sequence[str], n_random: int, seed=0):
    """Probe the concepts that these cells offer.

    Returns
    -------
    One row, "concept probes": best accuracy and smallest q of each concept, and the share of random
    concepts that pass at p < .05.
    """
    offered = concepts_of(model, mdata, labels)
    found, _ = concepts.concept_scores(model, mdata, offered, n_random=n_random, seed=seed)
    found = found.groupby("concept").agg(accuracy=("accuracy", "max"), q=("q", "min"))
    row = {f"{name} of {c}": v for c, each in found.iterrows() for name, v in each.items()}
    row["false positives"] = false_positive_rate(model, mdata, offered[0], seed=seed)
    return pd.DataFrame(row, index=["concept probes"])


def false_positive_rate(model, mdata: MuData, concept: Concept, n: int = 100, seed: int = 0):
    """Share of random concepts whose probe beats the other random ones at p < .05, one-sided.

    Each of `n` random concepts with the sizes of `concept` is held against all others, in every
    modality. About .05 if the test is honest.
    """
    rng = np.random.default_rng(seed)
    null = [concept.at_random(rng) for _ in range(n)]
    acts, hits = tokens(model, mdata), []
    for i in range(acts.shape[1]):
        accuracy, _ = probes(acts[:, i], null, seed)
        hits += [tail(accuracy[j], np.delete(accuracy, j)) < 0.05 for j in range(n)]
    return float(np.mean(hits))
