"""The processes of a DataLoader: their death is an error of one line where a batch is waited for, and they end with their iterator."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import threading
from collections.abc import Generator
from typing import Any, TypeVar

from torch.utils.data import DataLoader

T = TypeVar("T")

_PATIENCE = 1.0  # s in which a process that was killed is found dead


def watched(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """What `loader` yields; its processes are gone once this iterator is used up or closed.

    torch and Python ask them to go by SIGTERM, which those of a training ignore: one that hangs would keep its parent from ending.

    Raises:
        ValueError: one of them has died.
    """
    others = {process.pid for process in multiprocessing.active_children()}
    items = iter(loader)
    _notice_deaths_here_only()
    workers = [process for process in multiprocessing.active_children() if process.pid not in others]
    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except Exception as error:  # of many kinds, depending on what the process was about
                dead = _first_dead(workers)
                if dead is None:
                    raise
                raise ValueError(
                    f"a process that loads data has died (exit status {dead.exitcode}); most often the machine's memory is full: lower "
                    "--num_workers, and see what the kernel says (dmesg)"
                ) from error
            yield item
    finally:
        del items  # torch ends them, and waits ten seconds for it
        for worker in workers:
            worker.kill()
            worker.join()


def _first_dead(workers: list[Any]) -> Any | None:
    ended = multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=_PATIENCE) if workers else []
    for worker in workers:
        if worker.sentinel in ended:
            worker.join()  # the sentinel falls as the process lets go of its files, a moment before it has an exit status
            return worker
    return None


def _notice_deaths_here_only() -> None:
    """Takes torch's signal handler away, which raises the death of a process that loads wherever the training is, be it half-way through
    an update of the weights. The loader sees it as well when it waits for the next batch."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
