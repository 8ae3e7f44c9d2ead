"""Pictures that cost about what a camera's do: noise alone would make JPEG files six times as large, and three times as slow to read."""

from __future__ import annotations

import numpy as np
from PIL import Image

_PATCHES = 9  # a side, each of a colour of its own
_SENSOR_NOISE = 4  # standard deviation, of 255 levels


def camera_picture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth patches of colour with a sensor's noise, uint8 [size, size, 3]."""
    coarse = Image.fromarray(rng.integers(0, 256, (_PATCHES, _PATCHES, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float64)
    return np.clip(smooth + rng.normal(0, _SENSOR_NOISE, smooth.shape), 0, 255).astype(np.uint8)
