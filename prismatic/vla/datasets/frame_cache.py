"""Frames of a camera as the policy takes them (decoded, resized), kept once and read back by number ever after.

Letters: M steps of a data set, S image side.

Decoding and resizing come before every random step and always give the same pixels, and a frame of 224 px takes 152 KB: a later epoch,
or a later run, reads it in a fraction of the time of decoding it (above all out of a video). A cache is one sparse file of M equal
records per camera, filled by whichever process needs a frame first:

    on disk      --frame_cache_dir, for every process and run; the file's name says data, camera and S, so that it cannot be mistaken
    in memory    without it, for sets that fit DatasetOptions.frame_cache_bytes; shared with forked workers

A record is a checksum and the pixels, written in one call. There are no locks and nothing to repair: a record that is absent, torn by
a crash or being written does not match its checksum, and the frame is decoded again. Records are read with pread, not mapped, so that
they count as the system's file cache and not as memory of the process.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.constants import file_part
from prismatic.vla.datasets.episodes import FrameError
from prismatic.vla.datasets.index import EpisodeIndex
from prismatic.vla.images import resize_lanczos3_into

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
SUFFIX, NOTE_SUFFIX = ".frames", ".json"  # of a file, and of the note beside it
_CHECKSUM_BYTES = 8
_BLOCK = 4096  # records start at blocks of the file system
_MARK = np.uint64(0x9E3779B97F4A7C15)  # tells a black frame from an absent record
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def record_bytes(image_size: int) -> int:
    """The size of one frame in a cache."""
    return -(-(_CHECKSUM_BYTES + image_size * image_size * 3) // _BLOCK) * _BLOCK


class FrameCache:
    """The M frames uint8 [S, S, 3] of one camera, in a file (`path`) or in memory (None)."""

    def __init__(self, num_frames: int, image_size: int, path: Path | None = None) -> None:
        """Opens the file, creating it if need be; one that may not be written is only read.

        Raises:
            OSError: the file can be neither opened nor made.
        """
        self.num_frames, self.image_size, self.path = num_frames, image_size, path
        self._record_bytes = record_bytes(image_size)
        self._descriptor, self.is_writable = _open(path)
        if self.is_writable and os.fstat(self._descriptor).st_size < self.num_bytes:
            os.ftruncate(self._descriptor, self.num_bytes)

    @property
    def num_bytes(self) -> int:
        """What the cache takes when it is full."""
        return self.num_frames * self._record_bytes

    @property
    def num_bytes_taken(self) -> int:
        """What it takes now."""
        return os.fstat(self._descriptor).st_blocks * 512

    def read_into(self, number: int, frame: np.ndarray) -> bool:
        """Fills `frame` [S, S, 3] if the cache holds it; else False, and the contents of `frame` are to be overwritten."""
        checksum = np.zeros(1, np.uint64)
        num_read = os.preadv(self._descriptor, [checksum.data, frame.data], number * self._record_bytes)
        return num_read == _CHECKSUM_BYTES + frame.nbytes and checksum[0] == _checksum(frame)

    def is_begun(self, number: int) -> bool:
        """Whether a record is there; `read_into` finds out if it is whole."""
        return any(os.pread(self._descriptor, _CHECKSUM_BYTES, number * self._record_bytes))

    def write(self, number: int, frame: np.ndarray) -> None:
        """Keeps `frame`; processes that write the same one at once write the same bytes. A full disk ends the writing, with a warning."""
        if not self.is_writable:
            return
        record = np.array([_checksum(frame)]).tobytes() + frame.tobytes()
        try:
            num_written = os.pwrite(self._descriptor, record, number * self._record_bytes)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            num_written = 0
        if num_written < len(record):
            self.is_writable = False
            logger.warning("no space left for the frame cache %s: further frames are decoded every time; free some space", self.path)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        return FrameCache, (self.num_frames, self.image_size, self.path)  # one in memory starts empty in a spawned process


def _open(path: Path | None) -> tuple[int, bool]:
    """(descriptor, whether it may be written)."""
    if path is None:
        if hasattr(os, "memfd_create"):
            return os.memfd_create("frames"), True
        with tempfile.TemporaryFile() as file:  # no such call (macOS): a file without a name
            return os.dup(file.fileno()), True
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666), True
    except OSError:
        if not path.is_file():
            raise
        return os.open(path, os.O_RDONLY), False


def _checksum(frame: np.ndarray) -> np.uint64:
    """Of the pixels: the sum of their words, which takes microseconds. It has to notice pages that never reached the disk, not forgery."""
    values = frame.reshape(-1)
    words = values[: len(values) // 8 * 8].view(np.uint64)
    return words.sum(dtype=np.uint64) + values[len(words) * 8 :].sum(dtype=np.uint64) ^ _MARK


class CachedFrames:
    """The frames of one data set through its caches; decodes what they lack."""

    def __init__(self, index: EpisodeIndex, cameras: Sequence[str], image_size: int, caches: Sequence[FrameCache]) -> None:
        """`caches` has one for each of the N `cameras`, or is empty: nothing is kept."""
        self.index, self.image_size, self.caches = index, image_size, list(caches)
        self.columns = [index.cameras.index(camera) for camera in cameras]

    def recorded(self, step: int) -> list[np.ndarray]:
        """uint8 [height, width, 3] of each camera: decoded, as recorded.

        Raises:
            FrameError: one cannot be decoded.
        """
        return [self.index.frame(step, column) for column in self.columns]

    def read(self, step: int) -> np.ndarray:
        """uint8 [N, S, S, 3]: decoded and resized.

        Raises:
            FrameError: one cannot be decoded, and no cache has it.
        """
        frames = np.empty((len(self.columns), self.image_size, self.image_size, 3), np.uint8)
        for camera, frame in enumerate(frames):
            if not self.caches or not self.caches[camera].read_into(step, frame):
                self._fill(step, camera, frame)
        return frames

    def lacks_any(self, steps: Sequence[int] | np.ndarray, camera: int) -> bool:
        """Whether the cache of `camera` could keep one of `steps` that it does not have."""
        return self.caches[camera].is_writable and not all(self.caches[camera].is_begun(int(step)) for step in steps)

    def _fill(self, step: int, camera: int, frame: np.ndarray) -> None:
        resize_lanczos3_into(frame, self.index.frame(step, self.columns[camera]))
        if self.caches:
            self.caches[camera].write(step, frame)

    def keep(self, steps: Sequence[int] | np.ndarray, camera: int) -> tuple[int, list[str]]:
        """Decodes, in order, those of `steps` that the cache of `camera` lacks; (how many are kept, why others cannot be)."""
        frame = np.empty((self.image_size, self.image_size, 3), np.uint8)
        num_kept, damaged = 0, []
        for step in map(int, steps):
            if self.caches[camera].is_writable and not self.caches[camera].is_begun(step):
                try:
                    self._fill(step, camera, frame)
                    num_kept += 1
                except FrameError as error:
                    damaged.append(str(error))
        return num_kept, damaged


def open_frame_caches(
    indexes: Sequence[tuple[str, EpisodeIndex]], cameras: Sequence[str], image_size: int, folder: Path | None, max_memory_bytes: int
) -> list[list[FrameCache]]:
    """One cache per data set (name, index) and camera, in `folder` or in memory; empty lists where nothing is kept.

    Raises:
        ValueError: the folder cannot be written, or has too little space for all frames.
    """
    num_bytes = sum(len(index.actions) for _, index in indexes) * len(cameras) * record_bytes(image_size)
    if folder is None:
        if not 0 < num_bytes <= max_memory_bytes:
            return [[] for _ in indexes]
        return [[FrameCache(len(index.actions), image_size) for _ in cameras] for _, index in indexes]
    folder = folder.expanduser()
    with _named_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        opened = [
            [FrameCache(len(index.actions), image_size, folder / cache_name(name, index, camera, image_size)) for camera in cameras]
            for name, index in indexes
        ]
        _leave_notes(folder, indexes, cameras, image_size)
    _check_space(folder, [cache for caches in opened for cache in caches])
    return opened


def cache_name(dataset: str, index: EpisodeIndex, camera: str, image_size: int) -> str:
    """The file of a camera; changes with everything that its pixels are made from, and with nothing else."""
    key = index.frame_keys[index.cameras.index(camera)]
    return f"{file_part(dataset)}-{key}-{camera}-{image_size}.v{FORMAT_VERSION}{SUFFIX}"


def _leave_notes(folder: Path, indexes: Sequence[tuple[str, EpisodeIndex]], cameras: Sequence[str], image_size: int) -> None:
    """Writes beside each file what it belongs to, for `caches`."""
    for name, index in indexes:
        for camera in cameras:
            path = folder / f"{cache_name(name, index, camera, image_size)}{NOTE_SUFFIX}"
            if path.exists() or not os.access(folder, os.W_OK):
                continue
            note = {**index.about, "dataset": name, "camera": camera, "image_size": image_size}
            note["frame_key"] = index.frame_keys[index.cameras.index(camera)]
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(json.dumps(note) + "\n")
            temporary.replace(path)


@contextmanager
def _named_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"--frame_cache_dir {folder} cannot be used ({error}); name a folder that you may write") from error


def _check_space(folder: Path, caches: Sequence[FrameCache]) -> None:
    needed, taken = sum(cache.num_bytes for cache in caches), sum(cache.num_bytes_taken for cache in caches)
    free = shutil.disk_usage(folder).free
    frames = sum(cache.num_frames for cache in caches)
    logger.info("frame cache in %s: %s frames, %.2f GB (%.2f GB are there); %.2f GB free", folder, f"{frames:,}", *_gb(needed, taken, free))
    to_write = sum(max(cache.num_bytes - cache.num_bytes_taken, 0) for cache in caches if cache.is_writable)
    if to_write > free:
        raise ValueError(
            "--frame_cache_dir {}: {:,} frames need {:.2f} GB more, {:.2f} GB are free; free some space, name a folder on another disk, "
            "or leave the flag out".format(folder, frames, *_gb(to_write, free))
        )


def _gb(*num_bytes: int) -> list[float]:
    return [value / 1e9 for value in num_bytes]
