"""Does the simulator make cells like dyngen's? The same statistics of both, in the same units.

Counts are read as log2(1 + count), the units in which the reference output of dyngen stores its
layers; accessibility is a fraction in both. The reference files are not part of this repository:
without them, a summary of their statistics stands in, which this renews:

    python -m benchmarks.claims.resemblance DATA/dyngen_reference
"""

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import mudata as md
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.record.collect import BOOK
from scmoe.data.catalog import data_root
from scmoe.data.dyngen import simulate_dyngen
from scmoe.data.files import read_h5ad

FOLDER = "dyngen_reference"  # below the data root
LINEAR, CHROMATIN = "linear_4000x120.h5ad", "chromatin_200x150.h5ad"
SOURCES = {
    LINEAR: "output of dyngen, dynverse/dyngen_manuscript (MIT)",
    CHROMATIN: "output of dyngen, openproblems-bio/neurips2021_multimodal_viash (MIT)",
}
LAYERS = {"pre_mrna": "expression_unspliced", "mrna": "expression",
          "protein": "expression_protein"}  # fmt: skip
SUMMARY = BOOK / "dyngen_reference_summary.json"
N_CELLS, N_GENES = 500, 100  # the size at which cells are compared
N_EIGENVALUES = 5
EXPRESSED = 0.01  # share of cells in which a gene must be seen for its correlations to count

Layers = dict[str, np.ndarray]  # name: (n_cells, n_genes)


@dataclass
class Resemblance:
    """Ours beside dyngen's.

    `linear` and `chromatin` have a row per (statistic, layer) and the columns dyngen, dyngen sd,
    ours, ours sd, difference; sds are over subsamples of dyngen's one network, and over our
    networks. `hard` has accuracies in the hard setting, a row per seed. `cells` and `reference`
    are the layers of one simulation of ours and, where its files are there, of dyngen.
    """

    linear: pd.DataFrame
    chromatin: pd.DataFrame
    hard: pd.DataFrame
    cells: Layers
    reference: Layers | None


def compare(n_seeds: int = 10, root: str | PathLike | None = None, seed: int = 0) -> Resemblance:
    """Simulate `n_seeds` networks from a first `seed` on, describe, and set beside dyngen.

    Of the reference below the data root as many subsamples are taken; without its files the
    committed summary stands in.
    """
    seeds, folder = range(seed, seed + n_seeds), data_root(root) / FOLDER
    present = all((folder / name).is_file() for name in SOURCES)
    theirs = describe_reference(folder, seeds) if present else read_summary()
    ours = {
        "linear": _mean_and_sd(describe(*simulated(s), s) for s in seeds),
        "chromatin": _mean_and_sd(describe(simulated_chromatin(s)) for s in seeds),
    }
    beside = {}
    for name, own in ours.items():
        dyngen = theirs[name].reindex(own.index).astype(float)
        columns = {"dyngen": dyngen["mean"], "dyngen sd": dyngen["sd"]}
        columns |= {"ours": own["mean"], "ours sd": own["sd"]}
        beside[name] = pd.DataFrame(columns).assign(difference=own["mean"] - dyngen["mean"])
    return Resemblance(
        **beside,
        hard=pd.DataFrame([accuracies(*simulated(s, "hard"), s) for s in seeds], index=seeds),
        cells=simulated(seed)[0],
        reference=read_linear(folder)[0] if present else None,
    )


def describe_reference(folder: Path, seeds: Iterable[int]) -> dict[str, pd.DataFrame]:
    """Give mean and sd of the statistics of dyngen's output, over subsamples of its cells."""
    linear = read_linear(folder)
    subsamples = [describe(*subsample(*linear, seed=seed), seed) for seed in seeds]
    chromatin = describe(read_chromatin(folder)).rename("mean").to_frame()
    return {"linear": _mean_and_sd(subsamples), "chromatin": chromatin.assign(sd=np.nan)}


