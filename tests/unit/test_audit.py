"""The audit finds each leak planted in a toy model, and none in a clean one."""

import copy

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression, Ridge

import scmoe
from scmoe.data import simulate_dyngen, split_mudata
from scmoe.data.cells import keep

READS = "Does a translation read its target?"
DEPENDS = "Does an answer depend on what it should not?"
LEAKS = "Do test cells reach the fit?"
NEW = "Are the test cells new?"


class Toy:
    """Logistic and ridge regression on scaled values; `leak` says what is wrong with it."""

    method = "toy"

    def __init__(self, leak=None):
        self.leak = leak

    def fit(self, split):
        parts = {"train": [split.train], "test labels": [split.train, split.test]}
        cells = parts.get(self.leak, parts["train"])
        X = np.concatenate([self._all(part) for part in cells])
        labels = np.concatenate([self._labels(part, split) for part in cells])
        seen = [X, self._all(split.test)] if self.leak == "scaled by test cells" else [X]
        self.mean_, self.sd_ = np.concatenate(seen).mean(0), np.concatenate(seen).std(0) + 1e-9
        self.key_ = split.label_key
        if self.leak == "penalty by test cells":
            truth = self._labels(split.test, split)
            tried = [self._classifier(X, labels, C) for C in (1e-6, 1e-3, 1.0, 1e3)]
            scores = [np.mean(t.predict(self._x(split.test)) == truth) for t in tried]
            self.groups_ = tried[int(np.argmax(scores))]
        else:
            self.groups_ = self._classifier(X, labels, 1.0)
        self.names_ = list(split.train.mod)
        self.maps_ = {
            (t, s): Ridge(10.0).fit(self._one(split.train, s), self._one(split.train, t))
            for t in self.names_ for s in self.names_ if t != s
        }  # fmt: skip
        if self.leak == "remembers names":
            known = self._labels(split.test, split)
            self.names_of_ = dict(zip(split.test.obs_names, known, strict=True))
        return self

    def predict(self, mdata):
        table = pd.DataFrame(
            self.groups_.predict_proba(self._x(mdata)), mdata.obs_names, self.groups_.classes_
        )
        table.insert(0, "group", self.groups_.classes_[table.to_numpy().argmax(1)])
        if self.leak == "reads labels":
            table["group"] = mdata.obs[self.key_].astype(str)
            table = table[["group"]]
        if self.leak == "remembers names":
            names = [self.names_of_.get(name, "none") for name in mdata.obs_names]
            return pd.DataFrame({"group": names}, mdata.obs_names)
        return table

    def translate(self, mdata, target, source):
        told = self.maps_[target, source].predict(self._one(mdata, source))
        if self.leak == "reads target" and target in mdata.mod:
            told = 0.5 * told + 0.5 * np.nan_to_num(self._one(mdata, target))
        if self.leak == "reads absence":
            told = told + (target in mdata.mod)
        return told

    def _x(self, mdata):
        X = self._all(mdata)
        if self.leak == "scaled by its company":
            return (X - X.mean(0)) / (X.std(0) + 1e-9)
        return (X - self.mean_) / self.sd_

    def _classifier(self, X, labels, C):
        return LogisticRegression(C=C).fit((X - self.mean_) / self.sd_, labels)

    def _all(self, mdata):
        return np.concatenate([self._one(mdata, name) for name in mdata.mod], 1)

    @staticmethod
    def _one(mdata, name):
        X = mdata[name].X
        return np.asarray(X.toarray() if hasattr(X, "toarray") else X, float)

    @staticmethod
    def _labels(part, split):
        return part.obs[split.label_key].astype(str).to_numpy()


@pytest.fixture(scope="module")
def split():
    cells = simulate_dyngen(n_cells=160, n_genes=40, backbone="bifurcating", seed=0)
    return split_mudata(keep(cells, ["mrna", "protein"]), "label", seed=0)


def table_of(model, split):
    return scmoe.audit(model, split, rivals=[]).set_index(["question", "check"])


def failed(table):
    return set(table.index[table["verdict"] == "fails"].get_level_values("question"))


def test_a_clean_model_leaks_nothing(split):
    table = table_of(Toy(), split)
    for question in (READS, DEPENDS, LEAKS, NEW):
        assert (table.loc[question, "verdict"] == "passes").all()


@pytest.mark.parametrize(
    ("leak", "question"),
    [
        ("reads target", READS),
        ("reads absence", READS),
        ("reads labels", DEPENDS),
        ("remembers names", DEPENDS),
        ("scaled by its company", DEPENDS),
        ("scaled by test cells", LEAKS),
        ("test labels", LEAKS),
        ("penalty by test cells", LEAKS),
    ],
)
def test_each_planted_leak_is_found_and_named(split, leak, question):
    assert question in failed(table_of(Toy(leak), split))


def test_test_cells_among_the_training_cells_are_found(split):
    shared = copy.copy(split)
    shared.test = split.train[:20].copy()
    table = scmoe.audit(Toy(), shared, rivals=[]).set_index("check")
    assert table.loc["test cells with a training cell's name", "value"] == 20
    assert table.loc["test cells with all values of a training cell", "value"] == 20


