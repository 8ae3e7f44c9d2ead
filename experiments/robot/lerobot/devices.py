"""LeRobot's robots and teleoperators by its own type names and arguments, made so that they keep their torque at the end.

Works with lerobot 0.4.4 (Python 3.11) and with the interface of 0.6.1; lerobot is imported late, in the robot's environment.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.robot.lerobot.dimensions import DEGREES, PERCENT
from prismatic.vla.constants import near_names

_TORQUE, _DEGREES = "disable_torque_on_disconnect", "use_degrees"
HELD_BY_OTHERS = ("lekiwi_client",)  # the program on the robot goes on holding the arm, and stops a base that nobody commands
_UNITS = {"degrees": DEGREES, "range_m100_100": PERCENT, "range_0_100": "0-100"}  # of MotorNormMode
_BASE_UNITS = {"x.vel": "m/s", "y.vel": "m/s", "theta.vel": "deg/s"}  # of LeKiwi

logger = logging.getLogger(__name__)


def decode_config(kind: str, type_name: str, arguments: Mapping[str, Any]) -> Any:
    """LeRobot's configuration of a device; `kind` is "robot" or "teleoperator", `arguments` are its fields as in LeRobot's commands.

    Raises:
        ValueError: lerobot is not installed, knows no such type, or does not take these arguments.
    """
    try:
        import draccus

        room = importlib.import_module(f"lerobot.{kind}s")
        base = getattr(room, {"robot": "RobotConfig", "teleoperator": "TeleoperatorConfig"}[kind])
    except ImportError as error:
        raise ValueError(f"lerobot:{type_name} needs LeRobot in this environment ({error}): see docs/lerobot.md") from error
    failed = _register(room)
    known = base.get_known_choices()
    if type_name not in known:
        lost = f" (not looked at, for want of packages: {', '.join(failed)})" if failed else ""
        raise ValueError(f"LeRobot has no {kind} of the type {type_name!r}; {near_names(type_name, sorted(known))}{lost}")
    try:
        return draccus.decode(base, {"type": type_name, **arguments})
    except Exception as error:  # draccus, the dataclass and LeRobot's own checks raise different kinds
        cause = error.__cause__ or error
        names = ", ".join(item.name for item in dataclasses.fields(known[type_name]))
        raise ValueError(f"LeRobot's {type_name} does not take these arguments ({one_line(cause)}); it has {names}") from error


def _register(room: Any) -> dict[str, str]:
    """Imports what registers types: LeRobot's modules of one room, its cameras, and plugins; module -> why it cannot be imported."""
    failed = {}
    for package in (room, importlib.import_module("lerobot.cameras")):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not module.ispkg:
                continue
            try:
                importlib.import_module(module.name)
                for part in pkgutil.iter_modules(importlib.import_module(module.name).__path__, f"{module.name}."):
                    if part.name.rpartition(".")[2].startswith("config"):
                        importlib.import_module(part.name)
            except ImportError as error:
                failed[module.name] = one_line(error)
    importlib.import_module("lerobot.utils.import_utils").register_third_party_plugins()
    return failed


def make_device(kind: str, config: Any) -> Any:
    """LeRobot's device of a configuration; touches no hardware.

    Raises:
        ValueError: it cannot be made, for want of a package or of a field.
    """
    try:
        return getattr(importlib.import_module(f"lerobot.{kind}s"), f"make_{kind}_from_config")(config)
    except Exception as error:  # of any driver
        raise ValueError(f"LeRobot's {config.type} cannot be made: {one_line(error)}") from error


def keep_torque(config: Any) -> None:
    """Makes the arm, or each of several, hold where it is when it is disconnected.

    Raises:
        ValueError: its driver has no such option, so that nobody knows whether the arm would fall.
    """
    parts = [part for part in _parts(config) if hasattr(part, _TORQUE)]
    for part in parts:
        setattr(part, _TORQUE, False)
    if not parts and config.type not in HELD_BY_OTHERS:
        raise ValueError(
            f"LeRobot's {config.type} has no {_TORQUE}, so that its arm might fall when the run ends. If you know that its driver keeps it "
            "up, say so: --robot_args '{\"holds_at_the_end\": true}'"
        )


def choose_degrees(config: Any, unit: str) -> None:
    """Makes the driver speak degrees, or -100 to 100, as the policy was trained; drivers without the choice stay as they are."""
    for part in _parts(config):
        if hasattr(part, _DEGREES):
            setattr(part, _DEGREES, unit == DEGREES)


def has_degrees(config: Any) -> bool:
    """Whether the driver can speak degrees as well as -100 to 100."""
    return any(hasattr(part, _DEGREES) for part in _parts(config))


def mentions(arguments: Mapping[str, Any], field: str) -> bool:
    """Whether somebody has said `field`, at any depth."""
    return field in arguments or any(isinstance(value, Mapping) and mentions(value, field) for value in arguments.values())


def forbids_holding(arguments: Mapping[str, Any]) -> bool:
    """Whether the arguments ask for an arm that is dropped at the end."""
    return bool(arguments.get(_TORQUE)) or any(isinstance(value, Mapping) and forbids_holding(value) for value in arguments.values())


def value_units(device: Any, names: Mapping[str, Any], stated: Mapping[str, str]) -> dict[str, str]:
    """Name -> unit of each of the numbers among a device's features; "" where neither `stated` nor its motors say it."""
    known = {**_BASE_UNITS, **_motor_units(device), **stated}
    return {name: known.get(name, "") for name, kind in names.items() if kind is float}


def _motor_units(device: Any) -> dict[str, str]:
    """Name -> unit of the motors on a device's bus, and on those of its arms ("left_elbow_flex.pos")."""
    found = {}
    for prefix in ("", "left_", "right_"):
        part = getattr(device, f"{prefix}arm", None) if prefix else device
        for motor, facts in getattr(getattr(part, "bus", None), "motors", {}).items():
            mode = getattr(facts, "norm_mode", None)
            found[f"{prefix}{motor}.pos"] = _UNITS.get(getattr(mode, "value", ""), "")
    return found


def _parts(config: Any) -> Iterator[Any]:
    """A configuration and those in its fields."""
    yield config
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from _parts(value)


def one_line(error: BaseException) -> str:
    """What an exception says."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
