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
_FOLLOWED, _CAUSED, _RELATED = 0.9, 0.9, 0.3  # correlations of a command with the state, with its change


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

    A target is followed: the next state equals it, but for the controller's error. A motion resembles the change of the state that it
    causes, and is small against the states. A velocity looks like a target where the state measures it: its name must say it.
    """
    now, following = state[:-1][has_next].astype(np.float64), state[1:][has_next].astype(np.float64)
    command, spread = action[:-1][has_next].astype(np.float64), float(np.std(state))
    if len(command) < 3 or spread < 1e-6 or np.std(command) < 1e-9:
        return None
    error = math.sqrt(float(np.mean((command - following) ** 2)))
    if error < 0.5 * spread and correlation(command, following) > _FOLLOWED:
        return ActionKind.TARGET
    size, offset = math.sqrt(float(np.mean(command**2))), math.sqrt(float(np.mean(following**2)))
    agreement = correlation(command, following - now)
    limit = 0.6 if agreement > _CAUSED else 0.3 if agreement > _RELATED else 0.0
    return ActionKind.MOTION if size < limit * max(spread, offset) else None


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's coefficient of [M] and [M]; 0 where one of them is constant."""
    deviations = one - one.mean(), other - other.mean()
    norm = math.sqrt(float(np.dot(deviations[0], deviations[0]) * np.dot(deviations[1], deviations[1])))
    return float(np.dot(*deviations)) / norm if norm > 0 else 0.0
