"""The page's study as a whole: every number has a place, and comes back from the file it is in."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

import scmoe
from scmoe import explain
from scmoe.explain import faithfulness, known, reference, study, tables, truth
from scmoe.metrics import COLUMNS
from tests.conftest import make_tiny
from tests.unit.test_explain_attribution import make_fitted

PLAN = study.Plan(8, 4, 2, 2, 20, gradient_budgets=(8, 64), permutation_budgets=(2, 4))


@pytest.fixture(scope="module")
def scored():
    model, _, _ = make_fitted()
    split = scmoe.data.split_mudata(make_tiny(90))
    run = scmoe.record.Run("patchseq", out_dir="unused")
    return study.score(model, split, PLAN, {"seeds": [model]}), model, split, run


def test_every_method_has_every_score_that_it_can_have(scored):
    found = scored[0]
    names = ["seconds", "peak_mb", "budget", "deletion", "insertion", "infidelity", "agreement"]
    assert np.isfinite(found.table[names].to_numpy(float)).all()
    assert found.table.loc[explain.PRIMARY, "stability"] == pytest.approx(1)
    assert list(found.versus.index) == ["shap_gradient", "shap_permutation"]
    assert (found.table["cells"] == [8, 8, 8, 8, 4, 2]).all()


def test_scores_come_back_from_the_file_that_the_book_keeps(scored, tmp_path):
    found, model, split, run = scored
    further = {"rank of ": pd.DataFrame({"Sst": [3]}, ["correlation"])}
    records = study.records(found, model, split, run, further)
    assert list(records) == COLUMNS
    provenance = dict.fromkeys(reference.KEPT)
    content = {"records": records.to_dict("records"), "provenance": provenance}
    folder = tmp_path / "interpretability-dataset_own"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(content, default=float))
    file = tmp_path / "kept.csv"
    reference.gather(tmp_path, file=file)
    back = reference.stored("own", "strict", file)
    shared = found.table.columns.intersection(back.table.columns)
    assert len(shared) > 10
    assert np.allclose(back.table[shared], found.table[shared], rtol=1e-3, equal_nan=True)
    assert np.allclose(back.versus[found.versus.columns], found.versus, rtol=1e-3, atol=1e-4)
    assert tables.versus_table(back).data
    assert reference.stored("own", "paper", file) is None
    assert json.loads(file.with_suffix(".json").read_text()) == {"own, strict": provenance}
    again = reference.gather(tmp_path / "nothing new", file=file)
    assert len(again) == len(records)
    assert reference.stored("own", "strict", file).table.equals(back.table)


def test_many_networks_come_back_too(tmp_path):
    index = {"backbone": "linear", "seed": 3, "what": truth.EDGES}
    rows = [index | {"by": by, "auprc": 0.5, "chance": 0.1} for by in ("correlation", "ours")]
    scores = known.scores_of_networks(pd.DataFrame(rows))
    parts = [
        table.add_prefix(before).melt(ignore_index=False, var_name="metric").reset_index()
        for before, table in scores.items()
    ]
    records = pd.concat(parts).rename(columns={"by": "method"})
    records.assign(dataset="dyngen", protocol="strict").to_csv(tmp_path / "kept.csv", index=False)
    back = reference.networks("dyngen", "strict", tmp_path / "kept.csv")
    assert back.assign(seed=back["seed"].astype(int)).to_dict("records") == rows


def test_other_models_are_compared_where_they_say_the_same(scored):
    _, model, split, _ = scored
    cells = study.complete(split.test, 6, 0)
    why = explain.attribute(model, cells)
    other = dataclasses.replace(
        why,
        features=why.features | {"rna": why.features["rna"][2:]},
        values=why.values | {"rna": why.values["rna"][:, :, 2:]},
        groups=np.where(np.arange(6) < 2, "elsewhere", why.groups),
    )
    assert faithfulness.stability([why, other]) == pytest.approx(1)
    other.groups = np.full(6, "elsewhere")
    assert np.isnan(faithfulness.stability([why, other]))


def test_a_blend_is_scored_as_its_parts_are(scored):
    found, model, split, _ = scored
    shares = found.explanations[explain.PRIMARY].share_table()
    assert shares["linear part"].max() < 1e-6  # of the experts alone
    assert study.flows(model, found.cells, split.train).shape == (3, 3)
    assert abs(study.likeness_to_random(found, model, split.train)) < 0.5


@pytest.fixture(scope="module")
def recovered(tmp_path_factory):
    """AUPRC by what is recovered and by what, and the chance level of each."""
    folder = tmp_path_factory.mktemp("recovery")
    run = scmoe.record.Run("dyngen", epochs=2, out_dir=folder, device="cpu")
    plan = dataclasses.replace(study.PLANS["quick"], n_cells=60, n_shap=4)
    table = truth.recovery_study(run, plan, n_seeds=1, backbones=["linear"])
    auprc = table.pivot(index="what", columns="by", values="auprc")
    return auprc, table.groupby("what")["chance"].first()


@pytest.mark.slow
def test_models_that_know_nothing_recover_nothing(recovered):
    auprc, chance = recovered
    ours = explain.METHODS[explain.PRIMARY]
    assert auprc.at[truth.EDGES, ours] > 2 * chance[truth.EDGES]
    assert auprc.at[truth.EDGES, truth.RANDOM] < 1.5 * chance[truth.EDGES]
    groups, by_chance = auprc.loc[truth.GROUPS], chance[truth.GROUPS]
    assert groups[truth.SHUFFLED] < by_chance + 0.15 < groups[ours]
