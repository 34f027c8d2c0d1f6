"""The pages of the built book, and the widths that they are looked at."""

from pathlib import Path

import yaml

BOOK = Path(__file__).parents[2] / "book"
HTML = BOOK / "_build" / "html"
PARTS = yaml.safe_load((BOOK.parent / "_toc.yml").read_text())["parts"]
CHAPTERS = [chapter for part in PARTS for chapter in part["chapters"]]
PAGES = ["index", *(page["file"] for c in CHAPTERS for page in (c, *c.get("sections", [])))]
RUNS = [page for page in PAGES if page.startswith("runs/")]
WIDTHS = {"desktop": 1280, "phone": 390}
