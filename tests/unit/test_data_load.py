"""The five data sets come out of their files whole, cut as published, and free of leaks."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.model_selection import StratifiedKFold

from scmoe.data import DATASETS, DataError, Transform, list_datasets, load
from scmoe.data.niche import neighbour_weights
from tests.unit.zenodo_layout import BATCHES, write_collection

SETS = {  # name: a fold, and keywords
    "patchseq": (3, {}),
    "dbitseq": (0, {"niche": "train"}),
    "dyngen": (2, {}),
    "atacseq": ("s1d1", {}),
    "mop": ("09B", {}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All five sets, tiny, in the published layout."""
    return write_collection(tmp_path_factory.mktemp("collection"))


def dense(X):
    return X.toarray() if sp.issparse(X) else np.asarray(X)


def all_cells(split):
    return [name for part in (split.train, split.val, split.test) for name in part.obs_names]


@pytest.mark.parametrize("name", SETS)
def test_every_cell_is_in_exactly_one_part(root, name):
    fold, keywords = SETS[name]
    split = load(name, fold, root=root, **keywords)
    assert len(all_cells(split)) == len(set(all_cells(split)))
    n_cells = {"patchseq": 64, "dbitseq": 144, "dyngen": 50, "atacseq": 90, "mop": 80}[name]
    assert len(all_cells(split)) == n_cells
    assert split.modalities == list(DATASETS[name].modalities)
    assert split.label_key == DATASETS[name].label_key
    labels = split.train.obs[split.label_key]
    assert isinstance(labels.dtype, pd.CategoricalDtype)
    assert all(isinstance(label, str) for label in labels)


@pytest.mark.parametrize("name", SETS)
def test_replacing_test_cells_changes_nothing_that_is_fitted(root, tmp_path, name):
    fold, keywords = SETS[name]
    before = load(name, fold, root=root, **keywords)
    write_collection(tmp_path, noise_for={name: set(before.test.obs_names)})
    after = load(name, fold, root=tmp_path, **keywords)
    changed = [
        not np.array_equal(dense(before.test.mod[m].X), dense(after.test.mod[m].X))
        for m in before.modalities
        if m != "niche"  # of test pixels too, averaged from training pixels
    ]
    assert all(changed)
    for part in ("train", "val"):
        one, two = getattr(before, part), getattr(after, part)
        assert one.obs_names.equals(two.obs_names)
        assert (
            one.obs[before.label_key].astype(str) == two.obs[before.label_key].astype(str)
        ).all()
        for m in before.modalities:
            assert np.array_equal(dense(one.mod[m].X), dense(two.mod[m].X))
    meta, arrays = Transform().fit(before.train).state()
    meta_after, arrays_after = Transform().fit(after.train).state()
    assert meta == meta_after
    assert all(np.array_equal(arrays[key], arrays_after[key]) for key in arrays)


@pytest.mark.parametrize("name", SETS)
def test_the_seed_moves_validation_cells_and_never_test_cells(root, name):
    fold, keywords = SETS[name]
    one, two = (load(name, fold, seed=seed, root=root, **keywords) for seed in (0, 1))
    assert one.test.obs_names.equals(two.test.obs_names)
    assert set(one.val.obs_names) != set(two.val.obs_names)
    again = load(name, fold, seed=0, root=root, **keywords)
    assert one.val.obs_names.equals(again.val.obs_names)


