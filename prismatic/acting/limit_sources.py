"""Where a robot's limits come from: a file of its owner, else its platform, else what the demonstrations did. Letters: A action dim.

    {"elbow [rad]": {"low": -1.5, "high": 1.5, "max_speed": 1.0, "max_acceleration": 8.0, "max_gap": 0.3}, "gripper": {"max_speed": 2.0}}

A file states what it wants to state, dimension by dimension; the rest comes from the next source. Without a stated range a dimension keeps
to the range of the training data, widened by a tenth of its width at either end, and without a stated speed to the largest step seen there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from prismatic.acting.limits import ActionLimits
from prismatic.vla.constants import ROBOT_PLATFORMS, ActionKind, near_names
from prismatic.vla.stated_limits import StatedLimits
from prismatic.wire.policy_info import PolicyInfo

QUANTITIES = tuple(item.name for item in fields(StatedLimits))
_WIDENED = 0.1  # of the width of a range, at either end
_LAG_S = 0.5  # a robot may be behind its target by what it moves in this time
_GAP = 1.5  # or by so many times the largest distance in the demonstrations

Values = dict[str, np.ndarray]  # quantity -> float64 [A], NaN where the source does not say


@dataclass(frozen=True)
class ChosenLimits:
    """The limits, and for people where each comes from."""

    limits: ActionLimits
    notes: tuple[str, ...]


def choose_limits(info: PolicyInfo, file: Path | None = None, mode: str = "clip") -> ChosenLimits:
    """The limits of the robot that `info`'s policy drives.

    Raises:
        ValueError: the file cannot be read, the policy does not describe itself whole, or no source says how far or how fast a dimension
            may go; names the dimensions.
    """
    info.check()
    dim, known = info.action_dim, ROBOT_PLATFORMS.get(info.platform)
    stated = info.limits or (known.limits if known is not None and known.action_names == info.action_names else None)
    sources = {f"--limits {file}": read_limits_file(file, info.action_names)} if file else {}
    if stated is not None:
        sources[f"platform {info.platform}"] = {name: _numbers(getattr(stated, name)) for name in QUANTITIES}
    sources[f"the demonstrations of {info.unnorm_key}"] = _demonstrated(info)
    found = {name: np.full(dim, np.nan) for name in QUANTITIES}
    notes = []
    for source, values in sources.items():
        for name in QUANTITIES:
            is_new = np.isnan(found[name]) & ~np.isnan(values[name])
            if is_new.any() and name in ("low", "max_speed"):
                what = "ranges" if name == "low" else "speeds"
                notes.append(f"{what} of {_names(info.action_names, is_new)} from {source}")
            found[name] = np.where(is_new, values[name], found[name])
    _complete(found, info)
    _check_ranges(found, info, tuple(sources))
    limits = ActionLimits(kinds=info.action_kinds, mode=mode, usual_gap=_numbers(info.demonstrated.max_gap), **found)
    return ChosenLimits(limits, tuple(notes))


def read_limits_file(path: Path, names: tuple[str, ...]) -> Values:
    """What the JSON file states about the dimensions `names`.

    Raises:
        ValueError: not such a file, or it names another dimension or quantity.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--limits {path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(row, Mapping) for row in content.values()):
        raise ValueError(f"--limits {path}: expected {{dimension: {{{', '.join(QUANTITIES)}}}}}")
    values = {name: np.full(len(names), np.nan) for name in QUANTITIES}
    for dimension, row in content.items():
        if dimension not in names:
            raise ValueError(f"--limits {path}: the policy has no dimension {dimension!r}; {near_names(dimension, names)}")
        for quantity, value in row.items():
            if quantity not in QUANTITIES:
                raise ValueError(f"--limits {path}: {dimension} has the unknown {quantity!r}; {near_names(quantity, QUANTITIES)}")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
                raise ValueError(f"--limits {path}: {quantity} of {dimension} is {value!r}, must be a finite number")
            values[quantity][names.index(dimension)] = value
    return values


