"""What looks wrong in the numbers of a data set: findings in plain words, each with what to do. No image is decoded here.

Episodes and texts are looked at here, values of single dimensions in `ranges`, `grippers` and `encodings`.

Letters: M steps, E episodes.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from prismatic.vla.datasets.inspection.encodings import check_encoding
from prismatic.vla.datasets.inspection.grippers import check_gripper_signs, check_grippers
from prismatic.vla.datasets.inspection.ranges import (
    check_clipping,
    check_constants,
    check_idle_steps,
    check_pauses,
    check_spread,
    check_units,
)
from prismatic.vla.datasets.inspection.representations import check_mixed_units, check_quaternion_signs, check_turns
from prismatic.vla.datasets.inspection.view import DatasetView, training_views
from prismatic.vla.datasets.rlds.oxe.configs import CONFIGS_FILE
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec
from prismatic.vla.datasets.sources import instruction_remedy
from prismatic.vla.datasets.training_data import TrainingData
from prismatic.vla.diagnosis import MAX_LISTED, Finding, Status, counted, listed

REPAIRS = "repairs"  # subject of what the reader left out or mended
_LONG_INSTRUCTION = 500  # characters; people say a task in fewer than 100


def quick_checks(data: TrainingData, specs: Sequence[DatasetSpec], kept: Collection[str] = ()) -> list[tuple[str, Finding]]:
    """What looks wrong in the data of a run, each with the data set's name; well under a second for 300 episodes.

    `kept` names the data sets that are normalised by the statistics of a checkpoint.
    """
    return [(view.name, finding) for view in training_views(data, specs, kept) for finding in check_arrays(view)]


def check_arrays(view: DatasetView) -> list[Finding]:
    """Everything that the low-dimensional arrays and the image references tell."""
    checks = (
        check_repairs, check_widths, check_lengths, check_instructions, check_duplicates, check_references, check_constants, check_spread,
        check_clipping, check_grippers, check_gripper_signs, check_encoding, check_units, check_turns,
        check_quaternion_signs, check_mixed_units, check_idle_steps, check_pauses,
    )  # fmt: skip
    return [finding for check in checks for finding in check(view)]


def check_repairs(view: DatasetView) -> list[Finding]:
    """What the reader left out or mended."""
    return [
        Finding(
            REPAIRS,
            Status.WARNING,
            f"{repair.what[:1].upper()}{repair.what[1:]}: {repair.count}, first {repair.first}",
            "Check that this is meant so.",
        )
        for repair in view.index.repairs
    ]


def check_widths(view: DatasetView) -> list[Finding]:
    """Dimensions against the robot platform. Those of the state matter to a policy that is fed it alone."""
    action_dim, proprio_dim = view.index.actions.shape[1], view.index.proprio.shape[1]
    cases = [(None, Status.PROBLEM, "Training refuses this data set.")]
    if view.use_proprio:
        status = Status.PROBLEM if proprio_dim else Status.WARNING  # an entry may name no state
        cases.append((proprio_dim, status, "Training refuses this data set with --use_proprio True."))
    for width, status, remedy in cases:
        try:
            view.spec.check_widths(action_dim, width)
        except ValueError as error:
            return [Finding("dimensions", status, f"{str(error)[:1].upper()}{str(error)[1:]}".removesuffix("."), remedy)]
    return []


def check_lengths(view: DatasetView) -> list[Finding]:
    """Episodes of one step; a chunk longer than most episodes."""
    findings, chunk = [], view.platform.num_actions_chunk
    if num_single := int((view.lengths == 1).sum()):
        findings.append(
            Finding(
                "lengths",
                Status.WARNING,
                f"{counted(num_single, 'episode has', 'episodes have')} only one step: {listed(view.episodes[view.lengths == 1])}",
                "Leave such recordings out.",
            )
        )
    if (share := float((view.lengths < chunk).mean())) > 0.5:
        findings.append(
            Finding(
                "lengths",
                Status.WARNING,
                f"The chunk of {chunk} actions is longer than {share:.0%} of the episodes (median {np.median(view.lengths):.0f} steps)",
                "Lower num_actions_chunk of the platform in prismatic/vla/constants.py, or check that episodes were not cut too short.",
            )
        )
    return findings


def check_instructions(view: DatasetView) -> list[Finding]:
    """Missing texts, and texts that differ only in spelling."""
    findings = []
    is_missing = ~view.index.is_labelled()[view.index.all_episodes()]
    if is_missing.any() and not view.has_default_instruction:
        status, what = (Status.PROBLEM, "training refuses them") if is_missing.all() else (Status.WARNING, "are left out of training")
        findings.append(
            Finding(
                "instructions",
                status,
                f"{is_missing.sum()} of {view.index.num_episodes} episodes have no instruction and {what}",
                f"{instruction_remedy(view.spec.folder)}.",
            )
        )
    spellings: dict[str, list[str]] = {}
    for text in view.index.instructions:
        spellings.setdefault(" ".join(re.findall(r"\w+", text.lower())), []).append(text)
    for texts in [texts for texts in spellings.values() if len(texts) > 1][:MAX_LISTED]:
        findings.append(
            Finding(
                "instructions",
                Status.WARNING,
                f"Instructions differ only in case, spaces or punctuation: {', '.join(map(repr, texts))}",
                "Use one spelling per task.",
            )
        )
    if broken := [text for text in view.index.instructions if len(text.splitlines()) > 1]:
        findings.append(
            Finding(
                "instructions",
                Status.WARNING,
                f"{counted(len(broken), 'instruction has', 'instructions have')} several lines, which are taken for one text: "
                f"{broken[0][:80]!r}",
                "A robot is told one line. Ways to say a task are a list in instructions.json, of which one is drawn for each episode.",
            )
        )
    if long := [text for text in view.index.instructions if len(text) > _LONG_INSTRUCTION]:
        longest = max(long, key=len)
        findings.append(
            Finding(
                "instructions",
                Status.WARNING,
                f"{counted(len(long), 'instruction has', 'instructions have')} more than {_LONG_INSTRUCTION} characters, "
                f"the longest {len(longest):,}: {longest[:40]!r}...",
                "Say the task in a sentence: a batch takes memory and time for its longest text, and exported programs take 256 tokens.",
            )
        )
    return findings


def check_duplicates(view: DatasetView) -> list[Finding]:
    """Episodes with the same numbers, over all splits."""
    index, doubles = view.index, []
    seen: dict[bytes, int] = {}
    for episode in index.all_episodes().tolist():
        rows = slice(index.episode_starts[episode], index.episode_starts[episode + 1])
        digest = hashlib.sha1(index.actions[rows].tobytes() + index.proprio[rows].tobytes(), usedforsecurity=False).digest()
        if digest in seen:
            doubles.append(f"{episode} = {seen[digest]}")
        seen.setdefault(digest, episode)
    if not doubles:
        return []
    return [
        Finding(
            "copies",
            Status.WARNING,
            f"{counted(len(doubles), 'episode is a copy', 'episodes are copies')} of another (same actions and states): {listed(doubles)}",
            "Remove the copies; one that is in both train and val makes validation look too good.",
        )
    ]


def check_references(view: DatasetView) -> list[Finding]:
    """Two cameras that are stored once."""
    cameras, images = view.index.cameras, view.index.images
    return [
        Finding(
            "cameras",
            Status.WARNING,
            f"The cameras {cameras[first]} and {cameras[second]} are the same images",
            f"Give each camera its own key in image_obs_keys of the entry in {CONFIGS_FILE}, or list only one.",
        )
        for first in range(len(cameras))
        for second in range(first + 1, len(cameras))
        if np.array_equal(images[:, first], images[:, second])
    ]


def instruction_counts(view: DatasetView) -> list[tuple[str, int]]:
    """(text, number of episodes), most frequent first; the text of an episode is that of its first step."""
    index = view.index
    numbers = index.instruction_ids[index.episode_starts[view.episodes]]
    counted = Counter(index.instructions[number] if number >= 0 else "(none)" for number in numbers.tolist())
    return counted.most_common()
