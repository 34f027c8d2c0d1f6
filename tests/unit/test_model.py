"""What the user holds: no leak, no drift, no surprise."""

import dataclasses
import errno
import os
import signal

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scmoe
from scmoe.baselines import Linear
from scmoe.data import DataError, split_mudata
from scmoe.networks import _fingerprint
from scmoe.parts import Known
from tests.conftest import make_tiny

CONFIG = scmoe.Config().replace(
    members=3, d=16, n_patches=4, n_heads=2, n_experts=4, hidden=16, epochs=4, batch_size=16
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
    assert a.weights_.equals(b.weights_)
    for part, other in ((a.experts, b.experts), (a.linear, b.linear)):
        if part is not None:
            theirs = other.state()[1]
            for name, value in part.state()[1].items():
                assert np.array_equal(value, theirs[name]), name


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


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(model, split):
    again = fitted(split)
    assert_same_weights(model, again)
    first, second = (scmoe.evaluate(m, split.test, "cell_type") for m in (model, again))
    assert first.equals(second)
    assert not first["value"].isna().any()
    other = fitted(split, seed=1)
    assert not torch.equal(other.experts.network_.head.weight, model.experts.network_.head.weight)


def test_training_leaves_the_users_random_state_alone(split):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fitted(split)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("n_routers", [1, 2])
@pytest.mark.parametrize("task", ["supervised", "unsupervised"])
def test_save_and_load_give_identical_predictions(split, tmp_path, n_routers, task):
    model = fitted(split, task, config=CONFIG.replace(n_routers=n_routers))
    model.save(tmp_path / "model")
    loaded = scmoe.ScMoE.load(tmp_path / "model", device="cpu")
    assert loaded.weights_.equals(model.weights_)
    for name in ("experts", "linear", None):
        ours, theirs = ((getattr(m, name) if name else m) for m in (model, loaded))
        assert ours.predict(split.test).equals(theirs.predict(split.test))
        for source in ("protein", ["protein", "morph"]):
            before, after = (m.translate(split.test, "rna", source) for m in (ours, theirs))
            assert np.array_equal(before, after)
    latents = (m.get_latent_representation(split.test) for m in (model, loaded))
    assert np.array_equal(*latents)
    assert (loaded.get_routing(split.test).X == model.get_routing(split.test).X).all()
    assert np.allclose(loaded.history_, model.history_, equal_nan=True)


def test_saving_never_overwrites_unasked_and_leaves_nothing_behind(model, tmp_path):
    model.save(tmp_path / "model")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("made", ["a folder of somebody's data", "a file"])
def test_saving_overwrites_models_only(model, tmp_path, made):
    path = tmp_path / "precious"
    kept = path if made == "a file" else path / "year.csv"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("the only copy")
    with pytest.raises(FileExistsError, match="holds no model"):
        model.save(path, overwrite=True)
    assert kept.read_text() == "the only copy"
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_a_model_that_cannot_be_put_in_its_place_leaves_the_old_one(model, tmp_path, monkeypatch):
    path, replace = tmp_path / "model", os.replace
    model.save(path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def fail(source, target):
        if source.name == "new":
            raise OSError(errno.ENOSPC, "disk full")
        return replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save(path, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
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
    assert routing.shape == (split.test.n_obs, 3 * 3 * 4 * 4)
    per_token = routing.X.reshape(routing.n_obs, 3, 3, 4, 4)  # member, modality, patch, expert
    assert np.allclose(per_token.sum(-1), 1, atol=1e-5)
    assert ((per_token > 0).sum(-1) <= 2).all()
    assert list(routing.var["modality"].unique()) == split.modalities


def test_translation_writes_into_a_given_array(model, split):
    out = np.empty((split.test.n_obs, split.test["rna"].n_vars), np.float32)
    result = model.translate(split.test, "rna", "protein", out=out)
    assert result is out
    assert np.allclose(out, model.translate(split.test, "rna", "protein"))


def test_the_blend_is_between_its_parts(model, split):
    assert list(model.weights_["part"].unique()) == ["experts", "linear"]
    tasks = model.weights_.groupby(["task", "target", "source"])["weight"]
    assert np.allclose(tasks.sum(), 1) and model.weights_["weight"].between(0, 1).all()
    ours, linear, both = (
        m.translate(split.test, "rna", "protein", units="scaled")
        for m in (model.experts, model.linear, model)
    )
    w = model.weight("rna", "protein")
    assert np.allclose(both, w * ours + (1 - w) * linear, atol=1e-5)
    logs = [
        np.log(m.predict(split.test)[model.groups_].to_numpy())
        for m in (model.experts, model.linear, model)
    ]
    ours, linear, both = (v - v.mean(1, keepdims=True) for v in logs)
    w = model.weight()
    assert np.allclose(both, w * ours + (1 - w) * linear, atol=1e-4)


def test_the_linear_part_is_what_it_is_alone_in_one_thread_or_beside_the_experts(
    split, model, monkeypatch
):
    alone = Linear().fit(split, progress=False)
    monkeypatch.setattr("scmoe.model.THREADED_CELLS", 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        beside = fitted(split)
    finally:
        torch.set_num_threads(before)
    assert alone.rare_.any() and alone.predict(split.test).equals(model.linear.predict(split.test))
    assert_same_weights(model, beside)


def test_an_error_beside_the_experts_is_the_callers(split, monkeypatch):
    monkeypatch.setattr("scmoe.model.THREADED_CELLS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(Linear, "fit_known", lambda self, known: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitted(split)


def test_a_part_that_knows_nothing_gets_no_say(split):
    still = fitted(split, config=CONFIG.replace(epochs=1, lr=1e-9))  # experts that did not learn
    table = still.weights_.query("part == 'experts' and task == 'translation'")
    assert table["weight"].max() < 0.3  # twenty cells speak for a half
    both, linear = (scmoe.evaluate(m, split.test, "cell_type") for m in (still, still.linear))
    r2 = [t.query("metric == 'r2'")["value"].mean() for t in (both, linear)]
    assert r2[0] > r2[1] - 0.05


@pytest.mark.parametrize("part", ["experts", "linear"])
def test_what_is_said_out_of_fold_does_not_depend_on_the_cells_held_out(split, part):
    model = scmoe.ScMoE(
        config=CONFIG.replace(patience=None)
    )  # the last weights: no cell stops them
    known = model.experts._prepare(split)
    model.linear._share(model.experts)
    some = getattr(model, part)

    def said(labels, protein):
        cells = dataclasses.replace(
            known, labels=labels, scores=known.scores | {"protein": protein}
        )
        out = some._fit(cells, "cpu", False, None)
        return out.pairs["protein", "rna"]

    held = known.fold == 1
    labels, protein = known.labels.copy(), known.scores["protein"].copy()
    labels[held] = np.roll(labels[held], 1)
    protein[held] = 7.0
    before, after = said(known.labels, known.scores["protein"]), said(labels, protein)
    if part == "experts":  # each member's last weights come from the cells it has learned from
        assert np.array_equal(before[held], after[held])
    assert not np.array_equal(before[known.fold == 2], after[known.fold == 2])
    if part == "linear":  # one weight a regression is chosen on all folds: less is left than moved
        moved = np.abs(before - after)
        assert moved[held].mean() < moved[known.fold == 2].mean()


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
    assert epochs == [1, 2, 3, 4]
    assert_same_weights(whole, resumed)


def test_a_checkpoint_of_another_run_is_refused(split, tmp_path):
    fitted(split, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="belongs to another run"):
        fitted(split, config=CONFIG.replace(lr=1e-2), checkpoint=tmp_path)


@pytest.mark.parametrize("sparse", [True, False])
def test_sparse_cells_are_told_apart_by_where_their_values_are(sparse):
    values = np.array([[1.0, 0, 2, 0], [0, 3, 0, 4]])
    moved = values[:, [1, 0, 2, 3]]  # the same values in the same order of reading
    kind = sp.csr_matrix if sparse else np.asarray
    known = Known({}, np.ones((2, 1), bool), np.zeros(2), 2, np.zeros(2), np.zeros(2, bool))
    names = [["rna"], ["a", "b"], {"rna": ["w", "x", "y", "z"]}]

    def of(X, names=names, known=known):
        return _fingerprint(CONFIG, "supervised", [kind(X)], known, names)

    assert of(values) == of(values.copy())
    others = [
        of(moved),
        of(values.reshape(1, 8)),
        of(values.astype("f4")),
        of(values, [["rna"], ["b", "a"], names[2]]),
        of(values, [["protein"], *names[1:]]),
        of(values, known=dataclasses.replace(known, labels=np.arange(2.0))),
        of(values, known=dataclasses.replace(known, watched=[values])),
    ]
    assert len({of(values), *others}) == len(others) + 1


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
    assert model.experts.test_chosen_ is not None and "watched" in model.history_
    table = scmoe.paper.score(model, split)
    assert table["method"].nunique() == 2
    pairs = table[table["task"] == "translation"][["target_modality", "source_modality"]]
    assert len(pairs.drop_duplicates()) == 3
    r2 = table.query("metric == 'r2' and method == 'scMoE published, scored as published'")[
        "value"
    ].to_numpy()
    honest = {}
    for switch in ("target_visible", "r2_upper_pairs_only", "own_scaling", "score_training_cells"):
        model.config = model.experts.config = config.replace(**{switch: False})
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
    with pytest.raises(ValueError, match="must not be read"):
        model.translate(split.test, "rna", ["rna", "morph"])
    with pytest.raises(ValueError, match="supervised"):
        scmoe.ScMoE("semi")
    with pytest.raises(RuntimeError, match="not fitted"):
        scmoe.ScMoE().predict(split.test)


@pytest.mark.parametrize("device", ["cuda", "meta", "gpu", "cuda:x", None, 0])
def test_a_device_that_is_not_there_is_refused(split, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match=f"device={device!r} .*'cpu'"):
        scmoe.ScMoE(config=CONFIG).fit(split, device=device, progress=False)


@pytest.mark.parametrize("seed", [1.5, -1, 2**63, "a", True])
def test_a_seed_that_is_none_is_refused(seed):
    for make in (scmoe.ScMoE, scmoe.baselines.Ridge):
        with pytest.raises(DataError, match="seed=.*it takes a whole number"):
            make(seed=seed)


def test_a_seed_of_numpy_can_be_saved(split, tmp_path):
    fitted(split, config=CONFIG.replace(epochs=1), seed=np.int64(7)).save(tmp_path / "model")
    assert scmoe.ScMoE.load(tmp_path / "model", "cpu").seed == 7


def test_noise_for_a_modality_that_is_not_there_is_refused(split):
    with pytest.raises(DataError, match="input_noise='ran': it takes .*did you mean 'rna'"):
        fitted(split, config=CONFIG.replace(input_noise={"ran": 0.1}))
