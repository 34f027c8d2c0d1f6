"""The reviewers' page, run by papermill on the committed tables."""

import re

import pytest

from tests.notebook.test_runs import ROOT, papermill, shown

pytestmark = pytest.mark.slow


def test_every_question_has_its_answer_and_every_sentence_holds(tmp_path):
    cells = papermill("questions", tmp_path, tmp_path)
    said = shown(cells, "text/markdown")
    assert "In this run not shown" not in said and "Too few numbers" not in said
    titles = "".join("".join(cell["source"]) + "\n" for cell in cells)
    assert re.findall(r"^## (\d+) ·", titles, re.M) == [str(n) for n in range(1, 15)]
    glued = {
        output["metadata"]["scrapbook"]["name"]
        for cell in cells
        for output in cell.get("outputs", [])
        if output.get("metadata", {}).get("scrapbook")
    }
    quoted = re.findall(r"_generated/(front-[\w-]+)", (ROOT / "book" / "index.md").read_text())
    assert glued == set(quoted)
    assert not [o for c in cells for o in c.get("outputs", []) if o["output_type"] == "stream"]
