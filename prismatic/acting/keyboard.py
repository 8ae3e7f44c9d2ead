"""Keys of a terminal as they are pressed, without waiting for Enter."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, TextIO


class Keyboard:
    """Reads single keys while it is entered (`with Keyboard() as keyboard:`) and leaves the terminal as it was, whatever happens.

    Ctrl-C still interrupts, and so does a terminal that is gone: nobody could stop the robot any more. Where the input is no terminal, no
    key is ever pressed.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdin if stream is None else stream
        self._saved: list[Any] | None = None
        self.is_terminal = self._stream.isatty()

    def __enter__(self) -> Keyboard:
        if self.is_terminal:
            import termios
            import tty

            self._saved = termios.tcgetattr(self._stream)
            tty.setcbreak(self._stream, termios.TCSANOW)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._saved is not None:
            import termios

            with suppress(termios.error):  # it is gone
                termios.tcsetattr(self._stream, termios.TCSANOW, self._saved)
            self._saved = None

    def pressed(self) -> str:
        """The next key in lower case; "" when none was pressed.

        Raises:
            KeyboardInterrupt: the terminal was closed.
        """
        if self._saved is None or not select.select([self._stream], [], [], 0)[0]:
            return ""
        try:
            key = os.read(self._stream.fileno(), 1)
        except OSError:
            key = b""
        if not key:
            raise KeyboardInterrupt("the terminal was closed")
        return key.decode(errors="replace").lower()

    def forget(self) -> None:
        """Drops the keys that were pressed before now: they were no answer to what is asked next."""
        while self.pressed():
            pass

    def wait(self, keys: str) -> str:
        """The first of `keys` that is pressed."""
        while (key := self.pressed()) not in keys or not key:
            select.select([self._stream], [], [], 0.1)
        return key

    def line(self, prompt: str) -> str:
        """A line of text, typed as usual."""
        self.__exit__(None, None, None)
        try:
            return input(prompt).strip()
        except EOFError:
            raise KeyboardInterrupt("the terminal was closed") from None
        finally:
            self.__enter__()
