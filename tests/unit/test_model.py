"""What the user holds: no leak, no drift, no surprise."""

import copy
import dataclasses
import signal

import numpy as np
import pytest
import torch

import scmoe
from scmoe.data import DataError, split_mudata
from scmoe.fit import calibrate
from scmoe.nn import linear
from scmoe.nn.cells import Cells
from tests.conftest import make_tiny

CONFIG = scmoe.Config().replace(
    d=16, n_patches=4, n_heads=2, n_experts=4, epochs=4, batch_size=16, lr=3e-3
)


@pytest.fixture(scope="module")
def split():
    return split_mudata(make_tiny(90))


def fitted(split, task="supervised", config=CONFIG, seed=0, **kwargs):
    return scmoe.ScMoE(task, config, seed).fit(split, device="cpu", progress=False, **kwargs)


@pytest.fixture(scope="module")
def model(split):
    return fitted(split)


def assert_same_weights(a, b):
    theirs = b.network_.state_dict()
    for name, value in a.network_.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("target", ["rna", "protein", "morph"])
@pytest.mark.parametrize("damage", ["noise", "zeros", "nan", "gone"])
def test_translation_never_reads_the_target(model, split, target, damage):
    sources = [m for m in split.modalities if m != target]
    other = split.test.copy()
    shape = other[target].shape
    if damage == "gone":
        del other.mod[target]
    else:
        value = {"zeros": 0.0, "nan": np.nan}.get(damage)
        noise = np.random.default_rng(0).normal(0, 9, shape)
        other[target].X = np.float32(noise if value is None else np.full(shape, value))
    for source in [*sources, sources]:
        for units in ("scaled", "measured"):
            expected = model.translate(split.test, target, source, units=units)
            assert np.isfinite(expected).all()
            assert np.array_equal(model.translate(other, target, source, units=units), expected)


def test_test_cells_do_not_reach_anything_fitted(model, split):
    other = dataclasses.replace(split, test=make_tiny(40, seed=9))
    again = fitted(other)
    assert_same_weights(model, again)
    for a, b in zip(
        model.transform_.state()[1].values(), again.transform_.state()[1].values(), strict=True
    ):
        assert np.array_equal(a, b)


def test_unsupervised_training_sees_no_label(split):
    shuffled = dataclasses.replace(split, train=split.train.copy(), val=split.val.copy())
    for part in (shuffled.train, shuffled.val):
        labels = part.obs["cell_type"].to_numpy().copy()
        np.random.default_rng(0).shuffle(labels)
        part.obs["cell_type"] = labels
    assert_same_weights(fitted(split, "unsupervised"), fitted(shuffled, "unsupervised"))


def test_clusters_are_looked_for_once(split, monkeypatch):
    looked, find = [], linear.find_clusters
    monkeypatch.setattr(linear, "find_clusters", lambda *a: looked.append(a) or find(*a))
    refit = fitted(split, "unsupervised")
    assert len(looked) == 1 and refit.network_.linear.has_groups
    kept = fitted(split, "unsupervised", CONFIG.replace(refit=False))
    assert len(looked) == 2 and kept.network_.linear.has_groups


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(model, split):
    again = fitted(split)
    assert_same_weights(model, again)
    first, second = (scmoe.evaluate(m, split.test, "cell_type") for m in (model, again))
    assert first.equals(second)
    assert not first["value"].isna().any()
    other = fitted(split, seed=1)
    assert not torch.equal(other.network_.head.weight, model.network_.head.weight)


def test_training_leaves_the_users_random_state_alone(split):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fitted(split)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("n_routers", [1, 2])
@pytest.mark.parametrize("linear_path", [True, False])
def test_save_and_load_give_identical_predictions(split, tmp_path, n_routers, linear_path):
    model = fitted(split, config=CONFIG.replace(n_routers=n_routers, linear_path=linear_path))
    model.save(tmp_path / "model")
    loaded = scmoe.ScMoE.load(tmp_path / "model", device="cpu")
    assert model.predict(split.test).equals(loaded.predict(split.test))
    before, after = (m.translate(split.test, "rna", "protein") for m in (model, loaded))
    assert np.array_equal(before, after)
    assert (loaded.get_routing(split.test).X == model.get_routing(split.test).X).all()
    assert np.allclose(loaded.history_, model.history_, equal_nan=True)


