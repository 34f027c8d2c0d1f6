"""What one forward pass says: which experts serve which tokens, groups and modalities.

The functions take the AnnData of `ScMoE.get_routing` and look at its last layer. Usage means shares
of gate weight. Expert 3 of one member of the ensemble is another one than that of the next.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scipy.optimize import linear_sum_assignment

from scmoe.explain.answer import Answer
from scmoe.explain.gradients import expert_names

TINY = np.finfo(float).tiny


def gates(routing: AnnData) -> np.ndarray:
    """Gate weights of the last layer, `(n_cells, K, M, P, E)`; a token's sum to 1 in each member.

    They are 0 where a cell lacks the modality.
    """
    last = (routing.var["layer"] == routing.var["layer"].max()).to_numpy()
    names = ("member", "modality", "patch", "expert")
    sizes = (routing.var[name].nunique() for name in names)
    return np.asarray(routing.X[:, last]).reshape(routing.n_obs, *sizes)


def modalities(routing: AnnData) -> list[str]:
    """Names of the modalities, in order."""
    return list(dict.fromkeys(routing.var["modality"]))


def usage(routing: AnnData, by: Sequence[str] | None = None, member: int = 0) -> pd.DataFrame:
    """Share of gate weight that each expert of a member has, by modality and label.

    Rows (modality, label), columns the experts; a row sums to 1. `by` has a label per cell, such as
    its group; default one label, "all".
    """
    by = np.full(routing.n_obs, "all") if by is None else np.asarray(by, str)
    per_cell = gates(routing)[:, member].sum(2)  # (n_cells, M, E)
    rows = {}
    for i, modality in enumerate(modalities(routing)):
        for label in sorted(set(by)):
            total = per_cell[by == label, i].sum(0)
            if total.sum() > 0:
                rows[modality, label] = total / total.sum()
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=["modality", "label"])
    return table.rename_axis(columns="expert")


def specialisation(
    routing: AnnData, by: Sequence[str], n_permutations: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Mutual information between the expert of a token and what the token is, against chance.

    One row for the expert and the label within each modality (null: labels permuted over cells),
    one for the expert and the modality (null: modalities permuted within each cell). Which member
    an expert belongs to says nothing of the token: bits are a member's, on average.

    Returns
    -------
    Columns `bits`, `null` (mean over permutations), `most` (entropy of the label: no mutual
    information exceeds it), `z` and `p` (share of permutations that reach `bits`, with one added to
    numerator and denominator).
    """
    rng = np.random.default_rng(seed)
    labels = _labels(by)  # (n_cells, G)
    per_cell = _flat(gates(routing)).sum(2)  # (n_cells, M, K*E)
    rows = {}
    for i, modality in enumerate(modalities(routing)):
        has = per_cell[:, i].sum(1) > 0
        own, cells = labels[has], per_cell[has, i]
        draws = [rng.permutation(len(own)) for _ in range(n_permutations)]
        rows[f"label in {modality}"] = _against(own.T @ cells, [own[d].T @ cells for d in draws])
    order = np.broadcast_to(np.arange(per_cell.shape[1]), per_cell.shape[:2])
    shuffled = (rng.permuted(order, axis=1)[..., None] for _ in range(n_permutations))
    null = [np.take_along_axis(per_cell, s, 1).sum(0) for s in shuffled]
    rows["modality"] = _against(per_cell.sum(0), null)
    return pd.DataFrame.from_dict(rows, orient="index")


def mutual_information(joint: np.ndarray) -> float:
    """Mutual information in bits of a table of weights (rows × columns)."""
    joint = joint / max(joint.sum(), TINY)
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    ratio = np.divide(joint, expected, out=np.ones_like(joint), where=joint > 0)
    return float((joint * np.log2(ratio)).sum())


def _against(joint, null) -> dict:
    bits, null = mutual_information(joint), np.array([mutual_information(n) for n in null])
    return {
        "bits": bits,
        "null": null.mean(),
        "most": float(_entropy(joint.sum(1) / joint.sum())),
        "z": (bits - null.mean()) / max(null.std(), 1e-12),
        "p": (1 + (null >= bits - 1e-12).sum()) / (1 + len(null)),
    }


