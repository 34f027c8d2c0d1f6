"""The training loop: one visible loop, data on the device once, batches as index slices."""

from __future__ import annotations

import ctypes
import json
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
from scmoe.nn.linear import CrossFit
from scmoe.nn.network import Network
from scmoe.progress import Progress
from scmoe.step import EVAL_BATCH, Step

EXTREME = 1e4  # a scaled value this large is no measurement


def fit(
    network: Network,
    train: Cells,
    val: Cells | None,
    config: TrainConfig,
    *,
    supervised: bool,
    modalities: list[str],
    seed: int = 0,
    crossfit: CrossFit | None = None,
    input_noise: list[float] | None = None,
    watch: Callable[[Network], float] | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    fingerprint: str = "",
) -> tuple[pd.DataFrame, dict[str, Tensor] | None]:
    """Train ``network`` in place and leave it with the weights of the best validation epoch.

    Parameters
    ----------
    network, train, val
        All on one device. Labels are read only if ``supervised``. Without ``val`` all epochs are
        run and the last weights stay.
    config
        Losses, optimiser, stopping rule.
    modalities
        Names, for the history and for errors.
    seed
        Drives order, dropout and noise; every epoch draws from ``(seed, epoch)`` alone, and a
        resumed run repeats an uninterrupted one.
    crossfit
        Out-of-fold predictions of the linear path, on the same device; the network learns what
        they leave.
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
    One row an epoch: the losses on training cells, and on validation cells (``val_*``); and the
    weights with the highest watched score, if any.

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
    if config.precision == "bf16" and train.device.type == "cpu" and not _has_bf16():
        warnings.warn(
            "This processor has no instructions for bf16 and emulates them, up to a hundred times "
            "slower than float32: precision='float32' trains faster here.",
            stacklevel=2,
        )
    keep = Checkpoint(
        checkpoint, fingerprint + json.dumps(asdict(config), sort_keys=True) + str(seed)
    )
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    run = _Run(network, optimiser)
    run.restore(keep.load())
    n_batches = max(1, round(len(train) / config.batch_size))
    done = len(run.history) * n_batches + len(run.losses)
    report = Progress(progress, config.epochs, n_batches, len(train), done)

    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_cuda(train.device)))
        stack.enter_context(_repeatable(train.device))
        stack.enter_context(_memory_kept())
        stack.callback(report.close)
        stopping = stack.enter_context(_stop_signals())
        step = Step(network, config, train, supervised, crossfit, input_noise)
        for epoch in range(len(run.history) + 1, config.epochs + 1):
            if config.patience is not None and epoch - run.best_epoch > config.patience:
                break
            torch.manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(len(train))
            run.restore_random_state(train.device)
            network.train()
            for index in order.tensor_split(n_batches)[len(run.losses) :]:
                index = step.arrange(index)
                optimiser.zero_grad(set_to_none=True)
                loss, detail = step(index)
                loss.backward()
                clip_gradients(network, config.clip)
                optimiser.step()
                run.losses.append(torch.stack([loss, *detail.values()]).detach())
                run.names = ["loss", *(_named(name, modalities) for name in detail)]
                report.step(epoch)
                if stopping or keep.due:
                    _check_finite(run, epoch, step, order, n_batches, modalities)
                    keep.save(*run.state(train.device))
                if stopping:
                    where = f"in epoch {epoch}, after step {len(run.losses)} of {n_batches}"
                    raise KeyboardInterrupt(f"Stopped by signal {stopping[0]} {where}.")
            values = _check_finite(run, epoch, step, order, n_batches, modalities)
            row = {"epoch": epoch, **dict(zip(run.names, values.mean(0).tolist(), strict=True))}
            row |= {f"val_{_named(k, modalities)}": v for k, v in step.validate(val).items()}
            if watch is not None:
                row["watched"] = watch(network)
            run.end_epoch(row, config.patience is not None and bool(val))
            report.epoch(row)
        keep.save(*run.state(train.device))
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
        self.losses: list[Tensor] = []  # of each step of the epoch under way
        self.best: dict[str, Tensor] | None = None  # weights; None: the last ones
        self.watched: dict[str, Tensor] | None = None
        self.random_state: dict[str, Tensor] | None = None

    @property
    def best_epoch(self) -> int:
        """The last one, where validation cells have not chosen."""
        if self.best is None:
            return len(self.history)
        return min(self.history, key=lambda row: row["val_loss"])["epoch"]

    def end_epoch(self, row, choose):
        """Note an epoch; keep its weights if it is the best (``choose``), and if it is watched."""

        def first_best(name, sign):
            return all(sign * row[name] > sign * old[name] for old in self.history)

        if choose and first_best("val_loss", -1):
            self.best = _copy_of(self.network)
        if "watched" in row and first_best("watched", 1):
            self.watched = _copy_of(self.network)
        self.history.append(row)
        self.losses = []

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
        return groups, {"history": self.history, "names": self.names}

    def restore(self, saved):
        """Take over what :meth:`Checkpoint.load` found, if anything."""
        if saved is None:
            return
        groups, note = saved
        device = next(self.network.parameters()).device
        self.history, self.names = note["history"], note["names"]
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
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    if any(g.device.type != "cpu" for g in gradients):
        torch._foreach_clamp_min_(gradients, -limit)
        torch._foreach_clamp_max_(gradients, limit)
        return
    for gradient in gradients:
        gradient.clamp_(-limit, limit)


@torch.no_grad()
def calibrate(network: Network, cells: Cells, supervised: bool) -> None:
    """Set how much the network adds to the linear path, on validation cells.

    The logits' scale is 0 (the linear path alone) unless some scale up to 1 has a log-loss that is
    lower than the linear path's at its best temperature by more than one standard error (paired
    over cells); then it is the smallest within one such error of the best. So what the network adds
    has to be seen, and has to be more than a change of confidence, which needs no network. The
    scale of each translation is its least-squares value less one standard error over cells, kept
    between 0 and 1. Clusters stay those
    of the linear path: without labels nothing says that another partition is a better one.
    """
    linear = network.linear
    if linear is not None and not supervised:
        network.group_scale.zero_()
    if linear is None or not len(cells):
        return
    batches = list(cells.batches(EVAL_BATCH))
    if supervised:
        scales = torch.linspace(0, 1, 21, device=cells.device)
        temperatures = torch.linspace(0.5, 2, 31, device=cells.device)
        rows, tempered = [], []
        for b in batches:
            own = network.group_logits(network.encode(b.x, b.present))
            given = linear.group_logits(b.x, b.present)
            rows.append(_log_losses(given[None] + scales[:, None, None] * own, b.labels))
            tempered.append(_log_losses(temperatures[:, None, None] * given, b.labels))
        loss, tempered = torch.cat(rows, 1), torch.cat(tempered, 1)  # (scales, cells)
        best = loss[loss.mean(1).argmin()]
        gain, error = _mean_and_error(tempered[tempered.mean(1).argmin()] - best)
        network.group_scale.zero_()
        # one validation cell has no standard error: then nothing is seen, and nothing added
        if gain > error:
            excess, error = _mean_and_error(loss - best)
            network.group_scale.copy_(scales[(excess <= error).nonzero()[0, 0]])
    for i in range(len(network.n_features)):
        for j in range(len(network.n_features)):
            if i == j:
                continue
            dots, norms = [], []
            for b in batches:
                both = b.present[:, i] & b.present[:, j]
                only = [v if k == j else None for k, v in enumerate(b.x)]
                own = network.decode(network.encode(only, b.present, "alone"), i)[both, j]
                left = b.x[i][both] - linear.translate(only, b.present, i)[both]
                dots.append((own * left).sum(1))
                norms.append(own.square().sum(1))
            dot, norm = torch.cat(dots), torch.cat(norms)
            total = norm.sum() + 1e-12
            scale = dot.sum() / total
            error = (dot - scale * norm).square().sum().sqrt() / total
            network.pair_scale[i, j] = (scale - error).clamp(0, 1)


def _log_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-loss of every labelled cell, ``(S, cells)`` from ``(S, B, C)``."""
    known = labels >= 0
    index = labels[known].expand(len(logits), -1)[..., None]
    return -logits[:, known].log_softmax(2).gather(2, index)[..., 0]


def _mean_and_error(differences: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the last axis, and its standard error."""
    n = differences.shape[-1]
    return differences.mean(-1), differences.std(-1) / max(n, 1) ** 0.5


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
def _memory_kept():
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
def _repeatable(device: torch.device):
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


def _check_finite(run, epoch, step, order, n_batches, modalities) -> Tensor:
    """Losses ``(steps, losses)`` of the epoch so far; the one transfer from the device."""
    values = torch.stack(run.losses).cpu()
    bad = ~values.isfinite()
    if not bad.any():
        return values
    first = int(bad.any(1).nonzero()[0])
    named = zip(run.names, bad[first].tolist(), strict=True)
    which = [name for name, wrong in named if wrong and name != "loss"]
    batch = step.train.batch(order.tensor_split(n_batches)[first])
    raise FloatingPointError(
        f"Loss no longer finite in epoch {epoch}, step {first + 1}: {', '.join(which) or 'total'}. "
        f"{_likely_cause(batch, modalities, step.config.lr)}"
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
