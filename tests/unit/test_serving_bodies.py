"""Binary bodies of `POST /act`: msgpack, npz and forms are read as JSON is; anything else is a `RequestError`."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import numpy as np
import pytest

pytest.importorskip("msgpack", reason="needs the extra [serve]")

from test_serving_decoders import IMAGE, STATE, damaged, reader

from prismatic.serving.protocols import openvla_rest
from prismatic.vla.images import decode_image
from prismatic.vla.jpeg_files import encode_jpeg
from prismatic.wire.arrays import pack_openpi
from prismatic.wire.errors import RequestError


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def form(boundary: str = "xyz", **parts: bytes) -> bytes:
    rows = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + part + b"\r\n" for name, part in parts.items()
    ]
    return b"".join(rows) + f"--{boundary}--\r\n".encode()


FORM = "multipart/form-data; boundary=xyz"
JPEG = encode_jpeg(np.random.default_rng(5).integers(0, 256, (40, 48, 3), dtype=np.uint8))
BODIES = {
    "msgpack": ("application/msgpack", pack_openpi({"full_image": IMAGE, "wrist_image": IMAGE, "state": STATE, "instruction": "go"})),
    "npz": ("application/x-npz", npz(full_image=IMAGE, wrist_image=IMAGE, state=STATE, instruction="go")),
    "npz with JPEG": ("application/x-npz", npz(full_image=np.frombuffer(JPEG, np.uint8), wrist_image=IMAGE, state=STATE, instruction="go")),
    "form": (FORM, form(full_image=JPEG, wrist_image=JPEG, state=json.dumps(STATE.tolist()).encode(), instruction=b"go")),
}


@pytest.mark.parametrize("kind", BODIES)
def test_binary_bodies_of_act(kind: str) -> None:
    content_type, body = BODIES[kind]
    act = openvla_rest.decode_act(body, reader(), content_type)
    seen = act.request.observation
    if "J" in kind or kind == "form":
        assert seen.is_round_tripped
        np.testing.assert_array_equal(seen.images["primary"], decode_image(JPEG))
    else:
        np.testing.assert_array_equal(seen.images["primary"], IMAGE)
        np.testing.assert_array_equal(seen.images["wrist"], IMAGE)
    np.testing.assert_array_equal(seen.proprio, STATE)
    assert seen.instruction == "go"


def test_damaged_binary_bodies_are_refused() -> None:
    rng, found = random.Random(1), {"refused": 0, "read": 0}
    for number in range(1200):
        content_type, body = list(BODIES.values())[number % len(BODIES)]
        try:
            openvla_rest.decode_act(damaged(body, rng), reader(), content_type)
            found["read"] += 1
        except RequestError:
            found["refused"] += 1
    assert found["refused"] > 600, found


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("application/x-npz", npz(full_image=np.array([object()])), "dtype object"),
        ("application/x-npz", npz(full_image=np.zeros(100_000_000, np.uint8)), "unpacks to"),
        ("application/x-npz", b"PK\x03\x04", "no npz file"),
        ("application/msgpack", b"\x01", "must be a map"),
        ("application/msgpack", b"\x82\xa5state\x01\xc4\x05state\x02", "as text and as bytes"),
        (FORM, form(state=b"[1]")[:-10], "cut short"),
        (FORM, form(full_image=b"\xff\xfe"), "neither a JPEG file nor text"),
        ("multipart/form-data", b"", "no boundary"),
    ],
)
def test_binary_bodies_that_are_none(content_type: str, body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        openvla_rest.decode_act(body, reader(), content_type)
