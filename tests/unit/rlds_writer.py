"""Writes small RLDS folders (TFRecord, tf.train.Example, the two JSON files) without TensorFlow.

That TensorFlow reads what it writes is checked in test_rlds_oracle.py.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prismatic.vla.datasets.rlds.tfrecord import masked_crc32c
from prismatic.vla.images import encode_jpeg

# Path of a step feature -> array [T, ...], list of encoded images, of texts or of tuples of texts, StringTensor; "episode_metadata/..."
# -> text or tuple of texts.
Episode = dict[str, Any]


class StringTensor(list[bytes]):
    """Image files stored as plain strings."""


def smooth_image(seed: int, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3] with gradients and edges, like a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encode_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def make_episode(
    length: int,
    *,
    seed: int = 0,
    action_dim: int = 4,
    state_dim: int = 4,
    instruction: str = "push the button",
    cameras: Sequence[str] = ("image", "wrist_image"),
    size: int = 24,
) -> Episode:
    rng = np.random.default_rng(seed)
    episode: Episode = {
        "action": rng.normal(size=(length, action_dim)).astype(np.float32),
        "observation/state": rng.normal(size=(length, state_dim)).astype(np.float32),
        "is_first": np.arange(length) == 0,
        "language_instruction": [instruction] * length,
    }
    for number, camera in enumerate(cameras):
        episode[f"observation/{camera}"] = [encode_jpeg(smooth_image(1000 * seed + 100 * number + t, size, size)) for t in range(length)]
    return episode


def write_dataset(root: Path, name: str, splits: Mapping[str, Sequence[Episode]], version: str = "1.0.0") -> Path:
    """Writes <root>/<name in lower case>/<version> with one shard per split; returns that folder."""
    folder = root / name.lower() / version
    folder.mkdir(parents=True)
    infos = []
    for split, episodes in splits.items():
        file = folder / f"{name.lower()}-{split}.tfrecord-00000-of-00001"
        file.write_bytes(b"".join(frame_record(serialize_example(episode)) for episode in episodes))
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        infos.append({"name": split, "shardLengths": [str(len(episodes))], "filepathTemplate": template})
    (folder / "dataset_info.json").write_text(json.dumps({"name": name.lower(), "fileFormat": "tfrecord", "splits": infos}))
    first = next(episode for episodes in splits.values() for episode in episodes)
    top = {"steps": {"sequence": {"feature": _describe({path: values for path, values in first.items() if not _is_metadata(path)})}}}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": top}}))
    return folder


def frame_record(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", masked_crc32c(length)) + payload + struct.pack("<I", masked_crc32c(payload))


def serialize_example(episode: Episode) -> bytes:
    entries = []
    for path, values in episode.items():
        named = {path if _is_metadata(path) else f"steps/{path}": values}
        if isinstance(values, list) and values and isinstance(values[0], tuple):
            flat, lengths = [text for texts in values for text in texts], np.array([len(texts) for texts in values])
            named = {f"steps/{path}/ragged_flat_values": flat, f"steps/{path}/ragged_row_lengths_0": lengths}
        for name, stored in named.items():
            entries.append(_field(1, _field(1, name.encode()) + _field(2, _feature(stored))))
    return _field(1, b"".join(entries))


def _is_metadata(path: str) -> bool:
    return path.startswith("episode_metadata/")


def _feature(values: Any) -> bytes:
    if isinstance(values, np.ndarray) and values.dtype == object:  # a tensor of texts
        values = values.ravel().tolist()
    if isinstance(values, str | tuple):
        values = [values] if isinstance(values, str) else list(values)
    if isinstance(values, list):  # encoded images or texts
        strings = [value.encode() if isinstance(value, str) else value for value in values]
        return _field(1, b"".join(_field(1, string) for string in strings))
    flat = np.asarray(values).ravel()
    if flat.dtype.kind == "f":
        return _field(2, _field(1, flat.astype("<f4").tobytes()))
    return _field(3, _field(1, b"".join(_varint(int(value) & (1 << 64) - 1) for value in flat)))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    octets = bytearray()
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*octets, number])


def _describe(episode: Episode) -> dict[str, Any]:
    root: dict[str, Any] = {"featuresDict": {"features": {}}}
    for path, values in episode.items():
        *groups, leaf = path.split("/")
        node = root
        for group in groups:
            node = node["featuresDict"]["features"].setdefault(group, {"featuresDict": {"features": {}}})
        node["featuresDict"]["features"][leaf] = _describe_leaf(values)
    return root


def _describe_leaf(values: Any) -> dict[str, Any]:
    if isinstance(values, StringTensor):
        return {"tensor": {"dtype": "string", "shape": {}, "encoding": "none"}}
    if isinstance(values, list) and isinstance(values[0], tuple):
        return {"sequence": {"feature": {"text": {}}, "length": "-1"}}
    if isinstance(values, list):
        return {"image": {"dtype": "uint8"}} if isinstance(values[0], bytes) else {"text": {}}
    array = np.asarray(values)
    dtype = "string" if array.dtype == object else str(array.dtype)
    return {"tensor": {"dtype": dtype, "shape": {"dimensions": [str(n) for n in array.shape[1:]]}, "encoding": "none"}}
