"""A LeRobot folder (v2.x, v3) -> raw episodes in RLDS naming. Letters: T steps.

    feature                     key in the trajectory
    action (or actions)         "action"
    observation.state           "observation" -> "state", also under its full name
    observation.images.top      "observation" -> "top", "images.top" and the full name: IMAGE_REF [T]
    state, image, ...           "observation" -> the same name, also at the top
    task_index                  "language_instruction": the text of the task

Frames are videos (an IMAGE_REF's offset is the frame number) or images in the parquet file (its row; "length" is the number of the
camera). Only the cameras that the entry names are looked up.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.episodes import IMAGE_REF, RawEpisode, Trajectory
from prismatic.vla.datasets.lerobot.layout import EpisodePlace, LeRobotLayout, import_parquet, read_layout, read_parquet
from prismatic.vla.datasets.lerobot.video import VideoReader
from prismatic.vla.datasets.repairs import Repairs
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.images import decode_image

_PREFIXES = ("observation.images.", "observation.")
_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_ROW_GROUP_BYTES = 256 * 2**20  # encoded images kept per process


class LeRobotSource:
    """The episodes of one LeRobot folder."""

    def __init__(self, folder: Path, entry: DatasetEntry) -> None:
        """Reads meta/.

        Raises:
            ValueError: a file is absent, damaged or of another version; the message names it.
        """
        self.folder, self.repairs = folder, Repairs()
        self._layout = read_layout(folder)
        self._cameras = _wanted_cameras(self._layout, entry)
        self.files = _files(self._layout.episodes, self._cameras)
        self._numbers = {path: number for number, path in enumerate(self.files)}
        self.layout = json.dumps([self._layout.fingerprint, self._cameras])
        self.num_episodes = len(self._layout.episodes)
        self._videos = VideoReader()

    def episodes(self) -> Iterator[RawEpisode]:
        """All episodes, split by split.

        Raises:
            ValueError: a file is damaged, or holds other steps than meta/ says; the message names it.
        """
        numeric = [name for name, feature in self._layout.features.items() if feature.get("dtype") not in ("video", "image")]
        path, table = None, None
        for place in self._layout.episodes:
            if place.data != path:
                path, table = place.data, _Table(place.data, numeric)
            assert table is not None
            name = f"{place.data}, episode {place.number}"
            yield RawEpisode(place.split, name, self._trajectory(name, place, table))

    def frame_reader(self) -> LeRobotFrameReader:
        """What decodes the frames of the videos and the images of the parquet files."""
        images = tuple(camera for camera in self._layout.cameras if not self._layout.is_video(camera))
        return LeRobotFrameReader(self.files, images)

    def _trajectory(self, name: str, place: EpisodePlace, table: _Table) -> Trajectory:
        rows = table.rows_of(place, name)
        values = {column: array[rows] for column, array in table.columns.items()}
        trajectory: Trajectory = {"observation": {}}
        for column, array in values.items():
            _insert(trajectory, column, array)
        for camera in self._cameras:
            if self._layout.is_video(camera):
                references = self._video_references(name, place, camera, values)
            else:
                references = self._image_references(place, camera, rows)
            _insert(trajectory, camera, references)
        _name_action(trajectory)
        texts = self._instructions(place, values, len(rows))
        if texts is not None:
            trajectory["language_instruction"] = texts
        return trajectory

    def _video_references(self, name: str, place: EpisodePlace, camera: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """The frames shown at the time stamps of the steps."""
        path, start = place.videos[camera]
        seconds = values["timestamp"].ravel() if "timestamp" in values else np.arange(place.length) / self._layout.fps
        wanted = start + np.asarray(seconds, np.float64)
        table = self._videos.table(path)
        frames = table.nearest(wanted)
        away = np.abs(table.seconds[frames] - wanted)
        if away.max(initial=0) > 0.5 / self._layout.fps:
            step = int(away.argmax())
            raise ValueError(
                f"{name}: step {step} is at {wanted[step]:.3f} s of {path}, the nearest of its {len(table.seconds)} frames is "
                f"{away[step]:.3f} s away; the video does not belong to the data or is cut off: copy both again"
            )
        references = np.zeros(len(frames), IMAGE_REF)
        references["file"], references["offset"] = self._numbers[path], frames
        return references

    def _image_references(self, place: EpisodePlace, camera: str, rows: np.ndarray) -> np.ndarray:
        images = [name for name in self._layout.cameras if not self._layout.is_video(name)]
        references = np.zeros(len(rows), IMAGE_REF)
        references["file"], references["offset"], references["length"] = self._numbers[place.data], rows, images.index(camera)
        return references

    def _instructions(self, place: EpisodePlace, values: Mapping[str, np.ndarray], length: int) -> np.ndarray | None:
        """One text per step; None where meta/ has no tasks, so that a column of that name stays."""
        if not self._layout.tasks and not place.task:
            return None
        numbers = values.get("task_index", np.full(length, -1)).ravel().tolist()
        return np.array([self._layout.tasks.get(int(number), place.task) for number in numbers], dtype=object)


class LeRobotFrameReader:
    """Frames of videos, and encoded images out of parquet files; safe to carry into worker processes."""

    def __init__(self, files: tuple[Path, ...], image_columns: tuple[str, ...]) -> None:
        self._files, self._columns = files, image_columns
        self.is_sequential = any(path.suffix != ".parquet" for path in files)
        self._videos = VideoReader()
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
            metadata = import_parquet().ParquetFile(path).metadata
            self._starts[path] = np.cumsum([0, *(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))])[:-1]
        return self._starts[path]

    def _group(self, path: Path, column: str, group: int) -> Any:
        values = self._groups.pop((path, column, group), None)
        if values is None:
            values = import_parquet().ParquetFile(path).read_row_group(group, columns=[column], use_threads=False)[column]
        self._groups[path, column, group] = values
        while len(self._groups) > 1 and sum(item.nbytes for item in self._groups.values()) > _ROW_GROUP_BYTES:
            self._groups.popitem(last=False)
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {"_starts": {}, "_groups": OrderedDict()}


class _Table:
    """The columns of one data file that are numbers or texts."""

    def __init__(self, path: Path, names: list[str]) -> None:
        present = column_names(path)
        table = read_parquet(path, [name for name in dict.fromkeys([*names, *_BOOKKEEPING]) if name in present])
        self._path = path
        columns = {name: _to_array(table[name]) for name in table.column_names}
        self.columns = {name: array for name, array in columns.items() if array is not None}

    def rows_of(self, place: EpisodePlace, name: str) -> np.ndarray:
        numbers = self.columns.get("episode_index")
        if numbers is None:
            raise ValueError(f"{self._path} has no column episode_index; it has {sorted(self.columns)}")
        rows = np.flatnonzero(numbers.ravel() == place.number)
        if len(rows) != place.length:
            raise ValueError(f"{name}: {len(rows)} steps in the file, meta/ says {place.length}; copy the data set again")
        return rows


def column_names(path: Path) -> set[str]:
    """The columns of a parquet file.

    Raises:
        ValueError: the file is absent or damaged.
    """
    try:
        return set(import_parquet().ParquetFile(path).schema_arrow.names)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy it again (a git-lfs pointer? run git lfs pull)") from error


def _to_array(column: Any) -> np.ndarray | None:
    """[T], [T, D] or object [T] of texts; None for anything else (structures, rows of changing width)."""
    import pyarrow

    values, length = column.combine_chunks(), len(column)
    while pyarrow.types.is_list(values.type) or pyarrow.types.is_large_list(values.type) or pyarrow.types.is_fixed_size_list(values.type):
        values = values.flatten()
    if pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type):
        return np.array(values.to_pylist(), dtype=object) if len(values) == length else None
    is_number = pyarrow.types.is_integer(values.type) or pyarrow.types.is_floating(values.type) or pyarrow.types.is_boolean(values.type)
    if not is_number or (length and len(values) % length):
        return None
    array = values.to_numpy(zero_copy_only=False)
    return array if len(values) == length else array.reshape(length, -1)


def _wanted_cameras(layout: LeRobotLayout, entry: DatasetEntry) -> tuple[str, ...]:
    """The features that the entry's cameras name; all, where one is not found (a transform may rename them, else the index says so)."""
    by_name: dict[str, str] = {}
    for feature in layout.cameras:
        for name in reversed(_short_names(feature)):
            by_name.setdefault(name, feature)
    by_name |= {feature: feature for feature in layout.cameras}
    found = [by_name.get(key) for key in entry.cameras.values()]
    wanted = dict.fromkeys(feature for feature in found if feature is not None)
    return tuple(wanted) if None not in found else layout.cameras


