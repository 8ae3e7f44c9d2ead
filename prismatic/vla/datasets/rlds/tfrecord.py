"""TFRecord framing and tf.train.Example, without TensorFlow.

A TFRecord file is a row of records, each

    length (uint64) | masked crc32c of the length (uint32) | payload | masked crc32c of the payload (uint32)

all little endian. The payload of a data set is one tf.train.Example protocol buffer: a map from feature names to lists of
bytes, floats or integers. Bytes are reported as ranges of the file, so that images can be read later, one at a time.
Sources: tensorflow/core/lib/io/record_writer.h, tensorflow/core/example/{example,feature}.proto, protobuf's encoding guide.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np

from prismatic.vla.datasets.broken_files import file_problem

_HEADER = struct.Struct("<QI")  # length, its masked crc
_FOOTER = struct.Struct("<I")  # masked crc of the payload

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3

# One feature's values: float32 [n], int64 [n], or the byte ranges int64 [n, 2] (offset in the buffer, length) of a bytes list.
Feature = np.ndarray


class CorruptRecordError(ValueError):
    """A record that is cut off, fails its checksum or is not a tf.train.Example."""


def masked_crc32c(data: bytes | np.ndarray) -> int:
    """The checksum that TFRecord stores: crc32c, rotated and offset so that checksums of checksums stay sound."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """(offset in the file, payload uint8 [length]) of every record.

    Raises:
        CorruptRecordError: a record is cut off or its checksum is wrong; the message names file and offset.
        OSError: the file cannot be read; it names the file.
    """
    for offset, payload in scan_records(path):
        if isinstance(payload, CorruptRecordError):
            raise payload
        yield offset, payload


def scan_records(path: Path) -> Iterator[tuple[int, np.ndarray | CorruptRecordError]]:
    """As `read_records`, but a record whose content alone is damaged comes as its error, and those behind it are read.

    Read, not mapped: a disk that fails would end the process in silence.

    Raises:
        CorruptRecordError: a record is cut off or its length is damaged, so that the next one cannot be found.
        OSError: the file cannot be read; it names the file.
    """
    size, position = path.stat().st_size, 0
    with path.open("rb", buffering=0) as file:
        while position < size:
            header = _read_at(file.fileno(), path, position, min(_HEADER.size, size - position)).tobytes()
            if len(header) < _HEADER.size:
                raise _corrupt(path, position, "the file ends within a record's header")
            length, length_crc = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != length_crc:
                raise _corrupt(path, position, "the checksum of the record's length is wrong")
            start, end = position + _HEADER.size, position + _HEADER.size + length
            if end + _FOOTER.size > size:
                raise _corrupt(path, position, f"the record has {length} bytes, but the file ends after {size - start}")
            record = _read_at(file.fileno(), path, start, length + _FOOTER.size)
            payload, footer = record[:length], record[length:].tobytes()
            is_sound = masked_crc32c(payload) == _FOOTER.unpack(footer)[0]
            yield start, payload if is_sound else _corrupt(path, position, "the checksum of the record's content is wrong")
            position = end + _FOOTER.size


def _read_at(file: int, path: Path, position: int, length: int) -> np.ndarray:
    """uint8 [length] from there on; refuses a file that was made shorter meanwhile."""
    data, num_read = np.empty(length, np.uint8), 0
    try:
        while num_read < length and (count := os.preadv(file, [data[num_read:].data], position + num_read)):
            num_read += count
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    if num_read < length:
        raise _corrupt(path, position, f"{length} bytes are expected, but the file ends after {num_read}")
    return data


def _corrupt(path: Path, offset: int, what: str) -> CorruptRecordError:
    if offset == 0 and (problem := file_problem(path)) is not None:
        return CorruptRecordError(f"{path} {problem}")
    return CorruptRecordError(f"{path}, record at byte {offset}: {what}; copy or download the file again")


def parse_example(payload: np.ndarray) -> dict[str, Feature]:
    """Feature name -> values of one serialised tf.train.Example, uint8 [length]; byte ranges count from its first byte.

    Raises:
        CorruptRecordError: the bytes are not such a message.
    """
    buffer = np.ascontiguousarray(payload).data  # not copied: an episode may have hundreds of megabytes
    features: dict[str, Feature] = {}
    try:
        for field, start, end in _length_delimited_fields(buffer, 0, len(buffer)):
            if field == 1:  # Example.features
                for entry_field, entry_start, entry_end in _length_delimited_fields(buffer, start, end):
                    if entry_field == 1:  # Features.feature, one entry of the map
                        name, values = _parse_map_entry(buffer, entry_start, entry_end)
                        features[name] = values
    except (IndexError, UnicodeDecodeError, struct.error) as error:
        raise CorruptRecordError(f"not a tf.train.Example message: {error}") from error
    return features


def _parse_map_entry(buffer: memoryview, start: int, end: int) -> tuple[str, Feature]:
    name, values = "", np.zeros(0, np.float32)
    for field, value_start, value_end in _length_delimited_fields(buffer, start, end):
        if field == 1:
            name = str(buffer[value_start:value_end], "utf-8")
        elif field == 2:
            values = _parse_feature(buffer, value_start, value_end)
    return name, values


def _parse_feature(buffer: memoryview, start: int, end: int) -> Feature:
    for kind, list_start, list_end in _length_delimited_fields(buffer, start, end):
        if kind == _BYTES_LIST:
            ranges = [(first, last - first) for _, first, last in _length_delimited_fields(buffer, list_start, list_end)]
            return np.array(ranges, np.int64).reshape(-1, 2)
        if kind == _FLOAT_LIST:
            return _parse_numbers(buffer, list_start, list_end, _FIXED32)
        if kind == _INT64_LIST:
            return _parse_numbers(buffer, list_start, list_end, _VARINT)
    return np.zeros(0, np.float32)  # a feature without values


def _parse_numbers(buffer: memoryview, start: int, end: int, wire_type: int) -> Feature:
    """float32 or int64 [n] of a FloatList or Int64List, whose field 1 is packed or, from some writers, repeated."""
    parts: list[Feature] = []
    position = start
    while position < end:
        tag, position = _read_varint(buffer, position)
        if tag & 7 == _LENGTH_DELIMITED:
            length, position = _read_varint(buffer, position)
            chunk = buffer[position : _within(position + length, end)]
            parts.append(np.frombuffer(chunk, "<f4") if wire_type == _FIXED32 else _unpack_varints(chunk))
            position += length
        elif tag & 7 == _FIXED32 and wire_type == _FIXED32:
            parts.append(np.frombuffer(buffer[position : _within(position + 4, end)], "<f4"))
            position += 4
        elif tag & 7 == _VARINT and wire_type == _VARINT:
            last = position
            while buffer[last] & 0x80:
                last += 1
            parts.append(_unpack_varints(buffer[position : last + 1]))
            position = last + 1
        else:
            raise CorruptRecordError(f"not a tf.train.Example message: a list of numbers has wire type {tag & 7}")
    return np.concatenate(parts) if parts else np.zeros(0, np.float32 if wire_type == _FIXED32 else np.int64)


def _unpack_varints(chunk: memoryview) -> np.ndarray:
    """int64 [n] of n base-128 numbers, two's complement, lowest seven bits first."""
    octets = np.frombuffer(chunk, np.uint8)
    is_last = octets < 0x80
    if is_last.all():  # flags and small counts: one byte each
        return octets.astype(np.int64)
    if not is_last[-1]:
        raise CorruptRecordError("not a tf.train.Example message: a list of integers ends within a number")
    ends = np.flatnonzero(is_last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    shifts = 7 * (np.arange(len(octets)) - np.repeat(starts, ends - starts + 1))
    septets = (octets & 0x7F).astype(np.uint64) << shifts.astype(np.uint64)
    return np.add.reduceat(septets, starts).view(np.int64)


def _length_delimited_fields(buffer: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of every length-delimited field of the message buffer[start:end]; others are passed over."""
    position = start
    while position < end:
        tag, position = _read_varint(buffer, position)
        wire_type = tag & 7
        if wire_type == _LENGTH_DELIMITED:
            length, position = _read_varint(buffer, position)
            stop = _within(position + length, end)
            yield tag >> 3, position, stop
            position = stop
        elif wire_type == _VARINT:
            _, position = _read_varint(buffer, position)
        elif wire_type in (_FIXED64, _FIXED32):
            position = _within(position + (8 if wire_type == _FIXED64 else 4), end)
        else:
            raise CorruptRecordError(f"not a tf.train.Example message: wire type {wire_type}")


def _within(position: int, end: int) -> int:
    if position > end:
        raise CorruptRecordError(f"not a tf.train.Example message: a field reaches {position - end} bytes beyond its message")
    return position


def _read_varint(buffer: memoryview, position: int) -> tuple[int, int]:
    """(number, position after it)."""
    number, shift = 0, 0
    while True:
        octet = buffer[position]
        position += 1
        number |= (octet & 0x7F) << shift
        if octet < 0x80:
            return number, position
        shift += 7
        if shift > 63:
            raise CorruptRecordError("not a tf.train.Example message: a number has more than ten bytes")
