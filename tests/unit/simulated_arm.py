"""An arm like an SO-101, simulated by a first-order delay, with the faults that real ones have. Angles in degrees, gripper 0..100."""

from __future__ import annotations

import time

import numpy as np

from prismatic.acting.robot import Robot, RobotError
from prismatic.vla.types import Observation

NAMES = ("shoulder_pan [deg]", "shoulder_lift [deg]", "elbow_flex [deg]", "wrist_flex [deg]", "wrist_roll [deg]", "gripper")
_DELAY_S = 0.06  # time constant


class SimulatedArm(Robot):
    """Moves towards its target in real time; `fault` says what is wrong with it."""

    action_names = state_names = NAMES
    instruction, max_steps = "put the cube into the bowl", 60

    def __init__(self, start: float = 0.0) -> None:
        self.at = self.target = np.full(6, start)
        self.moved_at = time.monotonic()
        self.fault = ""  # blocked, nan, no camera, frozen camera, no bus, stale, refuses
        self.commands: list[np.ndarray] = []
        self.calls: list[str] = []
        self._noise = np.random.default_rng(0)
        self._picture = self._shoot()

    def _shoot(self) -> np.ndarray:
        """A picture with the noise of a sensor."""
        return self._noise.integers(95, 106, (48, 64, 3), dtype=np.uint8)

    def connect(self) -> None:
        self.calls.append("connect")

    def _move(self) -> None:
        now = time.monotonic()
        if self.fault != "blocked":
            self.at = self.target + (self.at - self.target) * np.exp(-(now - self.moved_at) / _DELAY_S)
        self.moved_at = now

    def position(self) -> np.ndarray:
        self._move()
        if self.fault == "no bus":
            raise ConnectionError("no status packet")
        return np.full(6, np.nan) if self.fault == "nan" else self.at.copy()

    def sensed_at(self) -> float:
        return time.monotonic() - (2.0 if self.fault == "stale" else 0.0)

    def observe(self, instruction: str) -> Observation:
        if self.fault == "no camera":
            raise TimeoutError("camera top: no frame for 200 ms")
        if self.fault != "frozen camera":
            self._picture = self._shoot()
        return Observation({"primary": self._picture, "wrist": self._shoot()}, instruction, self.position())

    def send(self, action: np.ndarray) -> None:
        self._move()
        if self.fault == "refuses":
            raise RobotError("torque is off")
        self.commands.append(action.copy())
        self.target = action

    def stop(self) -> None:
        self.calls.append("stop")

    def disconnect(self) -> None:
        self.calls.append("disconnect")
