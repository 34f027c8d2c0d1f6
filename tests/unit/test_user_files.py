"""What users' files look like: each is read, kept and written as it is, or refused in one line."""

import shutil
from pathlib import Path

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scmoe
from scmoe.data import DataError, Transform, check_writable, read, split_mudata, write
from scmoe.data.cells import make_mudata
from scmoe.data.check import DataWarning
from scmoe.data.files import checksums
from scmoe.data.write import escaped, unescape

N = 60
FILES = Path(__file__).parents[1] / "files"


def cite(n=N, genes=40, proteins=8, names=None):
    """Counts of RNA and protein of three groups of cells."""
    rng = np.random.default_rng(0)
    group = np.arange(n) % 3
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(np.array(["B", "T", "NK"])[group])},
        index=[f"AAAC{i:05d}-1" for i in range(n)],
    )
    rate = 1 + 5 * (group[:, None] == np.arange(genes) % 3)
    rna = sparse.csr_matrix(rng.poisson(rate).astype(np.float32))
    level = 20 * (1 + 4 * (group[:, None] == np.arange(proteins) % 3))
    adt = sparse.csr_matrix(rng.poisson(level).astype(np.float32))
    var = pd.DataFrame(index=names or [f"CD{i}" for i in range(proteins)])
    genes = pd.DataFrame(index=[f"GENE{i}" for i in range(genes)])
    return anndata.AnnData(rna, obs.copy(), genes), anndata.AnnData(adt, obs.copy(), var)


def both(n=N, **options):
    """The same as a MuData in which ten cells lack RNA."""
    rna, adt = cite(n, **options)
    return read({"rna": rna[: n - 10].copy(), "protein": adt})


def again(mdata, folder):
    """What comes back from a file."""
    return read(write(mdata, folder / "cells.h5mu"))


# --- columns keep their types ---------------------------------------------------------------

