"""Values are scaled by what training cells taught, whatever they are and however stored."""

import json
import warnings

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer

from scmoe.data import DataError, Transform
from scmoe.data.blocks import row_blocks, take_rows
from scmoe.data.steps import moments
from scmoe.data.transform import LEAST_SCALE

CELLS = [f"cell{i}" for i in range(50)]


def one(X, name="m", prefix="feature", **var):
    """A MuData of one modality."""
    names = pd.Index([f"{prefix}{i}" for i in range(X.shape[1])])
    obs = pd.DataFrame(index=CELLS[: X.shape[0]])
    return mudata.MuData({name: anndata.AnnData(X, obs=obs, var=pd.DataFrame(var, index=names))})


def dense(X):
    return X.toarray() if sparse.issparse(X) else np.asarray(X)


def scaled(mdata, **keywords):
    return Transform(**keywords).fit(mdata).transform(mdata).mod["m"].X


@pytest.fixture
def counts(rng):
    """Counts of transcripts, 50 cells × 12 features."""
    return rng.poisson(rng.gamma(1, 2, (50, 12))).astype(np.float32)


@pytest.fixture
def rng():
    """The same numbers for each test."""
    return np.random.default_rng(0)


# -- what each kind goes through ---------------------------------------------------------------


def standardised(values):
    sd = values.std(0)
    return (values - values.mean(0)) / np.maximum(sd, LEAST_SCALE * np.median(sd))


def test_counts_are_log_normalised_to_the_median_total(counts):
    total = counts.sum(1, keepdims=True)
    expected = standardised(np.log1p(counts * np.median(total) / total))
    assert np.allclose(scaled(one(counts)), expected, atol=1e-5)


def test_protein_gets_the_centred_log_ratio(counts):
    geometric = np.exp(np.log1p(counts).mean(1, keepdims=True))
    expected = standardised(np.log1p(counts / geometric))
    assert np.allclose(scaled(one(counts), kinds={"m": "protein"}), expected, atol=1e-5)


def test_peaks_get_tf_idf_and_one_scale(counts):
    counts[:, 0] += 3  # every cell has some
    X = sparse.csr_matrix(counts * (counts > 2))
    values = dense(scaled(one(X), kinds={"m": "peaks"}))
    frequency = dense(X) / dense(X).sum(1, keepdims=True)
    idf = np.log1p(50 / (dense(X) > 0).sum(0))
    expected = np.log1p(1e4 * frequency * idf)
    assert np.allclose(values * np.sqrt(expected.var(0).mean()), expected, rtol=1e-4)


def test_binary_values_stay_zero_and_one(counts):
    X = sparse.csr_matrix((counts > 1).astype(np.float32))
    values = scaled(one(X))
    assert sparse.issparse(values)
    assert np.array_equal(dense(values), dense(X))
    assert np.array_equal(dense(scaled(one(counts), kinds={"m": "binary"})), counts > 0)


def test_continuous_features_of_any_unit_get_unit_variance(rng):
    X = rng.normal(1e4, 1, (50, 5)) * [1e-6, 1, 1e3, 1e6, -1]
    values = scaled(one(X))
    assert np.allclose(values.mean(0), 0, atol=1e-4)
    assert np.allclose(values.std(0), 1, atol=1e-4)


def test_log_normalised_features_that_hardly_vary_are_not_blown_up(rng):
    X = np.log1p(rng.poisson(3, (50, 9))).astype(np.float32)
    X[:, 0] = 0
    X[0, 0] = 0.01
    values = scaled(one(X))
    assert abs(values[:, 0]).max() < 0.1
    assert np.allclose(values[:, 1:], standardised(X)[:, 1:], atol=1e-5)


def test_scaled_values_are_handed_on_as_they_are(rng):
    mdata = one(rng.normal(0, 1, (50, 4)).astype(np.float32))
    mdata.mod["m"].uns["kind"] = "scaled"
    assert np.shares_memory(scaled(mdata), mdata.mod["m"].X)


