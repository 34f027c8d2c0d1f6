"""Is this MuData usable? One clear error per fault."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from numbers import Integral

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scmoe.data.blocks import is_sparse, matrix, row_blocks
from scmoe.data.kinds import Summary, summarise

LARGEST = 1e15  # no measurement is as large; sums and exponentials of these stay finite
LIKE_MISSING = {"", "nan", "na", "n/a", "<na>", "none", "null", "nat"}  # text, in any case


class DataError(ValueError):
    """Data that cannot be used as they are; the message names modality, key and remedy."""


class DataWarning(UserWarning):
    """Something about the data that is probably meant, and changes what is read if it is not."""


def some(names: Iterable, limit: int = 5) -> str:
    """The first few names for a message: `a, b, c, … (12 in all)`."""
    names = [str(name) for name in names]
    more = f", … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def near(name: object, known: Iterable) -> str:
    """Suggest, for the end of a message, which of the known names may have been meant, if any."""
    known = {str(other).lower(): str(other) for other in known}
    found = difflib.get_close_matches(str(name).lower(), known, n=1)
    return f"; did you mean '{known[found[0]]}'?" if found else ""


def expect(holds: bool, name: str, value: object, takes: str) -> None:
    """Refuse an argument that does not hold: what it is called, what it got, what it takes."""
    if not holds:
        raise DataError(f"{name}={reprlib.repr(value)}: it takes {takes}")


def expect_known(name: str, value: object, known: Iterable) -> None:
    """Refuse an argument that is none of the known values, and suggest the nearest."""
    known = list(known)
    holds = not isinstance(value, bool) and any(value == one for one in known)
    expect(holds, name, value, f"one of {some(known, 20)}{near(value, known)}")


def expect_among(names: Iterable, known: Iterable, said: str) -> None:
    """Refuse names of which some are not among the known ones; `said` begins the message."""
    if unknown := [name for name in names if name not in known]:
        there = some(known, 20) or "none"
        raise DataError(f"{said} {some(unknown)}; there are: {there}{near(unknown[0], known)}")


def expect_seed(seed: object) -> None:
    """Refuse what numpy, torch and scikit-learn do not all take for a seed."""
    whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    expect(whole and 0 <= seed < 2**32, "seed", seed, "a whole number from 0 to 2**32 - 1")


def expect_mudata(mdata: object) -> None:
    """Refuse what is no MuData, with the way to one."""
    if not isinstance(mdata, MuData):
        one = 'read({"rna": adata}), say,' if isinstance(mdata, AnnData) else "read"
        raise DataError(
            f"expected a MuData, got {type(mdata).__name__}; scmoe.data.{one} makes one from "
            "AnnData objects or files"
        )


def as_text(labels: pd.Series) -> pd.Series:
    """Labels as text; whole numbers that were stored as fractions (2.0) are whole again (2)."""
    if isinstance(labels.dtype, pd.CategoricalDtype) and labels.cat.categories.dtype.kind == "f":
        labels = labels.astype(float)
    if labels.dtype.kind == "f" and (labels.dropna() % 1 == 0).all():
        labels = labels.astype("Int64")
    return labels.astype(str)


def check(
    mdata: MuData, label_key: str | None = None, modalities: Sequence[str] | None = None
) -> list[str]:
    """Check that cells, features, values and labels can be trained on.

    Parameters
    ----------
    mdata
        Cells as measured.
    label_key
        Column of `mdata.obs` with the cells' groups; None: labels are not looked at.
    modalities
        Modalities to look at, the others are not read; default all.

    Returns
    -------
    What is unusual but can be worked with, a sentence each. At the first fault that cannot, a
    DataError names modality, key and remedy.
    """
    expect_mudata(mdata)
    names = select_modalities(mdata, modalities)
    check_cells(mdata, names)
    notes = []
    for name in names:
        seen = check_modality(mdata.mod[name], name)
        if seen.n_missing:
            notes.append(
                f"{seen.n_missing:,} values of modality '{name}' "
                f"({seen.n_missing / seen.n_entries:.1%}) are missing: each is filled with its "
                "feature's mean over the training cells, and not scored"
            )
    notes += _check_shared(mdata, names)
    return notes if label_key is None else notes + _check_labels(mdata, label_key)


def select_modalities(mdata: MuData, modalities: Sequence[str] | None) -> list[str]:
    """The modalities asked for, or all; refuses unknown ones, naming what there is."""
    names = mdata.mod if modalities is None else modalities
    names = [names] if isinstance(names, str) else names
    expect(isinstance(names, Iterable), "modalities", names, "names of modalities")
    names = list(dict.fromkeys(names))
    expect_among(names, mdata.mod, "no modality")
    if not names:
        raise DataError("no modality: at least one is needed")
    return names


def check_cells(mdata: MuData, names: list[str]) -> None:
    """Check that each modality's cells are unique and are where the MuData says they are."""
    if mdata.axis != 0:
        raise DataError("modalities share features, not cells; build the MuData with axis=0")
    for name in names:
        adata = mdata.mod[name]
        if not isinstance(adata, AnnData):
            raise DataError(f"modality '{name}' is a {type(adata).__name__}; give an AnnData")
        check_unique(adata.obs_names, name, "obs_names", "drop the copies, or")
    for name in names:
        theirs = mdata.mod[name].obs_names
        place = 1 + theirs.get_indexer(mdata.obs_names)  # 0: not in this modality
        in_step = name in mdata.obsmap and np.array_equal(np.ravel(mdata.obsmap[name]), place)
        if not in_step or (place > 0).sum() != len(theirs):
            raise DataError(
                f"modality '{name}': its cells are not those that mdata.obs lists for it; "
                "call mdata.update() after changing a modality"
            )