def test_saving_never_overwrites_unasked_and_leaves_nothing_behind(model, tmp_path):
    model.save(tmp_path / "model")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_any_subset_of_modalities_predicts(model, split):
    for names in (["rna"], ["protein", "morph"], ["morph"]):
        part = split.test.copy()
        for gone in set(split.modalities) - set(names):
            del part.mod[gone]
        table = model.predict(part)
        assert list(table.index) == list(split.test.obs_names)
        assert np.allclose(table[model.groups_].sum(1), 1)


def test_cells_without_the_source_are_nan_and_the_others_are_not_touched(model, split):
    part = split.test.copy()
    part.mod["protein"] = part["protein"][3:].copy()
    part.update()
    values = model.translate(part, "rna", "protein", units="scaled")
    by_cell = dict(zip(part.obs_names, values, strict=True))
    full = model.translate(split.test, "rna", "protein", units="scaled")
    for number, cell in enumerate(split.test.obs_names):
        if number < 3:
            assert np.isnan(by_cell[cell]).all()
        else:
            assert np.allclose(by_cell[cell], full[number], atol=1e-5)


def test_routing_says_which_experts_each_token_went_to(model, split):
    routing = model.get_routing(split.test)
    assert routing.shape == (split.test.n_obs, 3 * 4 * 4)
    per_token = routing.X.reshape(routing.n_obs, 3, 4, 4)
    assert np.allclose(per_token.sum(-1), 1, atol=1e-5)
    assert ((per_token > 0).sum(-1) <= 2).all()
    assert list(routing.var["modality"].unique()) == split.modalities


def test_translation_writes_into_a_given_array(model, split):
    out = np.empty((split.test.n_obs, split.test["rna"].n_vars), np.float32)
    result = model.translate(split.test, "rna", "protein", out=out)
    assert result is out
    assert np.allclose(out, model.translate(split.test, "rna", "protein"))


def test_without_experts_the_linear_path_is_left(model, split):
    linear = model.without_experts()
    assert linear.method == "scMoE linear path"
    assert (linear.network_.group_scale == 0).all()
    cells = model.tensors(split.test)
    batch = cells.batch(torch.arange(len(cells)))
    path = model.network_.linear
    expected = (path.group_logits(batch.x, batch.present) + path.rare).softmax(1)
    assert np.allclose(linear.predict(split.test)[model.groups_], expected, atol=1e-6)


def test_the_network_adds_only_what_validation_cells_confirm(model, split):
    batch = model.tensors(split.val)
    labels = model._numbers(split.val)
    x, present = model._matrices(model.transform_.transform(split.val))
    cells = Cells(x, present, labels, batch.device)
    network, linear = copy.deepcopy(model.network_), model.network_.linear
    # an opinion that only repeats the linear path changes confidence, which needs no network
    network.group_logits = lambda encoded: linear.group_logits(
        [torch.as_tensor(v.toarray() if hasattr(v, "toarray") else v) for v in x],
        torch.as_tensor(present),
    )
    calibrate(network, cells, True)
    assert network.group_scale == 0
    network.linear.fusion.zero_()  # a linear path that knows nothing
    truth = 3 * torch.nn.functional.one_hot(torch.as_tensor(labels), 3).float()
    network.group_logits = lambda encoded: truth
    calibrate(network, cells, True)
    assert network.group_scale > 0
    calibrate(network, cells, False)
    assert network.group_scale == 0


