"""The built pages as a reader sees them: on a desk and on a phone, without a network."""

import gzip
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pages import BOOK, HTML, PAGES, RUNS, WIDTHS

pytestmark = pytest.mark.browser

# Elements that stick out to the right of the window without a box of their own to scroll in.
STICKING_OUT = """() => [...document.querySelectorAll('main *')].filter(element => {
    const box = element.getBoundingClientRect();
    if (!box.width || box.right <= window.innerWidth + 1) return false;
    for (let up = element; up && up.tagName !== 'MAIN'; up = up.parentElement) {
        const style = getComputedStyle(up);
        if (style.position === 'fixed' || style.visibility === 'hidden') return false;
        if (up !== element && /auto|scroll|hidden/.test(style.overflowX)) {
            const outer = up.getBoundingClientRect();
            if (outer.right <= window.innerWidth + 1) return false;
        }
    }
    return true;
}).map(element => element.outerHTML.slice(0, 120))"""


def test_no_page_shows_a_warning_or_where_it_was_built(browser):
    for page in HTML.rglob("*.html"):
        text = page.read_text()
        assert str(BOOK.parent) not in text, page
        assert not re.search(r"\b\w*Warning: ", text), page


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole_without_a_network_and_fits_its_window(visit, name, width):
    page = visit(name, width)
    assert page.problems == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(STICKING_OUT) == []
    broken = "images => images.filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
    page.evaluate("[...document.images].forEach(image => image.loading = 'eager')")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert page.eval_on_selector_all("main img", broken) == []


@pytest.mark.parametrize("name", RUNS)
def test_run_page_shows_figures_and_answers_before_it_shows_code(visit, name):
    page = visit(name)
    assert page.locator("div.cell_output img, div.cell_output svg").count() > 0
    lead = page.locator("article > section > p, article > section > .cell .cell_output")
    top = page.locator("main details.hide").first.bounding_box()["y"]
    assert top > lead.nth(1).bounding_box()["y"]  # the first is the question


@pytest.mark.parametrize("name", RUNS)
def test_run_page_says_what_its_cells_are_on_its_first_screen(visit, name):
    records = json.loads((BOOK / name / "metrics.json").read_text())["records"]
    page = visit(name)
    for source in {record["data_source"] for record in records} & {"stand-in", "excerpt"}:
        word = page.locator(f"main :text('{source}'):visible").first
        assert word.bounding_box()["y"] < 900


def test_equations_are_typeset_without_a_script(visit):
    page = visit("method")
    assert page.locator("math").count() >= page.locator("div.math").count() > 5
    assert page.locator("merror").count() == 0
    heights = "formulas => formulas.map(f => f.getBoundingClientRect().height)"
    assert min(page.eval_on_selector_all("div.math math", heights)) > 15
    assert not [address for address in page.asked if "mathjax" in address.lower()]


# How many words of the page lie above a height.
WORDS = """limit => {
    const page = document.querySelector('article');
    const walker = document.createTreeWalker(page, NodeFilter.SHOW_TEXT);
    let words = 0;
    while (walker.nextNode()) {
        const range = document.createRange();
        range.selectNodeContents(walker.currentNode);
        const box = range.getBoundingClientRect();
        const hidden = walker.currentNode.parentElement.closest('svg, .sd-hide-link-text');
        if (box.height && box.top < limit && !hidden)
            words += (walker.currentNode.textContent.match(/[\\p{L}\\d]\\S*/gu) || []).length;
    }
    return words;
}"""


def test_five_verdicts_and_their_figures_stand_within_two_short_screens(visit):
    page = visit("index", height=800)
    cards = page.locator(".verdicts .sd-card:has(svg)")
    assert cards.count() == 5
    for card in cards.all():
        verdict = card.locator("p > strong").first.inner_text()
        assert verdict in {"Holds.", "Does not hold.", "Depends.", "Not testable."}
        words = card.inner_text()
        assert re.search(r"\([+−][\d.]+ to [+−][\d.]+\)", words), words
        assert len(card.locator("svg").get_attribute("aria-label")) > 30
        box = card.bounding_box()
        assert box["y"] + box["height"] <= 1600
        assert card.locator("a").count() == 1
    assert page.evaluate(WORDS, 800) <= 120
    assert page.evaluate(WORDS, 1600) <= 250


# Colours of words and dots of the small figures, and of what they stand on, as [r, g, b].
INKS = """() => [...document.querySelectorAll('svg.intervals')].flatMap(svg => {
    const card = [svg.closest('.sd-card'), document.body]
        .map(ground => getComputedStyle(ground).backgroundColor)
        .find(colour => colour !== 'rgba(0, 0, 0, 0)');
    return [...svg.querySelectorAll('text, circle')].map(mark =>
        [getComputedStyle(mark).fill, card].map(c => c.match(/[\\d.]+/g).slice(0, 3).map(Number)));
})"""


def contrast(one, other):
    def luminance(colour):
        linear = [c / 3294 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_small_figures_read_in_both_themes(visit, theme):
    page = visit("index")
    page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
    page.wait_for_timeout(500)  # colours fade in
    inks = page.evaluate(INKS)
    assert len(inks) > 20
    assert min(contrast(*pair) for pair in inks) >= 4.5


def test_figures_turn_dark_with_the_theme(visit):
    page = visit("runs/quick/leaks")
    style = "getComputedStyle(document.querySelector('div.cell_output img'))"
    assert page.evaluate(f"{style}.filter") == "none"
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert page.evaluate(f"{style}.filter") == "invert(1) hue-rotate(180deg)"


@pytest.mark.parametrize("name", RUNS)
def test_words_in_figures_are_large_enough_on_a_phone(visit, name):
    page = visit(name, WIDTHS["phone"])
    widths = "images => images.map(i => [new URL(i.src).pathname, i.getBoundingClientRect().width])"
    for path, width in page.eval_on_selector_all("div.cell_output img[src$='.svg']", widths):
        svg = Path(path).read_text()
        unit = width / float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
        sizes = [100 * float(size) for size in re.findall(r"scale\(([\d.]+) -[\d.]+\)", svg)]
        assert unit * min(sizes, default=99) >= 9, path
    drawn = "texts => texts.map(t => t.getBoundingClientRect().height || 99)"  # 0: another tab
    assert min(page.eval_on_selector_all("svg.intervals text", drawn), default=99) >= 9


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_for_half_a_megabyte_at_most_before_it_is_scrolled(visit, name):
    page = visit(name)
    files = {Path(unquote(urlsplit(address).path)) for address in page.asked}
    sizes = {file.name: len(gzip.compress(file.read_bytes())) for file in files}  # as hosts send it
    assert sum(sizes.values()) <= 500_000, sizes


def test_the_site_is_small():
    assert sum(file.stat().st_size for file in HTML.rglob("*") if file.is_file()) <= 40e6


def test_search_finds_a_page_by_a_word_of_it(visit):
    page = visit("search", query="?q=router")
    page.wait_for_selector("#search-results li a")
    found = page.eval_on_selector_all("#search-results li a", "links => links.map(a => a.href)")
    assert any("method.html" in address for address in found)


def test_drawing_follows_the_dark_theme(browser, visit):
    page = visit("method")
    colour = "getComputedStyle(document.querySelector('svg.architecture text')).fill"
    light = page.evaluate(colour)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert page.evaluate(colour) != light
