"""Off-screen rendering of MuJoCo scenes, on a GPU (EGL) or in software (OSMesa). Letters: S image side.

MuJoCo picks its OpenGL library from MUJOCO_GL while it is imported, so `configure_rendering` comes first in every
process that renders. Two OSMesa contexts at once, or OSMesa beside TensorFlow, crash the process: one renderer per
process, closed before the next one opens.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import mujoco

_LIBRARIES = {"osmesa": ("libOSMesa.so.8", "libosmesa6"), "egl": ("libEGL.so.1", "libegl1")}
# Fast rendering: no shadow map, no mirrored floor. With 4x anti-aliasing and 4096-pixel shadows, software rendering takes 5-10x longer.
_SLOW_FLAGS = ("mjRND_SHADOW", "mjRND_REFLECTION", "mjRND_HAZE")


class RenderingUnavailableError(ValueError):
    """This machine lacks what off-screen rendering needs; the message says how to get it."""


def configure_rendering() -> str:
    """Sets MUJOCO_GL (kept when already set; else "egl" where an NVIDIA driver is, "osmesa" elsewhere) and returns it.

    Raises:
        RenderingUnavailableError: the OpenGL library is not installed; the message gives the command that installs it.
    """
    backend = os.environ.get("MUJOCO_GL", "").lower().strip()
    if not backend:
        backend = "egl" if Path("/dev/nvidia0").exists() and _loads("libEGL.so.1") else "osmesa"
        if sys.platform != "linux":
            return "native"  # MuJoCo's own choice (CGL, WGL)
        if "mujoco.gl_context" in sys.modules:
            raise RuntimeError("mujoco was imported before configure_rendering(); call configure_rendering() first or set MUJOCO_GL")
        os.environ["MUJOCO_GL"] = backend
    if backend in _LIBRARIES and not _loads(_LIBRARIES[backend][0]):
        library, package = _LIBRARIES[backend]
        raise RenderingUnavailableError(
            f"cannot render: MUJOCO_GL={backend} needs {library}, which is not installed. Run: sudo apt-get install -y {package}"
        )
    return backend


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class CameraPose:
    """Where a camera sits, and what it looks at."""

    position: tuple[float, float, float]  # [m]
    lookat: tuple[float, float, float]  # [m], what is in the middle of the picture; above it is z
    fov: float  # [degrees], from the lower to the upper edge


def place_camera(model: mujoco.MjModel, camera: int, pose: CameraPose, body_axes: np.ndarray | None = None) -> None:
    """Fixes the model's camera number `camera` to its body at `pose`, whose frame is the body's.

    `body_axes` [3, 3]: the body's axes as columns in the frame that `pose` is given in, where that is another one.
    """
    import mujoco

    forward = np.subtract(pose.lookat, pose.position)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(right, forward), -forward], axis=1)  # [3, 3], columns: camera's x, y, z
    to_body = np.eye(3) if body_axes is None else body_axes.T
    mujoco.mju_mat2Quat(model.cam_quat[camera], (to_body @ axes).flatten())
    model.cam_pos[camera] = to_body @ np.asarray(pose.position)
    model.cam_fovy[camera] = pose.fov
    model.cam_mode[camera] = mujoco.mjtCamLight.mjCAMLIGHT_FIXED


class OffscreenRenderer:
    """Pictures of one MuJoCo model at any size up to `max_size`, through one OpenGL context."""

    def __init__(self, model: mujoco.MjModel, max_size: int, fast: bool) -> None:
        import mujoco

        self._mujoco, self._model, self.max_size = mujoco, model, max_size
        model.vis.global_.offwidth = model.vis.global_.offheight = max_size
        if fast:
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0  # both take effect only before the context is made
        try:
            self._gl: Any = mujoco.GLContext(max_size, max_size)
            self._gl.make_current()
            self._context: Any = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:  # each OpenGL platform raises its own kinds
            raise RenderingUnavailableError(
                f"cannot open an off-screen renderer (MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}): {error}. "
                "For software rendering run: sudo apt-get install -y libosmesa6, and set MUJOCO_GL=osmesa"
            ) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        if fast:
            for flag in _SLOW_FLAGS:
                self._scene.flags[getattr(mujoco.mjtRndFlag, flag)] = 0

    def render(self, data: mujoco.MjData, camera: mujoco.MjvCamera, option: mujoco.MjvOption, size: int) -> np.ndarray:
        """uint8 [size, size, 3], the scene through `camera`."""
        assert self._context is not None, "render() after close()"
        assert size <= self.max_size, (size, self.max_size)
        mj = self._mujoco
        rectangle = mj.MjrRect(0, 0, size, size)
        mj.mjv_updateScene(self._model, data, option, None, camera, mj.mjtCatBit.mjCAT_ALL.value, self._scene)
        mj.mjr_render(rectangle, self._scene, self._context)
        image = np.empty((size, size, 3), np.uint8)
        mj.mjr_readPixels(image, None, rectangle, self._context)
        return np.ascontiguousarray(image[::-1])  # OpenGL's rows run upwards

    def close(self) -> None:
        """Frees the OpenGL context; harmless the second time."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._context = self._gl = None
