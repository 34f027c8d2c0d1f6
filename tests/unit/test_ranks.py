"""Two processes train one model: the same weights, one's quality, and a killed one is no loss."""

import multiprocessing
import os
import signal
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import scmoe
from scmoe import checkpoint, progress
from scmoe.data import split_mudata
from scmoe.ranks import average, share
from tests.conftest import make_tiny

CONFIG = scmoe.Config().replace(
    members=2, d=16, n_heads=2, n_experts=4, hidden=16, epochs=24, batch_size=16, lr=0.01
)


def train(n, number, folder, stop=None):
    """One of ``n`` processes; ``stop`` is (which of them, before which step's end, by what)."""
    torch.set_num_threads(1)
    checkpoint.SAVE_EVERY, checkpoint.SHARE = 0.0, 1e9
    sys.stderr = (folder / f"said by {number}").open("w")
    if n > 1:  # a file, where torchrun takes a port
        place = f"file://{folder}/group"
        dist.init_process_group("gloo", init_method=place, rank=number, world_size=n)
    take, steps = progress.Progress.step, []

    def step(report, epoch):
        take(report, epoch)
        steps.append(epoch)
        if stop and stop[:2] == (number, len(steps)):
            os.kill(os.getpid(), stop[2])

    progress.Progress.step = step
    split = split_mudata(make_tiny(200), seed=0)
    model = scmoe.ScMoE(config=CONFIG).fit(split, "cpu", checkpoint=folder / f"state of {number}")
    model.save(folder / f"model {number}", overwrite=True)


@pytest.fixture(scope="module")
def start():
    """Runs ``train`` in so many processes, and gives their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scmoe", "tests.conftest"])

    def starter(n, folder, stop=None):
        folder.mkdir(exist_ok=True)
        (folder / "group").unlink(missing_ok=True)
        crew = [context.Process(target=train, args=(n, i, folder, stop)) for i in range(n)]
        for process in crew:
            process.start()
        for process in crew:
            process.join()
        return [process.exitcode for process in crew]

    return starter


@pytest.fixture(scope="module")
def both(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    assert start(2, folder) == [0, 0]
    return folder


def weights(folder, number=0):
    return load_file(folder / f"model {number}" / "model.safetensors")


@pytest.mark.slow
def test_both_end_with_the_same_weights_and_one_alone_saves_and_speaks(both):
    first, second = weights(both, 0), weights(both, 1)
    assert all(torch.equal(first[name], value) for name, value in second.items())
    assert (both / "said by 0").read_text().startswith("epoch 1/24: loss ")
    assert (both / "said by 1").read_text() == ""
    assert [path.name for path in both.glob("state*")] == ["state of 0"]


@pytest.mark.slow
def test_two_learn_what_one_learns(start, both, tmp_path):
    assert start(1, tmp_path / "alone") == [0]
    one, two = (
        scmoe.ScMoE.load(folder / "model 0", "cpu") for folder in (tmp_path / "alone", both)
    )
    for pair, maps in one.linear.maps_.items():  # its parts are worked out by turns: the same bits
        assert all(map(np.array_equal, maps, two.linear.maps_[pair]))
    lowest = [model.experts.history_["val_loss"].min() for model in (one, two)]
    assert lowest[1] == pytest.approx(lowest[0], rel=0.1)
    test = split_mudata(make_tiny(200), seed=0).test
    right = [(m.experts.predict(test)["group"] == test.obs["cell_type"]).sum() for m in (one, two)]
    assert abs(right[1] - right[0]) <= np.sqrt(test.n_obs)  # two standard errors at most


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_process_stops_both_and_the_same_call_continues_to_the_same_weights(
    start, both, tmp_path, number
):
    codes = start(2, tmp_path, (1, 31, number))
    assert codes == [1, -number if number == signal.SIGKILL else 1]
    assert start(2, tmp_path) == [0, 0]
    assert "epoch 1/" not in (tmp_path / "said by 0").read_text()  # it went on where it was
    again, whole = weights(tmp_path), weights(both)
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_alone_everything_is_done_here_and_nothing_is_changed():
    assert share(str, range(3)) == ["0", "1", "2"]
    told = torch.ones(2)
    assert average([told], told=True) and not average([told])
    assert torch.equal(told, torch.ones(2))
