"""What a person moves to command the robot: a leader arm, or another device.

class MyLeader(Leader):
    action_names = MyArm.action_names
    def connect(self): ...
    def read(self): ...         # float64 [A], what the robot is to do, in the units of its actions; returns at once
    def disconnect(self): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np


class Leader(ABC):
    """One device; the loop reads it at every step while a person has taken over, and nothing else.

    The robot walks to where the leader points, then follows it within its limits. Any method may raise: the robot then holds.
    """

    action_names: tuple[str, ...]  # [A], with units, as the robot calls them

    @abstractmethod
    def connect(self) -> None:
        """Makes the device ready to be read."""

    @abstractmethod
    def read(self) -> np.ndarray:
        """float64 [A], what the person commands: targets, and motions or velocities where the robot takes such."""

    @abstractmethod
    def disconnect(self) -> None:
        """Lets go of the device; harmless the second time."""


def check_leader(leader: Leader, action_names: Sequence[str]) -> None:
    """Accepts a leader whose dimensions are those of a robot's actions, in their order and units.

    Raises:
        ValueError: they are not.
    """
    if not hasattr(leader, "action_names"):
        raise ValueError(
            f"{type(leader).__name__} does not say what it commands; write into the class what the robot calls it: "
            f"action_names = {tuple(action_names)!r}"
        )
    if tuple(leader.action_names) != tuple(action_names):
        raise ValueError(
            f"the leader commands {', '.join(leader.action_names)}, the robot takes {', '.join(action_names)}; names, order and "
            "units must be the same: convert them in the leader's class"
        )
