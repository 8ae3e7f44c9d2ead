"""A picture -> the JPEG file that the image path makes of it; a robot's computer needs Pillow for this, and nothing else of that path."""

from __future__ import annotations

import io

import numpy as np

from prismatic.vla.types import check_image


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """The JPEG file of a uint8 RGB image [H, W, 3]; the same bytes as TensorFlow's `encode_jpeg`.

    Raises:
        ValueError: another array, or Pillow is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ValueError("pictures become JPEG files only where Pillow is installed: pip install pillow, or send them raw") from error
    check_image("to encode", image)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0", dpi=(300, 300))
    return buffer.getvalue()
