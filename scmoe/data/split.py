"""Which cells train, validate and test: published folds, and splits of the user's own data."""

from __future__ import annotations

import os
import reprlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from mudata import MuData
from sklearn.model_selection import StratifiedKFold

from scmoe.data.catalog import DATASETS, MOP_BATCHES, Dataset
from scmoe.data.cells import Cells, keep
from scmoe.data.check import (
    DataError,
    as_text,
    check,
    expect,
    expect_among,
    expect_known,
    expect_seed,
    near,
    some,
)
from scmoe.data.dyngen import simulate_dyngen
from scmoe.data.files import Opened, open_set
from scmoe.data.niche import recompute_niche

VALIDATION_FRACTION = 0.15
TEST_FRACTION = 0.2


@dataclass(repr=False)
class Split:
    """Cells to train on, to choose on, and to score once; values as measured.

    `groups` are the labels found in training and validation cells, sorted; a group that only test
    cells have stays in `test`, counts as an error there, and is reported in `notes`. `notes` are
    sentences that whoever shows results from this split should show with them.
    """

    train: MuData
    val: MuData
    test: MuData
    name: str
    fold: int | str
    seed: int
    label_key: str | None
    groups: list[str]
    data_source: str
    notes: list[str] = field(default_factory=list)
    checksums: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Sizes and origin, not the data."""
        sizes = f"{self.train.n_obs} training, {self.val.n_obs} validation, {self.test.n_obs} test"
        return f"Split({self.name}, fold {self.fold}: {sizes} cells; {self.data_source})"

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in order."""
        return list(self.train.mod)


def load(
    name: str,
    fold: int | str = 0,
    seed: int = 0,
    root: str | os.PathLike | None = None,
    modalities: Sequence[str] | None = None,
    allow_standin: bool = False,
    niche: str = "published",
) -> Split:
    """Load one of the data sets, cut into training, validation and test cells.

    Parameters
    ----------
    name
        "dyngen", "dbitseq", "patchseq", "atacseq" or "mop".
    fold
        One of the set's published folds (see `list_datasets`; 0 is always the first), for
        dbitseq also "block-0" … "block-4", contiguous fifths of the tissue, for mop also one of
        its batches, "09A" … "09L".
    seed
        Cuts validation cells from the training cells, stratified by group; the published folds
        and the simulated cells do not depend on it.
    root
        Folder that holds `UnitedNet_NatComm_data/`; default `$SCMOE_DATA`, then `data/`.
    modalities
        Load these only, in this order; default all, in the catalogue's order.
    allow_standin
        Where files are missing, simulate a stand-in instead of raising; a warning says so.
    niche
        dbitseq only. "published": the niche averaged over the whole grid, test pixels included;
        "train": averaged again, for all pixels, from the RNA of training pixels alone.

    Raises
    ------
    DataError
        Unknown name, fold or modality (the message lists what exists); files missing, damaged or
        not about the same cells.
    """
    expect_known("name", name, DATASETS)
    dataset = DATASETS[name]
    modalities = _known_modalities(dataset, modalities)
    fold = _known_fold(dataset, fold)
    expect_seed(seed)
    expect_known("niche", niche, ["published", "train"] if name == "dbitseq" else ["published"])
    again = niche == "train" and "niche" in modalities
    read = modalities + (["rna"] if again and "rna" not in modalities else [])
    split = _cut(dataset, open_set(dataset, fold, root, read, allow_standin), fold, seed)
    if again:
        recompute_niche([split.train, split.val, split.test], split.train)
        split.notes.append("here the niche is averaged from training pixels alone")
    if read != modalities:
        for part in ("train", "val", "test"):
            setattr(split, part, keep(getattr(split, part), modalities))
    return split


def load_simulated(
    fold: int = 0,
    seed: int = 0,
    modalities: Sequence[str] | None = None,
    backbone: str = "linear",
    setting: str = "default",
    cells: int = 500,
    genes: int = 100,
    simulation: int = 0,
) -> Split:
    """Simulate a set like Dyngen's with another backbone, noise, size or network, and cut it.

    Parameters
    ----------
    fold, seed, modalities
        As for `load`: one of five folds, stratified by group; some of "dna", "pre_mrna", "mrna",
        "protein".
    backbone, setting, cells, genes, simulation
        As `simulate_dyngen` takes them; `simulation` is its seed.

    Returns
    -------
    Split, named for all that differs from the default: "dyngen-cycle-hard", say.
    """
    dataset = DATASETS["dyngen"]
    modalities = _known_modalities(dataset, modalities)
    fold = _known_fold(dataset, fold)
    mdata = simulate_dyngen(cells, genes, backbone, simulation, setting)
    unusual = {
        backbone: backbone != "linear",
        setting: setting != "default",
        f"{cells}x{genes}": (cells, genes) != (500, 100),
        f"s{simulation}": simulation != 0,
    }
    names = ["dyngen", *(name for name, holds in unusual.items() if holds)]
    note = f"simulated: {cells} cells, {backbone} backbone, {setting} noise"
    opened = Opened(Cells.of(keep(mdata, modalities)), "simulated", [note], {})
    return _cut(replace(dataset, name="-".join(names)), opened, fold, seed)


