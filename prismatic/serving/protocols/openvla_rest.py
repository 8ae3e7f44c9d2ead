"""`POST /act` in the OpenVLA-OFT and the OpenVLA form.

OFT      {full_image, <any key with "wrist">, state, instruction}  ->  list of H arrays [A], json_numpy
OpenVLA  {image, instruction, unnorm_key?}                         ->  one array [A], the first action of the chunk
{"encoded": "<either, as JSON text>"}                              ->  the answer as JSON text within JSON

Bodies may be msgpack, npz or a form, too, with the same names; `Accept: application/msgpack` asks for {actions} in msgpack.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismatic.serving.observations import ObservationReader, PolicyRequest, one_of
from prismatic.vla.cameras import NamedBy, slots_by_name
from prismatic.vla.types import ActionChunk
from prismatic.wire import keys
from prismatic.wire.arrays import describe, json_array, pack_openpi, read_json
from prismatic.wire.bodies import read_body
from prismatic.wire.errors import RequestError

CAMERAS = slots_by_name(NamedBy.ACT)
_OTHER_KEYS = (keys.STATE, "proprio", keys.INSTRUCTION, "unnorm_key", "encoded")


@dataclass(frozen=True)
class AnswerForm:
    """The form that the answer to a `POST /act` takes."""

    single_action: bool
    is_double_encoded: bool


@dataclass(frozen=True)
class ActRequest:
    """One `POST /act`."""

    request: PolicyRequest
    form: AnswerForm


def camera_of(name: str) -> str | None:
    """Our camera for a key of the body: beside the names of the table, any with "wrist" in it; None: not a camera known here."""
    if name in CAMERAS:
        return CAMERAS[name]
    for side in ("left", "right"):
        if "wrist" in name and side in name:
            return f"{side}_wrist"
    return "wrist" if "wrist" in name else None


def decode_act(body: bytes, reader: ObservationReader, content_type: str = "application/json") -> ActRequest:
    """The request in `body`, in one of the forms of `prismatic.wire.bodies`.

    Raises:
        RequestError: it cannot be read, or does not fit the policy.
    """
    content = read_body(body, content_type)
    is_double_encoded = isinstance(content, dict) and "encoded" in content
    if is_double_encoded:
        if len(content) != 1 or not isinstance(content["encoded"], str):
            raise RequestError('a double-encoded body must be {"encoded": "<JSON text>"} and nothing else')
        content = read_json(content["encoded"])
    if not isinstance(content, dict):
        raise RequestError(f"the body must be a JSON object with full_image (or image), state and instruction, found {describe(content)}")
    images = {name: (camera_of(name), value) for name, value in content.items() if _is_image(name, value)}
    state = one_of(content, (keys.STATE, "proprio"))
    request = reader.read(images, state, content.get(keys.INSTRUCTION), content.get("unnorm_key"))
    return ActRequest(request, AnswerForm("image" in content and "full_image" not in content, is_double_encoded))


def _is_image(name: str, value: Any) -> bool:
    return name not in _OTHER_KEYS and (camera_of(name) is not None or isinstance(value, (dict, np.ndarray)))


def encode_msgpack(chunk: ActionChunk, form: AnswerForm) -> bytes:
    """The body of an answer in msgpack: {actions: [H, A]}, or [A] where one action was asked for."""
    return pack_openpi({keys.ACTIONS: np.ascontiguousarray(chunk.actions[0] if form.single_action else chunk.actions)})


def encode_actions(chunk: ActionChunk, form: AnswerForm) -> str:
    """The body of the answer."""
    arrays = [json_array(action) for action in chunk.actions]
    answer = json.dumps(arrays[0] if form.single_action else arrays)
    return json.dumps(answer) if form.is_double_encoded else answer
