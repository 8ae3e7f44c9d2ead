"""Single frames of video files: frame number -> the pixels that decoding the file from its start gives, through PyAV.

A frame can be decoded only after the key frame before it. Reading frame n therefore decodes from the last key frame up to n, or from
the frame read last if that lies between the two. Frames are numbered in the order in which they are shown.

What a decoder knows to be damaged is refused, where it would be patched with what was shown before, down to the next key frame. H.264 and
HEVC have no checksums: damage that still reads as a picture is not noticed.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.lerobot.frame_tables import FrameTable, FrameTables, has_index

_MAX_OPEN_VIDEOS = 16  # per process; a decoder holds a few frames, about 5 MB at 640x480


class _Decoder:
    """An open video file, positioned after the frame read last."""

    def __init__(self, path: Path, table: FrameTable) -> None:
        import av

        self._path, self._table = path, table
        self._container = av.open(str(path))
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is None:
            self._container.close()
            raise ValueError(
                f"{path} is in a codec that PyAV does not have here: encode it as H.264, or download it again if it is damaged"
            )
        self._stream.codec_context.thread_count = 1  # data loading has a process per core already
        # Elsewhere a search may end between key frames, behind which the first pictures are no sound ones.
        self._is_strict = has_index(self._container)
        if self._is_strict and self._stream.codec_context.codec.name == "hevc":  # h264 marks the pictures that it has patched
            self._stream.codec_context.options = {"err_detect": "explode"}
        self._frames = _decoded(self._container, self._stream, self._is_strict)
        self._next = 0  # number of the frame that the decoder gives next

    def read(self, number: int) -> np.ndarray:
        """uint8 RGB [height, width, 3]; decodes from the last key frame before `number`, or goes on from where it stands."""
        first = self._table.keys.last_not_above(number)
        if not (first < 0 or self._table.keys[first] <= self._next <= number):
            image = self._from_key(first, number)
            if image is not None:
                return image
        if self._next > number:
            self._seek(0)
            self._next = 0
        return self._forward(number)

    def _from_key(self, key: int, number: int) -> np.ndarray | None:
        """The frame, decoded from that key frame on or an earlier one; None: the file gives no way but from its start."""
        import av

        for start in (key, key - 1):  # frames shown before their key frame, decoded after it, may need the one before
            if start < 0:
                break
            self._seek(self._table.key_positions[start])
            try:
                image = self._after_key(number)
            except (av.error.FFmpegError, ValueError):
                if start != key or start == 0:
                    raise
                continue
            if image is not None:
                return image
        self._next = len(self._table)  # somewhere: the next read starts over
        return None

    def _after_key(self, number: int) -> np.ndarray | None:
        """The frame, if a key frame and then this one come from where the decoder stands; ValueError: it is damaged."""
        target, has_key = self._table.timestamps[number], False
        for frame, is_sound in self._frames:
            has_key = has_key or bool(frame.key_frame)
            if frame.pts is not None and frame.pts >= target:
                return self._taken(frame, is_sound, number) if frame.pts == target and has_key else None
        return None

    def _forward(self, number: int) -> np.ndarray:
        target = self._table.timestamps[number]
        for frame, is_sound in self._frames:
            if frame.pts == target:
                return self._taken(frame, is_sound, number)
        raise self._damaged(number)

    def _taken(self, frame: Any, is_sound: bool, number: int) -> np.ndarray:
        if not is_sound:
            raise self._damaged(number)
        self._next = number + 1
        return frame.to_ndarray(format="rgb24")

    def _damaged(self, number: int) -> ValueError:
        self._next = len(self._table)  # somewhere: the next read starts over
        return ValueError(f"{self._path}: frame {number} cannot be decoded: the file is damaged, download it again")

    def _seek(self, position: int) -> None:
        start = self._table.key_positions[0] if len(self._table.key_positions) else 0
        self._container.seek(max(position, start), stream=self._stream, backward=True)
        self._frames = _decoded(self._container, self._stream, self._is_strict)

    def close(self) -> None:
        self._container.close()


def _decoded(container: Any, stream: Any, is_strict: bool) -> Iterator[tuple[Any, bool]]:
    """(frame, whether it and those since the last key frame are sound), from where the file stands.

    No method: a generator that held its decoder would leave it to the collector of cycles, which in a forked process closes what the parent
    has left, and waits for threads that the fork did not copy.
    """
    is_sound = True
    for frame in container.decode(stream):
        is_sound = not is_strict or ((is_sound or bool(frame.key_frame)) and not frame.is_corrupt)
        yield frame, is_sound


class VideoReader:
    """Frames by file and number; keeps the videos used last open and opens its own in every process."""

    def __init__(self, tables: FrameTables) -> None:
        self.tables = tables
        self._decoders: OrderedDict[Path, _Decoder] = OrderedDict()
        self._inherited: list[Mapping[Path, _Decoder]] = []
        self._process = os.getpid()

    def read(self, path: Path, number: int) -> np.ndarray:
        """uint8 RGB [height, width, 3] of frame `number`, the same bytes as decoding the file from its start.

        Raises:
            ValueError: no such frame, or a damaged file; the message names the file.
        """
        import av

        if not 0 <= number < len(self.tables[path]):
            raise ValueError(f"{path} has {len(self.tables[path])} frames, and frame {number} is asked for: it has changed, start again")
        try:
            return self._decoder(path).read(number)
        except av.error.FFmpegError as error:
            if (decoder := self._decoders.pop(path, None)) is not None:
                decoder.close()
            raise ValueError(f"{path}: frame {number} cannot be decoded ({error}): the file is damaged, download it again") from error

    def _decoder(self, path: Path) -> _Decoder:
        if self._process != os.getpid():  # forked: an inherited file would share its position with the parent
            self._inherited.append(self._decoders)  # kept, because closing one would wait for threads that the fork did not copy
            self._decoders, self._process = OrderedDict(), os.getpid()
        decoder = self._decoders.pop(path, None)
        if decoder is None:
            table = self.tables[path]
            if len(self._decoders) >= _MAX_OPEN_VIDEOS:
                self._decoders.popitem(last=False)[1].close()
            decoder = _Decoder(path, table)
        self._decoders[path] = decoder  # most recently used last
        return decoder

    def __getstate__(self) -> dict[str, Any]:
        return {"tables": self.tables, "_decoders": OrderedDict(), "_inherited": [], "_process": -1}
