"""What trajectory transforms are made of: columns, keys, steps and gripper conventions. Letters: T steps, D columns.

A trajectory is a nested dictionary of arrays whose first axis is time; nothing here alters what it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Trajectory = dict[str, Any]


def invert_gripper_actions(actions: np.ndarray) -> np.ndarray:
    """0 <-> 1; its own inverse."""
    return 1 - actions


def binarize_gripper_actions(actions: np.ndarray) -> np.ndarray:
    """float32 [T] of 0 and 1, of [T] near 0 (closed) or 1 (open): a value in between takes the one that is reached after it.

    Values in between at the very end, after which nothing is reached, take the last value.
    """
    actions = np.asarray(actions, np.float32)
    is_open, is_closed = actions > 0.95, actions < 0.05
    result = np.empty_like(actions)
    reached = actions[-1] if len(actions) else np.float32(0)
    for step in reversed(range(len(actions))):
        if is_open[step] or is_closed[step]:
            reached = np.float32(is_open[step])
        result[step] = reached
    return result


def rel2abs_gripper_actions(actions: np.ndarray) -> np.ndarray:
    """float32 [T] of 1 (open) and 0 (closed), of [T] changes: above 0.1 closes, below -0.1 opens, else the gripper stays.

    The first change is taken to be one, so the gripper was the opposite before it; without any change it is open throughout.
    """
    actions = np.asarray(actions)
    command = np.where(actions < -0.1, 1, np.where(actions > 0.1, -1, 0))
    changes = np.flatnonzero(command)
    if not len(changes):
        return np.ones(len(actions), np.float32)
    latest = np.maximum.accumulate(np.where(command != 0, np.arange(len(command)), -1))
    state = np.where(latest < 0, -command[changes[0]], command[latest])
    return (state / 2 + 0.5).astype(np.float32)


def join_columns(*columns: np.ndarray) -> np.ndarray:
    """float32 [T, D]: the columns side by side; [T] counts as one column."""
    rows = [np.asarray(column, np.float32) for column in columns]
    return np.concatenate([row[:, None] if row.ndim == 1 else row for row in rows], axis=1)


def zero_columns(values: np.ndarray, width: int) -> np.ndarray:
    return np.zeros((len(values), width), np.float32)


def replace_keys(trajectory: Trajectory, action: np.ndarray | None = None, **observation: np.ndarray) -> Trajectory:
    """A new trajectory with this action and with these keys added to the observation."""
    changed = {**trajectory, "observation": {**trajectory["observation"], **observation}}
    return changed if action is None else {**changed, "action": action}


def with_observed_instruction(trajectory: Trajectory) -> Trajectory:
    """The instruction that the first Open X-Embodiment data sets keep in the observation."""
    return {**trajectory, "language_instruction": trajectory["observation"]["natural_language_instruction"]}


def select_steps(trajectory: Mapping[str, Any], steps: slice) -> Trajectory:
    """Those steps of every array, images included; one array under several names stays one array, by which its names are told apart."""
    chosen: dict[int, Any] = {}

    def select(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: select(item) for key, item in value.items()}
        if np.ndim(value):
            return chosen.setdefault(id(value), value[steps])
        return value

    return {key: select(value) for key, value in trajectory.items()}


def find_value(group: Mapping[str, Any], path: str) -> Any:
    """The value at "a/b", whether the source keeps the name whole or made groups of it.

    Raises:
        KeyError: there is none; it names the whole path.
    """
    if path in group:
        return group[path]
    value: Any = group
    for name in path.split("/"):
        if not isinstance(value, Mapping) or name not in value:
            raise KeyError(path)
        value = value[name]
    return value


def leaf_paths(group: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The paths of all arrays within groups, as `find_value` takes them."""
    paths: list[str] = []
    for name, value in group.items():
        paths += leaf_paths(value, f"{prefix}{name}/") if isinstance(value, Mapping) else [f"{prefix}{name}"]
    return paths
