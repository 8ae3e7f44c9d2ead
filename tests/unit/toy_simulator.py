"""A simulator without physics for the tests of recording and rollout: walk along a line to a random goal."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.interfaces import Environment
from experiments.robot.simulators.perturbations import Perturbation
from prismatic.vla.constants import NormalizationType, RobotPlatform
from prismatic.vla.types import ActionChunk, Observation

INSTRUCTIONS = {"left": "walk to the left", "right": "walk to the right", "jump": "leap"}


@dataclass(frozen=True)
class ToySimulator:
    name: ClassVar[str] = "the toy"
    scene_axes: ClassVar[tuple[str, ...]] = ("light",)
    crash_file: str = ""  # while it exists, the first reset deletes it and kills the process
    kill_file: str = ""  # while it exists, the third step of an episode deletes it and kills the process without a word
    broken: bool = False  # every reset raises
    lazy_expert: bool = False  # the expert stays where it is
    has_expert: bool = True

    has_reactive_expert = True

    def make_environment(self, task: str) -> ToyEnvironment:
        return ToyEnvironment(self, task)

    def make_expert(self, environment: Environment) -> ToyExpert:
        assert isinstance(environment, ToyEnvironment)
        return ToyExpert(environment)

    def check_expert(self) -> None:
        if not self.has_expert:
            raise ValueError("the toy has no expert")

    def instruction(self, task: str) -> str:
        return INSTRUCTIONS[task]


class ToyEnvironment:
    """The image's brightness is the distance to the goal; the sign of the goal is the task's."""

    max_steps = 20
    control_hz = 10.0
    platform = RobotPlatform(
        "TOY", num_actions_chunk=4, action_dim=2, proprio_dim=2, normalization=NormalizationType.BOUNDS, control_hz=10,
        action_names=("dx", "dy"), proprio_names=("x", "y"),
    )  # fmt: skip

    def __init__(self, simulator: ToySimulator, task: str) -> None:
        self.simulator, self.task, self.instruction = simulator, task, INSTRUCTIONS[task]
        self.place = self.goal = 0.0
        self.num_steps = 0

    def reset(self, episode: EpisodeSpec, changes: tuple[Perturbation, ...] = ()) -> None:
        self.changes = changes
        if self.simulator.broken:
            raise RuntimeError("the toy is broken")
        if self.simulator.crash_file and Path(self.simulator.crash_file).exists():
            Path(self.simulator.crash_file).unlink()
            os._exit(3)
        sign = -1 if self.task == "left" else 1
        self.place, self.goal, self.num_steps = 0.0, sign * episode.rng().uniform(4, 10), 0

    def proprio(self) -> np.ndarray:
        return np.array([self.place, 0.0], np.float32)

    def position(self) -> np.ndarray:
        return np.zeros(2)

    def observe(self) -> Observation:
        image = np.full((8, 8, 3), min(255, int(20 * abs(self.goal - self.place))), np.uint8)
        return Observation({"primary": image}, self.instruction, self.proprio())

    def step(self, action: np.ndarray) -> bool:
        self.num_steps += 1
        if self.num_steps == 3 and self.simulator.kill_file and Path(self.simulator.kill_file).exists():
            Path(self.simulator.kill_file).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        self.place += float(np.clip(action[0], -1, 1))
        return abs(self.place - self.goal) < 0.6  # the picture tells the distance to within half a step

    def render(self, size: int) -> np.ndarray:
        return np.full((size, size, 3), int(abs(self.place) * 10), np.uint8)

    def close(self) -> None:
        pass


class ToyExpert:
    def __init__(self, environment: ToyEnvironment) -> None:
        self.environment = environment

    def act(self) -> np.ndarray:
        direction = np.sign(self.environment.goal - self.environment.place)
        return np.array([0.0 if self.environment.simulator.lazy_expert else direction, 0.0], np.float32)


class ToyPolicy:
    """Reads direction from the instruction and distance from the picture; H = 4 actions a query."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def predict(self, observations: list[Observation], seeds: list[int]) -> list[ActionChunk]:
        self.batch_sizes.append(len(observations))
        return [self._chunk(observation) for observation in observations]

    def _chunk(self, observation: Observation) -> ActionChunk:
        direction = -1.0 if "left" in observation.instruction else 1.0
        steps = round(observation.images["primary"][0, 0, 0] / 20)
        actions = np.zeros((4, 2))
        actions[: min(4, steps), 0] = direction
        return ActionChunk(actions)
