"""Banner and tables: they say where cells come from, and others' text stays text."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import scmoe
from scmoe import page, record

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def split():
    cells = scmoe.data.simulate_dyngen(n_cells=80, n_genes=40)
    return scmoe.data.split_mudata(cells, label_key="label")


def test_the_banner_names_the_source_and_lists_what_is_known(split):
    told = page.banner(record.Run("dyngen"), replace(split, notes=["pixels touch"])).data
    assert "your own files" in told
    assert "<li>pixels touch</li>" in told
    assert f"{split.test.n_obs} test cells" in told


def test_the_banner_escapes_what_is_not_ours(split):
    told = page.banner(record.Run("own"), replace(split, notes=[HOSTILE], fold=HOSTILE)).data
    assert "<script" not in told
    assert told.count("&lt;script&gt;") == 2


@pytest.mark.parametrize(
    ("source", "words", "loud"),
    [("zenodo", "", False), ("local", "", False), ("excerpt", " (excerpt of the data)", True),
     ("stand-in", " (stand-in: simulated, not measured)", True)],
)  # fmt: skip
def test_titles_carry_a_mark_where_cells_are_no_published_ones(split, source, words, loud):
    other = replace(split, data_source=source)
    assert page.mark(other) == words
    assert ("#a94900" in page.banner(record.Run("dyngen"), other).data) == loud


@pytest.mark.parametrize("folded", [False, True])
def test_a_table_escapes_rows_columns_values_and_caption(folded):
    frame = pd.DataFrame({HOSTILE: [HOSTILE, 0.12345, np.nan]}, index=[HOSTILE, "a", "b"])
    shown = page.table(frame, HOSTILE, folded=folded).data
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 4
    assert re.search(r"<td>0.123</td>", shown) and "<td>–</td>" in shown


def test_a_folded_table_says_how_long_it_is():
    shown = page.table(pd.DataFrame({"a": [1, 2]}), "Words", folded=True).data
    assert "<summary>Words: 2 rows</summary>" in shown
