"""What looks wrong in the numbers of a data set: findings in plain words, each with what to do. No image is decoded here.

Letters: M steps, E episodes, A action dim, P proprio dim.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prismatic.vla.constants import NormalizationType
from prismatic.vla.datasets.dataset import TrainingData
from prismatic.vla.datasets.inspection.view import DatasetView, training_views
from prismatic.vla.datasets.rlds.oxe.configs import CONFIGS_FILE
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec
from prismatic.vla.normalization import Bounds

_TRANSFORMS_FILE = CONFIGS_FILE.replace("configs.py", "transforms.py")
_MAX_NAMED = 5
_OPPOSITE = -0.5  # correlation of a gripper's command and its opening from which the sign counts as wrong


@dataclass(frozen=True)
class Finding:
    """One warning: what was seen, and what to do about it."""

    what: str
    remedy: str
    refused: bool = False  # training does not start with such data

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}"


def quick_checks(data: TrainingData, specs: Sequence[DatasetSpec]) -> list[str]:
    """Warning sentences about the data of a run, each begun with the data set's name; well under a second for 300 episodes."""
    return [f"{view.name}: {finding}" for view in training_views(data, specs) for finding in check_arrays(view)]


def check_arrays(view: DatasetView) -> list[Finding]:
    """Everything that the low-dimensional arrays and the image references tell."""
    checks = (
        check_repairs, check_widths, check_lengths, check_instructions, check_duplicates, check_references, check_constants, check_spread,
        check_clipping, check_grippers, check_gripper_signs, check_encoding, check_units, check_idle_steps,
    )  # fmt: skip
    return [finding for check in checks for finding in check(view)]


def check_repairs(view: DatasetView) -> list[Finding]:
    """What the reader left out or mended."""
    return [
        Finding(f"{repair.what[:1].upper()}{repair.what[1:]}: {repair.count}, first {repair.first}.", "Check that this is meant so.")
        for repair in view.index.repairs
    ]


def check_widths(view: DatasetView) -> list[Finding]:
    """Dimensions against the robot platform."""
    try:
        view.spec.check_widths(view.index.actions.shape[1], view.index.proprio.shape[1] if view.use_proprio else None)
    except ValueError as error:
        return [Finding("Training will refuse this data set.", f"{str(error)[:1].upper()}{str(error)[1:]}.", refused=True)]
    return []


def check_lengths(view: DatasetView) -> list[Finding]:
    """Episodes of one step; a chunk longer than most episodes."""
    findings, chunk = [], view.platform.num_actions_chunk
    if num_single := int((view.lengths == 1).sum()):
        findings.append(
            Finding(
                f"{_count(num_single, 'episode has', 'episodes have')} only one step: {_list(view.episodes[view.lengths == 1])}.",
                "Leave such recordings out.",
            )
        )
    if (share := float((view.lengths < chunk).mean())) > 0.5:
        findings.append(
            Finding(
                f"The chunk of {chunk} actions is longer than {share:.0%} of the episodes (median {np.median(view.lengths):.0f} steps).",
                "Lower num_actions_chunk of the platform in prismatic/vla/constants.py, or check that episodes were not cut too short.",
            )
        )
    return findings


def check_instructions(view: DatasetView) -> list[Finding]:
    """Missing texts, and texts that differ only in spelling."""
    findings = []
    num_missing = int((~view.index.is_labelled()).sum())
    if num_missing and not view.has_default_instruction:
        findings.append(
            Finding(
                f"{num_missing} of {view.index.num_episodes} episodes have no instruction and are left out of training.",
                "Store the text of the task as language_instruction, or pass --default_instruction.",
            )
        )
    spellings: dict[str, list[str]] = {}
    for text in view.index.instructions:
        spellings.setdefault(" ".join(re.findall(r"\w+", text.lower())), []).append(text)
    for texts in [texts for texts in spellings.values() if len(texts) > 1][:_MAX_NAMED]:
        findings.append(
            Finding(
                f"Instructions differ only in case, spaces or punctuation: {', '.join(map(repr, texts))}.", "Use one spelling per task."
            )
        )
    return findings


def check_duplicates(view: DatasetView) -> list[Finding]:
    """Episodes with the same numbers, over all splits."""
    index, doubles = view.index, []
    seen: dict[bytes, int] = {}
    for episode in range(index.num_episodes):
        rows = slice(index.episode_starts[episode], index.episode_starts[episode + 1])
        digest = hashlib.sha1(index.actions[rows].tobytes() + index.proprio[rows].tobytes(), usedforsecurity=False).digest()
        if digest in seen:
            doubles.append(f"{episode} = {seen[digest]}")
        seen.setdefault(digest, episode)
    if not doubles:
        return []
    return [
        Finding(
            f"{_count(len(doubles), 'episode is a copy', 'episodes are copies')} of another (same actions and states): {_list(doubles)}.",
            "Remove the copies; one that lies in both train and val makes validation look too good.",
        )
    ]


