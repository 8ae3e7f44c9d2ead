"""What a simulator offers to recording and evaluation. Letters: H, W image height and width, A action dim.

    Simulator --make_environment--> Environment   (one task, one process, at most one open renderer)
              --make_expert------> Expert        (reads the simulator's privileged state)

MetaWorld, LIBERO and ALOHA implement these protocols; `recording/record.py` and `evaluation/` know nothing else about them.
A Simulator travels to worker processes by pickle, so it holds plain settings only and imports its engine late.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.perturbations import Perturbation
from prismatic.vla.constants import RobotPlatform
from prismatic.vla.types import Observation


class Environment(Protocol):
    """One task of a simulator."""

    instruction: str
    max_steps: int  # an episode that has not succeeded by then has failed
    control_hz: float  # actions per second
    platform: RobotPlatform  # what actions and states are

    def reset(self, episode: EpisodeSpec, changes: tuple[Perturbation, ...] = ()) -> None:
        """Puts the scene into the episode's initial state, settling steps (LIBERO's num_steps_wait) included.

        `changes` of the scene, none other than those of `Simulator.scene_axes`, last until the next reset.
        """

    def observe(self) -> Observation:
        """What the policy sees now; its cameras are rendered by this call and by nothing else."""

    def proprio(self) -> np.ndarray:
        """float32 [P], the robot's own state in raw units, without rendering."""

    def position(self) -> np.ndarray:
        """float64 [A], the action that leaves the robot where a reset has put it; dimensions that are no targets do not matter."""

    def step(self, action: np.ndarray) -> bool:
        """Executes one action [A] in the simulator's units, also beyond `max_steps`; True once the task is solved."""

    def render(self, size: int) -> np.ndarray:
        """uint8 [size, size, 3], a picture for people."""

    def close(self) -> None:
        """Frees the renderer and the simulation; calling it twice is harmless."""


class Expert(Protocol):
    """A scripted solution of one environment."""

    def act(self) -> np.ndarray:
        """float32 [A], the next action in the simulator's units, from privileged state."""


class Simulator(Protocol):
    """A benchmark: makes environments and experts of its tasks."""

    @property
    def has_reactive_expert(self) -> bool:
        """Its experts look at the state alone: they know what to do wherever somebody else has brought the robot."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def scene_axes(self) -> tuple[str, ...]:
        """What its environments can change of a scene, of `perturbations.SCENE_AXES`."""

    def make_environment(self, task: str) -> Environment:
        """The environment of one task; ValueError with near names for an unknown task."""

    def make_expert(self, environment: Environment) -> Expert:
        """The scripted expert of an environment made here, which begins with the present state; call it after reset.

        Raises:
            ValueError: there is none.
        """

    def check_expert(self) -> None:
        """Raises ValueError, before an environment is made, where there is no expert; the message names those that there are."""

    def instruction(self, task: str) -> str:
        """What the policy is told to do, without building the environment."""
