"""Training samples -> `Reference`: small pictures of first and later steps, and what the robot was told."""

from __future__ import annotations

import numpy as np

from prismatic.vla.datasets.dataset import RobotDataset, VLADataset
from prismatic.vla.datasets.episodes import FrameError
from prismatic.vla.reference import MAX_INSTRUCTIONS, Reference, small_picture

_NUM_TRIED = 20  # samples for each picture
_NUM_PICTURES, _LEAST_PICTURES = 64, 8  # of each camera, over all data sets; of each data set


def make_reference(data: VLADataset) -> Reference:
    """What is kept of `data` with every checkpoint. A sample that cannot be decoded gives its place to one of the next of its data set.

    Raises:
        FrameError: none can.
    """
    count = max(_LEAST_PICTURES, _NUM_PICTURES // len(data.parts))
    samples = [(part, number) for part in data.parts for number in _spread_samples(part, count)]
    failures: list[str] = []
    frames = [images for part, number in samples if (images := _frames(part, number, failures)) is not None]  # uint8 [N, S, S, 3] each
    if not frames:
        raise FrameError(f"none of {len(samples)} samples all over the data can be decoded; the first: {failures[0]}")
    cameras = data.options.cameras
    pictures = {camera: np.stack([small_picture(images[place]) for images in frames]) for place, camera in enumerate(cameras)}
    told = {text for part in data.parts for text in part.instructions()}
    instructions = sorted({way for text in told for way in (text, *data.paraphrases.get(text, ()))})
    return Reference(pictures, tuple(instructions) if len(instructions) <= MAX_INSTRUCTIONS else ())


def _frames(part: RobotDataset, number: int, failures: list[str]) -> np.ndarray | None:
    """uint8 [N, S, S, 3] of the sample, or of one of those after it; None if none can be decoded, `failures` then says why."""
    for sample in range(number, min(number + _NUM_TRIED, len(part))):
        try:
            return part.frames(sample)
        except FrameError as error:
            failures.append(str(error))
    return None


def _spread_samples(part: RobotDataset, count: int) -> list[int]:
    """Half of them first steps of episodes, the others from everywhere."""
    starts = part.sample_starts[:-1][np.diff(part.sample_starts) > 0]
    first = starts[np.linspace(0, len(starts) - 1, count // 2).astype(int)]
    anywhere = np.linspace(0, len(part) - 1, count - count // 2).astype(int)
    return np.unique(np.concatenate([first, anywhere])).tolist()
