"""The simulated ALOHA as a robot of the real-time loop, and one that takes relative targets. Action, position [14]: see environment.py."""

from __future__ import annotations

import time

import numpy as np

from experiments.robot.aloha.environment import AlohaSimulator
from experiments.robot.simulators.interfaces import EpisodeSpec
from prismatic.acting.robot import Robot
from prismatic.vla.types import Observation

ACTION_DIM = 14
# ViperX 300 S: waist, shoulder, elbow, forearm roll, wrist angle, wrist rotate [rad]; a leader's gripper goes a little beyond [0, 1].
_JOINT_LOW = (-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158, -0.2)
_JOINT_HIGH = (3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158, 1.2)
LOW, HIGH = np.array(_JOINT_LOW * 2), np.array(_JOINT_HIGH * 2)


class SimulatedRobot:
    """A task of gym-aloha that is stepped in real time."""

    def __init__(self, simulator: AlohaSimulator, task: str, seed: int) -> None:
        self._environment = simulator.make_environment(task)
        self._seed = seed
        self.instruction, self.max_steps = self._environment.instruction, self._environment.max_steps

    def reset(self, rollout: int) -> None:
        self._environment.reset(EpisodeSpec(self._environment.task.name, rollout, self._seed))
        self._environment.render()  # opens the renderer, which takes longer than a control step

    def position(self) -> np.ndarray:
        return self._environment.proprio().astype(np.float64)

    def sensed_at(self) -> float:
        return time.monotonic()

    def observe(self, instruction: str) -> Observation:
        seen = self._environment.observe()
        return Observation(seen.images, instruction, seen.proprio)

    def step(self, action: np.ndarray) -> bool:
        return self._environment.step(action)

    def picture(self) -> np.ndarray:
        return self._environment.render()

    def close(self) -> None:
        self._environment.close()


class RelativeTargets:
    """A robot whose actions are changes of the joint angles: they add up, from where the arms stand at reset."""

    def __init__(self, robot: Robot) -> None:
        self._robot = robot
        self._target = np.zeros(ACTION_DIM)
        self.instruction, self.max_steps = robot.instruction, robot.max_steps

    def reset(self, rollout: int) -> None:
        self._robot.reset(rollout)
        self._target = self._robot.position()

    def step(self, action: np.ndarray) -> bool:
        self._target = np.clip(self._target + action, LOW, HIGH)
        return self._robot.step(self._target)

    def position(self) -> np.ndarray:
        return self._robot.position()

    def sensed_at(self) -> float:
        return self._robot.sensed_at()

    def observe(self, instruction: str) -> Observation:
        return self._robot.observe(instruction)

    def picture(self) -> np.ndarray:
        return self._robot.picture()

    def close(self) -> None:
        self._robot.close()
