"""Which steps of a demonstration move the robot. Letters: T steps, A action dim."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prismatic.vla.constants import ActionKind

NOOP_THRESHOLD = 1e-4  # in action units


def moving_steps(actions: np.ndarray, kinds: Sequence[ActionKind], threshold: float = NOOP_THRESHOLD) -> np.ndarray:
    """bool [T]: False for steps of `actions` [T, A] that neither move the robot nor change a target.

    A step is idle if the norm of its motions and velocities is below `threshold` and its targets (the gripper; every joint of a
    joint-controlled arm) are within `threshold` of those of the last step kept. With the gripper as the only target this is the filter of
    the published LIBERO data sets (OpenVLA, Kim et al. 2024, appendix).
    """
    absolute = np.array([kind is ActionKind.TARGET for kind in kinds], bool)
    kept = np.zeros(len(actions), bool)
    targets: np.ndarray | None = None  # of the last step kept
    for step, action in enumerate(actions):
        is_still = bool(np.linalg.norm(action[~absolute]) < threshold) if not absolute.all() else targets is not None
        is_same = targets is None or bool(np.abs(action[absolute] - targets).max(initial=0) < threshold)
        if not (is_still and is_same):
            kept[step], targets = True, action[absolute]
    return kept
