"""The websocket of openpi-client: metadata first, then one chunk of actions [H, A] for each observation (msgpack).

LIBERO  {observation/image, observation/wrist_image, observation/state, prompt}
ALOHA   {images: {cam_high, cam_left_wrist, cam_right_wrist, ...} as [3, height, width], state, prompt}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prismatic.serving.observations import ObservationReader, PolicyRequest
from prismatic.wire.arrays import describe, pack_openpi
from prismatic.wire.errors import RequestError
from prismatic.wire.msgpack_reader import read_msgpack

# The client's name -> our camera.
CAMERAS = {
    "observation/image": "primary",
    "observation/exterior_image_1_left": "primary",
    "observation/wrist_image": "wrist",
    "observation/wrist_image_left": "wrist",
    "cam_high": "primary",
    "cam_low": "secondary",
    "cam_left_wrist": "left_wrist",
    "cam_right_wrist": "right_wrist",
    "base_0_rgb": "primary",
    "left_wrist_0_rgb": "left_wrist",
    "right_wrist_0_rgb": "right_wrist",
    "primary": "primary",
    "secondary": "secondary",
    "wrist": "wrist",
    "left_wrist": "left_wrist",
    "right_wrist": "right_wrist",
}


def decode_observation(frame: bytes, reader: ObservationReader) -> PolicyRequest:
    """The request in one websocket frame.

    Raises:
        RequestError: it cannot be read, or does not fit the policy.
    """
    content = read_msgpack(frame)
    if not isinstance(content, dict):
        raise RequestError(f"an observation must be a map, found {describe(content)}")
    content = {_text(key): value for key, value in content.items()}
    nested = content.get("images", {})
    if not isinstance(nested, dict):
        raise RequestError(f"images must be a map from camera name to image, found {describe(nested)}")
    flat = {name: value for name, value in content.items() if name in CAMERAS or "image" in name.rpartition("/")[2]}
    flat.pop("images", None)
    images = {**flat, **{_text(name): value for name, value in nested.items()}}
    state = content.get("observation/state", content.get("state"))
    return reader.read({name: (CAMERAS.get(name), value) for name, value in images.items()}, state, content.get("prompt"))


def encode_chunk(actions: np.ndarray, server_ms: float, warnings: Sequence[str] = ()) -> bytes:
    """One frame with actions [H, A]; `warnings` are new ones about what the policy is shown."""
    told = {"warnings": list(warnings)} if warnings else {}
    return pack_openpi({"actions": np.ascontiguousarray(actions), "server_timing": {"infer_ms": server_ms}, **told})


def encode_metadata(info: dict[str, Any]) -> bytes:
    """The frame that the server sends first."""
    return pack_openpi(info)


def _text(key: object) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)
