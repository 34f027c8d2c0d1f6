"""Figures say what they show, in the same colours everywhere."""

import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from scmoe import plot
from scmoe.colours import contrast, group_colours, in_order, method_colour, modality_colour

MET = [f"Sst-MET-{i}" for i in range(1, 14)] + [f"{f}-MET-{i}" for f in ("Vip", "Pvalb", "Lamp5")
                                                for i in range(1, 6)]  # fmt: skip
PAIRS = pd.DataFrame([[np.nan, 0.1], [-0.2, np.nan]], ["rna", "ephys"], ["rna", "ephys"])
XY = np.random.default_rng(0).normal(size=(40, 2))
GROUPS = np.array(["a", "b"] * 20)

FIGURES = {
    "scores": lambda: plot.scores(
        pd.DataFrame({"accuracy": [0.9, np.nan]}, ["scMoE", "ridge"]), ["accuracy", "r2"], "T"
    ),
    "standings": lambda: plot.standings(
        {"groups": pd.DataFrame({"s1": [0.5, 0.4], "s2": [0.1, np.nan]}, ["scMoE", "ridge"])}, "T"
    ),
    "group_sizes": lambda: plot.group_sizes(pd.DataFrame({"test": [1, 2]}, ["a", "b"]), "T"),
    "batches": lambda: plot.batches(pd.DataFrame({"s1": [1, 0], "s2": [3, 4]}), ["s1"], "T"),
    "training_curves": lambda: plot.training_curves(
        pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "val_loss": [2.0, 1.5]}), "T"
    ),
    "shades": lambda: plot.confusion(np.repeat(list("abcd"), 9), np.array(list("abc" * 12)), "T"),
    "confusion": lambda: plot.confusion(GROUPS, GROUPS[::-1], "T"),
    "cells": lambda: plot.cells(
        XY, {"truth": GROUPS, "gene": np.arange(40)}, "T", XY + 1, GROUPS == "a"
    ),
    "tissue": lambda: plot.cells(
        np.indices((8, 5)).reshape(2, -1).T, {"truth": GROUPS}, "T", tissue=True
    ),
    "translation_heatmap": lambda: plot.translation_heatmap({"scMoE": PAIRS, "ridge": PAIRS}, "T"),
    "expert_usage": lambda: plot.expert_usage(
        pd.DataFrame([[0.5, 0.5], [0.0, 1.0]]).set_index(
            pd.MultiIndex.from_tuples([("rna", "a"), ("rna", "b")])
        ),
        "T",
    ),
}


def texts(fig):
    svg_text = [text.get_text() for text in fig.findobj(lambda artist: hasattr(artist, "get_text"))]
    return "\n".join(svg_text)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_its_title_and_can_be_drawn(name, tmp_path):
    figure = FIGURES[name]()
    figure.savefig(tmp_path / "figure.svg")
    assert figure.get_suptitle() == "T"


# What the book's dark theme makes of a colour: invert(1) hue-rotate(180deg).
TURN = np.array([[-0.574, 1.430, 0.144], [0.426, 0.430, 0.144], [0.426, 1.430, -0.856]])
DARK = "#121212"


def turned(colour):
    return np.clip(TURN @ (1 - np.array(to_rgb(colour))), 0, 1)


def ground(text):
    """Give the colour of the heat map's cell that a text stands in; None beside one."""
    for mesh in text.axes.collections if text.axes and text in text.axes.texts else ():
        if isinstance(mesh, QuadMesh):
            column, row = map(int, text.get_position())
            *colour, alpha = mesh.to_rgba(mesh.get_array())[row, column]
            return tuple(colour) if alpha else None  # nothing is drawn where there is no number
    return None


@pytest.mark.parametrize("name", FIGURES)
def test_every_word_is_read_in_both_themes(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    words = [text for text in figure.findobj(Text) if text.get_text().strip()]
    assert len(words) > 2
    for text in words:
        behind, ink = ground(text), text.get_color()
        assert contrast(ink, "white" if behind is None else behind) >= 4.5, text
        assert contrast(turned(ink), DARK if behind is None else turned(behind)) >= 4.5, text


def test_nothing_is_drawn_where_there_is_nothing_to_translate():
    assert plot.translation_heatmap({}, "T") is None


def test_the_best_of_each_set_has_a_dot():
    assert texts(FIGURES["standings"]()).count("●") == 2


def test_methods_without_a_score_are_left_out():
    table = pd.DataFrame({"accuracy": [0.9, np.nan], "r2": np.nan}, ["scMoE", "ridge"])
    shown = texts(plot.scores(table, ["accuracy", "ari"], "T"))
    assert "scMoE" in shown and "ridge" not in shown and "ARI" not in shown


def test_the_same_figure_is_drawn_byte_for_byte(tmp_path):
    plot.style()
    drawn = []
    for number in range(2):
        FIGURES["cells"]().savefig(tmp_path / f"{number}.svg", metadata={"Date": None})
        drawn.append((tmp_path / f"{number}.svg").read_bytes())
    assert drawn[0] == drawn[1]


def test_a_translation_without_a_value_is_not_drawn_as_a_number():
    words = texts(FIGURES["translation_heatmap"]())
    assert "0.10" in words
    assert "-0.20" in words
    assert "nan" not in words.lower()


def test_confusion_counts_cells_and_puts_rows_first():
    fig = plot.confusion(["a", "a", "b"], ["a", "b", "cluster 7"], "T")
    assert re.search(r"a\na\nb\nb\ncluster 7", texts(fig))
    assert texts(fig).count("1") == 3


def test_every_group_that_is_drawn_is_named_once_and_a_number_has_a_scale():
    figure = plot.cells(XY, {"truth": GROUPS, "predicted": ["c"] * 40, "gene": XY[:, 0]}, "T")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    assert len(figure.axes) == 4


def test_names_sort_by_the_numbers_in_them():
    assert in_order(["Sst-MET-10", "Sst-MET-2", "10", "9", "CD4+"]) == [
        "9", "10", "CD4+", "Sst-MET-2", "Sst-MET-10"]  # fmt: skip


@pytest.mark.parametrize("groups", [["a"], list("abc"), [f"type {i}" for i in range(22)], MET,
                                    [str(i) for i in range(60)]])  # fmt: skip
def test_groups_have_colours_of_their_own(groups):
    colours = group_colours(groups)
    assert list(colours) == in_order(groups)
    assert len(set(colours.values())) == len(groups)


def test_a_family_of_many_groups_shares_a_hue():
    colours = group_colours(MET)
    channels = {g: tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for g, c in colours.items()}
    teal = [channels[g] for g in MET if g.startswith("Pvalb")]
    assert all(blue > red for red, _, blue in teal)


def test_modalities_and_methods_keep_their_colours():
    assert modality_colour("rna") == modality_colour("mrna") != modality_colour("protein")
    assert method_colour("scMoE") != method_colour("scMoE linear")
    assert method_colour("logistic regression (late fusion)") == method_colour(
        "logistic regression"
    )