def read_summary() -> dict[str, pd.DataFrame]:
    """Read the committed statistics of dyngen's output."""
    content = json.loads(SUMMARY.read_text())
    return {
        name: pd.DataFrame(content[name]).set_index(["statistic", "layer"]).astype(float)
        for name in ("linear", "chromatin")
    }


def write_summary(folder: Path) -> None:
    """Renew the committed statistics: means and standard deviations, and where they come from."""
    content = {
        "made_by": "python -m benchmarks.claims.resemblance",
        "what": f"linear: mean and sd over 10 random subsamples of {N_CELLS} "
        f"cells and {N_GENES} genes; chromatin: all cells, one value",
        "files": {
            name: {"source": words, "md5": hashlib.md5((folder / name).read_bytes()).hexdigest()}
            for name, words in SOURCES.items()
        },
    }
    for name, table in describe_reference(folder, range(10)).items():
        content[name] = json.loads(table.reset_index().round(4).to_json(orient="records"))
    SUMMARY.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


# --- cells, dyngen's and ours, in the same units ------------------------------------------------


def read_linear(folder: Path) -> tuple[Layers, np.ndarray]:
    """Read dyngen's linear output: layers `(4000, 120)` in log2(1 + count), and milestones."""
    cells = read_h5ad(folder / LINEAR)
    layers = {modality: _dense(cells.layers[name]) for modality, name in LAYERS.items()}
    return layers, cells.obs["milestone"].astype(str).to_numpy()


def read_chromatin(folder: Path) -> Layers:
    """Read dyngen's bifurcating output: accessibility and mRNA, 200 cells.

    Left out are housekeeping genes, and those stored without accessibility: they need no activator.
    """
    cells = read_h5ad(folder / CHROMATIN)
    dna = _dense(cells.layers["chromatin"])
    kept = dna.any(0) & ~cells.var["is_hk"].to_numpy(bool)
    return {"dna": dna[:, kept], "mrna": np.log2(1 + _dense(cells.X)[:, kept])}


def simulated(seed: int, setting: str = "default") -> tuple[Layers, np.ndarray]:
    """Simulate cells of a linear backbone: layers in the reference's units, and milestones."""
    mdata = simulate_dyngen(N_CELLS, N_GENES, seed=seed, setting=setting)
    layers = {"dna": mdata["dna"].X} | {m: np.log2(1 + mdata[m].X) for m in LAYERS}
    return layers, mdata.obs["label"].astype(str).to_numpy()


def simulated_chromatin(seed: int) -> Layers:
    """Simulate cells to hold beside :func:`read_chromatin`, with the same choice of genes."""
    mdata = simulate_dyngen(200, 150, "bifurcating", seed)
    edges = mdata.uns["truth"]["edges"]
    kept = mdata["dna"].var_names.isin(edges.target[edges.sign > 0])
    return {"dna": mdata["dna"].X[:, kept], "mrna": np.log2(1 + mdata["mrna"].X)[:, kept]}


def subsample(layers: Layers, labels: np.ndarray, seed: int = 0) -> tuple[Layers, np.ndarray]:
    """Take `N_CELLS` random cells and `N_GENES` random genes, the same in every layer."""
    rng = np.random.default_rng(seed)
    n_cells, n_genes = next(iter(layers.values())).shape
    cells = rng.choice(n_cells, min(N_CELLS, n_cells), replace=False)
    genes = rng.choice(n_genes, min(N_GENES, n_genes), replace=False)
    return {name: X[np.ix_(cells, genes)] for name, X in layers.items()}, labels[cells]


# --- statistics ---------------------------------------------------------------------------------


