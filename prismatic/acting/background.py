"""Work that a control loop does not wait for: items -> a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Calls `handle` with one item after the other; those for which there is no room are left out and counted."""

    def __init__(self, handle: Callable[[T], None], name: str, max_waiting: int) -> None:
        self.num_left_out = 0
        self._handle = handle
        self._queue: queue.Queue[tuple[T] | None] = queue.Queue(max_waiting)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def offer(self, item: T) -> None:
        """Takes an item and returns at once."""
        try:
            self._queue.put_nowait((item,))
        except queue.Full:
            self.num_left_out += 1

    def finish(self) -> None:
        """Waits until every item is done with.

        Raises:
            Exception: what went wrong with the first that failed; those behind it were not handled.
        """
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                if self._error is None:
                    self._handle(*item)
            except Exception as error:  # raised again by `finish`, where somebody can hear it
                self._error = error