def _numbers(values: tuple[float | None, ...]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _demonstrated(info: PolicyInfo) -> Values:
    """What the demonstrations imply: for motions and velocities, largest changes are accelerations."""
    seen, hz = info.demonstrated, info.control_hz
    low, high, step = (_numbers(values) for values in (seen.action_low, seen.action_high, seen.max_step))
    width, unknown = high - low, np.full(len(low), np.nan)
    is_target, is_motion = (np.array([kind is wanted for kind in info.action_kinds]) for wanted in (ActionKind.TARGET, ActionKind.MOTION))
    low, high = low - _WIDENED * width, high + _WIDENED * width
    low, high = np.where(is_target, low, np.minimum(low, 0)), np.where(is_target, high, np.maximum(high, 0))  # 0 holds them still
    largest = np.maximum(np.abs(low), np.abs(high))
    return {
        "low": low,
        "high": high,
        "max_speed": np.where(is_target, step * hz, largest * np.where(is_motion, hz, 1.0)),
        "max_acceleration": np.where(is_target, unknown, step * hz * np.where(is_motion, hz, 1.0)),
        "max_gap": unknown,  # see `_default_gap`
    }


def _complete(found: Values, info: PolicyInfo) -> None:
    """Fills in what may be left open, and refuses what may not."""
    missing = ~(np.isfinite(found["low"]) & np.isfinite(found["high"]) & np.isfinite(found["max_speed"]))
    if missing.any():
        raise ValueError(
            f"no limits are known for {_names(info.action_names, missing)}: neither the platform {info.platform} states them nor does the "
            "checkpoint say what the demonstrations did. State low, high and max_speed of each in a JSON file and pass it as --limits"
        )
    found["max_acceleration"] = np.where(np.isnan(found["max_acceleration"]), np.inf, found["max_acceleration"])
    found["max_gap"] = np.where(np.isnan(found["max_gap"]), _default_gap(info, found["max_speed"]), found["max_gap"])


def _check_ranges(found: Values, info: PolicyInfo, sources: Sequence[str]) -> None:
    """Refuses ranges that are none, and bounds by which a dimension could never move, or would always count as blocked."""
    for dim, (name, kind) in enumerate(zip(info.action_names, info.action_kinds, strict=True)):
        low, high, speed, acceleration, gap = (float(found[quantity][dim]) for quantity in QUANTITIES)
        said = ", ".join(f"{quantity} {found[quantity][dim]:g}" for quantity in QUANTITIES)
        wrong = "low is above high" if low > high else "a bound is below 0" if min(speed, acceleration, gap) < 0 else ""
        if not wrong and kind is ActionKind.TARGET and speed > 0 and 0 in (acceleration, gap):
            wrong = "with a max_acceleration or max_gap of 0 it could not move; to keep it still state max_speed 0"
        if not wrong and kind is not ActionKind.TARGET and (low > 0 or high < 0):
            wrong = "its range must have 0 in it, by which it is held still"
        if wrong:
            raise ValueError(f"limits of {name}: {wrong} ({said}, from {', '.join(sources)}); correct them in the file of --limits")


def _default_gap(info: PolicyInfo, max_speed: np.ndarray) -> np.ndarray:
    """What a robot's delay and the demonstrations explain; a gripper on an object never reaches its target."""
    dims = zip(info.action_kinds, info.action_names, strict=True)
    has_one = np.array([kind is ActionKind.TARGET and "gripper" not in name.lower() for kind, name in dims])
    gap = np.fmax(_GAP * _numbers(info.demonstrated.max_gap), _LAG_S * max_speed)
    return np.where(has_one & (gap > 0), gap, np.inf)  # what never moves cannot be stopped


def _names(names: tuple[str, ...], chosen: np.ndarray) -> str:
    listed = [name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen]
    return "all dimensions" if len(listed) == len(names) else ", ".join(listed)
