"""Bodies of `POST /act` -> names and values: JSON, msgpack, npz, or a form with JPEG files, by their Content-Type.

application/json (and whatever else)     json_numpy arrays, as the published clients send them
application/msgpack                      arrays as openpi-client or vla-eval encode them, pictures also as {"__jpeg__": true, "data": bytes}
application/x-npz                        numpy.savez(...): pictures as uint8 [height, width, 3] or as the bytes of a JPEG file
multipart/form-data                      files are JPEG pictures; texts are the instruction, and JSON for the rest:
                                         curl -F full_image=@a.jpg -F state=[0,0,0,0,0,0,0,0] -F instruction="open the drawer" ...
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from typing import Any

import numpy as np

from prismatic.wire import keys
from prismatic.wire.arrays import MAX_PIXELS, check_characters, describe, read_json
from prismatic.wire.errors import RequestError
from prismatic.wire.msgpack_reader import read_msgpack, text_keys

_MAX_PARTS = 64
_MAX_UNPACKED = 12 * MAX_PIXELS  # bytes of a npz file: four RGB pictures of the largest size
_MAX_HEADER = 4096  # bytes, of an array within a npz file and of a part of a form
_JPEG_START = b"\xff\xd8"
_TEXTS = (keys.INSTRUCTION, "unnorm_key")


def read_body(body: bytes, content_type: str) -> Any:
    """The value in `body`: names and values, where it is what its type says.

    Raises:
        RequestError: it is not.
    """
    kind, _, parameters = content_type.partition(";")
    kind = kind.strip().lower()
    if kind in ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack"):
        return _named(read_msgpack(body))
    if kind in ("application/x-npz", "application/zip") or body[:4] == b"PK\x03\x04":
        return _read_npz(body)
    if kind == "multipart/form-data":
        return _read_form(body, parameters)
    return read_json(body)


def _named(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise RequestError(f"the body must be a map with full_image (or image), state and instruction, found {describe(content)}")
    return text_keys(content)


def _read_npz(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if len(members) > _MAX_PARTS or total > min(_MAX_UNPACKED, 64 * max(len(body), 1 << 20)):
                raise RequestError(
                    f"the npz body unpacks to {total:,} bytes in {len(members)} arrays; send camera images and the state alone"
                )
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in found:
                    raise RequestError(f"npz: {name[:60]!r} is there twice")
                found[name] = _read_array(archive.read(member), name[:60])
    except RequestError:
        raise
    except Exception as error:  # zipfile raises many kinds on damaged, encrypted or strangely compressed files, all of which mean the same
        raise RequestError(f"the body is no npz file ({type(error).__name__}: {str(error)[:120]}); numpy.savez writes one") from error
    return found


def _read_array(data: bytes, name: str) -> Any:
    """An array of a npz file; a text for one of texts, a picture's file for the bytes of one."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
    except (ValueError, EOFError, KeyError, TypeError, SyntaxError) as error:
        raise RequestError(f"npz: {name!r} is no array ({str(error)[:120]})") from error
    if dtype.hasobject or dtype.kind not in "biufU":
        raise RequestError(f"npz: {name!r} has dtype {dtype}; send bool, integer, float or text arrays")
    content = data[stream.tell() :]
    if math.prod(shape) * dtype.itemsize != len(content) or not dtype.itemsize:
        raise RequestError(f"npz: {len(content)} bytes of {name!r} do not fill the shape {list(shape)} of {dtype}")
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")
    if dtype.kind == "U":
        texts = [str(text) for text in array.reshape(-1)]
        for text in texts:
            check_characters(text)
        return texts[0] if len(texts) == 1 else texts
    if array.ndim == 1 and array.dtype == np.uint8 and content[:2] == _JPEG_START:
        return {keys.JPEG: True, keys.DATA: content}
    return np.ascontiguousarray(array if dtype.isnative else array.astype(dtype.newbyteorder("=")))


def _read_form(body: bytes, parameters: str) -> dict[str, Any]:
    match = re.search(r'boundary="?([^";,\s]{1,70})"?', parameters)
    if match is None:
        raise RequestError("the form names no boundary; send it with a client that encodes multipart/form-data")
    pieces = (b"\r\n" + body).split(b"\r\n--" + match[1].encode())
    if len(pieces) < 3 or not pieces[-1].startswith(b"--") or len(pieces) > _MAX_PARTS + 2:
        raise RequestError(f"the form is cut short or has more than {_MAX_PARTS} parts")
    found: dict[str, Any] = {}
    for piece in pieces[1:-1]:
        head, separator, content = piece.partition(b"\r\n\r\n")
        name = re.search(rb'[; ]name="([^"]{1,80})"', head[:_MAX_HEADER])
        if not separator or name is None:
            raise RequestError("a part of the form has no name")
        key = name[1].decode("utf-8", "replace")
        if key in found:
            raise RequestError(f"the form has two parts called {key!r}; send one of them")
        found[key] = _read_part(key, content)
    return found


def _read_part(name: str, content: bytes) -> Any:
    if content[:2] == _JPEG_START:
        return {keys.JPEG: True, keys.DATA: content}
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"part {name!r} of the form is neither a JPEG file nor text") from error
    return text if name in _TEXTS else read_json(text)
