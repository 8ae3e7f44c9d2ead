"""name -> data-set entry: which stored keys are the cameras and the state, and what the actions mean.

To train on your own data, add one line to `OXE_DATASET_CONFIGS`. An entry states only what is special about its data set; a plain
dictionary with the familiar keys (image_obs_keys, depth_obs_keys, state_obs_keys, state_encoding, action_encoding,
aux_kwargs) may be pasted into the table instead of a `DatasetEntry`.

The encodings and their numbers are those of the published system (openvla-oft 213c5ff); DUAL_EEF_POS is the bimanual form
of EEF_POS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any

import numpy as np

from prismatic.vla.constants import near_names

# Named in messages that ask the user to edit an entry.
CONFIGS_FILE = "prismatic/vla/datasets/rlds/oxe/configs.py"

# Camera names in the order in which a policy takes them: --num_images_in_input 2 means the first two that an entry has.
CAMERA_ORDER = ("primary", "wrist", "left_wrist", "right_wrist", "secondary")


class StateEncoding(IntEnum):
    """What the state is; documentation only, nothing is computed from it."""

    NONE = -1  # no state
    POS_EULER = 1  # xyz, roll pitch yaw, (padding,) gripper
    POS_QUAT = 2  # xyz, quaternion, gripper
    JOINT = 3  # joint angles, gripper
    JOINT_BIMANUAL = 4  # two arms, each joint angles, gripper


class ActionEncoding(IntEnum):
    """What the actions are; decides which dimensions are relative and which are normalised."""

    EEF_POS = 1  # relative xyz, relative roll pitch yaw, absolute gripper
    JOINT_POS = 2  # absolute joint angles, gripper
    JOINT_POS_BIMANUAL = 3  # two arms, each absolute joint angles, gripper
    EEF_R6 = 4  # relative xyz, relative 6-D rotation, absolute gripper
    DUAL_EEF_POS = 5  # two arms, each as EEF_POS


_ENDS_OF_ARMS = {ActionEncoding.EEF_POS: 1, ActionEncoding.EEF_R6: 1, ActionEncoding.DUAL_EEF_POS: 2}


def _is_gripper(encoding: ActionEncoding, action_dim: int) -> np.ndarray:
    """bool [A]: the last dimension of each arm."""
    num_arms = _ENDS_OF_ARMS[encoding]
    if action_dim < 2 * num_arms or action_dim % num_arms:
        raise ValueError(
            f"actions of {action_dim} dimensions cannot be {encoding.name}, which needs {num_arms} x (motion + gripper); "
            f"correct action_encoding in {CONFIGS_FILE}"
        )
    return np.arange(action_dim) % (action_dim // num_arms) == action_dim // num_arms - 1


def absolute_action_mask(encoding: ActionEncoding, action_dim: int) -> np.ndarray:
    """bool [A]: True where the action is a target (repeated when an episode ends), False where it is a motion (then 0).

    Raises:
        ValueError: `action_dim` does not fit the encoding.
    """
    if encoding in _ENDS_OF_ARMS:
        return _is_gripper(encoding, action_dim)
    return np.ones(action_dim, bool)


def action_normalization_mask(encoding: ActionEncoding, action_dim: int) -> np.ndarray:
    """bool [A]: True where the action is mapped to [-1, 1]; grippers of end-effector actions keep their command.

    Raises:
        ValueError: `action_dim` does not fit the encoding.
    """
    if encoding in _ENDS_OF_ARMS:
        return ~_is_gripper(encoding, action_dim)
    return np.ones(action_dim, bool)


@dataclass(frozen=True)
class DatasetEntry:
    """One data set of the registry; the defaults are a single arm in the layout of the LIBERO data sets."""

    image_obs_keys: Mapping[str, str | None] = field(default_factory=lambda: {"primary": "image", "wrist": "wrist_image"})
    state_obs_keys: tuple[str | None, ...] = ("state",)  # joined in this order; None adds one column of zeros
    action_encoding: ActionEncoding = ActionEncoding.EEF_POS
    state_encoding: StateEncoding = StateEncoding.NONE
    robot_platform: str | None = None  # a name of ROBOT_PLATFORMS; None: --robot_platform must say it
    transform: str | None = None  # a name of transforms.py; None: the data set's own name, else no change
    depth_obs_keys: Mapping[str, str | None] = field(default_factory=dict)  # accepted for old entries, unused
    aux_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cameras(self) -> dict[str, str]:
        """Camera name -> stored key, in the order in which a policy takes the cameras."""
        return {name: key for name in CAMERA_ORDER if (key := self.image_obs_keys.get(name)) is not None}

    def __post_init__(self) -> None:
        object.__setattr__(self, "state_obs_keys", tuple(self.state_obs_keys))
        object.__setattr__(self, "action_encoding", ActionEncoding(self.action_encoding))
        object.__setattr__(self, "state_encoding", StateEncoding(self.state_encoding))
        for name in self.image_obs_keys:
            if name not in CAMERA_ORDER:
                raise ValueError(f"image_obs_keys has the camera {name!r}; {near_names(name, CAMERA_ORDER)}")
        if not self.image_obs_keys.get("primary"):
            raise ValueError(f"image_obs_keys needs a key for the primary camera, found {dict(self.image_obs_keys)}")
        if self.aux_kwargs:
            raise ValueError(f"aux_kwargs {sorted(self.aux_kwargs)} are not supported; do this in a trajectory transform instead")


def as_entry(name: str, entry: DatasetEntry | Mapping[str, Any]) -> DatasetEntry:
    """The entry of `name`, also if it was pasted into the table as a plain dictionary.

    Raises:
        ValueError: unknown keys or values; the message names the entry.
    """
    if isinstance(entry, DatasetEntry):
        return entry
    known = [item.name for item in fields(DatasetEntry)]
    for key in entry:
        if key not in known:
            raise ValueError(f"entry {name!r} in {CONFIGS_FILE} has an unknown key {key!r}; {near_names(key, known)}")
    try:
        return DatasetEntry(**entry)
    except ValueError as error:
        raise ValueError(f"entry {name!r} in {CONFIGS_FILE}: {error}") from error


def find_entry(name: str) -> DatasetEntry:
    """The entry called `name`, in any case.

    Raises:
        ValueError: no such entry; the message lists near names.
    """
    by_lower_name = {known.lower(): known for known in OXE_DATASET_CONFIGS}
    known_name = by_lower_name.get(name.lower())
    if known_name is None:
        raise ValueError(f"data set {name!r} is not in OXE_DATASET_CONFIGS of {CONFIGS_FILE}; {near_names(name, OXE_DATASET_CONFIGS)}")
    return as_entry(known_name, OXE_DATASET_CONFIGS[known_name])


def _libero() -> DatasetEntry:
    return DatasetEntry(
        state_obs_keys=("EEF_state", "gripper_state"),
        state_encoding=StateEncoding.POS_EULER,
        robot_platform="LIBERO",
        transform="libero",
    )


_THREE_CAMERAS = {"primary": "image", "left_wrist": "left_wrist_image", "right_wrist": "right_wrist_image"}


def _aloha() -> DatasetEntry:
    return DatasetEntry(
        image_obs_keys=_THREE_CAMERAS,
        state_encoding=StateEncoding.JOINT_BIMANUAL,
        action_encoding=ActionEncoding.JOINT_POS_BIMANUAL,
        robot_platform="ALOHA",
    )


OXE_DATASET_CONFIGS: dict[str, DatasetEntry | Mapping[str, Any]] = {
    # LIBERO, no-op steps filtered out, images re-rendered at 256 px
    "libero_spatial_no_noops": _libero(),
    "libero_object_no_noops": _libero(),
    "libero_goal_no_noops": _libero(),
    "libero_10_no_noops": _libero(),
    # ALOHA, absolute joint angles at 25 Hz
    "aloha1_fold_shorts_20_demos": _aloha(),
    "aloha1_fold_shirt_30_demos": _aloha(),
    "aloha1_scoop_X_into_bowl_45_demos": _aloha(),
    "aloha1_put_X_into_pot_300_demos": _aloha(),
    # Scripted experts of MetaWorld, recorded by scripts/demo.py: state is x, y, z, gripper opening
    "metaworld_demo": DatasetEntry(state_encoding=StateEncoding.POS_EULER, robot_platform="METAWORLD"),
    # Templates to copy for your own robot.
    # One arm, state = action = [joint_1 .. joint_7, gripper]. Fewer joints: state_obs_keys=("state", None, None, None) pads 5 to 8.
    "single_joint_task_sample": DatasetEntry(
        state_encoding=StateEncoding.JOINT,
        action_encoding=ActionEncoding.JOINT_POS,
        robot_platform="SINGLE_JOINT",
    ),
    # One arm, state = [x, y, z, roll, pitch, yaw, gripper], action = its change and the gripper command.
    "single_eef_task_sample": DatasetEntry(state_encoding=StateEncoding.POS_EULER, robot_platform="SINGLE_EEF"),
    # Two arms, each as in single_joint_task_sample, left before right.
    "dual_joint_task_sample": DatasetEntry(
        image_obs_keys=_THREE_CAMERAS,
        state_encoding=StateEncoding.JOINT_BIMANUAL,
        action_encoding=ActionEncoding.JOINT_POS_BIMANUAL,
        robot_platform="DUAL_JOINT",
    ),
    # Two arms, each as in single_eef_task_sample, left before right.
    "dual_eef_task_sample": DatasetEntry(
        image_obs_keys=_THREE_CAMERAS,
        action_encoding=ActionEncoding.DUAL_EEF_POS,
        robot_platform="DUAL_EEF",
    ),
}
