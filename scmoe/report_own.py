"""What the page on the user's own cells does: files in, the same cells with answers out."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from mudata import MuData

from scmoe import plot, report, summary
from scmoe.colours import group_colours, in_order, title_of
from scmoe.data import DataError, Split, read, simulate_dyngen, split_mudata
from scmoe.data.cells import keep, make_mudata, quiet
from scmoe.data.files import checksum
from scmoe.record import Run

EXTRA = ("data", "label_key", "n_groups", "held_out")  # the page's own parameters
EXAMPLE = {"n_cells": 240, "n_genes": 40, "backbone": "bifurcating"}
NO_LABELS = "These cells have no labels: clusters can be looked at, and nothing says if they fit."


def load(run: Run) -> tuple[MuData, Split]:
    """Read the user's files and split the labelled cells; without files, simulate an example.

    Returns
    -------
    All cells as measured, and the split of those that have a label (all, where there is no
    `label_key`). A cell without a label is never trained on, and gets a prediction like any other.

    Raises
    ------
    DataError
        Files or cells that cannot be used.
    ValueError
        Parameters that do not go together.
    """
    data, label_key = run.extra["data"], run.extra["label_key"]
    _check_task(run)
    example = data is None
    if example:
        if not run.allow_standin:
            raise DataError('no data given: set the parameter data to a path, such as "cells.h5mu"')
        data = _example(run.out_dir / "example.h5mu", label_key, run.seed)
    with run.clock("load"):
        cells = read(data)
        if run.modalities:
            if unknown := [name for name in run.modalities if name not in cells.mod]:
                raise DataError(f"no modality {unknown[0]!r}; there are: {', '.join(cells.mod)}")
            cells = keep(cells, run.modalities)
        split = run.split = _cut(run, cells)
    split.checksums = {path.name: checksum(path) for path in _files(data)}
    if example:
        split.data_source = "simulated"
        split.notes.insert(
            0,
            "no files were given, so that this page simulated an example and lost the protein of "
            'a third of its cells; run it again with data="cells.h5mu", say',
        )
    return cells, split


def _check_task(run: Run) -> None:
    label_key, n_groups = run.extra["label_key"], run.extra["n_groups"]
    if label_key is not None:
        if n_groups is not None:
            raise ValueError("n_groups is for cells without labels: set label_key=None as well")
    elif run.task == "supervised":
        raise ValueError(
            'task="supervised" learns from labels: name their column of obs by label_key, '
            'or set task="unsupervised" and n_groups'
        )
    elif type(n_groups) is not int or n_groups < 2:
        raise ValueError(
            f"n_groups={n_groups!r}: without labels, the number of groups to look for is needed, "
            "a whole number from 2"
        )


def _cut(run: Run, cells: MuData) -> Split:
    """Split the cells that can be scored, and say how many cannot."""
    label_key, held_out = run.extra["label_key"], run.extra["held_out"]
    if isinstance(held_out, list):
        held_out = tuple(held_out)
    known = np.ones(cells.n_obs, bool)
    if label_key in cells.obs:
        known = cells.obs[label_key].notna().to_numpy()
    labelled = cells if known.all() else cells[known].copy()
    split = split_mudata(labelled, label_key, test=held_out, seed=run.seed)
    if label_key is None:
        split.groups = [str(number) for number in range(run.extra["n_groups"])]
    if not known.all():
        split.notes.append(
            f"{(~known).sum()} cells have no label in obs['{label_key}']: they are predicted, "
            "and neither trained on nor scored"
        )
    return split


def _example(path: Path, label_key: str | None, seed: int) -> Path:
    """Write counts of mRNA and protein as a user might have them: not every cell has both."""
    simulated = simulate_dyngen(seed=seed, **EXAMPLE)
    measured = np.random.default_rng(seed).random(simulated.n_obs) >= 1 / 3
    mod = {"rna": simulated["mrna"].copy(), "protein": simulated["protein"][measured].copy()}
    obs = pd.DataFrame({label_key or "stage": simulated.obs["label"].astype(str)})
    _write(make_mudata(mod, obs), path)
    return path


def _files(data) -> list[Path]:
    """Those of the data that are files (zarr stores are folders)."""
    values = data.values() if isinstance(data, dict) else data
    values = [data] if isinstance(data, str | os.PathLike) else values
    paths = [Path(value) for value in values if isinstance(value, str | os.PathLike)]
    return [path for path in paths if path.is_file()]


# --- what the page shows ---


def presence(cells: MuData) -> HTML:
    """Show how many cells have which modalities."""
    has = pd.DataFrame({title_of(m): cells.obs_names.isin(cells[m].obs_names) for m in cells.mod})
    has = has.replace({True: "measured", False: "–"}).value_counts().rename("cells")
    return report.table(has.to_frame(), "Which cells have which modalities")


def group_sizes(split: Split, title: str):
    """Draw the groups' sizes in training, validation and test cells."""
    if split.label_key is None:
        return Markdown(NO_LABELS)
    return plot.group_sizes(summary.cells_of(split), title)


