"""One pass over a source: every episode in standard form, checked against its predecessors, appended to the arrays of an index.

An episode that cannot be used (a value that is not a number, another width) stays in the index with no steps and with the reason, so that
numbers of episodes mean the same with and without it, and --exclude_episodes can leave it out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from prismatic.vla.datasets.broken_files import is_of_the_disk
from prismatic.vla.datasets.episodes import IMAGE_REF, Episode, EpisodeSource, RawEpisode, TrajectoryTransform, standardize
from prismatic.vla.datasets.index_files import Rows
from prismatic.vla.datasets.repairs import NO_STEPS
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry

FRAME_FORMAT_VERSION = 2  # of `frame_keys`
_NUM_REFUSED_TO_GIVE_UP = 10  # episodes, and more than half of those read: the entry does not fit


def build_index(
    source: EpisodeSource, entry: DatasetEntry, transform: TrajectoryTransform, arrays: Mapping[str, Rows], is_patient: bool
) -> dict[str, Any]:
    """Appends every episode to the arrays of the index; the description (json values).

    With `is_patient` the pass goes on however many episodes cannot be used.

    Raises:
        ValueError: no episode can be used, most cannot, or the recordings cannot be read; the message names the first.
    """
    splits: dict[str, tuple[int, int]] = {}
    texts: dict[str, int] = {}
    names: list[str] = []
    facts: list[Mapping[str, Any]] = []
    refused: dict[int, str] = {}
    num_steps, num_empty = 0, 0
    frames = _FrameKeys(source, entry)
    arrays["episode_starts"].append(np.zeros(1, np.int64))
    for raw, episode in _standard_episodes(source, entry, transform):
        number = len(names)
        names.append(raw.name.removeprefix(f"{source.folder}{os.sep}"))
        facts.append(raw.facts)
        splits[raw.split] = (splits.get(raw.split, (number, 0))[0], number + 1)
        if isinstance(episode, str):
            refused[number] = episode
            _give_up_if_most(refused, len(names), is_patient)
        elif not len(episode.actions):
            source.repairs.note(NO_STEPS, raw.name)
            num_empty += 1
        else:
            _append(arrays, episode, texts)
            frames.add(episode.images)
            num_steps += len(episode.actions)
        arrays["episode_starts"].append(np.array([num_steps], np.int64))
    _check_not_empty(source, names, refused, num_empty)
    return {
        "cameras": list(entry.cameras),
        "frame_keys": frames.hex(),
        "names": names,
        "facts": facts,
        "refused": {str(number): reason for number, reason in refused.items()},
        "splits": splits,
        "instructions": list(texts),
        "repairs": source.repairs.as_json(),
    }


def _append(arrays: Mapping[str, Rows], episode: Episode, texts: dict[str, int]) -> None:
    for text in episode.instructions:
        if text:
            texts.setdefault(text, len(texts))
    for name in ("actions", "proprio", "images", "commanders"):
        arrays[name].append(getattr(episode, name))
    arrays["instruction_ids"].append(np.array([texts.get(text, -1) for text in episode.instructions], np.int32))


def _standard_episodes(
    source: EpisodeSource, entry: DatasetEntry, transform: TrajectoryTransform
) -> Iterator[tuple[RawEpisode, Episode | str]]:
    """(episode as recorded, the same checked or why it cannot be used), in the order of the files.

    Raises:
        ValueError: the recordings cannot be read.
    """
    first: tuple[RawEpisode, Episode] | None = None
    with tqdm(total=source.num_episodes, desc=f"indexing {source.folder}", unit="episode", delay=2) as progress:
        for raw in _readable(source):
            try:
                episode = standardize(raw, entry, transform)
                if first is not None and len(episode.actions):
                    _check_widths(raw, episode, *first)
            except ValueError as error:
                if is_of_the_disk(error):
                    raise
                yield raw, str(error)
            else:
                first = (raw, episode) if first is None and len(episode.actions) else first
                yield raw, episode
            progress.update()


def _readable(source: EpisodeSource) -> Iterator[RawEpisode]:
    """The episodes of `source`; what the system refuses to read is not mistaken for a cache that cannot be written."""
    try:
        yield from source.episodes()
    except OSError as error:
        where = error.filename or source.folder
        raise ValueError(
            f"{where} cannot be read: {os.strerror(error.errno) if error.errno else error}; check the disk or the mount"
        ) from error


def _check_widths(raw: RawEpisode, episode: Episode, first: RawEpisode, reference: Episode) -> None:
    for what, found, expected in (("actions", episode.actions, reference.actions), ("states", episode.proprio, reference.proprio)):
        if found.shape[1] != expected.shape[1]:
            raise ValueError(
                f"{raw.name}: {what} have {found.shape[1]} dimensions, earlier episodes have {expected.shape[1]} ({first.name}); "
                "one data set holds one robot: leave the episode out, or make it a data set of its own"
            )


def _give_up_if_most(refused: Mapping[int, str], num_read: int, is_patient: bool) -> None:
    if not is_patient and len(refused) > max(_NUM_REFUSED_TO_GIVE_UP, num_read // 2):
        raise ValueError(f"{next(iter(refused.values()))} ({len(refused)} of {num_read} episodes cannot be used)")


def _check_not_empty(source: EpisodeSource, names: list[str], refused: Mapping[int, str], num_empty: int) -> None:
    if len(names) > len(refused) + num_empty:
        return
    if refused:
        more = f" ({len(refused)} episodes, none can be used)" if len(refused) > 1 else ""
        raise ValueError(f"{next(iter(refused.values()))}{more}")
    raise ValueError(f"{source.folder} holds no episodes{' with steps' if names else ''}; record some, or copy the data set again")


class _FrameKeys:
    """For each camera what its frames are decoded from: the files, by name (with their folder's), size and time, the places in them, and
    the channels' order."""

    def __init__(self, source: EpisodeSource, entry: DatasetEntry) -> None:
        names = ("/".join(path.parts[-2:]) for path in source.files)  # copies of a data set lie elsewhere, and share their frames
        stats = (path.stat() for path in source.files)
        self._files = [f"{name} {stat.st_size} {stat.st_mtime_ns}".encode() for name, stat in zip(names, stats, strict=True)]
        start = f"{FRAME_FORMAT_VERSION} {source.frame_layout} {entry.image_channel_order}".encode()
        self._digests = [hashlib.sha256(start) for _ in entry.cameras]

    def add(self, images: np.ndarray) -> None:
        """Takes the IMAGE_REF [T, C] of one more episode."""
        for column, digest in enumerate(self._digests):
            references = np.ascontiguousarray(images[:, column])
            files, places = np.unique(references["file"], return_inverse=True)
            for file in files.tolist():
                digest.update(self._files[file])
            references["file"] = places  # numbers change with the list of files, contents do not
            digest.update(references.tobytes())

    def hex(self) -> list[str]:
        return [digest.hexdigest()[:24] for digest in self._digests]


assert IMAGE_REF.itemsize == 16, "indexes and frame caches depend on it"
