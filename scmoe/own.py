"""The user's own cells: an example, a split of those with labels, and answers for all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from mudata import MuData

from scmoe.colours import in_order
from scmoe.data import Split, simulate_dyngen, split_mudata, write
from scmoe.data.cells import make_mudata
from scmoe.data.files import checksums

EXAMPLE = {"n_cells": 240, "n_genes": 40, "backbone": "bifurcating"}


def check_task(task: str, label_key: str | None, n_groups: int | None) -> None:
    """Refuse parameters that do not go together; the `ValueError` says which, and what to set."""
    if label_key is not None:
        if n_groups is not None:
            raise ValueError("n_groups is for cells without labels: set label_key=None as well")
    elif task == "supervised":
        raise ValueError(
            'task="supervised" learns from labels: name their column of obs by label_key, '
            'or set task="unsupervised" and n_groups'
        )
    elif type(n_groups) is not int or n_groups < 2:
        raise ValueError(
            f"n_groups={n_groups!r}: without labels, the number of groups to look for is needed, "
            "a whole number from 2"
        )


def example(path: Path, label_key: str | None, seed: int) -> Path:
    """Write counts of mRNA and protein as a user might have them: a third has no protein."""
    simulated = simulate_dyngen(seed=seed, **EXAMPLE)
    measured = np.random.default_rng(seed).random(simulated.n_obs) >= 1 / 3
    mod = {"rna": simulated["mrna"].copy(), "protein": simulated["protein"][measured].copy()}
    obs = pd.DataFrame({label_key or "stage": simulated.obs["label"].astype(str)})
    return write(make_mudata(mod, obs), path)


def split_labelled(
    cells: MuData, label_key: str | None, held_out=None, n_groups: int | None = None, seed: int = 0
) -> Split:
    """Split the cells that have a label; without a `label_key`, all of them, into `n_groups`.

    A note says how many have none: these are predicted, and neither trained on nor scored.
    `held_out` is the `test` of `scmoe.data.split_mudata`.
    """
    known = np.ones(cells.n_obs, bool)
    if label_key in cells.obs:
        known = cells.obs[label_key].notna().to_numpy()
    labelled = cells if known.all() else cells[known].copy()
    split = split_mudata(labelled, label_key, test=held_out, seed=seed)
    if label_key is None:
        split.groups = [str(number) for number in range(n_groups)]
    if not known.all():
        split.notes.append(
            f"{(~known).sum()} cells have no label in obs['{label_key}']: they are predicted, "
            "and neither trained on nor scored"
        )
    return split


def checksums_of(data) -> dict[str, str]:
    """Give the checksum of each file among what `scmoe.data.read` takes, by its name."""
    values = data.values() if isinstance(data, dict) else data
    values = [data] if isinstance(data, str | os.PathLike) else values
    return checksums([value for value in values if isinstance(value, str | os.PathLike)])


def answers(model, cells: MuData, split: Split) -> pd.DataFrame:
    """Write into `cells` what the model says of them.

    `obs` gets `scmoe_group`, `scmoe_probability` (of that group) and `scmoe_part` (was the cell
    trained on?), `obsm["X_scmoe"]` the latent, and `obsm["imputed_<modality>"]` for each modality
    that cells lack a table `(n_cells, n_features)` in measured units: filled for those cells that
    lack it and have another one, NaN where it was measured. Gives a table of what is where, and for
    how many cells.
    """
    table = model.predict(cells)
    probabilities = table.drop(columns="group")
    cells.obs["scmoe_group"] = pd.Categorical(table["group"], in_order(probabilities))
    cells.obs["scmoe_probability"] = probabilities.max(axis=1).to_numpy()
    part = pd.Series("not labelled", cells.obs_names)
    for name, which in (("training", split.train), ("validation", split.val), ("test", split.test)):
        part[which.obs_names] = name
    cells.obs["scmoe_part"] = pd.Categorical(part)
    cells.obsm["X_scmoe"] = model.get_latent_representation(cells)
    told = ["obs scmoe_group", "obs scmoe_probability", "obs scmoe_part", "obsm X_scmoe"]
    added = dict.fromkeys(told, cells.n_obs)
    for name in model.modalities_:
        lacking = ~cells.obs_names.isin(cells[name].obs_names)
        if lacking.any():
            values = np.full((cells.n_obs, cells[name].n_vars), np.nan, np.float32)
            others = [other for other in model.modalities_ if other != name]
            values[lacking] = model.translate(cells[lacking], target=name, source=others)
            imputed = pd.DataFrame(values, cells.obs_names, cells[name].var_names)
            cells.obsm[f"imputed_{name}"] = imputed
            added[f"obsm imputed_{name}"] = int(imputed.notna().any(axis=1).sum())
    return pd.Series(added, name="cells").to_frame()
