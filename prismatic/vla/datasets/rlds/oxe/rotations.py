"""Rotations between the forms that recordings and policies use, all with SciPy. Letters: T steps.

Quaternions are x, y, z, w. Euler angles are roll, pitch, yaw about the fixed axes x, then y, then z (R = Rz Ry Rx), in radians, as
tensorflow_graphics has them and the published pipeline with it. R6 is the first two rows of the rotation matrix, one behind the other
(after Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural Networks", section 4.2, who take columns).
"""

from __future__ import annotations

import numpy as np


def quaternion_to_euler(quaternions: np.ndarray) -> np.ndarray:
    """float32 [T, 3] roll, pitch, yaw in radians, of [T, 4] x, y, z, w of any length; all zeros give no rotation."""
    from scipy.spatial.transform import Rotation

    if not len(quaternions):
        return np.zeros((0, 3), np.float32)
    is_zero = ~np.any(quaternions, axis=1, keepdims=True)  # [T, 1]
    return Rotation.from_quat(np.where(is_zero, (0.0, 0.0, 0.0, 1.0), quaternions)).as_euler("xyz").astype(np.float32)


def euler_to_quaternion(angles: np.ndarray) -> np.ndarray:
    """float32 [T, 4] x, y, z, w of unit length, of [T, 3] roll, pitch, yaw in radians."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", angles).as_quat().astype(np.float32) if len(angles) else np.zeros((0, 4), np.float32)


def euler_to_matrix(angles: np.ndarray) -> np.ndarray:
    """float64 [T, 3, 3] of [T, 3] roll, pitch, yaw in radians."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", angles).as_matrix() if len(angles) else np.zeros((0, 3, 3))


def matrix_to_rot6d(matrices: np.ndarray) -> np.ndarray:
    """float32 [T, 6]: the first two rows of [T, 3, 3]."""
    return matrices[:, :2].reshape(-1, 6).astype(np.float32)


def rot6d_to_matrix(rot6d: np.ndarray) -> np.ndarray:
    """float64 [T, 3, 3]: rows orthonormalised by Gram-Schmidt; inverse of `matrix_to_rot6d`, also for a network's output."""
    first, second = rot6d[:, :3].astype(np.float64), rot6d[:, 3:].astype(np.float64)
    first = first / np.linalg.norm(first, axis=1, keepdims=True)
    second = second - (first * second).sum(axis=1, keepdims=True) * first
    second = second / np.linalg.norm(second, axis=1, keepdims=True)
    return np.stack([first, second, np.cross(first, second)], axis=1)


def velocity_in_tool_frame(velocity: np.ndarray, tool_angles: np.ndarray) -> np.ndarray:
    """float32 [T, 9] translation and R6 rotation in the tool's frame, of a velocity [T, 6] (xyz, roll pitch yaw) in the base's.

    `tool_angles` [T, 3] is the tool's orientation in the base's frame: v -> R^-1 v, dR -> R^-1 dR R.
    """
    tool = euler_to_matrix(tool_angles)
    inverse = tool.transpose(0, 2, 1)
    translation = np.einsum("tij,tj->ti", inverse, velocity[:, :3])
    rotation = inverse @ euler_to_matrix(velocity[:, 3:6]) @ tool
    return np.concatenate([translation.astype(np.float32), matrix_to_rot6d(rotation)], axis=1)
