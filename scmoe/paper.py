"""Scores as the published code computes them, each leak a switch of the configuration.

Only the ``paper`` protocol comes here. The same trained model is scored honestly by
:func:`scmoe.evaluate`; the difference is what the leaks are worth.
"""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from scmoe import metrics
from scmoe.nn.cells import Cells


def score(model, split) -> pd.DataFrame:
    """Score a fitted :class:`scmoe.ScMoE` the way the reference scores its own.

    ``score_training_cells`` puts training cells among those scored, ``own_scaling`` scales the
    scored cells by their own statistics, ``target_visible`` lets the latents attend to the target
    before it is decoded, ``r2_upper_pairs_only`` leaves out half of the pairs. Where the epoch was
    also chosen on test cells, both models are scored.

    Returns
    -------
    Records as :func:`scmoe.evaluate` gives them; the method's name says how it was scored.
    """
    name = f"{model.method}, scored as published"
    tables = [_records(model, model.network_, split, name)]
    if model.test_chosen_ is not None:
        network = copy.deepcopy(model.network_)
        network.load_state_dict(model.test_chosen_)
        tables.append(_records(model, network, split, f"{name}, epoch chosen on test cells"))
    return pd.concat(tables, ignore_index=True)


def test_ari(model, split, device):
    """Give a function of the network: ARI of its groups on the cells that the reference scores."""
    cells, truth = _cells(model, split, device)

    def ari(network) -> float:
        return metrics.clustering_metrics(truth, _groups(model, network, cells))["ari"]

    return ari


test_ari.__test__ = False  # a name that pytest would otherwise collect


def _cells(model, split, device) -> tuple[Cells, np.ndarray]:
    """Input of the cells that are scored, and their groups."""
    config = model.config.train
    parts = [split.train, split.val] if config.score_training_cells else []
    prepared = [model._matrices(model.transform_.transform(p)) for p in [*parts, split.test]]
    stack = lambda x: sp.vstack(x, format="csr") if sp.issparse(x[0]) else np.concatenate(x)  # noqa: E731
    matrices = [stack(list(x)) for x in zip(*(x for x, _ in prepared), strict=True)]
    present = np.concatenate([p for _, p in prepared])
    if config.own_scaling:
        matrices = [_own_scaling(x) for x in matrices]
    truth = np.concatenate([p.obs[split.label_key].astype(str) for p in [*parts, split.test]])
    return Cells(matrices, present, device=device), truth


def _own_scaling(x):
    """Every feature to mean 0 and deviation 1 over these very cells (sparse ones stay)."""
    if sp.issparse(x):
        return x
    deviation = x.std(0)
    return (x - x.mean(0)) / np.where(deviation > 0, deviation, 1)


@torch.no_grad()
def _groups(model, network, cells: Cells) -> np.ndarray:
    network.eval()
    logits = [network.group_logits(network.encode(b.x, b.present)) for b in cells.batches(512)]
    return np.array(model.groups_)[torch.cat(logits).argmax(1).cpu()]


@torch.no_grad()
def _decoded(model, network, cells: Cells) -> dict[tuple[int, int], np.ndarray]:
    """Every modality i from every other j, or from the later ones only: {(i, j): (N, F_i)}."""
    config, m = model.config.train, len(model.modalities_)
    pairs = [(i, j) for i in range(m) for j in range(m) if i != j]
    pairs = [(i, j) for i, j in pairs if i < j or not config.r2_upper_pairs_only]
    values: dict[tuple[int, int], list] = {pair: [] for pair in pairs}
    for b in cells.batches(512):
        read = network.encode(b.x, b.present, "joint" if config.target_visible else "alone")
        for i, j in pairs:
            values[i, j].append(network.decode(read, i)[:, j].cpu().numpy())
    return {pair: np.concatenate(parts) for pair, parts in values.items()}


def _records(model, network, split, method: str) -> pd.DataFrame:
    cells, truth = _cells(model, split, network.position.device)
    groups = _groups(model, network, cells)
    if model.task == "supervised":
        scores = metrics.classification_metrics(truth, groups)
    else:
        scores = metrics.clustering_metrics(truth, groups)
    rows = [(model.task, name, "", "", value) for name, value in scores.items()]
    every = cells.batch(torch.arange(len(cells))).x
    for (i, j), predicted in _decoded(model, network, cells).items():
        names = model.modalities_[i], model.modalities_[j]
        values = metrics.translation_metrics(every[i].cpu().numpy(), predicted)
        rows += [("translation", name, *names, value) for name, value in values.items()]
    columns = ["task", "metric", "target_modality", "source_modality", "value"]
    table = pd.DataFrame(rows, columns=columns)
    table = table.assign(**model.info_, method=method, modalities="+".join(model.modalities_))
    return table[metrics.COLUMNS]
