"""One record of a TFDS file -> the values of each leaf of its steps. Letters: T steps.

    kind of leaf              stored                                   decoded
    Image                     one file per step                        IMAGE_REF [T]
    Text, string Tensor       one value per step                       object [T, *shape] of texts, or of bytes that are none;
                                                                       IMAGE_REF [T] where the values are image files
    Sequence(Text), string    values of all steps behind each other,   object [T] of tuples: several texts for each step
      Tensor of open length   their number per step beside them
    Tensor, ClassLabel        values, or one byte string per step      [T, *shape]

Source: tensorflow_datasets/core/example_serializer.py.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from prismatic.vla.datasets.episodes import IMAGE_REF
from prismatic.vla.datasets.rlds.features import STEPS, StepFeature, number_type
from prismatic.vla.datasets.rlds.tfrecord import CorruptRecordError, Feature, parse_example
from prismatic.vla.datasets.texts import as_text, instruction_names
from prismatic.vla.images import image_format

_FLAT, _LENGTHS = "ragged_flat_values", "ragged_row_lengths_0"


@dataclass(frozen=True)
class Record:
    """The features of one tf.train.Example, and the bytes that hold them."""

    stored: Mapping[str, Feature]
    payload: np.ndarray  # uint8

    @classmethod
    def parse(cls, name: str, payload: np.ndarray) -> Record:
        """The record called `name`.

        Raises:
            CorruptRecordError: the bytes are no such message.
        """
        try:
            return cls(parse_example(payload), payload)
        except CorruptRecordError as error:
            raise CorruptRecordError(f"{name}: {error}") from error

    def count_steps(self, features: Mapping[str, StepFeature]) -> int:
        """T, by the first leaf that tells; 0 where every leaf is empty or absent."""
        for path, feature in features.items():
            values = self.stored.get(f"{STEPS}/{path}")
            if values is not None and len(values) and feature.kind != "texts":
                per_step = math.prod(feature.shape) if values.ndim == 1 or feature.kind == "text" else 1
                return len(values) // max(per_step, 1)
        return 0

    def decode(self, features: Mapping[str, StepFeature]) -> Iterator[tuple[str, np.ndarray]]:
        """(path, one row per step) of every leaf that the record has; references to images count from the payload's first byte.

        Raises:
            ValueError: the values contradict the description.
        """
        num_steps = self.count_steps(features)
        for path, feature in features.items():
            name = f"{STEPS}/{path}"
            if feature.kind == "texts":
                if (lists := self._text_lists(name, num_steps)) is not None:
                    yield path, lists
            elif name in self.stored:
                yield path, self._decode(self.stored[name], feature)

    def instructions_beside_steps(self) -> list[list[str]]:
        """The text, or list of texts, of what describes the whole episode, mostly "episode_metadata/language_instruction"."""
        named = {name.rpartition("/")[2]: values for name, values in self.stored.items() if not name.startswith(f"{STEPS}/")}
        return [[as_text(text) for text in self._texts(named[name])] for name in instruction_names(named) if named[name].ndim == 2]

    def _decode(self, values: Feature, feature: StepFeature) -> np.ndarray:
        is_ranges = values.ndim == 2
        if feature.kind == "image":
            return _image_references(values, is_ranges)
        if feature.kind == "text":
            if not is_ranges:
                raise ValueError("a Text feature holds numbers instead of strings")
            if not feature.shape and self._are_images(values):
                return _image_references(values, is_ranges)
            return self._texts(values).reshape(-1, *feature.shape)
        dtype = number_type(feature.dtype)
        if is_ranges:  # Tensor(encoding="bytes" or "zlib"): one byte string per step
            parts = [zlib.decompress(part) if feature.encoding == "zlib" else part for part in self._byte_strings(values)]
            return np.stack([np.frombuffer(part, dtype).reshape(feature.shape) for part in parts])
        return values.astype(dtype).reshape(-1, *feature.shape)

    def _text_lists(self, name: str, num_steps: int) -> np.ndarray | None:
        """object [T] of tuples of texts; None if the record has none."""
        if name in self.stored:  # a tensor: the same number of texts for every step
            values = self.stored[name]
            lengths = np.full(num_steps, len(values) // max(num_steps, 1))
        elif f"{name}/{_FLAT}" in self.stored:
            values, lengths = self.stored[f"{name}/{_FLAT}"], self.stored[f"{name}/{_LENGTHS}"].astype(int)
        else:
            return None
        if lengths.sum() != len(values) or (len(values) and values.ndim != 2):
            raise ValueError(f"{name} holds {len(values)} values for lists of {lengths.sum()} texts")
        texts, ends = self._texts(values).tolist(), np.cumsum(lengths).tolist()
        lists = np.empty(len(ends), dtype=object)
        lists[:] = [tuple(texts[end - length : end]) for end, length in zip(ends, lengths.tolist(), strict=True)]
        return lists

    def _are_images(self, ranges: Feature) -> bool:
        """Whether the first value that is not empty starts like an image file."""
        start = next((start for start, length in ranges.tolist() if length), None)
        return start is not None and image_format(self.payload[start : start + 16].tobytes()) != ""

    def _texts(self, ranges: Feature) -> np.ndarray:
        texts = np.empty(len(ranges), dtype=object)
        texts[:] = [_as_text(text) for text in self._byte_strings(ranges)]
        return texts

    def _byte_strings(self, ranges: Feature) -> list[bytes]:
        return [self.payload[start : start + length].tobytes() for start, length in ranges.tolist()] if ranges.ndim == 2 else []


def _as_text(stored: bytes) -> str | bytes:
    """The text; strings may hold anything (packed numbers), so what is no UTF-8 stays as it is."""
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return stored


def _image_references(values: Feature, is_ranges: bool) -> np.ndarray:
    if not is_ranges:
        raise ValueError("an Image feature holds numbers instead of encoded images")
    references = np.zeros(len(values), IMAGE_REF)
    references["offset"], references["length"] = values[:, 0], values[:, 1]
    return references
