"""Where cells are many, all but the network learns from a sample, and features come in blocks."""

import numpy as np
import pytest

import scmoe
from scmoe import parts
from scmoe.data import split_mudata
from scmoe.data.cells import make_mudata
from tests.conftest import make_tiny

CONFIG = scmoe.Config().replace(members=2, d=16, n_experts=2, hidden=16, epochs=2, batch_size=16)


@pytest.fixture
def split():
    return split_mudata(make_tiny(120), seed=0)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(parts, "SAMPLE", 60)


def fitted(split, seed=0):
    return scmoe.ScMoE(config=CONFIG, seed=seed).fit(split, "cpu", progress=False)


def test_cells_in_blocks_have_the_components_of_all_at_once(split, monkeypatch):
    model = fitted(split)
    whole = model._scores(split.train)
    monkeypatch.setattr(parts, "SAMPLE", 17)
    blocks = model._scores(split.train)
    assert (whole[1] == blocks[1]).all()
    for m, scores in whole[0].items():
        np.testing.assert_allclose(blocks[0][m], scores, atol=1e-5)
    said = model.predict(split.test).drop(columns="group")
    monkeypatch.undo()
    np.testing.assert_allclose(model.predict(split.test).drop(columns="group"), said, atol=1e-5)


def test_cells_in_blocks_may_all_lack_a_modality_and_others_are_not_read(split, monkeypatch):
    model = fitted(split)
    mod = {name: split.train[name] for name in split.train.mod}
    cells = make_mudata(mod | {"protein": mod["protein"][30:].copy()}, split.train.obs)
    whole = model.translate(cells, "rna", "protein")
    monkeypatch.setattr(parts, "SAMPLE", 17)
    cells["rna"].X.data[:] = np.nan  # the target, and in blocks of which some have no source at all
    np.testing.assert_allclose(model.translate(cells, "rna", "protein"), whole, atol=1e-4)
    assert np.isnan(whole[:30]).all() and np.isfinite(whole[30:]).all()


def test_the_linear_part_learns_from_the_sample_and_the_network_from_all(split, few):
    model = fitted(split)
    known = model._prepare(split)
    assert len(known.sample) == 60 < len(known.labels)
    others = np.setdiff1d(np.arange(len(known.labels)), known.sample)
    in_train = others[others < split.train.n_obs]
    names = split.train.obs[split.label_key].astype(str).to_numpy()
    names[in_train] = np.roll(names[in_train], 1)  # what the sample does not hold
    split.train.obs[split.label_key] = names
    again = fitted(split)
    for ours, theirs in zip(model.linear.heads_, again.linear.heads_, strict=True):
        np.testing.assert_array_equal(ours.weights, theirs.weights)
    differs = [
        not np.array_equal(a.detach(), b.detach())
        for a, b in zip(
            model.experts.network_.parameters(), again.experts.network_.parameters(), strict=True
        )
    ]
    assert any(differs)


def test_a_model_of_many_cells_is_saved_and_gives_the_same_answers(split, few, tmp_path):
    model = fitted(split)
    model.save(tmp_path / "model")
    again = scmoe.ScMoE.load(tmp_path / "model", "cpu")
    assert model.predict(split.test).equals(again.predict(split.test))