COLUMNS = {  # what a modality has of all cells: its type there, and where ten cells lack it
    "int": (np.arange(N), "int64", "Int64"),
    "int8": (np.arange(N, dtype=np.int8), "int8", "Int8"),
    "flag": (np.arange(N) % 7 == 0, "bool", "boolean"),
    "float": (np.arange(N, dtype=np.float32) / 3, "float32", "float32"),
    "Int64": (pd.array([None, *range(1, N)], dtype="Int64"), "Int64", "Int64"),
    "boolean": (pd.array([None, *[True] * (N - 1)], dtype="boolean"), "boolean", "boolean"),
    "string": (pd.array([None, *["a"] * (N - 1)], dtype="string"), "string", "string"),
    "text": ([f"cell {i}" for i in range(N)], "object", "object"),
    "number categories": (pd.Categorical(np.arange(N) % 3), "category", "category"),
    "ordered": (pd.Categorical(["b", "a"] * 30, ["b", "a", "never"], True), "category", "category"),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_keeps_its_type_and_values_there_and_back(column, tmp_path):
    values, whole, lacking = COLUMNS[column]
    rna, adt = cite()
    rna.obs["x"] = values
    m = read({"rna": rna, "protein": adt})
    assert m.obs["x"].dtype == whole
    pd.testing.assert_series_equal(m.obs["x"], rna.obs["x"])
    some = rna[: N - 10].copy()
    m = read({"rna": some, "protein": adt})
    assert m.obs["x"].dtype == lacking
    assert m.obs["x"][: N - 10].tolist() == some.obs["x"].tolist() or some.obs["x"].isna().any()
    back = again(m, tmp_path)
    pd.testing.assert_series_equal(back.mod["rna"].obs["x"], some.obs["x"])
    if column == "text":  # of which ten are missing: as AnnData itself writes it
        lacking = "category"
        m.obs["x"] = m.obs["x"].astype("category")
    assert back.obs["x"].dtype == lacking
    pd.testing.assert_series_equal(back.obs["x"], m.obs["x"])


@pytest.mark.parametrize(
    ("values", "first"),
    [
        (pd.date_range("2020-01-01", periods=N), "2020-01-01"),
        (pd.cut(np.arange(N), 3), "(-0.059, 19.667]"),
        ([1, "a", True] * 20, "1"),
    ],
)
def test_what_a_file_has_no_type_for_is_written_as_text(values, first, tmp_path):
    m = both()
    m.obs["x"] = values
    kept = m.obs["x"].copy()
    assert str(again(m, tmp_path).obs["x"].iloc[0]) == first
    pd.testing.assert_series_equal(m.obs["x"], kept)  # the user's own is left alone


@pytest.mark.parametrize(
    ("values", "dtype", "first"),
    [
        (pd.array([0.5, None] * 30, dtype="Float64"), "float64", 0.5),  # which AnnData cannot write
        (pd.Series([1] * N, dtype=object), "int64", 1),
        (pd.Series([True, None] * 30, dtype=object), "boolean", True),
        ([2**70] * N, "object", str(2**70)),
    ],
)
def test_what_a_file_has_another_type_for_keeps_its_values(values, dtype, first, tmp_path):
    m = both()
    m.obs["x"] = np.asarray(values) if isinstance(values, pd.Series) else values
    back = again(m, tmp_path).obs["x"]
    assert (back.dtype, back.iloc[0]) == (dtype, first)
    assert back.isna().tolist() == m.obs["x"].isna().tolist()


def test_categories_of_two_modalities_are_joined_in_order():
    rna, adt = cite()
    rna, adt = rna[:40].copy(), adt[20:].copy()
    rna.obs["x"] = pd.Categorical(["b"] * 20 + ["a"] * 20, ["b", "a"])
    adt.obs["x"] = pd.Categorical(["a"] * 20 + ["c"] * 20, ["c", "a"])
    x = read({"rna": rna, "protein": adt}).obs["x"]
    assert list(x.cat.categories) == ["b", "a", "c"]
    assert list(x) == ["b"] * 20 + ["a"] * 20 + ["c"] * 20


@pytest.mark.parametrize("dtype", [np.int64, np.float64, "Int64", "category"])
def test_integer_labels_are_named_as_integers_and_held_out_by_them(dtype):
    m = both(120)
    m.obs["leiden"] = pd.Series(np.arange(120.0) % 3, m.obs_names).astype(dtype)
    m.obs["donor"] = pd.Series(np.arange(120.0) // 30, m.obs_names).astype(dtype)
    split = split_mudata(m, "leiden", test=("donor", 2))
    assert split.groups == ["0", "1", "2"]
    assert split.test.n_obs == 30
    assert split_mudata(m, "leiden", test=["donor", [2.0, "3"]]).test.n_obs == 60


# --- names ----------------------------------------------------------------------------------

NAMES = ["HLA-A", "HLA-A/B/C", "_index", "", ".", "%-", "%-a%+", "100%25", "a\0b", "é/ü", "index"]


def test_any_name_of_a_column_comes_back(tmp_path):
    m = both()
    m.obsm["table"] = pd.DataFrame(np.ones((N, len(NAMES))), m.obs_names, NAMES)
    m.mod["rna"].obs[NAMES] = 1
    m.mod["rna"].var[NAMES] = 2
    m.mod["rna"].layers["spliced/un"] = m.mod["rna"].X.copy()
    m.uns["my/notes"] = {"a/b": np.arange(3)}
    back = again(m, tmp_path)
    assert list(back.obsm["table"]) == NAMES
    assert list(back.mod["rna"].obs) == ["cell_type", *NAMES]
    assert list(back.mod["rna"].var) == NAMES
    assert list(back.mod["rna"].layers) == ["spliced/un"]
    assert list(back.uns["my/notes"]["a/b"]) == [0, 1, 2]


def test_names_that_occur_twice_come_back():
    names = ["a", "a", "b", "%-a", "a"]
    assert len(set(escaped(names))) == len(names)
    assert [unescape(name) for name in escaped(names)] == names


def test_a_modality_with_a_slash_comes_back_with_all_that_it_has(tmp_path):
    rna, adt = cite()
    m = read({"rna/nuclei": rna, "protein": adt})
    m.obsm["X_scmoe"] = np.arange(N * 2.0).reshape(N, 2)
    back = again(m, tmp_path)
    assert list(back.mod) == ["rna/nuclei", "protein"]
    assert np.array_equal(back.obsm["X_scmoe"], m.obsm["X_scmoe"])
    assert back.obs["cell_type"].equals(m.obs["cell_type"])


def test_a_table_of_more_than_4096_columns_comes_back(tmp_path):
    m, n = both(), 4500
    m.obsm["imputed_rna"] = pd.DataFrame(
        np.random.default_rng(0).random((N, n), np.float32),
        m.obs_names,
        [f"G{i}" for i in range(n)],
    )
    pd.testing.assert_frame_equal(again(m, tmp_path).obsm["imputed_rna"], m.obsm["imputed_rna"])


def test_names_that_are_nullable_strings_come_back(tmp_path):
    m = both()
    for adata in m.mod.values():
        adata.obs.index = adata.obs.index.astype("string")
        adata.var.index = adata.var.index.astype("string")
    assert again(read(dict(m.mod)), tmp_path).n_obs == N


# --- the rest that a file can hold -------------------------------------------------------------


def test_raw_layers_graphs_and_notes_come_back_and_the_users_own_is_left_alone(tmp_path):
    m = both()
    rna = m.mod["rna"]
    rna.raw = rna[:, :30].copy()
    rna.obs["text"] = ["a", "b"] * 25
    rna.obsp["graph"] = sparse.eye_array(50, format="csr")
    m.uns["notes"] = {"n": None, "pair": (1, 2), "of": {"deep": "er"}}
    back = again(m, tmp_path)
    assert back.mod["rna"].raw.shape == (50, 30)
    assert (back.mod["rna"].raw.X != rna.raw.X).nnz == 0
    assert back.mod["rna"].obsp["graph"].sum() == 50
    assert list(back.uns["notes"]["pair"]) == [1, 2]
    assert back.uns["notes"]["of"]["deep"] == "er"
    assert rna.obs["text"].dtype == object
    assert np.array_equal(back.obsm["rna"].ravel(), m.obsm["rna"].ravel())


def test_what_cannot_be_written_is_named_before_anything_is(tmp_path):
    m = both()
    m.mod["protein"].uns["model"] = {"fitted": object()}
    for attempt in (check_writable, lambda m: write(m, tmp_path / "cells.h5mu")):
        with pytest.raises(DataError, match="mod/protein/uns/model/fitted cannot be written"):
            attempt(m)
    assert not list(tmp_path.iterdir())


DEEP = {}
DEEP["self"] = DEEP


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.uns.update(x=DEEP), "uns/x/self/self.* lies too deep"),
        (lambda m: m.uns.update(x={1: "a", "1": "b"}), "uns/x .* two keys of one name"),
        (lambda m: m.obs.insert(0, "x", [b"\xff"] * N), "obs .*decode byte.*column 'x'"),
        (lambda m: m.obs.insert(0, "x", pd.Categorical([1, "1"] * 30)), "unique; column 'x'"),
        (lambda m: m.obs.insert(0, "x", ["a\0"] * N), "embedded NULLs.*key 'x'"),
    ],
)
def test_what_would_be_lost_on_the_way_is_refused_by_its_name(change, says):
    m = both()
    change(m)
    with pytest.raises(DataError, match=says):
        check_writable(m)


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path):
    path = write(both(), tmp_path / "cells.h5mu")
    before = path.read_bytes()
    m = both()
    m.uns["bad"] = object()
    with pytest.raises(DataError):
        write(m, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_mudata_reads_what_is_written(tmp_path):
    m = both()
    path = write(m, tmp_path / "cells.h5mu")
    theirs = mudata.read_h5mu(path)
    assert theirs.shape == m.shape
    assert (theirs.mod["rna"].X != m.mod["rna"].X).nnz == 0


@pytest.mark.parametrize("version", ["old", "new"])
def test_files_of_the_oldest_and_the_newest_versions_read_alike(version):
    m = read(FILES / f"{version}.h5mu")
    types = {name: str(dtype) for name, dtype in m.obs.dtypes.items()}
    assert types == {
        "batch": "category", "rna:leiden": "int64", "rna:doublet": "bool", "rna:age": "Int64",
        "rna:donor": "category", "rna:note": "category",
    }  # fmt: skip
    assert m.obs["rna:leiden"].tolist() == [0, 1, 2] * 4
    assert list(m.obs["rna:donor"].cat.categories) == ["d2", "d1"]
    assert m.mod["rna"].obs["note"].isna().sum() == 4
    assert m.mod["rna"].X.toarray()[1].tolist() == [6, 0, 1, 2, 3, 4]
    assert m.mod["rna"].raw.shape == (12, 4)
    assert m.mod["rna"].obsm["X_pca"][3].tolist() == [6, 7]
    assert m.mod["protein"].shape == (9, 3)
    assert np.isnan(m.mod["protein"].X[1, 2])
    assert m.uns == {"about": "made for tests"}
    assert read(FILES / f"{version}.h5ad").mod[version].obs["age"].isna().sum() == 1


def test_a_prefixed_column_is_read_as_it_was_refined_and_else_from_its_modality(tmp_path):
    rna, adt = cite()
    m = mudata.MuData({"rna": rna, "prot": adt})
    m.write_h5mu(tmp_path / "plain.h5mu")
    assert split_mudata(read(tmp_path / "plain.h5mu"), "rna:cell_type").groups == ["B", "NK", "T"]
    m.obs["rna:cell_type"] = pd.Categorical(["DC", "B", "T"] * 20)
    m.write_h5mu(tmp_path / "refined.h5mu")
    refined = read(tmp_path / "refined.h5mu")
    assert split_mudata(refined, "rna:cell_type").groups == ["B", "DC", "T"]
    write(refined, tmp_path / "again.h5mu")
    with h5py.File(tmp_path / "again.h5mu") as file:  # what the modality has is not kept twice
        assert list(file["obs"].attrs["column-order"]) == ["rna:cell_type"]


def test_cells_without_any_modality_are_said_to_be_left_out(tmp_path):
    m = both()
    path = write(m, tmp_path / "cells.h5mu")
    with h5py.File(path, "a") as file:
        del file["mod/protein"]
        file["mod"].attrs["mod-order"] = ["rna"]
    with pytest.warns(DataWarning, match="10 cells have no modality and are left out: AAAC00050-1"):
        assert read(path).n_obs == 50
    del m.mod["protein"]
    assert any("10 cells have no modality" in note for note in split_mudata(m).notes)


def test_a_near_miss_of_a_file_name_is_suggested(tmp_path):
    write(both(), tmp_path / "cells.h5mu")
    with pytest.raises(DataError, match="no file .*Cels.h5mu; did you mean 'cells.h5mu'"):
        read(tmp_path / "Cels.h5mu")


def test_same_named_files_have_a_checksum_each_of_their_content(tmp_path):
    paths = [tmp_path / folder / "filtered.h5ad" for folder in ("rna", "adt")]
    for path, adata in zip(paths, cite(), strict=True):
        path.parent.mkdir()
        adata.write_h5ad(path)
    before = checksums(paths)
    assert list(before) == ["rna/filtered.h5ad", "adt/filtered.h5ad"]
    moved = shutil.copytree(tmp_path, tmp_path.with_name(tmp_path.name + "-moved"))
    assert checksums([moved / path.relative_to(tmp_path) for path in paths]) == before
    cite(30)[0].write_h5ad(paths[0])
    after = checksums(paths)
    assert after["adt/filtered.h5ad"] == before["adt/filtered.h5ad"]
    assert after["rna/filtered.h5ad"] != before["rna/filtered.h5ad"]


def test_a_folders_checksum_is_of_all_its_files(tmp_path):
    cite()[0].write_zarr(tmp_path / "rna.zarr")
    before = checksums([tmp_path / "rna.zarr"])
    next(p for p in (tmp_path / "rna.zarr/X/data").iterdir() if p.name == "0").write_bytes(b"x")
    assert checksums([tmp_path / "rna.zarr"]).keys() == before.keys()
    assert checksums([tmp_path / "rna.zarr"]) != before


# --- kinds of values --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["rna", "pbmc_citeseq_rna", "protocol2_rna", "GSE1_scATAC_RNA_gex", "prototype", "protein_rna"],
)
def test_counts_are_counts_whatever_the_file_is_called(name):
    assert Transform().fit(read({name: cite()[0]})).kinds == {name: "counts"}


