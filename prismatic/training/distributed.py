"""Processes: who am I, who else is there, who may speak. Works under torchrun and without it, on a GPU or a CPU.

Two groups connect the processes of a run. The default one moves tensors and gives up on a process that keeps the others waiting for some
minutes, since there a silent one means a deadlock. The other, `Ranks.control`, carries words on the CPU and is patient: it stands between
the processes wherever one of them may work alone for long (an index, a frame cache, weights on a slow disk, a checkpoint).
A process that dies is noticed at once by both, whatever their patience.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from prismatic.cli import USER_ERROR

T = TypeVar("T")

# One process may fill a frame cache of terabytes or write tens of gigabytes while the others wait for it.
_PATIENCE = timedelta(hours=12)
# What gloo, NCCL and the store say where a process has gone or is silent for too long.
_LOST = re.compile(
    r"closed by (peer|remote)|reset by peer|broken pipe|timed? ?out|remote process|unable to .*connect|socketpoll", re.IGNORECASE
)

logger = logging.getLogger(__name__)


class EndedTogether(Exception):  # noqa: N818
    """Every process leaves the run here, for the error of one of them; `own` is this process's to tell, None where another tells it."""

    def __init__(self, own: Exception | None) -> None:
        super().__init__(str(own))
        self.own = own

    def leave(self) -> NoReturn:
        """Ends this process: with its error, or in silence and with the same exit status as a user's mistake."""
        if self.own is None:
            raise SystemExit(USER_ERROR) from None
        raise self.own from self.own.__cause__


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of one run."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None  # for words between the processes, on the CPU; the default group moves tensors
    num_nodes: int = 1  # machines, or what torchrun calls so
    local_world_size: int = 1  # processes on this node

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files and talks."""
        return self.rank == 0


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Joins the run that torchrun describes in the environment (or a run of one process) and leaves it at the end.

    Processes other than the first log warnings only; of what is found in the data, which all of them read alike, the first of each node
    tells.

    Raises:
        SystemExit: another process of the run went away.
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
    if local_rank != 0:
        logging.getLogger("prismatic.vla.datasets").setLevel(logging.ERROR)
    try:
        ranks = _join(rank, world_size, device) if world_size > 1 else Ranks(rank, world_size, device)
        yield ranks
        wait_for_all(ranks)  # the main process may write or wait for an evaluation for long
    except BaseException as error:
        _leave(after_error=True)
        if isinstance(error, EndedTogether):
            error.leave()
        if world_size > 1 and is_lost_process(error):
            reason = str(error).splitlines()[0]
            logger.error("error: process %d lost another process of this run, whose own message says why (%s)", rank, reason)
            raise SystemExit(1) from None
        raise
    _leave(after_error=False)


def is_lost_process(error: BaseException) -> bool:
    """Whether that is what a message says whose other end has gone."""
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


def _join(rank: int, world_size: int, device: torch.device) -> Ranks:
    """Connects this process with the others; nodes are those of torchrun's agents, of host names without it."""
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", device_id=device if device.type == "cuda" else None)
    control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    node = os.environ.get("GROUP_RANK") or socket.gethostname()
    nodes = gather_objects(node, Ranks(rank, world_size, device, control))
    return Ranks(rank, world_size, device, control, len(set(nodes)), Counter(nodes)[node])


def _leave(after_error: bool) -> None:
    """Takes the connections down: after an error without waiting for messages that the others may never answer."""
    if not dist.is_initialized():
        return
    is_on_gpu = dist.get_backend() == "nccl"
    if is_on_gpu and after_error:
        dist.distributed_c10d._abort_process_group()
        return
    if is_on_gpu:
        torch.cuda.synchronize()
    dist.destroy_process_group()


def wait_for_all(ranks: Ranks) -> None:
    """Returns when every process has come here. It stands before messages of the default group where one may be late by hours."""
    if ranks.world_size > 1:
        dist.barrier(group=ranks.control)


def on_main(action: Callable[[], T], ranks: Ranks) -> T:
    """What `action` returns on the main process, on every process; the others wait for it.

    Raises:
        EndedTogether: `action` failed, on several processes. On a single one its error comes as it is.
    """
    if ranks.world_size == 1:
        return action()
    outcome: list[Any] = [None, False]
    error: Exception | None = None
    if ranks.is_main:
        try:
            outcome = [action(), True]
        except Exception as caught:
            error = caught
    dist.broadcast_object_list(outcome, src=0, group=ranks.control)
    if not outcome[1]:
        raise EndedTogether(error)
    return outcome[0]


def on_all(action: Callable[[], T], ranks: Ranks) -> T:
    """What `action` returns on this process, once every process has come that far, however long one of them takes.

    Raises:
        EndedTogether: it failed on one of several processes. On a single one its error comes as it is.
    """
    if ranks.world_size == 1:
        return action()
    try:
        result = action()
    except Exception as error:
        raise_together(error, ranks)
        raise
    raise_together(None, ranks)
    return result


def raise_together(error: Exception | None, ranks: Ranks) -> None:
    """Returns if no process comes with an error. Every process must call it.

    Raises:
        EndedTogether: some do; of those with the same words the first one tells it. On a single process the error comes as it is.
    """
    if ranks.world_size == 1:
        if error is not None:
            raise error
        return
    told = gather_objects(None if error is None else f"{type(error).__name__}: {error}", ranks)
    if any(told):
        is_first = error is not None and told.index(told[ranks.rank]) == ranks.rank
        raise EndedTogether(error if is_first else None)


def any_rank(flag: bool, ranks: Ranks) -> bool:
    """Whether `flag` is True on any process; all must ask."""
    return any_ranks((flag,), ranks)[0]


def any_ranks(flags: Sequence[bool], ranks: Ranks) -> list[bool]:
    """Of each of `flags` whether it is True on any process, in one message; all must ask."""
    if ranks.world_size == 1:
        return list(flags)
    values = torch.tensor([int(flag) for flag in flags])
    dist.all_reduce(values, dist.ReduceOp.MAX, group=ranks.control)
    return [bool(value) for value in values]


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


def sum_over_ranks(values: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """The element-wise sum of `values` over all processes."""
    if ranks.world_size > 1:
        dist.all_reduce(values)
    return values
