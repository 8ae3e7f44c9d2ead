"""Group E, images: the three resize strategies, both normalisations and preprocessor_config.json."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import assert_matches, load_case
from PIL import Image

from prismatic.models.processor import PrismaticImageProcessor, normalize_pixels

NAME = "e_image_processor"
STRATEGIES = ["resize-naive", "letterbox", "resize-crop"]


def _image(recorded: dict[str, torch.Tensor], name: str) -> Image.Image:
    return Image.fromarray(recorded[f"image_{name}"].numpy())


def _cases(recorded: dict[str, torch.Tensor], strategy: str, suffix: str) -> list[tuple[str, int, str]]:
    """(tensor name, size, image name) of the recorded tensors `STRATEGY_SIZE_IMAGE<suffix>`."""
    images = "|".join(name.removeprefix("image_") for name in recorded if name.startswith("image_"))
    found = [(name, re.fullmatch(rf"{strategy}_(\d+)_({images}){suffix}", name)) for name in recorded]
    cases = [(name, int(match[1]), match[2]) for name, match in found if match]
    assert cases
    return cases


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resized_pixels(golden_dir: Path, strategy: str) -> None:
    _, recorded = load_case(golden_dir, NAME)
    for name, size, image in _cases(recorded, strategy, "_u8"):
        resized = PrismaticImageProcessor(size, strategy).resize(_image(recorded, image))
        assert np.array_equal(resized.transpose(2, 0, 1), recorded[name].numpy()), name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_pixel_values(golden_dir: Path, strategy: str) -> None:
    _, recorded = load_case(golden_dir, NAME)
    for name, size, image in _cases(recorded, strategy, ""):
        assert_matches(PrismaticImageProcessor(size, strategy)([_image(recorded, image)]), recorded[name], name)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_large_images(golden_dir: Path, strategy: str) -> None:
    _, recorded = load_case(golden_dir, NAME)
    for name, size, image in _cases(recorded, strategy, r"_strided\d+"):
        pixels = PrismaticImageProcessor(size, strategy)([_image(recorded, image)])
        stride = int(name.rsplit("strided", 1)[1])
        assert_matches(pixels[:, ::stride, ::stride], recorded[name], name)
        prefix = name.rsplit("_", 1)[0]
        assert_matches(pixels.double().mean(dim=(1, 2)), recorded[f"{prefix}_channel_mean"], f"{prefix} mean")
        assert_matches(
            pixels.double().flatten(1).std(dim=1, correction=0), recorded[f"{prefix}_channel_std"], f"{prefix} standard deviation"
        )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_batched_path_equals_pillow_path(golden_dir: Path, strategy: str) -> None:
    _, recorded = load_case(golden_dir, NAME)
    for _, size, image in _cases(recorded, strategy, "_u8"):
        processor = PrismaticImageProcessor(size, strategy)
        resized = processor.resize(_image(recorded, image))
        batch = torch.from_numpy(np.stack([resized, resized[::-1]]))[None]  # [1, 2, S, S, 3]
        flipped = Image.fromarray(np.ascontiguousarray(resized[::-1]))
        assert torch.equal(normalize_pixels(batch)[0], processor([Image.fromarray(resized), flipped]))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_preprocessor_file(golden_dir: Path, tmp_path: Path, strategy: str) -> None:
    settings, _ = load_case(golden_dir, NAME)
    published = settings["processors"][strategy]["json"]
    processor = PrismaticImageProcessor.from_dict(published)
    assert processor.to_dict() == published
    processor.save_pretrained(tmp_path)
    assert PrismaticImageProcessor.from_pretrained(tmp_path) == processor
