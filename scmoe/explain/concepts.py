"""Concept activation vectors (Kim et al. 2018) for cells: does a network know a state and use it?

A concept is a set of cells held against others: a state, a batch, a region of tissue, a window of
pseudotime, or cells in which a programme of features is high. A linear probe on the tokens of one
modality, all members' side by side, tells whether the concept can be read there (its accuracy on
held-out cells), and in which direction (the concept activation vector, CAV). The derivative of a
group's centred logit, the experts' own, along that direction tells whether the network uses it.
Tokens are taken before the experts of the last layer: what lies between there and the answer is not
linear, so that cells can differ in their derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from mudata import MuData
from scipy.stats import false_discovery_control, norm
from sklearn.linear_model import Ridge
from sklearn.model_selection import StratifiedKFold

from scmoe.explain.answer import Answer
from scmoe.explain.gradients import captured

FEWEST = 8  # cells on either side of a concept, below which no probe is fitted
RIDGE = 100.0  # penalty of the probe on standardised token coordinates


@dataclass
class Concept:
    """Cells that show it and cells that do not, `(n_cells,)` of bool; others take no part."""

    name: str  # as figures say it
    shows: np.ndarray
    lacks: np.ndarray

    @classmethod
    def of_cells(cls, name: str, shows) -> Concept:
        """Cells where `shows` holds against the others."""
        shows = np.asarray(shows, bool)
        return cls(name, shows, ~shows)

    @classmethod
    def of_values(cls, name: str, values, within: Sequence[str]) -> Concept:
        """Upper third of `values` against the lower third, taken within each label of `within`.

        Matched in this way, the concept is not the label by another name. Labels with fewer than
        six cells take no part.
        """
        values, within = np.asarray(values, float), np.asarray(within, str)
        shows, lacks = np.zeros((2, len(values)), bool)
        for label in set(within):
            cells = np.flatnonzero((within == label) & np.isfinite(values))
            if len(cells) >= 6:
                order = cells[values[cells].argsort(kind="stable")]
                lacks[order[: len(order) // 3]] = True
                shows[order[-(len(order) // 3) :]] = True
        return cls(name, shows, lacks)

    @property
    def cells(self) -> np.ndarray:
        """Indices of the cells that take part."""
        return np.flatnonzero(self.shows | self.lacks)

    def at_random(self, rng: np.random.Generator) -> Concept:
        """A concept of the same sizes with cells dealt out at random, from those that take part."""
        dealt = rng.permutation(self.shows[self.cells])
        shows, lacks = np.zeros((2, len(self.shows)), bool)
        shows[self.cells], lacks[self.cells] = dealt, ~dealt
        return Concept("random", shows, lacks)


def tokens(model, mdata: MuData) -> np.ndarray:
    """Tokens of every cell before the experts, `(n_cells, M, P*K*d)`."""
    parts, part = [], getattr(model, "experts", model)
    for batch in part.tensors(mdata).batches(256):
        with captured(part.network_.eval()) as seen, torch.no_grad():
            part.network_.encode(batch.x, batch.present)
        parts.append(_beside(seen["stream"][-1]))
    return np.concatenate(parts)


def _gradients(model, mdata: MuData, groups: Sequence[str]) -> np.ndarray:
    """Gradients of the groups' centred logits at the tokens, `(n_groups, n_cells, M, P*K*d)`."""
    answer, parts = Answer(getattr(model, "experts", model), outputs=groups), []
    for x, present in answer.batches(mdata):
        with captured(answer.network) as seen:
            out = answer(x.requires_grad_(), present)
        at = seen["stream"][-1]
        grads = [torch.autograd.grad(k.sum(), at, retain_graph=True)[0] for k in out.T]
        parts.append(_beside(torch.stack(grads)))
    return np.concatenate(parts, axis=1)


def _beside(values) -> np.ndarray:
    """A modality's tokens `(..., K, B, M, P, d)` side by side, `(..., B, M, P*K*d)`."""
    moved = np.moveaxis(values.numpy(force=True), -5, -2)
    return moved.reshape(*moved.shape[:-3], -1)


