"""The one division of recorded episodes into those for training and those for validation: in training, conversion and preprocessing.

A share of all episodes is set aside, spread over the tasks (instructions) so that each gives the same share as nearly as whole episodes
allow; the last episode of a task that has several stays for training. Which episodes those are follows from the names of their files
alone: the same on every machine, in any order, whatever the seed of a run.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections.abc import Hashable, Sequence
from pathlib import PurePath

import numpy as np

from prismatic.vla.datasets.index import EpisodeIndex
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec
from prismatic.vla.datasets.sources import instruction_remedy
from prismatic.vla.datasets.split_names import validation_split

logger = logging.getLogger(__name__)


def choose_validation(names: Sequence[str], tasks: Sequence[Hashable], val_fraction: float) -> np.ndarray:
    """bool [E]: True for the episodes, of those called `names` with the given `tasks`, that are for validation.

    Their number is `val_fraction` of E, rounded; at least one and at most E - 1, and less where tasks would lose their last episode.
    Episodes are given to the tasks by Sainte-Lague's method: the next one goes to the task whose share is then the smallest.

    Raises:
        ValueError: there are fewer than two episodes.
    """
    if len(names) < 2:
        raise ValueError("one episode cannot be divided: nothing is left to validate on")
    members: dict[Hashable, list[int]] = {}
    for number in sorted(range(len(names)), key=lambda number: _order(names[number])):
        members.setdefault(tasks[number], []).append(number)
    is_val = np.zeros(len(names), bool)
    # (share with one more, the only episode of a task last, by hash; number taken, episodes)
    queue = [(0.5 / len(episodes), len(episodes) == 1, place, 0, episodes) for place, episodes in enumerate(members.values())]
    heapq.heapify(queue)
    left = min(max(1, round(val_fraction * len(names))), len(names) - 1)
    while left and queue:
        _, is_only, place, taken, episodes = heapq.heappop(queue)
        is_val[episodes[taken]] = True
        taken, left = taken + 1, left - 1
        if taken < len(episodes) - 1:  # the last one stays
            heapq.heappush(queue, ((taken + 0.5) / len(episodes), is_only, place, taken, episodes))
    return is_val


def _order(name: str) -> tuple[str, str]:
    """By a hash of the file's name; its folder decides only between files of the same name."""
    return hashlib.sha256(PurePath(name).name.encode()).hexdigest(), name


def split_episodes(
    spec: DatasetSpec,
    index: EpisodeIndex,
    val_fraction: float | None,
    default_instruction: str | None = None,
    left_out: frozenset[int] = frozenset(),
) -> tuple[np.ndarray, np.ndarray]:
    """int64: the episodes that are trained on, and those for validation (none without `val_fraction`); in the order of the files.

    Episodes of `left_out`, and those without an instruction unless there is a default for them, are in neither. A recorded split for
    validation is taken as it is.

    Raises:
        ValueError: there is no split for training, too few episodes to divide it, or an episode that cannot be used.
    """
    if "train" not in index.splits:
        raise ValueError(f"data set {spec.name!r} ({spec.folder}) has no split 'train'; found: {', '.join(index.splits)}")
    val_split = None if val_fraction is None else validation_split(index.splits)
    unused = {number for number in index.refused if index.place_of(number)[0] not in ("train", val_split)}
    index.check_refused(left_out | unused)
    train = _labelled(spec, index, "train", default_instruction, left_out)
    if val_fraction is None:
        return train, train[:0]
    if val_split is not None:
        return train, _labelled(spec, index, val_split, default_instruction, left_out)
    tasks = index.instruction_ids[index.episode_starts[train]].tolist()
    try:
        is_val = choose_validation([index.names[episode] for episode in train], tasks, val_fraction)
    except ValueError as error:
        raise ValueError(f"data set {spec.name!r} has no val split, and {error}; record more, or leave --use_val_set out") from error
    return train[~is_val], train[is_val]


def _labelled(spec: DatasetSpec, index: EpisodeIndex, split: str, default_instruction: str | None, left_out: frozenset[int]) -> np.ndarray:
    """The episodes of `split` with an instruction; all of them where there is a default for the others."""
    episodes = np.setdiff1d(index.episodes_of(split), sorted(left_out))
    if len(episodes) == 0:
        raise ValueError(
            f"split {split!r} of data set {spec.name!r} ({spec.folder}) has no episode left; shorten --exclude_episodes, or give an "
            "episode a weight above 0"
        )
    if default_instruction is not None:
        return episodes
    labelled = episodes[index.is_labelled()[episodes]]
    if len(labelled) == 0:
        raise ValueError(
            f"split {split!r} of data set {spec.name!r} ({spec.folder}) has no episode with an instruction (of {len(episodes)}). "
            f"{instruction_remedy(spec.folder)}"
        )
    if len(labelled) < len(episodes):
        missing = len(episodes) - len(labelled)
        logger.warning(
            "data set %s, split %s: %d of %d episodes have no instruction and are left out", spec.name, split, missing, len(episodes)
        )
    return labelled
