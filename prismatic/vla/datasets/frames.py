"""Frames of sources that store every image as a JPEG or PNG file at a known place in a big file."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.images import decode_image

_MAX_OPEN_FILES = 256


class EncodedFrameReader:
    """Reads single encoded images out of big files, which stay open; safe to carry into forked worker processes."""

    is_sequential = False

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)
        self._descriptors: OrderedDict[int, int] = OrderedDict()

    def read(self, reference: np.void) -> np.ndarray:
        """uint8 [height, width, 3] of one IMAGE_REF.

        Raises:
            ValueError: the image is cut off or damaged; the message names file and byte offset.
        """
        file, offset, length = (int(reference[name]) for name in ("file", "offset", "length"))
        encoded = os.pread(self._descriptor(file), length, offset)
        try:
            return decode_image(encoded)
        except ValueError as error:
            raise ValueError(f"{self._files[file]}, image at byte {offset} ({length} bytes): {error}") from error

    def _descriptor(self, file: int) -> int:
        descriptor = self._descriptors.pop(file, None)
        if descriptor is None:
            if len(self._descriptors) >= _MAX_OPEN_FILES:
                os.close(self._descriptors.popitem(last=False)[1])
            descriptor = os.open(self._files[file], os.O_RDONLY)
        self._descriptors[file] = descriptor  # most recently used last
        return descriptor

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files, "_descriptors": OrderedDict()}
