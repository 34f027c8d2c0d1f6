"""Each fault gets one error that names modality, key and remedy."""

import anndata
import mudata
import numpy as np
import pytest
from scipy import sparse

from scmoe.data import DataError, Transform, check
from scmoe.data.blocks import matrix


def replace(mdata, name, adata):
    """The same MuData with another modality."""
    return mudata.MuData({**mdata.mod, name: adata})


def with_x(adata, X):
    return anndata.AnnData(X, obs=adata.obs.copy(), var=adata.var.copy())


def test_a_good_mudata_passes_without_a_word(tiny):
    assert check(tiny, "cell_type") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("rna", np.nan), ("rna", np.inf), ("morph", np.inf), ("morph", -np.inf)],
)
def test_values_that_are_not_finite_are_located(tiny, name, value):
    X = tiny.mod[name].X.astype(np.float64)
    X = X.tolil() if sparse.issparse(X) else X
    X[7, 3] = value
    tiny.mod[name].X = sparse.csr_matrix(X) if sparse.issparse(X) else X
    feature = tiny.mod[name].var_names[3]
    with pytest.raises(DataError, match=f"'{name}'.*'cell7'.*'{feature}'"):
        check(tiny)


def test_missing_values_of_a_dense_modality_are_counted_in_one_note(tiny):
    tiny.mod["morph"].X[[7, 8, 9], [3, 3, 5]] = np.nan
    assert check(tiny) == [
        "3 values of modality 'morph' (0.5%) are missing: each is filled with its feature's mean "
        "over the training cells, and not scored"
    ]


def test_a_modality_of_missing_values_alone_is_refused(tiny):
    tiny.mod["morph"].X[:] = np.nan
    with pytest.raises(DataError, match="'morph': all values are missing"):
        check(tiny)


def test_only_the_modalities_asked_for_are_read(tiny):
    tiny.mod["morph"].X[:] = np.nan
    check(tiny, modalities=["rna", "protein"])
    with pytest.raises(DataError, match="morph"):
        check(tiny)


def test_an_unknown_modality_is_refused_with_what_there_is(tiny):
    with pytest.raises(DataError, match="rna, protein, morph"):
        check(tiny, modalities=["atac"])


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"modalities": ["protien"]}, "did you mean 'protein'"),
        ({"modalities": 3}, "modalities=3: it takes names of modalities"),
        ({"label_key": "celltype"}, "did you mean 'cell_type'"),
        ({"label_key": 3}, "label_key=3: it takes the name of a column"),
    ],
)
def test_what_is_asked_for_and_is_not_there_is_named_with_what_was_meant(tiny, asked, says):
    with pytest.raises(DataError, match=says):
        check(tiny, **asked)


@pytest.mark.parametrize("text", ["nan", "NA", "None", "<NA>", " n/a ", ""])
def test_text_that_looks_like_a_missing_label_is_asked_about(tiny, text):
    tiny.obs["cell_type"] = [text] * 5 + ["a", "b"] * 27 + ["a"]
    with pytest.raises(DataError, match=f"the text '{text}' for 5 cells: are these without a"):
        check(tiny, "cell_type")


def test_an_anndata_is_refused_with_the_way_to_a_mudata(tiny):
    with pytest.raises(DataError, match=r"scmoe\.data\.read"):
        check(tiny.mod["rna"])


def test_repeated_cells_are_named(tiny):
    adata = tiny.mod["morph"].copy()
    adata.obs_names = ["cell0", "cell0", *adata.obs_names[2:]]
    with pytest.warns(UserWarning):
        changed = replace(tiny, "morph", adata)
    with pytest.raises(DataError, match="'morph': obs_names repeat .cell0"):
        check(changed)


def test_repeated_features_are_named(tiny):
    tiny.mod["protein"].var_names = ["CD3", "CD3", *tiny.mod["protein"].var_names[2:]]
    with pytest.raises(DataError, match="'protein': var_names repeat .CD3.*make_unique"):
        check(tiny)


def test_the_same_feature_name_in_two_modalities_is_fine(tiny):
    tiny.mod["protein"].var_names = tiny.mod["rna"].var_names[:8]
    check(tiny)
    assert Transform().fit(tiny).modalities == ["rna", "protein", "morph"]


def test_a_modality_changed_behind_the_mudatas_back_is_noticed(tiny):
    tiny.mod["rna"] = tiny.mod["rna"][:30].copy()
    with pytest.raises(DataError, match=r"'rna'.*mdata\.update\(\)"):
        check(tiny)


def test_modalities_of_other_cells_are_refused(tiny):
    adata = tiny.mod["morph"].copy()
    adata.obs_names = [f"other{i}" for i in range(60)]
    with pytest.raises(DataError, match="'morph' shares no cell.*'other0'.*'cell0'"):
        check(replace(tiny, "morph", adata))


def test_a_transposed_modality_is_recognised(tiny):
    with pytest.raises(DataError, match=r"'morph' is transposed.*adata\.T"):
        check(replace(tiny, "morph", tiny.mod["morph"].T.copy()))


@pytest.mark.parametrize("cut", [(slice(0, 0), slice(None)), (slice(None), slice(0, 0))])
def test_an_empty_modality_is_refused(tiny, cut):
    with pytest.raises(DataError, match="'morph' is empty"):
        check(replace(tiny, "morph", tiny.mod["morph"][cut].copy()))


@pytest.mark.parametrize("dtype", ["U5", "object", "complex64"])
def test_values_that_are_not_numbers_are_refused(tiny, dtype):
    adata = tiny.mod["morph"]
    tiny.mod["morph"] = with_x(adata, adata.X.astype(dtype))
    with pytest.raises(DataError, match="'morph': X holds .*astype"):
        check(tiny)


def test_a_modality_without_x_is_refused(tiny):
    tiny.mod["morph"].X = None
    with pytest.raises(DataError, match="'morph' has no X"):
        check(tiny)


def test_a_part_of_a_file_that_cannot_be_read_is_refused_with_the_remedy(tiny, tmp_path):
    tiny.mod["rna"].write_h5ad(tmp_path / "rna.h5ad")
    backed = anndata.read_h5ad(tmp_path / "rna.h5ad", backed="r")
    turned = backed[::-1]
    check(mudata.MuData({"rna": turned}))
    assert abs(matrix(turned)[:] - tiny["rna"].X[::-1]).max() == 0
    with pytest.raises(DataError, match="'rna'.*cannot be read.*read the file into memory"):
        check(mudata.MuData({"rna": backed[::-1, :5]}))


def test_missing_labels_are_refused_with_the_columns_there_are(tiny):
    with pytest.raises(DataError, match="no column 'leiden'.*cell_type.*label_key"):
        check(tiny, "leiden")


def test_labels_inside_a_modality_are_pointed_at(tiny):
    tiny.mod["rna"].obs["leiden"] = "a"
    with pytest.raises(DataError, match="modality 'rna' has it"):
        check(tiny, "leiden")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["one"] * 60, "one group only"),
        ([f"cell{i}" for i in range(60)], "a group for every cell"),
        ([None, "a", "b"] * 20, "missing for 20 cells"),
    ],
)
def test_labels_that_say_nothing_are_refused(tiny, labels, says):
    tiny.obs["cell_type"] = labels
    with pytest.raises(DataError, match=says):
        check(tiny, "cell_type")


def test_a_mudata_of_shared_features_is_refused(tiny):
    halves = {"one": tiny.mod["morph"][:30].copy(), "two": tiny.mod["morph"][30:].copy()}
    with pytest.raises(DataError, match="axis=0"):
        check(mudata.MuData(halves, axis=1))
