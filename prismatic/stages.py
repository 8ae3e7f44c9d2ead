"""How a driver script runs a chain of commands that could be typed one by one."""

from __future__ import annotations

import ctypes
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).parents[1]
# Commands of the chain that are not Python scripts are beside the interpreter.
_BIN = Path(sys.executable).parent


def run_stage(stage: str, command: list[str]) -> float:
    """Prints and runs one command, from the repository's root; returns how long it took [s]. On Linux it ends when this process does,
    be that killed.

    Raises:
        ValueError: it failed.
    """
    print(f"\n=== {stage}\n$ {shlex.join(command)}", flush=True)
    started = time.monotonic()
    program = sys.executable if command[0] == "python" else str(_BIN / command[0])
    if subprocess.run([program, *command[1:]], cwd=_ROOT, check=False, preexec_fn=_end_with_parent).returncode:
        raise ValueError(f"the stage {stage!r} failed, its message is above; the command alone:\n  {shlex.join(command)}")
    return round(time.monotonic() - started, 1)


def _end_with_parent() -> None:
    """From now on the kernel asks this process to end (SIGTERM) when the one that started it has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
