"""Fills the frame caches of video sources on disk in one pass before training.

A frame of a video costs the decoding of every frame since the last key frame: up to a hundred times more in the random order of training
than one after the other. Sources that store every image by itself cost the same in any order; their caches fill during the first epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from prismatic.vla.datasets.dataset import TrainingData
from prismatic.vla.datasets.frame_cache import CachedFrames

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Task:
    """One camera of one episode."""

    frames: CachedFrames
    steps: range
    camera: int


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
    """
    own = share.of(_tasks(data))  # dealt out before looking, because the other ranks fill theirs meanwhile
    tasks = [task for task in own if task.frames.lacks_any(task.steps, task.camera)]
    num_frames = sum(len(task.steps) for task in tasks)
    total, damaged = 0, []
    loader = DataLoader(_Filling(tasks), batch_size=None, num_workers=min(num_workers, len(tasks)))
    with tqdm(total=num_frames, desc="filling the frame cache", unit="frame", delay=2, disable=share.rank + share.node != 0) as progress:
        for number, (num_kept, reasons) in enumerate(loader):
            progress.update(len(tasks[number].steps))
            total += num_kept
            damaged += reasons
    if damaged:
        logger.warning("%d frames cannot be decoded and are left out of the frame cache; the first: %s", len(damaged), damaged[0])
    return total


def _tasks(data: TrainingData) -> list[_Task]:
    """All episodes that are trained or validated on and have a cache on disk, of sources whose frames are cheaper in order."""
    parts = [*data.train.parts, *(data.val.parts if data.val is not None else [])]
    return [
        _Task(part.stored, range(int(first), int(last) + 1), camera)
        for part in parts
        if part.index.reader.is_sequential
        for first, last in zip(part.first_steps, part.last_steps, strict=True)
        for camera, cache in enumerate(part.stored.caches)
        if cache.path is not None
    ]
