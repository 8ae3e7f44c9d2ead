"""LeRobot's values by their names ("shoulder_pan.pos") <-> the dimensions of a policy ("shoulder_pan.pos [deg]"), in its order and units.

Both sides say what they know of units; a value is converted only where both say so, and refused where they say what cannot be converted.
Letters: D dimensions of the policy's actions, or of its states.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prismatic.vla.constants import ActionKind, near_names

DEGREES, PERCENT = "deg", "-100-100"  # what LeRobot's arms are recorded in, joint by joint
_TARGET = ".pos"  # ends the name of a value that is where to be
_UNIT = re.compile(r"(.*?)\s*\[(.*)\]")
_SPELLINGS = {"degrees": DEGREES, "°": DEGREES, "radians": "rad", "%": PERCENT}
_FACTORS = {
    ("deg", "rad"): np.pi / 180,
    ("deg/s", "rad/s"): np.pi / 180,
    ("0-100", "0-1"): 0.01,
    (PERCENT, "-1-1"): 0.01,
    ("mm", "m"): 0.001,
}


@dataclass(frozen=True)
class Dimensions:
    """Which of LeRobot's values each dimension of the policy is."""

    keys: tuple[str, ...]  # [D], LeRobot's names in the policy's order
    factors: np.ndarray  # float64 [D], a value of the policy is so many of LeRobot's

    def read(self, values: Mapping[str, float]) -> np.ndarray:
        """float64 [D] in the policy's units; NaN where LeRobot says None.

        Raises:
            KeyError: LeRobot left one out.
        """
        return np.array([values[key] for key in self.keys], np.float64) * self.factors

    def write(self, numbers: np.ndarray) -> dict[str, float]:
        """LeRobot's names and units; the inverse of `read`."""
        return dict(zip(self.keys, (np.asarray(numbers, np.float64) / self.factors).tolist(), strict=True))


def match_dimensions(what: str, wanted: Sequence[str], units: Mapping[str, str], renamed: Mapping[str, str]) -> Dimensions:
    """Where each dimension that the policy wants is among LeRobot's values.

    `units`: LeRobot's name -> its unit, "" where the driver does not say; `renamed`: the policy's name -> LeRobot's, where they differ.

    Raises:
        ValueError: there is no such value, or units that cannot be converted; names both sides and what to write.
    """
    known = {_plain(key): key for key in units}
    keys, factors = [], []
    for dimension in wanted:
        name, unit = split_unit(dimension)
        key = renamed.get(name) or renamed.get(dimension) or known.get(_plain(name), "")
        if key not in units:
            raise ValueError(
                f"the policy's {what} {dimension!r} is none of the robot's values ({', '.join(units)}); "
                f"say which it is: {as_argument('names', name)}; {near_names(key or name, units)}"
            )
        keys.append(key)
        factors.append(_factor(f"{what} {dimension!r}", key, units[key], unit))
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"two of the policy's {what}s are the robot's {twice!r}: {', '.join(wanted)}")
    return Dimensions(tuple(keys), np.array(factors, np.float64))


def check_kinds(names: Sequence[str], kinds: Sequence[ActionKind], keys: Sequence[str]) -> None:
    """Accepts actions that are what LeRobot's values of these keys are: a driver goes to a ".pos", and adds nothing up.

    Raises:
        ValueError: the policy gives changes of such a value; names them.
    """
    changes = [name for name, kind, key in zip(names, kinds, keys, strict=True) if kind is ActionKind.MOTION and key.endswith(_TARGET)]
    if changes:
        raise ValueError(
            f"the policy's actions are changes ({', '.join(changes)}), and LeRobot's driver takes targets: the arm would go to such small "
            "angles. Serve a policy whose actions are targets (without --use_relative_actions, if they are), or write a class that adds "
            "them up (docs/own_robot.md)"
        )


def as_argument(field: str, name: str, value: str = "...") -> str:
    """How a person says it on the command line."""
    return f"--robot_args '{json.dumps({field: {name: value}})}'"


def split_unit(dimension: str) -> tuple[str, str]:
    """("elbow_flex.pos", "deg") of "elbow_flex.pos [degrees]"; "" where no unit is stated."""
    found = _UNIT.fullmatch(dimension)
    return (found[1], standard_unit(found[2])) if found else (dimension, "")


def standard_unit(unit: str) -> str:
    """One spelling for each unit."""
    spelled = unit.strip().lower().replace("..", "-").replace(" to ", "-")
    return _SPELLINGS.get(spelled, spelled)


def _plain(name: str) -> str:
    return name.removesuffix(_TARGET)


def _factor(where: str, key: str, unit: str, wanted: str) -> float:
    """By what a value in `unit` is multiplied to be in `wanted`."""
    if not wanted or unit == wanted:
        return 1.0
    if not unit:
        raise ValueError(
            f"the policy's {where} has a unit, and the robot's driver does not say in which its {key!r} is; "
            f"say it: {as_argument('units', key, wanted)}"
        )
    if (unit, wanted) in _FACTORS:
        return _FACTORS[unit, wanted]
    if (wanted, unit) in _FACTORS:
        return 1 / _FACTORS[wanted, unit]
    raise ValueError(
        f"the policy's {where} cannot be had from the robot's {key!r}, which is in [{unit}]: the arm must speak as it did while recording "
        "(of LeRobot's arms: --robot_args '{\"use_degrees\": ...}')"
    )
