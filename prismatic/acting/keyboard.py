"""Keys of a terminal as they are pressed, without waiting for Enter."""

from __future__ import annotations

import math
import os
import re
import select
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, TextIO

# An arrow or a function key sends several bytes, among them letters: the right arrow ends in C, the End key in F. On a console of Linux
# without a window system F1 to F5 are ESC [ [ and a letter: F3 ends in C.
# Some terminals send ESC O 5 C for Ctrl and the right arrow, ESC O 2 S for Shift and F4.
_SEQUENCE = re.compile(rb"\x1b(?:\[\[[ -~]|\[[0-?]*[ -/]*[@-Z\\-~]|O(?:[ -/]|[0-?]*[@-~]))")
_BEGUN_SEQUENCE = re.compile(rb"\A\x1b(?:\[\[|\[[0-?]*[ -/]*|O[0-?]*)?")
_SEQUENCE_S = 0.1  # within which the rest of one arrives, else somebody pressed Escape
_REPEAT_S = 0.75  # a key that comes again within that time is held down; terminals wait up to 0.66 s before they repeat one


class Keyboard:
    """Reads single keys while it is entered (`with Keyboard() as keyboard:`) and leaves the terminal as it was, whatever happens.

    A key that is held down counts once; arrows and function keys are none: what they send must not move a robot.
    Ctrl-C still interrupts; Ctrl-Z and Ctrl-S, which would stop the program and leave the robot with its last velocity, do nothing. A
    terminal that is gone interrupts, too: nobody could stop the robot any more. Where the input is no terminal, no key is ever pressed.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdin if stream is None else stream
        self._saved: list[Any] | None = None
        self.is_terminal = self._stream.isatty()
        self._unread = b""  # what the terminal sent
        self._read_at = self._key_at = -math.inf  # monotonic time of the latest bytes, and of the latest key
        self._key = ""  # the latest one

    def __enter__(self) -> Keyboard:
        if self.is_terminal:
            import termios
            import tty

            self._saved = termios.tcgetattr(self._stream)
            tty.setcbreak(self._stream, termios.TCSANOW)
            _let_nothing_stop(self._stream)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._saved is not None:
            import termios

            with suppress(termios.error):  # it is gone
                termios.tcsetattr(self._stream, termios.TCSANOW, self._saved)
            self._saved, self._unread = None, b""

    def pressed(self) -> str:
        """The next key in lower case; "" when none was pressed.

        Raises:
            KeyboardInterrupt: the terminal was closed.
        """
        while key := self._next():
            now = time.monotonic()
            is_held = key == self._key and now < self._key_at + _REPEAT_S
            self._key, self._key_at = key, now
            if not is_held:
                return key
        return ""

    def _next(self) -> str:
        """The next key that the terminal sent, held down or not."""
        if self._saved is None:
            return ""
        if select.select([self._stream], [], [], 0)[0]:
            self._unread += self._read()
            self._read_at = time.monotonic()
        self._unread = _SEQUENCE.sub(b"", self._unread)
        if begun := _BEGUN_SEQUENCE.match(self._unread):
            if begun.end() == len(self._unread) and time.monotonic() < self._read_at + _SEQUENCE_S:
                return ""
            self._unread = self._unread[begun.end() :]
        key, self._unread = self._unread[:1], self._unread[1:]
        return key.decode(errors="replace").lower()

    def _read(self) -> bytes:
        try:
            sent = os.read(self._stream.fileno(), 4096)
        except OSError:
            sent = b""
        if not sent:
            raise KeyboardInterrupt("the terminal was closed")
        return sent

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


def _let_nothing_stop(stream: TextIO) -> None:
    """Takes the terminal's means away to stop its program (Ctrl-Z), or whatever the program prints and with it the program (Ctrl-S)."""
    import termios

    attributes = termios.tcgetattr(stream)
    attributes[0] &= ~termios.IXON
    attributes[6][termios.VSUSP] = bytes([os.fpathconf(stream.fileno(), "PC_VDISABLE")])
    termios.tcsetattr(stream, termios.TCSANOW, attributes)
