"""The first episodes of a folder -> which stored columns are the actions, the state and the cameras, and their values joined.

Letters: M steps of all peeked episodes, A action dim, P proprio dim.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.cameras import assign_cameras, looks_from_wrist, looks_like_colour
from prismatic.vla.constants import near_names
from prismatic.vla.datasets.description import BASE, CHANGE, VELOCITY, Description, Dimension, said_by_column
from prismatic.vla.datasets.episodes import IMAGE_REF, RawEpisode, Trajectory
from prismatic.vla.datasets.rlds.oxe.trajectories import find_value, leaf_paths
from prismatic.vla.diagnosis import listed

_WHOLE_ACTION = 4  # dimensions: a position and a gripper
MIN_WIDTH_OF_TWO_ARMS = 10  # two arms of four joints and a gripper
_WHOLE_STATE = ("state", "proprio", "qpos", "robot_state", "joint_state", "joint_states", "agent_pos", "robot_obs")
_STATE_PARTS = re.compile(r"joint|eef|ee_|end_eff|pose|gripper|position|tcp|qpos")
_NO_STATE = re.compile(r"vel|effort|torque|force|depth|reward|action|time|index|current|load|object|cube|goal|target|_sin$|_cos$|frame")
_NO_COMMAND = re.compile(r"terminate|done|reward|mask|is_|raw|prev|last|mode")
GRIPPER = re.compile(r"gripper|claw|jaw|(?<!end[._])(?<!end)effector")  # in lower case
_APART = "move recordings of other columns into a folder of their own"
_ROLES = (  # in the order in which columns are joined
    ("position", re.compile(r"(eef?|ee|tcp|end_eff\w*|cartesian|hand).*(pos|trans|xyz)|end_?pose|world_vector|translation|^pos|xyz")),
    ("rotation", re.compile(r"rot|euler|quat|orient|rpy|axis_angle")),
    ("joints", re.compile(r"joint|qpos|arm|motor|hand|waist|torso|neck|head|leg|finger")),
    ("gripper", GRIPPER),
)


@dataclass(frozen=True)
class Recorded:
    """What an entry will join, of the peeked episodes."""

    action_keys: tuple[str, ...]
    state_keys: tuple[str, ...]
    actions: np.ndarray  # float32 [M, A]
    states: np.ndarray  # float32 [M, P]
    has_next: np.ndarray  # bool [M - 1]: row i + 1 is the next step of the same episode
    action_dims: tuple[Dimension, ...]  # A of them; without a name where nobody says one
    state_dims: tuple[Dimension, ...]  # P of them
    measured: tuple[int | None, ...]  # per action dimension the state that measures it, if one does
    num_velocities: int | None  # joints whose speed is recorded beside the state; None: no such column
    median_length: int  # steps of an episode

    @property
    def num_episodes(self) -> int:
        return int((~self.has_next).sum()) + 1


def read_columns(folder: Path, episodes: Sequence[RawEpisode], said: Description, notes: list[str]) -> Recorded:
    """The columns that look like actions and state; `notes` take what was left.

    Raises:
        ValueError: nothing looks like an action, or episodes differ in their dimensions.
    """
    first = episodes[0].trajectory
    observation = first.get("observation", {})
    action_keys = _choose_actions(folder, first, notes)
    width = sum(_width(find_value(first, key)) for key in action_keys)
    state_keys = _choose_state(observation, action_keys, width, notes)
    actions = [_join(raw.name, raw.trajectory, action_keys) for raw in episodes]
    states = [
        _join(raw.name, raw.trajectory.get("observation", {}), state_keys, len(rows)) for raw, rows in zip(episodes, actions, strict=True)
    ]
    for what, arrays in (("actions", actions), ("states", states)):
        narrow, wide = (choose(range(len(arrays)), key=lambda place: arrays[place].shape[1]) for choose in (min, max))
        if arrays[narrow].shape[1] != arrays[wide].shape[1]:
            raise ValueError(
                f"{folder}: {what} have {arrays[narrow].shape[1]} dimensions in one episode, {arrays[wide].shape[1]} in another "
                f"({episodes[narrow].name} and {episodes[wide].name}); a data set has one robot: {_APART}"
            )
    finite = [bool(np.isfinite(rows).all() and np.isfinite(state).all()) for rows, state in zip(actions, states, strict=True)]
    if any(finite):  # training refuses the others
        actions, states = list(itertools.compress(actions, finite)), list(itertools.compress(states, finite))
    starts = np.concatenate([np.arange(len(rows)) > 0 for rows in actions])
    action_dims = _dimensions(first, action_keys, said)
    state_dims = _dimensions(observation, state_keys, said)
    velocities = [_width(values) for key, values in observation.items() if key in ("qvel", "joint_velocities") and _is_numbers(values)]
    return Recorded(
        action_keys=action_keys,
        state_keys=state_keys,
        actions=np.nan_to_num(np.concatenate(actions)),
        states=np.nan_to_num(np.concatenate(states)),
        has_next=starts[1:],
        action_dims=action_dims,
        state_dims=state_dims,
        measured=_measured(action_dims, state_dims) if _may_measure(state_keys, action_keys) else (None,) * len(action_dims),
        num_velocities=velocities[0] if velocities else None,
        median_length=int(np.median([len(rows) for rows in actions])),
    )


def choose_cameras(folder: Path, observation: Mapping[str, Any], said: Description, two_arms: bool, notes: list[str]) -> dict[str, str]:
    """{slot: stored key}; depth pictures and cameras that lack files are left out.

    Raises:
        ValueError: there is no camera.
    """
    keys = [key for key in said.complete_cameras(folder) if key in observation]
    all_keys = [camera.key for camera in said.cameras if not camera.is_depth]
    if not said.cameras:
        stored: dict[int, str] = {}  # one name a camera: some sources offer short names beside the stored one, for the same array
        for path in leaf_paths(observation):
            values = find_value(observation, path)
            if getattr(values, "dtype", None) == IMAGE_REF:
                stored.setdefault(id(values), path)
        all_keys = list(stored.values())
        keys = [key for key in all_keys if looks_like_colour(key)] or all_keys
    if not keys:
        raise ValueError(f"{folder}: no encoded images below 'observation'; found: {_found(observation)}")
    cameras, left_over = assign_cameras(keys, two_arms)
    if looks_from_wrist(cameras["primary"]):
        notes.append(f"Every camera is on a wrist; {cameras['primary']!r} is taken as the primary one.")
    if left_over:
        notes.append(f"Cameras that find no place: {', '.join(left_over)}.")
    if others := [key for key in all_keys if key not in keys and not looks_like_colour(key)]:
        notes.append(f"Cameras that are called like depth or labels, and are no colour pictures then: {', '.join(others)}.")
    if incomplete := [camera.key for camera in said.cameras if not camera.is_depth and not camera.is_complete]:
        notes.append(f"Cameras whose files are not all there are left out: {', '.join(incomplete)}.")
    return cameras


def num_pictures(observation: Mapping[str, Any]) -> int:
    """How many names of cameras an episode has."""
    return sum(getattr(find_value(observation, path), "dtype", None) == IMAGE_REF for path in leaf_paths(observation))


def _found(observation: Mapping[str, Any]) -> str:
    """What there is, and what to do with raw pictures."""
    paths = sorted(leaf_paths(observation))
    raw = next((path for path in paths if getattr(find_value(observation, path), "ndim", 0) == 4), None)
    advice = "" if raw is None else f". {raw!r} holds raw pictures: write them as Image features, which are JPEG or PNG files"
    return (", ".join(paths) or "nothing") + advice


def _choose_actions(folder: Path, trajectory: Trajectory, notes: list[str]) -> tuple[str, ...]:
    commands = _columns({key: value for key, value in trajectory.items() if "action" in key.lower()})
    commands = {path: width for path, width in commands.items() if not _NO_COMMAND.search(path.lower())}
    if not commands:
        raise ValueError(f"{folder}: no key 'action' that holds numbers; {near_names('action', trajectory)}")
    if "action" in commands:
        chosen = ["action"]
    else:
        chosen = _without_repeated(trajectory, _by_role(commands))
        notes.append(f"The actions are joined of {', '.join(chosen)}.")
    for path in list(commands):
        if path in chosen or not BASE.search(path.lower()) or _is_part(path, chosen) or _repeats(trajectory, path, chosen):
            continue
        if np.any(find_value(trajectory, path)):
            chosen.append(path)
            notes.append(f"{path!r} is joined: commands of a mobile base. If the base is to stand still, take it out of action_keys.")
        else:
            del commands[path]
            notes.append(f"{path!r} is always 0 and left out.")
    left = [path for path in commands if path not in chosen and not _is_part(path, chosen) and path != "actions"]
    if left := [path for path in left if not _repeats(trajectory, path, chosen)]:
        notes.append(f"Other columns of commands, for action_keys: {listed(left)}.")
    return tuple(chosen)


def _choose_state(observation: Mapping[str, Any], action_keys: Sequence[str], action_dim: int, notes: list[str]) -> tuple[str, ...]:
    widths = _columns(observation)
    whole = next((key for key in _WHOLE_STATE if key in widths), None)
    if whole is not None:
        return (whole,)
    grouped = next((key for key in _WHOLE_STATE if isinstance(observation.get(key), Mapping)), None)
    if grouped is not None:
        inside = [path for path in widths if path.startswith(f"{grouped}/") and not _NO_STATE.search(path.lower())]
        return tuple(_in_order(inside))
    # "state.joints" beside "action.joints": the state has what is commanded.
    twins = [re.sub(r"^actions?([./])", rf"{name}\1", key) for key in action_keys for name in ("state", "states")]
    twins = [key for key in twins if key in widths]
    parts = {key: width for key, width in widths.items() if _STATE_PARTS.search(key.lower()) and not _NO_STATE.search(key.lower())}
    grippers = [key for key in _shortest_names(parts) if _role(key) == "gripper"]
    if twins:
        has_gripper = any(_role(key) == "gripper" for key in twins)
        return tuple(twins if has_gripper else [*twins, *grippers])
    arm = [key for key in parts if _role(key) != "gripper"]
    joints, poses = ([key for key in arm if (_role(key) == "joints") == is_joint] for is_joint in (True, False))
    options = [[*group, *grippers] for group in (joints, poses) if group]
    chosen = next((keys for keys in options if sum(parts[key] for key in keys) == action_dim), options[0] if options else list(parts))
    if not chosen:
        notes.append(f"No state was found among: {', '.join(sorted(widths)) or 'no numbers'}. Train without --use_proprio.")
    elif len(parts) > len(chosen):
        notes.append(f"Other keys that could be state: {', '.join(key for key in parts if key not in chosen)}.")
    return tuple(_in_order(chosen))


def _by_role(commands: Mapping[str, int]) -> list[str]:
    """Columns that make up one action: joint targets, else poses, else changes of these; each with the grippers."""
    names = _shortest_names(commands)
    grippers = [key for key in names if _role(key) == "gripper" and not CHANGE.search(key) and not VELOCITY.search(key)]
    narrowest = min((commands[key] for key in grippers), default=0)
    grippers = [key for key in grippers if commands[key] == narrowest]
    for pattern in (False, True):
        arm = [key for key in names if bool(CHANGE.search(key)) == pattern and not VELOCITY.search(key) and not BASE.search(key.lower())]
        joints = [key for key in arm if _role(key) == "joints"]
        positions = [key for key in arm if _role(key) == "position"]
        rotations = [key for key in arm if _role(key) == "rotation"][: max(1, len(positions))]
        for group in (joints, [*positions, *rotations] if positions else []):
            if group:
                return _in_order([*group, *grippers])
    return _first_of_alternatives(names, commands)


def _first_of_alternatives(names: Sequence[str], widths: Mapping[str, int]) -> list[str]:
    """Columns without usual names joined; but of whole actions of one width, in several frames or absolute and relative, one."""
    absolute = [key for key in names if not CHANGE.search(key) and not VELOCITY.search(key)] or list(names)
    whole = [key for key in absolute if widths[key] >= _WHOLE_ACTION and not side_of(key)]
    return _in_order(whole[:1] if len(whole) > 1 else absolute)


def _shortest_names(keys: Iterable[str]) -> list[str]:
    """Without those that are another one with an ending, such as the same pose in a further frame."""
    names = list(keys)
    return [key for key in names if not any(key != other and key.startswith(f"{other}_") for other in names)]


def _in_order(keys: Sequence[str]) -> list[str]:
    """Left before right; of each arm positions, rotations, joints, what has no usual name, grippers."""
    roles = [*(name for name, _ in _ROLES[:-1]), "", _ROLES[-1][0]]
    return sorted(keys, key=lambda key: (side_of(key) == "right", roles.index(_role(key))))


def side_of(name: str) -> str:
    """ "left", "right" or "": the arm that a name mentions."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()  # kLeftShoulderPitch
    match = re.search(r"(?:^|[._/ -])(left|right|l|r)(?:[._/ -]|$)", words)
    return "" if match is None else {"l": "left", "r": "right"}.get(match[1], match[1])


