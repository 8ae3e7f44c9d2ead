"""Processes: who am I, who else is there, who may speak. Works under torchrun and without it, on a GPU or a CPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of one run."""

    rank: int
    world_size: int
    device: torch.device

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
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", device_id=device if device.type == "cuda" else None)
    try:
        yield Ranks(rank, world_size, device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def barrier() -> None:
    """Waits for every process of the run."""
    if dist.is_initialized():
        dist.barrier()


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
