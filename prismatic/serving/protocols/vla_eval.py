"""The websocket of the vla-eval harness: hello, then one action [A] for each observation, episode after episode (msgpack).

The chunk is buffered per connection and predicted anew when it is used up or an episode starts. Messages are
`{type, payload, seq, timestamp}`; an answer repeats the `seq` of what it answers.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.serving.observations import ObservationReader, PolicyRequest, one_of
from prismatic.vla.cameras import NamedBy, is_wrist, slots_by_name
from prismatic.wire.arrays import describe, pack_vla_eval
from prismatic.wire.errors import RequestError
from prismatic.wire.msgpack_reader import read_msgpack, text_keys

PROTOCOL_VERSION = 1
HARNESS_VERSION = "0.8.0"  # whose messages were tested
CAMERAS = slots_by_name(NamedBy.VLA_EVAL)


@dataclass(frozen=True)
class Message:
    """One message of the harness."""

    type: str
    payload: dict[str, Any]
    seq: int
    num_bytes: int  # of its frame


class ActionBuffer:
    """The rest of one client's chunk."""

    def __init__(self) -> None:
        self._actions: deque[np.ndarray] = deque()

    def __len__(self) -> int:
        return len(self._actions)

    def fill(self, actions: np.ndarray) -> None:
        self._actions = deque(actions)

    def clear(self) -> None:
        self._actions.clear()

    def next(self) -> np.ndarray:
        return self._actions.popleft()


def decode_message(frame: bytes) -> Message:
    """The message in one websocket frame.

    Raises:
        RequestError: it is not one.
    """
    content = read_msgpack(frame)
    if not isinstance(content, dict) or not {"type", "payload", "seq"} <= content.keys():
        raise RequestError(f"a message must be a map with type, payload, seq and timestamp, found {describe(content)}")
    kind, payload, seq = content["type"], content["payload"], content["seq"]
    if not isinstance(kind, str) or not isinstance(payload, dict) or type(seq) is not int:
        raise RequestError(
            f"type must be a text, payload a map and seq an integer, found {describe(kind)}, {describe(payload)}, {describe(seq)}"
        )
    return Message(kind, payload, seq, len(frame))


def decode_observation(payload: dict[str, Any], reader: ObservationReader) -> PolicyRequest:
    """The request in an observation's payload.

    Raises:
        RequestError: it does not fit the policy.
    """
    images = payload.get("images")
    if not isinstance(images, dict):
        raise RequestError(f"images must be a map from camera name to image, found {describe(images)}")
    named = {name: (CAMERAS.get(name), value) for name, value in text_keys(images).items()}
    return reader.read(named, one_of(payload, ("states", "state")), payload.get("task_description"))


def encode_message(kind: str, payload: dict[str, Any], seq: int) -> bytes:
    """One frame of the server."""
    return pack_vla_eval({"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()})


def hello_payload(spec: PolicySpec, robosuite_gripper: bool) -> dict[str, Any]:
    """What the server says of itself: what it wants to see, and what its actions are."""
    has_wrist = any(map(is_wrist, spec.cameras))
    params: dict[str, Any] = {"env_seed": 0, "quat_no_antipodal": True} if spec.platform.name == "LIBERO" else {}
    params |= {"send_wrist_image": True} if has_wrist else {}
    params |= {"send_state": True} if spec.heads.use_proprio else {}
    image = {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"}
    primary, wrist = ("agentview", "wrist") if spec.platform.name == "LIBERO" else ("image", "wrist_image")  # as the benchmark names them
    observation: dict[str, Any] = {primary: image, "language": {"name": "language", "dims": 0, "format": "language"}}
    observation |= {wrist: image} if has_wrist else {}
    if spec.heads.use_proprio:
        state = "eef_pos3_axisangle3_gripper2" if spec.platform.name == "LIBERO" else "raw"
        observation["state"] = {"name": "state", "dims": spec.platform.proprio_dim, "format": state}
    return {
        "harness_version": HARNESS_VERSION,
        "protocol_version": PROTOCOL_VERSION,
        "model_server": "openvla-oft-robot",
        "capabilities": {},
        "observation_params": params,
        "action_spec": _action_spec(spec, robosuite_gripper),
        "observation_spec": observation,
    }


def _action_spec(spec: PolicySpec, robosuite_gripper: bool) -> dict[str, Any]:
    if spec.platform.name != "LIBERO":
        return {
            "raw": {"name": "raw", "dims": spec.platform.action_dim, "format": "raw", "description": ", ".join(spec.platform.action_names)}
        }
    gripper = {"format": "binary_close_positive", "range": [-1, 1]} if robosuite_gripper else {"format": "raw"}
    return {
        "position": {"name": "position", "dims": 3, "format": "delta_xyz", "range": [-1, 1]},
        "rotation": {"name": "rotation", "dims": 3, "format": "axis_angle", "range": [-3.15, 3.15]},
        "gripper": {"name": "gripper", "dims": 1, **gripper},
    }
