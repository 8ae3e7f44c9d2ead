"""One pass over a source -> a checked index, cached atomically, keyed by what it was made from.

Letters: M steps of all episodes, E episodes, A action dim, P proprio dim, C cameras.

The index holds everything but pixels: actions and proprio after the entry's transform, the place of every encoded image, every
instruction (`index_building`). It is a folder of plain files (`index_files`), mapped into memory and so shared by all processes of a
machine. Its key covers the names, sizes and times of the source's files, the stored layout, what the entry says about numbers, and the
transform (`transform_key`); a change of any builds a new one. Several processes may ask at once: one builds, the others wait (`locks`).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.channel_order import frames_as_rgb
from prismatic.vla.datasets.episodes import EpisodeSource, FrameError, FrameReader, TrajectoryTransform
from prismatic.vla.datasets.index_building import build_index
from prismatic.vla.datasets.index_files import DTYPES, Rows, RowsInMemory, read_index, remove_left_behind, write_index
from prismatic.vla.datasets.locks import locked
from prismatic.vla.datasets.repairs import Repair, repairs_from_json
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.sources import source_kind
from prismatic.vla.datasets.transform_key import transform_key
from prismatic.vla.datasets.user_cache import user_cache

logger = logging.getLogger(__name__)

FORMAT_VERSION = 6
CACHE_FOLDER = ".prismatic_index"  # in the data set's folder
# Fields of an entry that no number of an index depends on: documentation, what is checked later, what is described by other means.
_NOT_IN_KEY = ("image_obs_keys", "state_encoding", "robot_platform", "depth_obs_keys", "transform", "fps", "version")
_MOST_NAMED = 10  # episodes in a message


@dataclass(frozen=True)
class EpisodeIndex:
    """All episodes of one data set; episode e is steps episode_starts[e] : episode_starts[e + 1]."""

    key: str  # changes with everything that the index is made from
    files: tuple[Path, ...]
    reader: FrameReader  # decodes the references of `images`
    cameras: tuple[str, ...]  # the columns of `images`
    frame_keys: tuple[str, ...]  # for each camera: changes with everything that its frames are decoded from
    names: tuple[str, ...]  # where each episode lies: file in the data set's folder, and which of its episodes
    splits: dict[str, tuple[int, int]]  # split name -> first episode and the one after the last
    instructions: tuple[str, ...]
    actions: np.ndarray  # float32 [M, A], raw units
    proprio: np.ndarray  # float32 [M, P], raw units
    images: np.ndarray  # IMAGE_REF [M, C]
    instruction_ids: np.ndarray  # int32 [M], -1 throughout an episode without instruction
    commanders: np.ndarray  # int8 [M]: whose action it is, by `rollout_record.COMMANDERS` from 1; 0: nobody says
    episode_starts: np.ndarray  # int64 [E + 1]
    repairs: tuple[Repair, ...] = ()  # what the source left out or mended
    refused: Mapping[int, str] = field(default_factory=dict)  # episodes that cannot be used and have no steps, and why
    facts: tuple[Mapping[str, Any], ...] = ()  # [E]: what the recording says of each episode as a whole
    about: Mapping[str, Any] = field(default_factory=dict)  # for people who find its caches: dataset, folder, stride, made

    @property
    def num_episodes(self) -> int:
        return len(self.episode_starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [E]: steps per episode; 0 where it cannot be used."""
        return np.diff(self.episode_starts)

    def episodes_of(self, split: str) -> np.ndarray:
        """int64: the numbers of the episodes of `split` that have steps, in file order, those without instruction included."""
        first, end = self.splits[split]
        return first + np.flatnonzero(self.lengths[first:end])

    def all_episodes(self) -> np.ndarray:
        """int64: the numbers of all episodes that have steps."""
        return np.flatnonzero(self.lengths)

    def is_labelled(self) -> np.ndarray:
        """bool [E]: True for episodes with an instruction."""
        labelled = np.zeros(self.num_episodes, bool)
        episodes = self.all_episodes()
        labelled[episodes] = self.instruction_ids[self.episode_starts[episodes]] >= 0
        return labelled

    def steps_of(self, episodes: np.ndarray) -> np.ndarray:
        """int64: the numbers of all steps of `episodes`, one episode behind the other."""
        ranges = [np.arange(self.episode_starts[episode], self.episode_starts[episode + 1]) for episode in episodes]
        return np.concatenate(ranges) if ranges else np.zeros(0, np.int64)

    def frame(self, step: int, column: int) -> np.ndarray:
        """uint8 RGB [height, width, 3]: the image of a step, as recorded.

        Raises:
            FrameError: it cannot be read or decoded; the message names the file.
        """
        reference = self.images[step, column]
        file = str(self.files[int(reference["file"])])
        try:
            return self.reader.read(reference)
        except ValueError as error:
            raise FrameError(str(error) if file in str(error) else f"{file}: {error}") from error
        except OSError as error:
            raise FrameError(f"{file} cannot be read: {error.strerror or error}") from error

    def place_of(self, episode: int) -> tuple[str, int]:
        """(split, number in it)."""
        split, first = next((name, first) for name, (first, end) in self.splits.items() if first <= episode < end)
        return split, episode - first

    def label_of(self, episode: int) -> str:
        """How messages and policy.json name it: "train 12 (episode_12.hdf5)"."""
        split, number = self.place_of(episode)
        return f"{split} {number} ({self.names[episode]})"

    def check_refused(self, left_out: Set[int] = frozenset()) -> None:
        """Accepts an index whose episodes can be used, but for those of `left_out`.

        Raises:
            ValueError: others cannot; the message names the first and how to leave them out.
        """
        bad = [episode for episode in self.refused if episode not in left_out]
        if not bad:
            return
        places = ", ".join("{} {}".format(*self.place_of(episode)) for episode in bad[:_MOST_NAMED])
        raise ValueError(
            f"{self.refused[bad[0]]} ({len(bad)} of {self.num_episodes} episodes cannot be used; to train without them, write them into "
            f"the file of --exclude_episodes, one a line: {places}{', ...' if len(bad) > _MOST_NAMED else ''})"
        )


