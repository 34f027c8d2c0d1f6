"""Each leak is a switch, and changes the score in the expected way; ours beside the published."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch.nn.functional as F

import scmoe
from benchmarks.claims import leaks
from benchmarks.record import collect
from scmoe import paper
from scmoe.config import preset
from scmoe.networks import Experts
from scmoe.nn.network import Network

SMALL = dict(epochs=30, d=16, n_heads=2, n_patches=4, n_experts=4, lr=1e-2)
ALL_PAIRS = dict(r2_upper_pairs_only=False)


@pytest.fixture(scope="module")
def split():
    """Three groups, seen alike by three modalities: a target can be copied, or predicted."""
    from tests.conftest import make_tiny

    return scmoe.data.split_mudata(make_tiny(120), seed=0)


@pytest.fixture(scope="module")
def model(split):
    config = preset("patchseq", "paper").replace(**SMALL)
    return scmoe.ScMoE("unsupervised", config).fit(split, "cpu", progress=False)


def r2(records):
    return records.query("metric == 'r2'")["value"].to_numpy()


def test_a_hidden_target_costs_translation(model, split):
    seen = r2(paper.score_once(model, split, "m", **ALL_PAIRS))
    for reading in ("target zeroed", "others zeroed", "alone"):
        hidden = r2(paper.score_once(model, split, "m", reading=reading, **ALL_PAIRS))
        assert hidden.mean() < seen.mean() - 0.05, reading


def test_a_zeroed_target_is_not_read(model, split):
    changed = split.test.copy()
    changed["protein"].X = changed["protein"].X[::-1].copy()
    scored = []
    for test in (split.test, changed):
        part = scmoe.data.Split(split.train, split.val, test, "own", 0, 0, "cell_type",
                                split.groups, "local")  # fmt: skip
        config = model.config.train
        cells, _ = paper._cells(model, part, config, "cpu")
        pair = (1, 0)  # protein from rna
        scored.append(paper._decoded(model.experts.network_, cells, [pair], "target zeroed")[pair])
    n = split.test.n_obs
    assert np.array_equal(scored[0][-n:], scored[1][-n:])


def test_training_cells_flatter(model, split):
    with_them = paper.score_once(model, split, "m", **ALL_PAIRS)
    without = paper.score_once(model, split, "m", score_training_cells=False, **ALL_PAIRS)
    assert r2(with_them).mean() > r2(without).mean()


def test_the_test_chosen_epoch_is_never_worse_on_test_cells(model, split):
    ari = {
        chosen: paper.score_once(model, split, "m", test_chosen=chosen)
        .query("metric == 'ari'")["value"]
        .item()
        for chosen in (False, True)
    }
    assert ari[True] >= ari[False]
    assert ari[True] == pytest.approx(model.history_["watched"].max())


def test_published_scaling_standardises_every_feature_as_measured(split):
    scaled = paper.transform(split).transform(split.train)
    held = paper.transform(split, hold_out=True).transform(split.train)
    assert np.allclose(held["morph"].X.std(0), 1, atol=1e-3)
    assert not np.allclose(scaled["morph"].X.std(0), 1, atol=1e-3)  # validation cells count too
    assert set(paper.transform(split).kinds.values()) == {"continuous"}


def test_the_paper_preset_is_the_published_network():
    config = preset("dbitseq", "paper")
    network = Network(config.model, [10, 6], 3)
    hidden, last = (layer.weight.shape for layer in network.decoders[0])
    assert hidden[1] == last[2] == config.model.d
    assert network.act is F.relu
    assert network.layers[0].qkv.bias is None
    assert not network.position.any()
    sizes = config.model
    assert (sizes.d, sizes.n_patches, sizes.n_experts, sizes.top_k) == (128, 4, 32, 2)
    train = config.train
    assert (train.epochs, train.batch_size, train.lr, train.ddc_weight) == (500, 256, 1e-2, 0.01)


def test_a_validation_choice_keeps_both_epochs(split):
    config = leaks.Training(leaks.VALIDATION, "patchseq", 0, 5).config.replace(
        **(SMALL | {"epochs": 5})
    )
    model = scmoe.ScMoE("unsupervised", config).fit(split, "cpu", progress=False)
    assert model.experts.test_chosen_ is not None and model.history_["val_loss"].notna().all()
    alone = Experts("unsupervised", config).fit(split, progress=False)  # on any device
    assert np.array_equal(alone.history_["watched"], model.history_["watched"])


def records(value, training=leaks.PUBLISHED, scoring=leaks.AS_PUBLISHED, epoch=leaks.LAST, seed=0,
            metric="r2", target="rna", source="protein"):  # fmt: skip
    """One record of DBiT-seq."""
    return dict(dataset="dbitseq", data_source="local", protocol="paper", task="translation",
                method=f"{training} | {scoring} | {epoch}", fold=0, seed=seed, metric=metric,
                modalities="rna+protein+niche", target_modality=target, source_modality=source,
                value=value)  # fmt: skip


def test_half_of_the_pairs_are_those_above_the_diagonal():
    table = pd.DataFrame([records(0.2), records(0.8, target="protein", source="rna")])
    values = leaks.tidy(table).set_index("metric")["value"]
    assert values["r2"] == pytest.approx(0.5)
    assert values["r2_off_diag"] == pytest.approx(0.2)


def test_a_leak_is_what_a_score_loses_without_it_paired_by_seed():
    rows = [records(v, seed=s) for s, v in enumerate((0.5, 0.7))]
    rows += [records(v, scoring="target zeroed", seed=s) for s, v in enumerate((0.1, 0.2))]
    found = leaks.sizes(leaks.tidy(pd.DataFrame(rows)), "dbitseq").set_index("leak")
    row = found.loc["target read → zeroed"]
    assert row["change"] == pytest.approx(-0.45)
    assert row["sd of change"] == pytest.approx(np.std([-0.4, -0.5], ddof=1))
    assert row["seeds"] == 2


def test_agreement_is_judged_by_the_spread_over_seeds():
    def agrees(values):
        rows = [
            records(v, metric="ari", seed=s, target="", source="") for s, v in enumerate(values)
        ]
        table = leaks.beside_published_code(leaks.tidy(pd.DataFrame(rows)))
        return table.set_index("epoch").at["last", "agrees"]

    assert agrees([0.10, 0.14, 0.17])
    assert not agrees([0.50, 0.51, 0.52])


def test_the_floor_of_cross_entropy_on_softmax_outputs():
    assert leaks.floor(27) == pytest.approx(math.log(1 + 26 / math.e))


def test_the_table_of_record_can_be_read():
    table = leaks.tidy(collect.read_claim("leaks"))
    assert {"dbitseq", "patchseq"} <= set(table["dataset"])
    assert np.isfinite(table["value"]).all()
    seeds = table[(table["training"] == leaks.PUBLISHED) & (table["dataset"] == "dbitseq")]
    assert seeds["seed"].nunique() >= 2


def test_a_full_run_becomes_the_table_of_record(tmp_path):
    rows = pd.DataFrame([records(v, seed=s) for s, v in enumerate((0.25, 0.5))])
    its = {"sources": "abc", "versions": {"torch": "2"}, "device": "cpu", "threads": {"torch": 1},
           "seconds": {"total": 3.0}, "parameters": {"profile": "full"}}  # fmt: skip
    file = tmp_path / "leaks" / "metrics.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"records": rows.to_dict("records"), "provenance": its}))
    path = collect.collect_claim(file, tmp_path)
    assert path.name == "reference_leaks.csv" and "Seeds: dbitseq 2" in path.read_text()
    assert collect.read_claim("leaks", tmp_path)["value"].tolist() == [0.25, 0.5]
