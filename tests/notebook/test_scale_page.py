"""The page on the learning curve, run by papermill on the committed table."""

import pandas as pd
import pytest

from tests.notebook.test_runs import metrics, papermill, shown

pytestmark = pytest.mark.slow


def test_every_sentence_holds_and_the_page_says_what_is_not_measured(tmp_path):
    cells = papermill("scale", tmp_path, tmp_path)
    said = shown(cells, "text/markdown")
    assert said.startswith("**Takeaway.** Sparse experts")
    assert "In this run not shown" not in said and "Too few numbers" not in said
    assert "Not measured yet" in said
    assert shown(cells, "image/svg+xml").count("<svg") == 4
    assert "(simulated cells)" in shown(cells)
    assert {row["data_source"] for row in metrics(tmp_path)["records"]} == {"simulated"}
    assert len(pd.read_csv(tmp_path / "scale.csv")) > 0
