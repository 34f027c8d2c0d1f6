"""WCAG 2.2 AA and good practice, as axe-core finds it, on every page."""

from pathlib import Path

import pytest
from pages import PAGES, WIDTHS

expect = pytest.importorskip("playwright.sync_api").expect
axe_playwright_python = pytest.importorskip("axe_playwright_python")
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
pytestmark = pytest.mark.browser

# Everything a reader can open is open. Of what is alike some stays: six rows of a table, and code
# that has a kind of word not seen above it.
UNFOLD = """() => {
    document.querySelectorAll('main details').forEach(folded => folded.open = true);
    document.querySelectorAll('main tbody').forEach(
        body => [...body.rows].slice(6).forEach(row => row.remove()));
    const seen = new Set();
    for (const code of document.querySelectorAll('main pre')) {
        const kinds = [...code.querySelectorAll('span')].map(word => word.className);
        if (kinds.length && kinds.every(kind => seen.has(kind))) code.remove();
        kinds.forEach(kind => seen.add(kind));
    }
}"""
PLAYED = ".scmoe-explore, .scmoe-linked"  # ready when reached
FOUND = """async rules => {
    const options = {preload: false, resultTypes: ['violations'], ...rules};
    const {violations} = await axe.run(document, options);
    return violations.flatMap(v => v.nodes.map(n => `${v.id}: ${n.html.slice(0, 150)}`));
}"""
ALL = {"rules": {"target-size": {"enabled": True}}}
COLOURS = {"runOnly": ["color-contrast", "link-in-text-block"]}  # what a theme decides


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", [*PAGES, "search", "genindex"])
def test_page_can_be_read_by_all_in_both_themes(visit, name, width):
    page = visit(name, width, motion="reduce")
    page.evaluate(UNFOLD)
    for box in page.locator(PLAYED).all():
        box.scroll_into_view_if_needed()
        expect(box).to_have_attribute("data-ready", "yes", timeout=20_000)
    page.evaluate(AXE)
    assert page.evaluate(FOUND, ALL) == []
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_timeout(400)  # colours fade in
    assert page.evaluate(FOUND, COLOURS) == []
