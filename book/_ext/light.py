"""Sphinx extension: pages load what they show, and no more.

The theme's icons come as a script of 1.5 MB; the few that pages use go into a style sheet instead.
Figures get their size, so that nothing moves when they come, and come when they are scrolled to.
A notebook is downloaded without its outputs, which its page shows.
Scripts of Thebe (cells that run on a remote server) are wanted on no page.
"""

import re
from pathlib import Path
from urllib.parse import quote

import nbformat
from bs4 import BeautifulSoup

SCRIPT = Path(
    "_static", "scripts", "fontawesome.js"
)  # "name":[width,height,[aliases],"f00c","path"]
UNUSED = r"fontawesome|thebe|kernelName"
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
    for tag in page.select("script, link[href]"):
        if re.search(UNUSED, f"{tag.attrs} {tag.string}"):
            tag.decompose()
    for image in page.select("main img[src$='.svg']"):
        svg = re.search(rb"<svg[^>]*>", (folder / image["src"]).read_bytes())[0].decode()
        box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
        image["width"], image["height"] = (round(float(side) * 96 / 72) for side in box.groups())
        image["loading"] = "lazy"
    used = {name for icon in page.select(':is(i, span)[class*="fa-"]') for name in icon["class"]}
    return {name.removeprefix("fa-") for name in used if name.startswith("fa-")}


def finish(app, error):
    """Lighten the built pages."""
    if error or app.builder.format != "html":
        return
    out, used = Path(app.outdir), set()
    for file in out.rglob("*.html"):
        if "_static" not in file.parts:
            page = BeautifulSoup(file.read_text(), "html.parser")
            used |= lighten(page, file.parent)
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
