"""Processes: who am I, who else is there, who may speak. Works under torchrun and without it, on a GPU or a CPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from prismatic.cli import USER_ERROR

T = TypeVar("T")

# The main process may build an index or write tens of gigabytes while the others wait for it.
_PATIENCE = timedelta(hours=4)


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of one run."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None  # for words between the processes, on the CPU; the default group moves tensors

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files and talks."""
        return self.rank == 0


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Joins the run that torchrun describes in the environment (or a run of one process) and leaves it at the end.

    Processes other than the first log warnings only.
    """
    rank, world_size, local_rank = (
        int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if rank != 0:
        logging.getLogger("prismatic").setLevel(logging.WARNING)
    control = None
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", device_id=device if device.type == "cuda" else None)
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        yield Ranks(rank, world_size, device, control)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def on_main(action: Callable[[], T], ranks: Ranks) -> T:
    """What `action` returns on the main process, on every process; the others wait for it.

    Raises:
        ValueError: from `action`, on the main process; the others leave with the same exit status, in silence.
    """
    if ranks.world_size == 1:
        return action()
    outcome: list[Any] = [None, False]
    error: ValueError | None = None
    if ranks.is_main:
        try:
            outcome = [action(), True]
        except ValueError as caught:
            error = caught
    dist.broadcast_object_list(outcome, src=0, group=ranks.control)
    if error is not None:
        raise error
    if not outcome[1]:
        raise SystemExit(USER_ERROR)
    return outcome[0]


def any_rank(flag: bool, ranks: Ranks) -> bool:
    """Whether `flag` is True on any process; all must ask."""
    if ranks.world_size == 1:
        return flag
    value = torch.tensor([int(flag)])
    dist.all_reduce(value, dist.ReduceOp.MAX, group=ranks.control)
    return bool(value)


def gather_objects(own: T, ranks: Ranks) -> list[T]:
    """`own` of every process, by rank; all must call it."""
    if ranks.world_size == 1:
        return [own]
    gathered: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(gathered, own, group=ranks.control)
    return gathered


def mean_over_ranks(values: dict[str, float], ranks: Ranks) -> dict[str, float]:
    """The mean of each value over all processes, which must hold the same keys."""
    if ranks.world_size == 1:
        return values
    tensor = torch.tensor([values[key] for key in sorted(values)], dtype=torch.float64, device=ranks.device)
    dist.all_reduce(tensor)
    return dict(zip(sorted(values), (tensor / ranks.world_size).tolist(), strict=True))


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The element-wise sum of `values` over all processes."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
