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
# Of words whose font, ink and grounds all the way down are the same, the first.
INKS = """() => {
    const found = new Map();
    const walk = (element, below) => {
        const s = getComputedStyle(element);
        const own = [s.backgroundColor, s.backgroundImage, s.opacity, s.filter].join();
        const grounds = own === 'rgba(0, 0, 0, 0),none,1,none' ? below : `${below}/${own}`;
        const words = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
        if (words && element.checkVisibility()) {
            const link = element.closest('a');
            const around = link ? [link, link.parentElement].map(a => getComputedStyle(a)) : [];
            const ink = [grounds, s.color, s.fontSize, s.fontWeight, s.textShadow,
                         ...around.flatMap(a => [a.color, a.textDecorationLine])].join();
            if (!found.has(ink)) found.set(ink, link || element);
        }
        for (const child of element.children) walk(child, grounds);
    };
    walk(document.body, '');
    return {include: [...found.values()]};
}"""
FOUND = """async ([where, rules]) => {
    const options = {preload: false, resultTypes: ['violations'], ...rules};
    const {violations} = await axe.run(where, options);
    return violations.flatMap(v => v.nodes.map(n => `${v.id}: ${n.html.slice(0, 150)}`));
}"""
COLOURS = ["color-contrast", "link-in-text-block"]  # what a theme decides, and dear
OTHERS = {"target-size": {"enabled": True}} | {rule: {"enabled": False} for rule in COLOURS}


def faults(page):
    """Give what axe finds at both widths, in both themes."""
    found = []
    for width in WIDTHS.values():
        page.set_viewport_size({"width": width, "height": 900})
        found += page.evaluate(FOUND, [page.evaluate_handle("document"), {"rules": OTHERS}])
        for theme in ("light", "dark"):
            page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
            found += page.evaluate(FOUND, [page.evaluate_handle(INKS), {"runOnly": COLOURS}])
    return found


@pytest.fixture
def unfolded(visit):
    """Open a page, all of it, with axe."""

    def open_page(name):
        page = visit(name, motion="reduce")
        page.add_style_tag(content="* { transition: none !important; }")
        page.evaluate(UNFOLD)
        for box in page.locator(PLAYED).all():
            box.scroll_into_view_if_needed()
            expect(box).to_have_attribute("data-ready", "yes", timeout=20_000)
        page.evaluate(AXE)
        return page

    return open_page


@pytest.mark.parametrize("name", [*PAGES, "search", "genindex"])
def test_page_can_be_read_by_all_at_both_widths_in_both_themes(unfolded, name):
    assert faults(unfolded(name)) == []


@pytest.mark.parametrize(
    "fault, rule",
    [
        ("<img src='x.png'>", "image-alt"),
        ("<p>ink <span style='color: #9a9a9a'>of one word</span></p>", "color-contrast"),
        ("<style>[data-theme=dark] main p { color: #444 }</style>", "color-contrast"),
        ("<style>@media (max-width: 600px) { main p { color: #bbb } }</style>", "color-contrast"),
    ],
)
def test_a_fault_on_a_page_is_found(unfolded, fault, rule):
    page = unfolded("about")
    page.evaluate("fault => document.querySelector('main p').insertAdjacentHTML('afterend', fault)",
                  fault)  # fmt: skip
    assert {found.partition(":")[0] for found in faults(page)} == {rule}
