"""What meta/ says about the columns: the names of their dimensions, units and kinds, and the parts that GR00T's modality.json names.

info.json calls dimensions "shoulder_pan.pos", "left_gripper.pos", "x.vel", "theta.vel" (the motors of LeRobot's robots), "motor_0", or
not at all. Units are stated only where names or values leave no doubt: LeRobot's arms are recorded in degrees or from -100 to 100, which
only values beyond 100 tell apart; grippers run from 0 to 100. Sources: huggingface/lerobot, motors/motors_bus.py (MotorNormMode),
robots/lekiwi/lekiwi.py (velocities of the base in m/s and deg/s); NVIDIA/Isaac-GR00T, getting_started/data_preparation.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.constants import ActionKind
from prismatic.vla.datasets.description import Column, Dimension
from prismatic.vla.datasets.lerobot.files import read_json, read_json_lines

_BASE_UNITS = {"x.vel": "m/s", "y.vel": "m/s", "theta.vel": "deg/s"}
_STATED_UNIT = re.compile(r"\s*[\[(]([^\])]+)[\])]$")
_VELOCITY = re.compile(r"(^|[._])(vel|velocity|velocities|v[xyz]|vtheta|omega|(linear|angular)[._]?[xyz])($|[._])")
_TURNING = re.compile(r"(^|.*[._])w([xyz])")  # a rate of turning; but beside x, y, z, as LeRobot's poses are named, a rotation vector
_MOTION = re.compile(r"(^|[._])(delta|rel|relative|d(x|y|z|roll|pitch|yaw))($|[._])")
_EFFORT = re.compile(r"(^|[._])(load|current|torque|torques|effort|efforts|tau|force|forces)($|[._])")
_TARGET = re.compile(r"(^|[._])(pos|position|positions|joint|joints|qpos|q|angle|angles|pose|quaternion|rotation|width)($|[._])")
_LARGEST_PERCENT, _LARGEST_OPENING = 100.5, 6.5  # a little more than 100; than what a gripper's opening is in radians or metres
_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_GROUP = re.compile(r"^(observation\.)?(actions?|states?)\.")  # in front of the parts that an action or a state is divided into
_MOTOR = re.compile(r"motor_?\d+")  # says nothing
_NUMBERS = re.compile(r"u?int\d+|float\d+|bool")


@dataclass(frozen=True)
class Part:
    """A named slice of a stored column."""

    column: str
    start: int
    stop: int
    is_motion: bool = False  # modality.json says "absolute": false


@dataclass(frozen=True)
class Modality:
    """What meta/modality.json of GR00T's data sets adds: further names of parts of columns and of cameras."""

    parts: Mapping[str, Part]  # "action.left_arm", "state.left_arm" -> where it lies
    cameras: Mapping[str, str]  # "ego_view" -> the stored name


def read_modality(folder: Path, features: Iterable[str]) -> Modality:
    """meta/modality.json; names that are stored columns themselves are left to these.

    Raises:
        ValueError: the file is there but is not JSON in GR00T's form; the message names it.
    """
    path = folder / "meta" / "modality.json"
    content = read_json(path) if path.is_file() else {}
    stored, parts, cameras = set(features), {}, {}
    try:
        for group, default in (("state", "observation.state"), ("action", "action")):
            for name, said in (content.get(group) or {}).items():
                column = said.get("original_key") or default
                if f"{group}.{name}" not in stored and column in stored:
                    parts[f"{group}.{name}"] = Part(column, int(said["start"]), int(said["end"]), said.get("absolute") is False)
        for name, said in (content.get("video") or {}).items():
            column = said.get("original_key") or name
            if name not in stored and column in stored:
                cameras[name] = column
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not in GR00T's form {{state, action: {{name: {{start, end}}}}}} ({error!r}); correct or remove it"
        ) from error
    return Modality(parts, cameras)


def describe_columns(folder: Path, features: Mapping[str, Mapping[str, Any]], modality: Modality) -> tuple[Column, ...]:
    """The columns of numbers, as entries name them, then the parts of modality.json."""
    numbers = {name: feature for name, feature in features.items() if _is_number(name, feature)}
    names = {name: dimension_names(feature, feature_width(feature)) for name, feature in numbers.items()}
    units = _units(names, _extremes(folder))
    stored = {name: _column(name, feature_width(feature), names[name], units[name]) for name, feature in numbers.items()}
    parts = list(_parts(stored, modality))
    return (*(_short(_named_by_parts(column, modality, parts)) for column in stored.values()), *parts)


def dimension_names(feature: Mapping[str, Any], width: int) -> tuple[str, ...]:
    """The names of the dimensions of a feature, whether listed, nested ({"motors": [...]}) or numbered ({"x": 0}); none if not one each."""
    names: Any = feature.get("names")
    while isinstance(names, Mapping) and len(names) == 1 and isinstance(next(iter(names.values())), list):
        names = next(iter(names.values()))
    if isinstance(names, Mapping):
        names = sorted(names, key=lambda name: names[name]) if all(isinstance(place, int) for place in names.values()) else None
    while isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
        names = names[0]
    if not isinstance(names, list) or len(names) != width or not all(isinstance(name, str) and name for name in names):
        return ()
    return tuple(names)


def kind_of(column: str, name: str, others: Collection[str] = ()) -> ActionKind | None:
    """What a command is called that name in that column, beside `others`."""
    turning = _TURNING.fullmatch(name.lower())
    if turning and not {f"{turning[1]}{axis}" for axis in "xyz"} & {other.lower() for other in others}:
        return ActionKind.VELOCITY
    for text in (name, column):
        text = text.lower()
        for pattern, kind in ((_VELOCITY, ActionKind.VELOCITY), (_MOTION, ActionKind.MOTION), (_EFFORT, None)):
            if pattern.search(text):
                return kind
    return ActionKind.TARGET if _TARGET.search(name.lower()) or _TARGET.search(column.lower()) else None


