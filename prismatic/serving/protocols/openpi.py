"""The websockets of openpi-client and of our own client: metadata first, then one chunk of actions [H, A] for each observation (msgpack).

LIBERO  {observation/image, observation/wrist_image, observation/state, prompt}
DROID   {observation/exterior_image_1_left, observation/wrist_image_left, observation/joint_position, observation/gripper_position, prompt}
UR5     {base_rgb, wrist_rgb, joints, gripper, prompt}
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
from prismatic.wire.arrays import as_array, describe, describe_names, pack_openpi
from prismatic.wire.errors import RequestError
from prismatic.wire.msgpack_reader import read_msgpack, text_keys

CAMERAS = slots_by_name(NamedBy.OPENPI)
_STATES = ("observation/state", keys.STATE)
_STATE_PARTS = (("observation/joint_position", "observation/gripper_position"), ("joints", "gripper"))  # DROID; UR5


def decode_observation(frame: bytes, reader: ObservationReader) -> PolicyRequest:
    """The request in one websocket frame.

    Raises:
        RequestError: it cannot be read, or does not fit the policy.
    """
    content = read_msgpack(frame)
    if not isinstance(content, dict):
        raise RequestError(f"an observation must be a map, found {describe(content)}")
    content = text_keys(content)
    nested = content.get(keys.IMAGES, {})
    if not isinstance(nested, dict):
        raise RequestError(f"images must be a map from camera name to image, found {describe(nested)}")
    flat = {name: value for name, value in content.items() if name in CAMERAS or "image" in name.rpartition("/")[2]}
    flat.pop(keys.IMAGES, None)
    nested = text_keys(nested)
    if twice := sorted(flat.keys() & nested.keys()):
        raise RequestError(f"{describe_names(twice)}: sent twice, in images and beside it; send each picture once")
    images = {**flat, **nested}
    state = _read_state(content)
    request = reader.read({name: (CAMERAS.get(name), value) for name, value in images.items()}, state, content.get(keys.PROMPT))
    return replace(request, begins=content.get(keys.BEGINS) is True)


def encode_chunk(actions: np.ndarray, server_ms: float, warnings: Sequence[str] = ()) -> bytes:
    """One frame with actions [H, A]; `warnings` are new ones about what the policy is shown."""
    told = {keys.WARNINGS: list(warnings)} if warnings else {}
    return pack_openpi({keys.ACTIONS: np.ascontiguousarray(actions), keys.TIMING: {"infer_ms": server_ms}, **told})


def encode_metadata(info: dict[str, Any]) -> bytes:
    """The frame that the server sends first."""
    return pack_openpi(info)


def _read_state(content: dict[str, Any]) -> Any:
    """The state as it was sent, or its parts in one row.

    Raises:
        RequestError: it was sent twice, or a part is absent.
    """
    given = {names: [name for name in names if name in content] for names in _STATE_PARTS}
    begun = [names for names, found in given.items() if found]
    whole = [name for name in _STATES if content.get(name) is not None]
    if len(begun) + len(whole) > 1:
        found = [*whole, *(" with ".join(names) for names in begun)]
        raise RequestError(f"{' and '.join(found)} mean the same; send one of them")
    if not begun:
        return content[whole[0]] if whole else None
    names = begun[0]
    if missing := [name for name in names if name not in content]:
        raise RequestError(f"the state lacks {', '.join(missing)}; it is made of {' and '.join(names)}")
    return np.concatenate([_row(content[name], name) for name in names])


def _row(value: Any, name: str) -> np.ndarray:
    return np.array([value], np.float64) if isinstance(value, (int, float)) else as_array(value, name).reshape(-1)
