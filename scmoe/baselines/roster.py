"""Which methods a run is held against, not yet fitted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from scmoe.baselines import peers
from scmoe.baselines.classifiers import (
    CoordinateNeighbours,
    DiscriminantAnalysis,
    LinearEnsemble,
    LogisticRegression,
)
from scmoe.baselines.clustering import WNN, KMeans, Leiden
from scmoe.baselines.regression import PLS, KernelRidge, ReducedRank, Ridge
from scmoe.data import Split


def simple_methods(task: str, split: Split, profile: str = "quick") -> list:
    """Give the methods that a page holds a model against, not yet fitted.

    Groups, supervised: logistic regression on each modality alone, and on all of them fused;
    nearest neighbours in the tissue where pixels have coordinates. Unsupervised: k-means.
    Translation: ridge regression. The full profile has every combination of modalities, early and
    late fusion, discriminants, communities, and further regressions.
    """
    if profile == "full":
        return _all_simple_methods(task, split)
    several = len(split.modalities) > 1
    if task == "unsupervised":
        methods = [KMeans()]
    else:
        methods = [LogisticRegression(modalities=[name]) for name in split.modalities]
        methods += [LogisticRegression("late")] if several else []
        if "spatial" in split.test.obsm:
            methods.append(CoordinateNeighbours())
    return methods + ([Ridge()] if several else [])


def _all_simple_methods(task: str, split: Split) -> list:
    names = split.modalities
    subsets = [list(c) for n in range(1, len(names) + 1) for c in combinations(names, n)]
    if task == "unsupervised":
        kinds = [KMeans, Leiden]
        methods = [kind(modalities=subset) for subset in subsets for kind in kinds]
    else:
        kinds = [LogisticRegression, DiscriminantAnalysis]
        methods = [
            kind(fusion, subset)
            for subset in subsets
            for fusion in (("late", "early") if len(subset) > 1 else ("late",))
            for kind in kinds
        ]
        methods.append(LinearEnsemble())
        if "spatial" in split.test.obsm:
            methods.append(CoordinateNeighbours())
    regressions = [Ridge, ReducedRank, PLS, KernelRidge]
    return methods + ([kind() for kind in regressions] if len(names) > 1 else [])


def peer_methods(split: Split) -> Iterator:
    """Give other authors' methods that need a library of their own.

    Not all can be fitted: `fit` says, as an error, which data or library a method lacks. One that
    has `for_task` does both tasks with one fit.
    """
    yield from (kind() for kind in (peers.MOFA, peers.UniVI, peers.TotalVI, peers.MultiVI))
    yield peers.Matilda()
    if len(split.modalities) > 1:
        yield WNN()
