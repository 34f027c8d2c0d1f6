"""The interpretability page, run by papermill on a few cells in the published layout."""

import numpy as np
import pandas as pd
import pytest

from tests.notebook.test_runs import few_cells, metrics, papermill  # noqa: F401 -- a fixture

pytestmark = pytest.mark.slow


def test_it_explains_the_model_that_the_data_sets_own_page_left(few_cells, tmp_path):  # noqa: F811
    papermill("patchseq", tmp_path / "patchseq", few_cells)
    folder = tmp_path / "interpretability"
    cells = papermill("interpretability", folder, few_cells, dataset="patchseq")
    left = metrics(folder)
    assert left["provenance"]["model"] == f"loaded from {tmp_path / 'patchseq' / 'model'}"
    assert (folder / "model" / "model.json").exists()
    records = pd.DataFrame(left["records"])
    assert set(records["task"]) == {"interpretability"}
    assert np.isfinite(records["value"]).all()
    warned = [o for c in cells for o in c.get("outputs", []) if "Warning" in str(o.get("text", ""))]
    assert not warned


def test_it_trains_by_itself_and_explains_clusters_of_the_papers_model(few_cells, tmp_path):  # noqa: F811
    asked = {"dataset": "dbitseq", "protocol": "paper", "task": "unsupervised"}
    papermill("interpretability", tmp_path, few_cells, **asked)
    assert metrics(tmp_path)["provenance"]["model"] == "trained"
