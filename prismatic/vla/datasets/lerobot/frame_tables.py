"""When the frames of video files are shown: read from each file once, kept small, and stored for all processes and later runs.

Letters: F frames of a file, K key frames, R runs.

The times of frames and key frames are mostly evenly spaced, so a sequence is kept as runs of equal steps: a few numbers for two hours of
video, where arrays take 24 bytes a frame in every process. Demuxing a file again in every worker would read all its bytes, too. The tables
of a data set are one file in the user's cache folder, never in the data set's own, which `push_to_hub` would upload.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import tempfile
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.broken_files import file_problem, unreadable
from prismatic.vla.datasets.user_cache import user_cache

logger = logging.getLogger(__name__)

_FORMAT_VERSION = 2
_MAX_OPEN_TABLES = 64  # with their arrays of seconds


class Runs:
    """A sequence of int64 in pieces of equal steps."""

    def __init__(self, pieces: np.ndarray, length: int) -> None:
        """`pieces` int64 [R, 3]: the place of each piece's first value, that value, and the step from each value to the next."""
        self.pieces, self._length = pieces, length

    @staticmethod
    def of(values: np.ndarray) -> Runs:
        """The runs of int64 [F]."""
        steps = np.diff(values) if len(values) > 1 else np.zeros(len(values), np.int64)
        starts = np.flatnonzero(np.append(True, steps[1:] != steps[:-1])[: len(steps)])
        return Runs(np.stack([starts, values[starts], steps[starts]], axis=1).astype(np.int64), len(values))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> int:
        start, value, step = self.pieces[int(np.searchsorted(self.pieces[:, 0], place, side="right")) - 1]
        return int(value + (place - start) * step)

    def last_not_above(self, value: int) -> int:
        """The place of the last value of an ascending sequence that is not above `value`; -1 if all are."""
        piece = int(np.searchsorted(self.pieces[:, 1], value, side="right")) - 1
        if piece < 0:
            return -1
        start, first, step = (int(number) for number in self.pieces[piece])
        end = int(self.pieces[piece + 1, 0]) if piece + 1 < len(self.pieces) else self._length
        return min(start + ((value - first) // step if step else 0), end - 1)

    def expand(self) -> np.ndarray:
        """int64 [F]: all values."""
        counts = np.diff(np.append(self.pieces[:, 0], self._length))
        places = np.arange(self._length)
        starts, values, steps = (np.repeat(column, counts) for column in self.pieces.T)
        return values + (places - starts) * steps


@dataclass(frozen=True)
class FrameTable:
    """The times of the F frames of a video file, in the order in which they are shown."""

    timestamps: Runs  # [F], ascending, in units of the stream
    unit: Fraction  # seconds
    keys: Runs  # [K]: the numbers of the key frames
    key_positions: Runs  # [K]: the time stamp to seek to for each key frame

    def __len__(self) -> int:
        return len(self.timestamps)

    @cached_property
    def seconds(self) -> np.ndarray:
        """float64 [F]."""
        return self.timestamps.expand() * float(self.unit)


def read_frame_table(path: Path) -> FrameTable:
    """The frames of the first video stream, from the headers of its packets: nothing is decoded.

    Raises:
        ValueError: not a video file, or no frames in it; the message names the file.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            unit, by_dts = Fraction(stream.time_base or 1), not has_index(container)
            packets = [
                (packet.pts, packet.dts if by_dts and packet.dts is not None else packet.pts, packet.is_keyframe, not packet.is_discard)
                for packet in container.demux(stream)
                if packet.pts is not None
            ]
    except (av.error.FFmpegError, IndexError) as error:
        raise unreadable(path, "a video", error) from error
    rows = np.array(packets, np.int64).reshape(-1, 4)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    shown = rows[rows[:, 3] == 1, 0]
    if not len(shown):
        raise ValueError(f"{path} has no frames: it is damaged or cut off, download it again")
    keys = rows[rows[:, 2] == 1]
    return FrameTable(Runs.of(shown), unit, Runs.of(np.searchsorted(shown, keys[:, 0])), Runs.of(keys[:, 1]))


def has_index(container: Any) -> bool:
    """Whether an open file (mp4, mkv) finds its key frames exactly, by when they are shown; others by when they are decoded, or nearly."""
    return not {"mp4", "matroska"}.isdisjoint(container.format.name.split(","))


class FrameTables:
    """The tables of the videos in one folder."""

    def __init__(self, folder: Path) -> None:
        """Opens what earlier runs have stored."""
        self._folder = folder.resolve()
        self._stored = _Stored.read(_store_path(self._folder))
        self._new: dict[str, tuple[tuple[int, int], FrameTable]] = {}
        self._recent: OrderedDict[Path, FrameTable] = OrderedDict()

    def __getitem__(self, path: Path) -> FrameTable:
        """The frames of `path`; read from the file only if no run has done so since it was written.

        Raises:
            ValueError: absent, a pointer, not a video, without frames; the message names the file.
        """
        table = self._recent.pop(path, None)
        if table is None:
            table = self._find(path)
            while len(self._recent) >= _MAX_OPEN_TABLES:
                self._recent.popitem(last=False)
        self._recent[path] = table
        return table

    def save(self) -> None:
        """Stores the new tables for other processes and later runs; one that cannot be written is only a loss of time."""
        if not self._new:
            return
        stored = self._stored.joined(self._new)
        try:
            stored.write(_store_path(self._folder))
        except OSError as error:
            logger.info("the frame tables of %s are not stored: %s", self._folder, error)
            return
        self._stored, self._new = stored, {}

    def _find(self, path: Path) -> FrameTable:
        problem = file_problem(path)
        if problem is not None:
            raise ValueError(f"{path} {problem}")
        name, stat = os.path.relpath(path.absolute(), self._folder), path.stat()
        stamp = stat.st_size, stat.st_mtime_ns
        found = self._new.get(name)
        if found is not None and found[0] == stamp:
            return found[1]
        table = self._stored.table(name, stamp)
        if table is None:
            table = read_frame_table(path)
            self._new[name] = stamp, table
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recent": OrderedDict()}


@dataclass(frozen=True)
class _Stored:
    """Many tables in three arrays."""

    names: dict[str, int]  # file, relative to the data set's folder -> its row in `heads`
    heads: np.ndarray  # int64 [files, 10]: size, mtime_ns, unit (2), F, K, first run, number of runs of timestamps, keys, positions
    runs: np.ndarray  # int64 [R, 3]

    @staticmethod
    def read(path: Path) -> _Stored:
        """Nothing, if there is none or it is damaged."""
        try:
            with np.load(path, allow_pickle=False) as content:
                names = content["names"].tobytes().decode().split("\0")
                return _Stored({name: row for row, name in enumerate(names)}, content["heads"], content["runs"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return _Stored({}, np.zeros((0, 10), np.int64), np.zeros((0, 3), np.int64))

    def table(self, name: str, stamp: tuple[int, int]) -> FrameTable | None:
        """The table of a file that has not changed since."""
        row = self.names.get(name)
        if row is None or tuple(self.heads[row, :2]) != stamp:
            return None
        numerator, denominator, num_frames, num_keys, first, *counts = (int(value) for value in self.heads[row, 2:])
        ends = np.cumsum([first, *counts])
        parts = [self.runs[start:end] for start, end in itertools.pairwise(ends)]
        timestamps, keys, positions = (Runs(part, length) for part, length in zip(parts, (num_frames, num_keys, num_keys), strict=True))
        return FrameTable(timestamps, Fraction(numerator, denominator), keys, positions)

    def joined(self, new: dict[str, tuple[tuple[int, int], FrameTable]]) -> _Stored:
        """These and `new`, which replace those of the same files."""
        kept = [name for name in self.names if name not in new]
        heads, runs, num_runs = [], [], 0
        for name in (*kept, *new):
            stamp, table = new[name] if name in new else _known(self, name)
            parts = [sequence.pieces for sequence in (table.timestamps, table.keys, table.key_positions)]
            unit = table.unit.numerator, table.unit.denominator
            heads.append([*stamp, *unit, len(table), len(table.keys), num_runs, *(len(part) for part in parts)])
            runs += parts
            num_runs += sum(len(part) for part in parts)
        names = {name: row for row, name in enumerate((*kept, *new))}
        return _Stored(names, np.array(heads, np.int64), np.concatenate(runs))

    def write(self, path: Path) -> None:
        """Complete or not at all.

        Raises:
            OSError: it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".building-", suffix=".npz", delete=False) as file:
            try:
                names = np.frombuffer("\0".join(self.names).encode(), np.uint8)
                np.savez(file, names=names, heads=self.heads, runs=self.runs)
            except BaseException:
                os.unlink(file.name)
                raise
        os.replace(file.name, path)


def _known(stored: _Stored, name: str) -> tuple[tuple[int, int], FrameTable]:
    size, mtime = (int(value) for value in stored.heads[stored.names[name], :2])
    table = stored.table(name, (size, mtime))
    assert table is not None
    return (size, mtime), table


def _store_path(folder: Path) -> Path:
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:24]
    return user_cache() / "frame_tables" / f"{digest}.v{_FORMAT_VERSION}.npz"
