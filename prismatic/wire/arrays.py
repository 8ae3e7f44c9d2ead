"""Encoded arrays of all protocols -> numpy, and back; sizes and dtypes are checked before any memory is taken, nothing is unpickled.

json_numpy       {"__numpy__": base64, "dtype": "|u1", "shape": [480, 640, 3]}
openpi-client    {b"__ndarray__": True, b"data": bytes, b"dtype": "|u1", b"shape": [480, 640, 3]}; scalars {b"__npgeneric__": True, ...}
vla-eval         {"__ndarray__": True, ...} and {"__image__": True, "format": "png" | "jpeg" | "raw", "data": bytes, "shape": [...]}
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from prismatic.vla.types import MAX_SIDE
from prismatic.wire.errors import RequestError
from prismatic.wire.msgpack_reader import text_keys

MAX_PIXELS = 4096 * 4096  # of a compressed image, whose size the body limit does not bound
_MAX_NAMES, _MAX_NAME_CHARACTERS = 8, 64  # that a message quotes
_MAX_JSON_STRUCTURE = 50_000  # brackets and commas; an observation has a few dozen, base64 has none
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


def read_json(body: bytes | str) -> Any:
    """The value of a JSON document.

    Raises:
        RequestError: broken JSON, half a character in a key or a text, or so many brackets and commas that it cannot be an observation.
    """
    text = body.encode(errors="surrogatepass") if isinstance(body, str) else body
    characters = np.frombuffer(text, np.uint8)  # whose counting is five times as fast as that of bytes
    if sum(np.count_nonzero(characters == ord(mark)) for mark in "[{,") > _MAX_JSON_STRUCTURE:
        raise RequestError("the JSON body has too many elements; encode arrays with json_numpy instead of lists")
    try:
        value = json.loads(text, object_pairs_hook=_without_repetition)
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON ({str(error)[:200]})") from error
    _check_texts(value)
    return value


def check_characters(text: str) -> None:
    """Accepts a text of whole characters. JSON and numpy can name halves of them (lone surrogates), which no answer, log or page can hold.

    Raises:
        RequestError: one is not whole.
    """
    if text.isascii():  # known without a look at it
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = ascii(text[max(0, error.start - 30) : error.end + 30])
        raise RequestError(f"the text {around} has half a character (a lone surrogate); send whole ones") from error


def _check_texts(value: Any) -> None:
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            check_characters(item)
        elif isinstance(item, list):
            left += item
        elif isinstance(item, dict):
            left += [*item, *item.values()]


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"the key {twice[:60]!r} was sent twice in one object; which one counts cannot be known")
    return found


def as_array(value: Any, name: str) -> np.ndarray:
    """`value`, an encoded array or a list of numbers, as an array in native byte order; `name` is for messages.

    Raises:
        RequestError: none of the known forms, a dtype other than bool, integer or float, or bytes that do not fill the shape.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Mapping):
        fields = text_keys(value)
        if "__numpy__" in fields:
            return _from_buffer(_from_base64(fields["__numpy__"], name), fields, name)
        if "__image__" in fields:
            return _decode_image(fields, name)
        if "__npgeneric__" in fields and _is_number(fields.get("data")):
            return np.asarray([fields["data"]], np.float64)
        if "__ndarray__" in fields:
            return _from_buffer(fields.get("data"), fields, name)
    if isinstance(value, list) and len(value) <= 1024 and all(_is_number(item) for item in value):
        return np.asarray(value, np.float64)
    odd = next(((place, item) for place, item in enumerate(value) if not _is_number(item)), None) if isinstance(value, list) else None
    which = "" if odd is None else f", whose item {odd[0]} is no number: {describe(odd[1])}"
    raise RequestError(f"{name}: expected an encoded numpy array, found {describe(value)}{which}")


def check_pixels(width: int, height: int, name: str) -> None:
    """Accepts the size of a compressed image.

    Raises:
        RequestError: it is too large.
    """
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise RequestError(f"{name}: {width} x {height} pixels; send at most {MAX_PIXELS:,}, and {MAX_SIDE:,} a side")


def describe(value: Any) -> str:
    """A few words on what `value` is, for messages."""
    if isinstance(value, Mapping):
        return f"a map with the keys {', '.join(sorted(repr(key)[:40] for key in value)[:8]) or '(none)'}"
    if isinstance(value, (str, bytes, memoryview, list)):
        return f"{type(value).__name__} of length {len(value)}"
    return f"{type(value).__name__} {value!r}"[:80]


def describe_names(names: Collection[str]) -> str:
    """The first of `names`, quoted, and how many more there are, for messages."""
    listed = ", ".join(repr(name[:_MAX_NAME_CHARACTERS]) for name in list(names)[:_MAX_NAMES])
    return f"{listed} and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else listed


def json_array(array: np.ndarray) -> dict[str, Any]:
    """`array` as json_numpy writes it."""
    contiguous = np.ascontiguousarray(array)
    return {"__numpy__": base64.b64encode(contiguous.tobytes()).decode(), "dtype": contiguous.dtype.str, "shape": list(array.shape)}


def pack_openpi(value: Any) -> bytes:
    """msgpack with arrays as openpi-client reads them."""
    import msgpack

    return msgpack.packb(value, default=lambda item: {key.encode(): part for key, part in _fields(item).items()})


def pack_vla_eval(value: Any) -> bytes:
    """msgpack with arrays as vla-eval reads them."""
    import msgpack

    return msgpack.packb(value, default=_fields)


def _fields(array: object) -> dict[str, Any]:
    assert isinstance(array, np.ndarray), type(array)
    return {"__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": list(array.shape)}


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _from_base64(text: object, name: str) -> bytes:
    if not isinstance(text, str):
        raise RequestError(f"{name}: __numpy__ must be base64 text, found {describe(text)}")
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise RequestError(f"{name}: __numpy__ is not valid base64 ({error})") from error


def _from_buffer(data: object, fields: Mapping[Any, Any], name: str) -> np.ndarray:
    code, shape = fields.get("dtype"), _shape(fields.get("shape"), name)
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
        raise RequestError(f"{name}: dtype {str(code)[:40]!r} is not accepted; send bool, integer or float arrays (camera images: uint8)")
    if not isinstance(data, (bytes, memoryview)):
        raise RequestError(f"{name}: its data must be a byte string, found {describe(data)}")
    dtype = np.dtype(code)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise RequestError(f"{name}: {len(data)} bytes do not fill the shape {list(shape)} of {dtype.name}")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _shape(shape: object, name: str) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, list) else ()
    if not isinstance(shape, list) or len(sizes) > 4 or not all(type(size) is int and 0 <= size < 2**31 for size in sizes):
        raise RequestError(f"{name}: shape must be a list of at most 4 sizes, found {describe(shape)}")
    return sizes


def _decode_image(fields: Mapping[Any, Any], name: str) -> np.ndarray:
    kind, data = fields.get("format"), fields.get("data")
    if kind == "raw":
        return _from_buffer(data, fields, name)
    if kind not in ("png", "jpeg"):
        raise RequestError(f"{name}: image format {str(kind)[:40]!r} is unknown; send png, jpeg or raw")
    if not isinstance(data, (bytes, memoryview)):
        raise RequestError(f"{name}: its data must be a byte string, found {describe(data)}")
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=[kind.upper()]) as image:
            check_pixels(image.width, image.height, name)
            return np.array(image)
    except RequestError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files, all of which mean the same here
        raise RequestError(f"{name}: the {kind} image cannot be decoded ({type(error).__name__})") from error
