"""Single frames of video files: frame number -> the pixels that decoding the file from its start gives, through PyAV.

A frame can be decoded only after the key frame before it. Reading frame n therefore decodes from the last key frame up to n, or from
the frame read last if that lies between the two. Frames are numbered in the order in which they are shown.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_MAX_OPEN_VIDEOS = 16  # per process; a decoder holds a few frames, about 5 MB at 640x480


@dataclass(frozen=True)
class FrameTable:
    """Where the F frames of a video file lie in time."""

    timestamps: np.ndarray  # int64 [F], ascending, in units of the stream
    seconds: np.ndarray  # float64 [F]
    keys: np.ndarray  # int64: the numbers of the key frames
    key_positions: np.ndarray  # int64: the decoding time stamp to seek to for each key frame

    def nearest(self, seconds: np.ndarray) -> np.ndarray:
        """int64: for each time the number of the frame shown closest to it."""
        right = np.clip(np.searchsorted(self.seconds, seconds), 1, max(len(self.seconds) - 1, 1))
        left = right - 1
        right = np.minimum(right, len(self.seconds) - 1)
        return np.where(seconds - self.seconds[left] <= self.seconds[right] - seconds, left, right)


def read_frame_table(path: Path) -> FrameTable:
    """The frames of the first video stream, from the headers of its packets: nothing is decoded.

    Raises:
        ValueError: not a video file, or no frames in it; the message names the file.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            unit = float(stream.time_base)
            packets = [(packet.pts, packet.dts, packet.is_keyframe) for packet in container.demux(stream) if packet.pts is not None]
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as a video ({error}); copy it again (a git-lfs pointer? run git lfs pull)") from error
    if not packets:
        raise ValueError(f"{path} has no frames; copy it again, or leave its episodes out")
    packets.sort()
    timestamps = np.array([packet[0] for packet in packets], np.int64)
    keys = np.array([number for number, packet in enumerate(packets) if packet[2]], np.int64)
    positions = np.array([packets[number][1] if packets[number][1] is not None else packets[number][0] for number in keys], np.int64)
    return FrameTable(timestamps, timestamps * unit, keys, positions)


class _Decoder:
    """An open video file that stands behind the frame read last."""

    def __init__(self, path: Path, table: FrameTable) -> None:
        import av

        self._path, self._table = path, table
        self._container = av.open(str(path))
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1  # data loading has a process per core already
        self._frames = self._container.decode(self._stream)
        self._next = 0  # number of the frame that the decoder gives next

    def read(self, number: int) -> np.ndarray:
        """uint8 RGB [height, width, 3]; decodes from the last key frame before `number`, or goes on from where it stands."""
        first = int(np.searchsorted(self._table.keys, number, side="right")) - 1
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
        target = self._table.timestamps[number]
        for start in (key, key - 1):  # frames shown before their key frame, decoded after it, may need the one before
            if start < 0:
                break
            self._seek(int(self._table.key_positions[start]))
            has_key = False
            for frame in self._frames:
                has_key = has_key or bool(frame.key_frame)
                if frame.pts is not None and frame.pts >= target:
                    if frame.pts == target and has_key:
                        self._next = number + 1
                        return frame.to_ndarray(format="rgb24")
                    break
        self._next = len(self._table.timestamps)  # somewhere: the next read starts over
        return None

    def _forward(self, number: int) -> np.ndarray:
        target = self._table.timestamps[number]
        for frame in self._frames:
            if frame.pts == target:
                self._next = number + 1
                return frame.to_ndarray(format="rgb24")
        self._next = len(self._table.timestamps)
        raise ValueError(f"{self._path}: frame {number} cannot be decoded; copy the file again")

    def _seek(self, position: int) -> None:
        start = int(self._table.key_positions[0]) if len(self._table.key_positions) else 0
        self._container.seek(max(position, start), stream=self._stream, backward=True)
        self._frames = self._container.decode(self._stream)

    def close(self) -> None:
        self._container.close()


class VideoReader:
    """Frames by file and number; keeps the videos used last open and opens its own in every process."""

    def __init__(self) -> None:
        self._tables: dict[Path, FrameTable] = {}
        self._decoders: OrderedDict[Path, _Decoder] = OrderedDict()
        self._inherited: list[OrderedDict[Path, _Decoder]] = []
        self._process = os.getpid()

    def read(self, path: Path, number: int) -> np.ndarray:
        """uint8 RGB [height, width, 3] of frame `number`, the same bytes as decoding the file from its start.

        Raises:
            ValueError: no such frame, or a damaged file; the message names the file.
        """
        import av

        table = self.table(path)
        if not 0 <= number < len(table.timestamps):
            raise ValueError(f"{path} has {len(table.timestamps)} frames, frame {number} is asked for; copy the file again")
        try:
            return self._decoder(path, table).read(number)
        except av.error.FFmpegError as error:
            self._decoders.pop(path).close()
            raise ValueError(f"{path}: frame {number} cannot be decoded ({error}); copy the file again") from error

    def table(self, path: Path) -> FrameTable:
        """The frames of `path`, read once per process."""
        if path not in self._tables:
            self._tables[path] = read_frame_table(path)
        return self._tables[path]

    def _decoder(self, path: Path, table: FrameTable) -> _Decoder:
        if self._process != os.getpid():  # forked: an inherited file would share its position with the parent
            self._inherited.append(self._decoders)  # kept, because closing one would wait for threads that the fork did not copy
            self._decoders, self._process = OrderedDict(), os.getpid()
        decoder = self._decoders.pop(path, None)
        if decoder is None:
            if len(self._decoders) >= _MAX_OPEN_VIDEOS:
                self._decoders.popitem(last=False)[1].close()
            decoder = _Decoder(path, table)
        self._decoders[path] = decoder  # most recently used last
        return decoder

    def __getstate__(self) -> dict[str, Any]:
        return {"_tables": {}, "_decoders": OrderedDict(), "_inherited": [], "_process": -1}
