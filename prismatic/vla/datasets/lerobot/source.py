"""A LeRobot folder (v2.x, v3) -> raw episodes in RLDS naming. Letters: T steps.

    feature                     key in the trajectory
    action, action.joints, ...  the same (actions: "action")
    observation.state           "observation" -> "state", also under its full name
    observation.images.top      "observation" -> "top", "images.top" and the full name: IMAGE_REF [T]
    state, state.joints, ...    "observation" -> the same name, also at the top
    parts of modality.json      "action.left_arm", "observation" -> "state.left_arm"
    task_index and the like     "language_instruction": the text of the task

Frames are videos or images in the parquet file, see `lerobot.frames`. Only the cameras that the entry names are looked up. What is untidy
and certain in its meaning is mended and counted in `repairs`; docs/recordings.md lists it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from prismatic.vla.datasets.broken_files import file_problem
from prismatic.vla.datasets.description import SAME_HZ, Description, RecordedCamera
from prismatic.vla.datasets.episodes import IMAGE_REF, RawEpisode, Trajectory
from prismatic.vla.datasets.lerobot.alignment import MisalignedError, align
from prismatic.vla.datasets.lerobot.cameras import Cameras, short_names
from prismatic.vla.datasets.lerobot.columns import describe_columns
from prismatic.vla.datasets.lerobot.files import visible_files
from prismatic.vla.datasets.lerobot.frame_tables import FrameTables
from prismatic.vla.datasets.lerobot.frames import LeRobotFrameReader
from prismatic.vla.datasets.lerobot.instructions import find_instructions
from prismatic.vla.datasets.lerobot.layout import EpisodePlace, LeRobotLayout, is_image, read_layout
from prismatic.vla.datasets.lerobot.tables import DataFiles, Table
from prismatic.vla.datasets.repairs import Repairs
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry

_READER_VERSION = 3  # changes where the same files give other episodes
_FEWEST_TIMED = 4  # steps, whose time stamps say a rate
_OTHER_RATE = (
    "episodes whose time stamps say another rate than fps of info.json, or of the entry, are taken at that fps; "
    "if the time stamps are right, write their rate into fps of the entry"
)
_TWICE = "episodes in which steps have the same frame_index are taken as they are; look whether steps were stored twice"
_GAPS = "episodes whose frame_index has gaps are read without them: what comes after a gap is taken for the next step"
_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")


class LeRobotSource:
    """The episodes of one LeRobot folder."""

    def __init__(self, folder: Path, entry: DatasetEntry) -> None:
        """Reads meta/ and looks which files there are.

        Raises:
            ValueError: a file is absent, damaged or of another version, or no episode is left; the message names it.
        """
        self.folder, self.repairs = folder, Repairs()
        self._layout, self._entry = read_layout(folder, self.repairs), entry
        self._cameras = Cameras(self._layout, entry, self.repairs)
        places = _with_data(self._layout, self.repairs)
        self._places = self._cameras.with_videos(places)
        self.files = (*_data_files(self._layout), *self._cameras.files(self._places))
        self._numbers = {path: number for number, path in enumerate(self.files)}
        self.layout = json.dumps([_READER_VERSION, self._layout.fingerprint, self._cameras.names, entry.fps])
        self.num_episodes = len(self._places)
        self._images = tuple(camera for camera in self._layout.cameras if not self._layout.is_video(camera))
        self._tables = FrameTables(folder)
        self.frame_layout = json.dumps(self._images)

    def episodes(self) -> Iterator[RawEpisode]:
        """All episodes, split by split; those whose file is damaged, or whose steps and frames contradict each other, with that problem."""
        files = DataFiles(_data_files(self._layout), self._image_columns(), self.repairs)
        for place in self._places:
            name = f"{place.data or self.folder}, episode {place.number}"
            try:
                table, rows = files.find(place, name)
                yield RawEpisode(place.split, name, self._trajectory(name, place, table, rows))
            except ValueError as error:
                yield RawEpisode(place.split, name, {}, problem=str(error))
        self._tables.save()

    def frame_reader(self) -> LeRobotFrameReader:
        """What decodes the frames of the videos and the images of the parquet files."""
        return LeRobotFrameReader(self.files, self._images, self._tables)

    def _image_columns(self) -> tuple[str, ...]:
        return tuple(name for name, feature in self._layout.features.items() if is_image(feature))

    def _trajectory(self, name: str, place: EpisodePlace, table: Table, rows: np.ndarray) -> Trajectory:
        values = {column: array[rows] for column, array in table.columns.items()}
        trajectory: Trajectory = {"observation": {}}
        for column, array in (*values.items(), *self._parts(values)):
            _insert(trajectory, column, array)
        _name_action(trajectory)
        self._refuse_gaps(name, table, rows)
        self._compare_rates(name, values.get("timestamp"))
        self._count_steps(name, values.get("frame_index"))
        for camera in self._cameras.names:
            if self._layout.is_video(camera):
                _insert(trajectory, camera, self._video_references(name, place, camera, values, len(rows)))
            elif self._has_images(table, camera):
                _insert(trajectory, camera, self._image_references(table, camera, rows))
        for alias, camera in self._layout.modality.cameras.items():
            if camera in trajectory["observation"]:
                trajectory["observation"].setdefault(alias, trajectory["observation"][camera])
        texts = find_instructions(place, name, self._layout.tasks, values, len(rows), self.repairs)
        if texts is not None:
            trajectory["language_instruction"] = texts
        return trajectory

    def _parts(self, values: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """The columns that modality.json cuts out of others."""
        for name, part in self._layout.modality.parts.items():
            whole = values.get(part.column)
            if whole is not None and whole.ndim == 2 and 0 <= part.start < part.stop <= whole.shape[1]:
                yield name, whole[:, part.start : part.stop]

    def _video_references(
        self, name: str, place: EpisodePlace, camera: str, values: Mapping[str, np.ndarray], num_steps: int
    ) -> np.ndarray:
        """The frames shown during the steps."""
        span = place.videos[camera]
        assert span.path is not None, "episodes without video are left out"
        times = values.get("timestamp")
        if times is not None and (times.size != num_steps or times.dtype == object or not np.isfinite(times).all()):
            self.repairs.note("episodes without time stamps at some steps: the frames are taken by number", name)
            times = None
        try:
            alignment = align(self._tables[span.path], span, None if times is None else times.ravel(), num_steps, self._layout.fps)
        except MisalignedError as error:
            raise ValueError(f"{name}: {error} ({span.path})") from error
        for what, found in alignment.remarks:
            self.repairs.note(what, f"{name}, {camera}: {found}")
        references = np.zeros(num_steps, IMAGE_REF)
        references["file"], references["offset"] = self._numbers[span.path], alignment.frames
        return references

    def _compare_rates(self, name: str, times: np.ndarray | None) -> None:
        """Says so where steps follow each other faster or slower than the rate that counts: robots are driven at that."""
        if times is None or times.dtype == object or times.size < _FEWEST_TIMED:
            return
        interval = float(np.median(np.diff(times.ravel().astype(np.float64))))
        hz = self._entry.fps or self._layout.fps
        if interval > 0 and abs(1 / (interval * hz) - 1) > SAME_HZ:  # NaN is neither
            self.repairs.note(_OTHER_RATE, f"{name}: {1 / interval:.4g} Hz by its time stamps, {hz:g} Hz said")

    def _count_steps(self, name: str, frames: np.ndarray | None) -> None:
        """Says so where steps have one number twice, or some are not there; one that is the same throughout numbers nothing."""
        if frames is None or frames.dtype == object:
            return
        numbers, counts = np.unique(frames, return_counts=True)
        if 1 < len(numbers) < frames.size:
            self.repairs.note(_TWICE, f"{name}: frame_index {numbers[counts.argmax()]:g} {counts.max()} times, {frames.size} steps")
        distances = np.diff(numbers)  # of a set that keeps every n-th step they are all n
        if len(distances) and distances.max() > distances.min():
            place = int(distances.argmax())
            self.repairs.note(_GAPS, f"{name}: {numbers[place + 1]:g} follows on {numbers[place]:g}, {frames.size} steps")

    def _image_references(self, table: Table, camera: str, rows: np.ndarray) -> np.ndarray:
        references = np.zeros(len(rows), IMAGE_REF)
        references["file"], references["offset"] = self._numbers[table.path], rows
        references["length"] = self._images.index(camera)
        return references

    def _has_images(self, table: Table, camera: str) -> bool:
        if camera in table.stored:
            return True
        if self._cameras.is_named:
            raise ValueError(f"{table.path} has no column {camera}, which {self._layout.info} declares; name another camera in the entry")
        self.repairs.note("cameras that no column of the data files holds are left out", f"{camera}, {table.path}")
        return False

    def _refuse_gaps(self, name: str, table: Table, rows: np.ndarray) -> None:
        """Steps at which a column that the entry joins has no value, or that cannot be joined, are named as such."""
        wanted = {*self._entry.action_keys, *(key for key in self._entry.state_obs_keys if key is not None)}
        for column in (*table.nulls, *table.problems):
            if wanted.isdisjoint(_offered_names(column)):
                continue
            problem = table.problems.get(column)
            if problem is not None:
                raise ValueError(f"{name}: {column!r} {problem}; one number per dimension is needed at each step ({table.path})")
            empty = np.flatnonzero(table.nulls[column][rows])
            if len(empty):
                raise ValueError(
                    f"{name}: {column!r} has no value (null) at step {empty[0]} ({len(empty)} such steps); record the episode again, "
                    "or leave it out with splits in meta/info.json"
                )


def describe_lerobot(folder: Path) -> Description:
    """What meta/ of a LeRobot folder says, and which of its cameras have their files.

    Raises:
        ValueError: meta/ cannot be read.
    """
    layout = read_layout(folder, Repairs())
    cameras = []
    for name, feature in layout.features.items():
        if not is_image(feature):
            continue
        spans = {place.videos[name].path for place in layout.episodes if name in place.videos}
        present = sum(path is not None and file_problem(path) is None for path in spans)
        cameras.append(RecordedCamera(short_names(name)[0], len(spans), present, name not in layout.cameras))
    columns = describe_columns(folder, layout.features, layout.modality)
    return Description(layout.fps, layout.robot, columns, tuple(cameras))


def _data_files(layout: LeRobotLayout) -> tuple[Path, ...]:
    """All parquet files that there are."""
    return tuple(visible_files(layout.data_root, ".parquet")) if layout.data_root.is_dir() else ()


def _with_data(layout: LeRobotLayout, repairs: Repairs) -> list[EpisodePlace]:
    """The episodes whose data can be there.

    Raises:
        ValueError: the data of all are absent, or pointers.
    """
    problems = {path: file_problem(path) for path in {place.data for place in layout.episodes if place.data is not None}}
    bad = [place for place in layout.episodes if place.data is not None and problems[place.data] is not None]
    if not bad:
        return list(layout.episodes)
    files = DataFiles(_data_files(layout), (), repairs)
    lost = [place for place in bad if not files.holds(place.number)]
    if not lost:
        return list(layout.episodes)
    first = lost[0].data
    assert first is not None
    found = f"{first} {problems[first]}"
    if len(lost) == len(layout.episodes):
        num_files = len({place.data for place in lost})
        raise ValueError(f"{found}; so it is with all {num_files} data files" if num_files > 1 else found)
    repairs.note("episodes without a data file are left out", f"episode {lost[0].number}: {found}", len(lost))
    numbers = {place.number for place in lost}
    return [place for place in layout.episodes if place.number not in numbers]


def _offered_names(feature: str) -> set[str]:
    names = {feature, *short_names(feature)}
    return names | {"action"} if feature == "actions" else names


def _insert(trajectory: Trajectory, feature: str, values: np.ndarray) -> None:
    observation = trajectory["observation"]
    if not feature.startswith("observation."):
        trajectory.setdefault(feature, values)
        if feature.startswith("action") or feature in _BOOKKEEPING or feature.startswith(("next.", "language", "annotation.")):
            return
    observation[feature] = values
    for name in short_names(feature):
        observation.setdefault(name, values)


def _name_action(trajectory: Trajectory) -> None:
    if "action" not in trajectory and "actions" in trajectory:
        trajectory["action"] = trajectory.pop("actions")
