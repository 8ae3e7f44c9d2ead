"""One pass over a source -> a checked index, cached atomically, keyed by what it was made from.

Letters: M steps of all episodes, E episodes, A action dim, P proprio dim, C cameras.

The index holds everything but pixels: actions and proprio after the entry's transform, the place of every encoded image, every
instruction. It is a folder of plain .npy files, written episode by episode (building takes the same memory for any number of steps),
mapped into memory and so shared by all processes of a machine. Its key covers the
names, sizes and times of the source's files, the stored layout, the entry and the source code of the transform; a change of any
builds a new one. Several processes may ask at once: one builds, the others wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from tqdm import tqdm

from prismatic.vla.datasets.episodes import Episode, EpisodeSource, FrameReader, RawEpisode, TrajectoryTransform, standardize
from prismatic.vla.datasets.repairs import Repair, repairs_from_json
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry

logger = logging.getLogger(__name__)

FORMAT_VERSION = 3
CACHE_FOLDER = ".prismatic_index"  # in the data set's folder
_ARRAYS = ("actions", "proprio", "images", "instruction_ids", "episode_starts")


@dataclass(frozen=True)
class EpisodeIndex:
    """All episodes of one data set; episode e is steps episode_starts[e] : episode_starts[e + 1]."""

    key: str  # changes with everything that the index is made from
    files: tuple[Path, ...]
    reader: FrameReader  # decodes the references of `images`
    cameras: tuple[str, ...]  # the columns of `images`
    names: tuple[str, ...]  # where each episode lies: file in the data set's folder, and which of its episodes
    splits: dict[str, tuple[int, int]]  # split name -> first episode and the one after the last
    instructions: tuple[str, ...]
    actions: np.ndarray  # float32 [M, A], raw units
    proprio: np.ndarray  # float32 [M, P], raw units
    images: np.ndarray  # IMAGE_REF [M, C]
    instruction_ids: np.ndarray  # int32 [M], -1 throughout an episode without instruction
    episode_starts: np.ndarray  # int64 [E + 1]
    repairs: tuple[Repair, ...] = ()  # what the source left out or mended

    @property
    def num_episodes(self) -> int:
        return len(self.episode_starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [E]: steps per episode."""
        return np.diff(self.episode_starts)

    def episodes_of(self, split: str) -> np.ndarray:
        """int64: the numbers of the episodes of `split`, in file order, those without instruction included."""
        return np.arange(*self.splits[split])

    def is_labelled(self) -> np.ndarray:
        """bool [E]: True for episodes with an instruction."""
        return self.instruction_ids[self.episode_starts[:-1]] >= 0

    def steps_of(self, episodes: np.ndarray) -> np.ndarray:
        """int64: the numbers of all steps of `episodes`, one episode behind the other."""
        ranges = [np.arange(self.episode_starts[episode], self.episode_starts[episode + 1]) for episode in episodes]
        return np.concatenate(ranges) if ranges else np.zeros(0, np.int64)


def load_index(source: EpisodeSource, entry: DatasetEntry, transform: TrajectoryTransform, cache_dir: Path | None = None) -> EpisodeIndex:
    """The index of `source` under `entry`, from the cache where it is current, else built and cached.

    The cache lies in `cache_dir`, or else in the source's folder if that is writable, or else in $XDG_CACHE_HOME.

    Raises:
        ValueError: the data do not fit the entry or are damaged; the message names the episode.
    """
    key = index_key(source, entry, transform)
    parents = _cache_parents(source.folder, cache_dir)
    for parent in parents:
        if (parent / key).is_dir():
            return _read(parent / key, key, source)
    for parent in parents:
        try:
            with _lock(parent):
                if not (parent / key).is_dir():  # nobody built it while this process waited
                    _write(parent / key, source, entry, transform)
                return _read(parent / key, key, source)
        except OSError as error:  # read-only, full
            logger.info("no index cache in %s: %s", parent, error)
    logger.warning("the index of %s cannot be cached in %s; every process builds its own", source.folder, " or ".join(map(str, parents)))
    arrays = {name: _RowsInMemory() for name in _ARRAYS}
    description = _collect(source, entry, transform, arrays)
    return _to_index({name: rows.joined() for name, rows in arrays.items()}, description, key, source)


def index_key(source: EpisodeSource, entry: DatasetEntry, transform: TrajectoryTransform) -> str:
    """A short name that changes with everything that the index is made from."""
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
    described = json.dumps([FORMAT_VERSION, files, source.layout, repr(entry), source_of(transform)])
    return hashlib.sha256(described.encode()).hexdigest()[:24]


def source_of(function: Callable[..., Any]) -> str:
    """The source code of a function and of the functions of its package that it calls, directly or through others."""
    sources: dict[str, str] = {}
    pending = [function]
    while pending:
        current = inspect.unwrap(pending.pop())
        name = f"{current.__module__}.{current.__qualname__}"
        if name in sources:
            continue
        sources[name] = inspect.getsource(current)
        called = (current.__globals__.get(global_name) for global_name in current.__code__.co_names)
        pending += [other for other in called if inspect.isfunction(other) and _package(other) == _package(current)]
    return "\n".join(sources[name] for name in sorted(sources))


def _package(function: Callable[..., Any]) -> str:
    return function.__module__.rpartition(".")[0] or function.__module__


def _cache_parents(folder: Path, cache_dir: Path | None) -> list[Path]:
    if cache_dir is not None:
        return [cache_dir]
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [folder / CACHE_FOLDER, user_cache / "prismatic" / "index"]


