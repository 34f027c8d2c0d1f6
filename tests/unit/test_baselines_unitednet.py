"""UnitedNet: trains on tiny data, translates honestly, and clusters without labels."""

from dataclasses import replace

import mudata as md
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import scmoe
from benchmarks.record.unitednet import PRESETS, Sizes, UnitedNet, contrastive
from scmoe.data import split_mudata

SMALL = Sizes((32,), 16, n_heads=2, epochs=12, learning_rate=3e-3)


@pytest.fixture
def split(tiny):
    return split_mudata(tiny)


@pytest.mark.parametrize("sizes", [SMALL, replace(SMALL, batch_norm=True, epochs=30)])
def test_it_learns_groups_and_translations(sizes, split):
    model = UnitedNet("supervised", sizes).fit(split)
    table = scmoe.evaluate(model, split.test)
    values = table.groupby("metric")["value"].mean()
    assert values["accuracy"] >= 0.8
    assert values["r2"] > 0
    assert len(table[table["metric"] == "r2"]) == 6
    assert model.get_latent_representation(split.test).shape == (split.test.n_obs, 16)


def test_it_clusters_without_labels(split):
    model = UnitedNet("unsupervised", SMALL).fit(split)
    before = model.predict(split.test)
    for part in (split.train, split.val):
        part.obs["cell_type"] = part.obs["cell_type"].to_numpy()[::-1]
    again = UnitedNet("unsupervised", SMALL).fit(split).predict(split.test)
    assert before.equals(again)
    assert set(scmoe.evaluate(model, split.test)["task"]) == {"unsupervised", "translation"}


def test_translation_never_reads_the_target(split):
    model = UnitedNet("supervised", SMALL).fit(split)
    whole = model.translate(split.test, "rna", ["morph", "protein"])
    sources = md.MuData({m: split.test[m] for m in ("morph", "protein")})
    assert np.array_equal(whole, model.translate(sources, "rna", ["morph", "protein"]))
    gaps = md.MuData({"rna": split.test["rna"], "morph": split.test["morph"][2:]})
    assert np.isnan(model.translate(gaps, "rna", "morph")).all(1).sum() == 2
    assert np.isfinite(model.predict(gaps)[model.groups_]).all(None)


def test_cells_that_lack_a_modality_are_trained_on(tiny):
    part = {"rna": tiny["rna"], "morph": tiny["morph"][10:].copy()}
    gaps = md.MuData(part)
    gaps.obs["cell_type"] = tiny.obs["cell_type"]
    split = split_mudata(gaps)
    table = UnitedNet("supervised", SMALL).fit(split).predict(split.test)
    assert np.isfinite(table.iloc[:, 1:]).all(None)


def test_the_contrastive_loss_is_cross_entropy_over_the_batch():
    a, b = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for first, second in ((a, b), (b, a)):
        for i in range(5):
            near = torch.stack([F.cosine_similarity(first[i], other, 0) for other in second])
            expected -= (near / 0.1).log_softmax(0)[i].item() / 10
    assert contrastive(a, b).item() == pytest.approx(expected, rel=1e-5)


def test_presets_have_the_published_layers():
    assert PRESETS["patchseq"].widths == (1024, 512, 256, 128)
    assert PRESETS["dbitseq"].n_latent == 22
    assert PRESETS["atacseq"].batch_norm


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match="supervised"):
        UnitedNet("translation")
