"""An arm's serial ports, held while one program commands it: two that command one arm pull it to and fro.

LeRobot's drivers open a port that another program has open, and both their commands arrive. So each port is locked (flock) on a descriptor
of its own before anything is sent; the lock ends with its process, however that ends. It keeps away other rollouts and recordings of this
project, and programs that open ports exclusively; LeRobot's own commands do not look.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import stat
from collections.abc import Iterator
from typing import Any


def hold(config: Any) -> list[int]:
    """Locks the serial ports that the fields of LeRobot's `config` name, at any depth; descriptors for `release`.

    A port that cannot be opened is left to the driver, which says why.

    Raises:
        ValueError: another program holds one of them.
    """
    held: list[int] = []
    for path in dict.fromkeys(_ports(config)):
        try:
            held.append(os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
        except OSError:
            continue
        try:
            fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            release(held)
            raise ValueError(
                f"another program commands the arm at {path}; end it first (fuser {path} shows which it is), or name another port"
            ) from error
        except OSError:  # a device that knows no locks
            continue
    return held


def release(descriptors: list[int]) -> None:
    """Lets go of what `hold` gave."""
    while descriptors:
        os.close(descriptors.pop())


def _ports(config: Any) -> Iterator[str]:
    """Paths of the character devices in a configuration and those in its fields."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from _ports(value)
        elif "port" in item.name and isinstance(value, str) and _is_device(value):
            yield os.path.realpath(value)


def _is_device(path: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISCHR(os.stat(path).st_mode)
    return False
