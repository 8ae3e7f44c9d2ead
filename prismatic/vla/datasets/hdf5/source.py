"""A folder of HDF5 recordings -> raw episodes in RLDS naming. Letters: T steps. The layouts of the files: `act`, `robomimic`.

    ACT                             LIBERO / robomimic              key in the trajectory
    /action, /base_action, ...      actions                         "action", "base_action", ...
    /observations/qpos              ee_states + gripper_states      "observation" -> "state" (8 numbers as in LIBERO's RLDS sets)
    /observations/<name>            obs/<name>                      "observation" -> the same name
    images/cam_high                 obs/agentview_rgb               "observation" -> "image" and the same name: IMAGE_REF [T]

In an IMAGE_REF, "offset" is the row (with the number of the demonstration in its upper half) and "length" the number of the camera.
A file's folder says its split, or /mask in a robomimic file.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from prismatic.vla.cameras import STORED_KEYS, NamedBy, slots_by_name
from prismatic.vla.datasets.episodes import IMAGE_REF, RawEpisode, Trajectory
from prismatic.vla.datasets.hdf5 import robomimic
from prismatic.vla.datasets.hdf5.act import IMAGES, act_depths, act_images, read_act_episode
from prismatic.vla.datasets.hdf5.columns import unopened, without_last_observation
from prismatic.vla.datasets.hdf5.facts import episode_facts, step_commanders
from prismatic.vla.datasets.hdf5.frames import DEMO_SHIFT, Hdf5FrameReader
from prismatic.vla.datasets.hdf5.images import image_remark, raw_problem
from prismatic.vla.datasets.hdf5.instructions import Instruction, text_files
from prismatic.vla.datasets.hdf5.layout import demo_root, files_below, find_files, is_robomimic, named_errors, open_file, split_folders
from prismatic.vla.datasets.hdf5.rate import check_rate, describe_file, describe_hdf5
from prismatic.vla.datasets.repairs import DRAWN, NO_STEPS, Repairs
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.texts import TEXT_FILES, draw_text, read_text
from prismatic.vla.rollout_record import COMMANDED_BY

T = TypeVar("T")

_SLOTS = slots_by_name(NamedBy.ACT_FILE, NamedBy.ROBOMIMIC_FILE)
_LOST_STEPS = (
    "rollouts lack commands for which no picture was there in time, and are read without a gap; --exclude_episodes leaves them out"
)
_NESTED = "groups of numbers within obs are not read (a path in state_obs_keys names one)"
_MOST_EXAMPLES = 50  # files or demonstrations that are looked at to learn which cameras there are
_READER_VERSION = 6  # changes where the same files give other episodes
_FRAMES_VERSION = 3  # where the same places in them give other pictures


@dataclass(frozen=True)
class _Place:
    """Where one episode lies."""

    split: str
    file: int  # number in Hdf5Source.files
    demo: str | None = None  # name of the demonstration in its file; None: the file is the episode
    demo_number: int = 0  # in the order of the file's demonstrations
    problem: str = ""  # why its demonstrations cannot be told

    @property
    def order(self) -> tuple[bool, str]:
        return self.split != "train", self.split

    def name(self, path: Path) -> str:
        """How messages call it."""
        return str(path) if self.demo is None else f"{path}, {self.demo}"


class Hdf5Source:
    """The episodes of one folder."""

    def __init__(self, folder: Path, entry: DatasetEntry | None = None, only: str = "") -> None:
        """Lists files and demonstrations; every camera is offered, what `entry` asks for is checked when the index is built.

        `only`: the file in the folder, or below it, that is read; "": all. One that is damaged becomes an episode that cannot be used.

        Raises:
            ValueError: no files, or the first is damaged, of another layout, or without images.
        """
        self.folder, self.repairs, self._entry, self._only = folder, Repairs(), entry or DatasetEntry(), only
        paths = [folder / only] if only else find_files(folder, self.repairs)
        splits = split_folders(paths, folder)
        self.files = tuple(sorted(paths, key=lambda path: (splits[path] != "train", splits[path], path)))
        self._example, self.robomimic, self._camera_paths = self._look_at_files()
        self.cameras = tuple(self._camera_paths)
        self.frame_layout = json.dumps([_FRAMES_VERSION, "robomimic" if self.robomimic else "act", self._camera_paths])
        texts = text_files(paths[0], folder) if only else filter(_may_be_text, files_below(folder))
        self._texts = [(str(path.relative_to(folder)), read_text(path)) for path in sorted(texts)]
        self.layout = self._describe_layout()
        if self.robomimic:
            self._places = self._find_demos(splits)
        else:
            self._places = [_Place(splits[path], number) for number, path in enumerate(self.files)]
        self.num_episodes = len(self._places)

    def under(self, entry: DatasetEntry) -> Hdf5Source:
        """The same folder, read for `entry`."""
        other = copy.copy(self)
        other._entry = entry
        other.layout = other._describe_layout()
        return other

    def _describe_layout(self) -> str:
        """Whatever else than the files decides about the episodes."""
        return json.dumps([_READER_VERSION, self.frame_layout, self._texts, self._entry.fps])

    def episodes(self) -> Iterator[RawEpisode]:
        """All episodes, split by split, in the order of the files; those that cannot be read, or have another layout or rate, with that
        problem."""
        usual = describe_hdf5(self.folder, self._only)
        for number, places in groupby(self._places, key=lambda place: place.file):
            path, waiting = self.files[number], list(places)
            try:
                with open_file(path) as file:
                    self._check_layout(file)
                    check_rate(describe_file(file), usual, self._entry.fps)
                    while waiting:
                        episode = self._read_or_refuse(file, path, waiting.pop(0))
                        if episode is not None:
                            yield episode
            except ValueError as error:  # the whole file
                yield from (RawEpisode(place.split, place.name(path), {}, problem=str(error)) for place in waiting)

    def _read_or_refuse(self, file: Any, path: Path, place: _Place) -> RawEpisode | None:
        """None: an episode without steps."""
        if place.problem:
            return RawEpisode(place.split, place.name(path), {}, problem=place.problem)
        try:
            with named_errors(path):
                return self._act_episode(file, path, place) if place.demo is None else self._demo_episode(file, path, place, place.demo)
        except ValueError as error:
            return RawEpisode(place.split, place.name(path), {}, problem=str(error))

    def frame_reader(self) -> Hdf5FrameReader:
        """What reads the rows of the image data sets."""
        return Hdf5FrameReader(self.files, tuple(self._camera_paths.values()))

    def _look_at_files(self) -> tuple[Path, bool, dict[str, str]]:
        """The first file that can be read, which the others are compared with; whether it is robomimic's; camera -> its path in it.

        Raises:
            ValueError: none can be read; the message is about the first.
        """
        problem: ValueError | None = None
        for path in self.files:
            try:
                with open_file(path) as file:
                    layout = is_robomimic(file)
            except ValueError as error:
                problem = problem or error
            else:
                return path, layout, self._find_cameras(path, layout)
        assert problem is not None, "there is at least one file"
        if self._only:
            return self.files[0], False, {}
        raise problem

    def _find_cameras(self, example: Path, of_demos: bool) -> dict[str, str]:
        """Camera -> its path in the files, of all cameras that `example` or another of some files has: any episode may lack one.

        Raises:
            ValueError: none has pictures; the message is about the first.
        """
        found: dict[str, str] = {}
        problem: ValueError | None = None
        some = _some(self.files)
        for number, path in enumerate((example, *some, *self.files)):
            if found and number > len(some):
                break
            try:
                with open_file(path) as file:
                    if is_robomimic(file) is of_demos:
                        cameras = self._demo_cameras(file) if of_demos else _act_cameras(file)
                        found |= {name: place for name, place in cameras.items() if name not in found}
            except ValueError as error:
                problem = problem or error
        if found:
            return found
        raise problem or ValueError(f"{self.folder} holds no demonstration with steps; record some, or copy the data set again")

    def _demo_cameras(self, file: Any) -> dict[str, str]:
        """Camera -> its path in obs, of some demonstrations that are not empty; {} where all are.

        Raises:
            ValueError: they have no pictures.
        """
        filled = [demo for demo in robomimic.demos(file).values() if demo is not None and not robomimic.is_empty(demo)]
        cameras = {name: name for demo in _some(filled, _MOST_EXAMPLES // len(self.files) + 1) for name in robomimic.demo_images(demo)}
        if filled and not cameras:
            raise ValueError(
                f"no images in {filled[0].name}/obs; found {', '.join(robomimic.contents(filled[0]))}. "
                "Record or render the demonstrations with cameras (uint8): a policy needs pictures"
            )
        return cameras

    def _find_demos(self, splits: Mapping[Path, str]) -> list[_Place]:
        """The demonstrations of all files, split by split; those that are empty or masked out are noted."""
        places = []
        for number, path in enumerate(self.files):
            try:
                with open_file(path) as file:
                    self._check_layout(file)
                    places += list(self._demos_of(file, path, number, splits[path]))
            except ValueError as error:
                places.append(_Place(splits[path], number, problem=str(error)))
        return sorted(places, key=lambda place: place.order)

    def _demos_of(self, file: Any, path: Path, number: int, split_of_file: str) -> Iterator[_Place]:
        masks = robomimic.masked_splits(file)
        for demo_number, (name, demo) in enumerate(robomimic.demos(file).items()):
            split = split_of_file if masks is None or split_of_file != "train" else masks.get(name)
            if demo is not None and robomimic.is_empty(demo):
                self.repairs.note(NO_STEPS, f"{path}, {name}")
            elif split is None:
                self.repairs.note("demonstrations that /mask names neither in train nor in valid are left out", f"{path}, {name}")
            else:
                yield _Place(split, number, name, demo_number)

    def _check_layout(self, file: Any) -> None:
        if is_robomimic(file) != self.robomimic:
            raise ValueError(f"its layout differs from that of {self._example}; a folder holds one kind of recording")

    def _act_episode(self, file: Any, path: Path, place: _Place) -> RawEpisode | None:
        episode = read_act_episode(file, path, self.folder)
        if not episode.images and len(episode.trajectory.get("action", ())):
            raise ValueError(_no_images(file))
        if not any(map(len, episode.images.values())):
            self.repairs.note(NO_STEPS, str(path))
            return None
        self._note_depths(act_depths(file), str(path))
        self._note_unused_actions(episode.trajectory, str(path))
        commanders = step_commanders(file)
        told = {} if commanders is None else {COMMANDED_BY: commanders}
        found = self._episode(place, place.name(path), {**episode.trajectory, **told}, episode.images, episode.instruction)
        facts = episode_facts(file)
        if commanders is not None and (num_lost := facts.get("num_left_out")):
            self.repairs.note(_LOST_STEPS, f"{path}: {num_lost} beside {len(commanders)} steps")
        return replace(found, facts=facts)

    def _demo_episode(self, file: Any, path: Path, place: _Place, name: str) -> RawEpisode:
        demo = robomimic.demos(file)[name]
        if demo is None:
            raise ValueError(unopened(file[demo_root(file) or "/"], name))
        where = place.name(path)
        wanted = {key for key in self._entry.state_obs_keys if key is not None}
        trajectory = robomimic.read_demo(demo, self.cameras, wanted)
        for group in robomimic.nested_groups(demo, wanted):
            self.repairs.note(_NESTED, f"{where}: obs/{group}")
        self._note_depths(robomimic.demo_depths(demo), where)
        images = {camera: demo["obs"][camera] for camera in self.cameras if camera in demo["obs"]}
        found = self._episode(place, where, trajectory, images, robomimic.demo_instruction(file, demo, path, self.folder))
        return replace(found, facts=episode_facts(demo))

    def _episode(self, place: _Place, name: str, trajectory: Trajectory, images: Mapping[str, Any], instruction: Instruction) -> RawEpisode:
        """The episode with references to its images and one instruction."""
        wanted = set(self._entry.cameras.values())
        for number, camera in enumerate(self.cameras):
            if camera in images:
                if (problem := raw_problem(images[camera])) and (len(images) == 1 or not wanted.isdisjoint(_camera_names(camera))):
                    raise ValueError(problem)
                if remark := image_remark(images[camera]):
                    self.repairs.note(remark, f"{name}: {camera} {list(images[camera].shape)}")
                _add_camera(trajectory["observation"], camera, _references(images[camera], place, number))
        texts: tuple[str, ...] = ()
        if isinstance(instruction, np.ndarray):
            trajectory["language_instruction"] = instruction
        elif instruction:
            trajectory["language_instruction"] = draw_text(instruction, name.removeprefix(f"{self.folder}{os.sep}"))
            texts = instruction if len(instruction) > 1 else ()
        if texts:
            self.repairs.note(DRAWN, f"{name}: {len(texts)}")
        if (cut := without_last_observation(trajectory)) is not None:
            self.repairs.note("observations behind the last action are left out", f"{name}: one step more than actions")
            trajectory = cut
        return RawEpisode(place.split, name, trajectory, texts)

    def _note_depths(self, depths: list[str], where: str) -> None:
        for depth in depths:
            self.repairs.note("depth images are not read", f"{where}: {depth}")

    def _note_unused_actions(self, trajectory: Trajectory, where: str) -> None:
        """A mobile base's commands beside /action must not be dropped without a word."""
        used = self._entry.action_keys
        for key, values in trajectory.items():
            if "action" not in key or key in used or key.partition("/")[0] in ("action", "actions") or not isinstance(values, np.ndarray):
                continue
            largest = float(np.abs(values).max(initial=0))
            what = "is not used" if largest else "is always 0 and not used"
            keys = ", ".join(f'"{item}"' for item in (*used, key))
            self.repairs.note(
                f"/{key} is recorded beside the actions and {what}",
                f"{where}: {list(values.shape)}, up to {largest:.3g}; action_keys=({keys}) joins it, in a conversion --action "
                f"{','.join((*used, key))}",
            )


