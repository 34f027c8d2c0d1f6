"""Simple methods, behind the interface of :class:`scmoe.ScMoE`."""

from scmoe.baselines.classifiers import (
    CoordinateNeighbours,
    DiscriminantAnalysis,
    LinearEnsemble,
    LogisticRegression,
)
from scmoe.baselines.clustering import KMeans, Leiden
from scmoe.baselines.linear import Linear
from scmoe.baselines.regression import PLS, KernelRidge, ReducedRank, Ridge

__all__ = [
    "PLS", "CoordinateNeighbours", "DiscriminantAnalysis", "KMeans", "KernelRidge", "Leiden",
    "Linear", "LinearEnsemble", "LogisticRegression", "ReducedRank", "Ridge",
]  # fmt: skip
