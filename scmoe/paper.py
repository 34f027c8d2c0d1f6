"""Scores as the published code computes them, each leak a switch of the configuration.

Only the ``paper`` protocol comes here. The same trained model is scored honestly by
:func:`scmoe.evaluate`; the difference is what the leaks are worth.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import permutations
from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from scmoe import metrics
from scmoe.data import Split, Transform
from scmoe.data.cells import make_mudata
from scmoe.data.kinds import AS_IS
from scmoe.method import stack
from scmoe.nn.cells import Cells

Reading = Literal["joint", "alone", "target zeroed", "others zeroed"]


def score(model, split) -> pd.DataFrame:
    """Score a fitted :class:`scmoe.ScMoE` the way the reference scores its own.

    Gives records as :func:`scmoe.evaluate` does, whose method's name says how it was scored. Where
    the epoch was also chosen on test cells, both models are scored.
    """
    name = f"{model.method}, scored as published"
    tables = [score_once(model, split, name)]
    if model.experts.test_chosen_ is not None:
        chosen = f"{name}, epoch chosen on test cells"
        tables.append(score_once(model, split, chosen, test_chosen=True))
    return pd.concat(tables, ignore_index=True)


def score_once(
    model, split, method: str, test_chosen: bool = False, reading: Reading | None = None, **switches
) -> pd.DataFrame:
    """Score a fitted model with some of its leaks switched off: ``own_scaling=False``, say.

    ``score_training_cells`` puts training cells among those scored, ``own_scaling`` scales the
    scored cells by their own statistics, ``target_visible`` lets the latents attend to the target
    before it is decoded, ``r2_upper_pairs_only`` leaves out half of the pairs. ``method`` is the
    name in the records; ``test_chosen`` takes the weights of the epoch that test cells chose.

    ``reading`` is what is read to decode target i from source j. ``joint``: everything, i as well.
    ``alone``: j, and attention sees nothing else. ``target zeroed``, ``others zeroed``: everything,
    with zeros in place of i, or of all but j. Default: ``joint`` or ``alone``, by
    ``target_visible``.
    """
    config, model = replace(model.config.train, **switches), model.experts
    network = model.network_
    if test_chosen:
        network = copy.deepcopy(network)
        network.load_state_dict(model.test_chosen_)
    cells, truth = _cells(model, split, config, network.position.device)
    groups = _groups(model, network, cells)
    if model.task == "supervised":
        scores = metrics.classification_metrics(truth, groups)
    else:
        scores = metrics.clustering_metrics(truth, groups)
    rows = [(model.task, name, "", "", value) for name, value in scores.items()]
    pairs = list(permutations(range(len(model.modalities_)), 2))
    pairs = [(i, j) for i, j in pairs if i < j or not config.r2_upper_pairs_only]
    reading = reading or ("joint" if config.target_visible else "alone")
    every = cells.batch(torch.arange(len(cells))[None]).x
    for (i, j), predicted in _decoded(network, cells, pairs, reading).items():
        names = model.modalities_[i], model.modalities_[j]
        values = metrics.translation_metrics(every[i][0].cpu().numpy(), predicted)
        rows += [("translation", name, *names, value) for name, value in values.items()]
    return metrics.as_records(rows, model, method=method)


def translate(model, mdata, target: str, source: str, reading: Reading = "joint") -> np.ndarray:
    """Predict a modality as the published code does, which reads the target where it can.

    ``model`` is a fitted :class:`scmoe.ScMoE` of the ``paper`` preset, ``reading`` as in
    :func:`score_once`. Gives ``(n_cells, n_features)`` in measured units.
    """
    model = model.experts
    pair = model.modalities_.index(target), model.modalities_.index(source)
    told = _decoded(model.network_, model.tensors(mdata), [pair], reading)[pair]
    return model.transform_.inverse(told, target)


def transform(split: Split, hold_out: bool = False) -> Transform:
    """What the published code does to the cells: every feature standardised as measured, no more.

    Fitted to training and, unless they are held out, validation cells. On or off values, and those
    scaled by whoever made the data, stay.
    """
    parts = [split.train] if hold_out else [split.train, split.val]
    mod = {name: ad.concat([part[name] for part in parts]) for name in split.modalities}
    kinds = Transform().fit(split.train).kinds
    kinds = {name: kind if kind in AS_IS else "continuous" for name, kind in kinds.items()}
    return Transform(kinds).fit(make_mudata(mod, pd.concat([part.obs for part in parts])))


def test_ari(model, split, device):
    """Give a function of the network: ARI of its groups on the cells that the reference scores.

    ``model`` is an unfitted :class:`scmoe.networks.Experts` that has seen the split's transform.
    """
    cells, truth = _cells(model, split, model.config.train, device)

    def ari(network) -> float:
        return metrics.clustering_metrics(truth, _groups(model, network, cells))["ari"]

    return ari


test_ari.__test__ = False  # a name that pytest would otherwise collect


def _cells(model, split, config, device) -> tuple[Cells, np.ndarray]:
    """Input of the cells that are scored, and their groups."""
    parts = [split.train, split.val] if config.score_training_cells else []
    prepared = [model._scores(p) for p in [*parts, split.test]]
    matrices = [stack([scores[m] for scores, _ in prepared]) for m in model.modalities_]
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
    logits = [network.group_logits(network.encode(b.x, b.present))[0] for b in cells.batches(512)]
    return np.array(model.groups_)[torch.cat(logits).argmax(1).cpu()]


@torch.no_grad()
def _decoded(network, cells: Cells, pairs, reading: Reading) -> dict[tuple[int, int], np.ndarray]:
    """Modality i from modality j, for each pair (i, j): ``(N, F_i)``."""
    network.eval()
    values: dict[tuple[int, int], list] = {pair: [] for pair in pairs}
    for b in cells.batches(512):
        blank, read = [x if x is None else torch.zeros_like(x) for x in b.x], {}
        for i, j in pairs:
            if reading in ("joint", "alone"):
                key, x, view = None, b.x, reading
            elif reading == "target zeroed":
                key, x, view = i, [*b.x[:i], blank[i], *b.x[i + 1 :]], "joint"
            else:
                key, x, view = j, [*blank[:j], b.x[j], *blank[j + 1 :]], "joint"
            if key not in read:
                read[key] = network.encode(x, b.present, view)
            values[i, j].append(network.decode(read[key], i)[0, :, j].cpu().numpy())
    return {pair: np.concatenate(parts) for pair, parts in values.items()}
