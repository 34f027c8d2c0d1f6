"""From a run's numbers to what its page says: sentences and tables.

Nothing here is typed in: each sentence is worded from the numbers of the run at hand.
"""

from __future__ import annotations

import html
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown

from scmoe import plot
from scmoe.colours import in_order, title_of
from scmoe.data import DATASETS, Split, Transform
from scmoe.record import Run
from scmoe.summary import cells_of, scores, translation_grids

if TYPE_CHECKING:  # importing shap takes seconds
    from scmoe.explain import Attributions

SOURCES = {  # data source: (what figures and tables are marked with, what the banner says)
    "zenodo": ("", "the published files"),
    "published": ("", "the published files, by their checksums"),
    "local": ("", "data files found on this machine, not compared with the published ones"),
    "excerpt": ("excerpt of the data", "<strong>an excerpt</strong> of the published data"),
    "simulated": ("simulated cells", "<strong>simulated cells</strong>, whose truth is known"),
    "stand-in": (
        "stand-in: simulated, not measured",
        "<strong>a simulated stand-in</strong>, because the data files are not on this machine: "
        "nothing below says anything about real cells",
    ),
}
NAMES = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1",
    "ari": "ARI", "nmi": "NMI", "ece": "calibration error", "r2": "R²", "r2_median": "median R²",
    "pearson": "correlation", "auroc": "AUROC", "auprc": "AUPRC",
}  # fmt: skip
LINEAR, PUBLISHED = "scMoE linear", "scMoE published, scored as published"  # rows beside ours
ONE_MODALITY = "This run has one modality: there is nothing to translate."
_mark = ""


def mark(split: Split | None) -> str:
    """Mark every figure and table made afterwards, where cells are simulated or an excerpt.

    None takes the mark off.

    Returns
    -------
    Where the cells come from, in words (HTML).
    """
    global _mark
    _mark, words = SOURCES[split.data_source] if split else ("", "")
    plot.style()
    if split is None:
        return words
    return "your own files" if (split.name, split.data_source) == ("own", "local") else words


def banner(run: Run, split: Split) -> HTML:
    """Say where the cells come from and what to know of them; call it before anything is shown.

    Every figure and table made afterwards carries the cells' mark.
    """
    words = mark(split)
    counts = f"{split.train.n_obs} training, {split.val.n_obs} validation, {split.test.n_obs} test"
    facts = [
        f"<strong>Data:</strong> {words} ({counts} cells; fold {split.fold}, seed {split.seed}).",
        f"<strong>Run:</strong> {run.task}, {run.protocol} protocol, {run.profile} profile, "
        f"from {' + '.join(map(title_of, split.modalities))}.",
    ]
    notes = "".join(f"<li>{html.escape(_sentence(note))}</li>" for note in split.notes)
    body = "<br>".join(facts) + (f'<ul style="margin:.4em 0 0">{notes}</ul>' if notes else "")
    return box(body, f"scmoe-{split.data_source}", bool(_mark))


def box(body: str, name: str, loud: bool) -> HTML:
    """Set off what a reader has to know first; `loud` where it limits all that follows."""
    edge, ground = ("#a94900", "#fff4e5") if loud else ("#0a5f96", "#eef5fa")
    style = (
        f"border-left:5px solid {edge};background:{ground};color:#222;padding:.6em 1em;"
        "margin:.5em 0;line-height:1.4;font-size:.95em"
    )
    return HTML(f'<div class="scmoe-banner {name}" style="{style}">{body}</div>')


def table(
    frame: pd.DataFrame, caption: str, digits: int = 3, folded: bool = False, flat: bool = False
) -> HTML:
    """Show a table with a caption that carries the data's mark; it scrolls where it is too wide.

    A `folded` one opens when its caption is clicked, in a box that scrolls where it is too long.
    The rows of a `flat` one are one line each, where their names are not too long for that.
    """
    if flat:
        frame = frame.rename(index=lambda name: fill(str(name), 24))
    content = frame.to_html(
        border=0, na_rep="–", float_format=f"{{:.{digits}f}}".format,
        classes=["scmoe-table", "scmoe-flat"] if flat else "scmoe-table",
    )  # fmt: skip
    content = content.replace(r"\n", "<br>")  # pandas writes a line's end so
    words = html.escape(caption + (f" ({_mark})" if _mark else ""))
    if folded:
        return HTML(
            f'<details class="scmoe-folded"><summary>{words}: {len(frame)} rows</summary>'
            f'<div tabindex="0" style="overflow:auto;max-height:80vh">{content}</div></details>'
        )
    content = content.replace("<thead>", f"<caption>{words}</caption><thead>", 1)
    return HTML(f'<div style="overflow-x:auto">{content}</div>')


