"""The batched JPEG round trip gives the pixels of libjpeg-turbo, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prismatic.vla.images import decode_image, encode_jpeg
from prismatic.vla.jpeg import round_trip_batch


def _pictures(height: int, width: int) -> np.ndarray:
    """uint8 [4, H, W, 3]: noise, the hardest contrasts, a smooth gradient, one colour."""
    rng = np.random.default_rng(0)
    shape = (height, width, 3)
    ramp = np.linspace(0, 255, height)[:, None, None] * np.ones(shape) * [1, 0.5, 0.1] + np.linspace(0, 99, width)[:, None]
    pictures = [rng.integers(0, 256, shape), rng.integers(0, 2, shape) * 255, ramp.clip(0, 255), np.full(shape, (200, 30, 90))]
    return np.stack(pictures).astype(np.uint8)


# Whole blocks; odd sides, which end within a block and within a pair of pixels; the shortest sides.
@pytest.mark.parametrize("size", [(64, 96), (37, 53), (40, 50), (17, 31), (33, 48), (5, 7)])
def test_pixels_are_those_of_the_file(size: tuple[int, int]) -> None:
    pictures = _pictures(*size)
    expected = np.stack([decode_image(encode_jpeg(picture)) for picture in pictures])
    assert (expected != pictures).any()
    np.testing.assert_array_equal(round_trip_batch(torch.from_numpy(pictures)).numpy(), expected)


def test_a_lower_quality_is_that_of_the_file_too() -> None:
    pictures = _pictures(32, 32)
    expected = np.stack([decode_image(encode_jpeg(picture, quality=60)) for picture in pictures])
    np.testing.assert_array_equal(round_trip_batch(torch.from_numpy(pictures), quality=60).numpy(), expected)


def test_a_picture_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match=r"frames of 4x9 pixels.* at least 5x5"):
        round_trip_batch(torch.zeros(1, 4, 9, 3, dtype=torch.uint8))
