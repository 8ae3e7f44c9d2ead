"""MP4 files out of frames. Letters: H, W image size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.acting.background import Background

_MAX_QUEUED_FRAMES = 64


class VideoWriter:
    """Frames uint8 [H, W, 3], even H and W, as they come, into an H.264 file that exists under its name once it is complete."""

    def __init__(self, path: Path, frames_per_second: float) -> None:
        """Raises ValueError where PyAV is missing."""
        try:
            import av
        except ModuleNotFoundError as error:
            raise ValueError(f"a video of {path.name} needs the package av: pip install av, or film nothing (--video_hz 0)") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        self._av, self._path, self._temporary = av, path, path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._container = av.open(str(self._temporary), "w", format="mp4")
        self._stream: Any = self._container.add_stream("h264", rate=Fraction(frames_per_second).limit_denominator(1000))
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "20", "preset": "veryfast"}
        self._stream.codec_context.thread_count = 1
        self._num_frames = 0

    def write(self, frame: np.ndarray) -> None:
        """The next frame."""
        if not self._num_frames:
            self._stream.height, self._stream.width = frame.shape[:2]
        self._num_frames += 1
        for packet in self._stream.encode(self._av.VideoFrame.from_ndarray(frame, format="rgb24")):
            self._container.mux(packet)

    def close(self, path: Path | None = None) -> Path | None:
        """Completes the file, under another name if one is given; None, and no file, where there is no frame or it cannot be written."""
        try:
            if self._num_frames:
                for packet in self._stream.encode():
                    self._container.mux(packet)
            self._container.close()
            return self._temporary.replace(path or self._path) if self._num_frames else None
        finally:
            self.discard()

    def discard(self) -> None:
        """Leaves no file that is not complete, which a full disk would stay full of; harmless after `close`."""
        with suppress(Exception):  # it says once more what it could not write
            self._container.close()
        self._temporary.unlink(missing_ok=True)


class BackgroundFilm:
    """A `VideoWriter` in a thread of its own: `add` never waits, and a frame for which there is no time is left out."""

    def __init__(self, writer: VideoWriter) -> None:
        self._writer = writer
        self._work = Background(writer.write, "film", _MAX_QUEUED_FRAMES)

    def add(self, picture: np.ndarray) -> None:
        """Takes the next frame."""
        self._work.offer(np.array(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]))

    @property
    def num_dropped(self) -> int:
        """Frames that were left out."""
        return self._work.num_left_out

    def close(self, path: Path) -> Path | None:
        """Completes the video as `path`; None where there is none.

        Raises:
            Exception: what went wrong with writing it.
        """
        try:
            self._work.finish()
            return self._writer.close(path)
        finally:
            self._writer.discard()


def write_mp4(path: Path, frames: Sequence[np.ndarray], frames_per_second: float) -> None:
    """Writes `frames` (uint8 [H, W, 3], even H and W) as H.264, which browsers play."""
    writer = VideoWriter(path, frames_per_second)
    try:
        for frame in frames:
            writer.write(frame)
        writer.close()
    finally:
        writer.discard()
