"""Sphinx extension: where SCMOE_REPOSITORY says the repository is, pages link to it; else not."""

import os
import re

BINDER = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
RUN = r"/book/runs/[^/]+/([^/.-]+)[^/]*\.ipynb"


def address(app, config):
    """Turn the theme's buttons on."""
    if url := os.environ.get("SCMOE_REPOSITORY"):
        buttons = dict.fromkeys(("use_repository_button", "use_edit_page_button",
                                 "use_issues_button"), True)  # fmt: skip
        place = {"repository_url": url, "repository_branch": "main", "path_to_docs": "book"}
        config.html_theme_options |= buttons | place | {"launch_buttons": BINDER}


def template(app, pagename, templatename, context, doctree):
    """A run is edited, and opened to try, where its template is."""
    for button in context.get("header_buttons", []):
        for link in button.get("buttons", []):
            if "url" in link:
                link["url"] = re.sub(RUN, r"/notebooks/\1.ipynb", link["url"])


def setup(app):
    """Register with Sphinx."""
    app.connect("config-inited", address)
    app.connect("html-page-context", template, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
