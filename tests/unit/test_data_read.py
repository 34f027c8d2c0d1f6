"""The user's cells are read from objects and files of the usual formats."""

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scmoe.data import DataError, read, split_mudata


@pytest.fixture
def parts(tiny):
    """RNA with labels and protein for two thirds of its cells, as AnnData."""
    rna, protein = tiny.mod["rna"].copy(), tiny.mod["protein"][20:].copy()
    rna.obs["cell_type"] = tiny.obs["cell_type"]
    protein.obs["cell_type"] = tiny.obs["cell_type"]
    return {"rna": rna, "protein": protein}


def test_a_mudata_is_given_back_as_it_is(tiny):
    assert read(tiny) is tiny


def test_a_dict_of_anndata_becomes_modalities_with_shared_labels(parts):
    mdata = read(parts)
    assert list(mdata.mod) == ["rna", "protein"]
    assert mdata.n_obs == 60
    assert mdata.obs["cell_type"].notna().all()
    assert split_mudata(mdata).modalities == ["rna", "protein"]


def test_labels_on_which_modalities_disagree_are_not_shared(parts):
    parts["protein"].obs["cell_type"] = "other"
    mdata = read(parts)
    assert "cell_type" not in mdata.obs
    with pytest.raises(DataError, match="modality 'rna' has it"):
        split_mudata(mdata)


def test_a_list_is_named_by_feature_types(parts):
    parts["rna"].var["feature_types"] = "Gene Expression"
    parts["protein"].var["feature_types"] = "Antibody Capture"
    assert list(read(list(parts.values())).mod) == ["rna", "protein"]


def test_a_list_without_feature_types_is_numbered(parts):
    assert list(read(list(parts.values())).mod) == ["modality1", "modality2"]


def test_one_matrix_of_two_feature_types_becomes_two_modalities(parts):
    both = anndata.concat(
        [parts["rna"][20:], anndata.AnnData(sparse.csr_matrix(parts["protein"].X),
                                            obs=parts["protein"].obs, var=parts["protein"].var)],
        axis=1, merge="first",
    )  # fmt: skip
    both.var["feature_types"] = ["Gene Expression"] * 24 + ["Antibody Capture"] * 8
    mdata = read(both)
    assert {name: adata.n_vars for name, adata in mdata.mod.items()} == {"rna": 24, "protein": 8}


@pytest.mark.parametrize("ending", ["h5mu", "zarr"])
def test_a_mudata_file_comes_back(tiny, tmp_path, ending):
    path = tmp_path / f"cells.{ending}"
    (tiny.write_h5mu if ending == "h5mu" else tiny.write_zarr)(path)
    mdata = read(path)
    assert list(mdata.mod) == ["rna", "protein", "morph"]
    assert np.array_equal(mdata.mod["morph"].X, tiny.mod["morph"].X)
    assert list(mdata.obs["cell_type"]) == list(tiny.obs["cell_type"])


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_anndata_files_are_named_after_themselves(parts, tmp_path, ending):
    paths = []
    for name, adata in parts.items():
        paths.append(tmp_path / f"{name}.{ending}")
        (adata.write_h5ad if ending == "h5ad" else adata.write_zarr)(paths[-1])
    mdata = read(paths)
    assert list(mdata.mod) == ["rna", "protein"]
    assert list(read({"mrna": paths[0]}).mod) == ["mrna"]
    assert list(read(str(paths[0])).mod) == ["rna"]


def write_10x(path):
    """Three cells, two genes of one symbol, and an antibody, as Cell Ranger writes them."""
    X = sparse.csc_matrix(np.array([[1, 0, 2], [0, 3, 0], [5, 6, 7]], dtype=np.int32))
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for key, values in (("data", X.data), ("indices", X.indices), ("indptr", X.indptr)):
            group[key] = values
        group["shape"] = X.shape
        group["barcodes"] = np.array([b"AAA-1", b"CCC-1", b"GGG-1"])
        features = group.create_group("features")
        features["id"] = np.array([b"ENSG1", b"ENSG2", b"CD3"])
        features["name"] = np.array([b"TBCE", b"TBCE", b"CD3"])
        features["genome"] = np.array([b"hg38", b"hg38", b""])
        kinds = [b"Gene Expression", b"Gene Expression", b"Antibody Capture"]
        features["feature_type"] = np.array(kinds)


def test_a_10x_file_becomes_one_modality_per_feature_type(tmp_path):
    write_10x(tmp_path / "filtered_feature_bc_matrix.h5")
    mdata = read(tmp_path / "filtered_feature_bc_matrix.h5")
    assert {name: adata.shape for name, adata in mdata.mod.items()} == {
        "rna": (3, 2),
        "protein": (3, 1),
    }
    assert mdata.mod["rna"].var_names.is_unique


def test_a_damaged_file_is_named(tiny, tmp_path):
    path = tmp_path / "cells.h5mu"
    tiny.write_h5mu(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="cells.h5mu"):
        read(path)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere.h5ad", "no file"),
        (3, "cannot read a int"),
        ([], "nothing to read"),
        ({"rna": pd.DataFrame()}, "cannot read a DataFrame"),
    ],
)
def test_what_cannot_be_read_is_refused(source, says):
    with pytest.raises(DataError, match=says):
        read(source)


def test_unknown_endings_are_refused_with_the_known(tmp_path):
    (tmp_path / "cells.csv").write_text("a,b")
    with pytest.raises(DataError, match="h5mu.*h5ad"):
        read(tmp_path / "cells.csv")


def test_two_modalities_of_one_name_are_refused(parts):
    for adata in parts.values():
        adata.var["feature_types"] = "Gene Expression"
    with pytest.raises(DataError, match="two modalities called 'rna'"):
        read(list(parts.values()))


def test_cells_that_repeat_are_refused(parts):
    parts["rna"].obs_names = ["cell0"] * 60
    with pytest.raises(DataError, match="'rna': obs_names repeat"):
        read(parts)


def test_a_whole_mudata_is_not_a_modality(tiny):
    with pytest.raises(DataError, match="whole MuData"):
        read({"rna": mudata.MuData({"rna": tiny.mod["rna"]})})
