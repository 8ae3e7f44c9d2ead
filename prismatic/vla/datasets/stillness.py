"""Steps in which nothing is commanded to move. Letters: M steps, A action dim."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prismatic.vla.constants import ActionKind
from prismatic.vla.datasets.index import EpisodeIndex

_TRIMMED = 1e-2  # of the largest motion, or of a target's range, per step: what a hand at rest on a leader arm stays below


def still_steps(actions: np.ndarray, relative: np.ndarray, starts: np.ndarray, tolerance: float) -> np.ndarray:
    """bool [M]: motions and velocities (`relative` [A]) are below `tolerance` of the largest, targets those of the step before.

    Rows `starts` begin an episode: they have no step before, and their targets count as the same.
    """
    motions, targets = np.abs(actions[:, relative]), actions[:, ~relative]
    still = (motions <= tolerance * np.maximum(motions.max(0, initial=0), 1e-12)).all(1)
    change = np.abs(np.diff(targets, axis=0, prepend=targets[:1]))
    change[starts] = 0
    return still & (change <= tolerance * np.ptp(targets, axis=0)).all(1)


def idle_ends(index: EpisodeIndex, kinds: Sequence[ActionKind]) -> tuple[np.ndarray, np.ndarray]:
    """(bool [M], bool [M]): the steps of an episode before anything moves, and those after anything has moved.

    An episode in which nothing moves at all is idle from its beginning.
    """
    return _idle_ends(index, kinds, _still(index, kinds))


def idle_middles(index: EpisodeIndex, kinds: Sequence[ActionKind], num_actions_chunk: int) -> np.ndarray:
    """bool [M]: the steps of a pause from which nothing moves for a whole chunk, though later it does.

    A policy that is shown them learns to stay; from the others of a pause its chunk leads on.
    """
    still = _still(index, kinds)
    before, after = _idle_ends(index, kinds, still)
    return _begins_long(still & ~before & ~after, num_actions_chunk)


def _begins_long(still: np.ndarray, num_actions_chunk: int) -> np.ndarray:
    """bool [M]: the rows of `still` [M] that begin at least `num_actions_chunk` rows without a False."""
    ends = np.flatnonzero(~np.append(still, False))
    return ends[np.searchsorted(ends, np.arange(len(still)))] - np.arange(len(still)) >= num_actions_chunk


def _still(index: EpisodeIndex, kinds: Sequence[ActionKind]) -> np.ndarray:
    relative = np.array([kind is not ActionKind.TARGET for kind in kinds])
    return still_steps(np.asarray(index.actions), relative, index.episode_starts[index.all_episodes()], _TRIMMED)


def _idle_ends(index: EpisodeIndex, kinds: Sequence[ActionKind], still: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    has_motions = any(kind is not ActionKind.TARGET for kind in kinds)
    before, after = np.zeros(len(still), bool), np.zeros(len(still), bool)
    for episode in index.all_episodes():
        first, end = (int(index.episode_starts[number]) for number in (episode, episode + 1))
        moving = first + np.flatnonzero(~still[first:end])
        if not len(moving):
            before[first:end] = True
            continue
        is_first_unknown = moving[0] == first + 1 and not has_motions  # a target moves: so may the one before
        before[first : first if is_first_unknown else moving[0]] = True
        after[moving[-1] + 1 : end] = True
    return before, after