def _act_cameras(file: Any) -> dict[str, str]:
    """Camera -> its path in the file.

    Raises:
        ValueError: there is none.
    """
    images = act_images(file)
    if not images:
        raise ValueError(_no_images(file))
    return {name: stored.name for name, stored in images.items()}


def _no_images(file: Any) -> str:
    return f"no images: /observations/{IMAGES} is missing or empty; found {sorted(file)}. Record with cameras"


def _some(items: Sequence[T], most: int = _MOST_EXAMPLES) -> Sequence[T]:
    """At most so many of them, the first among them, and from everywhere."""
    return items[:: max(len(items) - 1, 0) // most + 1]


def _may_be_text(path: Path) -> bool:
    return path.name in TEXT_FILES or (path.parent.name == "instructions" and path.suffix == ".json")


def _references(stored: Any, place: _Place, camera: int) -> np.ndarray:
    references = np.zeros(len(stored), IMAGE_REF)
    references["file"], references["length"] = place.file, camera
    references["offset"] = np.arange(len(stored), dtype=np.int64) | place.demo_number << DEMO_SHIFT
    return references


def _add_camera(observation: Trajectory, name: str, references: np.ndarray) -> None:
    observation[name] = references
    for other in _camera_names(name):
        observation.setdefault(other, references)


def _camera_names(name: str) -> tuple[str, ...]:
    """Under which an entry may ask for a camera."""
    return (name, STORED_KEYS[_SLOTS[name]]) if name in _SLOTS else (name,)