OTHERS = {
    "log-normalised": lambda X: np.log1p(X / X.sum(1, keepdims=True) * 1e4),
    "log1p of counts": np.log1p,
    "0 and 1": lambda X: (X > 0) * 1.0,
    "corrected": lambda X: X * 0.9,
}


@pytest.mark.parametrize("other", OTHERS)
def test_new_cells_of_another_kind_are_refused_with_both_kinds(other):
    m = both(120)
    transform = Transform().fit(m)
    X = m.mod["rna"].X.toarray()
    m.mod["rna"].X = sparse.csr_matrix(OTHERS[other](X).astype(np.float32))
    with pytest.raises(DataError, match="'rna' is of another kind.*counts.*these cells' are"):
        transform.transform(m)


@pytest.mark.parametrize("first", ["log-normalised", "0 and 1"])
def test_counts_are_refused_by_what_was_fitted_on_another_kind(first):
    m = both(120)
    counts = m.mod["rna"].X
    m.mod["rna"].X = sparse.csr_matrix(OTHERS[first](counts.toarray()).astype(np.float32))
    transform = Transform().fit(m)
    m.mod["rna"].X = counts
    with pytest.raises(DataError, match="'rna' is of another kind.*are counts"):
        transform.transform(m)


def test_few_new_cells_that_say_nothing_of_their_kind_are_taken():
    m = both(120)
    transform = Transform().fit(m)
    one = m[:1].copy()
    one.mod["rna"].X = sparse.csr_matrix((one.mod["rna"].X.toarray() > 4) * 1.0)
    assert transform.transform(one).n_obs == 1


