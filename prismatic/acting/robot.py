"""What a robot must be able to do. Letters: A action dim, P proprio dim.

class MyArm(Robot):
    action_names = state_names = ("shoulder [rad]", "elbow [rad]", "gripper")
    def connect(self): ...
    def position(self): ...             # float64 [A], where the arm is, in the units of its actions
    def observe(self, instruction): ... # Observation(images, instruction, state)
    def send(self, action): ...         # float64 [A]; returns at once
    def disconnect(self): ...           # without dropping the arm
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from prismatic.acting.leader import Leader
from prismatic.vla.types import Observation
from prismatic.wire.policy_info import PolicyInfo


class RobotError(RuntimeError):
    """The robot did not do what it was told, or does not say where it is; the loop holds and tries again."""


@dataclass(frozen=True)
class Sensed:
    """Where a robot is, and when that was."""

    position: np.ndarray  # float64 [A], in the units of the actions; dimensions that are not targets do not matter
    time: float  # [s, time.monotonic] of the oldest of the latest messages from joints and cameras


class Robot(ABC):
    """One robot, with one arm or several; the loop calls nothing else.

    Any method may raise: the loop then holds the robot, counts, and ends the rollout if it goes on for too long.
    """

    action_names: tuple[str, ...]  # [A], with units, as the policy's platform calls them
    state_names: tuple[str, ...] = ()  # [P], likewise; () where the robot does not say
    instruction: str = ""  # what it is told to do unless a person says something else
    max_steps: int = 1500  # of a rollout, unless a person says something else
    leader: Leader | None = None  # what a person takes over with, where the robot brings it along
    is_rehearsal: bool = False  # nothing moves: no rollout can succeed or fail

    def fit(self, info: PolicyInfo) -> None:
        """Takes over the names and units of the policy that is to drive it, before it is connected; nothing by default.

        Raises:
            ValueError: the robot cannot be driven so.
        """
        return

    @abstractmethod
    def connect(self) -> None:
        """Makes the robot ready to move, without moving it."""

    @abstractmethod
    def position(self) -> np.ndarray:
        """float64 [A], where the robot is, in the units of its actions."""

    @abstractmethod
    def observe(self, instruction: str) -> Observation:
        """What the robot sees and feels now."""

    @abstractmethod
    def send(self, action: np.ndarray) -> None:
        """Commands an action [A] and returns at once.

        Raises:
            RobotError: the robot did not take it.
        """

    @abstractmethod
    def disconnect(self) -> None:
        """Lets go of the robot, which keeps its position or is lowered, and never falls; harmless the second time."""

    def reset(self, rollout: int) -> None:
        """Moves the robot to where rollout number `rollout` (from 0) starts; nothing by default."""
        return

    def sensed_at(self) -> float:
        """Time [s, time.monotonic] of the oldest of the latest messages; now, where `position` asks the robot anew."""
        return time.monotonic()

    def stop(self) -> None:
        """Ends motion beyond the last command, which holds already; for robots that have such a thing.

        Called after each rollout, and where `reset` raises or a signal interrupts it.
        """
        return

    def is_solved(self) -> bool:
        """True once the task is known to be solved, as simulators know it; a robot that leaves this as it is cannot tell."""
        return False

    @property
    def can_tell_success(self) -> bool:
        """Whether a rollout that was not solved has failed; else a person must say so."""
        return type(self).is_solved is not Robot.is_solved

    def picture(self) -> np.ndarray | None:
        """uint8 [height, width, 3], even sides, for the video; None: the primary camera's picture is filmed."""
        return None
