"""Demonstrations in groups, in the layout of LIBERO, robomimic, Isaac Lab and RoboCasa -> what is in them. Letters: T steps.

    /data/demo_0/actions             [T, A]      groups may have other names, and may be side by side without /data
    /data/demo_0/obs/<name>          numbers [T, ...], or images, see `images`
    /data/demo_0 attributes          ep_meta (RoboCasa: JSON with lang), task_description, ...: the instruction, see `instructions`
    /data attribute problem_info     LIBERO: JSON with language_instruction
    /mask/train, /mask/valid         names of demonstrations: the splits

LIBERO stores images as OpenGL renders them, upside down. Policies see them rotated by 180 degrees, so the frames read here are
rotated. Other robomimic files are upright already. Groups of numbers within obs (Isaac Lab's datagen_info) are read only where an entry
names a column in them, or where they are called after the robot (ManiSkill's agent).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.episodes import Trajectory
from prismatic.vla.datasets.hdf5.columns import data_sets, is_column, is_group, members
from prismatic.vla.datasets.hdf5.images import holds_depth, holds_images
from prismatic.vla.datasets.hdf5.instructions import (
    Instruction,
    folder_instruction,
    instruction_of_name,
    metadata_instruction,
    problem_instruction,
    stored_instruction,
)
from prismatic.vla.datasets.hdf5.layout import demo_root
from prismatic.vla.datasets.split_names import usual_split
from prismatic.vla.datasets.texts import as_text

_STATE_GROUPS = ("agent/", "robot/", "robot_state/", "proprio/")  # of ManiSkill and others: the robot itself


def demos(file: Any) -> dict[str, Any]:
    """Name -> group of every demonstration, in the order of the numbers in their names; of each, "actions" or "obs" may be absent.

    None in place of a group: it cannot be opened.
    """
    root = demo_root(file)
    group = file[root] if root else file
    named = {name: item for name, item in group.items() if (item is None or is_group(item)) and name != "mask"}
    return {name: named[name] for name in sorted(named, key=_natural)}


def _natural(name: str) -> list[tuple[int, str]]:
    """demo_2 before demo_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def is_empty(demo: Any) -> bool:
    """Whether a demonstration has no steps, or nothing in it."""
    if "actions" in demo and not is_group(demo["actions"]):
        return not len(demo["actions"])
    return not any(stored.ndim and len(stored) for _, stored in data_sets(demo))


def contents(demo: Any) -> list[str]:
    """What obs of a demonstration holds, for messages: names, with type and shape of what might have been pictures."""
    stored = demo.get("obs", {})
    wide = {name: f"{name} ({item.dtype} {list(item.shape)})" for name, item in members(stored) if not is_group(item) and item.ndim > 2}
    return [wide.get(name, name) for name in sorted(stored)]


def masked_splits(file: Any) -> dict[str, str] | None:
    """Name of a demonstration -> split, as /mask says; without "train" all that are not in another; None: no such mask."""
    masks: dict[str, str] = {}
    splits = {name: split for name in file.get("mask", {}) if (split := usual_split(name)) is not None}
    for name in sorted(splits, key=lambda name: splits[name] == "train"):  # one that is in two is trained on
        if is_group(stored := file[f"mask/{name}"]):
            raise ValueError(f"/mask/{name} is a group; names of demonstrations are expected, one for each that belongs to the split")
        masks |= {as_text(value): splits[name] for value in stored[()].ravel()}
    if splits and "train" not in splits.values():
        masks = {**dict.fromkeys(demos(file), "train"), **masks}
    return masks if splits else None  # other masks (20_percent, ...) are choices of their owner


def is_upside_down(file: Any) -> bool:
    """True for LIBERO's files, whose images are as OpenGL renders them."""
    root = demo_root(file)
    if root and "problem_info" in file[root].attrs:
        return True
    first = next((demo for demo in demos(file).values() if demo is not None), None)
    return first is not None and "agentview_rgb" in first.get("obs", {})


def demo_images(demo: Any) -> dict[str, Any]:
    """Camera -> its data set, also within groups of obs ("sensor_data/base_camera/rgb")."""
    return {name: stored for name, stored in data_sets(demo.get("obs", {})) if holds_images(stored)}


def demo_depths(demo: Any) -> list[str]:
    """Pictures of distances in obs."""
    return [stored.name for _, stored in data_sets(demo.get("obs", {})) if stored.ndim > 3 and holds_depth(stored)]


def read_demo(demo: Any, images: Collection[str], wanted: Collection[str]) -> Trajectory:
    """ "action", ... and "observation" of one demonstration without its `images`; of nested groups only the paths that are `wanted`.

    Raises:
        ValueError: a part is missing.
    """
    for part in ("actions", "obs"):
        if part not in demo and not (part == "actions" and any(name.startswith("action") for name in demo)):
            raise ValueError(f"{demo.name}/{part} is missing; found {sorted(demo)}")
    observation: Trajectory = {
        name: stored[()]
        for name, stored in data_sets(demo["obs"])
        if name not in images and ("/" not in name or name in wanted or name.startswith(_STATE_GROUPS)) and is_column(stored)
    }
    if {"ee_states", "gripper_states"} <= observation.keys():
        observation.setdefault("state", np.concatenate([observation["ee_states"], observation["gripper_states"]], axis=1))
    actions = {name: stored[()] for name, stored in data_sets(demo) if name.startswith("action") and is_column(stored)}
    if "actions" in actions:
        actions.setdefault("action", actions["actions"])
    return {**actions, "observation": observation}


def nested_groups(demo: Any, wanted: Collection[str]) -> list[str]:
    """Groups within obs that hold numbers and are not read."""
    return [
        name
        for name, item in members(demo["obs"])
        if is_group(item)
        and not f"{name}/".startswith(_STATE_GROUPS)
        and not any(path.startswith(f"{name}/") for path in wanted)
        and any(not holds_images(stored) for _, stored in data_sets(item))
    ]


def demo_instruction(file: Any, demo: Any, path: Path, root: Path) -> Instruction:
    """What the demonstration says, else its file, else the folder, else the name of a LIBERO file; () if nothing."""
    data = file[demo_root(file) or "/"]
    num_steps = len(demo["actions"]) if "actions" in demo else 0
    groups = [demo, *([demo["obs"]] if "obs" in demo else [])]
    for found in (
        stored_instruction(groups, num_steps),
        metadata_instruction(demo, "ep_meta"),
        problem_instruction(data),
        stored_instruction([data, file], num_steps),
        folder_instruction(path, root, demo.name.rpartition("/")[2]),
    ):
        if len(found):
            return found
    return instruction_of_name(path) if is_upside_down(file) else ()
