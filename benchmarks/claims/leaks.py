"""What each leak of the published protocol is worth: the same trained model, scored many ways.

A training is one setting of the ``paper`` preset; a scoring switches one leak of the published
scoring off. Records carry both, and the epoch, in the method's name: ``training | scoring |
epoch``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.common import trained
from benchmarks.record.collect import BOOK
from scmoe import paper, plot
from scmoe.baselines import CoordinateNeighbours
from scmoe.colours import FAINT
from scmoe.config import Config, preset
from scmoe.data import Split, load
from scmoe.metrics import COLUMNS, NAMES, evaluate
from scmoe.model import ScMoE
from scmoe.record import Run

PUBLISHED, VALIDATION = "published", "validation cells held out"
SOFTMAX, LOGITS, BLOCKS = "supervised", "supervised, on logits", "supervised, held-out block"
AS_PUBLISHED, COORDINATES = "as published", "coordinates alone"
LAST, TEST_CHOSEN, VALIDATION_CHOSEN = "last", "test-chosen", "validation-chosen"
SCORINGS = {  # one leak off at a time, then all that scoring can switch off
    AS_PUBLISHED: {},
    "target zeroed": {"reading": "target zeroed"},
    "others zeroed": {"reading": "others zeroed"},
    "others masked": {"reading": "alone"},
    "scaled by training cells": {"own_scaling": False},
    "test cells only": {"score_training_cells": False},
    "all of these": {"reading": "alone", "own_scaling": False, "score_training_cells": False},
}
FOLDS = {"patchseq": 9}  # the published code's; the first elsewhere
EPOCHS = {VALIDATION: 100, SOFTMAX: 60, LOGITS: 60, BLOCKS: 60}  # the preset's own otherwise
QUICK_EPOCHS = 20
METRICS = ["accuracy", "ari", "nmi", "r2", "training_loss"]
TITLES = NAMES | {"r2_off_diag": "R², pairs i < j"}


@dataclass(frozen=True)
class Training:
    """One model to train."""

    name: str
    dataset: str
    seed: int
    epochs: int | None = None

    @property
    def task(self) -> str:
        """Groups are learned, or found."""
        return "supervised" if self.name in (SOFTMAX, LOGITS, BLOCKS) else "unsupervised"

    @property
    def fold(self) -> int | str:
        """The published code's fold, or a fifth of the tissue for each seed."""
        return f"block-{self.seed % 5}" if self.name == BLOCKS else FOLDS.get(self.dataset, 0)

    @property
    def config(self) -> Config:
        """The paper preset, with what this training changes."""
        config = preset(self.dataset, "paper")
        config = config.replace(epochs=self.epochs or EPOCHS.get(self.name, config.train.epochs))
        if self.name == VALIDATION:  # the epoch with the least loss is kept beside the test-chosen
            config = config.replace(hold_out=True, patience=config.train.epochs)
        if self.task == "supervised":
            config = config.replace(test_chooses_epoch=False)
        return config.replace(ce_on_softmax=False) if self.name == LOGITS else config


def measure(run: Run) -> pd.DataFrame:
    """Train and score everything the profile asks for; what is trained already is loaded.

    Quick: one seed and a few epochs on DBiT-seq. Full: five seeds; Patch-seq as published only.
    """
    names = (PUBLISHED, VALIDATION, SOFTMAX, LOGITS, BLOCKS)
    seeds, epochs = range(5), run.epochs
    if run.profile == "quick":
        seeds, epochs = [run.seed], run.epochs or QUICK_EPOCHS
    trainings = [Training(name, "dbitseq", seed, epochs) for name in names for seed in seeds]
    if run.profile == "full":
        trainings += [Training(PUBLISHED, "patchseq", seed, epochs) for seed in seeds]
    tables = []
    for its in trainings:
        split = load(its.dataset, its.fold, its.seed, run.data_root, None, run.allow_standin)
        folder = run.out_dir / f"{its.dataset}-{its.name}-{its.seed}".replace(" ", "_")
        model = ScMoE(its.task, its.config, its.seed)
        tables.append(score(its, trained(model, split, folder, run.device), split))
    return pd.concat(tables, ignore_index=True)


