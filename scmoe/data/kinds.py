"""What a modality's values are: counts, log-normalised, protein, peaks, binary or continuous."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from scmoe.data.blocks import row_blocks, values

KINDS = {  # kind: what Transform does after the kind's own step
    "counts": "log-normalised, standardised",
    "normalised": "standardised",
    "protein": "centred log-ratio, standardised",
    "peaks": "TF-IDF, one scale for all peaks",
    "binary": "0/1, as is",
    "continuous": "standardised",
    "scaled": "as is",
}
NON_NEGATIVE = ("counts", "protein", "peaks", "binary")
LOG_SCALE = ("counts", "normalised", "protein")  # after their step
AS_IS = ("binary", "scaled")
FEATURE_TYPES = {"Antibody Capture": "protein", "Peaks": "peaks", "Gene Expression": "counts"}
PEAK_NAME = re.compile(r"^(chr)?[\w.]+[:_-]\d+[_-]\d+$", re.IGNORECASE)
TRANSCRIPTS = ("rna", "gex", "gene", "genes", "expression", "transcripts", "transcriptome")
PROTEINS = re.compile(r"prots?$|protein|adts?$|antibod|surface")
PANEL = 1000  # antibodies that one assay counts stay below
LOG_SCALE_LIMIT = 20.0  # log(1 + x) of any number of molecules stays below
LOG_SCALE_ZEROS = 0.05  # log-normalised molecules have some zeros; other measurements rarely do
SEEN_OFTEN = 0.05  # share of training values that makes a kind's mark worth looking for
BY_CHANCE = 1e-6  # less probable than this is no chance
ENOUGH = 20  # values that are not all whole by chance where most are fractions


@dataclass
class Summary:
    """What one pass over the values finds; missing ones (NaN) are counted and left out."""

    n_entries: int
    smallest: float = np.inf
    largest: float = -np.inf
    n_missing: int = 0
    n_nonzero: int = 0
    n_broken: int = 0  # not whole
    n_above: int = 0  # above one

    @property
    def whole(self) -> bool:
        """Whether all values are whole numbers."""
        return not self.n_broken

    @property
    def zeros(self) -> float:
        """Share of measured entries that are zero."""
        n = self.n_entries - self.n_missing
        return (n - self.n_nonzero) / n

    def look(self) -> dict[str, float]:
        """What new cells' values are compared with (see `other_kind`)."""
        n = max(self.n_nonzero, 1)
        return {
            "smallest": self.smallest,
            "largest": self.largest,
            "broken": self.n_broken / n,
            "above_one": self.n_above / n,
        }


def summarise(X) -> Summary:
    """Range, wholeness and share of zeros of a matrix, a block at a time."""
    seen, n_stored = Summary(int(np.prod(X.shape))), 0
    for _, block in row_blocks(X):
        if sp.issparse(block):
            block.check_format()  # of a file, nobody has before
        stored = values(block)
        if stored.dtype.kind == "f" and (missing := np.isnan(stored)).any():
            seen.n_missing += int(missing.sum())
            stored = stored[~missing]
        if not stored.size:
            continue
        n_stored += stored.size
        seen.smallest = min(seen.smallest, float(stored.min()))
        seen.largest = max(seen.largest, float(stored.max()))
        seen.n_nonzero += int(np.count_nonzero(stored))
        seen.n_above += int((stored > 1).sum())
        if stored.dtype.kind == "f":
            seen.n_broken += int((stored != np.rint(stored)).sum())
    if n_stored + seen.n_missing < seen.n_entries:  # zeros that a sparse matrix does not store
        seen.smallest, seen.largest = min(seen.smallest, 0.0), max(seen.largest, 0.0)
    return seen


def other_kind(kind: str, look: Mapping[str, float], new: Summary) -> tuple[str, str] | None:
    """What the training cells' values look like and what the new ones do, where these differ.

    Says so only where it cannot be chance: counts have no fractions; so many non-zero values of a
    mostly fractional modality are not all whole, and of counts not all one.
    """
    n = new.n_nonzero
    if not look or not n:
        return None
    if kind in NON_NEGATIVE:
        counted = kind != "binary" and look["above_one"] >= SEEN_OFTEN
        differs = (
            (not look["broken"] and new.n_broken)
            or (not look["broken"] and not look["above_one"] and new.largest > 1)
            or (counted and new.largest <= 1 and (1 - look["above_one"]) ** n < BY_CHANCE)
        )
    else:
        off_scale = new.largest > LOG_SCALE_LIMIT or new.smallest < 0
        on_scale = look["smallest"] >= 0 and look["largest"] <= LOG_SCALE_LIMIT
        on_scale = on_scale and kind == "normalised"
        differs = (on_scale and off_scale) or (look["broken"] > 0.5 and new.whole and n >= ENOUGH)
    return (_called(look), _called(new.look())) if differs else None


def _called(look: Mapping[str, float]) -> str:
    """Name what values look like, whatever is counted."""
    if look["smallest"] < 0:
        return "continuous (some are negative)"
    if not look["broken"]:
        return "counts (whole numbers)" if look["above_one"] else "binary (0 and 1)"
    return "log-normalised" if look["largest"] <= LOG_SCALE_LIMIT else "continuous"


def recognise(name: str, adata: AnnData, seen: Summary, stated: str | None) -> tuple[str, str]:
    """The kind of a modality, and why it was taken for that.

    What is stated wins (by the caller, else by `adata.uns["kind"]`); otherwise the training
    cells' values decide, and for what whole numbers count the features, then the modality's name.
    """
    noted = adata.uns.get("kind")
    if stated is not None:
        return stated, "stated"
    if isinstance(noted, str) and noted in KINDS:
        return noted, "stated in uns['kind']"
    if seen.smallest < 0:
        return "continuous", "recognised: negative values"
    if seen.whole and seen.largest <= 1:
        return "binary", "recognised: only 0 and 1"
    if seen.whole:
        kind, called = _counted(name, adata)
        return kind, f"recognised: whole numbers, {called}"
    said = f"recognised: {seen.zeros:.0%} zeros, largest value {seen.largest:.3g}"
    on_log_scale = seen.zeros >= LOG_SCALE_ZEROS and seen.largest <= LOG_SCALE_LIMIT
    return "normalised" if on_log_scale else "continuous", said


def _counted(name: str, adata: AnnData) -> tuple[str, str]:
    """Whether whole numbers count transcripts, proteins or peaks, by what things are called."""
    types = set(adata.var["feature_types"].astype(str)) if "feature_types" in adata.var else set()
    if len(types) == 1 and types <= set(FEATURE_TYPES):
        return FEATURE_TYPES[min(types)], f"features of type '{min(types)}'"
    if all(PEAK_NAME.match(str(feature)) for feature in adata.var_names[:20]):
        return "peaks", f"features called like '{adata.var_names[0]}'"
    words = re.findall("[a-z]+", name.lower())
    if not any(word.endswith(TRANSCRIPTS) for word in words):
        if any(word.endswith("atac") or word.startswith(("peak", "chromatin")) for word in words):
            return "peaks", f"modality called '{name}'"
        if adata.n_vars <= PANEL and any(PROTEINS.match(word) for word in words):
            return "protein", f"modality called '{name}'"
    return "counts", "nothing says protein or peaks"