def test_patchseq_folds_are_those_of_a_stratified_ten_fold(root):
    split = load("patchseq", 0, root=root)
    obs = pd.concat([split.train.obs, split.val.obs, split.test.obs])
    obs = obs.loc[sorted(obs.index, key=int)]  # the files' order
    folds = StratifiedKFold(10, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [set(obs.index[test]) for _, test in folds.split(obs, obs["cell_type_TEM"])]
    assert set(split.test.obs_names) == expected[0]
    assert set(load("patchseq", 9, root=root).test.obs_names) == expected[9]


def test_dbitseq_blocks_are_contiguous_and_share_out_all_pixels(root):
    tested = []
    for k in range(5):
        split = load("dbitseq", f"block-{k}", root=root)
        rows = split.test.obs["array_row"].to_numpy()
        assert rows.max() - rows.min() <= 3
        tested += list(split.test.obs_names)
    assert len(tested) == len(set(tested)) == 144


def test_atacseq_holds_out_a_batch_by_name_or_number(root):
    split = load("atacseq", "s1d1", root=root)
    assert set(split.test.obs["batch"]) == {"s1d1"}
    assert load("atacseq", 0, root=root).test.obs_names.equals(split.test.obs_names)
    assert "s1d1" not in set(split.train.obs["batch"]) | set(split.val.obs["batch"])


def test_dyngen_has_the_published_folds(root):
    for fold in range(5):
        split = load("dyngen", fold, root=root)
        assert list(split.test.obs_names) == [f"cell{i}" for i in range(10 * fold, 10 * fold + 10)]


def test_cells_are_matched_by_name_across_files(root):
    split = load("atacseq", root=root)
    raw = anndata.read_h5ad(root / "UnitedNet_NatComm_data/ATACseq/gex_processed.h5ad")
    for part in (split.train, split.val, split.test):
        assert np.array_equal(part.mod["rna"].X, raw[part.obs_names].X)


def test_a_group_that_only_test_cells_have_stays_there_and_is_reported(root):
    split = load("atacseq", "s1d1", root=root)
    assert "HSC" in set(split.test.obs["cell_type"])
    assert "HSC" not in split.groups
    assert any("HSC (1)" in note for note in split.notes)


def test_small_files_are_called_excerpts(root):
    split = load("atacseq", root=root)
    assert split.data_source == "excerpt"
    assert any("excerpt: 90 of 69,249 cells" in note for note in split.notes)
    assert set(split.checksums) == {"atac_processed.h5ad", "gex_processed.h5ad"}


def test_sparse_peaks_stay_sparse(root):
    split = load("atacseq", root=root)
    assert sp.issparse(split.train.mod["atac"].X)
    scaled = Transform().fit(split.train).transform(split.test)
    assert sp.issparse(scaled.mod["atac"].X)
    assert not sp.issparse(scaled.mod["rna"].X)


def test_modalities_come_as_asked_and_in_that_order(root):
    split = load("patchseq", root=root, modalities=["ephys", "rna"])
    assert split.modalities == ["ephys", "rna"]
    assert set(split.checksums) == {"adata_Ephys_TEM.h5ad", "adata_RNA_TEM.h5ad"}


def test_the_niche_is_averaged_from_training_pixels_alone(root):
    split = load("dbitseq", root=root, niche="train")
    weights = neighbour_weights(split.test.obsm["spatial"], split.train.obsm["spatial"])
    assert np.allclose(weights.sum(axis=1), 1)
    assert ((weights > 0).sum(axis=1) >= 10).all()
    assert np.allclose(split.test.mod["niche"].X, weights @ split.train.mod["rna"].X)
    own = neighbour_weights(split.train.obsm["spatial"], split.train.obsm["spatial"])
    assert np.all(np.diag(own) == 0)


def test_the_niche_can_be_averaged_without_asking_for_rna(root):
    alone = load("dbitseq", root=root, niche="train", modalities=["niche"])
    both = load("dbitseq", root=root, niche="train")
    assert alone.modalities == ["niche"]
    assert np.array_equal(alone.val.mod["niche"].X, both.val.mod["niche"].X)


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"name": "patchsec"}, "dyngen, dbitseq, patchseq, atacseq"),
        ({"name": "patchseq", "fold": 10}, "folds: 0, 1, 2"),
        ({"name": "dbitseq", "fold": "block-5"}, "block-0"),
        ({"name": "atacseq", "fold": "s9d9"}, "s1d1"),
        ({"name": "atacseq", "fold": "s4d9"}, ", ".join(BATCHES)),
        ({"name": "patchseq", "modalities": ["rna", "atac"]}, "rna, ephys, morph"),
        ({"name": "patchseq", "modalities": []}, "rna, ephys, morph"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(root, keywords, says):
    with pytest.raises(DataError, match=says):
        load(**keywords, root=root)


def test_missing_files_are_named_with_the_command_that_fetches_them(tmp_path):
    with pytest.raises(DataError, match="python -m scmoe.data fetch patchseq") as error:
        load("patchseq", root=tmp_path)
    assert "adata_RNA_TEM.h5ad" in str(error.value)


def test_the_data_root_may_come_from_the_environment(root, monkeypatch):
    monkeypatch.setenv("SCMOE_DATA", str(root))
    assert load("patchseq").test.n_obs > 0
    here = list_datasets().set_index("name")["available"]
    assert here.all()
    monkeypatch.setenv("SCMOE_DATA", str(root / "nowhere"))
    assert not list_datasets()["available"].any()


def test_a_truncated_file_is_named(root, tmp_path):
    write_collection(tmp_path)
    path = tmp_path / "UnitedNet_NatComm_data/patchseq/adata_Morph_TEM.h5ad"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="adata_Morph_TEM.h5ad"):
        load("patchseq", root=tmp_path)


def _rewrite(root, name, change):
    path = root / "UnitedNet_NatComm_data" / name
    adata = anndata.read_h5ad(path)
    change(adata).write_h5ad(path)


def _without_labels(adata):
    del adata.obs["cell_type_TEM"]
    return adata


