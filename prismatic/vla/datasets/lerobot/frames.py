"""IMAGE_REF -> pixels: a frame of a video ("offset" is its number), or an image in a parquet file ("offset" is the row, "length" the
number of the camera). Both are cheap in order and dear in any other: a frame needs those since its key frame, an image its row group."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.lerobot.files import open_parquet
from prismatic.vla.datasets.lerobot.frame_tables import FrameTables
from prismatic.vla.datasets.lerobot.video import VideoReader
from prismatic.vla.images import decode_image

_ROW_GROUP_BYTES = 256 * 2**20  # encoded images kept per process


class LeRobotFrameReader:
    """Frames of videos, and encoded images out of parquet files; safe to carry into worker processes."""

    is_sequential = True

    def __init__(self, files: tuple[Path, ...], image_columns: tuple[str, ...], tables: FrameTables) -> None:
        self._files, self._columns = files, image_columns
        self._videos = VideoReader(tables)
        self._parquet = _ParquetImages()

    def read(self, reference: np.void) -> np.ndarray:
        """uint8 RGB [height, width, 3] of one IMAGE_REF.

        Raises:
            ValueError: the frame is damaged; the message names the file and the frame or row.
        """
        path, row = self._files[int(reference["file"])], int(reference["offset"])
        if path.suffix != ".parquet":
            return self._videos.read(path, row)
        column = self._columns[int(reference["length"])]
        encoded = self._parquet.read(path, column, row)
        try:
            return decode_image(encoded)
        except ValueError as error:
            raise ValueError(f"{path}, {column}, row {row}: {error}") from error


class _ParquetImages:
    """Encoded images by file, column and row. Parquet gives access to groups of rows only; those used last are kept."""

    def __init__(self) -> None:
        self._starts: dict[Path, np.ndarray] = {}
        self._groups: OrderedDict[tuple[Path, str, int], Any] = OrderedDict()

    def read(self, path: Path, column: str, row: int) -> bytes:
        starts = self._row_group_starts(path)
        group = int(np.searchsorted(starts, row, side="right")) - 1
        value = self._group(path, column, group)[row - int(starts[group])].as_py()
        encoded = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(encoded, bytes):
            raise ValueError(
                f"{path}, {column}, row {row}: expected the bytes of an image, found {value!r}; images beside the file are not read"
            )
        return encoded

    def _row_group_starts(self, path: Path) -> np.ndarray:
        if path not in self._starts:
            metadata = open_parquet(path).metadata
            self._starts[path] = np.cumsum([0, *(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))])[:-1]
        return self._starts[path]

    def _group(self, path: Path, column: str, group: int) -> Any:
        values = self._groups.pop((path, column, group), None)
        if values is None:
            values = open_parquet(path).read_row_group(group, columns=[column], use_threads=False)[column]
        self._groups[path, column, group] = values
        while len(self._groups) > 1 and sum(item.nbytes for item in self._groups.values()) > _ROW_GROUP_BYTES:
            self._groups.popitem(last=False)
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {"_starts": {}, "_groups": OrderedDict()}
