"""Simple methods and other authors', behind the interface of :class:`scmoe.ScMoE`."""

from scmoe.baselines.clustering import WNN, KMeans, Leiden
from scmoe.baselines.linear import (
    CoordinateNeighbours,
    DiscriminantAnalysis,
    LinearEnsemble,
    LogisticRegression,
)
from scmoe.baselines.regression import PLS, KernelRidge, ReducedRank, Ridge
from scmoe.baselines.unitednet import UnitedNet

__all__ = [
    "PLS",
    "WNN",
    "CoordinateNeighbours",
    "DiscriminantAnalysis",
    "KMeans",
    "KernelRidge",
    "Leiden",
    "LinearEnsemble",
    "LogisticRegression",
    "ReducedRank",
    "Ridge",
    "UnitedNet",
]