def _files(episodes: tuple[EpisodePlace, ...], cameras: tuple[str, ...]) -> tuple[Path, ...]:
    files: dict[Path, None] = {}
    for place in episodes:
        files[place.data] = None
        files |= {place.videos[camera][0]: None for camera in cameras if camera in place.videos}
    absent = [path for path in files if not path.is_file()]
    if absent:
        raise ValueError(f"{absent[0]} is absent ({len(absent)} files in all), though meta/ lists it; copy the data set again completely")
    return tuple(files)


def _short_names(feature: str) -> list[str]:
    """ "observation.images.top" -> ["top", "images.top", "observation.images.top"]."""
    return [*(feature.removeprefix(prefix) for prefix in _PREFIXES if feature.startswith(prefix)), feature]


def _insert(trajectory: Trajectory, feature: str, values: np.ndarray) -> None:
    observation = trajectory["observation"]
    if not feature.startswith("observation."):
        trajectory[feature] = values
        if feature.startswith("action") or feature in _BOOKKEEPING or feature.startswith(("next.", "language")):
            return
    observation[feature] = values
    for name in _short_names(feature):
        observation.setdefault(name, values)


def _name_action(trajectory: Trajectory) -> None:
    if "action" not in trajectory and "actions" in trajectory:
        trajectory["action"] = trajectory.pop("actions")
