"""What looks wrong in the commands of grippers.

Letters: M steps, E episodes, A action dim, P proprio dim, D either.
"""

from __future__ import annotations

import re

import numpy as np

from prismatic.vla.datasets.inspection.view import DatasetView
from prismatic.vla.datasets.rlds.oxe.configs import TRANSFORMS_FILE
from prismatic.vla.diagnosis import Finding, Status

_OPPOSITE = -0.5  # correlation of a gripper's command and its opening from which the sign counts as wrong


def check_grippers(view: DatasetView) -> list[Finding]:
    """Grippers that never act, have an odd range, or start closed."""
    findings = []
    for dim in view.gripper_dims:
        values, name = view.actions[:, dim], view.action_names[dim]
        low, high = float(values.min()), float(values.max())
        if low == high:
            findings.append(
                Finding(
                    "gripper",
                    Status.WARNING,
                    f"The gripper never opens or closes: {name} is always {low:.4g}",
                    "If the task needs the gripper, the recorder (or the trajectory transform) loses its command.",
                )
            )
            continue
        if view.action_bounds.mask[dim]:
            continue
        if low < -1.1 or high > 1.1:
            findings.append(
                Finding(
                    "gripper",
                    Status.WARNING,
                    f"The gripper command {name} runs from {low:.4g} to {high:.4g}, but this encoding does not normalise it",
                    f"Scale it to 0 (closed) .. 1 (open) in a trajectory transform in {TRANSFORMS_FILE}, else it dominates the loss.",
                )
            )
        elif low > -0.1 and (share := float((values[view.starts] < 0.5).mean())) > 0.8:
            findings.append(
                Finding(
                    "gripper",
                    Status.WARNING,
                    f"The gripper command {name} starts at 0 in {share:.0%} of the episodes; 0 means closed and 1 open",
                    f"If the real gripper starts open, invert the command in {TRANSFORMS_FILE} (invert_gripper_actions).",
                )
            )
    return findings


def check_gripper_signs(view: DatasetView) -> list[Finding]:
    """Grippers that open when they are told to close, judged against the fingers up to half a second later."""
    findings = []
    for dim in view.gripper_dims:
        name, command = view.action_names[dim], view.actions[:, dim]
        fingers = [place for place, other in enumerate(view.proprio_names) if other == name]
        if not fingers and len(view.gripper_dims) == 1:
            fingers = [place for place, other in enumerate(view.proprio_names) if re.search("gripper|finger", other)]
        is_ours = command.min() > -0.5 or view.platform.name == "LIBERO"  # elsewhere -1 .. 1 may mean anything
        if fingers and is_ours and _agreement(view, command, np.abs(view.proprio[:, fingers]).mean(1)) < _OPPOSITE:
            findings.append(
                Finding(
                    "gripper",
                    Status.WARNING,
                    f"The gripper sign looks wrong: the fingers close where {name} is high, and 1 means open",
                    f"Invert the command in {TRANSFORMS_FILE} (invert_gripper_actions), as LIBERO's entries do.",
                )
            )
    return findings


def _agreement(view: DatasetView, command: np.ndarray, opening: np.ndarray) -> float:
    """The strongest correlation of command [M] with the opening [M] at once, a quarter and half a second later."""
    strongest = 0.0
    for seconds in (0.0, 0.25, 0.5):
        delay = max(1, round(seconds * view.platform.control_hz))
        if delay >= len(command):
            break
        followed = np.convolve(~view.has_next, np.ones(delay), "valid") == 0  # row i + delay belongs to the same episode
        told, seen = command[:-delay][followed], opening[delay:][followed]
        if len(told) > 2 and np.std(told) > 0 and np.std(seen) > 0:
            strongest = max(strongest, float(np.corrcoef(told, seen)[0, 1]), key=abs)
    return strongest
