"""Frames of one size, divided so that few recorded programs serve any number of them in any order. Letters: F frames, S image side."""

from __future__ import annotations

from collections.abc import Sequence

import torch

MAX_PART_BYTES = 8 << 20  # of the frames of one image program; larger frames run plainly, and claim no memory for good


def split_frames(numbers: Sequence[int], num_bytes: int, num_cameras: int) -> list[Sequence[int]]:
    """`numbers` as a whole if they are no more than one observation's, else in parts of powers of two, the largest first; no part has
    more than `MAX_PART_BYTES` in frames of `num_bytes`."""
    parts, start = [], 0
    most = max(1, MAX_PART_BYTES // num_bytes)
    if len(numbers) <= min(num_cameras, most):
        return [numbers]
    while start < len(numbers):
        count = 1 << (min(most, len(numbers) - start).bit_length() - 1)
        parts.append(numbers[start : start + count])
        start += count
    return parts


def scatter_images(prepared: torch.Tensor, images: torch.Tensor, numbers: Sequence[int]) -> None:
    """Row i of `prepared` [F, S, S, 3] becomes row `numbers[i]` of `images`."""
    if list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))):
        images[numbers[0] : numbers[0] + len(numbers)].copy_(prepared)
        return
    for image, number in zip(prepared, numbers, strict=True):
        images[number].copy_(image)
