"""Targets, motions and velocities, judged against the state that follows.

Letters: M steps, E episodes, A action dim, P proprio dim, D either.
"""

from __future__ import annotations

import math

import numpy as np

from prismatic.vla.datasets.inspection.view import DatasetView
from prismatic.vla.datasets.rlds.oxe.configs import CONFIGS_FILE
from prismatic.vla.diagnosis import Finding, Status


def check_encoding(view: DatasetView) -> list[Finding]:
    """Actions declared as motions that look like positions, or the reverse; judged against the state that follows."""
    width = min(view.actions.shape[1], view.proprio.shape[1])
    motion = [dim for dim in range(width) if dim not in view.gripper_dims and not view.action_bounds.constant[dim]]
    if not view.has_next.sum() > 10 or not motion:
        return []
    kinds = [looks_like(view.actions[:, dim], view.proprio[:, dim], view.has_next) for dim in motion]
    relative = view.relative[motion]
    as_position = sum(kind == "position" for kind, flag in zip(kinds, relative, strict=True) if flag)
    as_motion = sum(kind == "motion" for kind, flag in zip(kinds, relative, strict=True) if not flag)
    encoding = view.spec.entry.action_encoding.name
    findings = []
    if as_position and as_position >= max(2, relative.sum() / 2):
        findings.append(
            Finding(
                "encoding",
                Status.WARNING,
                f"{encoding} declares relative actions, but {as_position} dimensions equal the next state: they look absolute",
                f"Use an encoding of absolute actions (JOINT_POS) in {CONFIGS_FILE}, or subtract the state in the trajectory transform.",
            )
        )
    if as_motion and as_motion >= max(2, (~relative).sum() / 2):
        findings.append(
            Finding(
                "encoding",
                Status.WARNING,
                f"{encoding} declares absolute actions, but {as_motion} dimensions are small and centred on 0: they look relative",
                f"Use an encoding of relative actions (EEF_POS) in {CONFIGS_FILE}, or add the state in the trajectory transform.",
            )
        )
    return findings


def looks_like(action: np.ndarray, state: np.ndarray, has_next: np.ndarray) -> str:
    """ "position", "motion" or "" (cannot say) for one dimension, [M] each; `has_next` as in DatasetView."""
    now, following = state[:-1][has_next].astype(np.float64), state[1:][has_next].astype(np.float64)
    command, spread = action[:-1][has_next].astype(np.float64), float(np.std(state))
    if len(command) < 3 or spread < 1e-6 or np.std(command) < 1e-9:
        return ""
    error = math.sqrt(float(np.mean((command - following) ** 2)))
    if error < 0.5 * spread and np.corrcoef(command, following)[0, 1] > 0.9:
        return "position"
    size, change = math.sqrt(float(np.mean(command**2))), following - now
    agreement = np.corrcoef(command, change)[0, 1] if np.std(change) > 0 else 0.0
    offset = math.sqrt(float(np.mean(following**2)))
    limit = 0.6 if agreement > 0.9 else 0.3 if agreement > 0.3 else 0.1
    return "motion" if size < limit * max(spread, offset) else ""