def test_a_saved_transform_that_knows_nothing_of_kinds_takes_all():
    m = both(120)
    meta, arrays = Transform().fit(m).state()
    for fields in meta["modalities"].values():
        del fields["look"]
    m.mod["rna"].X = m.mod["rna"].X * 0.5
    assert Transform.from_state(meta, arrays).transform(m).n_obs == 120


def test_permuted_features_are_put_in_order_and_missing_ones_named():
    m = both()
    transform = Transform().fit(m)
    expected = transform.transform(m).mod["protein"].X.toarray()
    m.mod["protein"] = m.mod["protein"][:, ::-1].copy()
    m.update()
    assert np.array_equal(transform.transform(m).mod["protein"].X.toarray(), expected)
    m.mod["protein"] = m.mod["protein"][:, :6].copy()
    m.update()
    with pytest.raises(DataError, match=r"'protein' lacks 2 of the 8 features.*CD0, CD1"):
        transform.transform(m)


# --- missing values in a dense modality ---------------------------------------------------------


@pytest.fixture
def gappy(tiny):
    """Electrophysiology-like values of which some were never measured."""
    X = tiny.mod["morph"].X
    X[np.random.default_rng(1).random(X.shape) < 0.1] = np.nan
    return tiny


def test_missing_values_have_no_part_in_what_is_fitted_and_are_filled_with_the_mean(gappy):
    X = gappy.mod["morph"].X.astype(np.float64)
    transform = Transform().fit(gappy)
    scaled = transform.transform(gappy).mod["morph"].X
    expected = (X - np.nanmean(X, axis=0)) / np.nanstd(X, axis=0)
    assert np.allclose(scaled, np.nan_to_num(expected), atol=1e-5)
    assert (
        transform.describe()
        .loc["morph", "why"]
        .endswith(f"{np.isnan(X).sum()} missing values filled")
    )


