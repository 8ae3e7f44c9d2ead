"""Any robot that LeRobot drives, as a robot of the real-time loop.

python scripts/run_robot.py --robot lerobot:so101_follower --robot_args '{"port": "/dev/ttyACM0", "id": "my_arm", "cameras": {...}}'

Values go by their names, in the policy's order and units. At the end the arm keeps its torque and holds where it is. Beside LeRobot's own
fields the arguments may have, where the policy or the driver do not say it themselves:

    slots             the policy's camera -> LeRobot's: {"primary": "front"}
    names             the policy's dimension -> LeRobot's value: {"joint_1": "shoulder_pan.pos"}
    units             LeRobot's value -> its unit: {"joint_1.pos": "rad"}
    teleop            a leader arm or another teleoperator of LeRobot, which commands after the key t: {"type": "so101_leader", "port": ...}
    holds_at_the_end  true: the driver keeps the arm up when it is disconnected
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.robot.lerobot import devices, ports
from experiments.robot.lerobot.dimensions import DEGREES, PERCENT, Dimensions, as_argument, check_kinds, match_dimensions, split_unit
from prismatic.acting.leader import Leader
from prismatic.acting.robot import Robot
from prismatic.vla.constants import ActionKind, near_names
from prismatic.vla.types import Observation
from prismatic.wire.policy_info import PolicyInfo

_SAME_READING_S = 0.01  # an observation within this time after the reading of the position is the same reading
_SHORTENED = 1e-3  # of a command; what the driver sends may differ by so much
_OURS = ("slots", "names", "units", "teleop", "holds_at_the_end")

logger = logging.getLogger(__name__)


class LeRobotArm(Robot):
    """One of LeRobot's robots, known by its type name; `fit` brings it to a policy before it is connected."""

    def __init__(self, type_name: str, arguments: Mapping[str, Any]) -> None:
        """Looks at the arguments; touches no hardware.

        Raises:
            ValueError: LeRobot does not know the type or does not take the arguments, or the arm would be dropped at the end.
        """
        self._type_name = type_name
        self._ours = {name: arguments[name] for name in _OURS if name in arguments}
        self._arguments = {name: value for name, value in arguments.items() if name not in _OURS}
        if devices.forbids_holding(self._arguments):
            raise ValueError("disable_torque_on_disconnect is true in --robot_args, which drops the arm at the end; leave it out")
        self._config = devices.decode_config("robot", type_name, self._arguments)
        if not self._ours.get("holds_at_the_end", False):
            devices.keep_torque(self._config)
        teleop = dict(self._ours.get("teleop") or {})
        self._teleop_config: Any = devices.decode_config("teleoperator", teleop.pop("type", ""), teleop) if teleop else None
        self._robot: Any = None
        self._values: Mapping[str, Any] = {}  # the last reading
        self._read_at = self._was_read_at = -np.inf  # when the last reading was begun, and when it was there
        self._ports: list[int] = []  # held
        self._has_told_of_shortening = False

    def fit(self, info: PolicyInfo) -> None:
        """Takes over names, order and units of the policy, and which camera is which; touches no hardware.

        Raises:
            ValueError: they do not fit; names what to write in --robot_args.
        """
        self._speak_as(info)
        self._robot = devices.make_device("robot", self._config)
        stated, renamed = dict(self._ours.get("units") or {}), dict(self._ours.get("names") or {})
        features = self._robot.observation_features
        own = devices.value_units(self._robot, self._robot.action_features, stated)
        self._actions = match_dimensions("action", info.action_names, own, renamed)
        check_kinds(info.action_names, info.action_kinds, self._actions.keys)
        if missing := [name for name in own if name not in self._actions.keys]:
            raise ValueError(f"LeRobot's {self._type_name} also takes {', '.join(missing)}, which the policy does not command")
        sensed = devices.value_units(self._robot, features, stated)
        self._states = match_dimensions("state", info.proprio_names if info.needs_state else (), sensed, renamed)
        self._is_target = np.array([kind is ActionKind.TARGET for kind in info.action_kinds])
        measured = {key for key, target in zip(self._actions.keys, self._is_target, strict=True) if target}
        if lost := sorted(measured - set(sensed)):
            raise ValueError(f"LeRobot's {self._type_name} does not say where its {', '.join(lost)} is; nothing can be moved safely so")
        self._cameras = self._match_cameras(info, [name for name, kind in features.items() if isinstance(kind, tuple)])
        self.action_names, self.state_names = info.action_names, info.proprio_names if info.needs_state else ()
        if self._teleop_config is not None:
            self.leader = self._make_leader(info, stated, renamed)

    def _speak_as(self, info: PolicyInfo) -> None:
        """Chooses degrees or -100 to 100, which the same joints may be recorded in."""
        spoken = {unit for _, unit in map(split_unit, info.action_names) if unit in (DEGREES, "rad", PERCENT)}
        for config, said in ((self._config, self._arguments), (self._teleop_config, self._ours.get("teleop") or {})):
            if config is None or not devices.has_degrees(config) or devices.mentions(said, "use_degrees"):
                continue
            if not spoken:
                raise ValueError(
                    "the policy does not say whether its joints are in degrees or from -100 to 100, and the arm can be commanded in both; "
                    'say how it was recorded: "use_degrees": true or false in --robot_args (LeRobot\'s newer recordings are in degrees)'
                )
            devices.choose_degrees(config, PERCENT if PERCENT in spoken else DEGREES)

    def _match_cameras(self, info: PolicyInfo, own: list[str]) -> dict[str, str]:
        """The policy's camera -> LeRobot's, by what is said, by what the recordings called it, or by its own name."""
        said, found = dict(self._ours.get("slots") or {}), {}
        for slot in info.cameras:
            recorded = info.demonstrated.cameras.get(slot, slot).rpartition(".")[2]
            name = said.get(slot) or next((name for name in (recorded, slot) if name in own), "")
            if not name and len(own) == len(info.cameras) == 1:
                name = own[0]
            if name not in own:
                raise ValueError(
                    f"the policy's camera {slot} (called {recorded!r} in the data) is none of the robot's "
                    f"({', '.join(own) or 'it has none'}); say which it is: "
                    f"{as_argument('slots', slot)}; {near_names(name or recorded, own)}"
                )
            found[slot] = name
        return found

    def _make_leader(self, info: PolicyInfo, stated: Mapping[str, str], renamed: Mapping[str, str]) -> LeRobotLeader:
        device = devices.make_device("teleoperator", self._teleop_config)
        units = devices.value_units(device, device.action_features, stated)
        values = match_dimensions("action", info.action_names, units, renamed)
        return LeRobotLeader(device, self._teleop_config, values, info.action_names)

    def connect(self) -> None:
        """Raises ValueError where another program commands the arm, it has not been calibrated, or another one has been under this id."""
        self._ports = ports.hold(self._config)
        logger.info("LeRobot's drivers switch the motors off for a moment while they connect: let the arm rest on something")
        _connect(self._robot, "robot", self._type_name, self._arguments)
        found = np.median([self.position() for _ in range(3)], axis=0)  # the first command must not be one wrong reading
        if not np.isfinite(found[self._is_target]).all():
            raise ValueError(f"LeRobot's {self._type_name} does not say where all of its motors are; check their cables, then start again")
        self.send(np.where(self._is_target, found, 0.0))  # from now on it holds

    def position(self) -> np.ndarray:
        self._read()
        return np.array([self._values.get(key) for key in self._actions.keys], np.float64) * self._actions.factors

    def observe(self, instruction: str) -> Observation:
        if time.monotonic() - self._was_read_at > _SAME_READING_S:
            self._read()
        images = {slot: self._values[name] for slot, name in self._cameras.items()}
        return Observation(images, instruction, self._states.read(self._values) if self.state_names else None)

    def _read(self) -> None:
        started, before = time.monotonic(), self._values
        self._values = dict(self._robot.get_observation())  # may wait for the next frame of its cameras
        self._was_read_at = time.monotonic()
        # A robot behind a network gives its last answer again where none has come; the values are then the very same objects.
        is_new = any(value is not before.get(name) for name, value in self._values.items())
        if is_new or self._type_name not in devices.HELD_BY_OTHERS:
            self._read_at = started

    def sensed_at(self) -> float:
        return self._read_at

    def send(self, action: np.ndarray) -> None:
        wanted = self._actions.write(action)
        sent = self._robot.send_action(wanted) or {}
        shortened = [key for key in wanted if abs(float(sent.get(key, wanted[key])) - wanted[key]) > _SHORTENED]
        if shortened and not self._has_told_of_shortening:
            self._has_told_of_shortening = True
            logger.warning("LeRobot changed a command of %s on its way (max_relative_target?); told once", ", ".join(shortened))

    def disconnect(self) -> None:
        """The driver lets go of its port, the motors go on holding."""
        if self._robot is not None and self._robot.is_connected:
            self._robot.disconnect()
            logger.info("the arm keeps its torque and holds where it is: support it before you switch it off")
        ports.release(self._ports)