def _relabelled(adata):
    adata.obs["cell_type_TEM"] = adata.obs["cell_type_TEM"].to_numpy()[::-1]
    return adata


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda adata: adata[:-3].copy(), "not about the same cells"),
        (_without_labels, "no column 'cell_type_TEM'"),
        (_relabelled, "differs from the other files"),
    ],
    ids=["cells missing", "no labels", "other labels"],
)
def test_files_that_disagree_about_the_cells_are_refused(tmp_path, change, says):
    write_collection(tmp_path)
    _rewrite(tmp_path, "patchseq/adata_Ephys_TEM.h5ad", change)
    with pytest.raises(DataError, match=says) as error:
        load("patchseq", root=tmp_path)
    assert "Ephys" in str(error.value)


def test_dyngen_without_its_layers_is_refused(tmp_path):
    write_collection(tmp_path)

    def without_protein(adata):
        del adata.obsm["P"]
        return adata

    _rewrite(tmp_path, "Dyngen/adata_pPRm_test_cv_0.h5ad", without_protein)
    with pytest.raises(DataError, match="test_cv_0.h5ad: obsm needs D, p, m, P"):
        load("dyngen", root=tmp_path)


@pytest.mark.parametrize("name", ["patchseq", "dbitseq", "atacseq"])
def test_stand_ins_are_announced_and_split_like_the_original(tmp_path, name):
    with pytest.warns(UserWarning, match=f"fetch {name}"):
        split = load(name, root=tmp_path, allow_standin=True)
    assert split.data_source == "stand-in"
    assert "stand-in" in split.notes[0]
    assert split.modalities == list(DATASETS[name].modalities)
    assert len(set(all_cells(split))) == len(all_cells(split))
    if name == "dbitseq":
        assert (split.train.n_obs + split.val.n_obs, split.test.n_obs) == (748, 188)
    Transform().fit(split.train).transform(split.test)


def test_simulated_dyngen_cells_keep_their_truth(tmp_path):
    one, two = (load("dyngen", k, root=tmp_path, allow_standin=True) for k in (0, 1))
    assert one.data_source == "simulated"
    assert one.test.n_obs == 100
    assert "truth" in one.train.uns
    assert "pseudotime" in one.train.obs
    assert not set(one.test.obs_names) & set(two.test.obs_names)


def test_the_published_patchseq_is_whole(real_patchseq):
    split = load("patchseq", root=real_patchseq)
    assert split.data_source in ("zenodo", "local")
    assert len(split.groups) == 27
    assert len(all_cells(split)) == 448
    features = {m: split.train.mod[m].n_vars for m in split.modalities}
    assert features == {"rna": 1252, "ephys": 68, "morph": 514}
    kept = Transform().fit(split.train).features
    assert len(kept["morph"]) == 499  # fifteen do not vary


def test_the_published_dbitseq_is_whole(real_dbitseq):
    split = load("dbitseq", root=real_dbitseq)
    assert (split.train.n_obs + split.val.n_obs, split.test.n_obs) == (748, 188)
    blocks = [load("dbitseq", f"block-{k}", root=real_dbitseq) for k in range(5)]
    assert sum(block.test.n_obs for block in blocks) == 936
    unseen = [note for block in blocks for note in block.notes if "no training cell has" in note]
    assert len(unseen) == 2


def test_averaging_over_all_pixels_gives_the_published_niche(real_dbitseq):
    split = load("dbitseq", root=real_dbitseq)
    parts = [split.train, split.val, split.test]
    position = np.vstack([part.obsm["spatial"] for part in parts])
    rna, niche = (np.vstack([part.mod[m].X for part in parts]) for m in ("rna", "niche"))
    again = neighbour_weights(position, position) @ rna
    assert np.corrcoef(again.ravel(), niche.ravel())[0, 1] > 0.997


def test_the_atac_excerpt_says_so(real_atacseq):
    split = load("atacseq", root=real_atacseq)
    if split.data_source == "excerpt":
        assert any(note.startswith("excerpt") for note in split.notes)
    assert set(split.test.obs["batch"]) == {"s1d1"}


def test_mop_holds_out_a_batch_or_a_fifth_of_every_type(root):
    batch = load("mop", "09B", root=root)
    assert set(batch.test.obs["batch"]) == {"09B"} and set(batch.train.obs["batch"]) == {"09A"}
    names = [set(load("mop", fold, root=root).test.obs_names) for fold in range(5)]
    assert sum(map(len, names)) == len(set.union(*names)) == 80
    assert load("mop", 0, root=root).data_source == "excerpt"  # not all of the published nuclei


def test_mop_files_that_do_not_belong_together_are_refused(tmp_path):
    write_collection(tmp_path)
    path = tmp_path / "MOp_SNAREseq2" / "genes.txt"
    path.write_text(path.read_text() + "OneTooMany\n")
    with pytest.raises(DataError, match="do not belong together"):
        load("mop", root=tmp_path)
