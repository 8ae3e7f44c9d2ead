"""msgpack bytes -> Python values, within a fixed budget of values and depth.

The msgpack package reserves memory for as many elements as an array header claims and builds as many objects as the input has bytes,
so a message of 16 MB can take gigabytes. Observations have few values, and their images are byte strings: this reader stops at
`MAX_VALUES`, slices byte strings without copying, and knows no extension types. Format: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from prismatic.wire.errors import RequestError

MAX_VALUES = 20_000  # in one message; a state of 1,000 numbers in a list fits easily
MAX_DEPTH = 16

_NUMBERS = {  # first byte -> struct format
    **{0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"},
    **{0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_LENGTHS = {  # first byte -> kind, struct format of the length
    **{0xC4: ("bin", ">B"), 0xC5: ("bin", ">H"), 0xC6: ("bin", ">I"), 0xD9: ("str", ">B"), 0xDA: ("str", ">H"), 0xDB: ("str", ">I")},
    **{0xDC: ("array", ">H"), 0xDD: ("array", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I")},
}


def read_msgpack(data: bytes) -> Any:
    """The one value that `data` encodes; byte strings are memoryviews into `data` (as map keys: bytes).

    Raises:
        RequestError: broken or truncated input, an extension type, or too many or too deeply nested values.
    """
    reader = _Reader(data)
    value = reader.value(0)
    if reader.position != len(data):
        raise RequestError(f"msgpack: {len(data) - reader.position} bytes follow the message; send one message in a frame")
    return value


def text_keys(content: Mapping[Any, Any]) -> dict[str, Any]:
    """`content` with texts as keys, where some clients send bytes.

    Raises:
        RequestError: two of them become the same.
    """
    named = {key.decode("latin-1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}
    if len(named) < len(content):
        raise RequestError("a key was sent twice, as text and as bytes; send each key once")
    return named


class _Reader:
    """A position in the input, and how many values it may still give."""

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data)
        self.position = 0
        self._values_left = MAX_VALUES

    def value(self, depth: int) -> Any:
        self._values_left -= 1
        if self._values_left < 0 or depth > MAX_DEPTH:
            raise RequestError(
                f"msgpack: more than {MAX_VALUES} values or {MAX_DEPTH} levels; send arrays as encoded numpy arrays, not lists"
            )
        first = self._take(1)[0]
        if first <= 0x7F:
            return first
        if first >= 0xE0:
            return first - 0x100
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            return self._number(_NUMBERS[first])
        kind, length = self._kind_and_length(first)
        if kind == "bin":
            return self._take(length)
        if kind == "str":
            return self._text(length)
        if kind == "array":
            return [self.value(depth + 1) for _ in range(length)]
        return self._map(length, depth + 1)

    def _kind_and_length(self, first: int) -> tuple[str, int]:
        if first <= 0x8F:
            return "map", first & 0x0F
        if first <= 0x9F:
            return "array", first & 0x0F
        if first <= 0xBF:
            return "str", first & 0x1F
        if first not in _LENGTHS:
            raise RequestError(f"msgpack: type byte 0x{first:02x} is not supported; send maps, lists, numbers, strings and byte strings")
        kind, format_ = _LENGTHS[first]
        return kind, int(self._number(format_))

    def _map(self, length: int, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for _ in range(length):
            key = self.value(depth)
            if isinstance(key, memoryview) and len(key) <= 256:
                key = bytes(key)
            if not isinstance(key, (str, bytes, int)):
                raise RequestError(f"msgpack: a map key must be a short string, found {type(key).__name__}")
            if key in found:
                raise RequestError(f"msgpack: the key {key!r:.60} was sent twice in one map")
            found[key] = self.value(depth)
        return found

    def _text(self, length: int) -> str:
        try:
            return str(self._take(length), "utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(f"msgpack: a string is not UTF-8 ({error.reason})") from error

    def _number(self, format_: str) -> Any:
        return struct.unpack(format_, self._take(struct.calcsize(format_)))[0]

    def _take(self, count: int) -> memoryview:
        if count > len(self._view) - self.position:
            raise RequestError("msgpack: the message ends too early")
        self.position += count
        return self._view[self.position - count : self.position]
