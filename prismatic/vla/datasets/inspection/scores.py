"""How unlike the other episodes of its task an episode is: its length, its jerk, what a policy says of it; the worst first.

A measure is taken as a logarithm and compared with the median of the task, in robust deviations (Iglewicz and Hoaglin 1993): 0.6745 times
the difference over the median absolute deviation, that of the values on the same side of the median, for these measures are skewed.
Longer and shorter both count; less jerk and less disagreement than usual do not. An instruction is doubtful where another one brings the
policy's predictions nearer by 3 %, and as many times more as the ratio's logarithm says.
Beyond 2.7 deviations an episode is doubtful, and the file of weights leaves it out. Letters: E episodes, T steps, A action dim.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prismatic.vla.constants import ActionKind
from prismatic.vla.datasets.inspection.view import DatasetView

DOUBTFUL = 2.7  # the fences of Tukey (1977), as robust deviations: beyond lies one of 140 of a normal distribution
_FITS_BETTER = 1.03  # the ratio at which an instruction is as doubtful as a measure at its fence
_NARROWEST = 0.05  # of a logarithm: a spread below 5 % tells nothing
_FEWEST = 5  # episodes of a task; those of smaller ones have nothing to be compared with
_UNSURE = 5  # of n episodes the spread is known so badly that n / (n + 5) of a deviation counts: about one sound episode in 100 is doubtful
_STILL = 1e-3  # of the usual jerk: less is none
LENGTH, JERK, DISAGREEMENT, INSTRUCTION = "length", "jerk", "disagreement", "instruction"


@dataclass(frozen=True)
class EpisodeScore:
    """One episode beside the others of its task."""

    episode: int  # number in the index
    values: Mapping[str, float]  # measure -> value: a number of steps, two in units of the actions' spread, a ratio
    deviations: Mapping[str, float]  # measure -> robust deviations from the task's median, or what is like them

    @property
    def worst(self) -> str:
        """The measure in which it is most unlike the others."""
        return max(self.deviations, key=lambda name: self.deviations[name])

    @property
    def score(self) -> float:
        """Deviations in that measure."""
        return self.deviations[self.worst]

    @property
    def is_doubtful(self) -> bool:
        return self.score > DOUBTFUL


def score_episodes(view: DatasetView, asked: Mapping[int, Mapping[str, float]] | None = None) -> list[EpisodeScore]:
    """Every episode of the view, the worst first; `asked`: episode -> measure -> value, what a policy says of it."""
    measures = {LENGTH: view.lengths.astype(float), JERK: _jerks(view)}
    for name in (DISAGREEMENT, INSTRUCTION):
        if asked is not None and any(name in said for said in asked.values()):
            measures[name] = np.array([asked.get(int(episode), {}).get(name, np.nan) for episode in view.episodes])
    tasks = np.asarray(view.index.instruction_ids)[view.index.episode_starts[view.episodes]]
    deviations = {name: _deviations(values, tasks, is_two_sided=name == LENGTH) for name, values in measures.items()}
    if INSTRUCTION in measures:
        ratios = np.nan_to_num(measures[INSTRUCTION], nan=1.0)
        deviations[INSTRUCTION] = DOUBTFUL * np.log(np.maximum(ratios, 1)) / np.log(_FITS_BETTER)
    scores = [
        EpisodeScore(
            int(episode),
            {name: float(values[place]) for name, values in measures.items()},
            {name: float(values[place]) for name, values in deviations.items()},
        )
        for place, episode in enumerate(view.episodes)
    ]
    return sorted(scores, key=lambda item: -item.score)


def write_weights(found: Mapping[str, tuple[DatasetView, Sequence[EpisodeScore]]], path: Path) -> int:
    """Writes a file for --episode_weights, in which doubtful episodes have the weight 0; returns how many.

    `found`: data set -> its view and scores.
    """
    weights = {name: {view.index.names[item.episode]: 0 for item in scores if item.is_doubtful} for name, (view, scores) in found.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(weights, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return sum(map(len, weights.values()))


def _jerks(view: DatasetView) -> np.ndarray:
    """float64 [E]: mean size of the third difference of the position that is commanded, of all but the grippers; nan if too short."""
    moving = [dim for dim in range(view.actions.shape[1]) if dim not in view.gripper_dims and not view.action_bounds.constant[dim]]
    found = np.full(len(view.episodes), np.nan)
    if not moving:
        return found
    scale = np.maximum(view.actions[:, moving].std(axis=0), 1e-9)
    orders = np.array([3 if view.kinds[dim] is ActionKind.TARGET else 2 for dim in moving])  # a motion is a first difference itself
    for place, (start, length) in enumerate(zip(view.starts, view.lengths, strict=True)):
        rows = view.actions[start : start + length, moving] / scale
        sizes = [float(np.abs(np.diff(rows[:, dim], n=order)).mean()) for dim, order in enumerate(orders) if length > order]
        if len(sizes) == len(moving):
            found[place] = np.mean(sizes)
    usual = np.median(found[found > 0]) if (found > 0).any() else 1.0
    return np.maximum(found, _STILL * usual)  # nan stays


def _deviations(values: np.ndarray, tasks: np.ndarray, is_two_sided: bool) -> np.ndarray:
    """float64 [E], 0 for what is not known."""
    logarithms = np.log(np.maximum(values, 1e-9))
    known, found = np.isfinite(logarithms), np.zeros(len(values))
    for task in np.unique(tasks):
        among = (tasks == task) & known
        others, number = logarithms[among], int(among.sum())
        if number < _FEWEST:
            continue
        middle = np.median(others)
        for side in (-1, 1):
            away = side * (others - middle)
            spread = max(float(np.median(away[away >= 0])), _NARROWEST)
            beyond = among & (side * (logarithms - middle) > 0)
            found[beyond] = side * 0.6745 * np.abs(logarithms[beyond] - middle) / spread * number / (number + _UNSURE)
    return np.abs(found) if is_two_sided else np.maximum(found, 0)
