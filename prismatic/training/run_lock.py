"""One writer per run: `<run_root_dir>/.<run_id>.lock` names the process that writes its folders, and goes when that process ends.

Two processes that write one run would delete each other's unfinished checkpoints. Three signs tell whether a writer that is named there
still lives, each where the one before says nothing:
    the kernel's lock on the file   which ends with the process; also between machines, where their file system knows such locks
    the process's entry             on this machine: its number and the moment when it started
    the time of the file            its writer renews it every few seconds; compared with that of a new file, so that clocks do not matter
A writer that was silent for long (a machine that slept) and finds another's name in its place stops before it writes again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from prismatic.policy.checkpoint.files import check_writable
from prismatic.training.distributed import Ranks, on_main
from prismatic.vla.datasets.locks import GONE_AFTER_S, TOUCHED_EVERY_S, Owner

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Writer(Owner):
    """The process that takes a run."""

    since: str = ""
    token: str = ""  # of this taking: one process may take a run twice

    @classmethod
    def this_process(cls) -> Writer:
        """This process, as it takes a run now."""
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(**asdict(Owner.this_process()), since=since, token=uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


@contextlib.contextmanager
def only_writer(run_dir: Path, ranks: Ranks) -> Iterator[RunLock | None]:
    """Holds the run of `run_dir` for these processes, by the main one; None on the others.

    Raises:
        ValueError: another process writes it, or nothing can be written there.
    """
    lock = RunLock(run_dir) if ranks.is_main else None
    try:
        on_main(lambda: lock.take() if lock is not None else None, ranks)
        yield lock
    finally:
        if lock is not None:
            lock.release()


class RunLock:
    """The right to write one run's folders."""

    def __init__(self, run_dir: Path, beat_s: float = TOUCHED_EVERY_S, silence_s: float = GONE_AFTER_S) -> None:
        self._run_dir, self._path = run_dir, run_dir.with_name(f".{run_dir.name}.lock")
        self._beat_s, self._silence_s = beat_s, silence_s
        self._own = Writer.this_process()
        self._descriptor: int | None = None
        self._made: list[Path] = []  # folders that exist for the lock alone
        self._ended = threading.Event()

    def take(self) -> None:
        """Returns once this process is the run's writer; looks on for a while where it cannot tell whether another one still is.

        Raises:
            ValueError: another process is, or the file cannot be written.
        """
        check_writable(self._run_dir)
        self._made = [folder for folder in (self._path.parent, *self._path.parent.parents) if not folder.exists()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            while self._descriptor is None:
                self._descriptor = self._try()
        except OSError as error:
            raise ValueError(f"{self._path} cannot be used ({error.strerror}); remove it if no other process writes this run") from error
        threading.Thread(target=self._beat, daemon=True).start()

    def check(self) -> None:
        """Returns if this process still is the writer.

        Raises:
            ValueError: another one has taken the run, because this one gave no sign of life.
        """
        if self._descriptor is None:
            return
        writer = _read(self._descriptor)
        if not self._is_in_place(self._descriptor) or writer != self._own:
            other = writer if writer != self._own and writer is not None else "somebody"
            raise ValueError(
                f"{other} has taken over {self._run_dir}, because this process gave no sign of life; it stops and writes nothing"
            )

    def release(self) -> None:
        """Lets others write; leaves no trace."""
        self._ended.set()
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                if self._is_in_place(descriptor) and _read(descriptor) == self._own:
                    self._path.unlink()
            os.close(descriptor)
        for folder in self._made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()

    def _try(self) -> int | None:
        """The open file, now with this process's name; None if it went away meanwhile."""
        try:
            descriptor, is_new = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            try:
                descriptor, is_new = os.open(self._path, os.O_RDWR), False
            except FileNotFoundError:
                return None
        try:
            is_ours = _lock(descriptor)
            if not is_new or is_ours is False:
                writer = _read(descriptor)
                if self._is_in_place(descriptor) and self._is_alive(descriptor, writer, is_ours):
                    raise ValueError(
                        f"run {self._run_dir.name!r} in {self._run_dir.parent} is written by {writer or 'another process'}; wait for it or "
                        "stop it, or give this run a name of its own with --run_id_note or --run_id_override"
                    )
                logger.info("taking over %s from %s, which has ended without releasing it", self._run_dir, writer or "a process")
            if self._is_in_place(descriptor):
                _write(descriptor, self._own)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _is_alive(self, descriptor: int, writer: Writer | None, is_ours: bool | None) -> bool:
        """Whether the writer named in the file still is; `is_ours`: whether the kernel gave us its lock, None if it knows none here."""
        if writer is not None and writer.is_near():
            return is_ours is False or not writer.is_gone()
        before = os.fstat(descriptor).st_mtime
        logger.info(
            "%s is named as the writer of %s; it counts as gone after %.0f s without a sign of life",
            *(writer or "another process", self._run_dir, self._silence_s),
        )
        while self._now() - before <= self._silence_s:
            time.sleep(min(1.0, self._beat_s))
            now = _time_of(self._path)
            if now != before:
                return now is not None
        return is_ours is False and not _lock(descriptor)  # a file server gives up the lock of a machine that is gone

    def _now(self) -> float:
        """The time by the clock that dates the lock file."""
        with tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=f"{self._path.name}.") as probe:
            return os.fstat(probe.fileno()).st_mtime

    def _is_in_place(self, descriptor: int) -> bool:
        """Whether the open file still is the one that others find."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _beat(self) -> None:
        """Renews the file's time until the end, or until another writer is named there."""
        while not self._ended.wait(self._beat_s):
            descriptor = self._descriptor
            if descriptor is None:
                return
            try:
                self.check()
                os.utime(descriptor)
            except ValueError as error:
                logger.error("%s", error)
                return
            except OSError as error:  # a file server that is away for a moment
                logger.debug("%s cannot be renewed: %s", self._path, error)


def _lock(descriptor: int) -> bool | None:
    """Whether the kernel's lock on the open file is now this process's, without its children; None if the file system has none."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _read(descriptor: int) -> Writer | None:
    """Who is named in the open file. It is never opened a second time: closing it would give up the kernel's lock."""
    try:
        return Writer(**json.loads(os.pread(descriptor, 10_000, 0)))
    except (ValueError, TypeError):
        return None


def _write(descriptor: int, writer: Writer) -> None:
    content = json.dumps(asdict(writer)).encode() + b"\n"
    os.pwrite(descriptor, content, 0)
    os.ftruncate(descriptor, len(content))
    os.fsync(descriptor)


def _time_of(path: Path) -> float | None:
    """When the file was last renewed, asked anew of a file server; None once it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None