@contextlib.contextmanager
def _lock(parent: Path) -> Iterator[None]:
    """Holds the cache folder for this process; others wait, across processes and (where the file system locks) machines."""
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that builds the index in %s", parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _standard_episodes(source: EpisodeSource, entry: DatasetEntry, transform: TrajectoryTransform) -> Iterator[tuple[RawEpisode, Episode]]:
    """(episode as recorded, checked), in the order of the files.

    Raises:
        ValueError: an episode does not fit the entry or its predecessors, or there is none.
    """
    action_dim = None
    with tqdm(total=source.num_episodes, desc=f"indexing {source.folder}", unit="episode", delay=2) as progress:
        for raw in source.episodes():
            episode = standardize(raw, entry, transform)
            if len(episode.actions) == 0:
                raise ValueError(f"{raw.name}: the episode has no steps; leave it out of the data set")
            if action_dim not in (None, episode.actions.shape[1]):
                raise ValueError(f"{raw.name}: actions have {episode.actions.shape[1]} dimensions, earlier episodes have {action_dim}")
            action_dim = episode.actions.shape[1]
            yield raw, episode
            progress.update()
    if action_dim is None:
        raise ValueError(f"{source.folder} holds no episodes; record some, or copy the data set again")


class _Rows(Protocol):
    """An array that grows along its first axis."""

    def append(self, rows: np.ndarray) -> None:
        """Adds `rows` at the end."""
        ...


class _RowsInMemory:
    """For a machine without a place for a cache."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def append(self, rows: np.ndarray) -> None:
        self._parts.append(rows)

    def joined(self) -> np.ndarray:
        """All rows."""
        return np.concatenate(self._parts)


class _RowsInFile:
    """An .npy file. numpy pads its header so that the number of rows in it can be corrected at the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._num_rows = file, 0
        self._header: dict[str, Any] = {}

    def append(self, rows: np.ndarray) -> None:
        if not self._header:
            self._header = {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False, "shape": rows.shape}
            np.lib.format.write_array_header_1_0(self._file, self._header)
        self._file.write(rows.tobytes())
        self._num_rows += len(rows)

    def finish(self) -> None:
        """Corrects the header."""
        first_row = self._file.tell() - self._num_rows * self._bytes_per_row
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, {**self._header, "shape": (self._num_rows, *self._header["shape"][1:])})
        assert self._file.tell() == first_row, "numpy no longer pads its header for growth"
        self._file.seek(0, os.SEEK_END)

    @property
    def _bytes_per_row(self) -> int:
        return np.dtype(np.lib.format.descr_to_dtype(self._header["descr"])).itemsize * math.prod(self._header["shape"][1:])


def _collect(source: EpisodeSource, entry: DatasetEntry, transform: TrajectoryTransform, arrays: Mapping[str, _Rows]) -> dict[str, Any]:
    """Appends every episode to the arrays of the index; the description (json values)."""
    splits: dict[str, tuple[int, int]] = {}
    numbers: dict[str, int] = {}
    names: list[str] = []
    num_steps = 0
    arrays["episode_starts"].append(np.zeros(1, np.int64))
    for number, (raw, episode) in enumerate(_standard_episodes(source, entry, transform)):
        names.append(raw.name.removeprefix(f"{source.folder}{os.sep}"))
        for text in episode.instructions:
            if text:
                numbers.setdefault(text, len(numbers))
        for name in ("actions", "proprio", "images"):
            arrays[name].append(getattr(episode, name))
        arrays["instruction_ids"].append(np.array([numbers.get(text, -1) for text in episode.instructions], np.int32))
        num_steps += len(episode.actions)
        arrays["episode_starts"].append(np.array([num_steps], np.int64))
        splits[raw.split] = (splits.get(raw.split, (number, 0))[0], number + 1)
    return {
        "cameras": list(entry.cameras),
        "names": names,
        "splits": splits,
        "instructions": list(numbers),
        "repairs": source.repairs.as_json(),
    }


def _write(folder: Path, source: EpisodeSource, entry: DatasetEntry, transform: TrajectoryTransform) -> None:
    """Writes the index beside its final place and renames it, so that `folder` is complete whenever it exists."""
    temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        with contextlib.ExitStack() as stack:
            arrays = {name: _RowsInFile(stack.enter_context((temporary / f"{name}.npy").open("wb"))) for name in _ARRAYS}
            description = _collect(source, entry, transform, arrays)
            for rows in arrays.values():
                rows.finish()
        (temporary / "description.json").write_text(json.dumps(description))
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(folder: Path, key: str, source: EpisodeSource) -> EpisodeIndex:
    arrays = {name: _load(folder / f"{name}.npy") for name in _ARRAYS}
    return _to_index(arrays, json.loads((folder / "description.json").read_text()), key, source)


def _load(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode=None if path.stat().st_size < 4096 else "r", allow_pickle=False)  # empty arrays cannot be mapped
    array.setflags(write=False)
    return array.view(np.ndarray)  # still mapped; np.memmap's own indexing costs more than what it returns


def _to_index(arrays: dict[str, np.ndarray], description: dict[str, Any], key: str, source: EpisodeSource) -> EpisodeIndex:
    return EpisodeIndex(
        key=key,
        files=source.files,
        reader=source.frame_reader(),
        cameras=tuple(description["cameras"]),
        names=tuple(description["names"]),
        splits={name: (first, last) for name, (first, last) in description["splits"].items()},
        instructions=tuple(description["instructions"]),
        repairs=repairs_from_json(description["repairs"]),
        **arrays,
    )