def about_cells(split: Split, transform: Transform) -> HTML:
    """Show, for each modality, what was measured and what a model sees of it."""
    kinds = transform.describe()
    rows = {
        title_of(name): {
            "training cells": split.train[name].n_obs,
            "validation cells": split.val[name].n_obs,
            "test cells": split.test[name].n_obs,
            "features measured": kinds.at[name, "measured"],
            "features used": kinds.at[name, "kept"],
            "values": kinds.at[name, "kind"],
            "done to them": kinds.at[name, "done"],
        }
        for name in split.modalities
    }
    title = DATASETS[split.name].title if split.name in DATASETS else "Your cells"
    return table(
        pd.DataFrame.from_dict(rows, orient="index"), f"{title}, {len(split.groups)} groups"
    )


def scores_table(records: pd.DataFrame, split: Split) -> HTML:
    """Show every method's group metrics."""
    wide = scores(records[records["task"] != "translation"]).rename(columns=NAMES)
    caption = f"Joint group identification, {split.test.n_obs} test cells of fold {split.fold}"
    return table(wide.rename_axis(index=None, columns=None), caption)


def headline(records: pd.DataFrame, title: str):
    """Draw the page's first figure: groups and translation, every method beside ours."""
    wide = scores(records)
    first = "accuracy" if "supervised" in set(records["task"]) else "ari"
    return plot.scores(wide, [first, "r2"], title)


def takeaway(records: pd.DataFrame, split: Split) -> Markdown:
    """Word the page's answer in two sentences: one on groups, one on translation."""
    said = [_about_groups(records, split.test.n_obs), _about_translation(records)]
    if split.data_source == "stand-in":
        said[0] = f"On simulated stand-in cells, {said[0]}"
    return Markdown("**Takeaway.** " + " ".join(_sentence(words) for words in said if words))


def _about_groups(records: pd.DataFrame, n_cells: int) -> str:
    wide = scores(records[records["task"] != "translation"])
    if "scMoE" not in wide.index:
        return ""
    if "unsupervised" in set(records["task"]):
        metric, form = "ari", "{:.2f}".format
        words = "scMoE's clusters agree at ARI {} with the known groups of {} test cells"
    else:
        metric, form = "accuracy", "{:.0%}".format
        words = "scMoE names the right group for {} of {} test cells"
    values = wide[metric]
    words = words.format(form(values["scMoE"]), n_cells)
    others = values[~values.index.str.startswith("scMoE")].dropna()
    if len(others):
        verdict = _verdict(values["scMoE"], others.max(), n_cells) if metric == "accuracy" else ""
        words += (
            f"; the best simple method, {others.idxmax()}, reaches {form(others.max())}{verdict}"
        )
    for name, method in (("its linear part", LINEAR), ("scored as published, it", PUBLISHED)):
        if method in values:
            words += f"; {name} reaches {form(values[method])}"
    return words


def _verdict(ours: float, theirs: float, n_cells: int) -> str:
    """Say whether two accuracies on the same cells differ by more than two standard errors.

    The error is that of independent methods; methods that err on the same cells differ by less.
    """
    noise = np.sqrt((ours * (1 - ours) + theirs * (1 - theirs)) / n_cells)
    if ours == theirs:
        return " too"
    if abs(ours - theirs) <= 2 * noise:
        return ", too close to tell apart on so few cells"
    return f", clearly {'less' if ours > theirs else 'more'}"


def _about_translation(records: pd.DataFrame) -> str:
    r2 = records[records["metric"] == "r2"].groupby("method")["value"].mean()
    if "scMoE" not in r2:
        return ""
    n_pairs = len(records[(records["metric"] == "r2") & (records["method"] == "scMoE")])
    words = (
        f"predicting one modality from another reaches R² {r2['scMoE']:.3f} "
        f"(mean of {n_pairs} ordered pairs)"
    )
    if "ridge" in r2:
        words += f", ridge regression {r2['ridge']:.3f}"
    if PUBLISHED in r2:
        words += f", scored as published {r2[PUBLISHED]:.3f}"
    if LINEAR in r2:
        gain = r2["scMoE"] - r2[LINEAR]
        adds = f"add {gain:.3f}" if gain > 0 else f"cost {-gain:.3f}"
        words += f"; the experts {adds if abs(gain) >= 0.0005 else 'add nothing'}"
        words += " to the linear part alone"
    if r2["scMoE"] < 0:
        words += "; below zero, the mean of the training cells is the better guess"
    return words


def translations(records: pd.DataFrame, title: str):
    """Draw every ordered pair, at most three methods side by side: ours, ridge and one more.

    Words instead, where there is only one modality.
    """
    grids = translation_grids(records)
    if not grids:
        return Markdown(ONE_MODALITY)
    shown = [m for m in ("scMoE", LINEAR, PUBLISHED, "ridge") if m in grids]
    return plot.translation_heatmap({method: grids[method] for method in shown}, title)


