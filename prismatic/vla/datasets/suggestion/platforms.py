"""Which robot recordings are of: a platform of the table where names or the recorder's layout show it, else a new one.

Width and rate alone show nothing: 7 dimensions at 10 Hz are many robots.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from prismatic.vla.constants import ROBOT_PLATFORMS, ActionKind, NormalizationType, RobotPlatform
from prismatic.vla.datasets.suggestion.columns import Recorded
from prismatic.vla.datasets.suggestion.dimensions import Recognition

DEFAULT_HZ = 25.0
_SAME_HZ = 0.1  # rates that differ by less than this share are the same
_ALOHA_CAMERAS = {"cam_high", "cam_left_wrist", "cam_right_wrist"}
_LIBERO_COLUMNS = {"agentview_rgb", "eye_in_hand_rgb", "ee_states", "gripper_states"}
_ROBOSUITE_PREFIX = "robot0_eef_"
_MIN_OPENING = 0.3  # of ALOHA's grippers, which run from 0 to 1; AgileX's, in files of the same layout, run to 0.07 m


def recorder_of(kind: str, observation: Mapping[str, Any]) -> str:
    """ "ALOHA", "LIBERO" or "robosuite" for recordings in the layout of their recorders, else ""; `kind` as of `sources.source_kind`."""
    if kind != "hdf5":
        return ""
    if any(key.startswith(_ROBOSUITE_PREFIX) for key in observation):  # whose controllers take motions unless configured otherwise
        return "robosuite"
    if observation.keys() >= _LIBERO_COLUMNS:
        return "LIBERO"
    return "ALOHA" if observation.keys() >= _ALOHA_CAMERAS and "qpos" in observation else ""


def known_platform(recorded: Recorded, recognised: Recognition, hz: float | None, recorder: str) -> tuple[RobotPlatform, str] | None:
    """A platform of the table and how it is known."""
    state_names = tuple(item.label for item in recorded.state_dims)
    for platform in ROBOT_PLATFORMS.values():
        widths = len(platform.action_names), len(platform.proprio_names)
        if widths != (len(recorded.action_dims), len(recorded.state_dims)) or platform.action_kinds != recognised.kinds:
            continue
        if hz is not None and not is_same_rate(platform.control_hz, hz):
            continue
        if _are_same(platform.action_names, recognised.names) and _are_same(platform.proprio_names, state_names):
            return platform, "the names of its dimensions"
        if platform.name == recorder == "ALOHA" and _is_aloha(platform, recorded):
            return platform, "its cameras and the layout of its recorder, and every command is in its range"
    return None


def units_unsaid(platform: RobotPlatform, recorded: Recorded) -> str:
    """The units that `platform` states for actions of which the recordings state none; "" if there is no such."""
    pairs = zip(platform.action_names, recorded.action_dims, strict=True)
    return ", ".join(dict.fromkeys(unit for name, item in pairs if not item.unit and (unit := _parts(name)[1])))


def is_same_rate(one: float, other: float) -> bool:
    """Whether two rates [Hz] are meant to be the same."""
    return abs(one - other) <= _SAME_HZ * other


def new_platform(name: str, recorded: Recorded, recognised: Recognition, hz: float | None, states_kinds: bool) -> RobotPlatform:
    """A platform that fits the recordings; its chunk is one second, or half an episode where that is less.

    `states_kinds`: the entry does not list the kinds, so the platform has to where its names do not say them.
    """
    rate = hz or DEFAULT_HZ
    called = re.sub(r"\W+", "_", name).strip("_").upper()
    relative = all(kind is not ActionKind.TARGET or dim in recognised.arms.grippers for dim, kind in enumerate(recognised.kinds))
    is_driven = ActionKind.VELOCITY in recognised.kinds  # at rest for most of the time, so that its percentiles may be equal
    platform = RobotPlatform(
        name=f"{called}_ROBOT" if called in ROBOT_PLATFORMS else called,
        num_actions_chunk=max(1, min(round(rate), recorded.median_length // 2)),
        action_dim=len(recognised.names),
        proprio_dim=len(recorded.state_dims),
        normalization=NormalizationType.BOUNDS_Q99 if relative and not is_driven else NormalizationType.BOUNDS,
        control_hz=rate,
        action_names=recognised.names,
        proprio_names=_state_names(recorded, recognised),
    )
    contradicts = any(kind is not ActionKind.TARGET for kind in platform.action_kinds)  # names that say another kind than the values
    is_stated = platform.action_kinds != recognised.kinds and (states_kinds or contradicts)
    return replace(platform, action_kinds=recognised.kinds) if is_stated else platform


def _is_aloha(platform: RobotPlatform, recorded: Recorded) -> bool:
    limits = platform.limits
    assert limits is not None
    grippers = [dim for dim, name in enumerate(platform.action_names) if "gripper" in name]
    inside = ((recorded.actions >= np.array(limits.low)) & (recorded.actions <= np.array(limits.high))).all()
    return bool(inside) and bool((np.ptp(recorded.actions[:, grippers], axis=0) > _MIN_OPENING).any())


def _state_names(recorded: Recorded, recognised: Recognition) -> tuple[str, ...]:
    """Recorded names; else those of the targets that the state measures."""
    measures = {place: dim for dim, place in enumerate(recorded.measured) if place is not None}
    is_whole = len(recorded.state_dims) in (len(recorded.action_dims), len(recorded.action_dims) - len(recognised.arms.base))
    names = []
    for place, item in enumerate(recorded.state_dims):
        dim = measures.get(place)
        is_measure = dim is not None and recognised.kinds[dim] is not ActionKind.MOTION and is_whole
        called = recognised.names[dim] if dim is not None and is_measure else ""
        names.append(item.label if item.name else called if called and not called.startswith("action_") else f"state_{place + 1}")
    return tuple(names)


def _are_same(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether they are called alike, but for LeRobot's endings, and no units contradict each other."""
    pairs = [(_parts(name), _parts(other)) for name, other in zip(names, others, strict=True)]
    return all(name == other and (not unit or not its_unit or unit == its_unit) for (name, unit), (other, its_unit) in pairs)


def _parts(label: str) -> tuple[str, str]:
    """Name and unit."""
    name, _, unit = label.partition(" [")
    return name.removesuffix(".pos").replace(".", "_").lower(), unit.removesuffix("]")
