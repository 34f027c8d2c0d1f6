"""Two rivals that are no single regression: a mean of kernel ridges, and gradient boosting."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
from mudata import MuData
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import euclidean_distances

from scmoe.data import Split
from scmoe.method import Components, Translator, inner_folds

KERNEL_COMPONENTS, ALPHAS = 300, (0.01, 0.03, 0.1, 0.3, 1.0)
N_MEMBERS = 6  # each learns from half of the cells
BOOSTED_COMPONENTS, BOOSTED_TARGETS = 50, 20
LEAVES = (4, 8, 16)  # of a tree, the most
MAX_ROUNDS, PATIENCE = 300, 10


class _OnComponents(Translator):
    """A method whose translations go from components to components; a subclass fits pairs."""

    n_components: int

    def _components(self, split: Split) -> tuple[dict, dict, np.ndarray]:
        """Scores and presence of training cells by modality, and their labels."""
        self._start(split)
        matrices, present, labels = self._training_cells(split)
        self.components_ = {
            m: Components.fit(x[present[m]], self.n_components, self.seed_)
            for m, x in matrices.items()
        }
        return self._scores(matrices, present), present, labels

    def _scores(self, matrices: dict, present: dict) -> dict[str, np.ndarray]:
        q = self.n_components
        return {m: self.components_[m](x)[:, :q] * present[m][:, None] for m, x in matrices.items()}

    def _fit_pairs(self, scores: dict, present: dict, n_told: int | None = None) -> None:
        self.maps_ = {}
        for target, source in permutations(self.modalities_, 2):
            both = present[target] & present[source]
            z, y = scores[source][both], scores[target][both][:, :n_told]
            self.maps_[target, source] = self._fit_pair(z, y)

    def _told(self, mdata, target, sources):
        """Mean over a cell's sources."""
        matrices, present = self._matrices(mdata, sources)
        scores, count = self._scores(matrices, present), sum(present[s] for s in sources)
        total = 0.0
        for s in sources:
            members = self.maps_[target, s]
            total += present[s][:, None] * sum(m(scores[s]) for m in members) / len(members)
        told, inverse = total / np.maximum(count, 1)[:, None], self.components_[target].inverse
        return lambda rows: inverse(told[rows]), count > 0


class KernelEnsemble(_OnComponents):
    """Mean of Gaussian kernel ridges on at most 300 components, each fitted to half of the cells.

    The idea of the best entry of the Open Problems competition for predicting a modality (Lance et
    al. 2022). The penalty has the least squared error on the halves left out.
    """

    task, method = "translation", "kernel ridge ensemble"
    n_components = KERNEL_COMPONENTS

    def fit(self, split: Split) -> KernelEnsemble:
        """Fit to training and validation cells."""
        scores, present, _ = self._components(split)
        self._fit_pairs(scores, present)
        return self

    def _fit_pair(self, z: np.ndarray, y: np.ndarray) -> list:
        rng = np.random.default_rng(self.seed_)
        squared = euclidean_distances(z[rng.permutation(len(z))[:500]], squared=True)
        gamma = 1 / max(float(np.median(squared[np.triu_indices(len(squared), 1)])), 1e-6)
        halves = []
        for _ in range(N_MEMBERS // 2):
            order = rng.permutation(len(z))
            cut = len(z) // 2
            halves += [(order[:cut], order[cut:]), (order[cut:], order[:cut])]

        def fitted(alpha, rows):
            center = y[rows].mean(0)
            ridge = KernelRidge(alpha=alpha, kernel="rbf", gamma=gamma)
            ridge.fit(z[rows], y[rows] - center)
            return lambda new: ridge.predict(new) + center

        errors = [
            sum(np.square(fitted(alpha, a)(z[b]) - y[b]).sum() for a, b in halves[:2])
            for alpha in ALPHAS
        ]
        return [fitted(ALPHAS[int(np.argmin(errors))], rows) for rows, _ in halves]


class Boosting(_OnComponents):
    """Gradient-boosted trees on components: groups from all modalities, and every translation.

    Rounds and leaves have the least loss on a sixth of the training cells, held out.
    """

    task, method = "supervised", "gradient boosting"
    n_components = BOOSTED_COMPONENTS

    def fit(self, split: Split) -> Boosting:
        """Fit to training and validation cells; `split.test` is not touched."""
        scores, present, labels = self._components(split)
        x, known = np.hstack(list(scores.values())), np.flatnonzero(labels >= 0)
        held_out = known[inner_folds(labels[known], len(known), self.seed_, 6)[0]]
        rest = np.setdiff1d(known, held_out)
        held_out = held_out[np.isin(labels[held_out], labels[rest])]
        models = [self._boosted(HistGradientBoostingClassifier, n, x, labels, rest, held_out)
                  for n in LEAVES]  # fmt: skip
        self.classifier_ = max(models, key=lambda model: max(model.validation_score_))
        self._fit_pairs(scores, present, BOOSTED_TARGETS)
        return self

    def _boosted(self, kind, leaves: int, x, y, rest, held_out):
        model = kind(
            max_leaf_nodes=leaves, max_iter=MAX_ROUNDS, early_stopping=True,
            n_iter_no_change=PATIENCE, min_samples_leaf=5, random_state=self.seed_,
        )  # fmt: skip
        return model.fit(x[rest], y[rest], X_val=x[held_out], y_val=y[held_out])

    def _fit_pair(self, z: np.ndarray, y: np.ndarray) -> list:
        held_out = inner_folds(None, len(z), self.seed_, 6)[0]
        rest = np.setdiff1d(np.arange(len(z)), held_out)

        def fitted(leaves, column):
            kind = HistGradientBoostingRegressor
            return self._boosted(kind, leaves, z, y[:, column], rest, held_out)

        leading = {leaves: fitted(leaves, 0) for leaves in LEAVES}
        best = max(leading, key=lambda leaves: max(leading[leaves].validation_score_))
        models = [leading[best], *(fitted(best, column) for column in range(1, y.shape[1]))]
        return [lambda new: np.column_stack([model.predict(new) for model in models])]

    def predict(self, mdata: MuData) -> pd.DataFrame:
        """Group of every cell: column ``group``, then a probability per group."""
        matrices, present = self._matrices(mdata)
        given = self._scores(matrices, present)
        n, widths = mdata.n_obs, {m: c.n for m, c in self.components_.items()}
        x = np.hstack([
            given.get(m, np.zeros((n, min(widths[m], self.n_components)))) for m in widths
        ])  # fmt: skip
        probabilities = np.zeros((n, len(self.groups_)))
        probabilities[:, self.classifier_.classes_] = self.classifier_.predict_proba(x)
        return self._group_table(probabilities, mdata.obs_names)
