"""A process that loads data and dies is one line that says so, however its death comes to be noticed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from prismatic.vla.datasets.workers import watched


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_slowly() -> None:
    """Lets go of its files first, as every process does; on a busy machine it takes a while from there to its exit status."""
    os.closerange(3, 1024)
    time.sleep(1.0)
    die()


class Deadly(Dataset[torch.Tensor]):
    """Numbers, of which the third is the end of the process that looks for it; tensors are asked for where they were made."""

    def __init__(self, end: Callable[[], None]) -> None:
        self.end = end

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> torch.Tensor:
        if number == 2:
            self.end()
        return torch.tensor(number)


@pytest.mark.parametrize("end", [die, die_slowly])
def test_a_death_is_told_with_its_exit_status(end: Callable[[], None]) -> None:
    batches = watched(DataLoader(Deadly(end), batch_size=None, num_workers=1))
    assert next(batches) == 0
    time.sleep(0.3)  # the process is at the third meanwhile
    with pytest.raises(ValueError, match=r"a process that loads data has died \(exit status -9\); most often the machine's memory is full"):
        list(batches)
    assert not multiprocessing.active_children()


def test_an_error_of_a_living_process_stays_its_own_and_all_end() -> None:
    def fail() -> None:
        raise KeyError("episode 3")

    with pytest.raises(KeyError, match="episode 3"):
        list(watched(DataLoader(Deadly(fail), batch_size=None, num_workers=1)))
    assert not multiprocessing.active_children()
