"""Sphinx extension: the scripts a page needs come from installed packages, not from the network.

MathJax (one file) and Plotly are copied once into ``_static/vendor``; Plotly, which is large, is
loaded only by pages that draw with it. Jupyter Book adds the scripts of Thebe (cells that run on a
remote server) to every page, twice, whether it is wanted or not: they are taken out.
"""

import shutil
from importlib.metadata import distribution
from pathlib import Path

VENDORED = {  # name in _static/vendor: (distribution, file inside it)
    "mathjax.js": ("sphinx-mathjax-offline", "sphinx-mathjax-offline/static/mathjax/tex-svg.js"),
    "plotly.min.js": ("plotly", "plotly/package_data/plotly.min.js"),
}


def choose_scripts(app, pagename, templatename, context, doctree):
    """Load Plotly on the pages whose body calls it, before the body runs; load Thebe on none."""
    scripts = context["script_files"]
    scripts[:] = [
        s for s in scripts if "thebe" not in f"{s} {getattr(s, 'attributes', '')}".lower()
    ]
    if "Plotly.newPlot" in context.get("body", ""):
        app.add_js_file("vendor/plotly.min.js", priority=100)


def copy_vendored(app):
    """Put the vendored scripts where the built pages will be."""
    folder = Path(app.outdir) / "_static" / "vendor"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (package, path) in VENDORED.items():
        source = Path(distribution(package).locate_file(path))
        target = folder / name
        if not target.exists() or target.stat().st_size != source.stat().st_size:
            shutil.copyfile(source, target)


def setup(app):
    """Register with Sphinx."""
    app.connect("html-page-context", choose_scripts, priority=900)
    app.connect("builder-inited", copy_vendored)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
