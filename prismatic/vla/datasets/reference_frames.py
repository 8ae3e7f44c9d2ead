"""Training samples -> `Reference`: small pictures of first and later steps, and what the robot was told."""

from __future__ import annotations

import numpy as np

from prismatic.vla.datasets.dataset import RobotDataset, VLADataset
from prismatic.vla.reference import MAX_INSTRUCTIONS, Reference, small_picture

_NUM_PICTURES, _LEAST_PICTURES = 64, 8  # of each camera, over all data sets; of each data set


def make_reference(data: VLADataset) -> Reference:
    """What is kept of `data` with every checkpoint."""
    count = max(_LEAST_PICTURES, _NUM_PICTURES // len(data.parts))
    samples = [(part, number) for part in data.parts for number in _spread_samples(part, count)]
    frames = [part.frames(number) for part, number in samples]  # uint8 [N, S, S, 3] each
    cameras = data.options.cameras
    pictures = {camera: np.stack([small_picture(images[place]) for images in frames]) for place, camera in enumerate(cameras)}
    instructions = sorted({text for part in data.parts for text in _instructions(part)})
    return Reference(pictures, tuple(instructions) if len(instructions) <= MAX_INSTRUCTIONS else ())


def _spread_samples(part: RobotDataset, count: int) -> list[int]:
    """Half of them first steps of episodes, the others from everywhere."""
    starts = part.sample_starts[:-1][np.diff(part.sample_starts) > 0]
    first = starts[np.linspace(0, len(starts) - 1, count // 2).astype(int)]
    anywhere = np.linspace(0, len(part) - 1, count - count // 2).astype(int)
    return np.unique(np.concatenate([first, anywhere])).tolist()


def _instructions(part: RobotDataset) -> set[str]:
    starts = part.sample_starts[:-1][np.diff(part.sample_starts) > 0]
    return {part.instruction(int(start)) for start in starts}
