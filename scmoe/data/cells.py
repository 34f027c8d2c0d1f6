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

from scmoe.data.blocks import in_file, matrix, on_disk, take_rows
from scmoe.data.check import DataError, as_text

# mudata from 0.4 no longer copies the modalities' columns into the global tables whenever these are
# brought up to date, and has no such option; before, it warns each time until told which to do.
if hasattr(mudata, "set_options"):
    mudata.set_options(pull_on_update=False)


@dataclass
class Cells:
    """All cells' annotation, and each modality's matrix, perhaps still on disk.

    A modality may have its cells in another order than `obs`, and may lack some.
    """

    obs: pd.DataFrame
    mod: dict[str, AnnData]
    obsm: Mapping[str, np.ndarray] = field(default_factory=dict)
    uns: Mapping = field(default_factory=dict)

    @classmethod
    def of(cls, mdata: MuData) -> Cells:
        """The cells of a MuData, not copied."""
        return cls(mdata.obs, dict(mdata.mod), annotation(mdata), mdata.uns)

    def take(
        self, parts: Sequence[np.ndarray], label_key: str | None = None, lazy: bool = False
    ) -> list[MuData]:
        """One MuData per part (positions in `obs`), in memory; `lazy`: what is in a file stays.

        The parts hold X, annotations and the modalities' kinds; layers and graphs are left behind.
        """
        mods: list[dict[str, AnnData]] = [{} for _ in parts]
        for name, adata in self.mod.items():
            rows = [adata.obs_names.get_indexer(self.obs.index[part]) for part in parts]
            rows = [place[place >= 0] for place in rows]
            X, uns = matrix(adata), {"kind": adata.uns["kind"]} if "kind" in adata.uns else None
            if lazy and on_disk(X):
                whole = AnnData(X, adata.obs, adata.var, uns)
                for mod, its in zip(mods, rows, strict=True):
                    mod[name] = whole[its]
                continue
            try:
                cut = [take_rows(X, part) for part in rows]
            except OSError as error:
                raise DataError(
                    f"modality '{name}': cannot read {adata.filename or 'its file'}: it is damaged "
                    f"({error}); fetch it again"
                ) from error
            for mod, X, its in zip(mods, cut, rows, strict=True):
                mod[name] = AnnData(X, adata.obs.iloc[its].copy(), adata.var.copy(), uns)
        obs, made = self.obs, []
        if label_key is not None:
            obs = obs.assign(**{label_key: as_text(obs[label_key])})
        for part, mod in zip(parts, mods, strict=True):
            obsm = {key: getattr(value, "iloc", value)[part] for key, value in self.obsm.items()}
            mdata = make_mudata(mod, obs.iloc[part], obsm, uns=self.uns)
            if label_key is not None:
                mdata.obs[label_key] = pd.Categorical(mdata.obs[label_key])
            made.append(mdata)
        return made


@contextmanager
def quiet():
    """Silence what is known and meant: names shared by modalities, stored column types."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique")
        warnings.filterwarnings("ignore", message=".*Cannot join columns")
        warnings.filterwarnings("ignore", category=anndata.ImplicitModificationWarning)
        yield


def make_mudata(
    mod: Mapping[str, AnnData], obs: pd.DataFrame | None = None, obsm=(), obsp=(), uns=()
) -> MuData:
    """A MuData of these modalities, which are not copied unless cells have to change places.

    `obs` gives the cells' annotation and, if no matrix is in a file, their order, `obsm` and `obsp`
    what else there is of them; cells that no modality has are left out.
    """
    with quiet():
        mdata = MuData(dict(mod))
        if obs is None:
            return mdata
        rows = np.flatnonzero(obs.index.isin(mdata.obs_names))
        if not mdata.obs_names.equals(obs.index):
            if any(map(in_file, mod.values())):
                rows = obs.index.get_indexer(mdata.obs_names)
            else:
                mdata = mdata[obs.index[rows]].copy()
        mdata.obs = obs.iloc[rows].copy()
    for key, value in dict(obsm).items():
        mdata.obsm[key] = getattr(value, "iloc", value)[rows]
    for key, value in dict(obsp).items():
        mdata.obsp[key] = value[rows][:, rows]
    mdata.uns.update(uns)
    return mdata


def annotation(mdata: MuData) -> dict[str, np.ndarray]:
    """What `mdata.obsm` has besides the masks of who has which modality."""
    return {key: value for key, value in mdata.obsm.items() if key not in mdata.mod}


def keep(mdata: MuData, modalities: Sequence[str]) -> MuData:
    """The same cells with these modalities only, in this order; nothing is copied."""
    mod = {name: mdata.mod[name] for name in modalities}
    return make_mudata(mod, mdata.obs, annotation(mdata), mdata.obsp, mdata.uns)


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