def _entropy(shares: np.ndarray) -> np.ndarray:
    """Entropy in bits over the last axis."""
    return -(shares * np.log2(np.maximum(shares, TINY))).sum(-1)


def _labels(by: Sequence[str]) -> np.ndarray:
    by = np.asarray(by, str)
    return (by[:, None] == np.unique(by)).astype(float)


def _flat(g: np.ndarray) -> np.ndarray:
    """Experts of all members side by side, the first member's first: `(n_cells, M, P, K*E)`."""
    return np.moveaxis(g / g.shape[1], 1, 3).reshape(*g.shape[:1], *g.shape[2:4], -1)


def load(routing: AnnData) -> pd.DataFrame:
    """Balance of the experts of all members, one row per modality and one for all.

    Columns: `effective` experts in use (exponential of the entropy of usage), `largest` share of
    one expert, `cv` of usage, `idle` experts that no token chose, and `gate_entropy`, the mean
    entropy of a token's own gates in one member, in bits (0: one expert takes all).
    """
    g = gates(routing)
    parts = {m: g[:, :, [i]] for i, m in enumerate(modalities(routing))} | {"all": g}
    rows = {}
    for name, part in parts.items():
        shares = _flat(part).sum((0, 1, 2)) / max(_flat(part).sum(), TINY)
        tokens = part.reshape(-1, part.shape[-1])
        tokens = tokens[tokens.sum(1) > 0]
        rows[name] = {
            "effective": 2 ** _entropy(shares),
            "largest": shares.max(),
            "cv": shares.std() / max(shares.mean(), TINY),
            "idle": int((shares == 0).sum()),
            "gate_entropy": _entropy(tokens).mean() if len(tokens) else np.nan,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def co_activation(routing: AnnData, member: int = 0) -> pd.DataFrame:
    """How much more often two experts of a member serve the same token than usage would have it.

    Expert × expert: log2 of observed over expected pairs, the expectation with the same usage of
    each expert and pairs drawn at random. NaN on the diagonal; -inf where a pair never occurs.
    """
    g = gates(routing)[:, member]
    chosen = g.reshape(-1, g.shape[-1]) > 0
    pairs = chosen.T.astype(float) @ chosen
    np.fill_diagonal(pairs, 0)
    share = chosen.sum(0) / max(chosen.sum(), 1)
    expected = np.outer(share, share)
    np.fill_diagonal(expected, 0)
    expected *= pairs.sum() / max(expected.sum(), TINY)
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = np.log2(pairs / expected)
    np.fill_diagonal(lift, np.nan)
    return pd.DataFrame(lift).rename_axis(index="expert", columns="expert")


def dominant_expert(routing: AnnData, modality: str, member: int = 0) -> np.ndarray:
    """A member's expert with the largest gate weight in each cell, as text ("" where absent)."""
    per_cell = gates(routing)[:, member, modalities(routing).index(modality)].sum(1)  # (n_cells, E)
    return np.where(per_cell.sum(1) > 0, per_cell.argmax(1).astype(str), "")


@torch.no_grad()
def attention_blocks(model, mdata: MuData) -> pd.DataFrame:
    """How much attention tokens of a modality (rows) give to each modality (columns).

    Mean over members, cells, heads and query tokens of the first layer; a row sums to 1. Evenly
    spread attention would give each of a cell's modalities the same.

    Raises
    ------
    ValueError
        If the network has no attention.
    """
    model = getattr(model, "experts", model)
    if not model.config.model.attention:
        raise ValueError("This network has no attention: its tokens meet in the group head alone.")
    network, names = model.network_.eval(), model.modalities_
    m, p, total, count = len(names), network.n_patches, 0.0, 0
    for batch in model.tensors(mdata).batches(128):
        encoded = network.encode(batch.x, batch.present)
        mask = network.attention_mask(encoded.present, "joint")
        weights = network.layers[0].attention(encoded.embedded, mask)  # (K*B, T, T)
        weights = weights.unflatten(0, encoded.present.shape[:2]).mean(0)
        blocks, there = weights.view(-1, m, p, m, p).sum(4).mean(2), encoded.present[0]  # (B, M, M)
        total = total + (blocks * there[..., None]).sum(0)
        count = count + there.sum(0)[:, None]
    return pd.DataFrame((total / count).numpy(force=True), names, names)


def match_experts(
    first: AnnData, second: AnnData, by: Sequence[str], n_permutations: int = 200, seed: int = 0
) -> tuple[pd.DataFrame, dict]:
    """Pair the experts of two models of the same cells by whom they serve.

    An expert's profile is its usage over (modality, patch, label), less what all experts have; two
    profiles are compared by correlation and paired one to one for the largest sum (the Hungarian
    algorithm).

    Returns
    -------
    A table `first, second, similarity`, best first, and `similarity` (mean over pairs), `null`
    (mean of the same after the second model's labels and patches are permuted: what pairing alone
    would find) and `p`.
    """
    rng, labels = np.random.default_rng(seed), _labels(by)
    a, b = (np.einsum("nmpe,ng->empg", _flat(gates(r)), labels) for r in (first, second))
    names = [expert_names(*gates(r).shape[1::3]) for r in (first, second)]
    rows, columns, similar = _paired(a, b)
    null, flat = [], b.reshape(len(b), -1)
    for _ in range(n_permutations):
        permuted = flat[:, rng.permutation(flat.shape[1])].reshape(b.shape)
        null.append(_paired(a, permuted)[2].mean())
    pairs = {"first": np.array(names[0])[rows], "second": np.array(names[1])[columns]}
    table = pd.DataFrame(pairs | {"similarity": similar})
    found = float(similar.mean())
    p = (1 + (np.asarray(null) >= found).sum()) / (1 + n_permutations)
    table = table.sort_values("similarity", ascending=False, ignore_index=True)
    return table, {"similarity": found, "null": float(np.mean(null)), "p": float(p)}


def _paired(a, b):
    profiles = []
    for use in (a, b):
        share = use / np.maximum(use.sum(0, keepdims=True), TINY)  # of each kind of token
        share = share.reshape(len(use), -1)
        share = share - share.mean(1, keepdims=True)
        profiles.append(share / np.maximum(np.linalg.norm(share, axis=1, keepdims=True), 1e-12))
    similarity = profiles[0] @ profiles[1].T
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return rows, columns, similarity[rows, columns]


def without_expert(model, expert: int):
    """Give a copy of the model in which an expert of the last layer adds nothing; routes stay.

    Experts are numbered through all members, the first member's first.
    """
    silenced = copy.copy(model)
    part = silenced
    if hasattr(model, "experts"):
        part = silenced.experts = copy.copy(model.experts)
    part.network_ = copy.deepcopy(part.network_)
    experts = part.network_.layers[-1].experts
    with torch.no_grad():
        experts.w2[expert] = 0
        experts.b2[expert] = 0
    return silenced


def ablation(model, mdata: MuData, labels: Sequence[str]) -> pd.DataFrame:
    """What each group loses when an expert is silenced.

    Returns
    -------
    Group × expert (of every member): mean drop of the true group's centred logit (see
    `scmoe.explain.answer`) over the group's cells; negative where they are better off without the
    expert. Groups that the model does not know are left out.
    """
    labels = np.asarray(labels, str)
    known = np.isin(labels, model.groups_)
    column = pd.Index(model.groups_).get_indexer(labels[known])

    @torch.no_grad()
    def own(some_model):
        answer = Answer(some_model)
        out = torch.cat([answer(*x, present=present) for x, present in answer.batches(mdata)])
        return out.cpu().numpy()[known][np.arange(len(column)), column]

    whole, drops, sizes = own(model), {}, model.config.model
    for expert, name in enumerate(expert_names(sizes.members, sizes.n_experts)):
        drops[name] = whole - own(without_expert(model, expert))
    return pd.DataFrame(drops).groupby(labels[known]).mean().rename_axis(index="group")
