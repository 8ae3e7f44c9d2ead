"""What a simulator offers to recording and evaluation. Letters: H, W image height and width, A action dim.

    Simulator --make_environment--> Environment   (one task, one process, at most one open renderer)
              --make_expert------> Expert        (reads the simulator's privileged state)

MetaWorld, LIBERO and ALOHA implement these protocols; `recording/record.py` and `evaluation/` know nothing else about them.
A Simulator travels to worker processes by pickle, so it holds plain settings only and imports its engine late.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from prismatic.vla.types import Observation

# Streams of random numbers: demonstrations, evaluation and rollouts to train on never see the same draw, whatever the seed.
SPLITS = ("demonstration", "evaluation", "collection")


@dataclass(frozen=True)
class EpisodeSpec:
    """Which episode to play; everything random in it follows from these fields alone."""

    task: str
    index: int  # number of the episode within its task; benchmarks with fixed initial states use it to pick one
    seed: int
    split: str = "evaluation"  # one of SPLITS
    attempt: int = 0  # raised when a demonstration failed and is tried again elsewhere

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"episode split is {self.split!r}, expected one of {list(SPLITS)}")

    def rng(self, purpose: str = "reset") -> np.random.Generator:
        """A fresh generator for one purpose of this episode, the same on every machine."""
        words = [self.seed, self.index, self.attempt, SPLITS.index(self.split)]
        return np.random.default_rng([*words, zlib.crc32(self.task.encode()), zlib.crc32(purpose.encode())])


class Environment(Protocol):
    """One task of a simulator."""

    instruction: str
    max_steps: int  # an episode that has not succeeded by then has failed
    control_hz: float  # actions per second

    def reset(self, episode: EpisodeSpec) -> None:
        """Puts the scene into the episode's initial state, settling steps (LIBERO's num_steps_wait) included."""

    def observe(self) -> Observation:
        """What the policy sees now; its cameras are rendered by this call and by nothing else."""

    def proprio(self) -> np.ndarray:
        """float32 [P], the robot's own state in raw units, without rendering."""

    def step(self, action: np.ndarray) -> bool:
        """Executes one action [A] in the simulator's units; True once the task is solved."""

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

    def make_environment(self, task: str) -> Environment:
        """The environment of one task; ValueError with near names for an unknown task."""

    def make_expert(self, environment: Environment) -> Expert:
        """The scripted expert of an environment made here; call it once per episode, after reset."""

    def instruction(self, task: str) -> str:
        """What the policy is told to do, without building the environment."""
