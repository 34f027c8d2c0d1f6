"""Real processes, killed at random moments: what is resumed ends where it would have ended."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import scmoe
from scmoe import checkpoint
from scmoe.data import split_mudata
from tests.conftest import make_tiny

KILLS = int(os.environ.get("SCMOE_KILLS", 40))
pytestmark = pytest.mark.slow
CONFIG = scmoe.Config().replace(
    members=3, attention=True, d=16, n_patches=4, n_heads=2, n_experts=4, epochs=12, batch_size=8,
    attention_dropout=0.1,
)  # fmt: skip


def train(folder: Path, result: Path) -> None:
    """What a killed process was doing: a whole fit, saving at every step."""
    torch.set_num_threads(1)
    checkpoint.SAVE_EVERY, checkpoint.SHARE = 0.0, 1e9
    split = split_mudata(make_tiny(90), seed=0)
    model = scmoe.ScMoE(config=CONFIG).fit(split, "cpu", progress=False, checkpoint=folder)
    model.save(result)


def save_often(models: list, place: Path, ready) -> None:
    """The models by turns to one place, until killed."""
    while True:
        for model in models:
            model.save(place, overwrite=True)
            ready.set()


@pytest.fixture(scope="module")
def start():
    """Starts ``train`` in a process of its own, without importing everything again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scmoe", "tests.conftest"])

    def starter(folder, result):
        process = context.Process(target=train, args=(folder, result))
        process.start()
        return process

    return starter


@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, KILLS // 2), (signal.SIGTERM, 5)])
def test_a_run_stopped_at_random_moments_ends_with_the_same_weights(start, number, times, tmp_path):
    whole = start(tmp_path / "never stopped", tmp_path / "whole")
    began = time.monotonic()
    whole.join()
    assert whole.exitcode == 0
    took = time.monotonic() - began
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    codes = {-number, 1} if number == signal.SIGTERM else {-number}  # 1: stopped in order
    draw, stopped, resumed, finished = random.Random(0), 0, 0, 0
    while stopped < times or finished == 0:
        folder, result = tmp_path / f"run {finished}", tmp_path / f"model {finished}"
        resumed += (folder / "checkpoint.safetensors").exists()
        process, told = start(folder, result), False
        if stopped < times:
            process.join(draw.uniform(0, took))
            if told := process.is_alive():
                os.kill(process.pid, number)
        process.join()
        if process.exitcode == 0:
            found = load_file(result / "model.safetensors")
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], value) for name, value in expected.items())
            finished += 1
        else:
            assert told and process.exitcode in codes
            stopped += 1
    assert resumed >= times / 3  # not all were stopped before they had saved at all


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes forked from this one")
def test_killed_while_it_saves_over_a_model_one_of_both_is_there(tmp_path):
    fork, split = multiprocessing.get_context("fork"), split_mudata(make_tiny(60), seed=0)
    models, digests, place = [], set(), tmp_path / "place"
    for seed in (0, 1):
        models.append(scmoe.ScMoE(config=CONFIG.replace(epochs=1), seed=seed))
        models[-1].fit(split, "cpu", progress=False).save(place, overwrite=True)
        digests.add(json.loads((place / "model.json").read_text())["tensors"])
    draw, cut, found = random.Random(0), 0, set()
    for _ in range(KILLS):
        ready = fork.Event()
        process = fork.Process(target=save_often, args=(models, place, ready))
        process.start()
        assert ready.wait(60)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.join()
        cut += any(path.name.endswith(".drafts") for path in tmp_path.iterdir())
        scmoe.ScMoE.load(place, "cpu")  # all of it is compared with its digest
        found.add(json.loads((place / "model.json").read_text())["tensors"])
    assert found == digests and cut  # or no kill fell into a save
    models[0].save(place, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
