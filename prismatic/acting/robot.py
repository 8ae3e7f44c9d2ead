"""What the real-time loop needs of a robot. Letters: A action dim."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from prismatic.vla.types import Observation


class Robot(Protocol):
    """One robot, with one arm or several."""

    instruction: str  # what it is told to do unless a person says something else; "" if there is nothing
    max_steps: int  # of a rollout, unless --max_steps says something else

    def reset(self, rollout: int) -> None:
        """Moves the arms to their start; `rollout` counts from 0."""

    def position(self) -> np.ndarray:
        """float64 [A], where the arms are."""

    def sensed_at(self) -> float:
        """Time [s, time.monotonic] of the oldest of the latest messages from joints and cameras."""

    def observe(self, instruction: str) -> Observation:
        """What the robot sees and feels now."""

    def step(self, action: np.ndarray) -> bool:
        """Commands the targets [A] and returns at once; True once the task is known to be solved."""

    def picture(self) -> np.ndarray:
        """uint8 [height, width, 3], even sides, for the video."""

    def close(self) -> None:
        """Lets go of the robot, which keeps its position; harmless the second time."""
