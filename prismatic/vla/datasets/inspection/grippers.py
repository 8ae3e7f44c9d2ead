"""What looks wrong in the commands of grippers.

Letters: M steps.
"""

from __future__ import annotations

import re

import numpy as np

from prismatic.vla.datasets.inspection.encodings import correlation
from prismatic.vla.datasets.inspection.view import DatasetView
from prismatic.vla.datasets.rlds.oxe.configs import CONFIGS_FILE, TRANSFORMS_FILE, kinds_text
from prismatic.vla.diagnosis import Finding, Status

_OPPOSITE = -0.5  # correlation of a gripper's command and its opening from which the sign counts as wrong
_NARROW = 0.5  # a range below it is small beside the others, which are 2 wide


def check_grippers(view: DatasetView) -> list[Finding]:
    """Grippers that never act, or whose commands have an odd range where they are not normalised."""
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
        if not view.action_bounds.mask[dim]:
            findings += _check_raw_command(view, name, values)
    return findings


def _check_raw_command(view: DatasetView, name: str, values: np.ndarray) -> list[Finding]:
    """A command that training takes as it is recorded: 0 .. 1 or -1 .. 1 is fine, in other units it weighs too much or too little."""
    low, high = float(values.min()), float(values.max())
    if low < -1.1 or high > 1.1 or high - low < _NARROW:
        weight = "outweighs all other dimensions" if high - low > _NARROW else "hardly counts"
        kinds = f"action_encoding=ActionEncoding.JOINT_POS, action_kinds={kinds_text(view.kinds)}"
        found = f"The gripper command {name} runs from {low:.4g} to {high:.4g}, which is not normalised: it {weight} in the loss"
        return [Finding("gripper", Status.WARNING, found, f"To have it normalised, write {kinds} into the entry in {CONFIGS_FILE}.")]
    share = float((values[view.starts] < 0.5).mean())
    if low > -0.1 and share > 0.8:
        encoding = view.spec.entry.action_encoding.name
        found = f"The gripper command {name} starts at 0 in {share:.0%} of the episodes; {encoding} means 1 as open"
        remedy = f"If the real gripper starts open, invert the command in {TRANSFORMS_FILE} (invert_gripper_actions)."
        return [Finding("gripper", Status.NOTE, found, remedy)]
    return []


def check_gripper_signs(view: DatasetView) -> list[Finding]:
    """Grippers that open when they are commanded to close, judged against the fingers up to half a second later.

    Only where the encoding says what the command means: one that is normalised may have either sign.
    """
    findings = []
    for dim in view.gripper_dims:
        name, command = view.action_names[dim], view.actions[:, dim]
        fingers = [place for place, other in enumerate(view.proprio_names) if other == name]
        if not fingers and len(view.gripper_dims) == 1:
            fingers = [place for place, other in enumerate(view.proprio_names) if re.search("gripper|finger", other)]
        is_ours = command.min() > -0.5 or view.platform.name == "LIBERO"  # elsewhere -1 .. 1 may mean anything
        if view.action_bounds.mask[dim] or not fingers or not is_ours:
            continue
        if _agreement(view, command, np.abs(view.proprio[:, fingers]).mean(1)) < _OPPOSITE:
            encoding = view.spec.entry.action_encoding.name
            found = f"The gripper sign looks wrong: the fingers close where {name} is high, and {encoding} means 1 as open"
            remedy = f"Invert the command in {TRANSFORMS_FILE} (invert_gripper_actions), as LIBERO's entries do."
            findings.append(Finding("gripper", Status.WARNING, found, remedy))
    return findings


def _agreement(view: DatasetView, command: np.ndarray, opening: np.ndarray) -> float:
    """The strongest correlation of command [M] with the opening [M] one step, a quarter and half a second later."""
    strongest = 0.0
    for seconds in (0.0, 0.25, 0.5):
        delay = max(1, round(seconds * view.platform.control_hz))
        if delay >= len(command):
            break
        followed = np.convolve(~view.has_next, np.ones(delay), "valid") == 0  # row i + delay belongs to the same episode
        if followed.sum() > 2:
            strongest = max(strongest, correlation(command[:-delay][followed], opening[delay:][followed]), key=abs)
    return strongest