def _role(key: str) -> str:
    name = re.sub(r"^(actions?|state|observation)[./]", "", key.lower())
    if _ROLES[-1][1].search(name):
        return "gripper"
    return next((role for role, pattern in _ROLES if pattern.search(name)), "")


def _is_part(path: str, chosen: Sequence[str]) -> bool:
    """Whether a chosen column holds it already: "action.left_arm" of "action"."""
    return any(path.startswith((f"{key}.", f"{key}/")) for key in chosen)


def _repeats(trajectory: Trajectory, path: str, others: Iterable[str]) -> bool:
    """Whether every dimension of a column is one of `others`, too: RoboTwin's "vector" of its own parts."""
    rows = _rows(trajectory, path)
    known = [column for key in others for column in _rows(trajectory, key).T]
    return bool(np.ptp(rows, axis=0).any()) and all(any(np.array_equal(column, other) for other in known) for column in rows.T)


def _without_repeated(trajectory: Trajectory, keys: Sequence[str]) -> list[str]:
    """Without those that hold several others side by side."""
    wholes = [key for key in keys if sum(key != other and _repeats(trajectory, other, [key]) for other in keys) > 1]
    return [key for key in keys if key not in wholes or not _repeats(trajectory, key, [other for other in keys if other not in wholes])]


