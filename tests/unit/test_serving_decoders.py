"""Payload decoders: what real clients send is read; anything else is a `RequestError`, quickly and within bounded memory.

`python tests/unit/test_serving_decoders.py 100000` runs the seeded campaign at length and prints its figures.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("msgpack", reason="needs the extra [serve]")

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from prismatic.policy.checkpoint.spec import HeadSpec, PolicySpec
from prismatic.serving.observations import ObservationReader, PolicyRequest
from prismatic.serving.protocols import openpi, openvla_rest, vla_eval
from prismatic.vla.cameras import SENT_KEYS
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.images import ImageRecipe, round_trip
from prismatic.vla.jpeg_files import encode_jpeg
from prismatic.vla.types import Observation
from prismatic.wire.arrays import as_array, json_array, pack_openpi, pack_vla_eval, read_json
from prismatic.wire.errors import RequestError
from prismatic.wire.msgpack_reader import MAX_VALUES, read_msgpack
from prismatic.wire.pictures import as_json, as_message

RECIPE = ImageRecipe(size=28, jpeg_round_trip=True, center_crop=True)
SPEC = PolicySpec(
    platform=ROBOT_PLATFORMS["LIBERO"], cameras=("primary", "wrist"), image=RECIPE, unnorm_key="arm", heads=HeadSpec(use_proprio=True)
)
JPEG = {"__jpeg__": True, "data": b"\xff\xd8"}
IMAGE, STATE = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3), np.linspace(0, 1, 8)


def act_body() -> bytes:
    body: dict[str, Any] = {
        "full_image": json_array(IMAGE),
        "wrist_image": json_array(IMAGE),
        "state": json_array(STATE),
        "instruction": "go",
    }
    return json.dumps(body).encode()


def openpi_frame() -> bytes:
    return pack_openpi({"observation/image": IMAGE, "observation/wrist_image": IMAGE, "observation/state": STATE, "prompt": "go"})


def vla_eval_frame() -> bytes:
    return vla_eval_message(images={"agentview": IMAGE, "wrist": IMAGE}, states=STATE)


def vla_eval_message(**payload: Any) -> bytes:
    return pack_vla_eval({"type": "observation", "payload": {**payload, "task_description": "go"}, "seq": 3, "timestamp": 0.5})


def decode_act(data: bytes, reader: ObservationReader) -> object:
    return openvla_rest.decode_act(data, reader).request


def decode_vla_eval(data: bytes, reader: ObservationReader) -> PolicyRequest:
    return vla_eval.decode_observation(vla_eval.decode_message(data).payload, reader)


DECODERS = {
    "act": (decode_act, act_body),
    "openpi": (openpi.decode_observation, openpi_frame),
    "vla-eval": (decode_vla_eval, vla_eval_frame),
}


def reader() -> ObservationReader:
    return ObservationReader(SPEC, ("arm",))


def damaged(good: bytes, rng: random.Random) -> bytes:
    """`good` with some bytes changed, cut, doubled or replaced."""
    data = bytearray(good)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(5)
        if kind == 0 and data:
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.randint(1, 40)]
        elif kind == 2:
            data[at:at] = rng.choice(
                [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"[" * 50, b'{"a":', b"\xc1", b"NaN"]
            )
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randint(1, 30))
        else:
            data = data[: rng.randint(0, len(data))]
    return bytes(data)


def campaign(count: int) -> dict[str, int]:
    """How many of `count` damaged inputs were refused and how many could still be read.

    Raises:
        Exception: whatever a decoder raises that is not a RequestError.
    """
    rng, found = random.Random(0), {"refused": 0, "read": 0}
    goods = [(decode, make()) for decode, make in DECODERS.values()]
    own = reader()
    for number in range(count):
        decode, good = goods[number % len(goods)]
        try:
            decode(damaged(good, rng), own)
            found["read"] += 1
        except RequestError:
            found["refused"] += 1
    return found


@pytest.mark.parametrize("name", DECODERS)
def test_what_clients_send_is_read(name: str) -> None:
    decode, make = DECODERS[name]
    observation = decode(make(), reader()).observation  # type: ignore[attr-defined]
    np.testing.assert_array_equal(observation.images["primary"], IMAGE)
    np.testing.assert_array_equal(observation.proprio, STATE)
    assert observation.instruction == "go"


def test_damaged_inputs_are_refused_without_growth() -> None:
    campaign(300)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    found = campaign(2000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert found["refused"] > 1000
    assert grown < 100_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["full_image", "wrist", "state", "encoded", "__numpy__", "dtype", "shape", "instruction"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_any_json_is_read_or_refused(value: Any) -> None:
    with contextlib.suppress(RequestError):
        decode_act(json.dumps(value).encode(), reader())


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_as_msgpack_does_or_refused(data: bytes) -> None:
    try:
        ours = read_msgpack(data)
    except RequestError:
        return
    assert repr(plain(ours)) == repr(msgpack.unpackb(data, strict_map_key=False, raw=False, unicode_errors="strict"))


def plain(value: Any) -> Any:
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x91" * 40 + b"\x00", "levels"),
        (b"\xdd" + (2 * MAX_VALUES).to_bytes(4, "big") + b"\x00" * 2 * MAX_VALUES, "values"),
        (b"\xdd\xff\xff\xff\xff", "ends too early"),
        (b"\xc7\x01\x01\x00", "type byte 0xc7 is not supported"),
        (b"\x00\x00", "bytes follow"),
        (b"\xa1\xff", "not UTF-8"),
    ],
)
def test_msgpack_that_would_cost_memory_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_msgpack(data)


@pytest.mark.parametrize("body", [b"[" * 40_000, b"[" + b"[]," * 60_000 + b"0]", b"\xff\xfe", b"1" * 10_000, b'{"a": '])
def test_json_that_is_no_observation_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError):
        read_json(body)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "|O"}, "dtype '|O' is not accepted"),
        ({"dtype": "V8"}, "is not accepted"),
        ({"dtype": "<c16"}, "is not accepted"),
        ({"shape": [2**30, 2**30, 3]}, "do not fill the shape"),
        ({"shape": [-1, 3]}, "list of at most 4 sizes"),
        ({"shape": [True]}, "list of at most 4 sizes"),
        ({"__numpy__": "???"}, "not valid base64"),
        ({"__numpy__": 5}, "must be base64 text"),
    ],
)
def test_an_array_that_lies_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message.replace("|", r"\|").replace("?", r"\?")):
        as_array({**json_array(IMAGE), **change}, "image")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.1, None, 0.2], "found list of length 3, whose item 1 is no number: NoneType None"),
        (["0.1"], "whose item 0 is no number: str of length 3"),
        ([[1.0, 2.0]], "whose item 0 is no number: list of length 2"),
        ([0.0] * 1025, "found list of length 1025$"),
    ],
)
def test_an_item_that_is_no_number_is_named(value: list[Any], message: str) -> None:
    with pytest.raises(RequestError, match=f"state: expected an encoded numpy array, .*{message}"):
        as_array(value, "state")


def test_half_a_character_is_no_instruction() -> None:
    body = json.loads(act_body())
    with pytest.raises(RequestError, match=r"lone surrogate"):
        decode_act(json.dumps({**body, "instruction": "go \ud800"}).encode(), reader())
    assert decode_act(json.dumps({**body, "instruction": "go \U0001f916"}).encode(), reader()) is not None


def test_big_endian_values_are_kept() -> None:
    np.testing.assert_array_equal(as_array(json_array(STATE.astype(">f8")), "state"), STATE)


def test_a_picture_that_unpacks_to_gigabytes_is_refused() -> None:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("L", (8000, 8000)).save(stream, "PNG")
    with pytest.raises(RequestError, match="8000 x 8000 pixels"):
        as_array({"__image__": True, "format": "png", "data": stream.getvalue(), "shape": [1, 1, 3]}, "image")


@pytest.mark.parametrize(
    ("protocol", "names", "message"),
    [
        ("act", ("full_image", "primary", "wrist_image"), "'full_image' and 'primary' are both names of camera primary"),
        ("act", ("full_image", "wrist_image", "wrist_depth"), "'wrist_image' and 'wrist_depth' are both names of camera wrist"),
        ("act", ("full_image", "left_wrist", "left_wrist_depth"), "'left_wrist' and 'left_wrist_depth' are both names of camera wrist"),
        ("openpi", ("observation/image", "base_0_rgb", "wrist"), "'observation/image' and 'base_0_rgb' are both names of camera primary"),
        ("vla-eval", ("agentview", "front", "wrist"), "'agentview' and 'front' are both names of camera primary"),
    ],
)
def test_two_names_for_one_camera_are_refused(protocol: str, names: tuple[str, ...], message: str) -> None:
    decode = DECODERS[protocol][0]
    if protocol == "act":
        frame = json.dumps({**{name: json_array(IMAGE) for name in names}, "state": json_array(STATE), "instruction": "go"}).encode()
    elif protocol == "openpi":
        frame = pack_openpi({**dict.fromkeys(names, IMAGE), "observation/state": STATE, "prompt": "go"})
    else:
        frame = vla_eval_message(images=dict.fromkeys(names, IMAGE), states=STATE)
    with pytest.raises(RequestError, match=message):
        decode(frame, reader())


@pytest.mark.parametrize(
    "sent",
    [
        {"observation/joint_position": STATE[:7], "observation/gripper_position": STATE[7:], "observation/exterior_image_1_left": IMAGE},
        {"joints": STATE[:7], "gripper": float(STATE[7]), "base_rgb": IMAGE},
        {"joints": STATE[:7], "gripper": {b"__npgeneric__": True, b"data": float(STATE[7]), b"dtype": "<f8"}, "base_rgb": IMAGE},
    ],
)
def test_parts_of_the_state_are_joined(sent: dict[str, Any]) -> None:
    wrist = "wrist_rgb" if "joints" in sent else "observation/wrist_image_left"
    seen = openpi.decode_observation(pack_openpi({**sent, wrist: IMAGE, "prompt": "go"}), reader()).observation
    np.testing.assert_array_equal(seen.proprio, STATE)


@pytest.mark.parametrize(
    ("protocol", "frame", "message"),
    [
        ("act", act_body()[:-1] + b', "state": 3}', "the key 'state' was sent twice"),
        ("act", act_body()[:-1] + b', "proprio": [1, 2]}', "'state' and 'proprio' mean the same"),
        ("openpi", b"\x82\xa1a\x01\xa1a\x02", "the key 'a' was sent twice"),
        ("openpi", pack_openpi({"prompt": "go", b"prompt": "stop"}), "as text and as bytes"),
        ("openpi", pack_openpi({"primary": IMAGE, "images": {"primary": IMAGE}, "prompt": "go"}), "in images and beside it"),
        ("openpi", pack_openpi({"images": {"primary": IMAGE}, "state": STATE, "observation/state": STATE}), "mean the same"),
        ("openpi", pack_openpi({"images": {"primary": IMAGE}, "state": STATE, "joints": STATE, "gripper": 0}), "mean the same"),
        ("openpi", pack_openpi({"images": {"primary": IMAGE}, "joints": STATE}), "the state lacks gripper"),
        (
            "openpi",
            pack_openpi({"images": {"primary": {**JPEG, b"data": b"other"}, "wrist": IMAGE}, "state": STATE, "prompt": "go"}),
            "as text and as bytes",
        ),
        ("vla-eval", vla_eval_message(images={"wrist": IMAGE, b"wrist": IMAGE}, states=STATE), "as text and as bytes"),
        ("vla-eval", vla_eval_message(images={"agentview": IMAGE, "wrist": IMAGE}, states=STATE, state=STATE), "mean the same"),
    ],
)
def test_what_is_sent_twice_is_refused(protocol: str, frame: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        DECODERS[protocol][0](frame, reader())


if __name__ == "__main__":
    import resource

    campaign(5000)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    figures = campaign(int(sys.argv[1]))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(figures, f"{time.perf_counter() - started:.1f} s, peak memory {before >> 10} -> {after >> 10} MiB")


PICTURE = np.random.default_rng(5).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def read_jpeg(protocol: str, as_jpeg: tuple[bool, bool]) -> Observation:
    rows = list(zip(("primary", "wrist"), as_jpeg, strict=True))
    if protocol == "act":
        images: dict[str, Any] = {SENT_KEYS[name]: as_json(PICTURE, jpeg) for name, jpeg in rows}
        return openvla_rest.decode_act(
            json.dumps({**images, "state": json_array(STATE), "instruction": "go"}).encode(), reader()
        ).request.observation
    if protocol == "vla-eval":
        files = [{"__image__": True, "format": "jpeg", "data": encode_jpeg(PICTURE)} if jpeg else PICTURE for jpeg in as_jpeg]
        return decode_vla_eval(
            vla_eval_message(images=dict(zip(("agentview", "wrist"), files, strict=True)), states=STATE), reader()
        ).observation
    images = {name: as_message(PICTURE, jpeg) for name, jpeg in rows}
    return openpi.decode_observation(pack_openpi({"images": images, "state": STATE, "prompt": "go"}), reader()).observation


@pytest.mark.parametrize("protocol", ["act", "openpi", "vla-eval"])
@pytest.mark.parametrize("as_jpeg", [(True, True), (True, False)])
def test_jpeg_files_are_what_the_image_path_makes_of_pictures(protocol: str, as_jpeg: tuple[bool, bool]) -> None:
    seen = read_jpeg(protocol, as_jpeg)
    assert seen.is_round_tripped
    for image in seen.images.values():
        np.testing.assert_array_equal(image, round_trip(PICTURE))
    raw = read_jpeg(protocol, (False, False))
    assert not raw.is_round_tripped
    np.testing.assert_array_equal(raw.images["wrist"], PICTURE)


def test_a_raw_picture_beside_a_jpeg_file_stays_as_it_is_for_a_policy_without_the_round_trip() -> None:
    plain = ObservationReader(replace(SPEC, image=replace(RECIPE, jpeg_round_trip=False)), ("arm",))
    images = {"primary": as_message(PICTURE, True), "wrist": PICTURE}
    seen = openpi.decode_observation(pack_openpi({"images": images, "state": STATE, "prompt": "go"}), plain).observation
    np.testing.assert_array_equal(seen.images["wrist"], PICTURE)
    np.testing.assert_array_equal(seen.images["primary"], round_trip(PICTURE))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"__jpeg__": True, "data": b"\x89PNG"}, "is not a JPEG file"),
        ({"__jpeg__": True, "data": 3}, "is not a JPEG file"),
        ({"__jpeg__": True, "data": "&"}, "not valid base64"),
        ({"__image__": True, "format": "jpeg", "data": b"\x89PNG"}, "is not a JPEG file"),
        ({"__image__": True, "format": "jpeg", "data": "/9j/"}, "is not a JPEG file"),
        ({"__jpeg__": True, "data": encode_jpeg(PICTURE)[:200]}, "damaged JPEG file"),
        ({"__jpeg__": True, "data": encode_jpeg(PICTURE).replace(b"\0\x28\0\x30", b"\x20\0\x20\0")}, "8192 x 8192 pixels; send at most"),
    ],
)
def test_a_jpeg_file_that_is_none_is_refused(value: dict[str, Any], message: str) -> None:
    frame = pack_openpi({"images": {"primary": value, "wrist": PICTURE}, "state": STATE, "prompt": "go"})
    with pytest.raises(RequestError, match=message):
        openpi.decode_observation(frame, reader())
