"""An arm like an SO-101 as a plugin of LeRobot, simulated by a first-order delay: it falls where its motors are off.

Speaks degrees or -100 to 100 (of +-120 degrees), gripper 0 to 100, as LeRobot's own SO-101 does. What happens to it is written into its
journal.
"""

import json
import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from lerobot.motors import Motor, MotorNormMode
from lerobot.robots import Robot, RobotConfig
from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
DELAY_S = 0.06  # time constant
LARGEST = 120.0  # [deg], 100 where the arm does not speak degrees
FALLEN = -90.0  # [deg], the shoulder of an arm without torque


@dataclass
class Camera:
    height: int = 48
    width: int = 64


@RobotConfig.register_subclass("simulated_so101")
@dataclass
class SimulatedSO101Config(RobotConfig):
    journal: str
    disable_torque_on_disconnect: bool = True
    use_degrees: bool = True
    start: float = 0.0  # [deg] of all joints
    is_calibrated: bool = True
    camera_names: list[str] = field(default_factory=lambda: ["front", "wrist"])
    blocked_after: int | None = None  # commands; then something is in its way


@RobotConfig.register_subclass("simulated_gripper")
@dataclass
class SimulatedGripperConfig(RobotConfig):
    """A driver that does not say what becomes of the torque."""

    port: str = ""


class SimulatedSO101(Robot):
    config_class = SimulatedSO101Config
    name = "simulated_so101"

    def __init__(self, config: SimulatedSO101Config) -> None:
        super().__init__(config)
        self.config = config
        mode = MotorNormMode.DEGREES if config.use_degrees else MotorNormMode.RANGE_M100_100
        motors = {joint: Motor(number, "sts3215", mode) for number, joint in enumerate(JOINTS, 1)}
        self.bus = SimpleNamespace(motors={**motors, "gripper": Motor(6, "sts3215", MotorNormMode.RANGE_0_100)})
        self.cameras = {name: Camera() for name in config.camera_names}
        self._scale = np.array([1.0 if config.use_degrees else 100 / LARGEST] * 5 + [1.0])
        self._at = np.array([config.start] * 5 + [50.0])  # degrees, gripper 0 to 100
        self._target, self._moved_at = self._at.copy(), time.monotonic()
        self._is_connected = self._has_torque = False
        self._num_commands = 0

    @cached_property
    def action_features(self) -> dict[str, type]:
        return {f"{motor}.pos": float for motor in self.bus.motors}

    @cached_property
    def observation_features(self) -> dict[str, type | tuple]:
        return {**self.action_features, **{name: (camera.height, camera.width, 3) for name, camera in self.cameras.items()}}

    @property
    def is_connected(self) -> bool:
        return self._is_connected

    @property
    def is_calibrated(self) -> bool:
        return self.config.is_calibrated

    def _note(self, what: str, **more: object) -> None:
        with Path(self.config.journal).open("a") as file:
            file.write(json.dumps({"what": what, "at": self._at.round(4).tolist(), **more}) + "\n")

    def connect(self, calibrate: bool = True) -> None:
        assert not (calibrate and not self.is_calibrated), "would ask a person"
        self._is_connected = self._has_torque = True
        self.configure()

    def calibrate(self) -> None:
        raise AssertionError("asks a person")

    def configure(self) -> None:
        self._note("connect")

    def _move(self) -> None:
        now = time.monotonic()
        if self.config.blocked_after is None or self._num_commands < self.config.blocked_after:
            self._at = self._target + (self._at - self._target) * math.exp(-(now - self._moved_at) / DELAY_S)
        self._moved_at = now

    def get_observation(self) -> dict:
        assert self._is_connected
        self._move()
        values = dict(zip(self.action_features, (self._at * self._scale).tolist(), strict=True))
        pictures = {name: np.full((48, 64, 3), 60 + 90 * number, np.uint8) for number, name in enumerate(self.cameras)}
        for picture in pictures.values():
            picture[:6, 0, 0] = np.round(10 * self._at) % 256  # what they show changes with the arm
        return {**values, **pictures}

    def send_action(self, action: dict) -> dict:
        assert self._is_connected
        assert self._has_torque
        self._move()
        self._num_commands += 1
        self._target = np.array([action[name] for name in self.action_features]) / self._scale
        self._note("command", target=self._target.round(4).tolist())
        return action

    def disconnect(self) -> None:
        self._move()
        self._note("disconnect", torque=not self.config.disable_torque_on_disconnect)
        self._has_torque, self._is_connected = not self.config.disable_torque_on_disconnect, False
        if not self._has_torque:
            self._at[1] = FALLEN
            self._note("fallen")


class SimulatedGripper(SimulatedSO101):
    config_class = SimulatedGripperConfig
    name = "simulated_gripper"


@TeleoperatorConfig.register_subclass("simulated_leader")
@dataclass
class SimulatedLeaderConfig(TeleoperatorConfig):
    use_degrees: bool = False


class SimulatedLeader(Teleoperator):
    """A leader arm that somebody holds at 50 of 100 (60 degrees), the gripper half closed."""

    config_class = SimulatedLeaderConfig
    name = "simulated_leader"
    is_calibrated, feedback_features = True, {}

    def __init__(self, config: SimulatedLeaderConfig) -> None:
        super().__init__(config)
        mode = MotorNormMode.DEGREES if config.use_degrees else MotorNormMode.RANGE_M100_100
        motors = {joint: Motor(number, "sts3215", mode) for number, joint in enumerate(JOINTS, 1)}
        self.bus = SimpleNamespace(motors={**motors, "gripper": Motor(6, "sts3215", MotorNormMode.RANGE_0_100)})
        self._held_at = LARGEST / 2 if config.use_degrees else 50.0
        self._is_connected = False

    @property
    def action_features(self) -> dict[str, type]:
        return {f"{motor}.pos": float for motor in self.bus.motors}

    @property
    def is_connected(self) -> bool:
        return self._is_connected

    def connect(self, calibrate: bool = True) -> None:
        self._is_connected = True

    def calibrate(self) -> None:
        raise AssertionError("asks a person")

    def configure(self) -> None:
        return

    def get_action(self) -> dict[str, float]:
        assert self._is_connected
        return {name: 50.0 if name == "gripper.pos" else self._held_at for name in self.action_features}

    def send_feedback(self, feedback: dict) -> None:
        raise AssertionError("has no motors")

    def disconnect(self) -> None:
        self._is_connected = False
