"""Checkpoints as the policies of an evaluation: loaded, checked against the simulated robot, in the simulator's units."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.robot.evaluation.batching import BatchTimes, measure_batch_size
from prismatic.vla.constants import get_robot_platform
from prismatic.vla.rendering import unlike_training
from prismatic.vla.types import ActionChunk, Observation

if TYPE_CHECKING:  # imports torch
    from prismatic.policy.checkpoint.spec import PolicySpec


def load_policy(
    checkpoint: str | Path, engine: str, quantization: str, robot: str, cameras: Collection[str], unnorm_key: str | None = None
) -> SeededPolicy:
    """The policy of `checkpoint`, whose actions are the simulator's own.

    Raises:
        ValueError: it drives another robot than `robot`, or looks through cameras that are not among `cameras`.
    """
    from prismatic.policy.checkpoint.loading import LoadOptions
    from prismatic.policy.policy import Policy  # imports torch and transformers

    policy = Policy.from_pretrained(checkpoint, unnorm_key=unnorm_key, options=LoadOptions(engine=engine, quantization=quantization))
    check_policy(checkpoint, policy.spec, robot, cameras)
    return SeededPolicy(policy)


def choose_unnorm_key(checkpoint: str | Path, wanted: str | None, data_sets: Sequence[str]) -> str | None:
    """`wanted`; of a checkpoint trained on several data sets the first of `data_sets` that it knows; else None: there is only one."""
    from prismatic.models.json_files import read_object
    from prismatic.policy.checkpoint.files import STATISTICS_FILE
    from prismatic.policy.checkpoint.loading import resolve_folder

    statistics = resolve_folder(checkpoint, with_weights=False) / STATISTICS_FILE
    if wanted or not statistics.is_file():
        return wanted
    keys = read_object(statistics)
    return next((name for name in data_sets if name in keys), None) if len(keys) > 1 else None


def check_policy(checkpoint: str | Path, spec: PolicySpec, robot: str, cameras: Collection[str]) -> None:
    """Accepts a policy that can drive a simulated robot.

    Raises:
        ValueError: it drives another one, or looks through cameras that the simulator lacks.
    """
    own, needed = spec.platform, get_robot_platform(robot)
    is_alike = own.action_kinds == needed.action_kinds
    if not is_alike or (spec.heads.use_proprio and own.proprio_dim != needed.proprio_dim):
        raise ValueError(
            f"{checkpoint} drives {own.name} ({own.action_dim} action, {own.proprio_dim} proprio dimensions: "
            f"{', '.join(own.action_names)}), {robot} has {needed.action_dim} and {needed.proprio_dim}; "
            f"pass a checkpoint that was trained on {robot}"
        )
    if unknown := [camera for camera in spec.cameras if camera not in cameras]:
        raise ValueError(f"{checkpoint} needs the cameras {', '.join(spec.cameras)}; {robot} has no {', '.join(unknown)}")


class SeededPolicy:
    """A loaded policy for `Rollout`, its actions turned into the simulator's units."""

    def __init__(self, policy: Any, to_simulator: Callable[[ActionChunk], ActionChunk] = lambda chunk: chunk) -> None:
        self.policy, self._to_simulator = policy, to_simulator

    @property
    def warnings(self) -> list[str]:
        """What it was shown and training never saw."""
        return self.policy.watch.warnings

    def forget_warnings(self) -> None:
        """Another evaluation begins."""
        self.policy.watch = self.policy.make_watch()

    def compare_rendering(self, rendering: Mapping[str, Any]) -> None:
        """Warns where pictures are rendered otherwise (flag -> value) than those of training, as far as the checkpoint knows these."""
        seen = self.policy.spec.provenance.get("rendered", {}).get(self.policy.unnorm_key, {})
        self.policy.watch.warn(unlike_training(rendering, seen))

    def warm_up(self, batch_size: int, image_size: int, instructions: Sequence[str]) -> float:
        """Seconds that it took to prepare for such calls, as a server does before it answers."""
        return self.policy.warm_up([batch_size], (image_size, image_size), instructions)

    def measure_batch_size(self, image_size: int, instruction: str, num_envs: int) -> BatchTimes:
        """The fastest batch size for so many environments, measured on grey pictures."""
        spec = self.policy.spec
        picture = np.full((image_size, image_size, 3), 128, np.uint8)
        seen = Observation(dict.fromkeys(spec.cameras, picture), instruction, np.zeros(spec.platform.proprio_dim))
        try:
            return measure_batch_size(lambda rows: self.policy.predict(rows, [0] * len(rows)), seen, num_envs)
        finally:
            self.forget_warnings()  # no robot has seen these pictures

    def predict(self, observations: list[Observation], seeds: list[int]) -> list[ActionChunk]:
        return [self._to_simulator(chunk) for chunk in self.policy.predict(observations, seeds)]
