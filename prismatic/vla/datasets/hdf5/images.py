"""One row of an HDF5 image data set -> uint8 RGB. Letters: T steps, H x W a camera's size, L bytes of the longest JPEG file.

Raw images are uint8 [T, H, W, 3]; JPEG files are padded with zeros to one length, uint8 [T, L]. The zeros are cut off, which is exact
because a JPEG file ends with a marker that is not zero. Colours are what the JPEG file says, as LeRobot's and openpi's readers take them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prismatic.vla.images import decode_image
from prismatic.vla.types import check_image


def read_frame(stored: Any, row: int, upside_down: bool = False) -> np.ndarray:
    """uint8 RGB [H, W, 3]: one row of an image data set, raw or JPEG-compressed.

    Raises:
        ValueError: the data set holds no images, or the row is damaged.
    """
    if stored.ndim == 4:
        image = stored[row]
        check_image(stored.name, image)
        return np.ascontiguousarray(image[::-1, ::-1]) if upside_down else image
    if stored.ndim not in (1, 2):
        raise ValueError(
            f"{stored.name} has shape {list(stored.shape)}, expected raw images [steps, height, width, 3] or JPEG files [steps, bytes]"
        )
    encoded = np.asarray(stored[row]).view(np.uint8).tobytes()
    return decode_image(encoded.rstrip(b"\0"))


def read_frames(stored: Any) -> np.ndarray:
    """uint8 RGB [T, H, W, 3]: all rows."""
    return stored[()] if stored.ndim == 4 else np.stack([read_frame(stored, row) for row in range(len(stored))])
