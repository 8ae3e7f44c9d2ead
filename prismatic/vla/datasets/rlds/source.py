"""A TFDS folder (an RLDS data set written by tensorflow-datasets) -> raw episodes, without TensorFlow.

    data_root_dir/name/1.0.0/   dataset_info.json   names of the shards, episodes per shard
                                features.json       what a step holds
                                name-train.tfrecord-00000-of-00004 ...

Each record is one episode; its steps are stored feature by feature ("steps/observation/state" holds all T rows behind
each other). Source of the layout: tensorflow_datasets/core/{naming,example_serializer}.py and features/*.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.episodes import IMAGE_REF, RawEpisode, Trajectory
from prismatic.vla.datasets.repairs import Repairs
from prismatic.vla.datasets.rlds.tfrecord import CorruptRecordError, Feature, parse_example, read_records
from prismatic.vla.images import decode_image

_STEPS = "steps"
_MAX_OPEN_FILES = 256
_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True)
class StepFeature:
    """How one leaf of a step is stored."""

    kind: str  # "image", "text" or "tensor"
    dtype: str
    shape: tuple[int, ...]  # of one step
    encoding: str = "none"  # tensors only: "none", "bytes" or "zlib"


@dataclass(frozen=True)
class Shard:
    """One TFRecord file of a split."""

    split: str
    path: Path
    num_episodes: int


class RldsSource:
    """The episodes of one TFDS folder."""

    frame_layout = ""  # a reference is the place of an image file

    def __init__(self, folder: Path) -> None:
        """Reads the two JSON files.

        Raises:
            ValueError: a file is absent or is not an RLDS data set in TFRecord format; the message names it.
        """
        self.folder, self.repairs = folder, Repairs()
        info = _read_json(folder / "dataset_info.json")
        self.features = _step_features(_read_json(folder / "features.json"), folder)
        self.shards = _find_shards(folder, info)
        self.files = tuple(shard.path for shard in self.shards)
        self.num_episodes = sum(shard.num_episodes for shard in self.shards)
        self.layout = json.dumps({name: vars(feature) for name, feature in sorted(self.features.items())}, default=str)

    def episodes(self) -> Iterator[RawEpisode]:
        """All episodes, split by split, in the order of the files.

        Raises:
            CorruptRecordError: a damaged record; the message names file and byte offset.
            ValueError: a shard holds another number of episodes than dataset_info.json says.
        """
        for number, shard in enumerate(self.shards):
            count = 0
            for count, (offset, payload) in enumerate(read_records(shard.path), start=1):
                name = f"{shard.path}, episode {count - 1}"
                yield RawEpisode(shard.split, name, self._trajectory(name, payload, offset, number))
            if count != shard.num_episodes:
                raise ValueError(
                    f"{shard.path} holds {count} episodes, dataset_info.json says {shard.num_episodes}; copy the data set again completely"
                )

    def frame_reader(self) -> EncodedFrameReader:
        """What decodes the images of the shards."""
        return EncodedFrameReader(self.files)

    def _trajectory(self, name: str, payload: np.ndarray, offset: int, file_number: int) -> Trajectory:
        try:
            stored = parse_example(payload)
            trajectory: Trajectory = {}
            for path, feature in self.features.items():
                if (values := stored.get(f"{_STEPS}/{path}")) is not None:
                    decoded = _decode(values, feature, payload)
                    if decoded.dtype == IMAGE_REF:
                        decoded["file"], decoded["offset"] = file_number, decoded["offset"] + offset
                    _insert(trajectory, path, decoded)
        except ValueError as error:
            raise CorruptRecordError(f"{name}: {error}") from error
        return trajectory


class EncodedFrameReader:
    """Reads single encoded images out of big files, which stay open; safe to carry into forked worker processes."""

    is_sequential = False

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)
        self._descriptors: OrderedDict[int, int] = OrderedDict()

    def read(self, reference: np.void) -> np.ndarray:
        """uint8 [height, width, 3] of one IMAGE_REF.

        Raises:
            ValueError: the image is cut off or damaged; the message names file and byte offset.
        """
        file, offset, length = (int(reference[name]) for name in ("file", "offset", "length"))
        encoded = os.pread(self._descriptor(file), length, offset)
        try:
            return decode_image(encoded)
        except ValueError as error:
            raise ValueError(f"{self._files[file]}, image at byte {offset} ({length} bytes): {error}") from error

    def _descriptor(self, file: int) -> int:
        descriptor = self._descriptors.pop(file, None)
        if descriptor is None:
            if len(self._descriptors) >= _MAX_OPEN_FILES:
                os.close(self._descriptors.popitem(last=False)[1])
            descriptor = os.open(self._files[file], os.O_RDONLY)
        self._descriptors[file] = descriptor  # most recently used last
        return descriptor

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files, "_descriptors": OrderedDict()}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is absent: {path.parent} is not a data set written by tensorflow-datasets, or was not copied completely")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy the data set again") from error


def _find_shards(folder: Path, info: Mapping[str, Any]) -> tuple[Shard, ...]:
    file_format = info.get("fileFormat", "tfrecord")
    if file_format != "tfrecord":
        raise ValueError(f"{folder} is stored as {file_format}; only tfrecord is read. Convert it with tfds convert_format")
    shards = []
    for split in info.get("splits", []):
        template = split.get("filepathTemplate") or _DEFAULT_TEMPLATE
        lengths = [int(length) for length in split.get("shardLengths", [])]
        for number, length in enumerate(lengths):
            file_name = template.format(
                DATASET=info["name"],
                SPLIT=split["name"],
                FILEFORMAT=file_format,
                SHARD_INDEX=f"{number:05d}",
                NUM_SHARDS=f"{len(lengths):05d}",
                SHARD_X_OF_Y=f"{number:05d}-of-{len(lengths):05d}",
            )
            shards.append(Shard(split["name"], folder / file_name, length))
    for shard in shards:
        if not shard.path.is_file():
            raise ValueError(f"{shard.path} is absent, though dataset_info.json lists it; copy the data set again completely")
    if not shards:
        raise ValueError(f"{folder / 'dataset_info.json'} lists no shards: the data set is empty or its download did not finish")
    return tuple(shards)


def _step_features(features: Mapping[str, Any], folder: Path) -> dict[str, StepFeature]:
    """Path of a leaf ("observation/state") -> how it is stored, for all leaves of a step."""
    top = features.get("featuresDict", {}).get("features", {})
    step = top.get(_STEPS, {}).get("sequence", {}).get("feature")
    if step is None:
        found = ", ".join(sorted(top)) or "nothing"
        raise ValueError(f"{folder / 'features.json'} describes no data set of steps: not an RLDS data set; it describes: {found}")
    return dict(_leaves(step, ""))


def _leaves(feature: Mapping[str, Any], path: str) -> Iterator[tuple[str, StepFeature]]:
    if "featuresDict" in feature:
        for name, child in feature["featuresDict"]["features"].items():
            yield from _leaves(child, f"{path}/{name}" if path else name)
    elif "image" in feature:
        yield path, StepFeature("image", feature["image"].get("dtype", "uint8"), ())
    elif "text" in feature:
        yield path, StepFeature("text", "string", ())
    elif "classLabel" in feature:
        yield path, StepFeature("tensor", "int64", ())
    elif "tensor" in feature:
        tensor = feature["tensor"]
        shape = tuple(int(length) for length in tensor.get("shape", {}).get("dimensions", []))
        if min(shape, default=0) >= 0:
            kind = "text" if tensor["dtype"] in ("string", "object") else "tensor"
            yield path, StepFeature(kind, tensor["dtype"], shape, tensor.get("encoding", "none").lower())
    # Other kinds (video, audio, nested sequences, rows of changing width) are left out: an entry that asks for one is told
    # which keys exist.


def _decode(values: Feature, feature: StepFeature, payload: np.ndarray) -> np.ndarray:
    """One row per step: IMAGE_REF [T] relative to the payload, text object [T], or numbers [T, *shape]."""
    is_ranges = values.ndim == 2
    if feature.kind == "image":
        return _image_references(values, is_ranges)
    if feature.kind == "text":
        if not is_ranges:
            raise ValueError("a Text feature holds numbers instead of strings")
        texts = np.empty(len(values), dtype=object)
        texts[:] = [text.decode("utf-8", "replace") for text in _byte_strings(values, payload)]
        return texts.reshape(-1, *feature.shape)
    dtype = np.dtype(feature.dtype if feature.dtype != "bfloat16" else "float32")
    if is_ranges:  # Tensor(encoding="bytes" or "zlib"): one byte string per step
        parts = [zlib.decompress(part) if feature.encoding == "zlib" else part for part in _byte_strings(values, payload)]
        return np.stack([np.frombuffer(part, dtype).reshape(feature.shape) for part in parts])
    return values.astype(dtype).reshape(-1, *feature.shape)


def _image_references(values: Feature, is_ranges: bool) -> np.ndarray:
    if not is_ranges:
        raise ValueError("an Image feature holds numbers instead of encoded images")
    references = np.zeros(len(values), IMAGE_REF)
    references["offset"], references["length"] = values[:, 0], values[:, 1]
    return references


def _byte_strings(ranges: Feature, payload: np.ndarray) -> list[bytes]:
    return [payload[start : start + length].tobytes() for start, length in ranges.tolist()]


def _insert(trajectory: Trajectory, path: str, values: np.ndarray) -> None:
    *groups, leaf = path.split("/")
    for group in groups:
        trajectory = trajectory.setdefault(group, {})
    trajectory[leaf] = values
