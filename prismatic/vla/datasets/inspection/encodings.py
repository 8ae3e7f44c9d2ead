"""Targets and motions, judged against the state that follows.

Letters: M steps, A action dim, P proprio dim.
"""

from __future__ import annotations

import math

import numpy as np

from prismatic.vla.constants import ActionKind
from prismatic.vla.datasets.inspection.view import DatasetView
from prismatic.vla.datasets.rlds.oxe.configs import CONFIGS_FILE, kinds_text
from prismatic.vla.diagnosis import Finding, Status

_MIN_STEPS = 10
# Correlations of a command with the next state, in the same unit or another, and with the state's change.
_FOLLOWED, _FOLLOWED_ELSEWHERE, _CAUSED, _RELATED = 0.9, 0.95, 0.7, 0.3
_SMALL = 0.3  # commands that are merely related to a change are motions if they are so small beside the states
_LAG = 5  # steps


def check_encoding(view: DatasetView) -> list[Finding]:
    """Actions declared as motions that look like targets, or the reverse."""
    width = min(view.actions.shape[1], view.proprio.shape[1])
    judged = [dim for dim in range(width) if dim not in view.gripper_dims and not view.action_bounds.constant[dim]]
    if not view.has_next.sum() > _MIN_STEPS or not judged:
        return []
    seen = {dim: kind_by_values(view.actions[:, dim], view.proprio[:, dim], view.has_next) for dim in judged}
    findings = []
    for declared, other, why in (
        (ActionKind.MOTION, ActionKind.TARGET, "equal the next state"),
        (ActionKind.TARGET, ActionKind.MOTION, "follow the state's change and are small"),
    ):
        dims = [dim for dim in judged if view.kinds[dim] is declared]
        odd = [dim for dim in dims if seen[dim] is other]
        if len(odd) < max(2, len(dims) / 2):
            continue
        corrected = tuple(other if dim in dims else kind for dim, kind in enumerate(view.kinds))
        findings.append(
            Finding(
                "encoding",
                Status.WARNING,
                f"The entry declares {declared.value}s, but {len(odd)} dimensions {why}: they look like {other.value}s",
                f"Correct action_encoding of the entry in {CONFIGS_FILE}, or write action_kinds={kinds_text(corrected)} there.",
            )
        )
    return findings


def kind_by_values(action: np.ndarray, state: np.ndarray, has_next: np.ndarray) -> ActionKind | None:
    """What one dimension is, [M] each, `has_next` as in DatasetView; None where the values do not show it.

    A target is followed: the next state equals it, but for the controller's error and the state's unit. A motion resembles the change of
    the state over the next step or, where the robot lags, over the next few. A velocity looks like a target where the state measures
    it, and like a motion where the state is the position: its name must say it.
    """
    now, following = state[:-1][has_next].astype(np.float64), state[1:][has_next].astype(np.float64)
    command, spread = action[:-1][has_next].astype(np.float64), float(np.std(state))
    if len(command) < 3 or spread < 1e-6 or np.std(command) < 1e-9:
        return None
    error, followed = math.sqrt(float(np.mean((command - following) ** 2))), correlation(command, following)
    if error < 0.5 * spread and followed > _FOLLOWED:
        return ActionKind.TARGET
    caused = max(correlation(command, following - now), _caused_over_steps(action, state, has_next))
    if caused > _CAUSED and caused > followed:
        return ActionKind.MOTION
    if followed > _FOLLOWED_ELSEWHERE:
        return ActionKind.TARGET
    size, offset = math.sqrt(float(np.mean(command**2))), math.sqrt(float(np.mean(following**2)))
    return ActionKind.MOTION if caused > _RELATED and size < _SMALL * max(spread, offset) else None


def _caused_over_steps(action: np.ndarray, state: np.ndarray, has_next: np.ndarray) -> float:
    """Correlation of the sum of _LAG commands with the change of the state meanwhile."""
    if len(action) <= _LAG:
        return 0.0
    within = np.convolve(~has_next, np.ones(_LAG), "valid") == 0  # row i + _LAG belongs to the same episode
    sums = np.concatenate(([0.0], np.cumsum(action, dtype=np.float64)))
    commanded, changed = sums[_LAG:-1] - sums[: -_LAG - 1], state[_LAG:].astype(np.float64) - state[:-_LAG]
    return correlation(commanded[within], changed[within]) if within.sum() > 2 else 0.0


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's coefficient of [M] and [M]; 0 where one of them is constant."""
    deviations = one - one.mean(), other - other.mean()
    norm = math.sqrt(float(np.dot(deviations[0], deviations[0]) * np.dot(deviations[1], deviations[1])))
    return float(np.dot(*deviations)) / norm if norm > 0 else 0.0