def describe(layers: Layers, labels: np.ndarray | None = None, seed: int = 0) -> pd.Series:
    """Summarise cells by layer: one value per (statistic, layer).

    Share of zeros; slope and height of log10 variance over log10 mean of the counts; leading
    eigenvalues of the gene correlation matrix as shares; mean per-gene correlation between
    neighbouring layers; and, given labels, how well they are read off each layer, and off all.
    """
    found = {}
    for name, X in layers.items():
        found["zero fraction", name] = (X == 0).mean()
        if name != "dna":
            mean, variance = mean_variance(X)
            line = np.polyfit(mean - (4 if name == "protein" else 1), variance, 1)
            found |= {
                (f"mean–variance {what}", name): float(value)
                for what, value in zip(("slope", "height"), line, strict=True)
            }
        for rank, share in enumerate(spectrum(X)[:N_EIGENVALUES], start=1):
            found[f"eigenvalue {rank}", name] = share
    names = list(layers)
    for first, second in zip(names, names[1:], strict=False):
        correlation = gene_correlation(layers[first], layers[second])
        found["correlation", f"{first}–{second}"] = np.nanmean(correlation)
    if labels is not None:
        found |= {("accuracy", k): v for k, v in accuracies(layers, labels, seed).items()}
    return pd.Series(found).rename_axis(["statistic", "layer"])


def mean_variance(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log10 mean and log10 variance over cells of the counts behind X, genes with mean >= 0.1."""
    counts = np.exp2(X.astype(float)) - 1
    mean, variance = counts.mean(0), counts.var(0)
    kept = (mean >= 0.1) & (variance > 0)
    return np.log10(mean[kept]), np.log10(variance[kept])


def gene_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlation over cells, gene by gene; NaN where a gene is not expressed."""
    kept = ((first > 0).mean(0) >= EXPRESSED) & ((second > 0).mean(0) >= EXPRESSED)
    a, b = (X - X.mean(0) for X in (first, second))
    scale = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    kept &= scale > 0
    return np.where(kept, (a * b).sum(0) / np.where(scale > 0, scale, 1), np.nan)


def spectrum(X: np.ndarray) -> np.ndarray:
    """Eigenvalues of the correlation matrix of expressed genes, as shares, largest first."""
    X = X[:, ((X > 0).mean(0) >= EXPRESSED) & (X.std(0) > 1e-6)]
    values = np.linalg.eigvalsh(np.corrcoef(X.T))[::-1]
    return values / values.sum()


def accuracies(layers: Layers, labels: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Five-fold accuracy of logistic regression (standardised features) by layer, and on all."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    views = layers | {"all": np.hstack(list(layers.values()))}
    return {name: cross_val_score(model, X, labels, cv=folds).mean() for name, X in views.items()}


def edge_correlations(mdata: md.MuData) -> pd.DataFrame:
    """Correlate every TF's protein with every target's accessibility: does a true edge show?

    Proteins are shares of their cell's total, which takes out the library size. Gives a row per
    (regulator, target) pair of features that vary: `correlation` over cells (Spearman), and `sign`
    (1, -1, or 0 for no edge).
    """
    genes, edges = mdata.uns["truth"]["genes"], mdata.uns["truth"]["edges"]
    factors, targets = (genes.index[genes["role"] == role] for role in ("tf", "target"))
    protein = mdata["protein"].to_df()
    a = protein[factors].div(protein.sum(axis=1).clip(lower=1), axis=0).rank().T
    b = mdata["dna"].to_df()[targets].rank().T
    a, b = (x[x.std(axis=1) > 0] for x in (a, b))
    both = np.corrcoef(a, b)[: len(a), len(a) :]
    pairs = pd.DataFrame(both, a.index, b.index).rename_axis("regulator").stack()
    signs = edges.set_index(["regulator", "target"])["sign"].reindex(pairs.index)
    return pd.DataFrame({"correlation": pairs, "sign": signs.fillna(0).astype(int)})


def _mean_and_sd(described: Iterable[pd.Series]) -> pd.DataFrame:
    table = pd.concat(described, axis=1)
    return pd.DataFrame({"mean": table.mean(axis=1), "sd": table.std(axis=1)})


def _dense(X) -> np.ndarray:
    return np.asarray(X.toarray() if hasattr(X, "toarray") else X)


if __name__ == "__main__":
    write_summary(Path(sys.argv[1]))