def test_outlying_values_are_clipped(rng):
    train, test = one(rng.normal(0, 1, (50, 4))), one(np.full((3, 4), 1e6))
    transform = Transform(clip=4).fit(train)
    assert np.array_equal(transform.transform(test).mod["m"].X, np.full((3, 4), 4, np.float32))


# -- what a modality is taken for --------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "name", "prefix", "kind"),
    [
        (lambda x: x, "rna", "gene", "counts"),
        (lambda x: x, "protein", "CD", "protein"),
        (lambda x: x, "ADT", "CD", "protein"),
        (lambda x: x, "atac", "peak", "peaks"),
        (lambda x: x, "m", "chr1:100-20", "peaks"),
        (lambda x: x > 2, "atac", "peak", "binary"),
        (lambda x: np.log1p(x), "rna", "gene", "normalised"),
        (lambda x: x + 0.5, "m", "size", "continuous"),
        (lambda x: x - 3, "m", "score", "continuous"),
        (lambda x: x * 1000.5, "m", "length", "continuous"),
    ],
)
@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_kinds_are_recognised_from_values_and_names(counts, change, name, prefix, kind, layout):
    transform = Transform().fit(one(layout(change(counts)), name, prefix))
    assert transform.kinds == {name: kind}
    assert transform.describe().loc[name, "why"].startswith("recognised")


def test_feature_types_tell_what_is_counted(counts):
    mdata = one(counts, feature_types="Antibody Capture")
    assert Transform().fit(mdata).kinds == {"m": "protein"}


def test_a_stated_kind_wins_over_a_noted_one_and_that_over_recognition(counts):
    mdata = one(counts)
    mdata.mod["m"].uns["kind"] = "continuous"
    assert Transform().fit(mdata).kinds == {"m": "continuous"}
    assert Transform({"m": "peaks"}).fit(mdata).kinds == {"m": "peaks"}
    mdata.mod["m"].uns["kind"] = "something of the user's own"
    assert Transform().fit(mdata).kinds == {"m": "counts"}


def test_unknown_kinds_and_modalities_are_refused(counts):
    with pytest.raises(ValueError, match="counts, normalised, protein"):
        Transform({"m": "rna"})
    with pytest.raises(DataError, match="kinds given for rna; there are: m"):
        Transform({"rna": "counts"}).fit(one(counts))


@pytest.mark.parametrize("kind", ["counts", "protein", "peaks", "binary"])
def test_negative_values_are_refused_where_the_kind_has_none(counts, kind):
    good = Transform({"m": kind}).fit(one(counts))
    with pytest.raises(DataError, match=f"'m' is taken for {kind}, but has negative values"):
        Transform({"m": kind}).fit(one(counts - 3))
    with pytest.raises(DataError, match="negative values"):
        good.transform(one(counts - 3))


# -- storage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["counts", "protein", "peaks", "normalised", "continuous"])
def test_sparse_and_dense_give_the_same_up_to_centring(counts, kind):
    X = np.log1p(counts) if kind == "normalised" else counts
    from_sparse = scaled(one(sparse.csr_matrix(X)), kinds={"m": kind})
    from_dense = scaled(one(X), kinds={"m": kind})
    assert sparse.issparse(from_sparse)
    assert isinstance(from_dense, np.ndarray)
    difference = dense(from_sparse) - from_dense
    assert np.allclose(difference, difference[0], atol=1e-4)


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16", "float16", "float32", "float64"])
def test_any_number_type_gives_the_same_float32(counts, dtype):
    values = scaled(one(counts.astype(dtype)))
    assert values.dtype == np.float32
    assert np.array_equal(values, scaled(one(counts)))