def test_a_run_cut_off_and_resumed_ends_with_the_same_weights(split, tmp_path, monkeypatch):
    monkeypatch.setattr("scmoe.checkpoint.SAVE_EVERY", 0.0)
    whole = fitted(split)
    from scmoe.progress import Progress

    original, epochs = Progress.epoch, []

    def stop_after_two(self, row):
        epochs.append(row["epoch"])
        original(self, row)
        if len(epochs) == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Progress, "epoch", stop_after_two)
    with pytest.raises(KeyboardInterrupt, match="epoch 3, after step 1"):
        fitted(split, checkpoint=tmp_path)
    resumed = fitted(split, checkpoint=tmp_path)
    assert epochs[:4] == [1, 2, 3, 4]  # then the refit
    assert_same_weights(whole, resumed)


def test_a_checkpoint_of_another_run_is_refused(split, tmp_path):
    fitted(split, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="belongs to another run"):
        fitted(split, config=CONFIG.replace(lr=1e-2), checkpoint=tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_itself(split):
    with pytest.raises(FloatingPointError, match="epoch 1, step 1.*lr"):
        fitted(split, config=CONFIG.replace(decoder_weight=float("inf")))


@pytest.mark.parametrize("protocol_dataset", ["dyngen", "atacseq"])
def test_the_paper_preset_trains(split, protocol_dataset):
    config = scmoe.preset(protocol_dataset, "paper").replace(epochs=1, d=16, n_heads=2)
    for task in ("supervised", "unsupervised"):
        model = fitted(split, task, config)
        assert model.info_["protocol"] == "paper"
        assert not scmoe.evaluate(model, split.test, "cell_type")["value"].isna().any()


def test_each_leak_of_the_published_scoring_is_a_switch(split):
    config = scmoe.preset("patchseq", "paper").replace(epochs=3, d=16, n_heads=2, n_patches=4)
    model = fitted(split, "unsupervised", config)
    assert model.test_chosen_ is not None and "watched" in model.history_
    table = scmoe.paper.score(model, split)
    assert table["method"].nunique() == 2
    pairs = table[table["task"] == "translation"][["target_modality", "source_modality"]]
    assert len(pairs.drop_duplicates()) == 3
    r2 = table.query("metric == 'r2' and method == 'scMoE, scored as published'")[
        "value"
    ].to_numpy()
    honest = {}
    for switch in ("target_visible", "r2_upper_pairs_only", "own_scaling", "score_training_cells"):
        model.config = config.replace(**{switch: False})
        values = scmoe.paper.score(model, split).query("metric == 'r2'")["value"].to_numpy()
        honest[switch] = values
        assert len(values) != 2 * len(r2) or not np.array_equal(values[: len(r2)], r2), switch
    assert len(honest["r2_upper_pairs_only"]) == 2 * 6


def test_published_scoring_without_its_leak_is_the_honest_translation(split):
    config = scmoe.preset("patchseq", "paper").replace(
        epochs=2, d=16, n_heads=2, n_patches=4, target_visible=False, own_scaling=False,
        score_training_cells=False, r2_upper_pairs_only=False, test_chooses_epoch=False,
    )  # fmt: skip
    model = fitted(split, config=config)
    keys = ["metric", "target_modality", "source_modality"]
    theirs = scmoe.paper.score(model, split).set_index(keys)["value"]
    ours = scmoe.evaluate(model, split.test, "cell_type").set_index(keys)["value"]
    assert np.allclose(ours.drop("ece", level=0)[theirs.index], theirs, atol=1e-5)


def test_unknown_modalities_and_targets_are_named(model, split):
    with pytest.raises(DataError, match="'ephys' was not seen"):
        model.translate(split.test, "ephys", "rna")
    with pytest.raises(ValueError, match="must not read its target"):
        model.translate(split.test, "rna", ["rna", "morph"])
    with pytest.raises(ValueError, match="supervised"):
        scmoe.ScMoE("semi")
    with pytest.raises(RuntimeError, match="not fitted"):
        scmoe.ScMoE().predict(split.test)


def test_a_cuda_device_that_is_not_there_is_refused(split):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match="no CUDA device"):
        scmoe.ScMoE(config=CONFIG).fit(split, device="cuda", progress=False)
