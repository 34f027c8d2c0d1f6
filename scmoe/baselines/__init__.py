"""Simple methods and other authors', behind the interface of :class:`scmoe.ScMoE`."""

from scmoe.baselines.classifiers import (
    CoordinateNeighbours,
    DiscriminantAnalysis,
    LinearEnsemble,
    LogisticRegression,
)
from scmoe.baselines.clustering import WNN, KMeans, Leiden
from scmoe.baselines.ensembles import Boosting, KernelEnsemble
from scmoe.baselines.linear import Linear
from scmoe.baselines.regression import PLS, KernelRidge, ReducedRank, Ridge
from scmoe.baselines.unitednet import UnitedNet

__all__ = [
    "PLS",
    "WNN",
    "Boosting",
    "CoordinateNeighbours",
    "DiscriminantAnalysis",
    "KMeans",
    "KernelEnsemble",
    "KernelRidge",
    "Leiden",
    "Linear",
    "LinearEnsemble",
    "LogisticRegression",
    "ReducedRank",
    "Ridge",
    "UnitedNet",
]
