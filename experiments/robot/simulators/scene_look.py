"""Cameras and lights of a MuJoCo model, moved for an episode and put back for the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.perturbations import Perturbation, direction, size_of

if TYPE_CHECKING:
    import mujoco

_FIXED_NAMES = ("cam_pos", "cam_quat", "cam_fovy", "light_diffuse", "light_ambient", "light_specular", "light_dir", "light_pos")
_FREE_NAMES = ("azimuth", "elevation", "distance")
_HEADLIGHT = ("diffuse", "ambient", "specular")


class SceneLook:
    """How a model looks as loaded, and changes of that; `apply` before the state is computed."""

    def __init__(self, model: mujoco.MjModel, camera: mujoco.MjvCamera, distance: float) -> None:
        """`camera` is the primary one, `distance` [m] how far away the middle of the scene is that it looks at."""
        self._model, self._camera, self._distance = model, camera, distance
        self._loaded = {name: getattr(model, name).copy() for name in _FIXED_NAMES}
        self._free = {name: getattr(camera, name) for name in _FREE_NAMES}
        self._free_fov = model.vis.global_.fovy
        self._headlight = {name: getattr(model.vis.headlight, name).copy() for name in _HEADLIGHT}

    def apply(self, episode: EpisodeSpec, changes: Sequence[Perturbation]) -> None:
        """As loaded, with the `changes` of cameras and lights that there are."""
        self._restore()
        if camera := size_of(changes, "camera"):
            self._move_camera(camera, camera.rng(episode))
        if light := size_of(changes, "light"):
            self._change_light(light, light.rng(episode))

    def _restore(self) -> None:
        for name, value in self._loaded.items():
            getattr(self._model, name)[:] = value
        for name, free in self._free.items():
            setattr(self._camera, name, free)
        self._model.vis.global_.fovy = self._free_fov
        for name, value in self._headlight.items():
            getattr(self._model.vis.headlight, name)[:] = value

    def _move_camera(self, change: Perturbation, rng: np.random.Generator) -> None:
        """Turned about the middle of the scene, nearer or further, with another field of view."""
        import mujoco

        aside, up = change.size * direction(rng, 2)  # [degrees]
        nearer, wider = 1 + change.size / 100 * rng.choice([-1, 1], 2)
        if self._camera.type == mujoco.mjtCamera.mjCAMERA_FREE:
            x, y, z = -_turned(free_axes(self._camera.azimuth, self._camera.elevation), aside, up)[:, 2]  # what it looks along
            self._camera.azimuth = np.degrees(np.arctan2(y, x)) % 360
            self._camera.elevation = np.degrees(np.arctan2(z, np.hypot(x, y)))
            self._camera.distance *= nearer
            self._model.vis.global_.fovy *= wider
            return
        number = self._camera.fixedcamid
        matrix = np.zeros(9)
        mujoco.mju_quat2Mat(matrix, self._model.cam_quat[number])
        axes = matrix.reshape(3, 3)  # in the frame of its body
        middle = self._model.cam_pos[number] - self._distance * axes[:, 2]
        turned = _turned(axes, aside, up)
        self._model.cam_pos[number] = middle + nearer * self._distance * turned[:, 2]
        mujoco.mju_mat2Quat(self._model.cam_quat[number], turned.flatten())
        self._model.cam_fovy[number] *= wider

    def _change_light(self, change: Perturbation, rng: np.random.Generator) -> None:
        """Strength, colour and direction, of the scene's lights and the one at the camera."""
        model = self._model
        factor = 2.0 ** (change.size * rng.choice([-1, 1]))
        colour = factor * (1 + 0.15 * change.size * direction(rng, 3))
        for name in _HEADLIGHT:
            getattr(model.vis.headlight, name)[:] *= colour
            getattr(model, f"light_{name}")[:] *= colour
        axis, angle = direction(rng, 3), 15 * change.size
        for light in range(model.nlight):
            model.light_dir[light] = rotation(axis, angle) @ model.light_dir[light]


def free_axes(azimuth: float, elevation: float) -> np.ndarray:
    """float64 [3, 3], the axes of MuJoCo's free camera at these angles [degrees]; columns: x (right), y (up), z (backwards)."""
    a, e = np.radians([azimuth, elevation])
    right = np.array([np.sin(a), -np.cos(a), 0.0])
    backwards = -np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    return np.column_stack([right, np.cross(backwards, right), backwards])


def _turned(axes: np.ndarray, aside: float, up: float) -> np.ndarray:
    """A camera's `axes` [3, 3] (columns: x right, y up, z backwards) turned about its own y and x [degrees].

    About the world's upright, a camera that looks down steeply would hardly turn aside.
    """
    return rotation(axes[:, 1], aside) @ rotation(axes[:, 0], up) @ axes


def rotation(axis: np.ndarray, degrees: float) -> np.ndarray:
    """float64 [3, 3] about `axis` [3], of length 1. Source: Rodrigues' formula."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