def check_references(view: DatasetView) -> list[Finding]:
    """Two cameras that are stored once."""
    cameras, images = view.index.cameras, view.index.images
    return [
        Finding(
            f"The cameras {cameras[first]} and {cameras[second]} are the same images.",
            f"Give each camera its own key in image_obs_keys of the entry in {CONFIGS_FILE}, or list only one.",
        )
        for first in range(len(cameras))
        for second in range(first + 1, len(cameras))
        if np.array_equal(images[:, first], images[:, second])
    ]


def check_constants(view: DatasetView) -> list[Finding]:
    """Dimensions that never change; padding columns (None in state_obs_keys) are meant to."""
    findings = []
    for kind, rows, bounds, names in view.quantities():
        constant = bounds.constant.copy()
        if kind == "state":
            constant &= rows[0] != 0 if None in view.spec.entry.state_obs_keys else True
        else:
            constant[view.gripper_dims] = False
        if constant.any():
            dims = np.flatnonzero(constant)
            listed = _list([f"{names[d]} = {rows[0, d]:.4g}" for d in dims])
            findings.append(
                Finding(
                    f"{_count(len(dims), f'{kind} dimension never changes', f'{kind} dimensions never change')}: {listed}.",
                    "Fine if the robot cannot move there; else the recorder did not fill it.",
                )
            )
    return findings


def check_spread(view: DatasetView) -> list[Finding]:
    """Dimensions whose bounds say nothing: nearly always still, or squeezed by outliers."""
    findings = []
    for kind, _, bounds, names in view.quantities():
        stats = view.statistics["action" if kind == "action" else "proprio"]
        inner = np.subtract(stats["q99"], stats["q01"])
        whole = np.subtract(stats["max"], stats["min"])
        usable = bounds.mask & ~bounds.constant
        is_q99 = view.platform.normalization == NormalizationType.BOUNDS_Q99
        still = np.flatnonzero(usable & (inner <= 1e-6 * whole))
        if is_q99 and len(still):
            findings.append(
                Finding(
                    f"{kind} {_list([names[d] for d in still])}: 98 % of the values are equal (q01 = q99); the rest becomes +-1.",
                    "Use NormalizationType.BOUNDS in the platform, or drop the dimension in the trajectory transform.",
                )
            )
        wild = np.flatnonzero(usable & (inner > 1e-6 * whole) & (inner < whole / 20))
        if len(wild):
            listed = _list([f"{names[d]} (98 % within {stats['q01'][d]:.3g} .. {stats['q99'][d]:.3g}, "
                            f"extremes {stats['min'][d]:.3g} .. {stats['max'][d]:.3g})" for d in wild])  # fmt: skip
            effect = "they are clipped" if is_q99 else "they squeeze all other values into a twentieth of the range"
            findings.append(
                Finding(f"{kind} has outliers in {listed}; {effect}.", "Look for glitches of the recorder; repair those steps.")
            )
    return findings


def clipped_share(rows: np.ndarray, bounds: Bounds) -> np.ndarray:
    """float [D]: share of values beyond the bounds, 0 where nothing is normalised."""
    slack = 1e-6 * (bounds.high - bounds.low)
    outside = (rows < bounds.low - slack) | (rows > bounds.high + slack)
    return np.where(bounds.mask & ~bounds.constant, outside.mean(0), 0)


def check_clipping(view: DatasetView) -> list[Finding]:
    """More clipping than the percentiles explain, in any split."""
    findings, index = [], view.index
    for split in index.splits:
        episodes = index.episodes_of(split)
        steps = index.steps_of(episodes[index.is_labelled()[episodes]])
        if not len(steps):
            continue
        for kind, _, bounds, names in view.quantities():
            share = clipped_share((index.actions if kind == "action" else index.proprio)[steps], bounds)
            if (dims := np.flatnonzero(share > 0.05)).size:
                listed = _list([f"{names[d]} {share[d]:.0%}" for d in dims])
                findings.append(
                    Finding(
                        f"A high share of {kind} values of split {split} is clipped: {listed}.",
                        "This split moves elsewhere than the training episodes; divide the recordings at random, or record more.",
                    )
                )
    return findings


