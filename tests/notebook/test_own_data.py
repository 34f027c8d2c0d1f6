"""The page on the user's own cells, run by papermill on files that the test writes."""

import re

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

import scmoe
from tests.conftest import make_tiny
from tests.notebook.test_runs import metrics, papermill, shown
from tests.unit.test_faults import plain

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Cannot join columns"),
    pytest.mark.filterwarnings("ignore:From 0.4 .update"),
]


def rna_and_protein():
    """Counts of RNA (CSR) and of protein, as they come from a sequencer; labels in obs."""
    tiny = make_tiny(90)
    protein = tiny["protein"].copy()
    protein.X = np.rint(np.expm1(protein.X)).astype(np.float32)
    cells = md.MuData({"rna": tiny["rna"].copy(), "protein": protein})
    cells.obs["cell_type"] = tiny.obs["cell_type"].astype(str)
    cells.obs["donor"] = np.where(np.arange(90) < 60, "a", "b")
    return cells


def run(folder, **parameters):
    folder.mkdir(exist_ok=True)
    executed = papermill("own_data", folder, folder / "no data here", **parameters)
    return executed, scmoe.data.read(folder / "cells.h5mu")


def test_files_of_rna_and_protein_come_back_with_answers(tmp_path):
    given = rna_and_protein()
    given.write_h5mu(tmp_path / "mine.h5mu")
    executed, cells = run(tmp_path / "run", data=str(tmp_path / "mine.h5mu"), epochs=3)
    assert "your own files" in shown(executed)
    assert re.search(r"ours \d+%|scMoE puts \d+%", shown(executed, "text/markdown"))
    assert set(cells.obs["scmoe_group"]) <= set(given.obs["cell_type"])
    assert cells.obs["scmoe_part"].value_counts().to_dict() == {
        "training": 61, "validation": 11, "test": 18,
    }  # fmt: skip
    assert np.isfinite(cells.obsm["X_scmoe"]).all()
    assert not [key for key in cells.obsm if key.startswith("imputed")]  # nothing was missing
    assert (cells["rna"].X != given["rna"].X).nnz == 0
    content = metrics(tmp_path / "run")
    assert list(content["provenance"]["checksums"]) == ["mine.h5mu"]
    assert content["provenance"]["parameters"]["label_key"] == "cell_type"
    assert {row["data_source"] for row in content["records"]} == {"local"}
    streams = [o for c in executed for o in c.get("outputs", []) if o["output_type"] == "stream"]
    assert not [o for o in streams if "Warning" in "".join(o["text"])]


def test_a_modality_that_a_third_of_the_cells_lack_is_imputed_for_these_alone(tmp_path):
    given = rna_and_protein()
    names = given.obs_names[np.arange(90) % 9 < 6]
    protein = given["protein"][names].copy()
    thinned = md.MuData({"rna": given["rna"], "protein": protein})
    thinned.obs["cell_type"] = given.obs["cell_type"].where(np.arange(90) >= 5)  # five unlabelled
    thinned.obs["donor"] = given.obs["donor"]
    thinned.write_h5mu(tmp_path / "mine.h5mu")
    executed, cells = run(
        tmp_path / "run", data=str(tmp_path / "mine.h5mu"), held_out=["donor", "b"]
    )
    imputed = cells.obsm["imputed_protein"]
    lacking = ~cells.obs_names.isin(names)
    assert lacking.sum() == 30
    assert list(imputed.columns) == list(protein.var_names)
    assert np.isfinite(imputed[lacking]).all(axis=None)
    assert imputed[~lacking].isna().all(axis=None)
    assert (imputed[lacking] >= 0).all(axis=None)  # counts, as measured
    part = cells.obs["scmoe_part"].astype(str)
    assert set(part[cells.obs["donor"] == "b"]) == {"test"}
    assert list(part[:5]) == ["not labelled"] * 5
    assert cells.obs["scmoe_group"].notna().all()
    assert "5 cells have no label" in shown(executed)
    assert "30 of 85 cells lack modality" in shown(executed)


def test_h5ad_files_without_labels_are_clustered(tmp_path):
    given = rna_and_protein()
    for name, adata in given.mod.items():
        ad.AnnData(adata.X, pd.DataFrame(index=adata.obs_names), adata.var).write_h5ad(
            tmp_path / f"{name}.h5ad"
        )
    data = {"rna": str(tmp_path / "rna.h5ad"), "adt": str(tmp_path / "protein.h5ad")}
    executed, cells = run(
        tmp_path / "run", data=data, label_key=None, task="unsupervised", n_groups=4
    )
    assert set(cells.obs["scmoe_group"]) <= set("0123")
    assert "*Too few numbers to tell:* ours –" in shown(executed, "text/markdown")
    records = pd.DataFrame(metrics(tmp_path / "run")["records"])
    assert set(records["task"]) == {"translation"}


def test_without_files_it_simulates_an_example_and_says_so(tmp_path):
    executed, cells = run(tmp_path / "run")
    assert "<strong>simulated cells</strong>" in shown(executed)
    assert "no files were given" in shown(executed).lower()
    assert "imputed_protein" in cells.obsm
    assert {row["data_source"] for row in metrics(tmp_path / "run")["records"]} == {"simulated"}


def test_names_that_look_like_code_are_text_all_over_the_page(tmp_path):
    given = rna_and_protein()
    names = ["<img src=x onerror=alert(1)>", "$\\frac{$ [x](javascript:alert(1))"]
    groups = ["<script>alert(1)</script>", "![x](https://example.org/x.png)", "a/b <b>"]
    hostile = scmoe.data.read(dict(zip(names, given.mod.values(), strict=True)))
    hostile.obs["cell_type"] = given.obs["cell_type"].replace(
        dict(zip(sorted(set(given.obs["cell_type"])), groups, strict=True))
    )
    scmoe.data.write(hostile, tmp_path / "mine.h5mu")
    executed, cells = run(tmp_path / "run", data=str(tmp_path / "mine.h5mu"), epochs=1)
    outputs = [o["data"] for c in executed for o in c.get("outputs", []) if "data" in o]
    tables = "".join(plain("".join(o["text/html"])) for o in outputs if "text/html" in o)
    assert all(name in tables for name in names)
    for output in outputs:
        plain(MarkdownIt().render("".join(output.get("text/markdown", ""))))
        assert "<script" not in "".join(output.get("image/svg+xml", ""))
    assert list(cells.mod) == names and set(cells.obs["scmoe_group"]) <= set(groups)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"data": "nowhere.h5mu"}, "no file nowhere.h5mu"),
        ({"allow_standin": False}, "no data given"),
        ({"label_key": None}, "task=\"supervised\" learns from labels"),
        ({"label_key": None, "task": "unsupervised"}, "n_groups=None"),
        ({"labels": "x"}, "unknown parameter 'labels'. Did you mean 'label_key'"),
    ],
    ids=str,
)  # fmt: skip
def test_parameters_that_do_not_fit_stop_it_and_leave_nothing(parameters, message, tmp_path):
    process = papermill("own_data", tmp_path / "run", tmp_path, check=False, **parameters)
    assert process.returncode != 0
    assert message in process.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["executed.ipynb"]
