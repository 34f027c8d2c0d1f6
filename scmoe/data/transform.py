"""Transform: from values as measured to what a model sees, fitted on training cells, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from scmoe.data.blocks import gaps, is_sparse, matrix, row_blocks
from scmoe.data.cells import make_mudata
from scmoe.data.check import (
    DataError,
    check,
    check_cells,
    check_modality,
    expect,
    expect_among,
    expect_known,
    expect_mudata,
    select_modalities,
    some,
)
from scmoe.data.kinds import AS_IS, KINDS, LOG_SCALE, NON_NEGATIVE, other_kind, recognise, summarise
from scmoe.data.steps import Fitted, apply, fit_step, moments, step, times_columns, unstep

# A feature varies if its standard deviation exceeds this share of its largest absolute value.
VARIES = 1e-6
# On a log scale features share a unit: one that varies much less than the others is mostly noise.
# It is divided by no less than this share of the median standard deviation. On the validation
# cells of Patch-seq and DBiT-seq no linear method lost by that (RNA of Patch-seq: accuracy .817 to
# .821, R² from electrophysiology .097 to .106).
LEAST_SCALE = 0.5
ARRAYS = ("used", "constant", "idf", "mean", "scale")


class Transform:
    """Feature filter, the kind's own step, scaling and clipping, fitted on training cells alone.

    ==========  ===============================================  ================================
    kind        step                                             scaling
    ==========  ===============================================  ================================
    counts      to the training cells' median total, log(1 + x)  standardise
    normalised  none: log-normalised already                     standardise
    protein     centred log-ratio over the cell's features       standardise
    peaks       TF-IDF, log(1 + x)                               centre; one divisor; no clipping
    binary      1 where above 0                                  none
    continuous  none                                             standardise
    scaled      none: scaled by whoever made the data            none
    ==========  ===============================================  ================================

    To standardise is to subtract the mean, divide by the standard deviation (counts, normalised,
    protein: by at least half the features' median one) and clip what lies more than `clip` of
    these from the mean. A sparse modality stays sparse: all but the subtraction is done. Features
    that do not vary over the training cells are dropped. A dense modality's missing values (NaN)
    have no part in what is fitted; they are filled with the feature's mean over the training
    cells. A cell all of whose values are missing lacks the modality.

    Parameters
    ----------
    kinds
        Kinds of some modalities. The others are what `mdata.mod[m].uns["kind"]` says, else what
        the training cells' values look like (`describe` tells which).
    clip
        Largest distance from the mean after standardising, in standard deviations.
    """

    def __init__(self, kinds: Mapping[str, str] | None = None, clip: float = 10.0):
        expect(kinds is None or isinstance(kinds, Mapping), "kinds", kinds, "a dict by modality")
        for kind in (kinds or {}).values():
            expect_known("kinds", kind, KINDS)
        number = isinstance(clip, Real) and not isinstance(clip, bool)
        expect(number and 0 < clip < np.inf, "clip", clip, "a positive number")
        self.clip = float(clip)
        self._stated = dict(kinds or {})
        self._fitted: dict[str, Fitted] = {}

    @property
    def modalities(self) -> list[str]:
        """The fitted modalities, in the training data's order."""
        return list(self._fitted)

    @property
    def kinds(self) -> dict[str, str]:
        """What each modality was taken for."""
        return {name: fitted.kind for name, fitted in self._fitted.items()}

    @property
    def features(self) -> dict[str, pd.Index]:
        """Each modality's kept features, in the order of the transformed columns."""
        return {name: fitted.names[fitted.used] for name, fitted in self._fitted.items()}

    def describe(self) -> pd.DataFrame:
        """One row per modality: its kind and why, what is done, features measured and dropped."""
        rows = {
            name: {
                "kind": fitted.kind,
                "why": fitted.why,
                "done": KINDS[fitted.kind],
                "stored": "sparse" if fitted.sparse else "dense",
                "measured": len(fitted.names),
                "kept": int(fitted.used.sum()),
                "dropped": some(fitted.names[~fitted.used]),
            }
            for name, fitted in self._fitted.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    def fit(self, train: MuData) -> Transform:
        """Fit on training cells, every modality of theirs.

        A DataError where values are unusable (see `check`), or negative in a kind that has no
        such, and where no feature of a modality varies.
        """
        check(train)
        expect_among(self._stated, train.mod, "kinds given for")
        self._fitted = {name: self._fit(name, train.mod[name]) for name in train.mod}
        return self

    def _fit(self, name: str, adata: AnnData) -> Fitted:
        seen = summarise(matrix(adata))
        kind, why = recognise(name, adata, seen, self._stated.get(name))
        _refuse_negative(name, kind, seen.smallest)
        if seen.n_missing:
            why += f"; {seen.n_missing:,} missing values filled"
            adata = _measured(adata)
        X = matrix(adata)
        constant, sd, largest = moments(_blocks(X), X.shape[1])
        used = sd > VARIES * largest
        if not used.any():
            raise DataError(
                f"modality '{name}': no feature varies over the {adata.n_obs} training cells; "
                "remove the modality, or add cells"
            )
        n = int(used.sum())
        fitted = Fitted(
            kind, why, is_sparse(X), 1.0, seen.look(), adata.var_names.astype(str), used, constant,
            idf=np.ones(n), mean=np.zeros(n), scale=np.ones(n),
        )  # fmt: skip
        columns = None if used.all() else np.flatnonzero(used)

        def stepped() -> Iterator:
            for block in _blocks(X, columns):
                done, missing = step(fitted.fill(block, columns), fitted), gaps(block)
                yield done if missing is None else np.where(missing, np.nan, done)

        fit_step(fitted, lambda: (fitted.fill(b, columns) for b in _blocks(X, columns)), X.shape[0])
        if kind not in AS_IS:
            fitted.mean, sd, _ = moments(stepped(), n)
            if kind == "peaks":
                sd = np.full(n, np.sqrt(np.mean(sd**2)))
            if kind in LOG_SCALE:
                sd = np.maximum(sd, LEAST_SCALE * np.median(sd))
            fitted.scale = np.where(sd > 0, sd, 1.0)
        return fitted

    def transform(self, mdata: MuData, modalities: Sequence[str] | None = None) -> MuData:
        """Apply the fitted transform to cells as measured.

        Features are matched by (modality, name), in whatever order; others than the training
        cells' are ignored. Only `modalities` are read; default: all fitted ones that `mdata` has.

        Returns
        -------
        MuData with X of (cells of the modality, kept features), float32, dense, or CSR where the
        training cells' was sparse; `obs` as given. A cell that a modality lacks stays missing
        there, and one that all the asked modalities lack is left out.

        Raises
        ------
        DataError
            A modality absent or not fitted, features missing, or values unusable or of another
            kind than the training cells'.
        """
        if not self._fitted:
            raise ValueError("this Transform is not fitted; call fit(train) first")
        expect_mudata(mdata)
        if modalities is None:
            modalities = [name for name in self._fitted if name in mdata.mod]
            if not modalities:
                raise DataError(
                    f"fitted on {some(self._fitted, 20)}; the data have {some(mdata.mod, 20)}"
                )
        names = select_modalities(mdata, modalities)
        expect_among(names, self._fitted, "not fitted on")
        check_cells(mdata, names)
        mod = {name: self._transform(name, mdata.mod[name]) for name in names}
        return make_mudata(mod, mdata.obs)

    def _transform(self, name: str, adata: AnnData) -> AnnData:
        fitted, missing = self._fitted[name], 0
        if adata.n_obs:
            seen = check_modality(adata, name)
            missing = seen.n_missing
            if kinds := other_kind(fitted.kind, fitted.look, seen):
                raise DataError(
                    f"modality '{name}' is of another kind than in training: the training cells' "
                    f"values were {kinds[0]}, these cells' are {kinds[1]}; give values of the "
                    "training cells' kind"
                )
            _refuse_negative(name, fitted.kind, seen.smallest)
        columns = _columns_of(fitted.names[fitted.used], name, adata)
        if missing:
            adata = _measured(adata)
        X = matrix(adata)
        plain = not fitted.sparse and isinstance(X, np.ndarray) and X.dtype == np.float32
        if missing or fitted.kind != "scaled" or columns is not None or not plain:
            X = self._values(fitted, X, columns)
        obs = pd.DataFrame(index=adata.obs_names)
        return AnnData(X, obs=obs, var=pd.DataFrame(index=fitted.names[fitted.used]))

    def _values(self, fitted: Fitted, X, columns: np.ndarray | None):
        """Filter, step, scale and clip, a block of cells at a time."""
        used, start = np.flatnonzero(fitted.used), 0
        parts = [sp.csr_matrix((0, len(used)), dtype=np.float32)]
        out = np.empty((0 if fitted.sparse else X.shape[0], len(used)), np.float32)
        for block in _blocks(X, columns):
            block = self._scaled(step(fitted.fill(block, used), fitted), fitted)
            if fitted.sparse:
                parts.append(sp.csr_matrix(block, dtype=np.float32))
            else:
                out[start : start + block.shape[0]] = block
            start += block.shape[0]
        return sp.vstack(parts, format="csr") if fitted.sparse else out

    def _scaled(self, block, fitted: Fitted):
        if sp.issparse(block) and not fitted.sparse:
            block = block.toarray()
        if fitted.kind in AS_IS:
            return block
        block = times_columns(block if fitted.sparse else block - fitted.mean, 1 / fitted.scale)
        low, high = self._limits(fitted)
        if sp.issparse(block):
            return apply(lambda x: np.clip(x, low[block.indices], high[block.indices]), block)
        return np.clip(block, low, high)

    def _limits(self, fitted: Fitted) -> tuple[np.ndarray, np.ndarray]:
        """What each feature is clipped to; always zero, and ±`clip` about the mean, lie within."""
        if fitted.kind == "peaks" or fitted.kind in AS_IS:
            return np.full(len(fitted.mean), -np.inf), np.full(len(fitted.mean), np.inf)
        centre = fitted.mean / fitted.scale if fitted.sparse else np.zeros(len(fitted.mean))
        return np.minimum(centre - self.clip, 0), np.maximum(centre + self.clip, 0)

    def inverse(self, X, modality: str) -> np.ndarray:
        """Take scaled values (n, kept features) back to the units they were measured in.

        Counts and peaks come back for a cell with the training cells' median total, protein for
        one with their median geometric mean; what was binary comes back between 0 and 1. Values
        that `transform` would have clipped are clipped.

        Returns
        -------
        (n, measured features) float32; a feature that did not vary has its training value, one
        that no training cell has is NaN.
        """
        expect_among([modality], self._fitted, "not fitted on")
        fitted = self._fitted[modality]
        if X.ndim != 2 or X.shape[1] != fitted.used.sum():
            raise DataError(
                f"modality '{modality}': values of shape {X.shape}, "
                f"but {fitted.used.sum()} features were kept"
            )
        out = np.empty((X.shape[0], len(fitted.names)), np.float32)
        out[:] = fitted.constant
        low, high = self._limits(fitted)
        start = 0
        for block in _blocks(X):
            block = block.toarray() if sp.issparse(block) else block
            block = np.clip(block, low, high) * fitted.scale
            block = block if fitted.sparse else block + fitted.mean
            out[start : start + len(block), fitted.used] = unstep(block, fitted)
            start += len(block)
        return out

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        """What was fitted, as values that JSON can hold and as arrays; see `from_state`."""
        meta, arrays = {}, {}
        for name, fitted in self._fitted.items():
            held = vars(fitted) | {"names": fitted.names.tolist()}
            arrays |= {f"{name}/{key}": held.pop(key) for key in ARRAYS}
            meta[name] = held
        return {"clip": self.clip, "modalities": meta}, arrays

    @classmethod
    def from_state(cls, meta: Mapping, arrays: Mapping[str, np.ndarray]) -> Transform:
        """Restore what `state` gave; a ValueError where something is missing or does not fit."""
        transform = cls(clip=meta["clip"])
        for name, held in meta["modalities"].items():
            try:
                own = {key: np.asarray(arrays[f"{name}/{key}"]) for key in ARRAYS}
                names = pd.Index(held["names"], dtype=object)
                fitted = Fitted(**{"look": {}} | held | own | {"names": names})
            except (KeyError, TypeError) as error:
                raise ValueError(f"transform of modality '{name}': {error}") from error
            if fitted.kind not in KINDS or not fitted.fits():
                raise ValueError(f"transform of modality '{name}': its values do not fit together")
            transform._fitted[name] = fitted
        return transform


def _columns_of(wanted: pd.Index, name: str, adata: AnnData) -> np.ndarray | None:
    """Columns that hold the wanted features, in that order; None: all, as they are."""
    if adata.var_names.equals(wanted):
        return None
    columns = adata.var_names.astype(str).get_indexer(wanted)
    if len(missing := wanted[columns < 0]):
        raise DataError(
            f"modality '{name}' lacks {len(missing)} of the {len(wanted)} features that the "
            f"training cells had ({some(missing)}); measure, or name, the same features"
        )
    return columns


def _measured(adata: AnnData) -> AnnData:
    """The cells of which some value is not missing; the same object where these are all."""
    empty = [np.isnan(block).all(axis=1) for _, block in row_blocks(matrix(adata))]
    return adata[~np.concatenate(empty)] if np.any(np.concatenate(empty)) else adata


def _blocks(X, columns: np.ndarray | None = None) -> Iterator:
    """Blocks of X in float64, with these columns."""
    for _, block in row_blocks(X):
        yield (block if columns is None else block[:, columns]).astype(np.float64)


def _refuse_negative(name: str, kind: str, smallest: float) -> None:
    if kind in NON_NEGATIVE and smallest < 0:
        raise DataError(
            f"modality '{name}' is taken for {kind}, but has negative values ({smallest:g}); "
            f"state what it is, e.g. Transform(kinds={{'{name}': 'continuous'}})"
        )
