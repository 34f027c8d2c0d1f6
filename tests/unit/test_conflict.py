"""Gradients of tasks against hand-computed ones; changes with their intervals; equal sizes."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import scmoe
from benchmarks.claims import conflict
from benchmarks.record.collect import read_claim
from scmoe.nn.network import Network
from tests.conftest import make_tiny


@pytest.fixture(scope="module")
def split():
    return scmoe.data.split_mudata(make_tiny(), seed=0)


def test_the_cosine_is_that_of_the_gradients():
    w, unused = torch.tensor([1.0, 2.0], requires_grad=True), torch.ones(3, requires_grad=True)
    tasks = {"a": w[0] * 3, "b": w.sum(), "c": -(w[0] ** 2)}  # (3, 0), (1, 1), (-2, 0)
    found = conflict.cosines(tasks, [w, unused]).set_index(["first", "second"])["cosine"]
    assert found["a", "b"] == pytest.approx(math.sqrt(0.5))
    assert found["a", "c"] == pytest.approx(-1)
    assert found["b", "c"] == pytest.approx(-math.sqrt(0.5))


def test_a_task_that_shares_nothing_has_no_cosine():
    shared = torch.ones(2, requires_grad=True)
    other = torch.ones(2, requires_grad=True)
    found = conflict.cosines({"a": shared.sum(), "b": other.sum()}, [shared])
    assert found["cosine"].item() == 0


def test_sparse_and_dense_have_equally_many_expert_parameters():
    sizes = {}
    for name, config in conflict.networks().items():
        experts = Network(config.model, [10, 6], 3).layers[0].experts
        sizes[name] = experts.w1.numel() + experts.w2.numel()
        assert config.model.n_components and not config.train.sum_pairs
    assert sizes[conflict.SPARSE] == sizes[conflict.DENSE]


def test_rungs_add_one_modality_at_a_time_to_the_same_cells(split):
    steps = list(conflict.rungs(split))
    assert [len(step.modalities) for step in steps] == [1, 2, 3]
    for step in steps:
        assert step.test.obs_names.equals(split.test.obs_names)


def test_watching_gradients_does_not_change_training(split):
    config = conflict.networks(6)[conflict.SPARSE]
    watched = conflict.Watched(config=config).fit(split, "cpu", progress=False)
    plain = scmoe.networks.Experts(config=config).fit(split, "cpu", progress=False)
    for a, b in zip(watched.network_.parameters(), plain.network_.parameters(), strict=True):
        assert torch.equal(a, b)
    found = watched.cosines()
    assert {"cosine groups, translations @1", "cosine pairs @5"} <= set(found["metric"])
    assert found["value"].between(-1, 1).all()


def test_one_modality_has_one_task(split):
    first = next(conflict.rungs(split))
    config = conflict.networks(2)[conflict.SPARSE]
    model = conflict.Watched(config=config).fit(first, "cpu", progress=False)
    assert model.cosines().empty


def test_climbing_asks_every_rung_the_same(split):
    records = conflict.climb("dyngen", 0, split, epochs=2, strict=False)
    r2 = records[records["metric"] == "r2"]
    pairs = r2.groupby("modalities")[["target_modality", "source_modality"]].agg(set)
    assert len(pairs) == 2 and (pairs["target_modality"].str.len() == 2).all()
    accuracy = records[records["metric"] == "accuracy"]
    assert set(accuracy["method"]) == set(conflict.METHODS) - {conflict.STRICT}
    assert accuracy["modalities"].nunique() == 3


def rows(method, values, n):
    """One row a seed, as `by_rung` gives them."""
    return [
        dict(dataset="dyngen", method=method, metric="accuracy", n=n, seed=s, value=v)
        for s, v in enumerate(values)
    ]


def test_changes_are_paired_by_seed_and_have_students_interval():
    table = pd.DataFrame(
        rows(conflict.DENSE, [0.5, 0.7, 0.9], 1) + rows(conflict.DENSE, [0.4, 0.6, 0.7], 3)
    )
    row = conflict.changes(table).iloc[0]
    change = np.array([-0.1, -0.1, -0.2])
    half = 4.302653 * change.std(ddof=1) / math.sqrt(3)  # t of 2 degrees of freedom
    assert row["change"] == pytest.approx(change.mean())
    assert (row["low"], row["high"]) == pytest.approx((change.mean() - half, change.mean() + half))


def test_sparse_experts_are_spared_what_only_the_dense_network_loses():
    table = pd.DataFrame(
        rows(conflict.DENSE, [0.9, 0.8], 1) + rows(conflict.DENSE, [0.5, 0.4], 2)
        + rows(conflict.SPARSE, [0.9, 0.8], 1) + rows(conflict.SPARSE, [0.9, 0.8], 2)
    )  # fmt: skip
    assert conflict.spared(table)["sparse less dense"].item() == pytest.approx(0.4)


def test_the_table_of_record_has_every_ladder():
    table = conflict.by_rung(read_claim("conflict"))
    assert set(table["dataset"]) == set(conflict.LADDERS)
    assert np.isfinite(table["value"]).all()
    assert {conflict.SPARSE, conflict.DENSE, conflict.EARLY, conflict.LATE} <= set(table["method"])
