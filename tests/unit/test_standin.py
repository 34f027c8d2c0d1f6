"""The stand-ins have the shape, sparsity, structure and difficulty of the data they stand for."""

import numpy as np
import pytest
from scipy.sparse import issparse
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scmoe.data.catalog import DATASETS
from scmoe.data.standin import standin

NAMES = ("dbitseq", "patchseq", "atacseq")


@pytest.fixture(scope="module")
def simulated():
    return {name: standin(name) for name in NAMES}


def accuracy(x, labels, train, test):
    """Of logistic regression on (at most) 50 principal components of the training cells."""
    model = make_pipeline(
        StandardScaler(),
        PCA(min(50, x.shape[1]), random_state=0),
        LogisticRegression(C=100 / x.shape[1], max_iter=200),
    )
    return model.fit(x[train], labels[train]).score(x[test], labels[test])


def labels_of(mdata, key="cell_type"):
    return mdata.obs[key].astype(str).to_numpy()


@pytest.mark.parametrize("name", NAMES)
def test_a_standin_has_the_modalities_labels_and_groups_of_its_original(simulated, name):
    mdata, dataset = simulated[name], DATASETS[name]
    assert list(mdata.mod) == list(dataset.modalities)
    assert mdata.obs[dataset.label_key].nunique() == dataset.n_groups
    assert "simulated stand-in" in mdata.uns["standin"]
    for modality, adata in mdata.mod.items():
        assert adata.X.dtype == np.float32
        assert np.isfinite(adata.X.data if issparse(adata.X) else adata.X).all()
        assert adata.obs_names.equals(mdata.obs_names)
        if name != "atacseq":
            assert adata.shape == (dataset.n_cells, dataset.n_features[modality])


def test_the_smaller_standin_says_by_how_much(simulated):
    mdata = simulated["atacseq"]
    assert mdata.n_obs == 1560 and "1,560 of 69,249 cells (1/44)" in mdata.uns["standin"]


@pytest.mark.parametrize("name", NAMES)
def test_cells_depend_on_the_seed_alone(simulated, name):
    np.random.seed(7)  # noqa: NPY002 - global state must not matter
    again, other = standin(name), standin(name, seed=1)
    for modality, adata in simulated[name].mod.items():
        same, x = again.mod[modality].X, adata.X
        assert (same != x).nnz == 0 if issparse(x) else np.array_equal(same, x)
    assert again.obs.equals(simulated[name].obs)
    label_key = DATASETS[name].label_key
    assert not np.array_equal(labels_of(again, label_key), labels_of(other, label_key))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="choose one of dbitseq, patchseq, atacseq"):
        standin("dyngen")


def test_patchseq_has_rare_groups_and_types_within_types(simulated):
    obs = simulated["patchseq"].obs
    sizes = obs["cell_type_TEM"].value_counts()
    assert (sizes.iloc[0], sizes.iloc[-1]) == (54, 2)
    assert obs["cell_type_T"].nunique() == 52


def test_expression_is_sparse_and_its_zeros_follow_the_mean(simulated):
    for name, zeros in (("patchseq", 0.525), ("dbitseq", 0.55)):  # of the originals
        x = simulated[name]["rna"].X
        assert abs((x == 0).mean() - zeros) < 0.08
        ranks = np.corrcoef(np.argsort(np.argsort([x.mean(0), (x == 0).mean(0)], axis=1), axis=1))
        assert ranks[0, 1] < -0.9
    assert 0.02 < simulated["atacseq"]["atac"].X.mean() < 0.08


def test_morphology_is_redundant_and_partly_constant(simulated):
    morph = simulated["patchseq"]["morph"]
    sd = morph.X.std(0)
    assert 9 <= (sd == 0).sum() <= 15 and sd.max() / np.median(sd) > 50
    share_at_mode = np.array([np.unique(x, return_counts=True)[1].max() for x in morph.X.T]) / 448
    assert ((share_at_mode > 0.9) & (sd > 0)).any()  # near-constant
    low, high, width = (morph.X[:, k:120:3] for k in range(3))
    np.testing.assert_allclose(width, high - low, rtol=1e-4, atol=1e-2)
    followed = PCA(20).fit(morph.X[:, sd > 0] / sd[sd > 0]).explained_variance_ratio_.sum()
    assert followed > 0.7  # of what 502 features vary


