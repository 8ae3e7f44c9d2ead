"""The threads that read what clients send: base64, JPEG and msgpack take milliseconds of the one interpreter that everybody shares.

Clients take turns (`turns.py`), and what is not wanted any more when its turn comes is not read.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from prismatic.serving.turns import Turns

_NUM_THREADS = 4  # they share the interpreter with the one that calls the policy

T = TypeVar("T")


@dataclass(order=True)
class _Job:
    turn: int
    number: int  # in the order of arrival
    read: Callable[[], Any] = field(compare=False)
    result: Future[Any] = field(compare=False, default_factory=Future)


class Decoders:
    """Threads that call what is submitted, one client's after the other's."""

    def __init__(self, on_cancelled: Callable[[], None] = lambda: None) -> None:
        """`on_cancelled` is called for each job that was cancelled before it began."""
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="decode")
        self._on_cancelled = on_cancelled
        self._lock = threading.Lock()
        self._turns, self._jobs, self._count = Turns(), list[_Job](), 0

    def submit(self, client: Hashable, read: Callable[[], T], address: Hashable = None) -> Future[T]:
        """What `read` gives, when it is the turn of `client`, which asks from `address`."""
        with self._lock:
            self._count += 1
            job = _Job(self._turns.next_of(client, address), self._count, read)
            heapq.heappush(self._jobs, job)
        self._threads.submit(self._do_next)
        return job.result

    def close(self) -> None:
        """Ends the threads; what waits is left."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _do_next(self) -> None:
        with self._lock:
            job = heapq.heappop(self._jobs)
            self._turns.serve(job.turn)
        if not job.result.set_running_or_notify_cancel():
            self._on_cancelled()
            return
        try:
            found = job.read()
        except BaseException as error:  # whatever it is, it belongs to who waits for it
            job.result.set_exception(error)
            del job  # the error remembers this frame, which would remember the error
        else:
            job.result.set_result(found)
