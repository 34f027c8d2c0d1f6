"""Sphinx extension: pages load what they show, and no more; what they hold, all can read.

The theme's icons come as a script of 1.5 MB; the few that pages use go into a style sheet instead.
Figures get their size, so that nothing moves when they come, and come when they are scrolled to;
they have the page's ground, and say how wide they must be for their smallest word to be read.
A notebook is downloaded without its outputs, which its page shows.
Scripts of Thebe (cells that run on a remote server) are wanted on no page, the search's on one;
the others wait until the page is there.
What Sphinx and pandas write against the rules of HTML and ARIA is mended.
Folded code that shows nothing stands below what a page says first; words in tables start left.
"""

import re
from itertools import zip_longest
from pathlib import Path
from urllib.parse import quote

import nbformat
from bs4 import BeautifulSoup

SCRIPT = Path(
    "_static", "scripts", "fontawesome.js"
)  # "name":[width,height,[aliases],"f00c","path"]
UNUSED = r"fontawesome|thebe|kernelName|preload"
GROUND = rb'(<g id="patch_[12]">\s*<path d="[^"]*" style="fill: )#ffffff'
LEGIBLE = 9.2  # pixels
SEARCH = r"searchtools|language_data|searchindex"
ICON = r'[{{,]"?{name}"?:\[(\d+),(\d+),\[[^\]]*\],"\w+","([^"]+)"'
ALIAS = r'[{{,]"?([\w-]+)"?:\[\d+,\d+,\[[^\]]*"{name}"'
STYLE = """:is(i, span)[class*="fa-"] { font-family: inherit; }
:is(i, span)[class*="fa-"]::before {
  content: ""; display: inline-block; width: 1em; height: 1em; background: currentColor;
  mask: var(--icon) center / contain no-repeat; vertical-align: -.125em;
}
"""


def icons(names: set[str], script: str) -> str:
    """Give the style sheet of some icons; names that the script does not know are left out."""
    rules = [STYLE]
    for name in sorted(names):
        alias = re.search(ALIAS.format(name=name), script)
        if found := re.search(ICON.format(name=alias[1] if alias else name), script):
            width, height, path = found.groups()
            picture = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
            picture = quote(f'{picture}<path d="{path}"/></svg>')
            rules.append(f'.fa-{name} {{ --icon: url("data:image/svg+xml,{picture}"); }}\n')
    return "".join(rules)


def lighten(page: BeautifulSoup, folder: Path) -> set[str]:
    """Take scripts out that are not used, size the figures; give the names of the icons."""
    unused = UNUSED if page.select_one("#search-results") else f"{UNUSED}|{SEARCH}"
    for tag in page.select("script:not([type]), link[href]"):
        if re.search(unused, f"{tag.attrs} {tag.string}"):
            tag.decompose()
    for script in page.select("head script[src]:not([src*=documentation_options])"):
        script["defer"] = ""
    for image in page.select("main img[src$='.svg']"):
        file = folder / image["src"]
        drawn = re.sub(GROUND, rb"\1none", file.read_bytes())
        file.write_bytes(drawn)
        box = re.search(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)
        image["width"], image["height"] = (round(float(side) * 96 / 72) for side in box.groups())
        image["loading"] = "lazy"
        if words := re.findall(rb"scale\(([\d.]+) -", drawn):  # matplotlib's letters have 100 units
            width = LEGIBLE * float(box[1]) / (100 * min(map(float, words)))
            image["style"] = f"--legible: {round(width)}px"
    used = {name for icon in page.select(':is(i, span)[class*="fa-"]') for name in icon["class"]}
    return {name.removeprefix("fa-") for name in used if name.startswith("fa-")}


def mend(page: BeautifulSoup) -> None:
    """Say what parts of a page are, to who does not see it."""
    for sidebar in page.select("#pst-primary-sidebar"):
        sidebar.attrs |= {"role": "region", "aria-label": "Sidebar"}
    for opener in page.select("summary:has(.toctree-toggle)"):
        opener["aria-label"] = "Pages of this chapter"
    for cell in page.select("th"):
        if not cell.get_text(strip=True):  # the corner of a table, or a name given once for many
            cell.name = "td"
    for table in page.select("table.dataframe"):
        lines = [line.find_all(["th", "td"], recursive=False)[::-1] for line in table.select("tr")]
        for column in zip_longest(*lines):  # from the right: a name on the left may span lines
            cells = [cell for cell in column if cell]
            if any(c.find_parent("tbody") and re.search(r"[^\W\d_]{2}", c.text) for c in cells):
                for cell in cells:
                    cell["class"] = "scmoe-words"
    silent = "div.cell:has(> details.hide):not(:has(.cell_output))"
    for first in page.select("article > section > section:first-of-type"):
        lead = first.find_previous_siblings("div", "cell")[::-1]
        for cell in filter(lambda cell: cell.css.match(silent), lead):
            first.insert_before(cell.extract())
    for entry in page.select("[role=doc-biblioentry]"):
        entry["role"] = "listitem"
    for parameters in page.select("dt.sig > dl"):
        parameters.attrs, parameters.name = {"class": "sig-lines"}, "div"
        for line in parameters.find_all("dd", recursive=False):
            line.name = "div"


def finish(app, error):
    """Lighten and mend the built pages."""
    if error or app.builder.format != "html":
        return
    out, used = Path(app.outdir), set()
    for file in out.rglob("*.html"):
        if "_static" not in file.parts:
            page = BeautifulSoup(file.read_text(), "html.parser")
            used |= lighten(page, file.parent)
            mend(page)
            file.write_text(str(page))
    (out / "_static" / "icons.css").write_text(icons(used, (out / SCRIPT).read_text()))
    for file in out.glob("_sources/runs/**/*.ipynb"):  # what a reader downloads to run it
        notebook = nbformat.read(file, 4)
        for cell in notebook.cells:
            cell |= {"outputs": [], "execution_count": None} if cell.cell_type == "code" else {}
        nbformat.write(notebook, file)
    for file in (out / "_static").rglob("*"):
        if file.suffix in (".map", ".ttf", ".scss") or file == out / SCRIPT:
            file.unlink()


def setup(app):
    """Register with Sphinx."""
    app.add_css_file("icons.css")
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