def score(training: Training, model, split: Split) -> pd.DataFrame:
    """Score a trained model in every way that its training is for."""
    tables, published = [], dict(SCORINGS)
    if not model.config.train.score_training_cells:
        published.pop("test cells only")
    if training.name == PUBLISHED:
        tables += [_scored(training, model, split, name, LAST) for name in published]
        chosen = (AS_PUBLISHED, "target zeroed", "others zeroed")
        tables += [_scored(training, model, split, name, TEST_CHOSEN) for name in chosen]
    elif training.name == VALIDATION:
        tables.append(_scored(training, model, split, AS_PUBLISHED, VALIDATION_CHOSEN))
        tables.append(_scored(training, model, split, AS_PUBLISHED, TEST_CHOSEN))
        last = tables[0].query("metric == 'ari'").assign(value=model.history_["watched"].iloc[-1])
        tables.append(last.assign(method=_method(training.name, AS_PUBLISHED, LAST)))
    else:
        tables.append(_scored(training, model, split, AS_PUBLISHED, LAST))
        loss = tables[0].iloc[:1].assign(metric="training_loss")
        tables.append(loss.assign(value=model.history_["group"].iloc[-1]))
        if "spatial" in split.test.obsm and training.name != LOGITS:
            neighbours = CoordinateNeighbours(seed=training.seed).fit(split)
            method = _method(training.name, COORDINATES, LAST)
            tables.append(evaluate(neighbours, split.test).assign(method=method, protocol="paper"))
    records = pd.concat(tables, ignore_index=True)
    return records[records["metric"].isin(METRICS)][COLUMNS]


def _scored(training, model, split, scoring, epoch) -> pd.DataFrame:
    return paper.score_once(
        model, split, _method(training.name, scoring, epoch), epoch == TEST_CHOSEN,
        r2_upper_pairs_only=False, **SCORINGS[scoring],
    )  # fmt: skip


def _method(training: str, scoring: str, epoch: str) -> str:
    return " | ".join([training, scoring, epoch])


def tidy(records: pd.DataFrame) -> pd.DataFrame:
    """Give one value per training, scoring, epoch, seed and metric.

    R² becomes ``r2``, the mean over all ordered pairs, and ``r2_off_diag``, the published code's,
    over the pairs whose target comes before their source.
    """
    parts = records["method"].str.split(" | ", regex=False, expand=True)
    table = records.assign(training=parts[0], scoring=parts[1], epoch=parts[2])
    order, names = table["modalities"].str.split("+"), ["target_modality", "source_modality"]
    ways = zip(order, *(table[name] for name in names), strict=True)
    before = [t in read and read.index(t) < read.index(s) for read, t, s in ways]
    keys = ["dataset", "training", "scoring", "epoch", "metric", "seed"]
    both = pd.concat([table, table[before].assign(metric="r2_off_diag")])
    return both.groupby(keys, sort=False)["value"].mean().reset_index()


def _rows(table: pd.DataFrame, chosen: Mapping) -> pd.DataFrame:
    return table[np.logical_and.reduce([table[k] == v for k, v in chosen.items()])]


def spread(table: pd.DataFrame, **chosen) -> pd.Series:
    """Mean, standard deviation over seeds (NaN for one) and number of some rows of `tidy`."""
    return _rows(table, chosen)["value"].agg(["mean", "std", "count"])


