"""Cameras that go on delivering their last picture under new time stamps, as USB cameras do when they hang."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_ENOUGH_S = 0.2  # of motion at full speed in one dimension: what a camera that sees the robot, or is mounted on it, would show


class FrozenCameras:
    """Compares each camera's picture with the one before. A real picture is never the same to the last bit after the robot has moved."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # camera -> its last new picture, and how far the robot had gone by then

    def find(self, images: Mapping[str, np.ndarray], travel: np.ndarray) -> str:
        """Which cameras have not changed although the robot moved; "" if all have.

        `images` uint8 [height, width, 3] by slot; `travel` float64 [A] counts seconds of motion at full speed (`ChunkExecutor.travel`).
        """
        frozen = []
        for name, picture in images.items():
            before = self._first.get(name)
            if before is None or not np.array_equal(before[0], picture):
                self._first[name] = picture.copy(), travel.copy()
            elif (travel - before[1]).max() > _ENOUGH_S:
                frozen.append(name)
        if not frozen:
            return ""
        return f"camera {', '.join(frozen)} shows the same picture as before the robot moved: does it hang?"
