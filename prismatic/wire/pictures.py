"""A picture on its way: raw, or as the JPEG file that the policy's image path would make of it anyway.

A raw picture of 480 x 640 has 0.9 MB. The server decodes the file with the path's own decoder and leaves its round trip out, so the policy
sees the same pixels.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from prismatic.vla.jpeg_files import encode_jpeg
from prismatic.wire import keys
from prismatic.wire.arrays import json_array
from prismatic.wire.errors import RequestError
from prismatic.wire.msgpack_reader import text_keys


def as_message(image: np.ndarray, as_jpeg: bool) -> Any:
    """For msgpack."""
    return {keys.JPEG: True, keys.DATA: encode_jpeg(image)} if as_jpeg else image


def as_json(image: np.ndarray, as_jpeg: bool) -> dict[str, Any]:
    """For JSON."""
    return {keys.JPEG: True, keys.DATA: base64.b64encode(encode_jpeg(image)).decode()} if as_jpeg else json_array(image)


def jpeg_file(value: Any, name: str) -> bytes | None:
    """The file in what `as_message` or `as_json` made, or in vla-eval's form; None: it is no JPEG file but something else.

    Raises:
        RequestError: it says that it is one and is not.
    """
    fields = text_keys(value) if isinstance(value, Mapping) else {}
    is_ours, is_vla_evals = fields.get(keys.JPEG) is True, "__image__" in fields and fields.get("format") == "jpeg"
    if not (is_ours or is_vla_evals):
        return None
    data = fields.get(keys.DATA)
    if is_ours and isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except ValueError as error:
            raise RequestError(f"image {name!r}: {keys.DATA} is not valid base64 ({error})") from error
    if not isinstance(data, (bytes, memoryview)) or bytes(data[:2]) != b"\xff\xd8":
        raise RequestError(f"image {name!r}: {keys.DATA} is not a JPEG file")
    return bytes(data)