def check_grippers(view: DatasetView) -> list[Finding]:
    """Grippers that never act, have an odd range, or start closed."""
    findings = []
    for dim in view.gripper_dims:
        values, name = view.actions[:, dim], view.action_names[dim]
        low, high = float(values.min()), float(values.max())
        if low == high:
            findings.append(
                Finding(
                    f"The gripper never opens or closes: {name} is always {low:.4g}.",
                    "If the task needs the gripper, the recorder (or the trajectory transform) loses its command.",
                )
            )
            continue
        if view.action_bounds.mask[dim]:
            continue
        if low < -1.1 or high > 1.1:
            findings.append(
                Finding(
                    f"The gripper command {name} runs from {low:.4g} to {high:.4g}, but this encoding does not normalise it.",
                    f"Scale it to 0 (closed) .. 1 (open) in a trajectory transform in {_TRANSFORMS_FILE}, else it dominates the loss.",
                )
            )
        elif low > -0.1 and (share := float((values[view.starts] < 0.5).mean())) > 0.8:
            findings.append(
                Finding(
                    f"The gripper command {name} starts at 0 in {share:.0%} of the episodes; 0 means closed and 1 open.",
                    f"If the real gripper starts open, invert the command in {_TRANSFORMS_FILE} (invert_gripper_actions).",
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
                    f"The gripper sign looks wrong: the fingers close where {name} is high, and 1 means open.",
                    f"Invert the command in {_TRANSFORMS_FILE} (invert_gripper_actions), as LIBERO's entries do.",
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
                f"{encoding} declares relative actions, but {as_position} dimensions equal the next state: they look absolute.",
                f"Use an encoding of absolute actions (JOINT_POS) in {CONFIGS_FILE}, or subtract the state in the trajectory transform.",
            )
        )
    if as_motion and as_motion >= max(2, (~relative).sum() / 2):
        findings.append(
            Finding(
                f"{encoding} declares absolute actions, but {as_motion} dimensions are small and centred on 0: they look relative.",
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


def check_units(view: DatasetView) -> list[Finding]:
    """Angles that look like degrees, lengths that look like millimetres, angles that jump by a turn."""
    findings = []
    for kind, rows, _, names in view.quantities():
        is_angle = np.array([_is_angle(name) for name in names])
        is_length = np.array([name.endswith("[m]") or re.search(r"\bd[xyz]$", name.replace("_", " ")) is not None for name in names])
        largest = np.abs(rows).max(0)
        for unit, dims, factor in (
            ("degrees", np.flatnonzero(is_angle & (largest > 10)), "radians"),
            ("millimetres", np.flatnonzero(is_length & (largest > 10)), "metres"),
        ):
            if len(dims):
                listed = _list([f"{names[d]} up to {largest[d]:.4g}" for d in dims])
                findings.append(
                    Finding(
                        f"{kind} units look like {unit}: {listed}.", f"Convert to {factor} in a trajectory transform in {_TRANSFORMS_FILE}."
                    )
                )
        jumps = (np.abs(np.diff(rows, axis=0)) > 5)[view.has_next].sum(0) if len(rows) > 1 else np.zeros(rows.shape[1], int)
        turns = np.flatnonzero(is_angle & (largest <= 10) & (jumps > 0))
        if len(turns):
            listed = _list([f"{names[d]} {_count(int(jumps[d]), 'time', 'times')}" for d in turns])
            findings.append(
                Finding(f"{kind} angles jump by a whole turn: {listed}.", "Unwrap them in the trajectory transform (numpy.unwrap).")
            )
    return findings


def check_idle_steps(view: DatasetView) -> list[Finding]:
    """Many steps of relative actions without any motion."""
    motion = view.relative & ~view.action_bounds.constant
    if not motion.any() or len(view.actions) < 2:
        return []
    size = np.abs(view.actions[:, motion]) / np.abs(view.actions[:, motion]).max(0)
    same_gripper = np.concatenate(([True], (np.diff(view.actions[:, view.gripper_dims], axis=0) == 0).all(1)))
    share = float(((size < 1e-3).all(1) & same_gripper).mean())
    if share <= 0.2:
        return []
    return [
        Finding(
            f"The robot stands still in {share:.0%} of the steps.",
            "Filter such steps when converting: a policy that learns them may stop and never move again.",
        )
    ]


def instruction_counts(view: DatasetView) -> list[tuple[str, int]]:
    """(text, number of episodes), most frequent first; the text of an episode is that of its first step."""
    index = view.index
    numbers = index.instruction_ids[index.episode_starts[view.episodes]]
    counted = Counter(index.instructions[number] if number >= 0 else "(none)" for number in numbers.tolist())
    return counted.most_common()


def _is_angle(name: str) -> bool:
    return name.endswith("[rad]") or re.search(r"(roll|pitch|yaw)$", name) is not None


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _list(items: np.ndarray | list[str]) -> str:
    shown = ", ".join(str(item) for item in items[:_MAX_NAMED])
    return shown + (f" and {len(items) - _MAX_NAMED} more" if len(items) > _MAX_NAMED else "")