@pytest.mark.parametrize(
    "layout", [sparse.csc_matrix, sparse.csr_array, sparse.coo_matrix, np.asfortranarray]
)
def test_any_layout_gives_the_same(counts, layout):
    X = layout(counts)
    X = sparse.csr_matrix(X) if getattr(X, "format", "") == "coo" else X
    same = counts if isinstance(X, np.ndarray) else sparse.csr_matrix(counts)
    assert np.array_equal(dense(scaled(one(X))), dense(scaled(one(same))))


def test_entries_stored_twice_are_summed():
    X = sparse.csr_matrix(
        (np.ones(6, np.float32), np.array([0, 0, 1, 1, 0, 2]), np.array([0, 3, 4, 6])), (3, 3)
    )
    assert not X.has_canonical_format
    assert np.array_equal(dense(scaled(one(X))), dense(scaled(one(sparse.csr_matrix(dense(X))))))


@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_a_backed_modality_gives_the_same(counts, tmp_path, layout):
    mdata = one(layout(counts))
    expected = dense(scaled(mdata))
    mdata.mod["m"].write_h5ad(tmp_path / "m.h5ad")
    mdata.mod["m"] = anndata.read_h5ad(tmp_path / "m.h5ad", backed="r")
    assert np.array_equal(dense(scaled(mdata)), expected)


@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix])
def test_a_view_gives_the_same_and_is_left_a_view(counts, layout):
    mdata = one(layout(counts))
    view = mdata[10:40]
    expected = scaled(view.copy())
    assert np.array_equal(dense(scaled(view)), dense(expected))
    assert view.mod["m"].is_view


def test_the_measured_values_are_left_alone(tiny):
    before = tiny.copy()
    Transform().fit(tiny).transform(tiny)
    for name in tiny.mod:
        assert np.array_equal(dense(tiny.mod[name].X), dense(before.mod[name].X))


def test_sparse_features_of_large_mean_are_clipped_about_that_mean(rng):
    X = (100 + rng.normal(0, 1, (50, 4))).astype(np.float32)
    test = one(np.array([[100, 101, 1e9, 102]], np.float32))
    transforms = [
        Transform(clip=4).fit(one(layout(X))) for layout in (np.asarray, sparse.csr_matrix)
    ]
    centred, uncentred = (dense(t.transform(test).mod["m"].X) for t in transforms)
    mean_over_sd = dense(X).mean(0) / dense(X).std(0)
    assert np.allclose(centred[0, 2], 4)
    assert np.allclose(uncentred[0], centred[0] + mean_over_sd, rtol=1e-4)


def test_sparse_cells_can_follow_dense_training_cells_and_back(counts):
    from_dense = Transform().fit(one(counts))
    from_sparse = Transform().fit(one(sparse.csr_matrix(counts)))
    for transform in (from_dense, from_sparse):
        a, b = (transform.transform(one(x)).mod["m"].X for x in (counts, sparse.csr_matrix(counts)))
        assert type(a) is type(b)
        assert np.allclose(dense(a), dense(b), atol=1e-6)


def test_a_cell_is_transformed_the_same_alone_or_among_others(tiny):
    transform = Transform().fit(tiny)
    together, alone = transform.transform(tiny), transform.transform(tiny[[17]])
    for name in tiny.mod:
        assert np.array_equal(dense(together.mod[name].X)[[17]], dense(alone.mod[name].X))


# -- features and cells ------------------------------------------------------------------------


def test_features_are_matched_by_name_in_any_order(tiny):
    transform = Transform().fit(tiny)
    expected = transform.transform(tiny)
    shuffled = {m: tiny.mod[m][:, ::-1].copy() for m in reversed(list(tiny.mod))}
    extra = anndata.AnnData(np.ones((60, 1), np.float32), obs=shuffled["morph"].obs)
    extra.var_names = ["unheard of"]
    shuffled["morph"] = anndata.concat([extra, shuffled["morph"]], axis=1)
    result = transform.transform(mudata.MuData(shuffled))
    for name in tiny.mod:
        assert np.allclose(dense(result.mod[name].X), dense(expected.mod[name].X), atol=1e-6)
        assert list(result.mod[name].var_names) == list(transform.features[name])


