"""Gripper commands as policies are trained on them <-> as simulators take them. Letters: A action dim, the gripper last.

    trained on      1 open, 0 closed
    robosuite      -1 open, +1 closed; it moves the fingers by the sign, so that 0 leaves them where they are

The published rule maps [0, 1] to [-1, 1] and takes the sign, so that a command of exactly 0.5, undecided, becomes 0. Source: the published
LIBERO evaluation (openvla-oft 213c5ff).
"""

from __future__ import annotations

import numpy as np


def normalize_gripper_action(action: np.ndarray, binarize: bool = True) -> np.ndarray:
    """A copy of actions [..., A] whose gripper went from [0, 1] to [-1, 1], by its sign if `binarize`; 0.5 becomes 0."""
    changed = np.array(action, np.float64)
    changed[..., -1] = 2 * changed[..., -1] - 1
    if binarize:
        changed[..., -1] = np.sign(changed[..., -1])
    return changed


def invert_gripper_action(action: np.ndarray) -> np.ndarray:
    """A copy of actions [..., A] whose gripper has the opposite sign."""
    changed = np.array(action, np.float64)
    changed[..., -1] *= -1
    return changed


def to_robosuite(action: np.ndarray) -> np.ndarray:
    """A copy of actions [..., A] of a LIBERO policy, as its simulator takes them: gripper -1 open, +1 closed, 0 undecided."""
    return invert_gripper_action(normalize_gripper_action(action))