def beside_published_code(table: pd.DataFrame) -> pd.DataFrame:
    """Set ours beside what the published code scored, where both were measured.

    ``agrees``: the means differ by no more than twice the standard error of their difference, from
    the larger of the two spreads over seeds; None where neither has a spread.
    """
    rows = []
    for row in pd.read_csv(BOOK / "published_code.csv", comment="#").itertuples():
        ours = spread(table, dataset=row.dataset, training=PUBLISHED, scoring=row.reading,
                      epoch=row.epoch, metric=row.metric)  # fmt: skip
        if not ours["count"]:
            continue
        sd = np.nanmax([row.sd, ours["std"], 0])
        error = sd * math.sqrt(1 / row.n + 1 / ours["count"])
        agrees = None if not sd else bool(abs(ours["mean"] - row.mean) <= 2 * error)
        rows.append((row.dataset, row.metric, row.epoch, row.reading, ours["mean"], ours["std"],
                     int(ours["count"]), row.mean, row.sd, row.n, agrees))  # fmt: skip
    names = ["dataset", "metric", "epoch", "reading", "ours", "sd", "seeds", "published code",
             "its sd", "its seeds", "agrees"]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def sizes(table: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Give, leak by leak, a score with the leak and without it, paired by seed."""
    base = {"training": PUBLISHED, "scoring": AS_PUBLISHED, "epoch": LAST}
    held = {"training": VALIDATION, "scoring": AS_PUBLISHED, "epoch": TEST_CHOSEN}
    softmax = base | {"training": SOFTMAX}
    place = softmax | {"scoring": COORDINATES}
    trained_on, alone = "own scaling → training cells'", "training and test cells → test"
    leaks = [  # name, metric, with it, and what is other without it
        ("target read → zeroed", "r2", base, {"scoring": "target zeroed"}),
        ("target read → source alone", "r2", base, {"scoring": "others masked"}),
        ("pairs i < j → all pairs", "r2_off_diag", base, {"metric": "r2"}),
        (trained_on, "r2", base, {"scoring": "scaled by training cells"}),
        (trained_on, "ari", base, {"scoring": "scaled by training cells"}),
        (alone, "ari", base, {"scoring": "test cells only"}),
        (alone, "r2", base, {"scoring": "test cells only"}),
        ("all of the above", "r2_off_diag", base, {"scoring": "all of these", "metric": "r2"}),
        ("epoch: by test → by validation cells", "ari", held, {"epoch": VALIDATION_CHOSEN}),
        ("random pixels → held-out block", "accuracy", softmax, {"training": BLOCKS}),
        ("the same, coordinates alone", "accuracy", place, {"training": BLOCKS}),
        ("cross-entropy on softmax → on logits", "accuracy", softmax, {"training": LOGITS}),
    ]
    rows = []
    for name, metric, leaky, other in leaks:
        leaky = {"dataset": dataset, "metric": metric} | leaky
        pair = [_rows(table, c).set_index("seed")["value"] for c in (leaky, leaky | other)]
        both = pd.concat(pair, axis=1, keys=["with", "without"]).dropna()
        if len(both):
            change = both["without"] - both["with"]
            values = (both["with"].mean(), both["without"].mean(), change.mean(), change.std())
            rows.append((name, metric, *values, len(both)))
    names = ["leak", "metric", "with it", "without", "change", "sd of change", "seeds"]
    return pd.DataFrame(rows, columns=names)


def with_and_without(found: pd.DataFrame, title: str) -> Figure:
    """Draw the scores of `sizes`; bars are standard deviations of the change over seeds."""
    fig, (ax,) = plot.figure(title, height=0.9 + 0.34 * len(found))
    rows, without = np.arange(len(found))[::-1], found["without"].clip(lower=-1)
    ax.hlines(rows, found["with it"], without, color=FAINT, lw=1.2, zorder=1)
    ax.errorbar(without, rows, xerr=found["sd of change"].fillna(0), fmt="o", color="#332288", ms=7,
                label="without it")  # fmt: skip
    ax.plot(found["with it"], rows, "s", color="#CC6677", ms=7, label="with the leak")
    for row, value in zip(rows, found["without"], strict=True):
        if value < -1:
            ax.annotate(f"{value:.1f}", (-1, row), (0, 6), textcoords="offset points", fontsize=9)
    ax.set_yticks(rows, found["leak"] + " (" + found["metric"].map(TITLES) + ")")
    ax.axvline(0, color=FAINT, lw=0.8, ls=":")
    ax.set(ylim=(-0.6, len(found) - 0.4), xlabel="score")
    return plot.legend(fig, 2)


def grid(records: pd.DataFrame, dataset: str, scoring: str) -> pd.DataFrame:
    """Give R² of every ordered pair, target × source, mean over seeds, of one scoring."""
    method = _method(PUBLISHED, scoring, LAST)
    rows = _rows(records, {"dataset": dataset, "metric": "r2", "method": method})
    names = rows["modalities"].iloc[0].split("+")
    wide = rows.pivot_table(index="target_modality", columns="source_modality", values="value")
    return wide.reindex(index=names, columns=names).rename_axis(index=None, columns=None)


def floor(n_groups: int) -> float:
    """Least cross-entropy of softmax outputs: ``log(1 + (C - 1) / e)``."""
    return math.log(1 + (n_groups - 1) / math.e)
