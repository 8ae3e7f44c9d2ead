"""One row of an HDF5 image data set -> uint8 RGB. Letters: T steps, H x W a camera's size, L bytes of the longest encoded image.

    raw       uint8 [T, H, W, 3]; also [T, H, W, 4] (the fourth channel is dropped), [T, H, W, 1] and [T, H, W] (grey), [T, 3, H, W]
    encoded   JPEG, PNG, ... padded with zeros to one length, uint8 [T, L]; or [T] of fixed strings, opaque values, bytes of any length

The zeros are cut off, which is exact because a JPEG or PNG file ends with a marker that is not zero. Colours are what the encoded file
says, as LeRobot's and openpi's readers take them; the entry's image_channel_order says it where they were exchanged.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prismatic.vla.images import decode_image, image_format

_CHANNELS = (1, 3, 4)
_SMALLEST = 8  # pixels; what is narrower is a matrix, not a picture


def holds_images(stored: Any) -> bool:
    """Whether a data set of any name looks like the pictures of a camera."""
    if not hasattr(stored, "dtype") or not len(stored.shape) or not stored.shape[0]:
        return False
    if stored.ndim >= 3:
        return stored.dtype == np.uint8 and (_is_grey(stored) or _is_channels_last(stored) or _is_channels_first(stored))
    if stored.dtype.kind not in "OSV" and not (stored.ndim == 2 and stored.dtype in (np.uint8, np.int8)):
        return False
    try:
        return image_format(_encoded(stored, 0)) != ""
    except ValueError:
        return False


def holds_depth(stored: Any) -> bool:
    """Whether a data set among the pictures holds distances instead of colours: one channel, wider than a byte."""
    return stored.ndim >= 3 and stored.dtype.kind in "uif" and stored.dtype != np.uint8 and (stored.ndim == 3 or stored.shape[-1] == 1)


def image_remark(stored: Any) -> str:
    """What is done to pictures that are not RGB, for the list of repairs; "" for those that are."""
    if stored.ndim < 3:
        return ""
    if _is_grey(stored) or (_is_channels_last(stored) and stored.shape[-1] == 1):
        return "grey images are spread over three channels"
    if _is_channels_last(stored):
        return "of images with four channels the fourth is dropped" if stored.shape[-1] == 4 else ""
    return "images with their channels first are turned" if _is_channels_first(stored) else ""


def raw_problem(stored: Any) -> str:
    """Why none of the raw pictures of a data set can be read; "" if nothing is wrong with their form, or they are image files."""
    if stored.ndim < 3 or (stored.dtype == np.uint8 and (_is_grey(stored) or _is_channels_last(stored) or _is_channels_first(stored))):
        return ""
    return (
        f"{stored.name} holds {stored.dtype} {list(stored.shape)}, expected raw images uint8 [steps, height, width, 3] with values "
        "0 to 255, or one JPEG or PNG file per step"
    )


def read_frame(stored: Any, row: int, upside_down: bool = False) -> np.ndarray:
    """uint8 RGB [H, W, 3]: one row of an image data set, raw or encoded.

    Raises:
        ValueError: the data set holds no images, or the row is damaged.
    """
    image = _raw_frame(stored, row) if stored.ndim >= 3 else _decoded_frame(stored, row)
    return np.ascontiguousarray(image[::-1, ::-1]) if upside_down else image


def read_frames(stored: Any) -> np.ndarray:
    """uint8 RGB [T, H, W, 3]: all rows."""
    return np.stack([read_frame(stored, row) for row in range(len(stored))])


def _raw_frame(stored: Any, row: int) -> np.ndarray:
    if problem := raw_problem(stored):
        raise ValueError(problem)
    image = stored[row]
    if _is_grey(stored):
        image = image[:, :, None]
    elif not _is_channels_last(stored):
        image = image.transpose(1, 2, 0)
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image[:, :, :3])


def _decoded_frame(stored: Any, row: int) -> np.ndarray:
    encoded = _encoded(stored, row)
    try:
        return decode_image(encoded)
    except ValueError as error:
        if stored.dtype.kind == "O" and isinstance(stored[row], bytes) and b"\0" not in encoded:
            raise ValueError(
                f"{error}; it is stored as text, which cannot hold the zero bytes of an image file: record it as bytes (uint8 of any "
                "length, or fixed strings)"
            ) from error
        raise


def _encoded(stored: Any, row: int) -> bytes:
    """The bytes of one encoded image, without the zeros behind it.

    Raises:
        ValueError: the data set holds other values than bytes.
    """
    value = stored[row] if stored.dtype.kind == "O" else stored[row : row + 1]  # a single fixed string would lose its own zeros
    if isinstance(value, bytes):
        encoded = value
    elif isinstance(value, np.ndarray) and (value.dtype.kind in "SV" or value.dtype.itemsize == 1):
        encoded = value.tobytes()
    else:
        raise ValueError(f"{stored.name} holds {stored.dtype} {list(stored.shape)}, expected images or the bytes of image files")
    return encoded.rstrip(b"\0") if image_format(encoded) in ("JPEG", "PNG", "") else encoded


def _is_grey(stored: Any) -> bool:
    return stored.ndim == 3 and min(stored.shape[1:]) >= _SMALLEST


def _is_channels_last(stored: Any) -> bool:
    return stored.ndim == 4 and stored.shape[3] in _CHANNELS


def _is_channels_first(stored: Any) -> bool:
    return stored.ndim == 4 and stored.shape[1] in _CHANNELS and min(stored.shape[2:]) >= _SMALLEST
