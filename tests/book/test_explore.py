"""What readers play with answers mouse and keyboard, and leaves something without a script."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from scmoe import page

STATIC = Path(__file__).parents[2] / "book" / "_static"
HOSTILE = '</script><img src=x onerror="window.broken=1">'
ROWS = pd.DataFrame(
    [
        ("a", 10, "ridge, plain", 0.5, 0.4, 0.6),
        ("a", 10, HOSTILE, 0.25, None, None),
        ("a", 20, "ridge, plain", 0.75, None, None),
        ("b", 10, "ridge, plain", -0.125, None, None),
    ],
    columns=["set", "cells", "method", "value", "low", "high"],
)
CHOICES = {"set": "select", "cells": "slider"}


def shown():
    return page.explore(ROWS, CHOICES, "method", "Scores & more", marked=["ridge, plain"]).data


def maps():
    cells = pd.DataFrame({"x": [0, 1, 2], "y": [0, 0, 0], "u": [5, 4, 3], "v": [1, 1, 1],
                          "group": ["a", HOSTILE, None], "gene": [0.25, 1, 2]})  # fmt: skip
    places = {"tissue": ("x", "y"), "latent": ("u", "v")}
    return page.linked(cells, places, {"group": {"a": "#112233", HOSTILE: "#445566"}}, "Cells").data


def test_the_page_holds_every_row_and_a_plain_table_of_the_first_choice():
    text = shown()
    data = json.loads(re.search(r"<script[^>]*>(.*?)</script>", text, re.S)[1])
    words = data["words"]
    rows = [
        [words[n][cell] if n in words else cell for n, cell in zip(data["names"], row, strict=True)]
        for row in data["rows"]
    ]
    assert rows == json.loads(ROWS.to_json(orient="values"))
    plain = BeautifulSoup(text, "html.parser")
    assert [cell.text for cell in plain.select("tbody td")] == ["0.500", "0.250"]
    assert plain.find("img") is None and plain.caption.text == "Scores & more"


@pytest.fixture(scope="module", params=[True, False], ids=["script", "no script"])
def browser_page(request, chromium, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explore")
    shutil.copy(STATIC / "explore.js", folder)
    scripts = '<script src="explore.js"></script>'
    (folder / "page.html").write_text(
        f'<meta charset="utf-8">{scripts}<main>{shown()}{maps()}</main>'
    )
    context = chromium.new_context(java_script_enabled=request.param, offline=True)
    context.set_default_timeout(60_000)
    opened = context.new_page()
    opened.goto((folder / "page.html").as_uri())
    yield opened, request.param
    context.close()


@pytest.mark.browser
def test_it_answers_every_control_and_downloads_what_the_page_holds(browser_page):
    opened, scripted = browser_page
    names = opened.locator("tbody th")
    if not scripted:
        assert names.all_text_contents() == ["ridge, plain", HOSTILE]
        assert opened.locator("select").count() == 0
        return
    opened.wait_for_selector("[data-ready]")
    assert names.all_text_contents() == ["ridge, plain", HOSTILE]
    opened.get_by_role("button", name="value").click()  # turns the order round
    assert names.all_text_contents() == [HOSTILE, "ridge, plain"]
    opened.get_by_role("searchbox").fill("RIDGE")
    assert names.all_text_contents() == ["ridge, plain"]
    opened.get_by_role("searchbox").fill("")
    opened.get_by_role("slider").focus()
    opened.keyboard.press("ArrowRight")
    assert opened.locator("tbody td").nth(1).text_content() == "0.750"
    assert opened.evaluate("document.activeElement.type") == "range"
    opened.get_by_label("set").select_option("b")
    assert opened.locator("tbody td").nth(1).text_content() == "−0.125"
    assert opened.locator(".scmoe-status").text_content() == "b · 10: 1 of 1"
    with opened.expect_download() as download:
        opened.get_by_role("button", name="CSV").click()
    assert download.value.suggested_filename == "scores-more.csv"
    lines = list(csv.reader(io.StringIO(Path(download.value.path()).read_text())))
    assert lines[0] == list(ROWS) and len(lines) == len(ROWS) + 1
    assert [float(line[3]) for line in lines[1:]] == ROWS["value"].tolist()
    assert lines[2][2] == HOSTILE
    assert opened.evaluate("window.broken") is None


@pytest.mark.browser
def test_columns_side_by_side_have_bars_on_scales_of_their_own(chromium, tmp_path):
    rows = pd.DataFrame({"cell": "a", "gene": ["x", "y"], "one": [-1.0, 3.0], "two": [50.0, 25.0]})
    made = page.explore(rows, {"cell": "select"}, "gene", "Side by side", ["one", "two"], bars=True)
    (tmp_path / "page.html").write_text(
        f"<script>{(STATIC / 'explore.js').read_text()}</script><main>{made.data}</main>"
    )
    opened = chromium.new_page()
    opened.goto((tmp_path / "page.html").as_uri())
    opened.wait_for_selector("[data-ready]")
    bars = opened.locator("tbody b")
    drawn = [bar.evaluate("bar => [bar.style.left, bar.style.width]") for bar in bars.all()]
    assert drawn == [["25%", "75%"], ["0%", "50%"], ["0%", "25%"], ["0%", "100%"]]
    opened.get_by_role("button", name="two").click()
    assert opened.locator("tbody th").all_text_contents() == ["x", "y"]
    opened.close()


@pytest.mark.browser
def test_a_cell_pointed_at_in_one_map_is_shown_in_the_other(browser_page):
    opened, scripted = browser_page
    if not scripted:
        assert "JavaScript" in opened.locator(".scmoe-linked").text_content()
        return
    box = opened.locator(".scmoe-linked")
    box.scroll_into_view_if_needed()
    opened.wait_for_selector(".scmoe-linked[data-ready]")
    assert box.locator("p").first.text_content() == "Cells"  # where its cells are from stays there
    tissue, latent = box.locator("svg").all()
    tissue.locator('circle[cx="50"]').hover()
    assert latent.locator(".scmoe-chosen").get_attribute("cx") == "50"
    assert box.locator("dd").all_text_contents() == [HOSTILE, "1"]
    latent.focus()
    opened.keyboard.press("ArrowRight")
    assert latent.locator(".scmoe-chosen").get_attribute("cx") == "97"
    assert box.locator("dd").all_text_contents() == ["a", "0.25"]
    opened.keyboard.press("ArrowLeft")
    opened.keyboard.press("ArrowLeft")
    assert box.locator("dd").all_text_contents() == ["–", "2"]  # of no known group
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowRight")
    assert tissue.locator(".scmoe-chosen").get_attribute("cx") == "3"
    box.locator("select").select_option("gene")
    assert tissue.locator(".scmoe-chosen").get_attribute("fill") == "#440154"
    assert opened.evaluate("window.broken") is None
