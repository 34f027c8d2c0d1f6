"""What one forward pass says: which experts serve which tokens, groups and modalities.

The functions take the AnnData of `ScMoE.get_routing` and look at its last layer. Usage means shares
of gate weight. Expert 3 of one member of the ensemble is another one than that of the next; where
one expert is named, it is one of the first member's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scipy.stats import entropy

from scmoe.explain.answer import Answer
from scmoe.explain.gradients import expert_names

TINY = np.finfo(float).tiny
N_PERMUTATIONS = 200


def gates(routing: AnnData) -> np.ndarray:
    """Gate weights of the last layer, `(n_cells, K, M, P, E)`; 0 where a cell lacks the modality.

    A token's sum to 1 in each member.
    """
    last = (routing.var["layer"] == routing.var["layer"].max()).to_numpy()
    names = ("member", "modality", "patch", "expert")
    sizes = (routing.var[name].nunique() for name in names)
    return np.asarray(routing.X[:, last]).reshape(routing.n_obs, *sizes)


def side_by_side(g: np.ndarray) -> np.ndarray:
    """Experts of all members side by side, the first member's first: `(n_cells, M, P, K*E)`."""
    return np.moveaxis(g / g.shape[1], 1, 3).reshape(*g.shape[:1], *g.shape[2:4], -1)


def _of_first_member(routing: AnnData) -> dict[str, np.ndarray]:
    """Gate weight of each expert in each cell, `(n_cells, E)`, by modality."""
    per_cell = gates(routing)[:, 0].sum(2)  # (n_cells, M, E)
    return {m: per_cell[:, i] for i, m in enumerate(routing.var["modality"].unique())}


def usage(routing: AnnData, by: Sequence[str]) -> pd.DataFrame:
    """Share of gate weight by (modality, label) × expert; a row sums to 1.

    `by` has a label per cell, such as its group.
    """
    by, rows = np.asarray(by, str), {}
    for modality, per_cell in _of_first_member(routing).items():
        for label in sorted(set(by)):
            total = per_cell[by == label].sum(0)
            if total.sum() > 0:
                rows[modality, label] = total / total.sum()
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=["modality", "label"])
    return table.rename_axis(columns="expert")


def dominant_expert(routing: AnnData, modality: str) -> np.ndarray:
    """The expert with the largest gate weight in each cell, as text ("" where absent)."""
    per_cell = _of_first_member(routing)[modality]
    return np.where(per_cell.sum(1) > 0, per_cell.argmax(1).astype(str), "")


def specialisation(routing: AnnData, by: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Mutual information between the expert of a token and what the token is, against chance.

    One row for the expert and the label within each modality (null: labels permuted over cells),
    one for the expert and the modality (null: modalities permuted within each cell). Which member
    an expert belongs to says nothing of the token: bits are a member's, on average.

    Returns
    -------
    Columns `bits`, `null` (mean over permutations), `most` (entropy of the label: no mutual
    information exceeds it), `z` and `p` (share of permutations that reach `bits`, with one added).
    """
    rng, by = np.random.default_rng(seed), np.asarray(by, str)
    labels = (by[:, None] == np.unique(by)).astype(float)  # (n_cells, G)
    per_cell = side_by_side(gates(routing)).sum(2)  # (n_cells, M, K*E)
    rows = {}
    for i, modality in enumerate(routing.var["modality"].unique()):
        has = per_cell[:, i].sum(1) > 0
        own, cells = labels[has], per_cell[has, i]
        draws = [rng.permutation(len(own)) for _ in range(N_PERMUTATIONS)]
        rows[f"label in {modality}"] = _against(own.T @ cells, [own[d].T @ cells for d in draws])
    order = np.broadcast_to(np.arange(per_cell.shape[1]), per_cell.shape[:2])
    shuffled = (rng.permuted(order, axis=1)[..., None] for _ in range(N_PERMUTATIONS))
    null = [np.take_along_axis(per_cell, s, 1).sum(0) for s in shuffled]
    rows["modality"] = _against(per_cell.sum(0), null)
    return pd.DataFrame.from_dict(rows, orient="index")


def _against(joint, null) -> dict:
    """Mutual information in bits of a table of weights, beside that of tables by chance."""

    def information(table):
        table = np.asarray(table, float)
        sums = table.sum(1), table.sum(0), table.ravel()
        rows, columns, both = (entropy(each, base=2) for each in sums)
        return rows + columns - both

    bits, null = information(joint), np.array([information(table) for table in null])
    return {
        "bits": bits,
        "null": null.mean(),
        "most": float(entropy(joint.sum(1), base=2)),
        "z": (bits - null.mean()) / max(null.std(), 1e-12),
        "p": (1 + (null >= bits - 1e-12).sum()) / (1 + len(null)),
    }


def without_expert(model, expert: int):
    """Give a copy of the model in which an expert of the last layer adds nothing; routes stay.

    Experts are numbered through all members, the first member's first.
    """
    silenced = part = copy.copy(model)
    if hasattr(model, "experts"):
        part = silenced.experts = copy.copy(model.experts)
    part.network_ = copy.deepcopy(part.network_)
    experts = part.network_.layers[-1].experts
    with torch.no_grad():
        experts.w2[expert] = 0
        experts.b2[expert] = 0
    return silenced


def ablation(model, mdata: MuData, labels: Sequence[str]) -> pd.DataFrame:
    """What each group loses when an expert is silenced: group × expert (of every member).

    Mean drop of the true group's centred logit (see `scmoe.explain.answer`) over the group's cells;
    negative where they are better off. Groups that the model does not know are left out.
    """
    labels = np.asarray(labels, str)
    column = pd.Index(model.groups_).get_indexer(labels)
    known = np.flatnonzero(column >= 0)

    @torch.no_grad()
    def own(some_model):
        answer = Answer(some_model)
        out = torch.cat([answer(x, present) for x, present in answer.batches(mdata)])
        return out.numpy(force=True)[known, column[known]]

    whole, names = own(model), expert_names(model.config.model)
    drops = {name: whole - own(without_expert(model, i)) for i, name in enumerate(names)}
    return pd.DataFrame(drops).groupby(labels[known]).mean().rename_axis(index="group")
