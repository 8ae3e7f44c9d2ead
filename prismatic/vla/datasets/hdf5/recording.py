"""One demonstration per HDF5 file, in the layout of ACT / ALOHA. Letters: T steps, A action dim, P proprio dim, H, W image size.

    /action                        float32 [T, A]        what the demonstrator wanted at each step (raw units)
    /observations/qpos             float32 [T, P]        proprio before that action (raw units)
    /observations/images/<camera>  uint8 [T, H, W, 3]    camera: primary, wrist, ... (or ALOHA's names for them)
    attributes                     language_instruction; success, seed, task where known

Files recorded by ALOHA's own scripts are read too, see `act`. `hdf5.source` reads a folder of them without loading its images.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.cameras import NamedBy, slots_by_name
from prismatic.vla.datasets.hdf5.act import read_act_episode
from prismatic.vla.datasets.hdf5.images import read_frames
from prismatic.vla.datasets.hdf5.layout import is_robomimic, open_file
from prismatic.vla.datasets.texts import distinct_texts, draw_text
from prismatic.vla.types import check_image

_SLOTS = slots_by_name(NamedBy.ACT_FILE)


@dataclass(frozen=True)
class Recording:
    """One demonstration in memory."""

    actions: np.ndarray  # float32 [T, A]
    proprio: np.ndarray  # float32 [T, P]
    images: Mapping[str, np.ndarray]  # camera slot -> uint8 [T, H, W, 3]
    instruction: str
    attributes: Mapping[str, Any] = field(default_factory=dict)  # success, seed, task, ...

    def __post_init__(self) -> None:
        lengths = {"action": len(self.actions), "qpos": len(self.proprio)} | {name: len(images) for name, images in self.images.items()}
        if len(set(lengths.values())) != 1 or not len(self.actions):
            raise ValueError(f"recording: all parts need the same number of steps, at least one; found {lengths}")
        for name, values in (("action", self.actions), ("qpos", self.proprio)):
            if values.ndim != 2 or not np.isfinite(values).all():
                raise ValueError(f"recording: {name} must be finite numbers [steps, dimensions], found shape {list(values.shape)}")
        if not self.images:
            raise ValueError("recording: no camera images; at least the primary camera is needed")
        for name, images in self.images.items():
            check_image(name, images[0])
        if not self.instruction.strip():
            raise ValueError("recording: the language instruction is empty")

    @property
    def num_steps(self) -> int:
        return len(self.actions)


def write_recording(path: Path, recording: Recording) -> None:
    """Writes `path` so that it is either complete or absent: into a temporary file first, then renamed."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            file.create_dataset("action", data=recording.actions.astype(np.float32))
            observations = file.create_group("observations")
            observations.create_dataset("qpos", data=recording.proprio.astype(np.float32))
            for name, images in recording.images.items():
                # One chunk per image, lightly compressed: half the size for a tenth of the rendering time.
                chunks = (1, *images.shape[1:])
                observations.create_dataset(f"images/{name}", data=images, chunks=chunks, compression="gzip", compression_opts=1)
            file.attrs["language_instruction"] = recording.instruction
            for name, value in recording.attributes.items():
                file.attrs[name] = value
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_recording(path: Path, instruction: str | None = None) -> Recording:
    """The demonstration in `path`, images decoded; `instruction` fills in, or replaces, the file's own.

    Raises:
        ValueError: not an HDF5 file, a part is missing, parts differ in length, or there is no instruction; names the file and the part.
    """
    with open_file(path) as file:
        if is_robomimic(file):
            raise ValueError("holds many demonstrations (/data); read it with prismatic.vla.datasets.hdf5.source")
        episode = read_act_episode(file, path, path.parent)
        text = instruction or draw_text(distinct_texts(episode.instruction), path.name)
        if not text:
            raise ValueError("attribute language_instruction is missing; record it, or pass --instruction for the whole folder")
        action, proprio = (
            _array(values, name)
            for name, values in (
                ("action", episode.trajectory.get("action")),
                ("observations/qpos", episode.trajectory["observation"].get("qpos")),
            )
        )
        attributes = {name: value for name, value in file.attrs.items() if name != "language_instruction"}
        images = {_slot(name): read_frames(stored) for name, stored in episode.images.items()}
        return Recording(action, proprio, images, text, attributes)


def _array(values: Any, name: str) -> np.ndarray:
    if not isinstance(values, np.ndarray):
        raise ValueError(f"/{name} is {'missing' if values is None else f'a group of {sorted(values)}'}; an array is needed")
    return values


def _slot(camera: str) -> str:
    if camera not in _SLOTS:
        raise ValueError(f"camera {camera!r} is none of {', '.join(_SLOTS)}; rename /observations/images/{camera}")
    return _SLOTS[camera]