def _is_number(name: str, feature: Mapping[str, Any]) -> bool:
    kind = str(feature.get("dtype", ""))
    return name not in _BOOKKEEPING and not name.startswith(("next.", "annotation.")) and bool(_NUMBERS.fullmatch(kind))


def feature_width(feature: Mapping[str, Any]) -> int:
    """Numbers per step."""
    return int(np.prod(feature.get("shape") or [1]))


def _column(column: str, width: int, names: tuple[str, ...], units: tuple[str, ...]) -> Column:
    kind = kind_of(column, "")
    if names:
        labels = [_STATED_UNIT.sub("", name) for name in names]
        named = zip(labels, units, strict=True)
        return Column(column, width, tuple(Dimension(name, unit, kind_of(column, name, labels)) for name, unit in named))
    if kind is None:
        return Column(column, width)
    return Column(column, width, tuple(Dimension(name, "", kind) for name in _numbered(_GROUP.sub("", column), width)))


def _numbered(called: str, width: int) -> list[str]:
    """ "arm_1", "arm_2", ...; a single one needs no number."""
    return [called] if width == 1 else [f"{called}_{number}" for number in range(1, width + 1)]


def _units(names: Mapping[str, tuple[str, ...]], extremes: Mapping[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    """Column -> one unit per name. Actions and states of one joint have the same, so that either may show which it is."""
    ranges: dict[str, tuple[float, float]] = {}  # name -> smallest and largest value
    for column, members in names.items():
        pairs = extremes.get(column, np.zeros((2, 0)))
        for name, (low, high) in zip(members, pairs.T, strict=False) if pairs.shape[1] == len(members) else ():
            known = ranges.get(name, (low, high))
            ranges[name] = min(low, known[0]), max(high, known[1])
    joints = [max(-low, high) for name, (low, high) in ranges.items() if name.lower().endswith(".pos") and "gripper" not in name.lower()]
    is_degrees = max(joints, default=0.0) > _LARGEST_PERCENT
    return {column: tuple(_unit(name, is_degrees, ranges.get(name)) for name in members) for column, members in names.items()}


def _unit(name: str, is_degrees: bool, extent: tuple[float, float] | None) -> str:
    stated, lowered = _STATED_UNIT.search(name), name.lower()
    if stated:
        return stated.group(1)
    if lowered in _BASE_UNITS or not lowered.endswith(".pos"):
        return _BASE_UNITS.get(lowered, "")
    if "gripper" not in lowered:
        return "deg" if is_degrees else ""
    is_opening = extent is not None and extent[0] >= -1 and _LARGEST_OPENING < extent[1] <= _LARGEST_PERCENT
    return "0-100" if is_opening else ""


def _extremes(folder: Path) -> dict[str, np.ndarray]:
    """Column -> [2, width], the smallest and the largest values, where meta/ has statistics that can be read."""
    whole, single = folder / "meta" / "stats.json", folder / "meta" / "episodes_stats.jsonl"
    try:
        if whole.is_file():
            episodes = [read_json(whole)]
        else:
            episodes = [row.get("stats", {}) for row in read_json_lines(single)] if single.is_file() else []
    except ValueError:  # nothing is read from statistics but the units
        return {}
    found: dict[str, list[np.ndarray]] = {}
    for episode in episodes:
        for name, values in episode.items():
            pair = [np.asarray(values.get(key, []), np.float64).ravel() for key in ("min", "max")] if isinstance(values, Mapping) else []
            if pair and len(pair[0]) == len(pair[1]) > 0:
                found.setdefault(name, []).append(np.stack(pair))
    return {
        name: np.stack([np.min([pair[0] for pair in pairs], axis=0), np.max([pair[1] for pair in pairs], axis=0)])
        for name, pairs in found.items()
        if len({pair.shape for pair in pairs}) == 1
    }


def _parts(stored: Mapping[str, Column], modality: Modality) -> Iterable[Column]:
    for name, part in modality.parts.items():
        whole = stored.get(part.column)
        if whole is None or not 0 <= part.start < part.stop <= whole.width:
            continue
        dimensions = whole.dimensions[part.start : part.stop]
        if not dimensions or all(_MOTOR.fullmatch(dimension.name) for dimension in dimensions):
            kind = ActionKind.MOTION if part.is_motion else kind_of(name, "")
            dimensions = tuple(Dimension(called, "", kind) for called in _numbered(name.partition(".")[2], part.stop - part.start))
        yield Column(name, part.stop - part.start, dimensions)


def _named_by_parts(column: Column, modality: Modality, parts: Iterable[Column]) -> Column:
    """The column with the names of its parts, where its own say nothing and the parts are all of it."""
    if not all(_MOTOR.fullmatch(dimension.name) for dimension in column.dimensions):
        return column
    places: dict[int, Dimension] = {}
    for part in parts:
        where = modality.parts[part.key]
        if where.column == column.key:
            places |= dict(zip(range(where.start, where.stop), part.dimensions, strict=True))
    is_whole = bool(places) and len(places) == column.width
    return Column(column.key, column.width, tuple(places[place] for place in range(column.width))) if is_whole else column


def _short(column: Column) -> Column:
    """ "observation.state" is "state" to an entry."""
    return Column(column.key.removeprefix("observation."), column.width, column.dimensions)
