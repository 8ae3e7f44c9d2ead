"""A folder of HDF5 recordings -> raw episodes in RLDS naming. Letters: T steps. The layouts of the files: `hdf5.layout`.

    ACT                             LIBERO / robomimic              key in the trajectory
    /action                         actions                         "action"
    /observations/qpos              ee_states + gripper_states      "observation" -> "state" (8 numbers as in LIBERO's RLDS sets)
    /observations/<name>            obs/<name>                      "observation" -> the same name
    images/cam_high                 obs/agentview_rgb               "observation" -> "image" and the same name: IMAGE_REF [T]

In an IMAGE_REF, "offset" is the row (with the number of the demo in its upper half) and "length" the number of the camera.
A file below a folder called val or validation belongs to that split, every other to train.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.cameras import STORED_KEYS, NamedBy, slots_by_name
from prismatic.vla.datasets.episodes import IMAGE_REF, RawEpisode, Trajectory
from prismatic.vla.datasets.hdf5.act import IMAGES, read_act_episode
from prismatic.vla.datasets.hdf5.images import read_frame
from prismatic.vla.datasets.hdf5.instructions import INSTRUCTION_FILE, INSTRUCTIONS_FILE
from prismatic.vla.datasets.hdf5.layout import find_files, is_robomimic, open_file
from prismatic.vla.datasets.hdf5.robomimic import camera_names, demo_numbers, is_upside_down, libero_instruction, read_demo
from prismatic.vla.datasets.repairs import Repairs
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry

_SLOTS = slots_by_name(NamedBy.ACT_FILE, NamedBy.ROBOMIMIC_FILE)
_VAL_FOLDERS = ("val", "validation")
_DEMO_SHIFT = 32  # offset = demo number << 32 | row
_MAX_OPEN_FILES = 64


class Hdf5Source:
    """The episodes of one folder."""

    def __init__(self, folder: Path, entry: DatasetEntry | None = None) -> None:
        """Lists the files and looks into the first; every camera is offered, what `entry` asks for is checked when the index is built.

        Raises:
            ValueError: no files, or the first is damaged or of another layout.
        """
        self.folder, self.repairs = folder, Repairs()
        paths = find_files(folder)
        self._splits = {path: _split_of(path, folder) for path in paths}
        self.files = tuple(sorted(paths, key=lambda path: (self._splits[path] != "train", self._splits[path], path)))
        with open_file(self.files[0]) as file:
            self.robomimic = is_robomimic(file)
            self.cameras = camera_names(file) if self.robomimic else tuple(file[IMAGES])
        texts = sorted(path for name in (INSTRUCTIONS_FILE, INSTRUCTION_FILE) for path in folder.rglob(name))
        instructions = [(str(path.relative_to(folder)), path.read_text()) for path in texts]
        self.layout = json.dumps(["robomimic" if self.robomimic else "act", self.cameras, instructions])
        self.num_episodes = self._count() if self.robomimic else len(self.files)

    def episodes(self) -> Iterator[RawEpisode]:
        """All episodes, split by split, in the order of the files.

        Raises:
            ValueError: a damaged file or one of another layout; the message names it.
        """
        for number, path in enumerate(self.files):
            with open_file(path) as file:
                if is_robomimic(file) != self.robomimic:
                    raise ValueError(f"its layout differs from that of {self.files[0]}; a folder holds one kind of recording")
                if not self.robomimic:
                    yield RawEpisode(self._splits[path], str(path), self._act_trajectory(file, path, number))
                    continue
                text = libero_instruction(file, path)
                for demo in demo_numbers(file):
                    trajectory = self._demo_trajectory(file[f"data/demo_{demo}"], number, demo)
                    trajectory["language_instruction"] = text
                    yield RawEpisode(self._splits[path], f"{path}, demo_{demo}", trajectory)

    def frame_reader(self) -> Hdf5FrameReader:
        """What reads the rows of the image data sets."""
        return Hdf5FrameReader(self.files, self.cameras, self.robomimic)

    def _count(self) -> int:
        total = 0
        for path in self.files:
            with open_file(path) as file:
                total += len(file["data"]) if "data" in file else 1
        return total

    def _act_trajectory(self, file: Any, path: Path, number: int) -> Trajectory:
        episode = read_act_episode(file, path)
        for camera, name in enumerate(self.cameras):
            if name in episode.images:
                _add_camera(episode.trajectory["observation"], name, _references(episode.images[name], number, camera))
        return episode.trajectory

    def _demo_trajectory(self, demo: Any, number: int, demo_number: int) -> Trajectory:
        trajectory = read_demo(demo)
        for camera, name in enumerate(self.cameras):
            if name in demo["obs"]:
                _add_camera(trajectory["observation"], name, _references(demo["obs"][name], number, camera, demo_number))
        return trajectory


class Hdf5FrameReader:
    """Single rows of image data sets; files are opened lazily in each process."""

    is_sequential = False

    def __init__(self, files: tuple[Path, ...], cameras: tuple[str, ...], robomimic: bool) -> None:
        self._files, self._cameras, self._robomimic = files, cameras, robomimic
        self._open: OrderedDict[int, tuple[Any, bool]] = OrderedDict()  # file number -> open file, whether its images are upside down
        self._process = os.getpid()

    def read(self, reference: np.void) -> np.ndarray:
        """uint8 RGB [height, width, 3] of one IMAGE_REF; LIBERO's images are turned upright.

        Raises:
            ValueError: the row is damaged; the message names file, data set and row.
        """
        number, offset, camera = (int(reference[name]) for name in ("file", "offset", "length"))
        row, name = offset & (1 << _DEMO_SHIFT) - 1, self._cameras[camera]
        place = f"data/demo_{offset >> _DEMO_SHIFT}/obs/{name}" if self._robomimic else f"{IMAGES}/{name}"
        file, upside_down = self._file(number)
        try:
            return read_frame(file[place], row, upside_down)
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(f"{self._files[number]}, /{place}, row {row}: {error}") from error

    def _file(self, number: int) -> tuple[Any, bool]:
        import h5py

        if self._process != os.getpid():  # forked: an inherited file would share its state with the parent
            self._open, self._process = OrderedDict(), os.getpid()
        found = self._open.pop(number, None)
        if found is None:
            if len(self._open) >= _MAX_OPEN_FILES:
                self._open.popitem(last=False)[1][0].close()
            try:
                file = h5py.File(self._files[number], "r")
            except OSError as error:
                raise ValueError(f"{self._files[number]}: cannot be read as HDF5 ({error}); copy it again") from error
            found = file, self._robomimic and is_upside_down(file)
        self._open[number] = found  # most recently used last
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_process": -1}


def _split_of(path: Path, folder: Path) -> str:
    parts = [part.lower() for part in path.relative_to(folder).parts[:-1]]
    return "val" if any(part in _VAL_FOLDERS for part in parts) else "train"


def _references(stored: Any, number: int, camera: int, demo: int = 0) -> np.ndarray:
    references = np.zeros(len(stored), IMAGE_REF)
    references["file"], references["length"] = number, camera
    references["offset"] = np.arange(len(stored), dtype=np.int64) | demo << _DEMO_SHIFT
    return references


def _add_camera(observation: Trajectory, name: str, references: np.ndarray) -> None:
    observation[name] = references
    if name in _SLOTS:
        observation.setdefault(STORED_KEYS[_SLOTS[name]], references)