def check_unique(names: pd.Index, modality: str, what: str, remedy: str = "") -> None:
    """Refuse a modality in which cells or features repeat."""
    if not names.is_unique:
        twice = some(names[names.duplicated()].unique())
        raise DataError(
            f"modality '{modality}': {what} repeat ({twice}); {remedy} call {what}_make_unique()"
        )


def _check_shared(mdata: MuData, names: list[str]) -> list[str]:
    """Refuse a modality that shares no cell with the others; say which lack some cells."""
    notes = []
    for name in names:
        adata = mdata.mod[name]
        others = [mdata.mod[other] for other in names if other != name]
        if others and not any(adata.obs_names.isin(other.obs_names).any() for other in others):
            if any(adata.var_names.isin(other.obs_names).mean() > 0.5 for other in others):
                raise DataError(
                    f"modality '{name}' is transposed: its features are the other modalities' "
                    "cells; use adata.T"
                )
            raise DataError(
                f"modality '{name}' shares no cell with the others: its obs_names are like "
                f"'{some(adata.obs_names[:1])}', theirs like '{some(others[0].obs_names[:1])}'; "
                "give each cell the same name in every modality"
            )
        if lacking := mdata.n_obs - adata.n_obs:
            notes.append(f"{lacking} of {mdata.n_obs} cells lack modality '{name}'")
    bare = ~np.any([mdata.obs_names.isin(mdata.mod[name].obs_names) for name in names], axis=0)
    if bare.any():
        notes.append(
            f"{bare.sum()} cells have no modality and are left out: {some(mdata.obs_names[bare])}"
        )
    return notes


def check_modality(adata: AnnData, name: str) -> Summary:
    """Check one modality's size, feature names and values, and sum these up."""
    if 0 in adata.shape:
        raise DataError(
            f"modality '{name}' is empty ({adata.n_obs} cells × {adata.n_vars} features); remove it"
        )
    check_unique(adata.var_names, name, "var_names")
    try:
        X = matrix(adata)
        seen = None if X is None or X.dtype.kind not in "fiub" else summarise(X)
    except KeyError:  # a backed file without X
        X = None
    except ValueError as error:  # a view of a file, reversed say, or indices that lead nowhere
        raise DataError(
            f"modality '{name}': X cannot be read ({error}); of a part of a file on disk, "
            "read the file into memory, then take the part"
        ) from error
    if X is None:
        raise DataError(f"modality '{name}' has no X; put the measured values there")
    if seen is None:
        raise DataError(
            f"modality '{name}': X holds {X.dtype} values, not numbers; "
            "convert them, e.g. adata.X = adata.X.astype('float32')"
        )
    if seen.n_missing == seen.n_entries:
        raise DataError(f"modality '{name}': all values are missing (NaN); remove it")
    if max(-seen.smallest, seen.largest) > LARGEST or (seen.n_missing and is_sparse(X)):
        _refuse_unusable(X, adata, name)
    return seen


def _refuse_unusable(X, adata: AnnData, name: str) -> None:
    """Name the first value that is too large, infinite, or missing from a sparse matrix."""
    for start, block in row_blocks(X):
        found = block.toarray() if is_sparse(X) else block
        unusable = ~(np.abs(found.astype(np.float64)) <= LARGEST)  # NaN is not smaller
        if not is_sparse(X):
            unusable &= ~np.isnan(found)
        if unusable.any():
            cell, feature = np.argwhere(unusable)[0]
            raise DataError(
                f"modality '{name}': X is {found[cell, feature]} at cell "
                f"'{adata.obs_names[start + cell]}', feature '{adata.var_names[feature]}'; impute "
                "it, or leave the cell out of this modality (a cell may lack a modality)"
            )


def _check_labels(mdata: MuData, label_key: str) -> list[str]:
    expect(isinstance(label_key, str), "label_key", label_key, "the name of a column, or None")
    if label_key not in mdata.obs:
        holders = [name for name, adata in mdata.mod.items() if label_key in adata.obs]
        remedy = "put the cells' groups there, or name their column with label_key"
        if holders:
            remedy = (
                f"modality '{holders[0]}' has it: mdata.obs['{label_key}'] = "
                f"mdata.mod['{holders[0]}'].obs['{label_key}']"
            )
        raise DataError(
            f"no column '{label_key}' in mdata.obs (columns: {some(mdata.obs, 20) or 'none'}); "
            f"{remedy}{near(label_key, mdata.obs)}"
        )
    labels, is_called = mdata.obs[label_key], f"obs['{label_key}']"
    if labels.isna().any():
        raise DataError(
            f"{is_called} is missing for {labels.isna().sum()} cells "
            f"({some(mdata.obs_names[labels.isna()], 3)}); label them, or drop them"
        )
    sizes = as_text(labels).value_counts()
    unsure = [label for label in sizes.index if label.strip().lower() in LIKE_MISSING]
    if unsure:
        raise DataError(
            f"{is_called} has the text '{unsure[0]}' for {sizes[unsure[0]]} cells: are these "
            f"without a label, or is it a group's name? Set them to None (mdata.{is_called} = "
            f"mdata.{is_called}.replace('{unsure[0]}', None)), or give the group another name"
        )
    if len(sizes) < 2:
        raise DataError(
            f"{is_called} has one group only ('{some(sizes.index)}'), so that there is "
            "nothing to identify; name another column, or label_key=None to do without labels"
        )
    if sizes.iloc[0] == 1:
        raise DataError(f"{is_called} has a group for every cell; name a column of groups")
    single = sorted(sizes.index[sizes == 1])
    return [f"groups of one cell, which cannot be validated on: {some(single)}"] if single else []
