"""The numbers that every table of the book is made of."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mudata import MuData
from scipy import sparse
from sklearn import metrics as sk

from scmoe import metrics
from scmoe.data import DataError, blocks


def random_translation(seed, n=60, f=7):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, f)) * rng.uniform(0.1, 5, f) + rng.normal(size=f)
    return truth, truth + rng.normal(size=(n, f))


@pytest.mark.parametrize("chunk", [2048, 16, 1])
def test_translation_scores_agree_with_sklearn_whatever_the_chunk(monkeypatch, chunk):
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    truth, predicted = random_translation(0)
    scores = metrics.translation_metrics(truth, predicted)
    each = sk.r2_score(truth, predicted, multioutput="raw_values")
    corr = [np.corrcoef(truth[:, j], predicted[:, j])[0, 1] for j in range(truth.shape[1])]
    assert scores["r2"] == pytest.approx(
        sk.r2_score(truth, predicted, multioutput="variance_weighted")
    )
    assert scores["r2_median"] == pytest.approx(np.median(each))
    assert scores["pearson"] == pytest.approx(np.mean(corr))


def test_sparse_truth_scores_as_dense_truth_and_is_never_densified_whole(monkeypatch):
    truth = sparse.random(50, 9, 0.3, random_state=0, format="csr")
    predicted = np.random.default_rng(0).normal(size=truth.shape)
    expected = metrics.translation_metrics(truth.toarray(), predicted)
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 8 * 9)
    whole = sparse.csr_matrix.toarray
    sizes = []
    monkeypatch.setattr(
        sparse.csr_matrix, "toarray", lambda x, *a: sizes.append(x.shape[0]) or whole(x, *a)
    )
    scores = metrics.translation_metrics(sparse.csr_matrix(truth), predicted)
    assert scores == pytest.approx(expected)
    assert max(sizes) <= 8


def test_features_without_variance_do_not_count():
    truth, predicted = random_translation(1)
    padded = np.c_[truth, np.ones(len(truth))], np.c_[predicted, np.ones(len(truth))]
    scores, expected = (
        metrics.translation_metrics(*padded),
        metrics.translation_metrics(truth, predicted),
    )
    assert scores == pytest.approx(expected)


def test_the_mean_as_prediction_scores_zero():
    truth, _ = random_translation(2)
    scores = metrics.translation_metrics(truth, np.tile(truth.mean(0), (len(truth), 1)))
    assert scores == pytest.approx({"r2": 0, "r2_median": 0, "pearson": 0}, abs=1e-12)


def test_unlike_shapes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        metrics.translation_metrics(np.ones((3, 2)), np.ones((3, 1)))


@pytest.mark.parametrize("as_sparse", [False, True])
def test_on_off_scores_agree_with_sklearn_with_ties(as_sparse):
    rng = np.random.default_rng(0)
    truth = (rng.random((40, 6)) < 0.3) * 2.5
    truth[:, 0] = 0  # never on: no score
    predicted = rng.integers(0, 5, truth.shape) / 4
    given_truth = sparse.csr_matrix(truth) if as_sparse else truth
    scores = metrics.binary_translation_metrics(given_truth, predicted)
    on = truth[:, 1:] > 0
    pairs = [(on[:, j], predicted[:, j + 1]) for j in range(5)]
    assert scores["auroc"] == pytest.approx(np.mean([sk.roc_auc_score(*p) for p in pairs]))
    assert scores["auprc"] == pytest.approx(
        np.mean([sk.average_precision_score(*p) for p in pairs])
    )


groups = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde")), min_size=2)


@given(groups)
@settings(deadline=None, max_examples=60)
def test_classification_scores_agree_with_sklearn(pairs):
    truth, predicted = map(list, zip(*pairs, strict=True))
    scores = metrics.classification_metrics(truth, predicted)
    recalls = [np.mean([p == t for t, p in pairs if t == group]) for group in sorted(set(truth))]
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
    assert scores["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert scores["macro_f1"] == pytest.approx(
        sk.f1_score(truth, predicted, average="macro", zero_division=0)
    )
    assert scores["ari"] == pytest.approx(sk.adjusted_rand_score(truth, predicted))
    assert scores["nmi"] == pytest.approx(sk.normalized_mutual_info_score(truth, predicted))


@given(groups, st.permutations("abcde"))
@settings(deadline=None, max_examples=60)
def test_clustering_scores_ignore_the_clusters_names(pairs, names):
    truth, clusters = map(list, zip(*pairs, strict=True))
    renamed = [names["abcde".index(c)] for c in clusters]
    scores = metrics.clustering_metrics(truth, clusters)
    assert scores == pytest.approx(metrics.clustering_metrics(truth, renamed))
    assert scores["accuracy"] >= sk.accuracy_score(truth, clusters) - 1e-12


def test_a_perfect_clustering_scores_one_under_any_name():
    assert metrics.clustering_metrics(list("aabbc"), list("22001")) == pytest.approx(
        {"accuracy": 1, "ari": 1, "nmi": 1}
    )


def test_a_group_never_seen_in_training_counts_as_an_error():
    assert metrics.classification_metrics(["a", "new"], ["a", "a"])["accuracy"] == 0.5


def test_calibration_error_is_confidence_minus_accuracy_in_each_bin():
    correct = np.r_[np.ones(8), np.zeros(2), np.ones(5), np.zeros(5)]
    confidence = np.r_[np.full(10, 0.9), np.full(10, 0.7)]
    assert metrics.expected_calibration_error(correct, confidence) == pytest.approx(
        0.5 * 0.1 + 0.5 * 0.2
    )
    edges = metrics.expected_calibration_error(np.array([0, 1]), np.array([0.0, 1.0]))
    assert edges == 0


class Copycat:
    """A method that knows the answers: its scores are known in advance."""

    method, task, label_key_ = "copycat", "supervised", "cell_type"
    modalities_, groups_ = ["rna", "protein"], ["a", "b"]
    info_ = {"dataset": "own", "data_source": "local", "protocol": "strict", "fold": 0, "seed": 0}

    def __init__(self, kinds):
        self.transform_ = type("T", (), {"kinds": kinds})

    def transform(self, mdata):
        return mdata

    def predict(self, mdata):
        truth = mdata.obs["cell_type"].astype(str)
        proba = {g: (truth == g).astype(float) for g in self.groups_}
        return pd.DataFrame({"group": truth, **proba})

    def translate(self, mdata, target, source, units="measured"):
        out = np.full((mdata.n_obs, mdata[target].n_vars), np.nan)
        rows = mdata.obs_names.get_indexer(mdata[target].obs_names)
        out[rows] = mdata[target].X
        return out


def cells_with_gaps():
    rng = np.random.default_rng(0)
    names = np.array([f"c{i}" for i in range(30)])
    rna = ad.AnnData(rng.normal(size=(30, 4)), obs=pd.DataFrame(index=names))
    on = (rng.random((20, 3)) < 0.5).astype(float)
    protein = ad.AnnData(on, obs=pd.DataFrame(index=names[10:][::-1]))
    mdata = MuData({"rna": rna, "protein": protein})
    mdata.obs["cell_type"] = ["a", "b"] * 15
    return mdata


def test_evaluate_gives_one_tidy_row_per_score_on_cells_that_have_both_modalities():
    table = metrics.evaluate(Copycat({"rna": "counts", "protein": "peaks"}), cells_with_gaps())
    assert list(table.columns) == metrics.COLUMNS
    assert not table.duplicated(["task", "metric", "target_modality", "source_modality"]).any()
    values = table.set_index(["metric", "target_modality", "source_modality"])["value"]
    assert values["accuracy", "", ""] == 1
    assert values["r2", "rna", "protein"] == 1
    assert values["auroc", "protein", "rna"] == 1
    assert ("auroc", "rna", "protein") not in values.index
    assert set(table["task"]) == {"supervised", "translation"}
    assert set(table["modalities"]) == {"rna+protein"}


@pytest.mark.parametrize("label_key", ["missing", "cell_type"])
def test_missing_labels_are_refused_by_name(label_key):
    mdata = cells_with_gaps()
    mdata.obs["cell_type"] = [np.nan] + ["a"] * 29
    with pytest.raises(DataError, match=label_key):
        metrics.evaluate(Copycat({}), mdata, label_key)


def rows(method, metric, value, target="", source="", modalities="rna+morph"):
    task = "translation" if target else "supervised"
    row = {"method": method, "task": task, "metric": metric, "modalities": modalities}
    return row | {"target_modality": target, "source_modality": source, "value": value}


RECORDS = pd.DataFrame(
    [
        rows("ridge", "r2", 0.3, "rna", "morph"),
        rows("scMoE", "accuracy", 0.9),
        rows("scMoE", "r2", 0.1, "rna", "morph"),
        rows("scMoE", "r2", 0.5, "morph", "rna"),
        rows("late fusion", "accuracy", 0.5),
        rows("late fusion", "accuracy", 0.6, modalities="rna"),
    ]
)


def test_methods_stand_in_rows_best_first_and_translations_are_averaged():
    table = metrics.wide(RECORDS)
    assert list(table.index) == ["scMoE", "late fusion of rna", "late fusion", "ridge"]
    assert list(table.columns) == ["accuracy", "r2"]
    assert table.at["scMoE", "r2"] == pytest.approx(0.3)


def test_pairs_and_grids_hold_each_translation_once():
    pairs = metrics.pairs(RECORDS)
    assert pairs.at[("rna", "morph"), "ridge"] == 0.3
    assert np.isnan(pairs.at[("morph", "rna"), "ridge"])
    assert set(pairs) == {"ridge", "scMoE", "late fusion"}
    grids = metrics.grids(RECORDS)
    assert set(grids) == {"ridge", "scMoE"}
    assert grids["scMoE"].at["morph", "rna"] == 0.5
    assert np.isnan(np.diag(grids["scMoE"])).all()


def test_one_modality_has_no_pairs_and_still_all_methods():
    alone = RECORDS[RECORDS["task"] != "translation"]
    assert metrics.pairs(alone).shape == (0, 2)
    assert metrics.grids(alone) == {}
    assert np.isnan((metrics.pairs(alone)["scMoE"]).mean())


def test_the_error_of_a_difference_is_that_of_independent_methods():
    assert metrics.error(0.5, 0.5, 50) == pytest.approx(0.1)


def test_clusters_get_the_names_of_the_groups_they_match():
    truth = ["a", "a", "b", "b", "b"]
    named = metrics.matched(truth, ["1", "1", "0", "0", "2"])
    assert named.tolist() == ["a", "a", "b", "b", "cluster 2"]
