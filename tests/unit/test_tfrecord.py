from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rlds_writer import frame_record, serialize_example

from prismatic.vla.datasets.rlds.tfrecord import CorruptRecordError, masked_crc32c, parse_example, read_records


def _payload(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def test_checksum_of_the_published_example() -> None:
    # crc32c("123456789") is 0xE3069283 (RFC 3720); masked as record_writer.h does it
    assert masked_crc32c(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_records_come_back_with_their_offsets(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    contents = [b"first", b"", b"x" * 1000]
    path.write_bytes(b"".join(frame_record(content) for content in contents))
    records = list(read_records(path))
    assert [payload.tobytes() for _, payload in records] == contents
    data = path.read_bytes()
    assert [data[offset : offset + len(content)] for (offset, _), content in zip(records, contents, strict=True)] == contents


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert list(read_records(tmp_path / "empty")) == []


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-1], "the file ends after"),
        (lambda data: data[:21] + b"\x00" + data[22:], "checksum of the record's content"),
        (lambda data: b"\x07" + data[1:], "checksum of the record's length"),
        (lambda data: data + b"\x01\x02", "within a record's header"),
    ],
)
def test_damage_is_named_with_file_and_offset(tmp_path: Path, damage, says: str) -> None:
    path = tmp_path / "b.tfrecord"
    path.write_bytes(damage(frame_record(b"some content of a record")))
    with pytest.raises(CorruptRecordError, match=says) as error:
        list(read_records(path))
    assert str(path) in str(error.value)
    assert "byte" in str(error.value)


def test_floats_integers_and_byte_ranges() -> None:
    numbers = np.array([[1.5, -2.0], [3.25, 1e-30]], np.float32)
    integers = np.array([0, 1, 127, 128, 300, -1, 2**62, -(2**63)])
    buffer = serialize_example({"f": numbers, "i": integers, "b": [b"one", b"", b"three"], "flags": np.array([True, False])})
    features = parse_example(_payload(buffer))
    np.testing.assert_array_equal(features["steps/f"], numbers.ravel())
    np.testing.assert_array_equal(features["steps/i"], integers)
    np.testing.assert_array_equal(features["steps/flags"], [1, 0])
    assert [buffer[start : start + length] for start, length in features["steps/b"]] == [b"one", b"", b"three"]


def test_numbers_that_are_not_packed() -> None:
    floats = b"\x12\x0a" + b"".join(b"\x0d" + np.float32(value).tobytes() for value in (1.0, -4.0))  # field 2, twice field 1 fixed32
    integers = b"\x1a\x05" + b"\x08\x03" + b"\x08\x80\x01"  # field 3: 3 and 128
    entries = b"".join(
        b"\x0a" + bytes([3 + 2 + len(body)]) + b"\x0a\x01" + key + b"\x12" + bytes([len(body)]) + body
        for key, body in ((b"f", floats), (b"i", integers))
    )
    features = parse_example(_payload(b"\x0a" + bytes([len(entries)]) + entries))
    np.testing.assert_array_equal(features["f"], np.array([1.0, -4.0], np.float32))
    np.testing.assert_array_equal(features["i"], [3, 128])


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_message_cut_off_is_an_error(cut: int) -> None:
    buffer = serialize_example({"f": np.ones((4, 3), np.float32), "b": [b"text"]})
    with pytest.raises(CorruptRecordError, match=r"not a tf\.train\.Example"):
        parse_example(_payload(buffer[:-cut]))


def test_random_bytes_never_hang_or_crash() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        payload = rng.integers(0, 256, rng.integers(1, 60), dtype=np.uint8)
        try:
            parse_example(payload)
        except CorruptRecordError:
            continue
