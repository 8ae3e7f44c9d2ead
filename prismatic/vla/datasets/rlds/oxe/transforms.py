"""name -> trajectory transform: what must be done to a recorded trajectory before its keys are read.

A transform takes and returns a trajectory (nested dictionary of arrays whose first axis is time; see `prismatic.vla.datasets.episodes`).
It alters no array that it is given. Data sets whose "action" and state already have the recommended order need none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from prismatic.vla.constants import near_names

Trajectory = dict[str, Any]


def identity_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """The trajectory as recorded."""
    return trajectory


# The familiar name: ALOHA recordings need no change.
aloha_dataset_transform = identity_dataset_transform


def invert_gripper_actions(actions: np.ndarray) -> np.ndarray:
    """0 <-> 1."""
    return 1 - actions


def libero_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """LIBERO: gripper -1 (open) .. +1 (close) becomes 1 (open), 0 (close); the state is split into EEF pose and gripper."""
    action, state = trajectory["action"], trajectory["observation"]["state"]
    gripper = invert_gripper_actions(np.clip(action[:, -1:], 0, 1))
    observation = {**trajectory["observation"], "EEF_state": state[:, :6], "gripper_state": state[:, -2:]}
    return {**trajectory, "action": np.concatenate([action[:, :6], gripper], axis=1), "observation": observation}


OXE_STANDARDIZATION_TRANSFORMS: Mapping[str, Callable[[Trajectory], Trajectory]] = {
    "identity": identity_dataset_transform,
    "aloha": aloha_dataset_transform,
    "libero": libero_dataset_transform,
}


def find_transform(dataset_name: str, transform_name: str | None) -> Callable[[Trajectory], Trajectory]:
    """The transform that an entry names, else the one called like the data set, else no change.

    Raises:
        ValueError: the entry names a transform that does not exist; the message lists near names.
    """
    if transform_name is None:
        return OXE_STANDARDIZATION_TRANSFORMS.get(dataset_name, identity_dataset_transform)
    if transform_name not in OXE_STANDARDIZATION_TRANSFORMS:
        raise ValueError(
            f"data set {dataset_name!r} names the transform {transform_name!r}, which is not in OXE_STANDARDIZATION_TRANSFORMS of "
            f"prismatic/vla/datasets/rlds/oxe/transforms.py; {near_names(transform_name, OXE_STANDARDIZATION_TRANSFORMS)}"
        )
    return OXE_STANDARDIZATION_TRANSFORMS[transform_name]