@pytest.mark.slow
def test_our_model_passes_what_can_be_passed(split):
    config = scmoe.Config().replace(members=2, d=16, n_experts=2, hidden=16, epochs=3)
    table = table_of(scmoe.ScMoE(config=config), split)
    assert not failed(table) & {READS, DEPENDS, LEAKS, NEW}
    assert (table.loc[LEAKS, "verdict"] == "passes").all()


def test_two_functions_are_asked_what_functions_can_be_asked(split):
    fitted = Toy().fit(split)
    table = table_of((fitted.predict, fitted.translate), split)
    assert (table.loc[LEAKS, "verdict"] == "not testable").all()
    assert (table.loc[READS, "verdict"] == "passes").all()
    only = table_of((lambda mdata: fitted.predict(mdata)["group"], None), split)
    assert (only.loc[READS, "verdict"] == "not testable").all()
    assert (only.loc["Are its probabilities calibrated?", "verdict"] == "not testable").all()


def test_a_model_whose_fits_differ_by_themselves_is_not_called_leaking(split):
    class Random(Toy):
        def fit(self, split):
            super().fit(split)
            self.groups_.coef_ = self.groups_.coef_ + np.random.default_rng().normal(
                size=self.groups_.coef_.shape
            )
            return self

    assert LEAKS not in failed(table_of(Random(), split))


def test_the_best_simple_method_is_held_against_it_with_an_interval(split):
    table = scmoe.audit(Toy(), split).set_index("question")
    simple = table.loc[["Is it better than simple methods?"]]
    assert len(simple) == 2
    assert (simple["low"] <= simple["value"]).all() and (simple["value"] <= simple["high"]).all()
    ahead = simple["verdict"].eq("passes")
    assert (ahead == (simple["low"] > 0)).all()


def test_a_batch_that_tells_all_is_a_shortcut(split):
    told = copy.copy(split)
    for part in ("train", "val", "test"):
        cells = getattr(split, part).copy()
        cells.obs["batch"] = "batch " + cells.obs["label"].astype(str)
        setattr(told, part, cells)
    table = scmoe.audit(Toy(), told, rivals=[], batch_key="batch").set_index("check")
    row = table.loc["accuracy less that of batch alone"]
    assert row["value"] <= 0 and row["verdict"] != "passes"
    with pytest.raises(scmoe.data.DataError, match="batch_key.*donor"):
        scmoe.audit(Toy(), split, rivals=[], batch_key="donor")


def test_overconfidence_is_seen(split):
    class Sure(Toy):
        def predict(self, mdata):
            table = super().predict(mdata)
            wrong = np.arange(len(table)) % 2 == 0
            table.iloc[:, 1:] = np.eye(table.shape[1] - 1)[table.iloc[:, 1:].to_numpy().argmax(1)]
            table.iloc[wrong, 1:] = np.roll(table.iloc[wrong, 1:], 1, axis=1)
            return table

    check = "Are its probabilities calibrated?"
    assert check in failed(table_of(Sure(), split))


def test_what_is_no_model_is_refused(split):
    with pytest.raises(TypeError, match="neither predict"):
        scmoe.audit(object(), split)


def test_the_report_is_a_page_with_names_as_text(split, tmp_path):
    class Hostile(Toy):
        method = "<script>|x"

    table = scmoe.audit(Hostile(), split, rivals=[])
    page = scmoe.write_report(table, tmp_path / "audit.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("<tr>") == len(table) + 1 and "Audit of" in page
    text = scmoe.write_report(table, tmp_path / "audit.md").read_text()
    assert "<script>" not in text and text.startswith("Audit of &lt;script&gt;|x")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == len(table) + 2 and {row.count("|") for row in rows} == {8}
    with pytest.raises(scmoe.data.DataError, match="path"):
        scmoe.write_report(table, tmp_path / "audit.pdf")


def test_a_translation_that_is_not_given_counts_as_the_mean_and_favours_nobody(split):
    class Silent(Toy):
        method = "silent"

        def translate(self, mdata, target, source):
            told = super().translate(mdata, target, source)
            told[::2] = np.nan
            return told

    table = scmoe.audit(Silent(), split, rivals=[Toy()]).set_index("check")
    assert table.loc["mean R² less that of toy", "verdict"] == "fails"
    same = scmoe.audit(Toy(), split, rivals=[Toy()]).set_index("check")
    assert same.loc["mean R² less that of toy", "value"] == 0


def test_sparse_cells_get_the_same_table(split):
    thin = copy.copy(split)
    for part in ("train", "val", "test"):
        cells = getattr(split, part).copy()
        for name in cells.mod:
            cells[name].X = sp.csr_matrix(cells[name].X)
        setattr(thin, part, cells)
    dense, sparse = (table_of(Toy(), each) for each in (split, thin))
    kept = [question for question, _ in dense.index if question != "What does it cost?"]
    columns = ["value", "low", "high", "verdict"]
    pd.testing.assert_frame_equal(dense.loc[kept, columns], sparse.loc[kept, columns])
