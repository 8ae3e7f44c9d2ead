"""The simulated ALOHA as a robot of the real-time loop, and one that takes changes of its joints' angles.

Action, position [14]: see environment.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from experiments.robot.aloha.environment import AlohaSimulator
from experiments.robot.simulators.episodes import EpisodeSpec
from prismatic.acting.robot import Robot, RobotError
from prismatic.vla.constants import ROBOT_PLATFORMS, ActionKind
from prismatic.vla.types import Observation
from prismatic.wire.policy_info import CHANGE_PREFIX

ALOHA = ROBOT_PLATFORMS["ALOHA"]
ACTION_DIM = ALOHA.action_dim
assert ALOHA.limits is not None
LOW, HIGH = np.array(ALOHA.limits.low, np.float64), np.array(ALOHA.limits.high, np.float64)
_MAX_LEAD = np.array([np.inf if "gripper" in name else 0.4 for name in ALOHA.action_names])  # of a target before its arm [rad]
_OLD_S = 0.5  # age of a reading after which the arms may have sunk, without power
_MOVED = 0.1  # [rad], by which two readings of an arm at rest do not differ
_SETTLED, _SETTLING_S, _LOOK_S = 0.002, 3.0, 0.1  # [rad] that an arm at rest moves within _LOOK_S; how long to wait for that


class SimulatedRobot(Robot):
    """A task of gym-aloha that is stepped in real time."""

    action_names, state_names = ALOHA.action_names, ALOHA.proprio_names

    def __init__(self, task: str = "transfer_cube", seed: int = 7, image_size: int = 256, fast_rendering: bool = True) -> None:
        self._environment = AlohaSimulator(image_size, fast_rendering).make_environment(task)
        self._seed, self._is_solved = seed, False
        self.instruction, self.max_steps = self._environment.instruction, self._environment.max_steps

    def connect(self) -> None:
        return

    def reset(self, rollout: int) -> None:
        self._environment.reset(EpisodeSpec(self._environment.task.name, rollout, self._seed))
        self._environment.render()  # opens the renderer, which takes longer than a control step
        self._is_solved = False

    def position(self) -> np.ndarray:
        return self._environment.position()

    def observe(self, instruction: str) -> Observation:
        seen = self._environment.observe()
        return Observation(seen.images, instruction, seen.proprio)

    def send(self, action: np.ndarray) -> None:
        self._is_solved = self._environment.step(action) or self._is_solved

    def is_solved(self) -> bool:
        return self._is_solved

    def picture(self) -> np.ndarray:
        return self._environment.render()

    def disconnect(self) -> None:
        self._environment.close()


class RelativeTargets(Robot):
    """A robot whose actions are, in some dimensions, changes of its targets: they add up, from where the arms stand when they begin.

    Sums stay within the limits and near the arm: while something is in its way, they do not run away from it.
    """

    def __init__(self, robot: Robot, kinds: Sequence[ActionKind]) -> None:
        self._robot = robot
        self._adds = np.array([kind is ActionKind.MOTION for kind in kinds], bool)
        self._target: np.ndarray | None = None  # None: to be read from the arms, once they are told to move
        self._is_silent = False  # the arms were not heard of for long
        self._found: tuple[float, np.ndarray] | None = None  # time and positions of the first reading after that
        names = zip(robot.action_names, self._adds, strict=True)
        self.action_names = tuple(CHANGE_PREFIX + name if adds else name for name, adds in names)  # that no leader takes them for targets
        self.state_names = robot.state_names
        self.instruction, self.max_steps = robot.instruction, robot.max_steps

    def connect(self) -> None:
        self._robot.connect()

    def reset(self, rollout: int) -> None:
        """Moves the robot to its start and waits until it is at rest.

        Raises:
            RobotError: it is not, after seconds.
        """
        self._robot.reset(rollout)
        self._target, self._is_silent, self._found = None, False, None
        until, before = time.monotonic() + _SETTLING_S, self._robot.position()
        while True:
            time.sleep(_LOOK_S)
            now = self._robot.position()
            if np.abs(now - before).max() <= _SETTLED:
                return
            if time.monotonic() > until:
                raise RobotError(f"the arms still move {_SETTLING_S:g} s after the reset; relative targets need them at rest")
            before = now

    def send(self, action: np.ndarray) -> None:
        """Sends nothing while it is not known where the arms are: their power may come back, and the sum of before would make them jump.

        Raises:
            RobotError: a joint's reading is not a number; a sum near it would not be one, either.
        """
        position = self._robot.position()
        if not np.isfinite(position).all():
            raise RobotError("a joint's reading is not a number, so that nothing is known of where its target would be")
        self._listen(position)
        if self._is_silent:
            return
        if self._target is None:
            self._target = position.copy()
        wanted = np.where(self._adds, self._target + action, action)
        near = np.clip(wanted, position - _MAX_LEAD, position + _MAX_LEAD)
        target = np.clip(np.where(self._adds, near, wanted), LOW, HIGH)
        self._robot.send(target)
        self._target = target

    def _listen(self, position: np.ndarray) -> None:
        """After a silence, two readings that agree say where the sums of joints that have moved go on; a gripper keeps its grip."""
        sensed_at, joints = self._robot.sensed_at(), np.isfinite(_MAX_LEAD)
        if not time.monotonic() - sensed_at <= _OLD_S:
            self._is_silent, self._found = True, None
        elif self._is_silent and (self._found is None or sensed_at > self._found[0]):
            before, self._found = self._found, (sensed_at, position.copy())
            self._is_silent = before is None or bool((np.abs(position - before[1])[joints] > _MOVED).any())
            if not self._is_silent and self._target is not None:
                has_moved = self._adds & joints & (np.abs(position - self._target) > _MOVED)
                self._target = np.where(has_moved, position, self._target)

    def position(self) -> np.ndarray:
        return self._robot.position()

    def sensed_at(self) -> float:
        return self._robot.sensed_at()

    def observe(self, instruction: str) -> Observation:
        return self._robot.observe(instruction)

    def is_solved(self) -> bool:
        return self._robot.is_solved()

    def picture(self) -> np.ndarray | None:
        return self._robot.picture()

    def stop(self) -> None:
        self._robot.stop()

    def disconnect(self) -> None:
        self._robot.disconnect()
