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
    relative = np.array([kind is not ActionKind.TARGET for kind in kinds])
    episodes = index.all_episodes()
    still = still_steps(np.asarray(index.actions), relative, index.episode_starts[episodes], _TRIMMED)
    before, after = np.zeros(len(still), bool), np.zeros(len(still), bool)
    for episode in episodes:
        first, end = (int(index.episode_starts[number]) for number in (episode, episode + 1))
        moving = first + np.flatnonzero(~still[first:end])
        if not len(moving):
            before[first:end] = True
            continue
        is_first_unknown = moving[0] == first + 1 and not relative.any()  # a target moves: so may the one before
        before[first : first if is_first_unknown else moving[0]] = True
        after[moving[-1] + 1 : end] = True
    return before, after