def _rows(trajectory: Trajectory, path: str) -> np.ndarray:
    """[T, D]"""
    values = np.asarray(find_value(trajectory, path))
    return values.reshape(len(values), -1)


def _columns(values: Mapping[str, Any]) -> dict[str, int]:
    """Path -> width of all columns of numbers, within groups, too; of several names of one column the usual or shortest."""
    names: dict[int, str] = {}
    usual = {name: rank for rank, name in enumerate(_WHOLE_STATE)}  # "state" before "qpos"
    for path in sorted(leaf_paths(values), key=lambda path: (usual.get(path, len(usual)), len(path))):
        if _is_numbers(found := find_value(values, path)):
            names.setdefault(id(found), path)
    return {path: _width(find_value(values, path)) for path in leaf_paths(values) if path in names.values()}


def _is_numbers(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind in "fiu" and values.ndim in (1, 2)


def _width(values: np.ndarray) -> int:
    return 1 if values.ndim == 1 else int(values.shape[1])


def _join(name: str, group: Mapping[str, Any], keys: Sequence[str], length: int = 0) -> np.ndarray:
    try:
        columns = [np.asarray(find_value(group, key), np.float32) for key in keys]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{name}: an episode lacks a column of {', '.join(keys)}, which the first one has; {_APART}") from error
    if not columns:
        return np.zeros((length, 0), np.float32)
    return np.concatenate([column.reshape(len(column), -1) for column in columns], axis=1)


def _dimensions(group: Mapping[str, Any], keys: Sequence[str], said: Description) -> tuple[Dimension, ...]:
    """As the recordings name them; else without a name, and with the kind that the column's own name says."""
    found: list[Dimension] = []
    for key in keys:
        named = said.dimensions((key,))
        width = _width(np.asarray(find_value(group, key)))
        if len(named) == width:
            found += named
            continue
        found += said_by_column(key, width)
    return tuple(found)


def _may_measure(state_keys: Sequence[str], action_keys: Sequence[str]) -> bool:
    """False where the names of the columns say that one holds joints, the other poses."""
    state, action = ({_role(key) for key in keys} - {"", "gripper"} for keys in (state_keys, action_keys))
    return not state or not action or bool(state & action)


def _measured(action_dims: Sequence[Dimension], state_dims: Sequence[Dimension]) -> tuple[int | None, ...]:
    """By name where both are named, else by place."""
    places = {dimension.name: place for place, dimension in enumerate(state_dims) if dimension.name}
    if any(dimension.name in places for dimension in action_dims):
        return tuple(places.get(dimension.name) for dimension in action_dims)
    return tuple(place if place < len(state_dims) else None for place in range(len(action_dims)))
