"""One episode per file, in the layout of ACT / ALOHA -> what is in it, images as the data sets that hold them. Letters: T steps, A, P dims.

    /action                        [T, A]      what was commanded at each step; also called /actions, or a group of columns
    /base_action                   [T, 2]      a mobile base's linear and angular velocity; any other column beside /action likewise
    /observations/qpos, qvel ...   [T, P]      the state before that action; each may be a group of columns
    /observations/images/<camera>  see `images`; a camera may also lie elsewhere below /observations (rgb_images/top, head_camera/rgb)
    /compress_len                  [cameras, T]
    /rollout                       what `vla.rollout_record` lists; no state and no action

/compress_len is not needed, see `images`; it does not say which of its rows belongs to which camera. A group is kept as one, its columns
are named by their paths ("qpos/left"); only a group with a single column stands for that column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.episodes import Trajectory
from prismatic.vla.datasets.hdf5.columns import data_sets, is_column, is_group, members
from prismatic.vla.datasets.hdf5.images import holds_depth, holds_images
from prismatic.vla.datasets.hdf5.instructions import Instruction, folder_instruction, stored_instruction
from prismatic.vla.datasets.hdf5.layout import OBSERVATION_GROUPS
from prismatic.vla.datasets.rlds.oxe.trajectories import find_value, leaf_paths
from prismatic.vla.datasets.texts import TEXT_NAMES
from prismatic.vla.rollout_record import GROUP

IMAGES = "images"  # below the observations
_MAIN_COLUMNS = ("action", "actions", "qpos")  # read whatever their length, so that a wrong one is named
_NO_COLUMNS = (*OBSERVATION_GROUPS, "compress_len", GROUP, *TEXT_NAMES)


@dataclass(frozen=True)
class ActEpisode:
    """One file, open; the columns are read, the images are not."""

    trajectory: Trajectory  # "action", ..., "observation" -> columns, or groups of them
    images: Mapping[str, Any]  # camera -> its data set
    instruction: Instruction


def read_act_episode(file: Any, path: Path, root: Path) -> ActEpisode:
    """What the open file `path` holds; `root` is the folder of the data set, in which a table of instructions may lie."""
    images = act_images(file)
    columns = _Columns(_num_steps(images), {item.name for item in images.values()})
    observations = _observations(file)
    observation = columns.of_group(observations)
    trajectory = {name: values for name, item in members(file) if name not in _NO_COLUMNS and (values := columns.of(item)) is not None}
    for name, values in trajectory.items():  # RoboMIND's /puppet/joint_position is a state
        if "action" not in name:
            observation.setdefault(name, values)
    if "actions" in trajectory:
        trajectory.setdefault("action", trajectory["actions"])
    _take_only_columns(trajectory, ("action",))
    _take_only_columns(observation, ("qpos",))
    if isinstance(observation.get("qpos"), np.ndarray):
        observation.setdefault("state", observation["qpos"])
    return ActEpisode({**trajectory, "observation": observation}, images, act_instruction(file, path, root))


def act_instruction(file: Any, path: Path, root: Path) -> Instruction:
    """What the file says, else what a table in its folder or one above it, up to `root`, says; () if nothing."""
    found = stored_instruction([file, _observations(file)], _num_steps(act_images(file)))
    return found if len(found) else folder_instruction(path, root)


def _num_steps(images: Mapping[str, Any]) -> int:
    """By the first camera; 0 without."""
    return next((len(stored) for stored in images.values()), 0)


def act_images(file: Any) -> dict[str, Any]:
    """Camera -> its data set: all below /observations/images but depth, and what looks like pictures elsewhere in /observations."""
    observations = _observations(file)
    images: dict[str, Any] = {}
    for name, stored in data_sets(observations):
        below = name.removeprefix(f"{IMAGES}/")
        if holds_images(stored) or (below != name and stored.ndim and not holds_depth(stored)):
            images[below if below not in images else name] = stored
    return images


def act_depths(file: Any) -> list[str]:
    """What lies among the pictures and holds distances."""
    return [stored.name for name, stored in data_sets(_observations(file)) if name.startswith(f"{IMAGES}/") and holds_depth(stored)]


def _observations(file: Any) -> Any:
    return next(file[name] for name in OBSERVATION_GROUPS if name in file)


@dataclass(frozen=True)
class _Columns:
    """Reads numbers of one episode."""

    num_steps: int
    images: set[str]  # paths of data sets that are pictures

    def of(self, item: Any) -> Any:
        """The numbers of a data set, or the columns of a group; None where there are none per step."""
        if is_group(item):
            return self.of_group(item) or None
        if item.name in self.images or not is_column(item):
            return None
        is_per_step = abs(len(item) - self.num_steps) <= 1 or item.name.rpartition("/")[2] in _MAIN_COLUMNS
        return item[()] if is_per_step else None

    def of_group(self, group: Any) -> Trajectory:
        """Name -> columns."""
        return {name: values for name, item in members(group) if name not in TEXT_NAMES and (values := self.of(item)) is not None}


def _take_only_columns(group: Trajectory, names: tuple[str, ...]) -> None:
    """Where a group of these names has a single column, the name stands for it; its path stays."""
    for name in names:
        if isinstance(group.get(name), Mapping) and len(paths := leaf_paths(group[name])) == 1:
            group[f"{name}/{paths[0]}"] = group[name] = find_value(group[name], paths[0])
