"""Fills the frame caches of video sources on disk in one pass before training.

A frame of a video costs the decoding of every frame since the last key frame: up to a hundred times more in the random order of training
than one after the other. Sources that store every image by itself cost the same in any order; their caches fill during the first epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from prismatic.vla.datasets.dataset import TrainingData
from prismatic.vla.datasets.frame_cache import CachedFrames


@dataclass(frozen=True)
class _Task:
    """One camera of one episode."""

    frames: CachedFrames
    steps: range
    camera: int


class _Filling(Dataset[int]):
    """Task number -> how many frames were decoded and kept for it."""

    def __init__(self, tasks: Sequence[_Task]) -> None:
        self.tasks = list(tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, number: int) -> int:
        task = self.tasks[number]
        return task.frames.keep(task.steps, task.camera)


def fill_sequential_caches(data: TrainingData, num_workers: int, rank: int = 0, world_size: int = 1) -> int:
    """Decodes this process's share of what the caches of `data` lack, in worker processes; the number of frames. A progress bar on rank 0.

    Raises:
        ValueError: a frame is damaged; the message names it.
    """
    own = _tasks(data)[rank::world_size]  # dealt out before looking, because the other ranks fill theirs meanwhile
    tasks = [task for task in own if task.frames.lacks_any(task.steps, task.camera)]
    num_frames = sum(len(task.steps) for task in tasks)
    total = 0
    loader = DataLoader(_Filling(tasks), batch_size=None, num_workers=min(num_workers, len(tasks)))
    with tqdm(total=num_frames, desc="filling the frame cache", unit="frame", delay=2, disable=rank != 0) as progress:
        for number, decoded in enumerate(loader):
            progress.update(len(tasks[number].steps))
            total += decoded
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
