"""The training loop: one visible loop, data on the device once, batches as index slices."""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from scmoe.checkpoint import Checkpoint
from scmoe.config import TrainConfig
from scmoe.nn.cells import Cells
from scmoe.nn.network import Network
from scmoe.progress import Progress
from scmoe.ranks import average, rank, share, world
from scmoe.step import Step

EXTREME = 1e4  # a scaled value this large is no measurement


def fit(
    network: Network,
    cells: Cells,
    fold: Tensor,
    config: TrainConfig,
    *,
    supervised: bool,
    modalities: list[str],
    seed: int = 0,
    scales: list[float] | None = None,
    input_noise: list[float] | None = None,
    watch: Callable[[Network], float] | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    fingerprint: str = "",
) -> tuple[pd.DataFrame, dict[str, Tensor] | None]:
    """Train ``network`` in place and leave each member with the weights of its best epoch.

    In a process group (:mod:`torch.distributed`), each of its processes takes a share of every
    batch, which has as many times more cells; all end with the same weights, and the first alone
    saves and shows how far they are.

    Parameters
    ----------
    network, cells
        On one device. Labels are read only if ``supervised``.
    fold
        ``(N,)``: member k learns from all cells but those with ``fold == k``, on which it is
        stopped. -1: held out by none. A member that holds out nothing keeps its last weights.
    config
        Losses, optimiser, stopping rule.
    modalities
        Names, for the history and for errors.
    seed
        Drives order, dropout and noise; every epoch draws from ``(seed, epoch)`` alone, and a
        resumed run repeats an uninterrupted one.
    scales
        What each modality's mean squared error is multiplied by, ``(M,)``; default 1.
    input_noise
        Standard deviation of Gaussian noise per modality ``(M,)``, training only.
    watch
        Scores the network after each epoch (column ``watched``); the weights with the highest score
        are handed back.
    checkpoint
        Folder to save to, every few seconds and when told to stop, and to resume from.
    fingerprint
        Names model, data and settings; a checkpoint with another one is refused.

    Returns
    -------
    One row an epoch: the losses on training cells, and on held-out cells (``val_*``), means over
    members, and how many members were better than ever (``improved``); and the weights with the
    highest watched score, if any.

    Raises
    ------
    FloatingPointError
        When a loss is no longer finite; names the epoch, the step, the loss, for a decoder the
        modality, and the likely cause. The last checkpoint stays as it was.
    KeyboardInterrupt
        After SIGTERM or SIGINT, once the step is finished and saved.
    ValueError
        When the checkpoint belongs to another run.
    """
    if config.precision == "bf16" and cells.device.type == "cpu" and not _has_bf16():
        warnings.warn(
            "This processor has no instructions for bf16 and emulates them, up to a hundred times "
            "slower than float32: precision='float32' trains faster here.",
            stacklevel=2,
        )
    fingerprint += json.dumps(asdict(config), sort_keys=True) + str(seed)
    fingerprint += f" {world()} processes" if world() > 1 else ""
    keep = Checkpoint(checkpoint if rank() == 0 else None, fingerprint)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    run = _Run(network, optimiser)
    run.restore(share(lambda _: keep.load(), [None])[0])
    learned = [(fold != k).nonzero()[:, 0] for k in range(network.config.members)]
    n_cells = min(map(len, learned))  # members whose share is larger leave a few out, by turns
    alone = max(1, round(n_cells / config.batch_size))  # steps an epoch, of a single process
    n_batches = math.ceil(alone / world())
    epochs = config.epochs
    if config.max_steps:
        epochs = min(epochs, math.ceil(config.max_steps / alone))
    done = len(run.history) * n_batches + len(run.losses)
    report = Progress(progress and rank() == 0, epochs, n_batches, n_cells, done)

    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_cuda(cells.device)))
        stack.enter_context(repeatable(cells.device))
        stack.enter_context(memory_kept())
        stack.callback(report.close)
        stopping = stack.enter_context(_stop_signals())
        step = Step(network, config, cells, fold, supervised, scales, input_noise)
        choose = config.patience is not None and step.held_out[0].shape[1] > 0
        for epoch in range(len(run.history) + 1, epochs + 1):
            if choose and epoch - max(run.best_epochs) > config.patience:
                break
            torch.manual_seed(seed * 1_000_003 + epoch)
            order = torch.stack([rows[torch.randperm(len(rows))][:n_cells] for rows in learned])
            batches = order.tensor_split(n_batches, 1)
            run.restore_random_state(cells.device)
            network.train()
            for index in batches[len(run.losses) :]:
                if config.max_steps:
                    part = ((epoch - 1) * n_batches + len(run.losses)) / (epochs * n_batches)
                    for group in optimiser.param_groups:
                        group["lr"] = config.lr * (1 + math.cos(math.pi * part)) / 2
                if world() > 1:  # no two draw alike, and again the same after an interruption
                    torch.manual_seed(hash((seed, epoch, len(run.losses), rank())))
                optimiser.zero_grad(set_to_none=True)
                loss, detail = step(index[:, rank() :: world()])
                loss.sum().backward()
                report.step(epoch)
                losses = torch.stack([loss, *detail.values()]).detach()
                stop = average([losses, *_gradients(network)], bool(stopping))
                clip_gradients(network, config.clip)
                optimiser.step()
                run.losses.append(losses)
                run.names = ["loss", *(_named(name, modalities) for name in detail)]
                if stop or keep.due:
                    _check_finite(run, epoch, step, batches, modalities)
                    keep.save(*run.state(cells.device))
                if stop:
                    where = f"in epoch {epoch}, after step {len(run.losses)} of {n_batches}"
                    number = stopping[0] if stopping else "to another process"
                    raise KeyboardInterrupt(f"Stopped by signal {number} {where}.")
            values = _check_finite(run, epoch, step, batches, modalities)
            means = values.mean((0, 2)).tolist()
            row = {"epoch": epoch, **dict(zip(run.names, means, strict=True))}
            held_out = step.validate()
            row |= {f"val_{_named(k, modalities)}": float(v.mean()) for k, v in held_out.items()}
            if watch is not None:
                row["watched"] = watch(network)
            run.end_epoch(row, held_out["loss"] if choose else None)
            report.epoch(row)
        keep.save(*run.state(cells.device))
        if stopping:
            raise KeyboardInterrupt(f"Stopped by signal {stopping[0]} after the last epoch.")
    if run.best is not None:
        network.load_state_dict(run.best)
    network.eval()
    return pd.DataFrame(run.history), run.watched


