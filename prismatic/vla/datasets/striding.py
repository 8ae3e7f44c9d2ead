"""Recordings that are faster than the robot will be commanded: every n-th step is kept, and its action made to last until the next one.

    targets      the one of the kept step, as if the others had never been recorded
    motions      the sum of all motions until the next kept step (angles as long as they are small)
    velocities   their mean

Letters: T steps, A action dim, n stride.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prismatic.vla.constants import ActionKind

_SAME_RATE = 0.02  # share by which two rates may differ and still count as the same (29.97 Hz and 30 Hz)


def combine_actions(actions: np.ndarray, stride: int, kinds: Sequence[ActionKind]) -> np.ndarray:
    """float32 [ceil(T / n), A] of [T, A]: those of the steps 0, n, 2n, ...; the last one lasts for what is left of the recording.

    `kinds` says what each of the A dimensions is.
    """
    starts = np.arange(0, len(actions), stride)
    if not len(starts):
        return actions
    sums = np.add.reduceat(actions.astype(np.float64), starts, axis=0)
    lengths = np.diff(np.append(starts, len(actions)))[:, None]
    is_target, is_motion = (np.array([kind is wanted for kind in kinds]) for wanted in (ActionKind.TARGET, ActionKind.MOTION))
    return np.where(is_target, actions[starts], np.where(is_motion, sums, sums / lengths)).astype(np.float32)


def whole_factor(recorded_hz: float, control_hz: float) -> int | None:
    """How many recorded steps make one of the robot's; None if that is no whole number."""
    factor = round(recorded_hz / control_hz)
    return factor if factor >= 1 and abs(recorded_hz / (factor * control_hz) - 1) <= _SAME_RATE else None
