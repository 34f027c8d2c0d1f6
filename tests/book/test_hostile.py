"""What an own-data page shows, in a browser: nobody's names run, ask for anything, or hide."""

import base64
from dataclasses import replace
from html import escape
from io import BytesIO
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

import scmoe
from scmoe import page, plot
from scmoe.data.cells import make_mudata
from scmoe.record import Run
from tests.conftest import make_tiny

pytestmark = pytest.mark.browser
NAMES = [
    "<script>ran.push(1)</script>", "<img src=https://example.org/x onerror=ran.push(2)>",
    "</td></table><svg onload=ran.push(3)>", "[x](javascript:ran.push(4))",
    "![x](https://example.org/y.png)", "<iframe src=https://example.org></iframe>", "$\\frac{$",
    "<style>@import 'https://example.org/z.css';</style>", "\"><b onmouseover=ran.push(5)>", "{n}",
]  # fmt: skip


def svg(figure) -> str:
    """As Jupyter Book shows a figure."""
    figure.savefig(out := BytesIO(), format="svg")
    return f"<img src='data:image/svg+xml;base64,{base64.b64encode(out.getvalue()).decode()}'>"


def shown(name: str) -> str:
    """Banner, tables, sentence and figure of cells in which everything is called so."""
    split = scmoe.data.split_mudata(make_tiny(60))
    split = replace(split, fold=name, notes=[name], name=name, groups=[name, "b"])
    split = replace(split, train=make_mudata({name: split.train["rna"]}))
    groups = np.array([name, "b"] * 5)
    claim = scmoe.claim("Best is {best}.", holds=True, best=name).data
    return "".join([
        page.banner(Run("own"), split).data,
        page.table(pd.DataFrame({name: [name]}, [name]), name).data,
        MarkdownIt("commonmark").enable("table").render(claim),
        svg(plot.confusion(groups, groups[::-1], name)),
    ])  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_read_and_does_nothing(chromium, name):
    context = chromium.new_context()
    opened, asked = context.new_page(), []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("dialog", lambda dialog: asked.append(dialog.message))
    try:
        opened.set_content(f"<script>var ran = []</script><main>{shown(name)}</main>")
        for element in opened.locator("main *:visible").all():
            element.dispatch_event("mouseover")
        assert opened.evaluate("ran") == []
        assert {urlsplit(url).scheme for url in asked} <= {"data"}
        assert opened.locator("main").inner_text().count(name) >= 4
        assert opened.evaluate("[...document.scripts].length") == 1
    finally:
        context.close()


def test_the_browser_would_have_noticed(chromium):
    context = chromium.new_context()
    opened = context.new_page()
    opened.set_content(f"<script>var ran = []</script>{NAMES[0]}{escape(NAMES[1])}")
    assert opened.evaluate("ran") == [1]
    context.close()