def test_tissue_regions_are_contiguous_and_the_niche_is_the_neighbours_expression(simulated):
    mdata = simulated["dbitseq"]
    position, region = mdata.obsm["spatial"], labels_of(mdata)
    gap = ((position[:, None] - position[None]) ** 2).sum(-1).astype(float)
    np.fill_diagonal(gap, np.inf)
    assert len(np.unique(position, axis=0)) == 936
    assert (region[gap.argmin(1)] == region).mean() > 0.85
    near = np.argsort(gap[500], kind="stable")[:8]  # exact ties beyond: compare the trend only
    niche, rna = mdata["niche"].X, mdata["rna"].X
    assert np.corrcoef(niche[500], rna[near].mean(0))[0, 1] > 0.97
    assert list(mdata["niche"].var_names) == list(mdata["rna"].var_names)


def test_dbitseq_has_the_published_split(simulated):
    obs = simulated["dbitseq"].obs
    assert obs["published_split"].value_counts().to_dict() == {"train": 748, "test": 188}
    tested = obs[obs["published_split"] == "test"]["cell_type"].value_counts()
    assert tested["4"] == 42 and tested["12"] == 1


def test_protein_is_dominated_by_capture_efficiency(simulated):
    mdata = simulated["dbitseq"]
    correlation = np.corrcoef(mdata["protein"].X.T)
    detected = (mdata["rna"].X > 0).mean(1)
    assert np.median(correlation) > 0.8
    assert np.corrcoef(mdata["protein"].X.mean(1), detected)[0, 1] > 0.7


def test_batches_shift_expression_and_share_all_groups(simulated):
    mdata = simulated["atacseq"]
    site = mdata.obs["batch"].astype(str).str[:2].to_numpy()
    assert mdata.obs["batch"].nunique() == 13
    train = np.random.default_rng(0).random(mdata.n_obs) < 0.7
    chance = np.bincount(np.unique(site, return_inverse=True)[1]).max() / len(site)
    assert accuracy(mdata["rna"].X, site, train, ~train) > chance + 0.25


def test_difficulty_is_near_that_of_the_originals(simulated):
    """Bands around what the same method reaches on the real files (.85/.64/.47; .66/.40/.93)."""
    mdata = simulated["patchseq"]
    y = labels_of(mdata, "cell_type_TEM")
    train = np.random.default_rng(0).random(len(y)) < 0.8
    for modality, low, high in (("rna", 0.7, 0.97), ("ephys", 0.45, 0.85), ("morph", 0.25, 0.65)):
        assert low < accuracy(mdata[modality].X, y, train, ~train) < high, modality
    mdata = simulated["dbitseq"]
    y, train = labels_of(mdata), labels_of(mdata, "published_split") == "train"
    for modality, low, high in (("rna", 0.5, 0.9), ("protein", 0.25, 0.6), ("niche", 0.85, 1)):
        assert low < accuracy(mdata[modality].X, y, train, ~train) < high, modality


@pytest.mark.parametrize(
    ("target", "source"), [("ephys", "rna"), ("morph", "rna"), ("rna", "ephys")]
)
def test_modalities_predict_each_other_a_little(simulated, target, source):
    mdata = simulated["patchseq"]
    train = np.random.default_rng(1).random(mdata.n_obs) < 0.8
    x, y = (StandardScaler().fit_transform(mdata[m].X) for m in (source, target))
    error = y[~train] - Ridge(3000).fit(x[train], y[train]).predict(x[~train])
    r2 = 1 - (error**2).sum() / ((y[~train] - y[train].mean(0)) ** 2).sum()
    assert 0.03 < r2 < 0.45
