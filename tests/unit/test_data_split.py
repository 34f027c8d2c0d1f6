"""The user's own cells are cut as asked, and groups are shared out fairly."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import diags_array, issparse

from scmoe.data import DataError, Transform, split_mudata
from scmoe.data.blocks import in_file
from scmoe.data.split import block_of, stratified


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_stratified_takes_a_like_share_of_each_group_and_never_all(sizes, fraction, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    chosen = stratified(labels, fraction, seed)
    taken = np.bincount(labels[chosen], minlength=len(sizes))
    assert len(np.unique(chosen)) == len(chosen)
    assert (taken <= np.maximum(np.array(sizes) - 1, 0)).all()
    assert (np.abs(taken - np.minimum(fraction * np.array(sizes), np.array(sizes) - 1)) < 1).all()


def test_stratified_takes_the_fraction_asked_for():
    labels = np.repeat(np.arange(27), 15)
    assert len(stratified(labels, 0.15, seed=0)) == round(0.15 * len(labels))


def test_blocks_have_equal_sizes_and_consecutive_rows():
    row, column = np.divmod(np.random.default_rng(0).permutation(936), 36)
    block = block_of(row, column)
    assert np.ptp(np.bincount(block)) <= 1
    assert all(row[block == k].max() <= row[block == k + 1].min() for k in range(4))


def test_own_cells_are_cut_by_fraction_and_every_group_trains(tiny):
    split = split_mudata(tiny)
    assert (split.name, split.data_source) == ("own", "local")
    assert (split.train.n_obs, split.val.n_obs, split.test.n_obs) == (41, 7, 12)
    assert set(split.train.obs["cell_type"]) == set(split.groups) == {"type0", "type1", "type2"}


def test_own_cells_are_cut_by_name(tiny):
    split = split_mudata(tiny, test=["cell3", "cell1"], val=["cell7"])
    assert list(split.test.obs_names) == ["cell1", "cell3"]
    assert list(split.val.obs_names) == ["cell7"]


def test_own_cells_are_cut_by_what_obs_says(tiny):
    tiny.obs["donor"] = np.repeat(["d1", "d2", "d3"], 20)
    split = split_mudata(tiny, test=("donor", "d3"), val=("donor", ["d2"]))
    assert set(split.test.obs["donor"]) == {"d3"}
    assert set(split.val.obs["donor"]) == {"d2"}
    assert set(split.train.obs["donor"]) == {"d1"}


def test_own_test_cells_do_not_move_the_validation_split(tiny):
    named = [f"cell{i}" for i in range(0, 60, 5)]
    before = split_mudata(tiny, test=named)
    tiny.obs["cell_type"] = np.where(tiny.obs_names.isin(named), "type0", tiny.obs["cell_type"])
    factor = np.where(tiny.obs_names.isin(named), 3.0, 1.0)
    for adata in tiny.mod.values():
        X = diags_array(factor) @ adata.X
        adata.X = X.tocsr() if issparse(X) else X
    after = split_mudata(tiny, test=named)
    assert before.val.obs_names.equals(after.val.obs_names)
    one, two = (Transform().fit(split.train).state()[1] for split in (before, after))
    for key in one:
        assert np.array_equal(one[key], two[key])


def test_cells_that_lack_a_modality_are_kept_and_counted(tiny):
    tiny.mod["protein"] = tiny.mod["protein"][20:].copy()
    tiny.update()
    split = split_mudata(tiny)
    parts = [split.train, split.val, split.test]
    assert sum(part.n_obs for part in parts) == 60
    assert sum(part.mod["protein"].n_obs for part in parts) == 40
    assert "20 of 60 cells lack modality 'protein'" in split.notes
    for part in parts:
        lacking = ~part.obsm["protein"].ravel()
        assert set(part.obs_names[lacking]) <= {f"cell{i}" for i in range(20)}


def test_a_part_may_lack_a_modality_altogether(tiny):
    tiny.mod["protein"] = tiny.mod["protein"][20:].copy()
    tiny.update()
    split = split_mudata(tiny, test=[f"cell{i}" for i in range(10)])
    assert split.test.mod["protein"].n_obs == 0
    scaled = Transform().fit(split.train).transform(split.test)
    assert scaled.n_obs == 10
    assert scaled.mod["protein"].shape == (0, 8)


def test_without_labels_cells_are_cut_at_random(tiny):
    split = split_mudata(tiny, label_key=None)
    assert split.groups == []
    assert split.label_key is None
    assert split.test.n_obs == 12


def test_spatial_coordinates_and_annotation_come_along(tiny):
    tiny.obsm["spatial"] = np.arange(120).reshape(60, 2)
    tiny.obs["row"] = np.arange(60)
    tiny.uns["about"] = "mine"
    split = split_mudata(tiny)
    assert np.array_equal(split.test.obsm["spatial"][:, 0], 2 * split.test.obs["row"])
    assert split.val.uns["about"] == "mine"


def test_backed_modalities_stay_in_their_file_and_are_read_alike(tiny, tmp_path):
    expected = split_mudata(tiny)
    for name, adata in tiny.mod.items():
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        tiny.mod[name] = anndata.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
    split = split_mudata(tiny)
    for name in tiny.mod:
        one, two = expected.test.mod[name].X, split.test.mod[name].X
        assert in_file(split.test.mod[name]) and issparse(one) == issparse(two)
        assert abs(one - two).max() == 0


@pytest.mark.parametrize("labels", [[1, 2], [True, False], [0.5, 1.5], ["a", "b"]])
def test_labels_of_any_type_become_strings(tiny, labels):
    tiny.obs["cell_type"] = (labels * 30)[:60]
    split = split_mudata(tiny)
    assert split.groups == sorted(str(label) for label in labels)
    assert isinstance(split.train.obs["cell_type"].dtype, pd.CategoricalDtype)


def test_a_group_of_one_cell_trains_and_is_reported(tiny):
    tiny.obs["cell_type"] = ["rare"] + ["common", "other"] * 29 + ["common"]
    split = split_mudata(tiny)
    assert "rare" in set(split.train.obs["cell_type"])
    assert any("rare" in note for note in split.notes)


def test_own_groups_unseen_in_training_are_reported(tiny):
    split = split_mudata(tiny, test=("cell_type", "type2"))
    assert split.groups == ["type0", "type1"]
    assert any("type2 (20)" in note for note in split.notes)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"test": 1.5}, "between 0 and 1"),
        ({"test": ["cell0", "nobody"]}, "nobody"),
        ({"test": ("donor", "d1")}, "columns: cell_type"),
        ({"test": ("cell_type", "type9")}, "holds out no cell"),
        ({"test": ["cell0"], "val": ["cell0"]}, "both in test and in val"),
        ({"test": [f"cell{i}" for i in range(60)]}, "no cell"),
        ({"test": []}, "holds out no cell"),
    ],
)
def test_impossible_parts_are_refused(tiny, parts, says):
    with pytest.raises(DataError, match=says):
        split_mudata(tiny, **parts)


def test_cutting_says_nothing_on_the_side(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = split_mudata(tiny)
        Transform().fit(split.train).transform(split.val)
