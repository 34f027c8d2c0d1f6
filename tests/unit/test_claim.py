"""Sentences are shown only where their numbers bear them out, and others' text stays text."""

import html
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scmoe
from scmoe.claim import FalseClaim

TEXT = "scMoE names {ours:.0%} of {n} cells, {best} {theirs:.0%}: clearly more."
NUMBERS = {"ours": 0.814, "theirs": 0.7, "best": "ridge", "n": 450}


def said(text=TEXT, holds=True, **given):
    return scmoe.claim(text, holds=holds, **given).data


def test_a_sentence_that_holds_is_shown_with_its_numbers():
    assert said(**NUMBERS) == "scMoE names 81% of 450 cells, ridge 70%: clearly more."


def test_a_negative_number_has_a_minus_sign():
    assert said("{gain:+.3f}", gain=-0.0123) == "−0.012"


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({"holds": False}, "In this run not shown"),
        ({"holds": np.False_}, "In this run not shown"),
        ({"holds": None}, "Too few numbers to tell"),
        ({"holds": True, "theirs": float("nan")}, "Too few numbers to tell"),
        ({"holds": True, "theirs": (0.7, float("nan"), 0.8)}, "Too few numbers to tell"),
        ({"holds": True, "tested": False}, "Not tested on simulated stand-ins"),
        ({"holds": False, "tested": False}, "Not tested on simulated stand-ins"),
    ],
    ids=str,
)
def test_elsewhere_only_its_numbers_are_shown(given, verdict):
    words = said(**NUMBERS | given)
    assert words.startswith(f"*{verdict}:* ours 81%, ")
    assert "best ridge" in words and "n 450" in words
    assert "clearly more" not in words


@pytest.mark.parametrize("holds", [True, np.True_])
def test_a_sentence_of_the_record_may_hold_or_be_untold(holds):
    assert "clearly more" in said(record=True, holds=holds, **NUMBERS)
    assert "Too few" in said(record=True, holds=None, **NUMBERS)


def test_a_sentence_of_the_record_that_does_not_hold_is_an_error():
    with pytest.raises(FalseClaim, match=r"does not bear this out.*'theirs'.*0\.7"):
        said(record=True, holds=False, **NUMBERS)


def test_an_interval_is_shown_when_pointed_at():
    words = said("It adds {gain:+.2f}.", gain=(0.1, -0.05, 0.25))
    assert words == 'It adds <abbr title="95 % interval −0.05 to +0.25">+0.10</abbr>.'


@pytest.mark.parametrize(
    "given", [{"ours": 1, "n": 2}, {**NUMBERS, "further": 1}, {**NUMBERS, "Ours": 1}, {}], ids=str
)
def test_text_and_numbers_have_to_name_the_same(given):
    with pytest.raises(ValueError, match="the text and the numbers differ in"):
        said(**given)


@pytest.mark.parametrize("holds", ["yes", 1, pd.Series([True])], ids=str)
def test_a_condition_is_a_truth_value(holds):
    with pytest.raises(TypeError, match="must be True, False or None"):
        said(holds=holds, **NUMBERS)


HOSTILE = [
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "a|b `c` *d* _e_ $f$",
    "{n}",
    "</abbr><img src=x onerror=alert(1)>",
    "&lt;b&gt;",
    "line\n\n# title",
    "![](x)",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("holds", [True, False])
def test_names_stay_text(name, holds):
    words = said("Best is {best}", holds=holds, best=name)
    shown = re.search(r"[Bb]est(?: is)? (.*?)\.?$", words)[1]
    assert not re.search(r"[<>\[\]`*_$|!\n]", shown)
    assert html.unescape(shown) == " ".join(name.split())


@given(st.text(min_size=1))
def test_any_text_is_escaped_so_that_it_reads_as_it_was(name):
    shown = said("{best}", best=name)
    assert html.unescape(shown) == " ".join(name.split())


def test_it_is_glued_under_its_name():
    data, known = scmoe.claim("{n} cells", holds=True, n=3, glue="cells")._repr_mimebundle_()
    assert data["text/markdown"] == "3 cells"
    assert known == {"scrapbook": {"name": "cells", "mime_prefix": ""}}
    assert scmoe.claim("{n} cells", holds=True, n=3)._repr_mimebundle_()[1] == {}
