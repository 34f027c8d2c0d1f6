"""The user's own cells: who is trained on, what is added, and which parameters go together."""

import numpy as np
import pytest

import scmoe
from scmoe import own
from tests.conftest import make_tiny

CONFIG = scmoe.Config().replace(d=16, n_heads=2, n_experts=4, members=2, epochs=1)


@pytest.fixture(scope="module")
def cells():
    """Ninety cells: five without a label, a third without protein."""
    tiny = make_tiny(90)
    with_protein = tiny.obs_names[np.arange(90) % 3 > 0]
    mod = {"rna": tiny["rna"].copy(), "protein": tiny["protein"][with_protein].copy()}
    obs = tiny.obs[["cell_type"]].astype(object)
    obs.iloc[:5] = None
    return scmoe.data.cells.make_mudata(mod, obs)


def test_cells_without_a_label_are_in_no_part_and_counted(cells):
    split = own.split_labelled(cells, "cell_type")
    parts = [split.train, split.val, split.test]
    assert sum(part.n_obs for part in parts) == 85
    assert "5 cells have no label in obs['cell_type']" in split.notes[-1]


def test_without_labels_all_cells_are_split_and_groups_are_numbers(cells):
    split = own.split_labelled(cells, None, n_groups=4)
    assert sum(part.n_obs for part in (split.train, split.val, split.test)) == 90
    assert split.groups == ["0", "1", "2", "3"]


def test_answers_reach_every_cell_and_fill_only_what_was_not_measured(cells, tmp_path):
    split = own.split_labelled(cells, "cell_type")
    model = scmoe.ScMoE("supervised", CONFIG).fit(split, device="cpu", progress=False)
    added = own.answers(model, cells, split)
    back = scmoe.data.read(scmoe.data.write(cells, tmp_path / "cells.h5mu"))
    imputed = back.obsm["imputed_protein"]
    lacking = ~back.obs_names.isin(back["protein"].obs_names)
    assert np.isfinite(imputed[lacking]).all(axis=None)
    assert imputed[~lacking].isna().all(axis=None)
    assert added.at["obsm imputed_protein", "cells"] == lacking.sum() == 30
    assert back.obs["scmoe_group"].notna().all()
    assert back.obs["scmoe_part"].value_counts()["not labelled"] == 5
    assert "imputed_rna" not in back.obsm


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("supervised", None, None), 'task="supervised" learns from labels'),
        (("unsupervised", None, None), "n_groups=None"),
        (("unsupervised", None, 1), "n_groups=1"),
        (("supervised", "cell_type", 3), "n_groups is for cells without labels"),
    ],
    ids=str,
)
def test_parameters_that_do_not_go_together_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        own.check_task(*given)


def test_files_of_one_name_keep_a_checksum_each(tmp_path):
    for folder in ("rna", "adt"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "filtered.h5ad").write_text(folder)
    data = {folder: str(tmp_path / folder / "filtered.h5ad") for folder in ("rna", "adt")}
    before = own.checksums_of(data)
    assert list(before) == ["rna/filtered.h5ad", "adt/filtered.h5ad"]
    (tmp_path / "rna" / "filtered.h5ad").write_text("another")
    after = own.checksums_of(data)
    assert before["rna/filtered.h5ad"] != after["rna/filtered.h5ad"]
    assert before["adt/filtered.h5ad"] == after["adt/filtered.h5ad"]
