"""A terminal, and somebody who reads it and presses keys."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Terminal:
    """A program that has one."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str] | None = None) -> None:
        """Starts `arguments`; `environment` is added to this process's."""
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        ends: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), self.slave)
        self.process = subprocess.Popen(arguments, cwd=ROOT, env={**os.environ, **(environment or {})}, start_new_session=True, **ends)
        self.text = ""

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def read(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self.master], [], [], left)[0]:
                self.text += os.read(self.master, 4096).decode()

    def wait_for(self, condition: Any, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, self.text
            assert self.process.poll() is None, self.text
            self.read(0.1)

    def finish(self) -> int:
        while self.process.poll() is None:
            self.read(0.1)
        assert termios.tcgetattr(self.slave) == self.before, "the terminal was left in another state"
        os.close(self.master)
        os.close(self.slave)
        return self.process.returncode
