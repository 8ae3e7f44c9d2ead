"""The arrays of one data set as training will use them, and their plain descriptions.

Letters: M steps, E episodes, A action dim, P proprio dim.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prismatic.vla.constants import ActionKind, RobotPlatform
from prismatic.vla.datasets.episode_weights import manifest_weights
from prismatic.vla.datasets.index import EpisodeIndex
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec
from prismatic.vla.datasets.statistics import DatasetStatistics, compute_statistics
from prismatic.vla.datasets.training_data import TrainingData
from prismatic.vla.normalization import Bounds


@dataclass(frozen=True)
class DatasetView:
    """The episodes that are trained on, and how their values are normalised."""

    spec: DatasetSpec
    index: EpisodeIndex
    episodes: np.ndarray  # int64 [E], numbers of the index
    statistics: DatasetStatistics
    use_proprio: bool = True
    has_default_instruction: bool = False  # --default_instruction stands in where a text is absent
    has_kept_statistics: bool = False  # `statistics` are those of a checkpoint that is continued, not of these episodes

    @classmethod
    def of(cls, spec: DatasetSpec, index: EpisodeIndex) -> DatasetView:
        """The view of the training split; of all episodes where there is no such split or it has no instruction."""
        split = index.episodes_of("train") if "train" in index.splits else index.all_episodes()
        split = split[manifest_weights(spec, index).settle().episodes[split] > 0]
        if not len(split):
            raise ValueError(f"the weights of data set {spec.name!r} leave no episode for training; give one a weight above 0")
        labelled = split[index.is_labelled()[split]]
        episodes = labelled if len(labelled) else split
        return cls(spec, index, episodes, compute_statistics(index, episodes, _normalization_mask(spec, index.actions.shape[1])))

    @property
    def platform(self) -> RobotPlatform:
        return self.spec.platform

    @property
    def name(self) -> str:
        return self.spec.name

    @cached_property
    def steps(self) -> np.ndarray:
        """int64 [M]: the steps of the episodes, one episode behind the other."""
        return self.index.steps_of(self.episodes)

    @cached_property
    def actions(self) -> np.ndarray:
        """float32 [M, A], raw units."""
        return np.asarray(self.index.actions[self.steps])

    @cached_property
    def proprio(self) -> np.ndarray:
        """float32 [M, P], raw units."""
        return np.asarray(self.index.proprio[self.steps])

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [E]: steps per episode."""
        return self.index.lengths[self.episodes]

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [E]: first row of each episode in `actions`."""
        return np.concatenate(([0], np.cumsum(self.lengths)[:-1]))

    @cached_property
    def has_next(self) -> np.ndarray:
        """bool [M - 1]: True where row i + 1 is the next step of the same episode."""
        follows = np.ones(len(self.steps), bool)
        follows[self.starts] = False
        return follows[1:]

    @cached_property
    def relative(self) -> np.ndarray:
        """bool [A]: motions and velocities, which are 0 when the robot stands still."""
        return np.array([kind is not ActionKind.TARGET for kind in self.kinds])

    @cached_property
    def kinds(self) -> tuple[ActionKind, ...]:
        """One per action dimension; targets throughout where the entry does not fit the width."""
        try:
            return self.spec.entry.kinds(self.actions.shape[1])
        except ValueError:
            return (ActionKind.TARGET,) * self.actions.shape[1]

    @cached_property
    def action_bounds(self) -> Bounds:
        return Bounds.from_statistics(self.statistics["action"], self.platform.normalization)

    @cached_property
    def proprio_bounds(self) -> Bounds:
        return Bounds.from_statistics(self.statistics["proprio"], self.platform.normalization)

    @cached_property
    def action_names(self) -> tuple[str, ...]:
        return _names(self.platform.action_names, self.actions.shape[1], "action")

    @cached_property
    def proprio_names(self) -> tuple[str, ...]:
        return _names(self.platform.proprio_names, self.proprio.shape[1], "state")

    @cached_property
    def gripper_dims(self) -> list[int]:
        """Action dimensions that command a gripper."""
        masked_out = np.flatnonzero(~self.action_bounds.mask).tolist()
        return masked_out or [number for number, name in enumerate(self.action_names) if "gripper" in name]

    def quantities(self) -> Iterator[tuple[str, np.ndarray, Bounds, tuple[str, ...]]]:
        """("action" or "state", rows, bounds, names)."""
        yield "action", self.actions, self.action_bounds, self.action_names
        if self.use_proprio and self.proprio.shape[1]:
            yield "state", self.proprio, self.proprio_bounds, self.proprio_names


def training_views(data: TrainingData, specs: Sequence[DatasetSpec], kept: Collection[str] = ()) -> list[DatasetView]:
    """A view of each data set of a run; `specs` are those that the data were loaded with, `kept` names those with kept statistics."""
    return [
        DatasetView(
            spec,
            part.index,
            part.episodes,
            data.statistics[spec.name],
            use_proprio=part.proprio_bounds is not None,
            has_default_instruction=part.options.default_instruction is not None,
            has_kept_statistics=spec.name in kept,
        )
        for spec, part in zip(specs, data.train.parts, strict=True)
    ]


def _normalization_mask(spec: DatasetSpec, action_dim: int) -> np.ndarray:
    try:
        return spec.normalization_mask(action_dim)
    except ValueError:  # reported among the warnings
        return np.ones(action_dim, bool)


def _names(names: tuple[str, ...], width: int, kind: str) -> tuple[str, ...]:
    return names if len(names) == width else tuple(f"{kind} {number}" for number in range(width))
