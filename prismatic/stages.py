"""How a driver script runs a chain of commands that could be typed one by one."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def seen_from_root(path: Path) -> Path:
    """A path as it is typed in the working directory, as commands of the chain have to be told it, which run in the repository's root."""
    return path if Path.cwd() == _ROOT else Path(os.path.abspath(path.expanduser()))


def empty_folder(folder: Path, mark: str) -> None:
    """Removes what an earlier call has left in `folder`; `mark` is the name of what it makes there first.

    Raises:
        ValueError: what lies there was not made by such a call.
    """
    if folder.is_dir() and not (folder / mark).exists() and (others := sorted(path.name for path in folder.iterdir())):
        raise ValueError(
            f"--output_dir {folder} is emptied first, and holds what no earlier call has made ({', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}); choose another, or remove that folder"
        )
    shutil.rmtree(folder, ignore_errors=True)


def keep_settings(path: Path, settings: Mapping[str, Any], remedy: str) -> None:
    """Writes down what later calls in the same folder must share, or compares it; what there is without it is taken at its word.

    Raises:
        ValueError: what lies there was made with other settings; every one is named, and the `remedy`. Or the file is damaged.
    """
    said = json.loads(json.dumps(settings, default=str))
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        return
    stored = read_settings(path, remedy)
    other = [name for name in stored if name in said and stored[name] != said[name]]
    if other:
        listed = "; ".join(f"--{name} was {stored[name]!r}, is {said[name]!r}" for name in other)
        raise ValueError(f"{path.parent} holds what was made with other flags ({listed}); {remedy}")


def read_settings(path: Path, remedy: str) -> dict[str, Any]:
    """The flags that an earlier call wrote down.

    Raises:
        ValueError: the file is damaged; the message says what depends on it, and the `remedy`.
    """
    what = f"it says with which flags the rest of {path.parent} was made"
    return read_note(path, f"{what}: {remedy}; or, if the flags are the same now, delete this file alone")


def read_note(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file that an earlier call has left.

    Raises:
        ValueError: it is damaged; the message names it, and the `remedy`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the JSON, or of bytes that are no text
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (it holds {str(content)[:80]!r}, expected an object); {remedy}")
    return content


def _end_with_parent() -> None:
    """From now on the kernel asks this process to end (SIGTERM) when the one that started it has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
