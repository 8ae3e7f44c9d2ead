"""`POST /act` in the OpenVLA-OFT and the OpenVLA form.

OFT      {full_image, <any key with "wrist">, state, instruction}  ->  list of H arrays [A], json_numpy
OpenVLA  {image, instruction, unnorm_key?}                         ->  one array [A], the first action of the chunk
{"encoded": "<either, as JSON text>"}                              ->  the answer as JSON text within JSON
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from prismatic.serving.observations import ObservationReader, PolicyRequest
from prismatic.vla.cameras import NamedBy, slots_by_name
from prismatic.vla.types import ActionChunk
from prismatic.wire import keys
from prismatic.wire.arrays import describe, json_array, read_json
from prismatic.wire.errors import RequestError

CAMERAS = slots_by_name(NamedBy.ACT)
_OTHER_KEYS = (keys.STATE, "proprio", keys.INSTRUCTION, "unnorm_key", "encoded")


@dataclass(frozen=True)
class ActRequest:
    """One `POST /act`, and the form that its answer takes."""

    request: PolicyRequest
    single_action: bool
    is_double_encoded: bool


def camera_of(name: str) -> str | None:
    """Our camera for a key of the body: beside the names of the table, any with "wrist" in it; None: not a camera known here."""
    if name in CAMERAS:
        return CAMERAS[name]
    for side in ("left", "right"):
        if "wrist" in name and side in name:
            return f"{side}_wrist"
    return "wrist" if "wrist" in name else None


def decode_act(body: bytes, reader: ObservationReader) -> ActRequest:
    """The request in `body`.

    Raises:
        RequestError: it cannot be read, or does not fit the policy.
    """
    content = read_json(body)
    is_double_encoded = isinstance(content, dict) and "encoded" in content
    if is_double_encoded:
        if len(content) != 1 or not isinstance(content["encoded"], str):
            raise RequestError('a double-encoded body must be {"encoded": "<JSON text>"} and nothing else')
        content = read_json(content["encoded"])
    if not isinstance(content, dict):
        raise RequestError(f"the body must be a JSON object with full_image (or image), state and instruction, found {describe(content)}")
    images = {name: (camera_of(name), value) for name, value in content.items() if _is_image(name, value)}
    request = reader.read(images, content.get(keys.STATE, content.get("proprio")), content.get(keys.INSTRUCTION), content.get("unnorm_key"))
    return ActRequest(request, "image" in content and "full_image" not in content, is_double_encoded)


def _is_image(name: str, value: Any) -> bool:
    return name not in _OTHER_KEYS and (camera_of(name) is not None or isinstance(value, dict))


def encode_actions(chunk: ActionChunk, act: ActRequest) -> str:
    """The body of the answer."""
    arrays = [json_array(action) for action in chunk.actions]
    answer = json.dumps(arrays[0] if act.single_action else arrays)
    return json.dumps(answer) if act.is_double_encoded else answer
