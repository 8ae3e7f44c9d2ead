"""Single frames out of HDF5 recordings, by the references that `source` makes."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.hdf5.images import read_frame
from prismatic.vla.datasets.hdf5.layout import demo_root, is_robomimic, named_errors, open_h5
from prismatic.vla.datasets.hdf5.robomimic import demos, is_upside_down

DEMO_SHIFT = 32  # an offset is the number of the demonstration << 32 | row
_MAX_OPEN_FILES = 64


@dataclass(frozen=True)
class _OpenFile:
    """What is asked of a file once."""

    content: Any
    demos: tuple[str, ...]  # paths of the demonstrations; () in a file of one episode
    is_upside_down: bool

    @classmethod
    def of(cls, file: Any) -> _OpenFile:
        if not is_robomimic(file):
            return cls(file, (), False)
        return cls(file, tuple(f"{demo_root(file)}/{name}" for name in demos(file)), is_upside_down(file))


class OpenFiles:
    """At most 64 open files, opened as they are needed, in each process."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, _OpenFile] = OrderedDict()
        self._process = os.getpid()

    def get(self, path: Path) -> _OpenFile:
        if self._process != os.getpid():  # forked: an inherited file would share its state with the parent
            self._open, self._process = OrderedDict(), os.getpid()
        found = self._open.pop(path, None)
        if found is None:
            if len(self._open) >= _MAX_OPEN_FILES:
                self._open.popitem(last=False)[1].content.close()
            content = open_h5(path)
            with named_errors(path):
                found = _OpenFile.of(content)
        self._open[path] = found  # most recently used last
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": OrderedDict(), "_process": -1}


class Hdf5FrameReader:
    """Single rows of image data sets."""

    is_sequential = False

    def __init__(self, files: tuple[Path, ...], cameras: tuple[str, ...]) -> None:
        """`cameras` are paths: from the file's root, or of demonstrations from their obs."""
        self._files, self._cameras = files, cameras
        self.opened = OpenFiles()  # many readers may share one

    def read(self, reference: np.void) -> np.ndarray:
        """uint8 RGB [height, width, 3] of one IMAGE_REF; LIBERO's images are turned upright.

        Raises:
            ValueError: the row is damaged; the message names file, data set and row.
        """
        number, offset, camera = (int(reference[name]) for name in ("file", "offset", "length"))
        row, file = offset & (1 << DEMO_SHIFT) - 1, self.opened.get(self._files[number])
        place = f"{file.demos[offset >> DEMO_SHIFT]}/obs/{self._cameras[camera]}" if file.demos else self._cameras[camera]
        try:
            return read_frame(file.content[place], row, file.is_upside_down)
        except (ValueError, OSError, KeyError, RuntimeError) as error:
            raise ValueError(f"{self._files[number]}, /{place.lstrip('/')}, row {row}: {error}") from error
