"""The honest questions, asked of any model: a tidy table, and a page to attach to a paper."""

from __future__ import annotations

import copy
import html
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
from mudata import MuData
from scipy import sparse
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scmoe import baselines
from scmoe.data import Split
from scmoe.data.blocks import matrix, row_blocks, values
from scmoe.data.cells import keep, make_mudata, quiet
from scmoe.data.check import expect, expect_known, expect_seed
from scmoe.data.steps import apply, moments, totals
from scmoe.keep import digest
from scmoe.metrics import expected_calibration_error

COLUMNS = ["question", "check", "value", "low", "high", "verdict", "note"]
PASSES, FAILS, UNCLEAR, UNTESTED = "passes", "fails", "unclear", "not testable"
SAME = 1e-3  # answers differ where they differ by more than this share of their spread
N_DRAWS = 1000  # of the bootstrap over cells
READS = "Does a translation read its target?"
NEW = "Are the test cells new?"
DEPENDS = "Does an answer depend on what it should not?"
LEAKS = "Do test cells reach the fit?"
SHORTCUT = "Does a shortcut do as well?"
SIMPLE = "Is it better than simple methods?"
CALIBRATED = "Are its probabilities calibrated?"
COST = "What does it cost?"
REPLACED = {  # by what a modality is replaced, of random numbers and its dense values
    "other cells' values": lambda rng, X: rng.permuted(X, axis=0),
    "noise": lambda rng, X: rng.normal(100, 100, X.shape),
    "zeros": lambda rng, X: np.zeros_like(X),
    "missing values": lambda rng, X: np.full_like(X, np.nan),
    "nothing": None,
}


