"""The step: cheap dropout, what a plain implementation computes, precision, interruption, words."""

import errno
import io
import math
import signal
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import scmoe
from benchmarks.naive import Naive
from scmoe import progress
from scmoe.checkpoint import Checkpoint
from scmoe.config import preset
from scmoe.data import split_mudata
from scmoe.fit import fit
from scmoe.nn import dropout
from scmoe.nn.cells import Cells
from scmoe.nn.network import Network
from scmoe.step import Step
from tests.conftest import make_tiny

SIZES = [24, 8, 10]
NAMES = ["rna", "protein", "morph"]
CONFIG = scmoe.Config().replace(
    members=2, d=16, n_patches=4, n_heads=2, n_experts=4, epochs=3, batch_size=16, attention=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def split():
    return split_mudata(make_tiny(90))


def cells(n=48, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    x = [(rng.normal(size=(n, f)) + labels[:, None]).astype(np.float32) for f in SIZES]
    return Cells(x, np.ones((n, 3), bool), labels)


def trained(config=CONFIG, data=None, **kwargs):
    torch.manual_seed(0)
    network = Network(config.model, SIZES, 3)
    data = data or cells()
    fold = torch.arange(len(data)) % 4  # two of four parts are held out, one by each member
    settings = dict(supervised=True, modalities=NAMES, progress=False) | kwargs
    history, _ = fit(network, data, fold, config.train, **settings)
    return network, history


def assert_same(a: Network, b: Network):
    theirs = b.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


# --- dropout ---


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5])
def test_each_position_is_dropped_with_its_probability_and_independently(p):
    torch.manual_seed(0)
    n, draws = 200, 20_000
    gone = torch.zeros(draws, n)
    for row in gone:
        row[dropout.dropped(n, p)] = 1
    error = math.sqrt(p * (1 - p) / draws)
    assert (gone.mean(0) - p).abs().max() < 5 * error  # 200 positions
    together = (gone.T @ gone / draws).fill_diagonal_(p * p)
    assert (together - p * p).abs().max() < 6 * math.sqrt(p * p * (1 - p * p) / draws)


def test_dropout_keeps_the_mean_and_its_gradient_has_the_same_zeros():
    torch.manual_seed(0)
    x = torch.ones(400, 100, requires_grad=True)
    out = dropout.dropout(x, 0.1)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    assert out.mean().item() == pytest.approx(1, abs=5 * math.sqrt(0.1 / 0.9 / out.numel()))
    assert dropout.dropout(x, 0.1, training=False) is x


