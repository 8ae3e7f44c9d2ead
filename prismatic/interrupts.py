"""Signals as a wish: long work ends at the next place where its state is whole, a training after the current step, a conversion between
two episodes.

An exception raised by a signal would strike anywhere, also where a library cleans up and swallows it: then the work would go on. A flag
that is looked at cannot be lost.

Launchers repeat signals: on Ctrl-C a worker of torchrun gets one from the terminal and one from torchrun, and a batch system signals every
process of a job, workers that load data included. So a repeated SIGTERM says nothing new (who is impatient sends SIGKILL, which a
checkpoint survives), and a second SIGINT counts as a second Ctrl-C only some time after the first.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType

STOPPED = 75  # exit status of a run that was asked to stop and can go on (EX_TEMPFAIL of sysexits.h: try again)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_REPEAT_SECONDS = 2.0


class StopRequest:
    """Remembers the first signal; a second Ctrl-C raises KeyboardInterrupt, a third kills. Active as a context manager."""

    def __init__(self, is_main: bool = True, meanwhile: str = "ending this step, then saving", answers_sigterm: bool = True) -> None:
        """`meanwhile` is what the main process tells the user that it does; SIGTERM ends work that may be killed anywhere at once."""
        self._is_main, self._meanwhile = is_main, meanwhile
        self._signals = _SIGNALS if answers_sigterm else (signal.SIGINT,)
        self._received = 0.0
        self.signal: signal.Signals | None = None

    @property
    def is_set(self) -> bool:
        """Whether this process has been asked to stop."""
        return self.signal is not None

    def check(self) -> None:
        """Returns unless this process has been asked to stop.

        Raises:
            KeyboardInterrupt: it has.
        """
        if self.is_set:
            raise KeyboardInterrupt

    def __enter__(self) -> StopRequest:
        is_main_thread = threading.current_thread() is threading.main_thread()  # Python lets no other thread handle signals
        self._previous = {number: signal.signal(number, self._handle) for number in self._signals} if is_main_thread else {}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._received = signal.Signals(number), time.monotonic()
            if self._is_main:  # not through logging: the signal may have interrupted it
                os.write(2, f"\n{self.signal.name}: {self._meanwhile}; Ctrl-C again leaves at once\n".encode())
        elif number == signal.SIGINT and time.monotonic() - self._received > _REPEAT_SECONDS:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt


def ignore_signals(worker: int = 0) -> None:
    """Makes a process that loads data outlive the signals that its training process answers."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
