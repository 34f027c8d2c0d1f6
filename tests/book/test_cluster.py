"""The matrix of runs where things die: on one machine, and on a SLURM of one node, on loopback.

What *Rerun* prints under Cluster and GPU is run as it stands there.
"""

import getpass
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import scmoe
from benchmarks.record.collect import collect, read_table
from tests.conftest import make_tiny

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "book" / "running.md").read_text()
KILLS = 5
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
TINY = {"dataset": "dyngen", "modalities": ["mrna"], "cells": 60, "genes": 40, "fold": [0, 1]}
PROFILE = {
    "threads": 1,
    "gpu": 0,
    "parameters": {"device": "cpu", "allow_standin": True},
    "records": {"sets": {"tiny": TINY}, "methods": {"simple": {"seed": [0, 1]}}},
}
SLURM = """
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=64000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE
"""
pytestmark = pytest.mark.slow


def blocks(section: str) -> list[tuple[str, str]]:
    """Language and text of each block that the page prints in a section."""
    text = re.search(rf"^## {section}\n(.*?)^## ", PAGE, re.M | re.S)[1]
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)


(_, CLUSTER), *MORE_CLUSTER = blocks("Cluster")
INSTALL, ON_SLURM = CLUSTER.splitlines()
(_, ON_GPUS), (_, SCRIPT), (_, TORCHRUN), *MORE_GPU = blocks("GPU")
FULL = re.search(r"^full:.*\n\t\$\(RUN\) (snakemake .*)$", (ROOT / "Makefile").read_text(), re.M)[1]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    """Makes folders like a clone of ours, whose full profile takes seconds."""

    def make() -> Path:
        folder = tmp_path_factory.mktemp("clone")
        shutil.copy(ROOT / "Snakefile", folder)
        shutil.copytree(ROOT / "profiles", folder / "profiles")
        for name in ("scmoe", "benchmarks", "notebooks"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "runs.yml").write_text(yaml.safe_dump({"profiles": {"full": PROFILE}}))
        return folder

    return make


def start(command: str, folder: Path, **more) -> subprocess.Popen:
    """A command in a process group of its own, what it says in ``folder/said.log``."""
    bin = Path(sys.executable).parent
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"PATH": f"{bin}:{os.environ['PATH']}", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with (folder / "said.log").open("a") as log:
        return subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=folder, env=os.environ | own | more,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def said(folder: Path) -> str:
    logs = [folder / "said.log", *folder.glob("book/runs/logs/**/*.log")]
    return "\n".join(log.read_text() for log in logs if log.exists())


def run(command: str, folder: Path, **more) -> None:
    process = start(command, folder, **more)
    assert process.wait(600) == 0, said(folder)[-5000:]


def table(folder: Path) -> list[str]:
    """The table of record that a clone's runs make."""
    target = folder / "table.csv"
    collect((folder / "book" / "runs" / "full").rglob("metrics.json"), target)
    return sorted(read_table(target)[0].astype(str).agg(",".join, axis=1))


def scored(folder: Path) -> dict[str, int]:
    """How often each fold was scored to its end."""
    found = re.findall(r"^(\S+metrics.json): \d+ records", said(folder), re.M)
    return {name: found.count(name) for name in found}


@pytest.fixture(scope="module")
def whole(clones):
    """A clone whose full profile was never interrupted, and the seconds that it took."""
    folder, began = clones(), time.monotonic()
    run(FULL.replace("$(CORES)", "2"), folder)
    assert list(scored(folder).values()) == [1] * 4
    return folder, time.monotonic() - began


def test_killed_five_times_make_full_ends_with_the_same_table_and_scores_nothing_twice(
    whole, clones
):
    (expected, took), folder, draw = whole, clones(), random.Random(0)
    for number in range(KILLS):
        process = start(FULL.replace("$(CORES)", "2"), folder)
        with pytest.raises(subprocess.TimeoutExpired):  # all five together: not the whole of it
            process.wait(draw.uniform(0.05, 0.3) * took)
        # by turns with all that it started, and alone, so that its runs go on without it
        (os.kill if number % 2 else os.killpg)(process.pid, signal.SIGKILL)
        process.wait()
    run(FULL.replace("$(CORES)", "2"), folder)
    assert table(folder) == table(expected)
    assert max(scored(folder).values()) == 1