def headline(records: pd.DataFrame, title: str):
    """Draw what each method gets right; words where nothing can be scored."""
    if records.empty:
        return Markdown(f"{NO_LABELS} {report.ONE_MODALITY}")
    return report.headline(records, title)


def scores(records: pd.DataFrame, split: Split):
    """Show every method's group metrics."""
    if split.label_key is None:
        return Markdown(NO_LABELS)
    return report.scores_table(records, split)


def confusion(model, split: Split, title: str):
    """Draw true groups of the test cells against predicted ones."""
    if split.label_key is None:
        return Markdown(NO_LABELS)
    predicted = summary.predicted_groups(model, split)
    return plot.confusion(summary.groups(split.test, split), predicted, title)


def latent(model, split: Split, title: str, seed: int = 0):
    """Draw the test cells where the model's latent has them; training cells grey behind."""
    some = (split.test, summary.some_cells(split.train, 3000))
    xy, behind = summary.layout(*map(model.get_latent_representation, some), seed=seed)
    if split.label_key is None:
        clusters = model.predict(split.test)["group"]
        names = ("t-SNE 1", "t-SNE 2")
        return plot.trajectory(xy, clusters, None, group_colours(model.groups_), title, names)
    truth, predicted = summary.groups(split.test, split), summary.predicted_groups(model, split)
    colours = group_colours(split.groups)
    return plot.embedding(xy, truth, predicted, colours, title, truth == predicted, behind)


def caveats(run: Run, split: Split, records: pd.DataFrame) -> Markdown:
    """List what could be wrong with these results."""
    own = "test cells were held out as asked, and never seen in training"
    if run.extra["held_out"] is None or isinstance(run.extra["held_out"], float):
        own = (
            "test cells were drawn at random: cells of the same donor, plate or batch are on both "
            'sides, which flatters every method; held_out=["batch", "b3"] keeps one out'
        )
    if split.label_key is not None:
        return report.caveats(run, split, records, own)
    given = f"the number of groups, {len(split.groups)}, was given and not found"
    return Markdown("\n".join(f"- {words}." for words in [*split.notes, own, given]))


# --- what the user takes home ---


def add_answers(model, cells: MuData, split: Split) -> pd.DataFrame:
    """Write into `cells` what the model says of them.

    `obs` gets `scmoe_group`, `scmoe_probability` (of that group) and `scmoe_part` (was the cell
    trained on?), `obsm["X_scmoe"]` the latent, and `obsm["imputed_<modality>"]` for each modality
    that cells lack a table `(n_cells, n_features)` in measured units: filled for those cells that
    lack it and have another one, NaN where it was measured.

    Returns
    -------
    Table of what is where, and for how many cells.
    """
    table = model.predict(cells)
    probabilities = table.drop(columns="group")
    cells.obs["scmoe_group"] = pd.Categorical(table["group"], in_order(probabilities))
    cells.obs["scmoe_probability"] = probabilities.max(axis=1).to_numpy()
    parts = {"training": split.train, "validation": split.val, "test": split.test}
    part = pd.Series("not labelled", cells.obs_names)
    for name, which in parts.items():
        part[which.obs_names] = name
    cells.obs["scmoe_part"] = pd.Categorical(part)
    cells.obsm["X_scmoe"] = model.get_latent_representation(cells)
    rows = [("obs", name, cells.n_obs) for name in cells.obs if name.startswith("scmoe_")]
    rows += [("obsm", "X_scmoe", cells.n_obs)]
    for name in model.modalities_:
        lacking = ~cells.obs_names.isin(cells[name].obs_names)
        if lacking.any():
            imputed = _impute(model, cells, name, lacking)
            cells.obsm[f"imputed_{name}"] = imputed
            rows.append(("obsm", f"imputed_{name}", int(imputed.notna().any(axis=1).sum())))
    return pd.DataFrame(rows, columns=["where", "name", "cells"]).set_index(["where", "name"])


def _impute(model, cells: MuData, name: str, lacking: np.ndarray) -> pd.DataFrame:
    """Predict a modality of the cells that lack it from all others that they have."""
    values = np.full((cells.n_obs, cells[name].n_vars), np.nan, np.float32)
    others = [other for other in model.modalities_ if other != name]
    values[lacking] = model.translate(cells[lacking], target=name, source=others)
    return pd.DataFrame(values, cells.obs_names, cells[name].var_names)


def write(run: Run, cells: MuData) -> Path:
    """Write the cells to `out_dir/cells.h5mu`, whole or not at all."""
    return _write(cells, run.out_dir / "cells.h5mu")


def _write(cells: MuData, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with quiet():
            cells.write_h5mu(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
