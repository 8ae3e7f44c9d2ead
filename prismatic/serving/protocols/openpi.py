"""The websockets of openpi-client and of our own client: metadata first, then one chunk of actions [H, A] for each observation (msgpack).

LIBERO  {observation/image, observation/wrist_image, observation/state, prompt}
ALOHA   {images: {cam_high, cam_left_wrist, cam_right_wrist, ...} as [3, height, width], state, prompt}
ours    {images: {primary, ...}, state, prompt, begins?}, on a path of its own where actions are in the robot's units
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from prismatic.serving.observations import ObservationReader, PolicyRequest
from prismatic.vla.cameras import NamedBy, slots_by_name
from prismatic.wire import keys
from prismatic.wire.arrays import describe, pack_openpi
from prismatic.wire.errors import RequestError
from prismatic.wire.msgpack_reader import read_msgpack

CAMERAS = slots_by_name(NamedBy.OPENPI)


def decode_observation(frame: bytes, reader: ObservationReader) -> PolicyRequest:
    """The request in one websocket frame.

    Raises:
        RequestError: it cannot be read, or does not fit the policy.
    """
    content = read_msgpack(frame)
    if not isinstance(content, dict):
        raise RequestError(f"an observation must be a map, found {describe(content)}")
    content = {_text(key): value for key, value in content.items()}
    nested = content.get(keys.IMAGES, {})
    if not isinstance(nested, dict):
        raise RequestError(f"images must be a map from camera name to image, found {describe(nested)}")
    flat = {name: value for name, value in content.items() if name in CAMERAS or "image" in name.rpartition("/")[2]}
    flat.pop(keys.IMAGES, None)
    images = {**flat, **{_text(name): value for name, value in nested.items()}}
    state = content.get("observation/state", content.get(keys.STATE))
    request = reader.read({name: (CAMERAS.get(name), value) for name, value in images.items()}, state, content.get(keys.PROMPT))
    return replace(request, begins=content.get(keys.BEGINS) is True)


def encode_chunk(actions: np.ndarray, server_ms: float, warnings: Sequence[str] = ()) -> bytes:
    """One frame with actions [H, A]; `warnings` are new ones about what the policy is shown."""
    told = {keys.WARNINGS: list(warnings)} if warnings else {}
    return pack_openpi({keys.ACTIONS: np.ascontiguousarray(actions), keys.TIMING: {"infer_ms": server_ms}, **told})


def encode_metadata(info: dict[str, Any]) -> bytes:
    """The frame that the server sends first."""
    return pack_openpi(info)


def _text(key: object) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)
