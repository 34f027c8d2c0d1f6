"""Groups without labels: k-means in what the modalities share, unless a rival is clearly better.

Generalised canonical correlation finds the axes along which the modalities agree; noise that only
one of them has stays out. Where groups show in one modality only, or are not round, k-means there
misses them. So other clusterings compete, judged without a label: a group is something that comes
back when some of the cells are left out, and that every modality can tell on cells held out. The
product of both must be larger by `MARGIN` for a rival to win.
"""

from __future__ import annotations

import random
from itertools import product

import igraph
import numpy as np
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score
from sklearn.neighbors import kneighbors_graph

N_NEIGHBORS = 15
N_SHARED = 20  # neighbours whose overlap is an edge's weight
N_BISECTIONS = 25
JUDGING_SHRINKAGE = 0.2
AXES_SHRINKAGE = 0.3  # of each modality's covariance, where shared axes are looked for
MARGIN = 0.2  # by which share a rival must be better
N_PARTS, STABLE_SHARE = 3, 0.7  # how often, and of how many cells, a clustering is repeated


def find_clusters(
    blocks: list[np.ndarray], present: np.ndarray, n_groups: int, fold: np.ndarray, seed: int
) -> np.ndarray:
    """Give the cluster of each cell `(N,)`, from 0, of the way to cluster that wins.

    All modalities are clustered together, and each that every cell has by itself.

    Parameters
    ----------
    blocks
        Components by modality, `(N, q)`, each of unit total variance, zero where a cell lacks it.
    present, fold
        `(N, M)` bool; `(N,)` the fold a cell is held out in.
    """
    n, m = present.shape
    if n <= N_SHARED:
        return _k_means(blocks, present, n_groups, seed)
    rng = np.random.default_rng(seed)
    parts = [np.sort(rng.permutation(n)[: round(STABLE_SHARE * n)]) for _ in range(N_PARTS)]
    alone = [[i] for i in range(m) if m > 1 and present[:, i].all()]
    todo = [*product([list(range(m))], RIVALS), *product(alone, RIVALS)]
    # there must be cells enough, even in a part of them, to look for shared axes
    shared = m > 1 and present.all(1).sum() > 2 * N_SHARED
    if shared:
        todo.insert(0, (list(range(m)), _on_shared_axes))
    labels, scores = [], []
    for chosen, cluster in todo:
        own, has = [blocks[i] for i in chosen], present[:, chosen]
        labels.append(cluster(own, has, n_groups, seed))
        again = (cluster([z[p] for z in own], has[p], n_groups, seed) for p in parts)
        pairs = zip(parts, again, strict=True)
        stability = np.mean([adjusted_rand_score(labels[-1][p], a) for p, a in pairs])
        scores.append(stability * _agreement(blocks, present, labels[-1], fold))
    stays = shared and max(scores) <= (1 + MARGIN) * scores[0]
    return labels[0 if stays else int(np.argmax(scores))]


def _agreement(blocks, present, labels, fold) -> float:
    """How well each modality recovers the clusters on held-out cells, averaged over modalities.

    Adjusted mutual information with the out-of-fold predictions of a shrunken discriminant.
    """
    scores = []
    for i, z in enumerate(blocks):
        predicted = np.full(len(labels), -1)
        for k in range(fold.max() + 1):
            train, held_out = present[:, i] & (fold != k), present[:, i] & (fold == k)
            if len(np.unique(labels[train])) < 2:
                continue
            judge = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=JUDGING_SHRINKAGE)
            predicted[held_out] = judge.fit(z[train], labels[train]).predict(z[held_out])
        rows = predicted >= 0
        if rows.any():
            scores.append(adjusted_mutual_info_score(labels[rows], predicted[rows]))
    return float(np.mean(scores)) if scores else 0.0


# --- ways to cluster, all with the arguments (blocks, present, n_groups, seed) ---


def _on_shared_axes(blocks, present, n_groups, seed) -> np.ndarray:
    """k-means on the axes that the modalities share most.

    Generalised canonical correlation (Kettenring 1971, MAXVAR), fitted to the cells that have all
    modalities. Along an axis that m modalities share in full, the sum of their whitened scores has
    m times the variance that it has where they share nothing; what exceeds the latter is the
    axis's weight. A cell that lacks some modalities is placed by the others.
    """
    full, whitened, n_axes = present.all(1), [], max(n_groups - 1, 2)
    for z in blocks:
        values, vectors = np.linalg.eigh(np.cov(z[full], rowvar=False).reshape(2 * z.shape[1:]))
        shrunk = (1 - AXES_SHRINKAGE) * values.clip(0) + AXES_SHRINKAGE * values.mean()
        whitened.append(z @ (vectors / np.sqrt(shrunk.clip(1e-12))))
    joint = np.hstack(whitened)
    values, axes = np.linalg.eigh(np.cov(joint[full], rowvar=False))
    values, axes = values[::-1][:n_axes], axes[:, ::-1][:, :n_axes]
    weights = np.sqrt((values - 1).clip(0) / values.clip(1e-12))
    scores = joint @ (axes * weights) * (len(blocks) / present.sum(1, keepdims=True).clip(1))
    return _k_means([scores], present, n_groups, seed)


def _k_means(blocks, present, n_groups, seed) -> np.ndarray:
    joint = np.hstack(blocks)
    return KMeans(min(n_groups, len(joint)), n_init=20, random_state=seed).fit_predict(joint)


def _by_distance(blocks, present, n_groups, seed) -> np.ndarray:
    return near_communities(np.hstack(blocks), n_groups, seed)


def _by_neighbours(blocks, present, n_groups, seed) -> np.ndarray:
    """Leiden on the Jaccard overlap of neighbourhoods, in each modality and added up."""
    parts = (_overlaps(z, np.flatnonzero(has)) for z, has in zip(blocks, present.T, strict=True))
    return communities(sum(parts), n_groups, seed)


def _overlaps(z: np.ndarray, rows: np.ndarray) -> sparse.csr_matrix:
    """Overlap of the neighbourhoods of the cells at `rows`, `(N, N)`."""
    if len(rows) <= N_SHARED:
        return sparse.csr_matrix((len(z), len(z)))
    near = kneighbors_graph(z[rows], N_SHARED, include_self=True)
    overlap = (near @ near.T).tocoo()
    weight = overlap.data / (2 * N_SHARED - overlap.data)
    return sparse.csr_matrix((weight, (rows[overlap.row], rows[overlap.col])), (len(z), len(z)))


RIVALS = (_k_means, _by_distance, _by_neighbours)


def near_communities(points: np.ndarray, n_groups: int, seed: int) -> np.ndarray:
    """Leiden communities `(N,)` of the nearest neighbours among points `(N, p)`."""
    near = kneighbors_graph(points, min(N_NEIGHBORS, len(points) - 1))
    return communities(near + near.T, n_groups, seed)


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
            if best.max() + 1 < len(found) <= n_groups:
                best = np.array(found.membership)
            if len(found) == n_groups:
                break
            low, high = (resolution, high) if len(found) < n_groups else (low, resolution)
    finally:
        igraph.set_random_number_generator(random)
    order = np.argsort(-np.bincount(best), kind="stable")
    return np.argsort(order)[best]
