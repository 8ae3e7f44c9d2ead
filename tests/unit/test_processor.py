"""Pixels on the device, and a preprocessor file for other towers."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prismatic.models.processor import PrismaticImageProcessor, normalize_pixels


def test_pixel_values_of_black_and_white() -> None:
    images = torch.stack([torch.zeros(4, 4, 3), torch.full((4, 4, 3), 255.0)]).to(torch.uint8)[None]  # [1, 2, 4, 4, 3]
    pixels = normalize_pixels(images)
    assert pixels.shape == (1, 12, 4, 4)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = torch.cat([-mean / std, torch.full((3,), -1.0), (1 - mean) / std, torch.ones(3)])
    torch.testing.assert_close(pixels[0, :, 2, 1], expected)


def test_the_pixels_of_tall_and_wide_pictures_are_those_of_pillow_13_whichever_is_installed() -> None:
    digest = hashlib.sha256()
    for strategy in ("resize-naive", "letterbox", "resize-crop"):
        for shape in ((300, 200), (640, 480), (90, 40), (480, 640), (53, 37)):
            noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
            for size in (28, 224):
                digest.update(PrismaticImageProcessor(size, strategy).resize(noise).tobytes())
    assert digest.hexdigest() == "4770294e5a47fd94394bdfba40b644d176f12e4bcb8541b9504415ef11b7b67a"


@pytest.mark.parametrize("images", [torch.zeros(1, 2, 4, 4, 3), torch.zeros(2, 4, 4, 3, dtype=torch.uint8)])
def test_bad_images(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 images \[batch, images, size, size, 3\], found torch"):
        normalize_pixels(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_sizes": [[3, 224, 224], [3, 384, 384]]}, "same image"),
        ({"means": [[0.5, 0.5, 0.5]] * 2}, "means"),
        ({"image_resize_strategy": "resize-crops"}, "did you mean resize-crop"),
    ],
)
def test_bad_preprocessor_file(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrismaticImageProcessor.from_dict({**PrismaticImageProcessor(224).to_dict(), **change})
