"""Which robot platform an entry means that names none: the one that its encodings and the widths of its data fit.

Widths alone never decide: what each action dimension is and what the state consists of must agree, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from prismatic.vla.constants import PUBLISHED_ROBOTS, ROBOT_PLATFORMS, ActionKind, RobotPlatform
from prismatic.vla.datasets.rlds.oxe.configs import ENDS_OF_ARMS, DatasetEntry, StateEncoding

_NUM_NEAR = 3  # that a message lists
_SAME_HZ = 0.1  # rates that differ by less than this share are the same
_NAMES = {
    "joints": re.compile(r"(\w+_)?(joint|waist|shoulder|elbow|wrist)\w*( \[.*\])?"),
    "euler": re.compile(r"((left|right)_)?(roll|pitch|yaw)( \[.*\])?"),
    "quaternion": re.compile(r"((left|right)_)?(q[xyzw]|quat\w*)( \[.*\])?"),
    "axis-angle": re.compile(r"((left|right)_)?a[xyz]( \[.*\])?"),
    "position": re.compile(r"((left|right)_)?[xyz]( \[.*\])?"),
}
_STATES = {
    StateEncoding.POS_EULER: ("euler",),
    StateEncoding.POS_QUAT: ("quaternion",),
    StateEncoding.JOINT: ("joints",),
    StateEncoding.JOINT_BIMANUAL: ("joints",),
}


@dataclass(frozen=True)
class RecordedWidths:
    """What the recordings say of the robot."""

    action_dim: int
    proprio_dim: int | None  # None: the policy does not use the state
    hz: float | None = None  # steps per second; None: nobody says
    kinds: tuple[ActionKind | None, ...] = ()  # of the actions, where the recordings name them

    def __str__(self) -> str:
        state = "" if self.proprio_dim is None else f" and states of {self.proprio_dim}"
        return f"actions of {self.action_dim}{state} dimensions" + (f" at {self.hz:g} Hz" if self.hz else "")


def infer_platform(entry: DatasetEntry, widths: RecordedWidths) -> RobotPlatform | None:
    """The only platform that fits; None if there is none, or if several do.

    The robots of published data give way to a template or a platform of one's own that fits as well.
    """
    fitting = fitting_platforms(entry, widths)
    chosen = [platform for platform in fitting if platform.name not in PUBLISHED_ROBOTS] or fitting
    return chosen[0] if len(chosen) == 1 else None


def fitting_platforms(entry: DatasetEntry, widths: RecordedWidths) -> list[RobotPlatform]:
    """All platforms that `entry` may mean."""
    return [platform for platform in ROBOT_PLATFORMS.values() if not _differences(platform, entry, widths)]


def explain_choice(entry: DatasetEntry, widths: RecordedWidths, as_dictionary: bool) -> tuple[str, str]:
    """(why no platform follows, for a message; the line to write into the entry, "" where no single line would do)."""
    recorded = f"{entry.action_encoding.name}, {entry.state_encoding.name}, {widths}"
    if fitting := fitting_platforms(entry, widths):
        names = [platform.name for platform in fitting]
        return f"several fit {recorded}: {', '.join(names)}", entry_line("robot_platform", names[-1], as_dictionary)
    near = sorted(ROBOT_PLATFORMS.values(), key=lambda platform: len(_differences(platform, entry, widths)))[:_NUM_NEAR]
    described = ", ".join(f"{platform.name} (but {' and '.join(_differences(platform, entry, widths))})" for platform in near)
    lines = [_mending_line(platform, entry, widths, as_dictionary) for platform in near]
    return f"none fits {recorded}; nearest: {described}", next(filter(None, lines), "")


def entry_line(field: str, value: str | Sequence[str | None], as_dictionary: bool) -> str:
    """A line of an entry, as Python."""
    if isinstance(value, str):
        text = json.dumps(value)
    else:
        keys = ", ".join("None" if key is None else json.dumps(key) for key in value)
        text = f"[{keys}]" if as_dictionary else f"({keys}{',' if len(value) == 1 else ''})"
    return f'"{field}": {text},' if as_dictionary else f"{field}={text},"


def padded_state_keys(entry: DatasetEntry, found: int, expected: int) -> tuple[str | None, ...] | None:
    """The keys of the state with so many columns of zeros at the end that `found` dimensions become `expected`; None if that cannot be."""
    keys = list(entry.state_obs_keys)
    if not any(keys):
        return None
    for _ in range(found - expected):
        if keys[-1] is not None:
            return None
        keys.pop()
    return (*keys, *(None,) * (expected - found))


def _mending_line(platform: RobotPlatform, entry: DatasetEntry, widths: RecordedWidths, as_dictionary: bool) -> str:
    """What to write so that `platform` is taken; "" if one line is not enough."""
    if platform.action_dim != widths.action_dim or not _has_kinds(platform, entry):
        return ""
    if widths.proprio_dim in (None, platform.proprio_dim):
        return entry_line("robot_platform", platform.name, as_dictionary)
    keys = padded_state_keys(entry, widths.proprio_dim or 0, platform.proprio_dim)
    return "" if keys is None or len(_differences(platform, entry, widths)) > 1 else entry_line("state_obs_keys", keys, as_dictionary)


def _differences(platform: RobotPlatform, entry: DatasetEntry, widths: RecordedWidths) -> list[str]:
    """What about `platform` contradicts entry and recordings, in words."""
    found = []
    if platform.action_dim != widths.action_dim:
        found.append(f"its actions have {platform.action_dim} dimensions")
    if not _has_kinds(platform, entry):
        found.append(f"its actions are {_actions(platform)}")
    elif len(widths.kinds) == platform.action_dim and (odd := _odd_kind(platform, widths.kinds)):
        found.append(odd)
    if widths.proprio_dim is not None:
        if platform.proprio_dim != widths.proprio_dim:
            found.append(f"its states have {platform.proprio_dim} dimensions")
        form = _state_form(platform)
        if form and form not in _expected_states(entry):
            found.append(f"its states are {form}")
    if widths.hz is not None and abs(platform.control_hz - widths.hz) > _SAME_HZ * widths.hz:
        found.append(f"it acts at {platform.control_hz:g} Hz")
    return found


def _has_kinds(platform: RobotPlatform, entry: DatasetEntry) -> bool:
    try:
        return entry.kinds(platform.action_dim) == platform.action_kinds
    except ValueError:  # the encoding does not fit that many dimensions
        return False


def _odd_kind(platform: RobotPlatform, recorded: Sequence[ActionKind | None]) -> str:
    """What the names of the recordings say otherwise; a velocity taken for a target would go on when the robot holds still."""
    for dim, (kind, own) in enumerate(zip(recorded, platform.action_kinds, strict=True)):
        if kind is not None and kind is not own:
            return f"its {platform.action_names[dim]} is a {own.value}, where the recordings name a {kind.value} (dimension {dim})"
    return ""


def _actions(platform: RobotPlatform) -> str:
    kinds = dict.fromkeys(kind.value for kind in platform.action_kinds)
    return " and ".join(f"{name}s" if name != "velocity" else "velocities" for name in kinds)


def _expected_states(entry: DatasetEntry) -> tuple[str, ...]:
    if entry.state_encoding in _STATES:
        return _STATES[entry.state_encoding]
    return ("euler", "quaternion") if entry.action_encoding in ENDS_OF_ARMS else ("joints",)


def _state_form(platform: RobotPlatform) -> str:
    """A word of _NAMES for what the names of the state say; "" if they say nothing."""
    return next((form for form, pattern in _NAMES.items() if any(map(pattern.fullmatch, platform.proprio_names))), "")
