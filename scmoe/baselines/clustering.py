"""Clusters of principal components; the number of groups is given, no label is seen.

Training and validation cells are clustered; a new cell joins the nearest cluster, so that its
cluster does not depend on which other cells come with it.
"""

from __future__ import annotations

import mudata as md
import numpy as np
import pandas as pd
from sklearn import cluster
from sklearn.neighbors import NearestNeighbors, kneighbors_graph

from scmoe.baselines.components import UnitComponents
from scmoe.clusters import communities
from scmoe.data import Split
from scmoe.method import Method

N_COMPONENTS = 20
N_NEIGHBORS = 15


class _Clusters(Method):
    """Components of every modality, each modality scaled to the same total variance, clustered."""

    task = "unsupervised"

    def fit(self, split: Split):
        """Cluster training and validation cells; `split.test` and all labels are left alone."""
        self._start(split)
        matrices, present, _ = self._training_cells(split)
        self.components_ = {
            m: UnitComponents(x[present[m]], N_COMPONENTS, self.seed_) for m, x in matrices.items()
        }
        self._cluster(self._blocks(matrices, present), present)
        return self

    def _blocks(self, matrices, present) -> dict[str, np.ndarray]:
        """Components `(n_cells, p)` by modality, zero for what is not there."""
        n = len(next(iter(present.values())))
        return {
            m: self.components_[m](matrices[m]) * present[m][:, None]
            if m in matrices
            else np.zeros((n, self.components_[m].n))
            for m in self.modalities_
        }

    def predict(self, mdata: md.MuData) -> pd.DataFrame:
        """Cluster of every cell: column ``group``, then a probability per cluster."""
        matrices, present = self._matrices(mdata)
        return self._group_table(self._assign(self._blocks(matrices, present)), mdata.obs_names)

    def get_latent_representation(self, mdata: md.MuData) -> np.ndarray:
        """Components of all modalities side by side `(n_cells, p)`."""
        return np.hstack(list(self._blocks(*self._matrices(mdata)).values()))


class KMeans(_Clusters):
    """k-means, the best of 20 starts; a cell belongs to its cluster with probability 1."""

    method = "k-means"

    def _cluster(self, blocks, present):
        model = cluster.KMeans(len(self.groups_), n_init=20, random_state=self.seed_)
        self.model_ = model.fit(np.hstack(list(blocks.values())))

    def _assign(self, blocks):
        return np.eye(len(self.groups_))[self.model_.predict(np.hstack(list(blocks.values())))]


class Leiden(_Clusters):
    """Leiden communities of a nearest-neighbour graph (Traag et al. 2019).

    The resolution is searched for that gives the given number of groups, or next to it. A new
    cell's probabilities are its nearest cells' shares.
    """

    method = "Leiden"

    def _cluster(self, blocks, present):
        self._blocks_ = blocks
        joint = np.hstack(list(blocks.values()))
        graph = kneighbors_graph(joint, min(N_NEIGHBORS, len(joint) - 1))
        self.clusters_ = communities(graph + graph.T, len(self.groups_), self.seed_)

    def _assign(self, blocks):
        joint = [np.hstack(list(b.values())) for b in (self._blocks_, blocks)]
        return self._votes(*joint)

    def _votes(self, known: np.ndarray, new: np.ndarray) -> np.ndarray:
        index = NearestNeighbors(n_neighbors=min(N_NEIGHBORS, len(known))).fit(known)
        near = index.kneighbors(new, return_distance=False)  # (n_cells, k)
        return np.eye(len(self.groups_))[self.clusters_[near]].mean(1)
