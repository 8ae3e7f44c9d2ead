"""The episodes that are trained on -> `Demonstrated`. Letters: M steps, A action dim, P proprio dim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from prismatic.vla.constants import ActionKind, RobotPlatform
from prismatic.vla.datasets.index import EpisodeIndex
from prismatic.vla.demonstrated import Demonstrated


def describe_motions(index: EpisodeIndex, episodes: np.ndarray, platform: RobotPlatform, cameras: Mapping[str, str]) -> Demonstrated:
    """Ranges, largest steps, distances of targets from states, and first states of `episodes`, of which there is at least one."""
    steps = index.steps_of(episodes)
    is_start = np.zeros(index.episode_starts[-1], bool)
    is_start[index.episode_starts[episodes]] = True
    follows = ~is_start[steps[1:]]  # a step and the one before it are of one episode
    has_states = index.proprio.shape[1] == platform.proprio_dim  # unchecked where no policy input is made of them
    starts = index.proprio[index.episode_starts[episodes]][:, : platform.proprio_dim if has_states else 0]
    columns = range(index.actions.shape[1])
    return Demonstrated(
        action_low=_floats([index.actions[steps, column].min() for column in columns]),
        action_high=_floats([index.actions[steps, column].max() for column in columns]),
        max_step=_floats([np.abs(np.diff(index.actions[steps, column]))[follows].max(initial=0) for column in columns]),
        max_gap=tuple(_largest_gap(index, steps, column, platform) if has_states else None for column in columns),
        start_low=_floats(starts.min(0)),
        start_high=_floats(starts.max(0)),
        cameras=dict(cameras),
    )


def _floats(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _largest_gap(index: EpisodeIndex, steps: np.ndarray, column: int, platform: RobotPlatform) -> float | None:
    """Between a target and the state that has its name."""
    name = platform.action_names[column]
    if platform.action_kinds[column] is not ActionKind.TARGET or name not in platform.proprio_names:
        return None
    state = index.proprio[steps, platform.proprio_names.index(name)]
    return float(np.abs(index.actions[steps, column] - state).max())
