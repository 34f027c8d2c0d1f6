"""Sphinx extension: where SCMOE_REPOSITORY says the repository is, pages link to it; else not."""

import os


def address(app, config):
    """Turn the theme's buttons on."""
    if url := os.environ.get("SCMOE_REPOSITORY"):
        buttons = dict.fromkeys(("use_repository_button", "use_edit_page_button",
                                 "use_issues_button"), True)  # fmt: skip
        place = {"repository_url": url, "repository_branch": "main", "path_to_docs": "book"}
        config.html_theme_options |= buttons | place


def template(app, pagename, templatename, context, doctree):
    """A run is edited where its template is."""
    for button in context.get("header_buttons", []):
        for link in button.get("buttons", []):
            if link["label"] == "source-edit-button" and pagename.startswith("runs/"):
                name = pagename.rpartition("/")[2].partition("-")[0]
                link["url"] = link["url"].partition("/book/")[0] + f"/notebooks/{name}.ipynb"


def setup(app):
    """Register with Sphinx."""
    app.connect("config-inited", address)
    app.connect("html-page-context", template, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
