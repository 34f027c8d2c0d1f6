"""A headless browser, and pages of the built book opened in it."""

import shutil

import pytest
from pages import HTML, WIDTHS

BROWSERS = ["chromium", "chromium-browser", "google-chrome"]


@pytest.fixture(scope="session")
def chromium():
    """Give a browser, or skip."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
    yield browser
    browser.close()
    playwright.stop()


@pytest.fixture(scope="session")
def browser(chromium):
    """Give a browser where there is a book to read, or skip."""
    if not (HTML / "index.html").exists():
        pytest.skip("the book is not built: run `make book`")
    return chromium


@pytest.fixture
def visit(browser):
    """Open a page without a network and collect what goes wrong on it."""
    contexts = []

    def open_page(name, width=WIDTHS["desktop"], query="", height=900, motion=None):
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, offline=True, reduced_motion=motion)
        context.set_default_timeout(120_000)  # a machine may be busy
        contexts.append(context)
        page = context.new_page()
        page.problems, page.asked = [], []
        page.on("request", lambda request: page.asked.append(request.url))
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
