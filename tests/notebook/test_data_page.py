"""The data page, run where there are no files: it says so, and measures on stand-ins."""

import re

import pandas as pd
import pytest

from tests.notebook.test_runs import metrics, papermill, shown

pytestmark = pytest.mark.slow


def test_the_page_shows_every_set_and_marks_each_as_what_it_is(tmp_path):
    cells = papermill("data", tmp_path / "run", tmp_path)
    page = shown(cells)
    assert page.count("a simulated stand-in") == 4
    assert "Of the five sets, 0 are measured cells here" in shown(cells, "text/markdown")
    captions = re.findall("<caption>(.*?)</caption>", page)
    told = [words for words in captions if words.endswith("values of the training cells")]
    assert sum("stand-in: simulated" in words for words in told) == 4
    assert sum("(simulated cells)" in words for words in told) == 1
    assert "Not tested on simulated stand-ins" in shown(cells, "text/markdown")
    records = pd.DataFrame(metrics(tmp_path / "run")["records"])
    accuracy = records[records["metric"] == "accuracy"]
    assert set(accuracy["data_source"]) == {"stand-in"}
    assert accuracy.groupby("method")["fold"].apply(set).tolist() == [{0, "block-0", "block-1"}] * 3
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "stream" and o["name"] == "stderr"]