def translation_table(records: pd.DataFrame) -> HTML | Markdown:
    """Show every ordered pair: R² of each method and, for ours, the further metrics."""
    rows = records[records["task"] == "translation"]
    if rows.empty:
        return Markdown(ONE_MODALITY)
    pair = rows["target_modality"].map(title_of) + " ← " + rows["source_modality"].map(title_of)
    column = rows["metric"].map(NAMES) + ", " + rows["method"]
    keep = (rows["metric"] == "r2") | (rows["method"] == "scMoE")
    frame = rows.assign(pair=pair, column=column)[keep]
    wide = frame.pivot(index="pair", columns="column", values="value")
    wide = wide.reindex(index=pair.unique(), columns=frame["column"].unique())
    return table(wide.rename_axis(index=None, columns=None), "Cross-modal prediction, test cells")


def about_usage(tables: dict[str, pd.DataFrame]) -> Markdown:
    """Say how much the experts' use differs between modalities, and between groups."""
    overall = pd.DataFrame({m: frame.mean() for m, frame in tables.items()})  # experts x modalities
    effective = {m: np.exp(-(p * np.log(p.clip(1e-12))).sum()) for m, p in overall.items()}
    distance = {
        m: _distance(frame.to_numpy(), frame.mean().to_numpy()) for m, frame in tables.items()
    }
    between = _distance(overall.to_numpy().T, overall.mean(axis=1).to_numpy())
    used = ", ".join(f"{n:.1f} for {title_of(m)}" for m, n in effective.items())
    within = ", ".join(f"{d:.2f} ({title_of(m)})" for m, d in distance.items())
    more = "modality" if between > np.mean(list(distance.values())) else "group"
    return Markdown(
        f"Of {len(overall)} experts, {used} are in effective use (the exponential of the entropy). "
        f"Between modalities the use of experts differs by {between:.2f}, on a scale from 0 (the "
        f"same experts) to 1 (no expert shared); between groups within a modality by {within}. "
        f"So the choice of experts goes with the {more} more."
    )


def _distance(rows: np.ndarray, mean: np.ndarray) -> float:
    """Mean total variation distance of distributions (rows) from their mean, in [0, 1]."""
    return float(np.abs(rows - mean).sum(1).mean() / 2)


def about_attributions(why: Attributions) -> Markdown:
    """Say what two explanations cost, how far they agree, and which modality they rest on."""
    per_cell = {method: 1000 * s / why.n_cells for method, s in why.seconds.items()}
    first, second = why.shares.columns
    parts = why.shares.groupby(level=0, sort=False).sum()
    carried = "; ".join(
        f"{title_of(m)} {parts.at[m, first]:.0%} by {first}, {parts.at[m, second]:.0%} by {second}"
        for m in parts.index
    )
    return Markdown(
        f"For {why.n_cells} cells {first} took {why.seconds[first]:.2f} s and {second} "
        f"{why.seconds[second]:.2f} s: {per_cell[first]:.0f} and {per_cell[second]:.1f} s per 1000 "
        f"cells, a factor of {why.seconds[first] / why.seconds[second]:.0f}. Their rankings of all "
        f"{len(why.shares)} features correlate by {why.agreement:.2f} (Spearman). "
        f"Of all attribution, each modality carries: {carried}."
    )


def caveats(run: Run, split: Split, records: pd.DataFrame, *further: str) -> Markdown:
    """List what could be wrong with this page: the data's own, the split's, and `further`."""
    counts = cells_of(split)
    tested = counts[counts["test"] > 0]
    few = tested.index[(tested["training"] < 5)]
    wide = scores(records[records["task"] != "translation"])
    points = [*split.notes, *further]
    if "scMoE" in wide.index and "accuracy" in wide:
        ours, n = wide.at["scMoE", "accuracy"], split.test.n_obs
        points.append(
            f"one fold and one seed: {n} test cells leave a standard error of accuracy of "
            f"{np.sqrt(ours * (1 - ours) / n):.3f}, before any difference between folds"
        )
    if len(few):
        points.append(
            f"{len(few)} of the {len(tested)} groups tested have fewer than five training cells "
            f"({', '.join(in_order(few))}): their scores are anecdotes"
        )
    if run.task == "unsupervised":
        points.append("the number of clusters is given: it is the number of known groups")
    if run.protocol == "paper":
        points.append("the paper protocol repeats the leaks of the published code on purpose")
    return Markdown("\n".join(f"- {_sentence(point)}" for point in points))


def _sentence(words: str) -> str:
    """Begin with a capital and end with a full stop (RNA and scMoE stay as they are)."""
    first = words if words.startswith("scMoE") else words[:1].upper() + words[1:]
    return first if first.endswith((".", "!", "?")) else first + "."


def left_behind(run: Run, path) -> Markdown:
    """Say what the run wrote, and what it took."""
    took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in run.seconds.items())
    return Markdown(
        f"Every number above, with parameters, versions and checksums, is in `{path}`; the model "
        f"({run.trained}) is in `{run.out_dir / 'model'}`. Time: {took}."
    )


def provenance(path) -> Markdown:
    """Say where a stored table of record comes from: the comment on top of its file."""
    lines = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    return Markdown("*The table of record.* " + " ".join(lines))