def until(condition, seconds=300):
    """Wait for something, and give it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.1)
    return found


class Cluster:
    """A SLURM of one node, as processes of ours."""

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, {}
        (folder / "key").write_bytes(random.Random(0).randbytes(1024))
        (folder / "key").chmod(0o400)
        for name in ("state", "spool", "bin"):
            (folder / name).mkdir()
        host, ports = socket.gethostname().split(".")[0], (free_port(), free_port())
        settings = SLURM.format(host=host, ports=ports, folder=folder, user=getpass.getuser())
        (folder / "slurm.conf").write_text(settings)
        # the executor takes SLURM's variables away before it calls srun
        srun = f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n'
        (folder / "bin" / "srun").write_text(srun)
        (folder / "bin" / "srun").chmod(0o755)

    def start(self, name: str, *options: str) -> None:
        log = (self.folder / f"{name}.log").open("a")
        command = [shutil.which(name), *options]
        self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def start_all(self) -> None:
        files = {"key-file": "key", "socket": "munge", "pid-file": "munge.pid",
                 "log-file": "munge.log", "seed-file": "seed"}  # fmt: skip
        self.start("munged", "-F", "-f", *(f"--{k}={self.folder / v}" for k, v in files.items()))
        until((self.folder / "munge").exists, 10)
        self.start("slurmctld", "-D")
        self.start("slurmd", "-D")
        until(lambda: self.ask("sinfo", "-h", "-o", "%T") == ["idle"], 30)

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self) -> None:
        self.ask("scancel", "--signal=KILL", "--full", "--user", getpass.getuser())
        for name in reversed(self.processes):
            self.processes[name].terminate()
            self.processes[name].wait(30)

    def ask(self, *command: str) -> list[str]:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return found.stdout.split("\n")[:-1]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    lacking = [name for name in DAEMONS if not shutil.which(name)]
    if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        lacking.append("snakemake-executor-plugin-slurm")
    if lacking:
        pytest.skip(f"no SLURM here: {', '.join(lacking)} lacking")
    one = Cluster(tmp_path)
    monkeypatch.setenv("SLURM_CONF", f"{tmp_path}/slurm.conf")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    try:
        one.start_all()
    except (AssertionError, OSError) as error:
        logs = [log.read_text()[-300:] for log in tmp_path.glob("*.log")]
        one.stop()
        pytest.skip(f"SLURM does not start here: {error} {logs}")
    yield one
    one.stop()


def test_on_slurm_a_killed_workflow_controller_and_job_cost_nothing(cluster, clones, request):
    folder = clones()
    with (folder / "profiles" / "slurm" / "config.yaml").open("a") as profile:
        profile.write("slurm-init-seconds-before-status-checks: 1\n")
        profile.write("slurm-keep-successful-logs: true\n")  # to count what was scored

    def jobs(*options):
        return cluster.ask("squeue", "-h", "-o", "%i", *options)

    first = start(ON_SLURM, folder)
    until(lambda: list(folder.glob(".snakemake/*.lock")))
    first.kill()
    first.wait()
    left = jobs()
    second = start(ON_SLURM, folder)
    until(lambda: set(jobs()) - set(left))
    cluster.kill("slurmctld")
    cluster.start("slurmctld", "-D")
    pids = until(lambda: [
        int(line.split()[0])
        for job in sorted(set(jobs("-t", "RUNNING")) - set(left))[:1]
        for line in cluster.ask("scontrol", "listpids", job)[1:]
    ])  # fmt: skip
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert second.wait(600) == 0, said(folder)[-5000:]
    assert max(scored(folder).values()) == 1
    assert table(folder) == table(request.getfixturevalue("whole")[0])
    run(f"{ON_SLURM} --dry-run", folder)
    assert "Nothing to be done" in said(folder)


def test_what_the_page_prints_for_gpus_runs_as_it_stands(clones):
    folder = clones()
    run(ON_GPUS.strip(), folder)
    assert max(scored(folder).values()) == 1
    (folder / "train.py").write_text(SCRIPT)
    make_tiny(200).write(folder / "mine.h5mu")
    run(TORCHRUN.strip(), folder, PET_MASTER_PORT=str(free_port()))
    model = scmoe.ScMoE.load(folder / "my_model", "cpu")
    assert (model.predict(make_tiny(200))["group"] == make_tiny(200).obs["cell_type"]).mean() > 0.9


def test_no_block_of_these_sections_is_left_out():
    assert MORE_CLUSTER == MORE_GPU == []
    assert INSTALL in (ROOT / ".ci" / "run").read_text()
    assert "\n" not in ON_GPUS.strip() + TORCHRUN.strip()
