"""The recorded search for how clusters are found: every way, and how it would have been judged.

Labels score what was found and have no part in finding it. Simulated networks whose seeds are used
nowhere else, and training cells of some published folds; no published test cell is read, though a
training cell of one fold is a test cell of another.

``python -m benchmarks.clusters`` adds to results/clusters.json what is missing (20 minutes).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import mudata as md
import numpy as np
import pandas as pd
from sklearn.cluster import AgglomerativeClustering, SpectralClustering
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from scmoe.data import Transform, load, simulate_dyngen
from scmoe.data.backbones import BACKBONES
from scmoe.data.cells import keep
from scmoe.nn import clusters, linear
from scmoe.report_tried import cluster_rules

RESULTS = Path(__file__).parent / "results" / "clusters.json"
SEEDS = 401, 402
PAIRS = {  # modalities, and how to simulate them
    "RNA + protein, medium": (["mrna", "protein"], dict(
        backbone="bifurcating", setting="medium", seed=411, n_cells=900, n_genes=150)),
    "RNA + protein, hard": (["mrna", "protein"], dict(
        backbone="bifurcating", setting="hard", seed=412, n_cells=1500, n_genes=80)),
    "RNA + ATAC, medium": (["mrna", "dna"], dict(
        backbone="trifurcating", setting="medium", seed=413, n_cells=900, n_genes=150)),
    "RNA + ATAC, cycle": (["mrna", "dna"], dict(
        backbone="cycle", setting="medium", seed=414, n_cells=300, n_genes=200)),
}  # fmt: skip
REAL = {
    "patchseq": (0, 4),
    "dbitseq": (0, "block-1", "block-3"),
    "atacseq": ("s1d1", "s1d2"),
}


def sets() -> Iterator[tuple[str, str, Callable[[], tuple[md.MuData, str]]]]:
    """Kind, name, and how to get the cells and the key of their labels."""
    for seed in SEEDS:
        for setting in ("default", "hard"):
            for backbone in BACKBONES:
                yield f"Dyngen, {setting}", f"{backbone} {setting} {seed}", lambda a=(
                    backbone, setting, seed
                ): (simulate_dyngen(backbone=a[0], setting=a[1], seed=a[2]), "label")  # fmt: skip
    for name, (modalities, how) in PAIRS.items():
        yield "two modalities", name, lambda m=modalities, h=how: (
            keep(simulate_dyngen(**h), m), "label"
        )  # fmt: skip
    for dataset, folds in REAL.items():
        for fold in folds:
            yield dataset, f"{dataset} {fold}", lambda a=(dataset, fold): _training(*a)


def _training(dataset, fold) -> tuple[md.MuData, str]:
    split = load(dataset, fold)
    return split.train, split.label_key


def measure(cells: md.MuData, key: str) -> list[dict]:
    """Cluster in every way; give ARI with the labels, and what is known without them."""
    parts = Transform().fit(cells).transform(cells).mod
    truth = cells.obs[key].astype(str).to_numpy()
    n, n_groups = len(truth), len(np.unique(truth))
    present = np.ones((n, len(parts)), bool)
    blocks = []
    for i, part in enumerate(parts.values()):
        basis = linear._components(part.X, present[:, i], 0)
        z = linear._project(part.X, *basis)[:, : linear.EMBEDDED]
        blocks.append(z / linear._spread(z))
    fold = np.random.default_rng(0).permutation(n) % 5
    found = list(clusters.candidates(blocks, present, n_groups, fold, 0))
    rows = [
        dict(
            way=c.way,
            modalities="+".join(list(parts)[i] for i in c.modalities),
            ari=float(adjusted_rand_score(truth, c.labels)),
            stability=c.stability,
            agreement=c.agreement,
        )
        for c in found
    ]
    every = "+".join(parts)
    return rows + [
        dict(way=way, modalities=every, ari=float(adjusted_rand_score(truth, labels)))
        for way, labels in others(blocks, present, n_groups, found)
    ]


def others(blocks, present, n_groups, found) -> Iterator[tuple[str, np.ndarray]]:
    """Cluster in ways that the recipe does not use: they are not judged, only scored."""
    joint, near = np.hstack(blocks), min(clusters.N_NEIGHBORS, len(present) - 1)
    axes = clusters.shared_axes(blocks, present, max(n_groups - 1, 2))
    yield "Leiden on shared axes", clusters._by_neighbours([axes], present, n_groups, 0)
    mixture = GaussianMixture(n_groups, covariance_type="diag", n_init=5, random_state=0)
    yield "Gaussian mixture of all modalities", mixture.fit_predict(joint)
    yield "Ward's linkage of all modalities", AgglomerativeClustering(n_groups).fit_predict(joint)
    spectral = SpectralClustering(
        n_groups, affinity="nearest_neighbors", n_neighbors=near, random_state=0
    )
    yield "spectral clustering of all modalities", spectral.fit_predict(joint)
    best = max(c.score for c in found)
    weights = np.array([max(c.score / best, 0) ** 2 for c in found])
    together = sum(w * (c.labels[:, None] == c.labels) for w, c in zip(weights, found, strict=True))
    linkage = AgglomerativeClustering(n_groups, metric="precomputed", linkage="average")
    yield "consensus of every way, by score", linkage.fit_predict(1 - together / weights.sum())


def main() -> None:
    """Measure what results/clusters.json lacks."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    done = {row["set"] for row in rows}
    for kind, name, get in sets():
        if name not in done:
            rows += [dict(kind=kind, set=name) | row for row in measure(*get())]
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            print(name, flush=True)
    print(cluster_rules(pd.DataFrame(rows)).round(3).to_string())


if __name__ == "__main__":
    main()
