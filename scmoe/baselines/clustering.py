"""Clusters of principal components; the number of groups is given, no label is seen.

Training and validation cells are clustered; a new cell joins the nearest cluster, so that its
cluster does not depend on which other cells come with it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from mudata import MuData
from sklearn import cluster
from sklearn.neighbors import NearestNeighbors

from scmoe.baselines.components import OnComponents
from scmoe.clusters import N_NEIGHBORS, near_communities
from scmoe.data import Split


class _Clusters(OnComponents):
    """Components of every modality, each modality scaled to the same total variance, clustered."""

    task, n_components = "unsupervised", 20

    def fit(self, split: Split):
        """Cluster training and validation cells; `split.test` and all labels are left alone."""
        self._start(split)
        matrices, present, _ = self._training_cells(split)
        self._cluster(self._fit_inputs(matrices, present))
        return self

    def _blocks(self, mdata: MuData) -> dict[str, np.ndarray]:
        """Components `(n_cells, p)` by modality, zero for what is not there."""
        found = self._inputs(*self._matrices(mdata))
        return {m: found.get(m, np.zeros((mdata.n_obs, self.inputs_[m].n)))
                for m in self.modalities_}  # fmt: skip

    def predict(self, mdata: MuData) -> pd.DataFrame:
        """Cluster of every cell: column ``group``, then a probability per cluster."""
        return self._group_table(self._assign(self._blocks(mdata)), mdata.obs_names)

    def get_latent_representation(self, mdata: MuData) -> np.ndarray:
        """Components of all modalities side by side `(n_cells, p)`."""
        return beside(self._blocks(mdata))


class KMeans(_Clusters):
    """k-means, the best of 20 starts; a cell belongs to its cluster with probability 1."""

    method = "k-means"

    def _cluster(self, blocks):
        model = cluster.KMeans(len(self.groups_), n_init=20, random_state=self.seed_)
        self.model_ = model.fit(beside(blocks))

    def _assign(self, blocks):
        return np.eye(len(self.groups_))[self.model_.predict(beside(blocks))]


class Leiden(_Clusters):
    """Leiden communities of a nearest-neighbour graph (Traag et al. 2019).

    The resolution is searched for that gives the given number of groups, or next to it. A new
    cell's probabilities are its nearest cells' shares.
    """

    method = "Leiden"

    def _cluster(self, blocks):
        self._blocks_ = blocks
        self.clusters_ = near_communities(beside(blocks), len(self.groups_), self.seed_)

    def _assign(self, blocks):
        return self._votes(beside(self._blocks_), beside(blocks))

    def _votes(self, known: np.ndarray, new: np.ndarray) -> np.ndarray:
        index = NearestNeighbors(n_neighbors=min(N_NEIGHBORS, len(known))).fit(known)
        near = index.kneighbors(new, return_distance=False)  # (n_cells, k)
        return np.eye(len(self.groups_))[self.clusters_[near]].mean(1)


def beside(blocks: dict[str, np.ndarray]) -> np.ndarray:
    """All blocks side by side."""
    return np.hstack(list(blocks.values()))
