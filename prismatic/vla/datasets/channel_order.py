"""Pictures whose red and blue were exchanged when they were recorded (OpenCV's order, BGR) -> RGB, as an entry says."""

from __future__ import annotations

import numpy as np

from prismatic.vla.datasets.episodes import FrameReader


def frames_as_rgb(reader: FrameReader, channel_order: str) -> FrameReader:
    """What reads the frames of `reader` as RGB; `channel_order` is that in which they were recorded."""
    return reader if channel_order == "rgb" else _ExchangedFrames(reader)


class _ExchangedFrames:
    """Exchanges the first and the last channel of every frame."""

    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader
        self.is_sequential = reader.is_sequential

    def read(self, reference: np.void) -> np.ndarray:
        """uint8 RGB [height, width, 3] of one IMAGE_REF; raises what the reader raises."""
        return np.ascontiguousarray(self._reader.read(reference)[:, :, ::-1])
