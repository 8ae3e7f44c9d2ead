"""The data sets of a manifest as one source: episode behind episode, split by split; files and images stay where they are."""

from __future__ import annotations

import bisect
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.episodes import IMAGE_REF, EpisodeSource, FrameReader, RawEpisode, Trajectory
from prismatic.vla.datasets.hdf5.frames import Hdf5FrameReader, OpenFiles
from prismatic.vla.datasets.repairs import Repairs

PART = "manifest part"  # fact of an episode: the number of its part


class MergedSource:
    """Several sources, read as one."""

    def __init__(self, path: Path, sources: Sequence[EpisodeSource]) -> None:
        """`path` is the manifest's; `sources` are its parts, in their order."""
        self.folder, self._sources, self.repairs = path, list(sources), Repairs()
        self.files = tuple(file for source in sources for file in source.files)
        self._first_files = [0, *accumulate(len(source.files) for source in sources)][:-1]
        parts = [(os.path.abspath(source.folder), len(source.files), source.layout) for source in sources]
        self.layout = json.dumps([os.path.abspath(path.parent), parts])  # names are as seen from the manifest's folder
        self.frame_layout = json.dumps([source.frame_layout for source in sources])
        self.num_episodes = sum(source.num_episodes for source in sources)

    def episodes(self) -> Iterator[RawEpisode]:
        """All episodes, split by split."""
        later: dict[str, list[RawEpisode]] = {}
        for number, source in enumerate(self._sources):
            for raw in source.episodes():
                moved = self._moved(raw, number)
                if moved.split == "train":
                    yield moved
                else:
                    later.setdefault(moved.split, []).append(moved)
            for repair in source.repairs:
                self.repairs.note(repair.what, repair.first, repair.count)
        for episodes in later.values():
            yield from episodes

    def frame_reader(self) -> FrameReader:
        """What decodes the images of all of them."""
        readers, opened = [source.frame_reader() for source in self._sources], OpenFiles()
        for reader in readers:
            if isinstance(reader, Hdf5FrameReader):  # a thousand readers must not have a thousand files open
                reader.opened = opened
        return MergedReader(readers, self._first_files)

    def _moved(self, raw: RawEpisode, number: int) -> RawEpisode:
        """The episode with the numbers of its files in the whole, its name seen from the manifest's folder."""
        moved: dict[int, np.ndarray] = {}  # an image column that has several names stays one
        base = os.path.abspath(self.folder.parent)
        name = os.path.abspath(raw.name).removeprefix(f"{base}{os.sep}")
        trajectory = _with_files_from(raw.trajectory, self._first_files[number], moved)
        return replace(raw, name=name, trajectory=trajectory, facts={**raw.facts, PART: number})


def _with_files_from(values: Mapping[str, Any], first_file: int, moved: dict[int, np.ndarray]) -> Trajectory:
    def move(value: Any) -> Any:
        if isinstance(value, Mapping):
            return _with_files_from(value, first_file, moved)
        if getattr(value, "dtype", None) != IMAGE_REF:
            return value
        if id(value) not in moved:
            moved[id(value)] = value.copy()
            moved[id(value)]["file"] += first_file
        return moved[id(value)]

    return {name: move(value) for name, value in values.items()}


class MergedReader:
    """Decodes the images of several sources."""

    def __init__(self, readers: Sequence[FrameReader], first_files: Sequence[int]) -> None:
        """`first_files`: the number of the first file of each reader in the whole."""
        self._readers, self._first_files = list(readers), list(first_files)
        self.is_sequential = any(reader.is_sequential for reader in readers)

    def read(self, reference: np.void) -> np.ndarray:
        """uint8 RGB [height, width, 3] of one IMAGE_REF.

        Raises:
            ValueError: the frame is damaged.
        """
        number = bisect.bisect_right(self._first_files, int(reference["file"])) - 1
        own = reference.copy()
        own["file"] -= self._first_files[number]
        return self._readers[number].read(own)