def test_missing_features_are_named(tiny):
    transform = Transform().fit(tiny)
    with pytest.raises(DataError, match="'rna' lacks 2 of the 24 features .*gene0, gene1"):
        transform.transform(mudata.MuData({"rna": tiny.mod["rna"][:, 2:].copy()}))


def test_features_that_do_not_vary_in_training_are_dropped_and_may_be_missing(rng):
    X = rng.normal(0, 1, (50, 4)).astype(np.float32)
    X[:, 1] = 83359.0
    X[:, 2] = 83359.0 + 0.01 * (np.arange(50) % 2)  # one unit in the last place of float32
    transform = Transform().fit(one(X))
    assert list(transform.features["m"]) == ["feature0", "feature3"]
    assert transform.describe().loc["m", "dropped"] == "feature1, feature2"
    without = mudata.MuData({"m": one(X).mod["m"][:, [0, 3]].copy()})
    assert transform.transform(without).mod["m"].shape == (50, 2)


def test_a_modality_in_which_nothing_varies_is_refused(counts):
    with pytest.raises(DataError, match="'m': no feature varies over the 50 training cells"):
        Transform().fit(one(np.ones_like(counts)))


@pytest.mark.parametrize("damage", ["nan", "absent", "text"])
def test_modalities_not_asked_for_are_never_read(tiny, damage):
    transform = Transform().fit(tiny)
    expected = transform.transform(tiny, ["rna", "protein"])
    if damage == "nan":
        tiny.mod["morph"].X[:] = np.nan
    elif damage == "absent":
        tiny = mudata.MuData({m: tiny.mod[m] for m in ("rna", "protein")})
    else:
        old = tiny.mod["morph"]
        tiny.mod["morph"] = anndata.AnnData(old.X.astype(str), obs=old.obs, var=old.var)
    result = transform.transform(tiny, modalities=["rna", "protein"])
    assert list(result.mod) == ["rna", "protein"]
    for name in result.mod:
        assert np.array_equal(dense(result.mod[name].X), dense(expected.mod[name].X))


def test_missing_cells_stay_missing_and_order_is_kept(tiny):
    transform = Transform().fit(tiny)
    tiny.mod["protein"] = tiny.mod["protein"][30:].copy()
    tiny.update()
    shuffled = tiny[np.random.default_rng(0).permutation(60)].copy()
    result = transform.transform(shuffled)
    assert list(result.obs_names) == list(shuffled.obs_names)
    assert result.mod["protein"].n_obs == 30
    assert np.array_equal(result.obsm["protein"], shuffled.obsm["protein"])
    assert list(result.obs["cell_type"]) == list(shuffled.obs["cell_type"])
    only = transform.transform(shuffled, ["protein"])
    assert list(only.obs_names) == [c for c in shuffled.obs_names if int(c[4:]) >= 30]


def test_unfitted_and_unknown_modalities_are_refused(tiny):
    with pytest.raises(ValueError, match="not fitted"):
        Transform().transform(tiny)
    transform = Transform().fit(mudata.MuData({"rna": tiny.mod["rna"]}))
    with pytest.raises(DataError, match="not fitted on morph; there are: rna"):
        transform.transform(tiny, ["morph"])
    with pytest.raises(DataError, match="no modality atac; there are: rna"):
        transform.transform(tiny, ["atac"])
    with pytest.raises(DataError, match="fitted on rna; the data have morph"):
        transform.transform(mudata.MuData({"morph": tiny.mod["morph"]}))


# -- and back ----------------------------------------------------------------------------------


def test_inverse_gives_normalised_continuous_and_scaled_values_back(counts, rng):
    for kind, X in {
        "normalised": np.log1p(counts),
        "continuous": rng.normal(1e4, 300, (50, 12)),
        "scaled": rng.normal(0, 1, (50, 12)),
        "binary": 1.0 * (counts > 2),
    }.items():
        mdata = one(X)
        transform = Transform({"m": kind}).fit(mdata)
        back = transform.inverse(transform.transform(mdata).mod["m"].X, "m")
        assert np.allclose(back, X, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["counts", "protein", "peaks"])
