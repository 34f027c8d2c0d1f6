"""The built pages as a reader sees them: on a desk and on a phone, without a network."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

BOOK = Path(__file__).parents[2] / "book"
HTML = BOOK / "_build" / "html"
PARTS = yaml.safe_load((BOOK.parent / "_toc.yml").read_text())["parts"]
PAGES = ["index", *(chapter["file"] for part in PARTS for chapter in part["chapters"])]
RUNS = [page for page in PAGES if page.startswith("runs/")]
WIDTHS = {"desktop": 1280, "phone": 390}
BROWSERS = ["chromium", "chromium-browser", "google-chrome"]

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


@pytest.fixture(scope="module")
def browser():
    if not (HTML / "index.html").exists():
        pytest.skip("the book is not built: run `make book`")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
    yield chromium
    chromium.close()
    playwright.stop()


@pytest.fixture
def visit(browser):
    """Open a page without a network and collect what goes wrong on it."""
    contexts = []

    def open_page(name, width=WIDTHS["desktop"], query=""):
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
        context.set_default_timeout(120_000)  # a machine may be busy
        contexts.append(context)
        page = context.new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("requestfailed", lambda request: page.problems.append(request.url))
        page.on(
            "console",
            lambda message: message.type == "error" and page.problems.append(message.text),
        )
        page.goto((HTML / f"{name}.html").as_uri() + query)
        page.wait_for_load_state("networkidle")
        return page

    yield open_page
    for context in contexts:
        context.close()


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
def test_run_page_shows_figures_and_every_interactive_one_is_drawn(visit, name):
    page = visit(name)
    assert page.locator("div.cell_output img, div.cell_output svg").count() > 0
    drawn = page.locator("div.js-plotly-plot").count()
    assert drawn == page.locator("div.plotly-graph-div").count()


@pytest.mark.parametrize("name", RUNS)
def test_run_page_says_what_its_cells_are_on_its_first_screen(visit, name):
    records = json.loads((BOOK / name / "metrics.json").read_text())["records"]
    page = visit(name)
    for source in {record["data_source"] for record in records} & {"stand-in", "excerpt"}:
        word = page.locator(f"main :text('{source}'):visible").first
        assert word.bounding_box()["y"] < 900


def test_equations_are_typeset(visit):
    page = visit("method")
    page.wait_for_selector("mjx-container")
    assert page.locator("mjx-container").count() >= page.locator("div.math").count() > 5
    assert page.locator("mjx-merror").count() == 0


def test_search_finds_a_page_by_a_word_of_it(visit):
    page = visit("search", query="?q=router")
    page.wait_for_selector("#search-results li a")
    found = page.eval_on_selector_all("#search-results li a", "links => links.map(a => a.href)")
    assert any("method.html" in address for address in found)


def test_drawing_follows_the_dark_theme(browser, visit):
    page = visit("index")
    colour = "getComputedStyle(document.querySelector('svg.architecture text')).fill"
    light = page.evaluate(colour)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert page.evaluate(colour) != light