class _Run:
    """What changes while a run goes on, as a checkpoint keeps it."""

    def __init__(self, network, optimiser):
        self.network, self.optimiser = network, optimiser
        self.history: list[dict] = []
        self.names: list[str] = []  # of the losses
        self.losses: list[Tensor] = []  # of each step of the epoch under way, (losses, K)
        members = network.config.members
        self.best: dict[str, Tensor] | None = None  # weights; None: the last ones
        self.best_losses, self.best_epochs = [math.inf] * members, [0] * members
        self.watched: dict[str, Tensor] | None = None
        self.random_state: dict[str, Tensor] | None = None

    def end_epoch(self, row, held_out):
        """Note an epoch; keep weights of members whose held-out loss ``(K,)`` is their best."""
        if held_out is not None:
            better = [v < best for v, best in zip(held_out.tolist(), self.best_losses, strict=True)]
            for k in (k for k, improved in enumerate(better) if improved):
                self.best_losses[k], self.best_epochs[k] = float(held_out[k]), row["epoch"]
            self._keep(torch.tensor(better))
            row["improved"] = sum(better)
        if "watched" in row and all(row["watched"] > old["watched"] for old in self.history):
            self.watched = _copy_of(self.network)
        self.history.append(row)
        self.losses = []

    def _keep(self, better: Tensor):
        """Copy the weights of some members ``(K,)`` bool; all parameters lead with members."""
        if self.best is None:
            self.best = _copy_of(self.network)
            return
        for name, value in self.network.state_dict().items():
            if better.all():
                self.best[name].copy_(value)
            elif better.any():
                k = len(better)
                rows = better.to(value.device)
                self.best[name].view(k, -1)[rows] = value.detach().view(k, -1)[rows]

    def state(self, device):
        """Tensors in groups, and a note, for :meth:`Checkpoint.save`."""
        adam = self.optimiser.state_dict()["state"]
        groups = {
            "network": self.network.state_dict(),
            "adam": {f"{i}.{name}": v for i, values in adam.items() for name, v in values.items()},
            "best": self.best or {},
            "watched": self.watched or {},
        }
        if self.losses:
            groups["epoch"] = {"losses": torch.stack(self.losses), "cpu": torch.get_rng_state()}
            if device.type == "cuda":
                groups["epoch"]["cuda"] = torch.cuda.get_rng_state(device)
        best = {"losses": self.best_losses, "epochs": self.best_epochs}
        return groups, {"history": self.history, "names": self.names, "best": best}

    def restore(self, saved):
        """Take over what :meth:`Checkpoint.load` found, if anything."""
        if saved is None:
            return
        groups, note = saved
        device = next(self.network.parameters()).device
        self.history, self.names = note["history"], note["names"]
        self.best_losses, self.best_epochs = note["best"]["losses"], note["best"]["epochs"]
        self.network.load_state_dict(groups["network"])
        state = self.optimiser.state_dict()
        for key, value in groups.get("adam", {}).items():
            number, name = key.split(".", 1)
            state["state"].setdefault(int(number), {})[name] = value
        self.optimiser.load_state_dict(state)
        for name in ("best", "watched"):
            if name in groups:
                setattr(self, name, {k: v.to(device) for k, v in groups[name].items()})
        if "epoch" in groups:
            self.random_state = groups["epoch"]
            self.losses = list(self.random_state.pop("losses").to(device))

    def restore_random_state(self, device):
        """Continue the draws of an epoch that was cut off."""
        if self.random_state is None:
            return
        torch.set_rng_state(self.random_state["cpu"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(self.random_state["cuda"], device)
        self.random_state = None


@torch.no_grad()
def clip_gradients(network: Network, limit: float) -> None:
    """Clip every gradient's values to ``±limit``, in one pass over a CPU's memory."""
    gradients = _gradients(network)
    if any(g.device.type != "cpu" for g in gradients):
        torch._foreach_clamp_min_(gradients, -limit)
        torch._foreach_clamp_max_(gradients, limit)
        return
    for gradient in gradients:
        gradient.clamp_(-limit, limit)


def _gradients(network: Network) -> list[Tensor]:
    return [p.grad for p in network.parameters() if p.grad is not None]


@contextmanager
def _stop_signals():
    """Collects SIGTERM and SIGINT so that the step is finished and saved before the run stops."""
    received: list[int] = []
    old = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            old[number] = signal.signal(number, lambda n, _: received.append(n))
    except ValueError:  # not the main thread: signals cannot be caught there
        pass
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def memory_kept():
    """Lets a step use the last one's memory again, instead of having the system zero new pages.

    glibc gives large blocks back at once; asking for them again takes up to half of a step. What
    was kept goes back at the end. Only memory is touched, never a number.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    mallopt(trim, 2**31 - 1)
    mallopt(mmap, 2**31 - 1)
    try:
        yield
    finally:
        mallopt(trim, 2**26)  # where glibc's own adjustment ends
        mallopt(mmap, 2**25)
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def repeatable(device: torch.device):
    """Deterministic kernels on CUDA, where there are any; a CPU needs nothing."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices itself; unknown counts as yes."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    found = [there for name, there in known.items() if "bf16" in name]
    return any(found) or not found


def _copy_of(network: Network) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _check_finite(run, epoch, step, batches, modalities) -> Tensor:
    """Losses ``(steps, losses, K)`` of the epoch so far; the one transfer from the device."""
    values = torch.stack(run.losses).cpu()
    bad = ~values.isfinite().all(2)
    if not bad.any():
        return values
    first = int(bad.any(1).nonzero()[0])
    named = zip(run.names, bad[first].tolist(), strict=True)
    which = [name for name, wrong in named if wrong and name != "loss"]
    raise FloatingPointError(
        f"Loss no longer finite in epoch {epoch}, step {first + 1}: {', '.join(which) or 'total'}. "
        f"{_likely_cause(step.cells.batch(batches[first]), modalities, step.config.lr)}"
    )


def _likely_cause(batch, modalities, lr) -> str:
    for name, x in zip(modalities, batch.x, strict=True):
        if not x.isfinite().all():
            return f"Modality {name!r} holds values that are not finite: remove or impute them."
        if (largest := float(x.abs().max())) > EXTREME:
            return (
                f"Modality {name!r} holds scaled values up to {largest:.0f}, which is likely the "
                "cause: look for outliers, or for features that hardly vary."
            )
    return f"The likely cause is a learning rate that is too high: try lr={lr / 10:g}."


def _named(part: str, modalities: list[str]) -> str:
    """``decoder 1`` -> ``decoder rna``."""
    head, _, number = part.partition(" ")
    return f"{head} {modalities[int(number)]}" if number else part


def _cuda(device: torch.device) -> list:
    return [device] if device.type == "cuda" else []