def probes(activations, concepts: Sequence[Concept], seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Fit linear probes of concepts that the same cells take part in, on activations `(N, D)`.

    Ridge regression on membership, which for two classes has the direction of a discriminant; a
    cell shows the concept if it lies beyond the middle between the two classes. Coordinates are
    standardised, all on the fitting cells. Each side of a concept needs `FEWEST` cells.

    Returns
    -------
    Balanced accuracy on held-out cells `(n_concepts,)`, and concept activation vectors of length
    one `(n_concepts, D)`, fitted to all cells.
    """
    for c in concepts:
        if min(c.shows.sum(), c.lacks.sum()) < FEWEST:
            raise ValueError(
                f"concept {c.name!r} has {c.shows.sum()} cells that show it and {c.lacks.sum()} "
                f"that do not; a probe needs {FEWEST} of each"
            )
    cells = concepts[0].cells
    x = activations[cells].astype(np.float64)
    shows = np.stack([c.shows[cells] for c in concepts], 1)  # (n, C)
    called, folds = np.empty_like(shows), StratifiedKFold(5, shuffle=True, random_state=seed)
    for train, test in folds.split(x, shows[:, 0]):
        vectors, middle = _directions(x[train], shows[train])
        called[test] = x[test] @ vectors.T > middle
    right = (called & shows).sum(0) / shows.sum(0), (~called & ~shows).sum(0) / (~shows).sum(0)
    return sum(right) / 2, _directions(x, shows)[0]


def _directions(x: np.ndarray, shows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors `(C, D)` and the middle between the classes along each `(C,)`."""
    scale = np.maximum(x.std(0), 1e-12)
    fitted = Ridge(RIDGE).fit((x - x.mean(0)) / scale, shows.astype(float))
    vectors = _unit(np.atleast_2d(fitted.coef_) / scale)  # a single concept has coefficients (D,)
    along = x @ vectors.T
    high, low = ((along * of).sum(0) / np.maximum(of.sum(0), 1) for of in (shows, ~shows))
    return vectors, (high + low) / 2


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def concept_scores(
    model, mdata: MuData, concepts: Sequence[Concept], n_random: int = 100, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Probe every concept on the tokens of every modality, and see which groups use it.

    Both tables hold scores against `n_random` random concepts of the same sizes: `p` from their
    mean and standard deviation (normal tail), `q` after the correction of Benjamini and Hochberg
    over the whole table. For scores that mean anything, `mdata` has cells that the model was not
    trained on, or all cells.

    Returns
    -------
    Probes: `concept, modality, accuracy` (balanced, held out), `random` (mean of random
    concepts), `p`, `q`. Uses: `concept, modality, group, tcav` (share of the group's
    predicted cells whose answer grows along the concept), `sensitivity` (mean cosine of gradient
    and concept), and `p` and `q` of the sensitivity, two-sided.
    """
    predicted = model.predict(mdata)["group"].to_numpy()
    groups, acts = sorted(set(predicted)), tokens(model, mdata)
    grads, rng = _unit(_gradients(model, mdata, groups)), np.random.default_rng(seed)
    found, uses = [], []
    for concept in concepts:
        null = [concept.at_random(rng) for _ in range(n_random)]
        for i, modality in enumerate(model.modalities_):
            accuracy, vectors = probes(acts[:, i], [concept, *null], seed)
            at = {"concept": concept.name, "modality": modality}
            held = {"accuracy": accuracy[0], "random": accuracy[1:].mean()}
            found.append(at | held | {"p": tail(accuracy[0], accuracy[1:])})
            for k, group in enumerate(groups):
                along = grads[k, predicted == group, i] @ vectors.T  # (cells, 1 + n_random)
                cosine = along.mean(0)
                p = 2 * min(tail(cosine[0], cosine[1:]), tail(-cosine[0], -cosine[1:]))
                used = {"group": group, "tcav": (along[:, 0] > 0).mean(), "sensitivity": cosine[0]}
                uses.append(at | used | {"p": min(p, 1.0)})
    tables = pd.DataFrame(found), pd.DataFrame(uses)
    for table in tables:
        table["q"] = false_discovery_control(table["p"]) if len(table) else []
    return tables


def tail(value: float, null: np.ndarray) -> float:
    """Chance of a value at least as large, from a normal distribution fitted to `null`."""
    return float(norm.sf(value, null.mean(), max(null.std(ddof=1), 1e-6)))
