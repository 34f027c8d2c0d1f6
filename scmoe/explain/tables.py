"""Tables of the interpretability page."""

from __future__ import annotations

import pandas as pd
from IPython.display import HTML

from scmoe import report
from scmoe.explain import faithfulness, reference
from scmoe.explain.attribution import METHODS
from scmoe.explain.study import Study

PROTOCOLS = ("strict", "paper")  # as they are stored
COLUMNS = {
    "seconds": "s / 1000 cells", "peak_mb": "memory (MB)", "budget": "budget",
    "split_half": "split-half", "cells": "cells", "deletion": "deletion", "insertion": "insertion",
    "infidelity": "infidelity", "sensitivity": "sensitivity",
    "agreement": "agreement", "overlap": "top-20 overlap",
    "stability": "stable over seeds", "stability_folds": "over folds",
}  # fmt: skip


def agreement(study: Study) -> pd.DataFrame:
    """Rank correlation of every two methods, columns numbered in the order of the rows."""
    table = faithfulness.agreement(study.explanations)
    numbers = range(1, len(table) + 1)
    rows = [f"{i} {METHODS[name]}" for i, name in zip(numbers, table.index, strict=True)]
    return table.set_axis(rows).set_axis(list(numbers), axis=1)


def methods_table(study: Study, caption: str = "Every method on the same test cells") -> HTML:
    """Show every method's scores."""
    table = study.table.reindex(columns=list(COLUMNS)).rename(columns=COLUMNS, index=METHODS)
    for what in ("deletion", "insertion"):
        table[what] = [
            f"{row[what]:.3f} ({row[f'{what}_low']:.3f} to {row[f'{what}_high']:.3f})"
            for _, row in study.table.iterrows()
        ]
    table = table.astype({"cells": int, "budget": int}).dropna(axis=1, how="all")
    return report.table(table, f"{caption}; in brackets 95 % intervals", 2)


def versus_table(study: Study) -> HTML:
    """Show the primary method against SHAP: how many times cheaper, and by how much better."""
    table = pd.DataFrame({"times cheaper": study.versus["cheaper"].map("{:,.0f}".format)})
    for what in ("deletion", "insertion"):
        table[f"{what} less SHAP's"] = [
            f"{row[what]:+.3f} ({row[f'{what}_low']:+.3f} to {row[f'{what}_high']:+.3f})"
            for _, row in study.versus.iterrows()
        ]
    return report.table(table.rename(index=METHODS), "The primary method against SHAP")


def of_record(dataset: str) -> HTML:
    """Show the stored scores of a data set in every protocol that there is."""
    shown = [
        methods_table(study, f"Table of record: {protocol} protocol").data
        for protocol in PROTOCOLS
        if (study := reference.stored(dataset, protocol)) is not None
    ]
    return HTML("".join(shown) or "No scores of this data set are stored with the book.")