def _known_modalities(dataset: Dataset, modalities: Sequence[str] | None) -> list[str]:
    if modalities is None:
        return list(dataset.modalities)
    names = [modalities] if isinstance(modalities, str) else list(modalities)
    expect_among(names, dataset.modalities, f"{dataset.name} has no modality")
    takes = f"some of {some(dataset.modalities)}, each at most once"
    expect(names and len(set(names)) == len(names), "modalities", names, takes)
    return names


def _known_fold(dataset: Dataset, fold: int | str) -> int | str:
    """The fold's name in the catalogue; a batch of atacseq may be given by its number."""
    whole = isinstance(fold, np.integer) or (isinstance(fold, str) and fold.isdigit())
    known = int(fold) if whole else fold
    if dataset.name == "atacseq" and type(known) is int and 0 <= known < len(dataset.folds):
        return dataset.folds[known]
    if isinstance(known, bool) or known not in dataset.folds:
        raise DataError(f"{dataset.name} has no fold {fold!r}; folds: {some(dataset.folds, 20)}")
    return known


def _cut(dataset: Dataset, opened: Opened, fold: int | str, seed: int) -> Split:
    """Cut a data set's cells by its fold, and validation cells from the training cells by seed."""
    obs, label_key = opened.cells.obs, dataset.label_key
    if obs[label_key].isna().any():
        raise DataError(f"{dataset.name}: obs['{label_key}'] is missing for some cells")
    labels = obs[label_key].astype(str).to_numpy()
    test = held_out(dataset, obs, fold)
    rest = np.flatnonzero(~test)
    val = rest[stratified(labels[rest], VALIDATION_FRACTION, seed)]
    parts = opened.cells.take([np.setdiff1d(rest, val), val, np.flatnonzero(test)], label_key)
    groups = sorted(set(labels[rest]))
    notes = opened.notes + list(dataset.notes) + _unseen(parts[2], label_key, groups)
    return Split(*parts, dataset.name, fold, seed, label_key, groups, opened.data_source, notes,
                 opened.checksums)  # fmt: skip


def _unseen(test: MuData, label_key: str | None, groups: list[str]) -> list[str]:
    """Say which groups the test cells have and the training cells have not."""
    if label_key is None:
        return []
    labels = test.obs[label_key].astype(str)
    unseen = labels[~labels.isin(groups)].value_counts().sort_index()
    if unseen.empty:
        return []
    listed = some([f"{group} ({n})" for group, n in unseen.items()], 30)
    return [f"{unseen.sum()} test cells are in groups that no training cell has: {listed}"]


def held_out(dataset: Dataset, obs: pd.DataFrame, fold: int | str) -> np.ndarray:
    """Which cells the fold tests on, as a mask over `obs`; no seed has a part in it."""
    if isinstance(fold, str) and fold.startswith("block-"):
        return block_of(obs["array_row"], obs["array_col"]) == int(fold.removeprefix("block-"))
    if dataset.name == "atacseq" or fold in MOP_BATCHES:
        batch = obs["batch"].astype(str)
        if fold not in set(batch) or batch.nunique() == 1:
            raise DataError(
                f"{dataset.name}: batch {fold} cannot be held out; batches in these files: "
                f"{some(sorted(set(batch)), 20)}"
            )
        return (batch == fold).to_numpy()
    if "published_split" in obs:
        return (obs["published_split"] == "test").to_numpy()
    folds = StratifiedKFold(dataset.n_folds, shuffle=True, random_state=0)
    labels = obs[dataset.label_key].astype(str)
    if labels.value_counts().max() < folds.n_splits:
        raise DataError(f"{dataset.name}: too few cells a group for {folds.n_splits} folds")
    with warnings.catch_warnings():  # some groups have fewer cells than there are folds
        warnings.filterwarnings("ignore", message="The least populated class")
        rows = [test for _, test in folds.split(labels, labels)][fold]
    return np.isin(np.arange(len(obs)), rows)


def block_of(row: Sequence[int], column: Sequence[int], n_blocks: int = 5) -> np.ndarray:
    """Number the tissue's pixels by contiguous blocks along the array's rows.

    Pixels are numbered row by row and cut into runs of equal length, so that a block is a band of
    rows. Bands of columns would hold out more pixels (38 of 936, against 22) of groups that are
    then unknown in training.
    """
    order = np.lexsort((np.asarray(column), np.asarray(row)))
    block = np.empty(len(order), dtype=int)
    for k, pixels in enumerate(np.array_split(order, n_blocks)):
        block[pixels] = k
    return block


def stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose cells at random, a like share of each group, never all of a group.

    Every group gives `fraction` of its cells, rounded so that the total is right (largest
    remainders first, ties by chance), but keeps at least one: groups of one give none. Gives the
    positions of the chosen cells, ascending.
    """
    rng = np.random.default_rng(seed)
    codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    share = np.minimum(fraction * sizes, sizes - 1)
    quota = np.floor(share).astype(int)
    short = min(int(round(share.sum())) - quota.sum(), int((share > quota).sum()))
    quota[np.lexsort((rng.random(len(sizes)), quota - share))[:short]] += 1
    shuffled = rng.permutation(len(labels))
    shuffled = shuffled[np.argsort(codes[shuffled], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(shuffled[rank < np.repeat(quota, sizes)])


def split_mudata(
    mdata: MuData,
    label_key: str | None = "cell_type",
    test: float | Sequence[str] | tuple | None = None,
    val: float | Sequence[str] | tuple | None = None,
    seed: int = 0,
) -> Split:
    """Cut the user's own cells into training, validation and test.

    Parameters
    ----------
    mdata
        Cells as measured; a cell may lack modalities.
    label_key
        Column of `mdata.obs` with the groups; None: no labels, and splits are not stratified.
    test, val
        Cell names, a fraction (of the cells not yet taken, stratified), or a pair of an obs column
        and a held-out value or list of values. Default: .2, then .15 of the rest.
    seed
        Draws the fractions.

    Raises
    ------
    DataError
        Unusable data (see `check`), unknown cells, columns or values, or an empty part.
    """
    expect_seed(seed)
    test = TEST_FRACTION if test is None else test
    val = VALIDATION_FRACTION if val is None else val
    notes = check(mdata, label_key)
    everyone = np.arange(mdata.n_obs)
    labels = np.zeros(mdata.n_obs) if label_key is None else as_text(mdata.obs[label_key])
    labels = np.asarray(labels)
    test_rows = _choose(mdata, labels, everyone, "test", test, seed)
    rest = np.setdiff1d(everyone, test_rows)
    val_rows = _choose(mdata, labels, rest, "val", val, seed)
    both = np.intersect1d(test_rows, val_rows)
    if len(both):
        raise DataError(f"cells both in test and in val: {some(mdata.obs_names[both])}")
    train_rows = np.setdiff1d(rest, val_rows)
    if not len(train_rows):
        raise DataError("test and val take all cells; none is left to train on")
    parts = Cells.of(mdata).take([train_rows, val_rows, test_rows], label_key, lazy=True)
    groups = [] if label_key is None else sorted(set(labels[rest]))
    notes += _unseen(parts[2], label_key, groups)
    return Split(*parts, "own", 0, seed, label_key, groups, data_source="local", notes=notes)


def _choose(
    mdata: MuData, labels: np.ndarray, pool: np.ndarray, part: str, what, seed: int
) -> np.ndarray:
    """Rows of `mdata` for one part: a fraction of the pool, an (obs column, value), or names."""
    takes = "a fraction between 0 and 1, names of cells, or (obs column, held-out value)"
    if isinstance(what, (int, float, np.number)):
        expect(not isinstance(what, bool) and 0 < what < 1, part, what, takes)
        rows = pool[stratified(labels[pool], float(what), seed)]
    else:
        listed = isinstance(what, Iterable) and not isinstance(what, (Mapping, bytes))
        expect(listed, part, what, takes)
        what = [what] if isinstance(what, str) else list(what)
        rows = mdata.obs_names.get_indexer(pd.Index([str(item) for item in what]))
        unknown = [str(item) for item, row in zip(what, rows, strict=True) if row < 0]
        if len(what) == 2 and isinstance(what[0], str) and what[0] in mdata.obs:
            if not unknown:
                raise DataError(
                    f"{part}={what}: '{what[0]}' is a cell and a column; rename the column"
                )
            column, held = mdata.obs[what[0]], what[1]
            held = held if isinstance(held, (list, set, tuple, np.ndarray)) else [held]
            held = {as_text(pd.Series([value])).iloc[0] for value in held}
            rows = np.flatnonzero(as_text(column).isin(held) & column.notna())
            rows = np.intersect1d(rows, pool)
        elif unknown:
            raise DataError(
                f"{part}: no cells called {some(unknown)}, and no column of obs to hold out "
                f"by; columns: {some(mdata.obs.columns, 20)}"
                f"{near(unknown[0], [*mdata.obs.columns, *mdata.obs_names[:10_000]])}"
            )
    if not len(rows):
        raise DataError(f"{part}={reprlib.repr(what)} holds out no cell")
    return np.unique(rows)
