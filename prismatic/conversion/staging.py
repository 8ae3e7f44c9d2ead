"""One finished episode per file, images already encoded, until all are there.

Letters: T steps, H, W image size, P proprio dim, A action dim.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.broken_files import is_of_the_disk
from prismatic.vla.datasets.episodes import Episode, FrameError, FrameReader
from prismatic.vla.datasets.locks import LockedError, locked
from prismatic.vla.images import encode_jpeg, resize_lanczos3


@contextlib.contextmanager
def only_writer(stage: Path) -> Iterator[None]:
    """Makes the folder `stage`, which no other process uses meanwhile.

    Raises:
        ValueError: another process does.
    """
    stage.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(stage / "lock"))
        except LockedError as error:
            raise ValueError(f"{error} writes the same data (its unfinished files are in {stage}); wait for it") from error
        yield


@dataclass(frozen=True)
class EncodedEpisode:
    """An episode as RLDS stores it."""

    actions: np.ndarray  # float32 [T, A]
    proprio: np.ndarray  # float32 [T, P]
    images: Mapping[str, list[bytes]]  # camera -> T JPEG files
    shapes: Mapping[str, tuple[int, ...]]  # camera -> (H, W, 3)
    instructions: list[str]  # T


@dataclass(frozen=True)
class StagedEpisode:
    """What is known about a staged episode without its images."""

    path: Path
    name: str  # the recording that it was made from
    split: str  # in the source
    instruction: str  # of the first step
    images: Mapping[str, tuple[int, ...]]  # camera -> (H, W, 3)
    proprio_dim: int
    action_dim: int
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the source says of the episode as a whole; not in the file

    def check(self, other: StagedEpisode) -> None:
        """Accepts episodes of the same robot.

        Raises:
            ValueError: sizes differ; the message names both recordings.
        """
        for what in ("images", "proprio_dim", "action_dim"):
            if getattr(self, what) != getattr(other, what):
                only_sizes = what == "images" and self.images.keys() == other.images.keys()
                remedy = "bring the pictures to one size with --image_size" if only_sizes else "convert them separately"
                raise ValueError(
                    f"{other.name} has {what} {getattr(other, what)}, but {self.name} has {getattr(self, what)}; "
                    f"one data set holds one robot: {remedy}"
                )

    def read(self) -> EncodedEpisode:
        """The episode with its images."""
        with np.load(self.path, allow_pickle=False) as file:
            texts = json.loads(str(file["description"]))["instructions"]
            images = {name: _split(file[f"bytes_{name}"], file[f"lengths_{name}"]) for name in self.images}
            return EncodedEpisode(file["actions"], file["proprio"], images, self.images, texts)


def encode_episode(episode: Episode, cameras: tuple[str, ...], reader: FrameReader, image_size: int | None) -> EncodedEpisode:
    """The episode with its frames decoded, resized to squares of `image_size` pixels unless that is None, and encoded as JPEG.

    Raises:
        FrameError: a frame is damaged.
        ValueError: a camera changes its size within the episode.
    """
    images: dict[str, list[bytes]] = {name: [] for name in cameras}
    shapes: dict[str, tuple[int, ...]] = {}
    for column, name in enumerate(cameras):  # a camera after the other: videos are then decoded forward
        for reference in episode.images[:, column]:
            try:
                frame = reader.read(reference)
            except ValueError as error:
                if is_of_the_disk(error):
                    raise
                raise FrameError(str(error)) from error
            frame = frame if image_size is None else resize_lanczos3(frame, image_size)
            if shapes.setdefault(name, frame.shape) != frame.shape:
                raise ValueError(f"camera {name!r} changes its image size from {shapes[name]} to {frame.shape} within an episode")
            images[name].append(encode_jpeg(frame))
    return EncodedEpisode(episode.actions, episode.proprio, images, shapes, episode.instructions)


def write_staged(path: Path, episode: EncodedEpisode, name: str, split: str) -> None:
    """Writes `path` so that it is either complete or absent."""
    described = {"name": name, "split": split, "instructions": episode.instructions, "images": dict(episode.shapes)}
    described |= {"proprio_dim": episode.proprio.shape[1], "action_dim": episode.actions.shape[1]}
    arrays = {"actions": episode.actions, "proprio": episode.proprio, "description": np.array(json.dumps(described))}
    for camera, files in episode.images.items():
        arrays[f"bytes_{camera}"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"lengths_{camera}"] = np.array([len(file) for file in files], np.int64)
    temporary = path.with_name(f".{path.name}.tmp")  # one process writes into a stage folder at a time
    try:
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # on a full disk it would be in its own way


def is_disk_full(error: Exception) -> bool:
    """Whether that is why writing failed; TensorFlow and TFDS have errors of their own, which only quote the system's words."""
    return any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def load_staged(path: Path) -> StagedEpisode:
    """What `path` says about itself."""
    with np.load(path, allow_pickle=False) as file:
        found = json.loads(str(file["description"]))
    images = {name: tuple(shape) for name, shape in found["images"].items()}
    return StagedEpisode(path, found["name"], found["split"], found["instructions"][0], images, found["proprio_dim"], found["action_dim"])


def _split(joined: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    ends = np.cumsum(lengths)
    return [joined[end - length : end].tobytes() for end, length in zip(ends, lengths, strict=True)]
