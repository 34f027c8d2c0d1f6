"""Principal components as the simple methods read them."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA, TruncatedSVD

from scmoe.method import Method


class UnitComponents:
    """Leading principal components, scaled together so that a cell's mean squared length is 1.

    Sparse values are not centred (that would make them dense): their components are those of the
    truncated singular value decomposition.
    """

    def __init__(self, X, n_components: int, seed: int):
        n = min(n_components, X.shape[1], X.shape[0] - 1)
        if sparse.issparse(X):
            self.model = TruncatedSVD(max(1, min(n, X.shape[1] - 1)), random_state=seed)
        else:
            solver = "full" if min(X.shape) <= 2000 else "randomized"
            self.model = PCA(max(1, n), svd_solver=solver, random_state=seed)
        Z = self.model.fit_transform(X).astype(np.float64)
        self.mean, self.n = Z.mean(0), Z.shape[1]
        self.scale = np.sqrt(np.square(Z - self.mean).sum(1).mean()) or 1.0

    def __call__(self, X) -> np.ndarray:
        """Scores `(n_cells, n_components)`."""
        return (self.model.transform(X) - self.mean) / self.scale


class OnComponents(Method):
    """A method that reads the components of each modality's scaled values."""

    n_components: int = 256

    def _fit_inputs(self, matrices, present) -> dict[str, np.ndarray]:
        """Find the components, and give those of the training cells."""
        self.inputs_ = {m: self._input_map(x[present[m]]) for m, x in matrices.items()}
        return self._inputs(matrices, present)

    def _input_map(self, X):
        """What takes a modality's scaled values to a regression's inputs `(n_cells, p)`."""
        return UnitComponents(X, self.n_components, self.seed_)

    def _inputs(self, matrices, present) -> dict[str, np.ndarray]:
        """Components by modality; zero, the mean, where a cell lacks it."""
        return {m: self.inputs_[m](x) * present[m][:, None] for m, x in matrices.items()}
