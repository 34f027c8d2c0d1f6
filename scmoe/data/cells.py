"""Cells before they are cut into parts, and MuData put together quickly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import anndata
import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scmoe.data.blocks import matrix, take_rows
from scmoe.data.check import DataError, as_text

# mudata from 0.4 no longer copies the modalities' columns into the global tables whenever these are
# brought up to date, and has no such option; before, it warns each time until told which to do.
if hasattr(mudata, "set_options"):
    mudata.set_options(pull_on_update=False)


@dataclass
class Cells:
    """All cells' annotation, and each modality's matrix, perhaps still on disk.

    `rows[m]` says in which row of modality `m` each cell of `obs` is, -1 where it lacks `m`;
    `kinds` says what a modality's values are, where that is known.
    """

    obs: pd.DataFrame
    mod: dict[str, AnnData]
    rows: dict[str, np.ndarray]
    label_key: str | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)
    obsm: Mapping[str, np.ndarray] = field(default_factory=dict)
    uns: Mapping = field(default_factory=dict)

    @classmethod
    def of(cls, mdata: MuData, label_key: str | None, kinds: Mapping[str, str] | None = None):
        """The cells of a MuData, not copied."""
        rows = {m: mdata.mod[m].obs_names.get_indexer(mdata.obs_names) for m in mdata.mod}
        obsm = {key: mdata.obsm[key] for key in mdata.obsm if key not in mdata.mod}
        return cls(mdata.obs, dict(mdata.mod), rows, label_key, kinds or {}, obsm, mdata.uns)

    def take(self, parts: Sequence[np.ndarray]) -> list[MuData]:
        """One MuData per part (positions in `obs`), in memory; a file is read once for all.

        The parts hold X and annotations; layers and graphs are left behind.
        """
        taken: list[dict[str, AnnData]] = [{} for _ in parts]
        for name, adata in self.mod.items():
            rows = [self.rows[name][part] for part in parts]
            rows = [part[part >= 0] for part in rows]
            try:
                cut = take_rows(matrix(adata), rows)
            except OSError as error:
                raise DataError(
                    f"modality '{name}': cannot read {adata.filename or 'its file'}: it is damaged "
                    f"({error}); fetch it again"
                ) from error
            for i, X in enumerate(cut):
                uns = {"kind": self.kinds.get(name, adata.uns.get("kind"))}
                taken[i][name] = AnnData(
                    X,
                    obs=adata.obs.iloc[rows[i]].copy(),
                    var=adata.var.copy(),
                    uns=uns if uns["kind"] is not None else None,
                )
        return [self._part(part, mod) for part, mod in zip(parts, taken, strict=True)]

    def _part(self, part: np.ndarray, mod: dict[str, AnnData]) -> MuData:
        mdata = make_mudata(mod, self.obs.iloc[part])
        if self.label_key is not None:
            labels = as_text(self.obs[self.label_key])[mdata.obs_names]
            mdata.obs[self.label_key] = pd.Categorical(labels)
        kept = self.obs.index[part].isin(mdata.obs_names)
        for key, values in self.obsm.items():
            mdata.obsm[key] = getattr(values, "iloc", values)[part[kept]]
        mdata.uns.update(self.uns)
        return mdata


@contextmanager
def quiet():
    """Silence what is known and meant: names shared by modalities, stored column types."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique")
        warnings.filterwarnings("ignore", message=".*Cannot join columns")
        warnings.filterwarnings("ignore", category=anndata.ImplicitModificationWarning)
        yield


def make_mudata(mod: Mapping[str, AnnData], obs: pd.DataFrame | None = None) -> MuData:
    """A MuData of these modalities, which are not copied unless cells have to change places.

    `obs` gives the cells' order and annotation; cells that no modality has are left out.
    """
    with quiet():
        mdata = MuData(dict(mod))
        if obs is not None:
            if not mdata.obs_names.equals(obs.index):
                mdata = mdata[obs.index[obs.index.isin(mdata.obs_names)]].copy()
                obs = obs.loc[mdata.obs_names]
            mdata.obs = obs.copy()
    return mdata


def keep(mdata: MuData, modalities: Sequence[str]) -> MuData:
    """The same cells with these modalities only, in this order; nothing is copied."""
    kept = make_mudata({name: mdata.mod[name] for name in modalities}, mdata.obs)
    rows = mdata.obs_names.get_indexer(kept.obs_names)
    for key in set(mdata.obsm) - set(mdata.mod):
        kept.obsm[key] = getattr(mdata.obsm[key], "iloc", mdata.obsm[key])[rows]
    for key in mdata.obsp:
        kept.obsp[key] = mdata.obsp[key][rows][:, rows]
    kept.uns.update(mdata.uns)
    return kept


def prefixed(mdata: MuData) -> Iterator[tuple[str, pd.Series]]:
    """The modalities' columns over all cells, each called as "rna:leiden" is; see `typed`."""
    for name, adata in mdata.mod.items():
        for column in adata.obs.columns[adata.obs.columns.duplicated(keep=False) ^ True]:
            values = adata.obs[column]
            if adata.obs_names.is_unique:
                spread = values.astype(object).reindex(mdata.obs_names)
                yield f"{name}:{column}", typed(spread, [values.dtype])


def typed(values: pd.Series, dtypes: list) -> pd.Series:
    """Values of these types back in their common one, a nullable one where some are missing."""
    dtype = dtypes[0]
    if all(isinstance(other, pd.CategoricalDtype) for other in dtypes):
        categories = dict.fromkeys(name for other in dtypes for name in other.categories)
        ordered = dtype.ordered and all(other == dtype for other in dtypes)
        return values.astype(pd.CategoricalDtype(list(categories), ordered))
    if any(other != dtype for other in dtypes):
        values = values.infer_objects()
        nullable = values.convert_dtypes(convert_string=False, convert_floating=False)
        return nullable if values.dtype == object else values
    if isinstance(dtype, np.dtype) and dtype.kind in "iub" and values.isna().any():
        name = "boolean" if dtype.kind == "b" else dtype.name.replace("i", "I").replace("u", "U")
        return values.astype(name)
    return values.astype(dtype)
