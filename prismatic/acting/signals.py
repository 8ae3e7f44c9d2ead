"""SIGINT (Ctrl-C), SIGTERM, SIGHUP (the terminal was closed) and SIGTSTP (Ctrl-Z) end a program that drives a robot, between two commands.

A program that is merely stopped leaves a robot with its last velocity.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)
_REPEATED_S = 5.0  # a second signal within this time of the first says nothing new: the robot is being held


def end_at_signals() -> None:
    """Makes each of the signals a KeyboardInterrupt, once: who presses Ctrl-C again does not interrupt what lets go of the robot."""
    last = -float("inf")

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now, before = time.monotonic(), last
        if now - before > _REPEATED_S:
            last = now
            raise KeyboardInterrupt

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, interrupt)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that arrive within the block are obeyed after it; outside the main thread, which alone hears them, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
