"""One process at a time, on any file system.

flock where the file system offers it. Some network and FUSE file systems refuse it (ENOSYS, ENOLCK, EOPNOTSUPP, EINVAL: Lustre without
`-o flock`, object stores mounted as folders); there a second file, made with O_EXCL, names the process that holds the lock. That process
touches it while it lives. If it dies, its host sees that its number is free, and every other that the file is no longer touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

TOUCHED_EVERY_S = 10.0
GONE_AFTER_S = 120.0  # without a touch
_POLL_S = 0.2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """A process, on whichever machine."""

    host: str
    pid: int
    namespace: str = ""  # of process numbers: containers may share a host's name and not its numbers
    started: str = ""  # in the kernel's ticks: numbers are used again

    @classmethod
    def this_process(cls) -> Owner:
        """This one."""
        try:
            namespace = os.readlink("/proc/self/ns/pid")
        except OSError:
            namespace = ""
        return cls(socket.gethostname(), os.getpid(), namespace, _started(os.getpid()))

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """The one that `path` names; None if it names none."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, file: int) -> None:
        """Into an open, empty file."""
        os.write(file, json.dumps(asdict(self)).encode())

    def is_gone(self) -> bool:
        """Whether the process has certainly ended; one on another machine may always be running."""
        if not self.is_near():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # somebody else's
            pass
        return bool(self.started) and _started(self.pid) not in (self.started, "")

    def is_near(self) -> bool:
        """Whether it counts processes as this one does: on the same machine, in the same container."""
        here = Owner.this_process()
        return (self.host, self.namespace) == (here.host, here.namespace)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _started(pid: int) -> str:
    """When the process started, in the kernel's ticks; "" if there is none of that number, or no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class LockedError(Exception):
    """Another process holds the lock; the text names it."""


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds the lock `path`. If another process does, waits, after one call of `on_wait` with that process's name.

    Raises:
        LockedError: another process holds it and there is no `on_wait`.
        OSError: `path` cannot be written.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if _flock(file, path, on_wait):
            os.ftruncate(file, 0)
            Owner.this_process().write(file)
            yield
        else:
            with _held(path.with_name(f"{path.name}.held"), on_wait):
                yield
    finally:
        os.close(file)


def _flock(file: int, path: Path, on_wait: Callable[[str], None] | None) -> bool:
    """True once the lock is held; False where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        name = str(Owner.read(path) or "another process")
        if on_wait is None:
            raise LockedError(name) from None
        on_wait(name)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        logger.debug("%s: no flock here (%s), using a file that names its owner", path, error)
        return False
    return True


@contextlib.contextmanager
def _held(path: Path, on_wait: Callable[[str], None] | None) -> Iterator[None]:
    """Holds `path` by having made it."""
    has_said_so = False
    while not _make(path):
        owner = Owner.read(path)
        name = str(owner or "another process")
        if _is_left_behind(path, owner):
            _take_away(path, owner)
        elif on_wait is None:
            raise LockedError(name)
        else:
            if not has_said_so:
                on_wait(name)
            has_said_so = True
            time.sleep(_POLL_S)
    ended = threading.Event()
    toucher = threading.Thread(target=_keep_touching, args=(path, ended), daemon=True)
    toucher.start()
    try:
        yield
    finally:
        ended.set()
        toucher.join()
        if Owner.read(path) == Owner.this_process():
            path.unlink(missing_ok=True)


def _is_left_behind(path: Path, owner: Owner | None) -> bool:
    """Whether the maker of `path` is gone, as far as can be known."""
    if owner is not None and owner.is_gone():
        return True
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        probe.touch()  # dated by the same clock, which may be a file server's
        return probe.stat().st_mtime - path.stat().st_mtime > GONE_AFTER_S
    except OSError:  # the lock is gone, or nothing can be written; the next look will tell
        return False
    finally:
        probe.unlink(missing_ok=True)


def _make(path: Path) -> bool:
    """Whether `path` was made here; False if it is there already."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        Owner.this_process().write(file)
    finally:
        os.close(file)
    return True


def _take_away(path: Path, owner: Owner | None) -> None:
    """Removes what a process that is gone left behind, and nothing that another one has made meanwhile."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        os.rename(path, aside)
    except OSError:  # another process was faster
        return
    if Owner.read(aside) != owner:
        with contextlib.suppress(OSError):
            os.link(aside, path)
    else:
        logger.info("%s was left behind by %s, which is gone", path, owner or "a process")
    aside.unlink(missing_ok=True)


def _keep_touching(path: Path, ended: threading.Event) -> None:
    while not ended.wait(TOUCHED_EVERY_S):
        with contextlib.suppress(OSError):
            os.utime(path)
