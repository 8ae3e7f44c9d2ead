"""Statistics of actions and proprio, in the layout of the published dataset_statistics.json.

    {data set: {"action": {mean, std, max, min, q01, q99, mask}, "proprio": {mean, ..., q99}, "num_transitions", "num_trajectories"}}

All lists have one value per dimension, in raw units. Ours describe the episodes that are trained on; the published system takes every
episode of every split, those without instruction included (`published_episodes`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prismatic.vla.datasets.index import EpisodeIndex
from prismatic.vla.normalization import Bounds

_ROUNDING = 1e-6  # of float32 values that were computed again
# {"action": {...}, "proprio": {...}, "num_transitions": M, "num_trajectories": E} of one data set.
DatasetStatistics = dict[str, Any]


def compute_statistics(index: EpisodeIndex, episodes: np.ndarray, action_mask: np.ndarray) -> DatasetStatistics:
    """Statistics over all steps of `episodes`; `action_mask` [A] says which action dimensions are normalised.

    Raises:
        ValueError: there are no episodes.
    """
    if len(episodes) == 0:
        raise ValueError("statistics need at least one episode with an instruction; the training split has none")
    steps = index.steps_of(episodes)
    return {
        "action": {**_describe(index.actions, steps), "mask": [bool(flag) for flag in action_mask]},
        "proprio": _describe(index.proprio, steps),
        "num_transitions": len(steps),
        "num_trajectories": len(episodes),
    }


def count_beyond(rows: np.ndarray, steps: np.ndarray, bounds: Bounds) -> np.ndarray:
    """int64 [D]: how many of `steps` of float32 [M, D] normalization cannot express: it clips what is beyond its bounds, and a dimension
    that was constant when they were computed stays so."""
    counts = np.zeros(bounds.dim, np.int64)
    for column, (low, high) in enumerate(zip(bounds.low, bounds.high, strict=True)):
        if not (bounds.mask[column] or bounds.constant[column]):
            continue
        values, margin = rows[steps, column], _ROUNDING * max(1.0, abs(low), abs(high))
        counts[column] = np.count_nonzero((values < low - margin) | (values > high + margin))
    return counts


def published_episodes(index: EpisodeIndex, left_out: frozenset[int] = frozenset()) -> np.ndarray:
    """The episodes that the published statistics cover: all of them, but for those that the user leaves out."""
    return np.setdiff1d(index.all_episodes(), sorted(left_out))


def _describe(rows: np.ndarray, steps: np.ndarray) -> dict[str, list[float]]:
    """Statistics of `steps` of float32 [M, D], a column at a time to save memory; quantiles interpolate in float32, as published."""
    described: dict[str, list[float]] = {name: [] for name in ("mean", "std", "max", "min", "q01", "q99")}
    for column in range(rows.shape[1]):
        values = rows[steps, column]
        low, high = np.quantile(values, [0.01, 0.99])
        found = (values.mean(dtype=np.float64), values.std(dtype=np.float64), values.max(), values.min(), low, high)
        for numbers, value in zip(described.values(), found, strict=True):
            numbers.append(float(value))
    return described
