"""What the table of record of explanations is made by: every number has a place, and is found."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

import scmoe
from benchmarks.claims import reference, study, truth
from scmoe import explain
from scmoe.explain import concepts, faithfulness
from scmoe.explain.concepts import Concept
from scmoe.metrics import COLUMNS
from tests.unit.test_explain_attribution import fitted, whole

PLAN = study.Plan(8, 4, 2, 2, kernel=False, n_seeds=0, n_folds=0,
                  gradient_budgets=(8, 64), permutation_budgets=(2,))  # fmt: skip
OURS = explain.METHODS[explain.PRIMARY]


@pytest.fixture(scope="module")
def table():
    model, split = whole()
    return study.score(model.experts, split, PLAN, {"seeds": [model.experts]})


def test_every_method_has_every_score_that_it_can_have(table):
    names = ["seconds", "budget", "deletion", "insertion_low", "infidelity", "agreement", "cells"]
    assert np.isfinite(table[names].to_numpy(float)).all()
    assert (table["cells"] == [8, 8, 8, 8, 4, 2]).all()
    assert table.loc[OURS, "stability"] == pytest.approx(1)
    sampled = table.index.str.startswith("SHAP")
    against = [f"{study.AGAINST}{name}" for name in ("cheaper", "deletion", "insertion_high")]
    assert np.isfinite(table.loc[sampled, against].to_numpy(float)).all()
    assert table.loc[~sampled, against].isna().all(axis=None)


def test_the_linear_part_is_scored_too():
    model, split = whole()
    names = study.score(model.linear, split, PLAN).index
    assert not {OURS, "routing relevance"} & set(names)
    assert "gradient × input" in names


def test_scores_take_the_place_of_older_ones_in_the_books_file(table, tmp_path):
    run = scmoe.record.Run("patchseq", out_dir=tmp_path, device="cpu")
    run.split = whole()[1]
    file = tmp_path / "kept.csv"
    for protocol in ("strict", "paper", "strict"):
        records = reference.as_records([table, pd.DataFrame()], run, protocol)
        assert list(records) == COLUMNS
        reference.put(run.finish(records), file)
    kept = pd.read_csv(file)
    assert len(kept) == 2 * len(records)
    strict = kept[kept["protocol"] == "strict"]
    back = strict.pivot(index="method", columns="metric", values="value")
    assert back.loc[OURS, "deletion"] == pytest.approx(table.loc[OURS, "deletion"], rel=1e-3)
    assert set(json.loads(file.with_suffix(".json").read_text())) == {"own, strict", "own, paper"}


def test_other_models_are_compared_where_they_say_the_same():
    model, split = whole()
    cells = explain.complete(split.test, 6)
    why = explain.attribute(model.experts, cells)
    other = dataclasses.replace(
        why,
        features=why.features | {"rna": why.features["rna"][2:]},
        values=why.values | {"rna": why.values["rna"][:, :, 2:]},
        groups=np.where(np.arange(6) < 2, "elsewhere", why.groups),
    )
    assert study.stability([why, other]) == pytest.approx(1)
    other.groups = np.full(6, "elsewhere")
    assert np.isnan(study.stability([why, other]))
    with pytest.raises(ValueError, match="at least two"):
        study.stability([why])


def test_a_larger_budget_is_tried_until_the_halves_agree():
    model, cells, background = fitted()
    found, why = study.enough(
        model, cells[:2], "shap_gradient", [4, 400, 4000], 0.6, background=background
    )
    assert found["split_half"].iloc[-1] >= 0.6
    assert len(found) <= 2
    assert found["split_half"].is_monotonic_increasing
    assert why.budget == found["budget"].iloc[-1]


def test_one_random_concept_in_twenty_is_taken_for_a_finding_at_most_one_in_ten():
    model, _, background = fitted()
    rng, n, hits = np.random.default_rng(0), 60, []
    shows = background.obs["cell_type"].astype(str) == "type0"
    null = [Concept.of_cells("type0", shows).at_random(rng) for _ in range(n)]
    acts = concepts.tokens(model, background)
    for i in range(acts.shape[1]):
        accuracy, _ = concepts.probes(acts[:, i], null, 0)
        hits += [concepts.tail(accuracy[j], np.delete(accuracy, j)) < 0.05 for j in range(n)]
    assert np.mean(hits) <= 0.10


def test_recovery_of_the_truth_itself_is_perfect():
    differs = pd.DataFrame({"rna": [True, False, True], "protein": [False] * 3}, index=list("abc"))
    index = pd.MultiIndex.from_tuples([(m, f) for m in differs for f in differs.index])
    perfect = pd.Series([differs.at[f, m] * 1.0 for m, f in index], index)
    found = truth.group_recovery(perfect, differs)
    assert found == {"auprc": 1.0, "chance": pytest.approx(1 / 3)}


def test_edges_leave_out_a_gene_with_itself():
    edges = pd.DataFrame({"regulator": ["t1", "t1"], "target": ["g", "t1"]})
    importance = pd.DataFrame({"g": [1.0, 9.0], "t1": [5.0, 9.0], "h": [0.0, 9.0]}, ["t1", "g"])
    assert truth.edge_recovery(importance, edges) == {"auprc": 1.0, "chance": 0.5}


def test_a_model_with_shuffled_weights_is_explained_otherwise():
    model, cells, background = fitted()
    groups = model.groups_
    trained = explain.attribute(model, cells, outputs=groups, background=background)
    others = [faithfulness.shuffled(model, seed) for seed in range(8)]
    similar = [
        faithfulness.spearman(
            trained, explain.attribute(m, cells, outputs=groups, background=background)
        ).mean()
        for m in others
    ]
    assert abs(np.mean(similar)) < 0.15
    again = explain.attribute(model, cells, outputs=groups, background=background)
    assert np.array_equal(again.flat, trained.flat)


@pytest.mark.slow
def test_models_that_know_nothing_recover_little():
    run = scmoe.record.Run("dyngen", epochs=2, device="cpu")
    split, plan = run.load(), dataclasses.replace(PLAN, n_cells=60)
    model = scmoe.ScMoE(config=run.config()).fit(split, device="cpu", progress=False)
    found = truth.recovered(model.experts, split, plan)
    edges, groups = (found.loc[what, "auprc"] for what in (truth.EDGES, truth.GROUPS))
    chance = found["chance"].groupby("what").first()
    # features that vary between groups are large, and what is large is found without knowing why
    assert groups[truth.RANDOM] < groups[OURS]
    assert edges[OURS] > 2 * chance[truth.EDGES]
    assert edges[truth.RANDOM] < 1.5 * chance[truth.EDGES]
    assert chance[truth.GROUPS] + 0.15 < groups[OURS]