def test_values_of_cells_that_are_no_training_cells_fill_nothing(gappy):
    split = split_mudata(gappy)
    before = Transform().fit(split.train)
    split.test.mod["morph"].X[:] = 1e3
    after = Transform().fit(split.train)
    for key, values in before.state()[1].items():
        assert np.array_equal(values, after.state()[1][key], equal_nan=True)
    assert sum("missing" in note for note in split.notes) == 1


@pytest.mark.parametrize("kind", ["counts", "binary", "normalised"])
def test_missing_values_of_any_kind_are_filled(tiny, kind):
    rna = tiny.mod["rna"].X.toarray().astype(np.float32)
    X = {"counts": rna, "binary": (rna > 0) * np.float32(1), "normalised": np.log1p(rna)}[kind]
    X[3, :5] = np.nan
    tiny.mod["rna"].X = X
    transform = Transform().fit(tiny)
    assert transform.kinds["rna"] == kind
    scaled = transform.transform(tiny).mod["rna"].X
    assert np.isfinite(scaled).all()
    if kind == "binary":
        assert set(np.unique(scaled)) == {0, 1}


def test_a_cell_of_which_nothing_was_measured_lacks_the_modality(gappy):
    gappy.mod["morph"].X[7] = np.nan
    scaled = Transform().fit(gappy).transform(gappy)
    assert scaled.mod["morph"].n_obs == 59
    assert "cell7" not in scaled.mod["morph"].obs_names
    assert scaled.n_obs == 60


