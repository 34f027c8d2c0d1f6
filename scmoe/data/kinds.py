"""What a modality's values are: counts, log-normalised, protein, peaks, binary or continuous."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
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
LOG_SCALE_LIMIT = 20.0  # log(1 + x) of any number of molecules stays below
LOG_SCALE_ZEROS = 0.05  # log-normalised molecules have some zeros; other measurements rarely do


@dataclass
class Summary:
    """What one pass over the values finds."""

    smallest: float = np.inf
    largest: float = -np.inf
    whole: bool = True
    n_stored: int = 0
    n_zero: int = 0
    n_entries: int = 0

    @property
    def zeros(self) -> float:
        """Share of entries that are zero."""
        return (self.n_entries - self.n_stored + self.n_zero) / self.n_entries


def summarise(X) -> Summary:
    """Range, wholeness and share of zeros of a matrix, a block at a time."""
    summary = Summary(n_entries=int(np.prod(X.shape)))
    for _, block in row_blocks(X):
        stored = values(block)
        summary.n_stored += stored.size
        if stored.size:
            summary.smallest = min(summary.smallest, float(stored.min()))
            summary.largest = max(summary.largest, float(stored.max()))
            summary.n_zero += int((stored == 0).sum())
            if summary.whole and stored.dtype.kind == "f":
                summary.whole = bool((stored == np.rint(stored)).all())
    if summary.n_stored < summary.n_entries:
        summary.smallest = min(summary.smallest, 0.0)
        summary.largest = max(summary.largest, 0.0)
    return summary


def recognise(name: str, adata: AnnData, X, stated: str | None) -> tuple[str, str, float]:
    """The kind of a modality, why it was taken for that, and its smallest value.

    What is stated wins (by the caller, else by `adata.uns["kind"]`); otherwise the training
    cells' values decide, and for whole numbers the modality's or the features' names.
    """
    seen = summarise(X)
    noted = adata.uns.get("kind")
    if stated is not None:
        return stated, "stated", seen.smallest
    if isinstance(noted, str) and noted in KINDS:
        return noted, "stated in uns['kind']", seen.smallest
    if seen.smallest < 0:
        return "continuous", "recognised: negative values", seen.smallest
    if seen.whole and seen.largest <= 1:
        return "binary", "recognised: only 0 and 1", seen.smallest
    if seen.whole:
        kind, called = _counted(name, adata)
        return kind, f"recognised: whole numbers, {called}", seen.smallest
    said = f"recognised: {seen.zeros:.0%} zeros, largest value {seen.largest:.3g}"
    on_log_scale = seen.zeros >= LOG_SCALE_ZEROS and seen.largest <= LOG_SCALE_LIMIT
    return "normalised" if on_log_scale else "continuous", said, seen.smallest


def _counted(name: str, adata: AnnData) -> tuple[str, str]:
    """Whether whole numbers count transcripts, proteins or peaks, by what things are called."""
    types = set(adata.var["feature_types"].astype(str)) if "feature_types" in adata.var else set()
    if len(types) == 1 and types <= set(FEATURE_TYPES):
        return FEATURE_TYPES[min(types)], f"features of type '{min(types)}'"
    if re.search(r"atac|peak|chromatin", name.lower()):
        return "peaks", f"modality called '{name}'"
    if re.search(r"prot|adt|antibod|cite|surface", name.lower()):
        return "protein", f"modality called '{name}'"
    if all(PEAK_NAME.match(str(feature)) for feature in adata.var_names[:20]):
        return "peaks", f"features called like '{adata.var_names[0]}'"
    return "counts", "nothing says protein or peaks"
