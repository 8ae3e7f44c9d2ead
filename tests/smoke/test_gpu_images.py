"""Resize and augmentation on an accelerator give the pixels of the CPU path, also under autocast."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prismatic.vla.images import augment_cpu, draw_augmentation, prepare_batch_on_device, resize_lanczos3, round_trip, stack_draws
from prismatic.vla.jpeg import round_trip_batch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize(("height", "width"), [(256, 256), (480, 640), (224, 224)])
def test_frames_prepared_on_the_device_are_those_of_the_cpu(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 3, height, width, 3), dtype=np.uint8)
    draws = [draw_augmentation(rng) for _ in range(2)]
    rows = torch.from_numpy(stack_draws(draws).rows())
    with torch.autocast("cuda", torch.bfloat16):
        prepared = prepare_batch_on_device(torch.from_numpy(frames).cuda(), rows.cuda(), 224).cpu().numpy()
    for sample, draw in enumerate(draws):
        expected = augment_cpu(np.stack([resize_lanczos3(frame, 224) for frame in frames[sample]]), draw)
        difference = np.abs(prepared[sample].astype(int) - expected)
        assert difference.mean() < 0.1
        assert difference.max() <= 3  # noise: a level of the resize, through contrast and saturation


@pytest.mark.parametrize(("height", "width"), [(256, 256), (480, 640), (224, 224), (133, 97)])
def test_the_jpeg_round_trip_is_that_of_the_cpu_bit_for_bit(height: int, width: int) -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    slopes = np.stack(np.broadcast_arrays(np.linspace(0, 255, height)[:, None], np.linspace(255, 0, width), 128.0), axis=-1).astype(
        np.uint8
    )
    frames = np.concatenate([noise, slopes[None]])
    found = round_trip_batch(torch.from_numpy(frames).cuda()).cpu().numpy()
    assert np.array_equal(found, np.stack([round_trip(frame) for frame in frames]))
