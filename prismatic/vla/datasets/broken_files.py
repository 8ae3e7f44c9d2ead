"""Why a file cannot be read: absent, empty, a pointer of Git LFS, damaged; and what to do about it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_DISK_FAILS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENXIO)
_POINTER = b"version https://git-lfs.github.com/spec/"
_LARGEST_POINTER = 1024  # bytes; Git LFS writes about 130


def file_problem(path: Path) -> str | None:
    """Why `path` cannot hold data, with what to do about it; None if its size and first bytes look sound."""
    try:
        size = path.stat().st_size
    except OSError:
        return "is absent: download it"
    if size == 0:
        return "is empty: download it again"
    if size <= _LARGEST_POINTER and is_pointer(path):
        return f"is a Git LFS pointer of {size} bytes in place of the file: run git lfs pull, or download the data set with hf download"
    return None


def is_pointer(path: Path) -> bool:
    """Whether Git LFS left a pointer where the file should be."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def unreadable(path: Path, kind: str, error: Exception) -> ValueError:
    """The error for a file that is there but cannot be read as `kind`."""
    problem = file_problem(path) or f"cannot be read as {kind} ({str(error).splitlines()[0]}): it is damaged or cut off, download it again"
    return ValueError(f"{path} {problem}")


def is_of_the_disk(error: Exception) -> bool:
    """Whether a disk or a file server failed, which says nothing about the episode; libraries of file formats only quote the system."""
    return any(os.strerror(code) in str(error) for code in _DISK_FAILS)