@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix])
def test_inverse_gives_counts_back_for_a_typical_total(counts, kind, layout):
    counts = counts + 1.0  # every cell has some
    mdata = one(layout(counts))
    transform = Transform({"m": kind}).fit(mdata)
    back = transform.inverse(transform.transform(mdata).mod["m"].X, "m")
    ratio = back / counts
    assert np.allclose(ratio, ratio[:, [0]], rtol=1e-3)  # each cell in its own proportion
    assert np.isclose(np.median(ratio), 1, rtol=0.2)


def test_inverse_fills_dropped_features_with_their_training_value(counts):
    counts[:, 4] = 7
    transform = Transform({"m": "continuous"}).fit(one(counts))
    back = transform.inverse(np.zeros((2, 11)), "m")
    assert np.allclose(back, [counts.mean(0)] * 2, rtol=1e-5)


def test_inverse_refuses_other_shapes(counts):
    transform = Transform().fit(one(counts))
    with pytest.raises(DataError, match="12 features were kept"):
        transform.inverse(np.zeros((2, 5)), "m")
    with pytest.raises(DataError, match="not fitted on rna"):
        transform.inverse(np.zeros((2, 5)), "rna")


def test_a_saved_transform_does_the_same(tiny):
    transform = Transform({"rna": "peaks"}, clip=3).fit(tiny)
    meta, arrays = transform.state()
    restored = Transform.from_state(json.loads(json.dumps(meta)), arrays)
    assert restored.kinds == transform.kinds
    assert restored.describe().equals(transform.describe())
    one_, two = transform.transform(tiny), restored.transform(tiny)
    for name in tiny.mod:
        assert np.array_equal(dense(one_.mod[name].X), dense(two.mod[name].X))
        values = one_.mod[name].X
        assert np.array_equal(transform.inverse(values, name), restored.inverse(values, name))


# -- the pieces --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix])
def test_moments_match_numpy_where_the_mean_is_large(rng, layout):
    X = layout(1e6 + rng.normal(0, 1e-2, (5000, 300)))
    mean, sd, largest = moments((block for _, block in row_blocks(X)), 300)
    assert np.allclose(mean, dense(X).mean(0), rtol=1e-12)
    assert np.allclose(sd, dense(X).std(0), rtol=1e-6)
    assert np.allclose(largest, dense(X).max(0))


@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix])
def test_rows_are_taken_from_a_file_in_the_order_asked_for(rng, tmp_path, layout):
    X = layout(rng.poisson(1, (3000, 500)).astype(np.float32))
    anndata.AnnData(X).write_h5ad(tmp_path / "x.h5ad", compression="gzip")
    order = rng.permutation(3000)
    parts = [order[:1000], order[1000:1001], order[1500:], order[:0]]
    backed = anndata.read_h5ad(tmp_path / "x.h5ad", backed="r")
    for rows in parts:
        taken = take_rows(backed.X, rows)
        assert taken.dtype == np.float32
        assert np.array_equal(dense(taken), dense(X)[rows])


def test_tf_idf_weighs_peaks_as_scikit_learn_does(counts):
    """The same up to the logarithms and one constant: ranks within a cell agree."""
    X = sparse.csr_matrix(counts)
    ours = dense(scaled(one(X), kinds={"m": "peaks"}))
    theirs = TfidfTransformer(norm="l1", smooth_idf=True).fit_transform(X).toarray()
    agree = [np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]
             for a, b in zip(ours, theirs, strict=True)]  # fmt: skip
    assert np.mean(agree) > 0.95


def test_nothing_is_said_on_the_side(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Transform().fit(tiny).transform(tiny[:5])
