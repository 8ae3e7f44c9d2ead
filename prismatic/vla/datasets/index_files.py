"""How an index lies on disk: one file of plain rows per array, and description.json, which says how many there are.

Letters: M steps, E episodes, A action dim, P proprio dim, C cameras.

    actions.bin           float32 [M, A]
    proprio.bin           float32 [M, P]
    images.bin            IMAGE_REF [M, C]
    instruction_ids.bin   int32 [M]
    commanders.bin        int8 [M]
    episode_starts.bin    int64 [E + 1]

Rows are appended episode by episode, so that building takes the same memory for any number of steps. They are read by mapping the files,
which all processes of a machine share. The folder is written under another name and renamed when it is complete; files whose size is not
what the description says were cut off (a crash of the machine, a full quota) and count as absent.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from prismatic.vla.datasets.episodes import IMAGE_REF
from prismatic.vla.datasets.locks import Owner

DTYPES = {
    "actions": np.dtype("<f4"),
    "proprio": np.dtype("<f4"),
    "images": IMAGE_REF,
    "instruction_ids": np.dtype("<i4"),
    "commanders": np.dtype("i1"),
    "episode_starts": np.dtype("<i8"),
}
_DESCRIPTION, _OWNER = "description.json", "owner.json"
UNFINISHED = ".building-"


class Rows(Protocol):
    """An array that grows along its first axis."""

    def append(self, rows: np.ndarray) -> None:
        """Adds `rows`, all of one width, at the end."""
        ...


class RowsInMemory:
    """For a machine without a place for a cache."""

    def __init__(self, name: str) -> None:
        self._dtype = DTYPES[name]
        self._parts: list[np.ndarray] = []

    def append(self, rows: np.ndarray) -> None:
        assert rows.dtype == self._dtype
        self._parts.append(rows)

    def joined(self) -> np.ndarray:
        """All rows."""
        return np.concatenate(self._parts)


class _RowsInFile:
    """The bytes of all rows, one behind the other."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self._dtype, self._file = DTYPES[name], file
        self._num_rows = 0
        self._width: tuple[int, ...] | None = None

    def append(self, rows: np.ndarray) -> None:
        self._width = self._width or rows.shape[1:]
        assert (rows.dtype, rows.shape[1:]) == (self._dtype, self._width), "rows of one array have one width"
        self._file.write(rows.tobytes())
        self._num_rows += len(rows)

    def finish(self) -> list[int]:
        """The shape, once everything is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return [self._num_rows, *(self._width or ())]


def write_index(folder: Path, build: Callable[[Mapping[str, Rows]], dict[str, Any]]) -> None:
    """Makes `folder` of what `build` appends to the arrays and of the description (json values) that it returns: complete or not at all.

    Raises:
        OSError: it cannot be written.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{socket.gethostname()}-{os.getpid()}-", dir=folder.parent))
    try:
        with (temporary / _OWNER).open("wb") as file:
            Owner.this_process().write(file.fileno())
        with contextlib.ExitStack() as stack:
            arrays = {name: _RowsInFile(name, stack.enter_context((temporary / f"{name}.bin").open("wb"))) for name in DTYPES}
            description = build(arrays)
            description["shapes"] = {name: rows.finish() for name, rows in arrays.items()}
        with (temporary / _DESCRIPTION).open("w") as text:
            json.dump(description, text)
            text.flush()
            os.fsync(text.fileno())
        (temporary / _OWNER).unlink()
        temporary.chmod(0o755)
        _put(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(temporary: Path, folder: Path) -> None:
    """Renames; another process may have put the same there, and what was cut off makes room."""
    try:
        temporary.rename(folder)
    except OSError:
        if read_index(folder) is not None:
            return
        folder.rename(temporary / "cut_off")
        temporary.rename(folder)
        shutil.rmtree(folder / "cut_off", ignore_errors=True)


def read_description(folder: Path) -> dict[str, Any] | None:
    """What description.json says; None if there is none that can be read."""
    try:
        return json.loads((folder / _DESCRIPTION).read_text())
    except (OSError, ValueError):
        return None


def read_index(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """(arrays, description), None if there is none, or not a whole one."""
    description = read_description(folder)
    if description is None:
        return None
    try:
        shapes = {name: tuple(description["shapes"][name]) for name in DTYPES}
        arrays = {name: _map(folder / f"{name}.bin", DTYPES[name], shape) for name, shape in shapes.items()}
    except (OSError, ValueError, KeyError):
        return None
    return arrays, description


def _map(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The rows in `path`, read-only; small files are read, since an empty one cannot be mapped.

    Raises:
        ValueError: the file has another size.
    """
    if path.stat().st_size != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{path} was cut off")
    if path.stat().st_size < 4096:
        array = np.frombuffer(path.read_bytes(), dtype).reshape(shape)
    else:
        array = np.memmap(path, dtype, "r", shape=shape).view(np.ndarray)  # np.memmap's own indexing costs more than what it returns
    array.setflags(write=False)
    return array


def unfinished(parent: Path) -> Iterator[tuple[Path, Owner | None]]:
    """What processes are building in `parent`, or were when they were killed, and which processes those are."""
    for folder in sorted(parent.glob(f"{UNFINISHED}*")):
        yield folder, Owner.read(folder / _OWNER)


def remove_left_behind(parent: Path) -> list[tuple[Path, Owner]]:
    """Removes what processes of this machine that are gone were building in `parent`; what that was."""
    gone = [(folder, owner) for folder, owner in unfinished(parent) if owner is not None and owner.is_gone()]
    for folder, _ in gone:
        shutil.rmtree(folder, ignore_errors=True)
    return gone