def load_index(
    source: EpisodeSource,
    entry: DatasetEntry,
    transform: TrajectoryTransform,
    cache_dir: Path | None = None,
    *,
    dataset: str = "",
    is_lenient: bool = False,
) -> EpisodeIndex:
    """The index of `source` under `entry`, from the cache where it is current, else built and cached.

    The cache is in `cache_dir`, or else in the source's folder if that is writable and nobody uploads it (LeRobot), or else in
    $XDG_CACHE_HOME. `dataset` is written into it for people. With `is_lenient` an index is made of whatever can be used.

    Raises:
        ValueError: an episode does not fit the entry or its predecessors, or cannot be read; the message names it.
    """
    key, about = index_key(source, entry, transform), {"dataset": dataset, "folder": str(source.folder.resolve()), "stride": entry.stride}

    def build(arrays: Mapping[str, Rows]) -> dict[str, Any]:
        made = {"about": {**about, "made": f"{datetime.datetime.now():%Y-%m-%d %H:%M}"}}
        return build_index(source, entry, transform, arrays, is_lenient) | made

    found = _cached(key, source.folder, cache_dir, build)
    if found is None:
        arrays = {name: RowsInMemory(name) for name in DTYPES}
        description = build(arrays)
        found = {name: rows.joined() for name, rows in arrays.items()}, description
    index = _to_index(*found, key, source)
    if not is_lenient:
        index.check_refused()
    return replace(index, reader=frames_as_rgb(index.reader, entry.image_channel_order))


def _cached(
    key: str, folder: Path, cache_dir: Path | None, build: Callable[[Mapping[str, Rows]], dict[str, Any]]
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """(arrays, description) out of a cache, built there if need be; None where nothing can be written."""
    parents = _cache_parents(folder, cache_dir)
    for parent in parents:
        if (found := read_index(parent / key)) is not None:
            return found
    for parent in parents:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with locked(parent / "lock", _say_waiting):
                for left, owner in remove_left_behind(parent):
                    logger.info("removed %s, left behind by %s, which is gone", left, owner)
                if read_index(parent / key) is None:  # nobody built it while this process waited
                    write_index(parent / key, build)
            if (found := read_index(parent / key)) is not None:
                return found
        except OSError as error:  # read-only, full
            logger.info("no index cache in %s: %s", parent, error)
    logger.warning("the index of %s cannot be cached in %s; every process builds its own", folder, " or ".join(map(str, parents)))
    return None


def _say_waiting(owner: str) -> None:
    logger.info("waiting for %s, which builds an index in the same place", owner)


def index_key(source: EpisodeSource, entry: DatasetEntry, transform: TrajectoryTransform) -> str:
    """A short name that changes with everything that the numbers of an index are made from."""
    base = source.folder if source.folder.is_dir() else source.folder.parent
    files = [(os.path.relpath(path, base), path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
    said = {item.name: getattr(entry, item.name) for item in fields(entry) if item.name not in _NOT_IN_KEY}
    described = json.dumps([FORMAT_VERSION, files, source.layout, list(entry.cameras.items()), repr(said), transform_key(transform)])
    return hashlib.sha256(described.encode()).hexdigest()[:24]


def _cache_parents(folder: Path, cache_dir: Path | None) -> list[Path]:
    if cache_dir is not None:
        return [cache_dir]
    beside, own = folder / CACHE_FOLDER, user_cache() / "index"
    kind = source_kind(folder)
    if kind == "manifest":
        return [own]
    if kind != "lerobot":
        return [beside, own]
    if beside.is_dir():
        logger.info("%s is not used any more, because push_to_hub would upload it with the data set; you may delete it", beside)
    return [own]


def _to_index(arrays: dict[str, np.ndarray], description: dict[str, Any], key: str, source: EpisodeSource) -> EpisodeIndex:
    return EpisodeIndex(
        key=key,
        files=source.files,
        reader=source.frame_reader(),
        cameras=tuple(description["cameras"]),
        frame_keys=tuple(description["frame_keys"]),
        names=tuple(description["names"]),
        splits={name: (first, last) for name, (first, last) in description["splits"].items()},
        instructions=tuple(description["instructions"]),
        repairs=repairs_from_json(description["repairs"]),
        refused={int(number): reason for number, reason in description["refused"].items()},
        facts=tuple(description["facts"]),
        about=description["about"],
        **arrays,
    )