def test_a_feature_that_no_training_cell_has_is_dropped_and_comes_back_missing(gappy):
    gappy.mod["morph"].X[:, 2] = np.nan
    transform = Transform().fit(gappy)
    scaled = transform.transform(gappy).mod["morph"]
    assert scaled.n_vars == 9
    assert np.isnan(transform.inverse(scaled.X, "morph")).all(0).tolist() == [
        i == 2 for i in range(10)
    ]


class Mean:
    """Predicts every feature's training mean; where it has been told more, that."""

    method, task, label_key_, modalities_ = "mean", "translation", None, ["rna", "morph"]
    info_ = {"dataset": "x", "data_source": "x", "protocol": "strict", "fold": 0, "seed": 0}
    pairs_ = [("morph", "rna")]

    def __init__(self, mdata):
        self.transform_ = Transform().fit(mdata)
        self.told = np.zeros((mdata.n_obs, len(self.transform_.features["morph"])))

    def transform(self, mdata):
        return self.transform_.transform(mdata, self.modalities_)

    def translate(self, mdata, target, source, units):
        return self.told


def test_what_was_never_measured_is_never_scored(gappy):
    missing = np.isnan(gappy.mod["morph"].X)
    model = Mean(gappy)
    before = scmoe.evaluate(model, gappy).set_index("metric")["value"]
    model.told = np.where(missing, 1e6, 0)
    after = scmoe.evaluate(model, gappy).set_index("metric")["value"]
    assert np.isclose(before["r2"], 0, atol=1e-6)
    pd.testing.assert_series_equal(before, after)


# --- cells that are held out --------------------------------------------------------------------


@pytest.mark.parametrize("sort", [list, tuple, pd.Index, np.array])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_held_out_cells_are_named_in_any_sort_of_list(sort, n):
    m = both()
    assert split_mudata(m, test=sort(m.obs_names[:n])).test.n_obs == n


@pytest.mark.parametrize("pair", [("batch", "b2"), ["batch", "b2"], ["batch", ["b2"]]])
def test_a_column_and_a_value_hold_out_the_cells_that_have_it(pair):
    m = both()
    m.obs["batch"] = pd.Categorical(["b1", "b2", None] * 20)
    m.obs["number"] = pd.Categorical([1, 2, None] * 20)
    test = split_mudata(m, test=pair).test
    assert set(test.obs["batch"]) == {"b2"}
    assert split_mudata(m, test=("number", 2)).test.obs_names.equals(test.obs_names)


def test_a_mudata_is_put_together_from_anndata_with_the_way_said():
    with pytest.raises(DataError, match=r'got AnnData; scmoe.data.read\(\{"rna": adata\}\)'):
        Transform().fit(cite()[0])
    model = scmoe.baselines.Ridge().fit(split_mudata(both()))
    with pytest.raises(DataError, match="expected a MuData, got AnnData"):
        model.translate(cite()[0], "protein", "rna")
    with pytest.raises(DataError, match="'protien' was not seen.*did you mean 'protein'"):
        model.translate(both(), "protien", "rna")
    with pytest.raises(DataError, match=r"source=\[\]: it takes one modality, or several"):
        model.translate(both(), "protein", [])
    with pytest.raises(DataError, match="units='log': it takes one of measured, scaled"):
        model.translate(both(), "protein", "rna", units="log")
    with pytest.raises(DataError, match="expected a MuData, got AnnData"):
        scmoe.evaluate(Mean(make_mudata({"rna": cite()[0], "morph": cite()[0]})), cite()[0])