class LeRobotLeader(Leader):
    """One of LeRobot's teleoperators, in the order and units of a policy."""

    def __init__(self, device: Any, config: Any, values: Dimensions, action_names: tuple[str, ...]) -> None:
        """`config`: what `device` was made of; `values`: where the policy's dimensions are among those of the device."""
        self._device, self._config, self._values = device, config, values
        self._ports: list[int] = []  # held
        self.action_names = action_names

    def connect(self) -> None:
        """Raises ValueError where another program reads it, or it has not been calibrated."""
        self._ports = ports.hold(self._config)
        said = {name: getattr(self._config, name) for name in ("port", "id") if getattr(self._config, name, None) is not None}
        _connect(self._device, "teleop", self._config.type, said)

    def read(self) -> np.ndarray:
        return self._values.read(self._device.get_action())

    def disconnect(self) -> None:
        if self._device.is_connected:
            self._device.disconnect()
        ports.release(self._ports)


def _connect(device: Any, kind: str, type_name: str, said: Mapping[str, Any]) -> None:
    """Connects a device of LeRobot without the dialogue of its calibration.

    Raises:
        ValueError: it cannot be reached, or is not calibrated.
    """
    takes = inspect.signature(device.connect).parameters
    try:
        device.connect(**({"calibrate": False} if "calibrate" in takes else {}))
    except Exception as error:  # drivers raise what they like
        raise ValueError(f"LeRobot's {type_name} cannot be connected: {devices.one_line(error)}") from error
    if not device.is_calibrated:
        known = {"type": type_name, **{name: said[name] for name in ("port", "id") if name in said}}
        flags = " ".join(f"--{kind}.{name}={value}" for name, value in known.items())
        raise ValueError(f"{device} is not calibrated under this id, or not with these motors; run: lerobot-calibrate {flags}")
