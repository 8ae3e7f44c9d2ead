"""A TFDS folder (an RLDS data set written by tensorflow-datasets) -> raw episodes, without TensorFlow.

    data_root_dir/name/1.0.0/   dataset_info.json   names of the shards, episodes per shard
                                features.json       what a step holds
                                name-train.tfrecord-00000-of-00004 ...

Each record is one episode; its steps are stored feature by feature ("steps/observation/state" holds all T rows behind
each other). Source of the layout: tensorflow_datasets/core/{naming,example_serializer}.py and features/*.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.broken_files import file_problem
from prismatic.vla.datasets.episodes import IMAGE_REF, RawEpisode, Trajectory
from prismatic.vla.datasets.repairs import DRAWN, NO_STEPS, Repairs
from prismatic.vla.datasets.rlds.features import step_features
from prismatic.vla.datasets.rlds.instructions import find_instruction
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.rlds.record import Record
from prismatic.vla.datasets.rlds.recorded_names import RecordedNames
from prismatic.vla.datasets.rlds.tfrecord import CorruptRecordError, scan_records
from prismatic.vla.datasets.split_names import usual_split
from prismatic.vla.images import decode_image

_READER_VERSION = 2  # changes where the same files give other episodes
_WHOLE = ("all", "full", "default")  # splits of all episodes
_MAX_OPEN_FILES = 256
_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True)
class Shard:
    """One TFRecord file of a split."""

    split: str
    path: Path
    num_episodes: int


class RldsSource:
    """The episodes of one TFDS folder."""

    frame_layout = ""  # a reference is the place of an image file

    def __init__(self, folder: Path, entry: DatasetEntry | None = None) -> None:
        """Reads the JSON files; `entry` may name cameras and columns as the recordings did that were converted.

        Raises:
            ValueError: a file is absent or is not an RLDS data set in TFRecord format; the message names it.
        """
        self.folder, self.repairs = folder, Repairs()
        info, features = (_read_json(folder / name) for name in ("dataset_info.json", "features.json"))
        with _as_written(folder / "features.json"):
            self.features = step_features(features, folder)
        with _as_written(folder / "dataset_info.json"):
            self.shards = _find_shards(folder, info)
        self.files = tuple(shard.path for shard in self.shards)
        self.num_episodes = sum(shard.num_episodes for shard in self.shards)
        self._splits = self._name_splits()
        described = {name: vars(feature) for name, feature in sorted(self.features.items())}
        self._entry, self._recorded = entry, RecordedNames.load(folder)
        self.layout = json.dumps([_READER_VERSION, described, str(self._recorded)], default=str)

    def _name_splits(self) -> dict[str, str]:
        """Name of a recorded split -> the one that its episodes belong to: without "train", the split of all episodes stands for it."""
        names = list(dict.fromkeys(shard.split for shard in self.shards))
        renamed = {name: usual_split(name) or name for name in names}
        if len(set(renamed.values())) < len(names):  # two names of one split
            renamed = {name: name for name in names}
        others = [name for name in names if usual_split(name) is None]
        whole = next((name for name in others if name.lower() in _WHOLE), others[0] if len(others) == 1 else None)
        if "train" not in renamed.values() and whole is not None:
            self.repairs.note(f"the split {whole!r} is taken for 'train', which is absent", str(self.folder / "dataset_info.json"))
            renamed[whole] = "train"
        return renamed

    def episodes(self) -> Iterator[RawEpisode]:
        """All episodes, split by split, in the order of the files; a damaged record with that problem, which names file and byte offset.

        Raises:
            ValueError: a shard holds another number of episodes than dataset_info.json says.
        """
        for number, shard in enumerate(self.shards):
            count, split = 0, self._splits[shard.split]
            try:
                for offset, payload in scan_records(shard.path):
                    name = f"{shard.path}, episode {count}"
                    count += 1
                    episode = self._read_or_refuse(split, name, payload, (number, offset))
                    if episode is not None:
                        yield episode
            except CorruptRecordError as error:  # the next record cannot be found
                if count >= shard.num_episodes:
                    raise
                for lost in range(count, shard.num_episodes):
                    yield RawEpisode(split, f"{shard.path}, episode {lost}", {}, problem=str(error))
                continue
            if count != shard.num_episodes:
                raise ValueError(
                    f"{shard.path} holds {count} episodes, dataset_info.json says {shard.num_episodes}; copy the data set again completely"
                )

    def frame_reader(self) -> EncodedFrameReader:
        """What decodes the images of the shards."""
        return EncodedFrameReader(self.files)

    def _read_or_refuse(self, split: str, name: str, payload: np.ndarray | CorruptRecordError, place: tuple[int, int]) -> RawEpisode | None:
        """None: an episode without steps."""
        try:
            if isinstance(payload, CorruptRecordError):
                raise payload
            record = Record.parse(name, payload)
            if record.count_steps(self.features):
                return self._episode(split, name, record, place)
        except CorruptRecordError as error:
            return RawEpisode(split, name, {}, problem=str(error))
        self.repairs.note(NO_STEPS, name)
        return None

    def _episode(self, split: str, name: str, record: Record, place: tuple[int, int]) -> RawEpisode:
        """`place` is the number of the file and the record's first byte in it."""
        trajectory: Trajectory = {}
        words: dict[str, np.ndarray] = {}
        try:
            for path, decoded in record.decode(self.features):
                if decoded.dtype == IMAGE_REF:
                    decoded["file"], decoded["offset"] = place[0], decoded["offset"] + place[1]
                elif decoded.dtype == object:
                    words[path] = decoded
                if self.features[path].kind != "texts":
                    _insert(trajectory, path, decoded)
            told = find_instruction(words, record.instructions_beside_steps(), name.removeprefix(f"{self.folder}{os.sep}"))
        except ValueError as error:
            raise CorruptRecordError(f"{name}: {error}") from error
        if len(told.drawn):
            trajectory["language_instruction"] = told.drawn
        if told.choice:
            self.repairs.note(DRAWN, f"{name}: {len(told.choice)}")
        if self._recorded is not None and self._entry is not None:
            trajectory = self._recorded.restore(trajectory, self._entry)
        facts = {} if self._recorded is None else dict(self._recorded.rendering)
        return RawEpisode(split, name, trajectory, told.choice, facts=facts)


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
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        problem = file_problem(path) or f"is not valid JSON ({error}); copy the data set again"
        raise ValueError(f"{path} {problem}") from error


@contextlib.contextmanager
def _as_written(path: Path) -> Iterator[None]:
    """Names `path` where its values are not those that tensorflow-datasets writes."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not as tensorflow-datasets writes it ({error!r}); copy the data set again") from error


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


def _insert(trajectory: Trajectory, path: str, values: np.ndarray) -> None:
    *groups, leaf = path.split("/")
    for group in groups:
        trajectory = trajectory.setdefault(group, {})
    trajectory[leaf] = values
