"""Principal components as the simple methods read them."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA, TruncatedSVD

MAX_COMPONENTS = 256


class UnitComponents:
    """Leading principal components, scaled together so that a cell's mean squared length is 1.

    Sparse values are not centred (that would make them dense): their components are those of the
    truncated singular value decomposition.
    """

    def __init__(self, X, n_components: int = MAX_COMPONENTS, seed: int = 0):
        n = min(n_components, X.shape[1], X.shape[0] - 1)
        if sparse.issparse(X):
            self.model = TruncatedSVD(max(1, min(n, X.shape[1] - 1)), random_state=seed)
        else:
            solver = "full" if min(X.shape) <= 2000 else "randomized"
            self.model = PCA(max(1, n), svd_solver=solver, random_state=seed)
        Z = self.model.fit_transform(X).astype(np.float64)
        self.n = Z.shape[1]
        self.mean = Z.mean(0)
        self.scale = np.sqrt(np.square(Z - self.mean).sum(1).mean()) or 1.0

    def __call__(self, X) -> np.ndarray:
        """Scores `(n_cells, n_components)`."""
        return (self.model.transform(X) - self.mean) / self.scale
