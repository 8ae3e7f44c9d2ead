"""What tensorflow_oracle.py and test_rlds_oracle.py both work on; needs no TensorFlow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from rlds_writer import smooth_image

from prismatic.vla.images import AugmentationDraw, draw_augmentation

RESIZES = ((256, 256, 224), (480, 640, 224), (48, 64, 224), (37, 91, 64))
SIDES = (64, 224)
NUM_DRAWS = 6
# Episode -> (the texts of each step, the texts beside the steps).
TOLD = (
    ((("put a", "put b"),) * 3, ()),
    ((("reach",), ("reach", "go there"), ()), ("not needed",)),
    (((),) * 4, ("öffne es", "open it")),
)
_LARGEST = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}


def encoded_images() -> dict[str, bytes]:
    """JPEGs of odd sizes, with every chroma subsampling, quality and mode, and PNGs."""
    images = {}
    for height, width in ((1, 1), (17, 40), (63, 65), (64, 64), (241, 113)):
        image = Image.fromarray(smooth_image(height, height, width))
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            for quality, progressive in ((95, False), (50, False), (90, True)):
                name = f"{height}x{width}_{subsampling.replace(':', '')}_{quality}_{progressive}"
                images[name] = _save(image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
        images[f"{height}x{width}_grey"] = _save(image.convert("L"), "JPEG")
        for mode in ("RGB", "L", "RGBA", "P"):
            images[f"{height}x{width}_png_{mode}"] = _save(image.convert(mode), "PNG")
    return images


def _save(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def draws() -> list[AugmentationDraw]:
    rng = np.random.default_rng(0)
    return [draw_augmentation(rng, equal_crop_offsets=number % 2 == 1) for number in range(NUM_DRAWS)]


def single_draws() -> dict[str, AugmentationDraw]:
    """One operation each, away from its neutral value; the crop is there always, in the middle unless it is the operation."""
    middle = (1 - 0.9**0.5) / 2
    neutral = {"crop_y": middle, "crop_x": middle, "brightness": 0.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    changes: dict[str, dict[str, float]] = {
        "crop": {"crop_y": 0.01, "crop_x": 0.045},
        **{f"{name}_{sign}": {name: neutral[name] + sign * size} for name, size in _LARGEST.items() for sign in (-1, 1)},
    }
    return {
        name: AugmentationDraw(**{key: np.array([value], np.float32) for key, value in (neutral | change).items()})
        for name, change in changes.items()
    }


def frames(side: int) -> np.ndarray:
    """uint8 [3, side, side, 3]: smooth, noisy, and grey with saturated parts."""
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    grey = np.repeat(np.clip(np.linspace(-80, 330, side), 0, 255).astype(np.uint8)[None, :, None], side, 0).repeat(3, 2)
    return np.stack([smooth_image(side, side, side), noise, grey])
