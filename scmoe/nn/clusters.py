"""Groups without labels: many clusterings, and a choice among them that needs no label either.

A group is something that comes back when some of the cells are left out, and that every modality
can tell on cells held out. The clustering is kept for which the product of both is the largest.
"""

from __future__ import annotations

import random
from itertools import product

import igraph
import numpy as np
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score
from sklearn.neighbors import kneighbors_graph

from scmoe.nn.heads import discriminant

N_NEIGHBORS = 15
N_SHARED = 20  # neighbours whose overlap is an edge's weight
N_BISECTIONS = 25
JUDGING_SHRINKAGE = 0.2
N_PARTS, STABLE_SHARE = 3, 0.7  # how often, and of how many cells, a clustering is repeated


def find_clusters(
    blocks: list[np.ndarray], present: np.ndarray, n_groups: int, fold: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Cluster of each cell, and the centres where they are those of k-means on all components.

    Candidates, of all modalities together and of each by itself: k-means on components; Leiden on
    their nearest neighbours; Leiden on shared nearest neighbours, counted in each modality and
    added up.

    Parameters
    ----------
    blocks
        Components by modality, `(N, q)`, each of unit total variance, zero where a cell lacks it.
    present, fold
        `(N, M)` bool; `(N,)` the fold a cell is held out in.
    """
    model = KMeans(n_groups, n_init=20, random_state=seed).fit(np.hstack(blocks))
    n, m = present.shape
    if n <= N_SHARED:
        return model.labels_, model.cluster_centers_
    rng = np.random.default_rng(seed)
    parts = [np.sort(rng.permutation(n)[: round(STABLE_SHARE * n)]) for _ in range(N_PARTS)]
    everywhere = [[i] for i in range(m) if m > 1 and present[:, i].all()]
    best, found = -np.inf, None
    for chosen, cluster in product([[*range(m)], *everywhere], (_k_means, _near, _shared)):
        own = [blocks[i] for i in chosen], present[:, chosen]
        first = found is None
        labels = model.labels_ if first else cluster(*own, n_groups, seed)
        again = [cluster([z[p] for z in own[0]], own[1][p], n_groups, seed) for p in parts]
        stable = np.mean(
            [adjusted_rand_score(labels[p], a) for p, a in zip(parts, again, strict=True)]
        )
        score = stable * agreement(blocks, present, labels, fold)
        if score > best:
            best, found = score, (labels, model.cluster_centers_ if first else None)
    return found


def _k_means(blocks, present, n_groups, seed) -> np.ndarray:
    joint = np.hstack(blocks)
    return KMeans(min(n_groups, len(joint)), n_init=5, random_state=seed).fit_predict(joint)


def _near(blocks, present, n_groups, seed) -> np.ndarray:
    joint = np.hstack(blocks)
    near = kneighbors_graph(joint, min(N_NEIGHBORS, len(joint) - 1))
    return communities(near + near.T, n_groups, seed)


def _shared(blocks, present, n_groups, seed) -> np.ndarray:
    parts = (_shared_neighbours(z, np.flatnonzero(present[:, i])) for i, z in enumerate(blocks))
    return communities(sum(parts), n_groups, seed)


def agreement(blocks, present, labels, fold) -> float:
    """How well each modality recovers the clusters on held-out cells, averaged over modalities.

    Adjusted mutual information with the out-of-fold predictions of a shrunken discriminant.
    """
    n_groups, scores = int(labels.max()) + 1, []
    for i, z in enumerate(blocks):
        predicted = np.full(len(labels), -1)
        for k in range(fold.max() + 1):
            train, held_out = present[:, i] & (fold != k), present[:, i] & (fold == k)
            if len(np.unique(labels[train])) < 2:
                continue
            solutions = discriminant(z[train], labels[train], n_groups)
            w, b = next(wb for s, *wb in solutions if s == JUDGING_SHRINKAGE)
            predicted[held_out] = (z[held_out] @ w + b).argmax(1)
        rows = predicted >= 0
        if rows.any():
            scores.append(adjusted_mutual_info_score(labels[rows], predicted[rows]))
    return float(np.mean(scores)) if scores else 0.0


def _shared_neighbours(z: np.ndarray, rows: np.ndarray) -> sparse.csr_matrix:
    """Jaccard overlap of the cells' neighbourhoods `(N, N)`, among the cells at `rows`."""
    if len(rows) <= N_SHARED:
        return sparse.csr_matrix((len(z), len(z)))
    near = kneighbors_graph(z[rows], N_SHARED, include_self=True)
    overlap = (near @ near.T).tocoo()
    weight = overlap.data / (2 * N_SHARED - overlap.data)
    place = rows[overlap.row], rows[overlap.col]
    return sparse.csr_matrix((weight, place), (len(z), len(z)))


def communities(graph: sparse.spmatrix, n_groups: int, seed: int) -> np.ndarray:
    """Leiden communities of a weighted undirected graph, `n_groups` of them where that can be had.

    Modularity's resolution is bisected. Should no resolution give the number, the nearest smaller
    one is taken, and if there is none, all cells are one community.

    Returns
    -------
    Community of each cell `(n_cells,)`, 0 the largest.
    """
    upper = sparse.triu(graph, k=1).tocoo()
    edges = np.c_[upper.row, upper.col].tolist()
    network = igraph.Graph(n=graph.shape[0], edges=edges)
    low, high, best = 1e-3, 20.0, np.zeros(graph.shape[0], int)
    generator = random.Random(seed)
    igraph.set_random_number_generator(generator)
    try:
        for _ in range(N_BISECTIONS):
            resolution = (low * high) ** 0.5
            generator.seed(seed)
            found = network.community_leiden(
                "modularity", weights=upper.data.tolist(), resolution=resolution, n_iterations=10
            )
            n_found, found = len(found), np.array(found.membership)
            if best.max() + 1 < n_found <= n_groups:
                best = found
            if n_found == n_groups:
                break
            low, high = (resolution, high) if n_found < n_groups else (low, resolution)
    finally:
        igraph.set_random_number_generator(random)
    order = np.argsort(-np.bincount(best), kind="stable")
    return np.argsort(order)[best]
