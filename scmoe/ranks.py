"""Several processes that train one model, as torchrun starts them; without a group, one of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return dist.get_rank() if world() > 1 else 0


def share(function: Callable, items: Iterable) -> list:
    """``function`` of each item, worked out by one process and then known to all."""
    items, n = list(items), world()
    mine = {i: function(items[i]) for i in range(rank(), len(items), n)}
    every = [mine]
    if n > 1:
        every = [None] * n
        dist.all_gather_object(every, mine)
    return [every[i % n][i] for i in range(len(items))]


def average(tensors: list[Tensor], told: bool = False) -> bool:
    """Put the mean of all processes in the place of tensors; whether any process was told to stop.

    All of it is one message, and every process gets the same bits.
    """
    if (n := world()) == 1:
        return told
    flat = torch.cat([*(v.flatten() for v in tensors), tensors[0].new_full((1,), float(told))])
    dist.all_reduce(flat)
    flat /= n
    for tensor, mean in zip(tensors, flat.split([v.numel() for v in tensors] + [1]), strict=False):
        tensor.copy_(mean.view_as(tensor))
    return bool(flat[-1])