def audit(
    model,
    split: Split,
    rivals: Sequence | None = None,
    batch_key: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Ask of any model what a sceptical reviewer would; nothing of `split` is changed.

    Parameters
    ----------
    model
        Anything with some of `fit(split)`, `predict(mdata)` and `translate(mdata, target, source)`,
        fitted or not, or a pair of functions `(predict, translate)`, one of which may be None.
        `predict` gives each cell's group, `(n_cells,)`, or a table by cell with the column `group`
        and a probability for each group; `translate` gives `(n_cells, n_features)` in measured
        units. What has `fit` is copied and fitted up to four times; what has none cannot be asked
        about leaks.
    rivals
        Methods to hold it against, not yet fitted; default: logistic regression of each modality
        and of all, neighbours in the tissue where cells have coordinates, ridge regression.
    batch_key
        Column of obs that says which batch, donor or slide a cell is of.
    seed
        Of what is replaced, and of the bootstrap.

    Returns
    -------
    One row per check: `question`, `check`, `value` with its 95 % interval (`low`, `high`; over test
    cells, by bootstrap), `verdict` (passes, fails, unclear, not testable; empty for costs) and
    `note`. `write_report` makes a page of it.

    Raises
    ------
    TypeError
        If `model` can neither predict nor translate.
    DataError
        If the split has no such batch column.
    """
    expect_seed(seed)
    if batch_key is not None:
        expect_known("batch_key", batch_key, list(split.test.obs))
    subject = _Subject(model)
    with quiet():
        start = time.perf_counter()
        case = _Case(subject.fit(split), split, np.random.default_rng(seed))
        seconds = time.perf_counter() - start if subject.can_fit else np.nan
        rivals = _plain(split) if rivals is None else rivals
        rows = [*_new(split), *_reads(case), *_depends(case), *_leaks(case, subject)]
        rows += [*_shortcuts(case, batch_key), *_simple(case, rivals), *_calibrated(case)]
        rows += _cost(case, seconds)
    table = pd.DataFrame(rows, columns=COLUMNS)
    cells = f"{split.train.n_obs} training and {split.test.n_obs} test cells"
    table.attrs = {"model": subject.name, "data": str(split.name), "cells": cells}
    return table


def write_report(table: pd.DataFrame, path: str | Path) -> Path:
    """Write what `audit` gave as a page; a `path` not of .html or .md is a `DataError`."""
    path, told = Path(path), table.attrs
    expect(path.suffix in (".html", ".md"), "path", str(path), "a name that ends in .html or .md")
    counts = table["verdict"].replace("", "cost").value_counts()
    parts = [f"{told['data']}, {told['cells']}", *(f"{n} {what}" for what, n in counts.items())]
    caption = html.escape(f"Audit of {told['model']}: {'; '.join(parts)}.")
    if path.suffix == ".md":
        plain = table.map(lambda v: html.escape(v).replace("|", "&#124;") if type(v) is str else v)
        shown = plain.to_markdown(index=False, floatfmt=".3g", missingval="")
        page = f"{caption}\n\n{shown}\n"
    else:
        style = table.style.hide().set_caption(caption)
        page = style.format(precision=3, na_rep="", escape="html").to_html(doctype_html=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


class _Subject:
    """A model as the audit sees it: answers of known shape, whatever it gives."""

    def __init__(self, model):
        pair = isinstance(model, tuple)
        ways = model if pair else (getattr(model, way, None) for way in ("predict", "translate"))
        self.model, (self.tells, self.carries) = model, ways
        self.can_fit = not pair and hasattr(model, "fit")
        self.name = str(getattr(model, "method", type(model).__name__))
        if self.tells is None and self.carries is None:
            raise TypeError(
                f"{type(model).__name__} has neither predict(mdata) nor "
                "translate(mdata, target, source); give an object with one of them, or a pair of "
                "functions (predict, translate)"
            )

    def fit(self, split: Split) -> _Subject:
        """A fitted copy; itself where nothing can be fitted."""
        if not self.can_fit:
            return self
        model = copy.deepcopy(self.model)
        fitted = model.fit(split)
        return _Subject(model if fitted is None else fitted)

    def predict(self, mdata: MuData) -> tuple[np.ndarray, pd.DataFrame | None]:
        """Groups `(n_cells,)` as text, and probabilities by group where there are any."""
        told = self.tells(mdata)
        if not isinstance(told, pd.DataFrame):
            return np.asarray(told).astype(str), None
        table = told.drop(columns="group")
        return told["group"].to_numpy().astype(str), table if table.shape[1] else None

    def translate(self, mdata: MuData, target: str, source: str) -> np.ndarray:
        return _array(self.carries(mdata, target=target, source=source))


class _Case:
    """A fitted model and the cells it is asked about."""

    def __init__(self, subject: _Subject, split: Split, rng: np.random.Generator):
        self.subject, self.split, self.rng, self.test = subject, split, rng, split.test
        can = subject.carries is not None
        self.pairs = list(permutations(split.modalities, 2)) if can else []  # (target, source)
        clusters = getattr(subject.model, "task", "supervised") == "unsupervised"
        known = split.label_key is not None and subject.tells is not None and not clusters
        # of each test cell; None where the model names no groups, or nobody knows them
        self.truth = self.test.obs[split.label_key].to_numpy().astype(str) if known else None

    def answers(self, subject: _Subject, mdata: MuData) -> list[np.ndarray]:
        """All that a model says of cells."""
        given = []
        if subject.tells is not None:
            groups, table = subject.predict(mdata)
            given.append(groups if table is None else table.to_numpy(float))
        return given + [subject.translate(mdata, *pair) for pair in self.pairs]

    def moved(self, subject: _Subject, cells: MuData, rows=slice(None)) -> float:
        """Share of these rows of the test cells of which a model now says something else."""
        both = zip(self.said, self.answers(subject, cells), strict=True)
        return max(_difference(usual[rows], now) for usual, now in both)

    @cached_property
    def said(self) -> list[np.ndarray]:
        """What it says of the test cells as they are."""
        return self.answers(self.subject, self.test)

    @cached_property
    def right(self) -> np.ndarray:
        """Test cells whose group it names."""
        return self.subject.predict(self.test)[0] == self.truth

    @cached_property
    def scales(self) -> dict[str, tuple[bool, np.ndarray, np.ndarray]]:
        """By modality: is it compared on a log scale, and its training mean and spread there."""
        found = {}
        for name, adata in self.split.train.mod.items():
            logs = all(not (values(block) < 0).any() for block in _blocks(adata))
            blocks = (apply(np.log1p, b) if logs else b for b in _blocks(adata))
            mean, spread, _ = moments(blocks, adata.n_vars)
            found[name] = logs, mean, np.where(spread > 0, spread, np.inf)
        return found

    def scaled(self, X: np.ndarray, target: str) -> np.ndarray:
        """Values in units of the training cells' spread about their mean; the mean where NaN."""
        logs, mean, spread = self.scales[target]
        return np.nan_to_num(((np.log1p(np.maximum(X, 0)) if logs else X) - mean) / spread)

    def residuals(self, subject: _Subject) -> tuple[np.ndarray, np.ndarray]:
        """Squared errors and squared deviations of each test cell, both `(n_cells, n_pairs)`.

        What is not answered counts as the training mean, what was not measured as nothing.
        """
        errors, deviations = np.zeros((2, self.test.n_obs, len(self.pairs)))
        for k, (target, source) in enumerate(self.pairs):
            rows = self.test.obs_names.get_indexer(self.test[target].obs_names)
            measured = _array(matrix(self.test[target])[:])
            told = self.scaled(subject.translate(self.test, target, source)[rows], target)
            truth, known = self.scaled(measured, target), ~np.isnan(measured)
            errors[rows, k] = np.square(known * (truth - told)).sum(1)
            deviations[rows, k] = np.square(truth).sum(1)
        return errors, deviations

    def ahead(self, question: str, check: str, gain: Callable[[np.ndarray], float], note=""):
        """A row: a gain of weighted test cells, its 95 % bootstrap interval, and what that says."""
        n = self.test.n_obs
        draws = self.rng.multinomial(n, np.full(n, 1 / n), N_DRAWS)
        low, high = np.quantile([gain(weights) for weights in draws], [0.025, 0.975])
        verdict = PASSES if low > 0 else FAILS if high < 0 else UNCLEAR
        return _row(question, check, gain(np.ones(n)), verdict, note, low, high)

    def ahead_of(self, question: str, name: str, theirs: np.ndarray) -> dict:
        gain, check = self.right.astype(float) - theirs, f"accuracy less that of {name}"
        return self.ahead(question, check, lambda w: float(np.average(gain, weights=w)))


def _plain(split: Split) -> list:
    """Simple methods of groups and translations."""
    several = len(split.modalities) > 1
    methods = [baselines.Ridge()] if several else []
    if split.label_key is not None:
        methods += [baselines.LogisticRegression(modalities=[name]) for name in split.modalities]
        methods += [baselines.LogisticRegression("late")] if several else []
        methods += [baselines.CoordinateNeighbours()] if "spatial" in split.test.obsm else []
    return methods


def _row(question: str, check: str, value=np.nan, verdict="", note="", low=np.nan, high=np.nan):
    return dict(zip(COLUMNS, (question, check, value, low, high, verdict, note), strict=True))


def _none(question: str, check: str, value: float) -> dict:
    return _row(question, check, value, FAILS if value else PASSES)


def _new(split: Split) -> Iterator[dict]:
    """Cells that are both trained on and tested, by name or by all their values."""
    test, others = split.test, (split.train, split.val)
    shared = set(test.obs_names) & {name for part in others for name in part.obs_names}
    yield _none(NEW, "test cells with a training cell's name", len(shared))
    known = {mark for part in others for mark in _prints(part)}
    copies = sum(mark in known for mark in _prints(test))
    yield _none(NEW, "test cells with all values of a training cell", copies)


def _reads(case: _Case) -> Iterator[dict]:
    """Translations of cells whose target was replaced; the first difference of each kind."""
    if not case.pairs:
        yield _row(READS, "every target", verdict=UNTESTED, note="it does not translate")
        return
    usual = dict(zip(case.pairs, case.said[-len(case.pairs) :], strict=True))
    for what, made in REPLACED.items():
        share, refused = np.nan, ""
        for target, source in case.pairs:
            if made is None:  # cells that have nothing else are left out
                cells = keep(case.test, [name for name in case.split.modalities if name != target])
            else:
                X = made(case.rng, _array(matrix(case.test[target])[:]))
                cells = _edited(case.test, {target: X})
            try:
                told = case.subject.translate(cells, target, source)
            except Exception as error:  # of whatever kind a stranger's model raises
                refused = f"it refuses: {type(error).__name__}"
                continue
            rows = case.test.obs_names.get_indexer(cells.obs_names)
            share = np.nanmax([share, _difference(usual[target, source][rows], told)])
        verdict = FAILS if share > 0 else UNTESTED if refused else PASSES
        yield _row(READS, f"target replaced by {what}: cells that change", share, verdict, refused)


def _depends(case: _Case) -> Iterator[dict]:
    """Answers for the same cells under other names, labels, order and company."""
    test, n = case.test, case.test.n_obs
    half, turned = np.sort(case.rng.permutation(n)[: max(n // 2, 1)]), np.arange(n)[::-1]
    names = pd.Index([f"cell-{i}" for i in range(n)])
    asked = {
        "cells renamed": (_edited(test, names=names), slice(None)),
        "order turned round": (test[turned].copy(), turned),
        "half of the cells left out": (test[half].copy(), half),
    }
    if case.split.label_key is not None:
        asked["labels shuffled"] = (_relabelled(case), slice(None))
    for what, (cells, rows) in asked.items():
        share = case.moved(case.subject, cells, rows)
        yield _none(DEPENDS, f"{what}: cells that change", share)


def _leaks(case: _Case, subject: _Subject) -> Iterator[dict]:
    """What a model says of the test cells when it was fitted beside other ones."""
    if not subject.can_fit:
        yield _row(LEAKS, "test cells replaced", verdict=UNTESTED, note="it has no fit")
        return
    changed = {"values": _drawn(case)}
    if case.split.label_key is not None:
        changed["labels"] = _relabelled(case)
    for what, cells in changed.items():
        share = case.moved(subject.fit(replace(case.split, test=cells)), case.test)
        row = _none(LEAKS, f"fitted beside other {what} of test cells: cells that change", share)
        if share and case.moved(subject.fit(case.split), case.test):
            row |= {"verdict": UNTESTED, "note": "two fits to the same cells differ: fix its seed"}
        yield row


def _shortcuts(case: _Case, batch_key: str | None) -> Iterator[dict]:
    """Neighbours in what should not tell a group as well as a model does."""
    if case.truth is None:
        yield _row(SHORTCUT, "every shortcut", verdict=UNTESTED, note="it names no known groups")
        return
    train, labels = case.split.train, case.split.train.obs[case.split.label_key].astype(str)
    found, amounts = {}, [name for name, (logs, *_) in case.scales.items() if logs]
    if amounts:
        found["library size"] = lambda cells: _sizes(cells, amounts)
    if "spatial" in train.obsm:
        found["coordinates"] = lambda cells: np.asarray(cells.obsm["spatial"], float)
    if batch_key is not None:
        levels = sorted(set(train.obs[batch_key].astype(str)))
        found["batch"] = lambda cells: (
            cells.obs[batch_key].astype(str).to_numpy()[:, None] == levels
        ).astype(float)
    for name, values_of in found.items():
        near = KNeighborsClassifier(min(15, train.n_obs))
        rule = make_pipeline(StandardScaler(), near).fit(values_of(train), labels)
        theirs = rule.predict(values_of(case.test)) == case.truth
        yield case.ahead_of(SHORTCUT, f"{name} alone", theirs)


def _simple(case: _Case, rivals: Sequence) -> Iterator[dict]:
    """Against the best of the rivals on these very test cells, which favours it."""
    fitted = [_Subject(rival).fit(case.split) for rival in rivals]
    if case.truth is not None:
        told = {r.name: r.predict(case.test)[0] == case.truth for r in fitted if r.tells}
        if told:
            best = max(told, key=lambda name: told[name].mean())
            yield case.ahead_of(SIMPLE, best, told[best])
    if case.pairs:
        error, total = case.residuals(case.subject)
        theirs = {r.name: case.residuals(r)[0] for r in fitted if r.carries}
        if theirs:
            best = min(theirs, key=lambda name: (theirs[name].sum(0) / total.sum(0)).mean())
            gain, note = theirs[best] - error, "log(1 + x) where nothing is negative, "
            yield case.ahead(
                SIMPLE, f"mean R² less that of {best}",
                lambda weights: float(np.mean(weights @ gain / (weights @ total))),
                note + "each feature by its training spread",
            )  # fmt: skip


def _calibrated(case: _Case) -> Iterator[dict]:
    """Calibration error beside what chance alone gives a calibrated model on so many cells."""
    table = case.subject.predict(case.test)[1] if case.truth is not None else None
    if table is None:
        yield _row(CALIBRATED, "calibration error", verdict=UNTESTED, note="no probabilities")
        return
    sure = np.clip(table.to_numpy(float).max(1), 0, 1)
    right = table.columns.to_numpy().astype(str)[table.to_numpy().argmax(1)] == case.truth
    chance = [
        expected_calibration_error(case.rng.random(len(sure)) < sure, sure) for _ in range(N_DRAWS)
    ]
    value, most = expected_calibration_error(right, sure), float(np.quantile(chance, 0.95))
    note = "high: what 95 % of calibrated models stay below"
    verdict = PASSES if value <= most else FAILS
    yield _row(CALIBRATED, "calibration error", value, verdict, note, high=most)


def _cost(case: _Case, seconds: float) -> Iterator[dict]:
    start = time.perf_counter()
    case.answers(case.subject, case.test)
    each = (time.perf_counter() - start) / case.test.n_obs * 1000
    yield _row(COST, "seconds to fit", seconds)
    yield _row(COST, "seconds for all answers on 1,000 cells", each)


def _difference(usual: np.ndarray, now: np.ndarray) -> float:
    """Share of cells whose answer is another one."""
    if usual.shape != now.shape:
        return 1.0
    if usual.dtype.kind not in "fiub":
        return float(np.mean(usual != now))
    spread = np.nanstd(usual) if np.isfinite(usual).any() else 0.0
    moved = np.abs(usual - now) > SAME * (spread or 1.0)
    moved |= np.isnan(usual) != np.isnan(now)
    return float(np.mean(moved.reshape(len(usual), -1).any(1)))


def _array(X) -> np.ndarray:
    return np.asarray(X.toarray() if sparse.issparse(X) else X, float)


def _blocks(adata) -> Iterator:
    """Cells of a modality, a block at a time: dense or CSR, float64."""
    return (block.astype(np.float64) for _, block in row_blocks(matrix(adata)))


def _sizes(mdata: MuData, modalities: list[str]) -> np.ndarray:
    """Logarithm of each cell's total of these modalities, `(n_cells, n_modalities)`."""
    found = np.zeros((mdata.n_obs, len(modalities)))
    for k, name in enumerate(modalities):
        rows = mdata.obs_names.get_indexer(mdata[name].obs_names)
        found[rows, k] = np.concatenate([totals(block) for block in _blocks(mdata[name])])
    return np.log1p(np.maximum(np.nan_to_num(found), 0))


def _prints(mdata: MuData) -> list[str]:
    """What tells each cell's values, all modalities together, from other ones."""
    marks = [""] * mdata.n_obs
    for name, adata in mdata.mod.items():
        rows = iter(mdata.obs_names.get_indexer(adata.obs_names))
        for block in _blocks(adata):
            for cell in range(block.shape[0]):
                marks[next(rows)] += digest(name, block[cell])
    return marks


def _edited(mdata: MuData, new: dict | None = None, names: pd.Index | None = None) -> MuData:
    """The cells with other values of some modalities `(n_cells of it, n_features)`, or renamed."""
    mod, names = {}, mdata.obs_names if names is None else names
    for name, adata in mdata.mod.items():
        mod[name] = adata.copy()
        mod[name].obs_names = names[mdata.obs_names.get_indexer(adata.obs_names)]
        if new and name in new:
            X = new[name]
            mod[name].X = sparse.csr_matrix(X) if sparse.issparse(matrix(adata)) else X
    edited = make_mudata(mod, mdata.obs.set_axis(names))
    for key in set(mdata.obsm) - set(mdata.mod):
        edited.obsm[key] = mdata.obsm[key]
    return edited


def _drawn(case: _Case) -> MuData:
    """Test cells whose values are drawn, feature by feature, from a few of them.

    From a few, so that means and spreads differ as well: a model scaled by them is found out.
    """
    made = {}
    for name, adata in case.test.mod.items():
        X = _array(matrix(adata)[:])
        few = case.rng.permutation(len(X))[: max(len(X) // 4, 1)]
        made[name] = np.take_along_axis(X, case.rng.choice(few, X.shape), axis=0)
    return _edited(case.test, made)


def _relabelled(case: _Case) -> MuData:
    cells, key = case.test.copy(), case.split.label_key
    cells.obs[key] = case.rng.permutation(cells.obs[key].to_numpy().astype(str))
    return cells