@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_dropout_is_softmax_attention_with_those_weights_dropped(
    masked, monkeypatch
):
    torch.manual_seed(0)
    monkeypatch.setattr(dropout, "BLOCK_BYTES", 2 * 2 * 25 * 8)  # two cells a block, then one
    gone = []
    draw = dropout.dropped

    def remembered(n, p):
        gone.append(draw(n, p))
        return gone[-1]

    monkeypatch.setattr(dropout, "dropped", remembered)
    q, k, v = (torch.randn(3, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.rand(3, 1, 5, 5) < 0.6
    mask |= torch.eye(5, dtype=torch.bool)
    out = dropout.attention(q, k, v, mask if masked else None, 0.3)
    keep = torch.ones(150, dtype=torch.float64)
    keep[torch.cat([gone[0], gone[1] + 100])] = 0
    scores = q @ k.transpose(-1, -2) / 2
    scores = scores.masked_fill(~mask, -math.inf) if masked else scores
    expected = (scores.softmax(-1) * keep.view(3, 2, 5, 5) / 0.7) @ v
    assert torch.allclose(out, expected, atol=1e-12)
    direction = torch.randn_like(out)
    mine = torch.autograd.grad(out, (q, k, v), direction)
    theirs = torch.autograd.grad(expected, (q, k, v), direction)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


# --- the naive row is the same computation ---


def copy_weights(network: Network, naive) -> None:
    layer = network.layers[0]
    pairs = [
        (naive.norm1, layer.norm1), (naive.norm2, layer.norm2), (naive.head, network.head),
        (naive.attention.qkv, layer.qkv), (naive.attention.proj, layer.out),
        (naive.hidden, network.hidden), (naive.embed, network.embed),
        (naive.decoders, network.decoders),
    ]  # fmt: skip
    for theirs, ours in pairs:
        own = [value[0] for value in ours.state_dict().values()]  # of the only member
        theirs.load_state_dict(dict(zip(theirs.state_dict(), own, strict=True)))
    with torch.no_grad():
        for i, position in enumerate(naive.position):
            position.copy_(network.position[0, i])
        for i, gate in enumerate(naive.moe.gates):
            gate.w_gate.copy_(layer.router.weight[0, i])
        e = layer.experts
        for i, expert in enumerate(naive.moe.experts):
            values = (e.w1[i], e.b1[i], e.w2[i], e.b2[i])
            for theirs, ours in zip(expert.parameters(), values, strict=True):
                theirs.copy_(ours)


@pytest.mark.parametrize("dataset", ["dyngen", "dbitseq", "patchseq", "atacseq"])
@pytest.mark.parametrize("supervised", [True, False])
def test_the_naive_implementation_has_the_same_losses_and_gradients(dataset, supervised):
    config = preset(dataset, "paper").replace(d=32, n_patches=4, batch_size=48)
    data = cells()
    matrices, labels = [m.numpy() for m in data.matrices], data.labels.numpy()
    naive = Naive(config, (matrices, labels), (matrices, labels), 3, supervised)
    torch.manual_seed(0)
    network = Network(config.model, SIZES, 3).eval()
    copy_weights(network, naive.network)
    naive.network.eval()
    step = Step(network, config.train, data, torch.full((48,), -1), supervised)
    loss, parts = step(torch.arange(48)[None])
    every = data.batch(torch.arange(48)[None])
    loss = loss + config.train.gate_weight * network.encode(every.x, every.present).balance
    expected, items, *_ = naive.losses(data.matrices, data.labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for i in range(3):
        terms = [items[f"decoder {i} {j}"] for j in range(3)]
        assert parts[f"decoder {i}"].item() == pytest.approx(sum(terms), rel=1e-5)
    loss.backward()
    expected.backward()
    layer, plain = network.layers[0], naive.network
    for ours, theirs in [
        (network.embed[0].weight.grad[0], plain.embed[0].weight.grad),
        (layer.qkv.weight.grad[0], plain.attention.qkv.weight.grad),
        (layer.experts.w1.grad[2], plain.moe.experts[2][0].weight.grad),
        (layer.router.weight.grad[0, 0], plain.moe.gates[0].w_gate.grad),
    ]:
        if theirs is None:  # an expert without tokens
            assert ours.abs().max() == 0
        else:
            assert torch.allclose(ours, theirs, atol=1e-5 * theirs.abs().max().item())


# --- precision ---


def test_bf16_trains_close_to_float32_and_leaves_parameters_in_float32():
    exact, history = trained(CONFIG.replace(epochs=8))
    rounded, rough = trained(CONFIG.replace(epochs=8, precision="bf16"))
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}
    assert not torch.equal(exact.head.weight, rounded.head.weight)
    assert rough["loss"].iloc[-1] == pytest.approx(history["loss"].iloc[-1], rel=0.05)


def test_bf16_on_a_processor_without_it_comes_with_a_warning(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    with pytest.warns(UserWarning, match="no instructions for bf16.*precision='float32'"):
        trained(CONFIG.replace(epochs=1, precision="bf16"))


# --- interruption ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [1, 2, 3, 5])  # first step, within an epoch, its last step
def test_a_run_stopped_at_any_step_continues_to_the_same_weights(at, number, tmp_path, monkeypatch):
    whole, history = trained(checkpoint=None)
    steps = []

    def signal_at(report, epoch):
        steps.append(epoch)
        if len(steps) == at:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(progress.Progress, "step", signal_at)
        with pytest.raises(KeyboardInterrupt, match=f"signal {int(number)}"):
            trained(checkpoint=tmp_path)
    resumed, again = trained(checkpoint=tmp_path)
    assert_same(whole, resumed)
    assert history.equals(again)


def test_signals_are_the_users_again_after_the_run():
    before = signal.getsignal(signal.SIGTERM)
    trained()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    keep = Checkpoint(tmp_path, "run")
    keep.save({"network": {"a": torch.ones(3)}}, {"history": []})

    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("scmoe.checkpoint.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        keep.save({"network": {"a": torch.zeros(3)}}, {"history": [1]})
    groups, note = Checkpoint(tmp_path, "run").load()
    assert torch.equal(groups["network"]["a"], torch.ones(3))
    assert note == {"history": []}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]


FAULTS = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "header": lambda path: path.write_bytes(b"\x10" + path.read_bytes()[1:]),
    "one bit": lambda path: path.write_bytes(
        path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])
    ),
    "note": lambda path: path.write_bytes(path.read_bytes().replace(b"epochs", b"epochz", 1)),
    "no digest": lambda path: save_file(load_file(path), path, {"note": '{"fingerprint": ""}'}),
    "no note": lambda path: save_file(load_file(path), path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_checkpoint_is_put_aside_and_the_weights_are_those_of_a_whole_run(
    fault, tmp_path, monkeypatch
):
    monkeypatch.setattr("scmoe.checkpoint.SAVE_EVERY", 0.0)
    monkeypatch.setattr("scmoe.checkpoint.SHARE", 1e9)
    config = CONFIG.replace(epochs=2)
    whole, history = trained(config, checkpoint=tmp_path)
    FAULTS[fault](tmp_path / "checkpoint.safetensors")
    steps = []
    monkeypatch.setattr(progress.Progress, "step", lambda report, epoch: steps.append(epoch))
    with pytest.warns(UserWarning, match=r"checkpoint\.safetensors is damaged .*\.damaged now"):
        again, repeated = trained(config, checkpoint=tmp_path)
    assert_same(whole, again)
    assert history.equals(repeated)
    assert 1 in steps  # from the start
    assert (tmp_path / "checkpoint.safetensors.damaged").exists()
    assert_same(whole, trained(config, checkpoint=tmp_path)[0])  # and nothing is in the way


def test_a_checkpoint_that_may_not_be_read_is_no_damaged_one(tmp_path, monkeypatch):
    keep = Checkpoint(tmp_path, "run")
    keep.save({"network": {"a": torch.ones(3)}}, {})

    def refuse(self, mode):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.open", refuse)  # root may read anything
    with pytest.raises(PermissionError, match=r"Permission denied.*checkpoint\.safetensors"):
        keep.load()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_a_loss_that_is_not_finite_names_the_modality_and_the_cause(tmp_path):
    trained(CONFIG.replace(epochs=1), checkpoint=tmp_path)
    good = load_file(tmp_path / "checkpoint.safetensors")
    data = cells()
    data.matrices[2][5, 3] = 1e30  # its square is not finite
    with pytest.raises(FloatingPointError, match=r"epoch 1, step \d.*decoder morph.*'morph' holds"):
        trained(data=data, checkpoint=tmp_path / "other")
    wild = CONFIG.replace(epochs=40, lr=1e18)
    with pytest.raises(FloatingPointError, match=r"step \d.*learning rate.*lr=1e\+17"):
        trained(wild, checkpoint=tmp_path / "wild")
    kept = load_file(tmp_path / "checkpoint.safetensors")
    assert all(torch.equal(good[name], kept[name]) for name in good)


def test_absent_cells_values_are_never_read(split):
    data, present = cells(), np.ones((48, 3), bool)
    present[:7, 1] = False
    x = [m.numpy().copy() for m in data.matrices]
    x[1][:7] = np.nan
    _, history = trained(data=Cells(x, present, data.labels))
    assert np.isfinite(history).all(axis=None)


# --- progress ---


def test_a_log_gets_one_clean_line_an_epoch(monkeypatch):
    written = []
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "write", written.append, raising=False)
    trained(progress=True)
    assert len(written) == 3
    for number, line in enumerate(written, start=1):
        assert line.startswith(f"epoch {number}/3: loss ")
        assert "cells/s, at most" in line and line.endswith(" s left\n") and line.count("\n") == 1


def test_a_terminal_gets_a_bar(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    trained(progress=True)
    last = screen.getvalue().split("\r")[-1]
    assert "epoch 3/3" in last and "cells/s" in last and "loss" in last


def test_silence_when_no_progress_is_wanted(capsys):
    trained(progress=False)
    assert capsys.readouterr() == ("", "")
