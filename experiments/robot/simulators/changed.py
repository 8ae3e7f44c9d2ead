"""A simulator in changed scenes: `PerturbedSimulator` around one of ours is another Simulator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.interfaces import Environment, Expert, Simulator
from experiments.robot.simulators.paraphrases import choose_paraphrase
from experiments.robot.simulators.perturbations import CAMERA_ORDER, LANGUAGE_AXIS, PICTURE_AXES, SCENE_AXES, Perturbation
from experiments.robot.simulators.sensor_changes import change_picture
from prismatic.vla.types import Observation


@dataclass(frozen=True)
class PerturbedSimulator:
    """The same tasks from the same starts, with `changes`."""

    simulator: Simulator
    changes: tuple[Perturbation, ...]

    def __post_init__(self) -> None:
        can = self.simulator.scene_axes
        for change in self.changes:
            if change.axis in SCENE_AXES and change.axis not in can:
                known = ", ".join((*can, *PICTURE_AXES, LANGUAGE_AXIS))
                raise ValueError(f"--perturb {change}: {self.simulator.name} cannot change its {change.axis}; it knows {known}")

    @property
    def name(self) -> str:
        return self.simulator.name

    @property
    def scene_axes(self) -> tuple[str, ...]:
        return self.simulator.scene_axes

    def make_environment(self, task: str) -> PerturbedEnvironment:
        return PerturbedEnvironment(self.simulator.make_environment(task), self.changes)

    def make_expert(self, environment: Environment) -> Expert:
        """Of the simulator, which need not look and is not told."""
        assert isinstance(environment, PerturbedEnvironment)
        return self.simulator.make_expert(environment.inner)

    @property
    def has_reactive_expert(self) -> bool:
        return self.simulator.has_reactive_expert

    def check_expert(self) -> None:
        """As the simulator's own."""
        self.simulator.check_expert()

    def instruction(self, task: str) -> str:
        """The task's own."""
        return self.simulator.instruction(task)


def perturbed(simulator: Simulator, changes: tuple[Perturbation, ...], tasks: list[str]) -> Simulator:
    """`simulator` with `changes`; itself without any.

    Raises:
        ValueError: it cannot do one of them, or a task's instruction has no other words.
    """
    if any(change.axis == LANGUAGE_AXIS for change in changes):
        for task in tasks:
            choose_paraphrase(simulator.instruction(task), 1, np.random.default_rng(0))
    return PerturbedSimulator(simulator, changes) if changes else simulator


class PerturbedEnvironment:
    """One task; the scene's changes are made by the environment itself, those of pictures and words here."""

    def __init__(self, inner: Environment, changes: tuple[Perturbation, ...]) -> None:
        self.inner = inner
        self.max_steps, self.control_hz, self.platform = inner.max_steps, inner.control_hz, inner.platform
        self.instruction = inner.instruction
        self._of_scene = tuple(change for change in changes if change.axis in SCENE_AXES)
        self._of_pictures = tuple(change for axis in CAMERA_ORDER for change in changes if change.axis == axis)
        self._of_words = tuple(change for change in changes if change.axis == LANGUAGE_AXIS)
        self._episode: EpisodeSpec | None = None
        self._step = 0

    def reset(self, episode: EpisodeSpec, changes: tuple[Perturbation, ...] = ()) -> None:
        self.inner.reset(episode, (*self._of_scene, *changes))
        self._episode, self._step, self.instruction = episode, 0, self.inner.instruction
        for change in self._of_words:
            self.instruction = choose_paraphrase(self.inner.instruction, change.severity, change.rng(episode))

    def observe(self) -> Observation:
        assert self._episode is not None, "observe() before reset()"
        seen, images = self.inner.observe(), {}
        for slot, picture in seen.images.items():
            for change in self._of_pictures:
                picture = change_picture(picture, change, self._episode, slot, self._step)
            images[slot] = picture
        return replace(seen, images=images, instruction=self.instruction)

    def proprio(self) -> np.ndarray:
        return self.inner.proprio()

    def position(self) -> np.ndarray:
        return self.inner.position()

    def step(self, action: np.ndarray) -> bool:
        self._step += 1
        return self.inner.step(action)

    def render(self, size: int) -> np.ndarray:
        return self.inner.render(size)

    def close(self) -> None:
        self.inner.close()
