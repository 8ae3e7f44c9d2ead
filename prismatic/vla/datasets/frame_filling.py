"""Fills the frame caches of sources that are cheap in order alone, in one pass before training.

A frame of a video costs the decoding of every frame since the last key frame, an image in a parquet file the reading of its row group: up
to a hundred times more in the random order of training than one after the other. Sources that store every image by itself cost the same
in any order; their caches fill during the first epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from prismatic.vla.datasets.frame_cache import CachedFrames, record_bytes
from prismatic.vla.datasets.training_data import TrainingData
from prismatic.vla.datasets.workers import watched

_MOST_STEPS = 2000  # of a task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Task:
    """One camera of a few episodes that lie behind each other in one file."""

    frames: CachedFrames
    steps: np.ndarray  # int64
    camera: int

    @property
    def is_shared(self) -> bool:
        """Whether all processes of a node use one cache, on disk; else each has its own, in memory."""
        return self.frames.caches[self.camera].path is not None


class _Filling(Dataset[tuple[int, list[str]]]):
    """Task number -> how many frames were decoded and kept for it, and why others cannot be."""

    def __init__(self, tasks: Sequence[_Task]) -> None:
        self.tasks = list(tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, number: int) -> tuple[int, list[str]]:
        task = self.tasks[number]
        return task.frames.keep(task.steps, task.camera)


@dataclass(frozen=True)
class NodeShare:
    """Which of a node's processes this is, and which of the nodes."""

    rank: int = 0  # within the node
    num_ranks: int = 1  # of the node
    node: int = 0
    num_nodes: int = 1

    def of(self, tasks: Sequence[_Task]) -> list[_Task]:
        """The tasks of this process. Every node does all of them, since the folder may be its own; it begins with its own share, so that
        where the nodes share the folder it finds the rest done."""
        first = len(tasks) * self.node // self.num_nodes
        return [*tasks[first:], *tasks[:first]][self.rank :: self.num_ranks]


def fill_sequential_caches(data: TrainingData, num_workers: int, share: NodeShare = NodeShare()) -> int:
    """Decodes this process's share of what the caches of `data` lack, in worker processes; the number of frames. A progress bar on one.

    Frames that cannot be decoded are left out, with a warning.

    Raises:
        ValueError: a process that decodes has died.
    """
    every = _tasks(data)
    own = share.of([task for task in every if task.is_shared])  # dealt out before looking, because the other ranks fill theirs meanwhile
    own += [task for task in every if not task.is_shared]
    tasks = [task for task in own if task.frames.lacks_any(task.steps, task.camera)]
    num_frames = sum(len(task.steps) for task in tasks)
    total, damaged = 0, []
    loader = DataLoader(_Filling(tasks), batch_size=None, num_workers=min(num_workers, len(tasks)))
    with tqdm(total=num_frames, desc="filling the frame cache", unit="frame", delay=2, disable=share.rank + share.node != 0) as progress:
        for number, (num_kept, reasons) in enumerate(watched(loader)):
            progress.update(len(tasks[number].steps))
            total += num_kept
            damaged += reasons
    if damaged:
        logger.warning("%d frames cannot be decoded and are left out of the frame cache; the first: %s", len(damaged), damaged[0])
    return total


def _tasks(data: TrainingData) -> list[_Task]:
    """All that is trained or validated on and is kept, of sources whose frames are cheaper in order."""
    tasks: list[_Task] = []
    for number, part in enumerate(data.train.parts):
        if not part.index.reader.is_sequential:
            continue
        if not part.stored.caches:
            size = len(part.index.actions) * len(part.stored.columns) * record_bytes(part.stored.image_size) / 1e9
            logger.warning(
                "data set %s: its frames are slow to read in random order; --frame_cache_dir keeps them (%.1f GB)", part.spec.name, size
            )
        held_back = data.val.parts[number].episodes if data.val is not None else part.episodes[:0]
        episodes = np.sort(np.concatenate([part.episodes, held_back]))
        tasks += [
            _Task(part.stored, part.index.steps_of(run), camera)
            for camera in range(len(part.stored.caches))
            for run in _runs(part.stored, episodes, camera)
        ]
    return tasks


def _runs(frames: CachedFrames, episodes: np.ndarray, camera: int) -> Iterator[np.ndarray]:
    """`episodes` in pieces: of one file, and not so long that processes could not share them out."""
    index = frames.index
    files = index.images["file"][index.episode_starts[episodes], frames.columns[camera]]
    pieces = np.cumsum(index.lengths[episodes]) // _MOST_STEPS
    ends = np.flatnonzero((np.diff(files) != 0) | (np.diff(pieces) != 0)) + 1
    yield from np.split(episodes, ends)
