"""The files of a LeRobot data set, v2.x (a file per episode) or v3 (several episodes per file).

                 v2.x                                            v3
    meta/        info.json, episodes.jsonl, tasks.jsonl          info.json, episodes/chunk-000/file-000.parquet, tasks.parquet
    data/        chunk-000/episode_000000.parquet                chunk-000/file-000.parquet
    videos/      chunk-000/<camera>/episode_000000.mp4           <camera>/chunk-000/file-000.mp4

info.json says fps, features, path templates and splits ("train": "0:50", episode numbers). Source of the layout: huggingface/lerobot,
datasets/{utils,dataset_metadata}.py and its documentation of LeRobotDataset v3.0.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prismatic.vla.datasets.lerobot.columns import Modality, feature_width, read_modality
from prismatic.vla.datasets.lerobot.files import open_parquet, read_json, read_json_lines, read_parquet, visible_files
from prismatic.vla.datasets.lerobot.splits import divide_episodes
from prismatic.vla.datasets.repairs import Repairs

_V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_OTHER_NAMES = {"videos": "video", "video": "videos"}


@dataclass(frozen=True)
class VideoSpan:
    """Where the frames of one camera lie during one episode."""

    path: Path | None  # None: meta/ does not say
    start: float | None = 0.0  # seconds from the beginning of the file
    stop: float | None = None  # behind the last frame; None: the end of the file


@dataclass(frozen=True)
class EpisodePlace:
    """Where one episode lies."""

    number: int
    split: str
    length: int | None  # steps, if meta/ says
    data: Path | None  # None: meta/ does not say
    videos: Mapping[str, VideoSpan]  # of each video feature
    tasks: tuple[str, ...]  # of the episode, as meta/ lists them


@dataclass(frozen=True)
class LeRobotLayout:
    """What meta/ says."""

    info: Path  # meta/info.json
    fps: float
    robot: str
    features: Mapping[str, Mapping[str, Any]]  # name -> {"dtype", "shape", "names"}
    modality: Modality
    tasks: Mapping[int, str]
    episodes: tuple[EpisodePlace, ...]  # split by split
    data_root: Path  # holds the data files, at any depth
    fingerprint: str  # changes with the contents of meta/

    @property
    def cameras(self) -> tuple[str, ...]:
        """The features that are colour images."""
        return tuple(
            name for name, feature in self.features.items() if feature.get("dtype") in ("video", "image") and not is_depth(feature)
        )

    def is_video(self, camera: str) -> bool:
        return self.features[camera].get("dtype") == "video"


def is_image(feature: Mapping[str, Any]) -> bool:
    """Whether a feature is pictures, as a video or within the data files."""
    return feature.get("dtype") in ("video", "image")


def is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether a video or image feature holds distances: LeRobot has called the flag in three ways."""
    said = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return any(bool(said.get(name)) for name in ("is_depth_map", "video.is_depth_map"))


def read_layout(folder: Path, repairs: Repairs) -> LeRobotLayout:
    """The layout of the data set in `folder`; what is mended in it is counted in `repairs`.

    Raises:
        ValueError: a file is absent or damaged, or the version is not read; the message names it.
    """
    path = folder / "meta" / "info.json"
    info = read_json(path)
    is_v3 = _is_v3(folder, info, repairs)
    try:
        features, fps = _checked_features(path, info["features"]), _rate(path, info["fps"])
        templates = _Templates(folder, info, is_v3, repairs)
        places = _places(
            folder, templates, _read_v3_rows(folder) if is_v3 else read_json_lines(folder / "meta" / "episodes.jsonl"), repairs
        )
        places = _complete_spans(places, fps)
        tasks = _read_tasks(folder)
    except KeyError as error:
        raise ValueError(f"{path.parent} lacks {error}, which LeRobot writes; add it, or download meta/ again") from error
    except (TypeError, AttributeError, ValueError) as error:
        if str(folder) in str(error):
            raise
        raise ValueError(f"{path.parent} is not as LeRobot writes it ({error}); correct it, or download meta/ again") from error
    splits = divide_episodes(path, info.get("splits"), sorted(places), repairs)
    return LeRobotLayout(
        info=path,
        fps=fps,
        robot=str(info.get("robot_type") or ""),
        features=features,
        modality=read_modality(folder, features),
        tasks=tasks,
        episodes=tuple(replace(places[number], split=split) for number, split in splits.items()),
        data_root=folder / Path(templates.data).parts[0],
        fingerprint=_fingerprint(folder),
    )


def _checked_features(info: Path, features: Any) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(features, Mapping):
        raise ValueError(f"{info} says features {features!r}, expected an object {{name: {{dtype, shape, names}}}}")
    for name, said in features.items():
        try:
            feature_width(said)
        except (AttributeError, TypeError, OverflowError) as error:
            raise ValueError(f"{info} says of the feature {name!r} {said!r}, expected an object {{dtype, shape, names}}") from error
    return features


def _rate(info: Path, said: Any) -> float:
    """Steps per second [Hz]."""
    try:
        fps = float(said)
    except (TypeError, ValueError):
        fps = 0.0
    if not 0 < fps < math.inf:
        raise ValueError(f"{info} says fps {said!r}, which is no rate; write the number of steps per second")
    return fps


def _is_v3(folder: Path, info: Mapping[str, Any], repairs: Repairs) -> bool:
    said, has_v3 = info.get("codebase_version"), (folder / "meta" / "episodes").is_dir()
    if said is None:
        return has_v3
    major = str(said).lstrip("v").split(".")[0]
    if major not in ("2", "3"):
        raise ValueError(
            f"{folder / 'meta/info.json'} says codebase_version {said!r}; v2.0, v2.1 and v3.0 are read. "
            "Convert the data set with LeRobot's own scripts"
        )
    has_v2 = (folder / "meta" / "episodes.jsonl").is_file()
    if has_v2 != has_v3 and has_v3 != (major == "3"):
        repairs.note(
            "files of meta/ that are of another version than info.json says are read as what they are",
            f"{folder / 'meta/info.json'}: {said}",
        )
        return has_v3
    return major == "3"


class _Templates:
    """The path templates of info.json, filled in for an episode's row."""

    def __init__(self, folder: Path, info: Mapping[str, Any], is_v3: bool, repairs: Repairs) -> None:
        self.folder, self.is_v3, self._chunks_size, self._repairs = folder, is_v3, int(info.get("chunks_size") or 1000), repairs
        self._listed: dict[str, dict[str, list[Path]]] = {}
        self.data = info.get("data_path") or (_V3_DATA if is_v3 else _V2_DATA)
        self.video = info.get("video_path") or (_V3_VIDEO if is_v3 else _V2_VIDEO)
        self.cameras = [name for name, feature in info["features"].items() if feature.get("dtype") == "video"]
        root = Path(self.video).parts[0]
        other = _OTHER_NAMES.get(root)
        if other is not None and not (folder / root).exists() and (folder / other).is_dir():
            repairs.note(
                f"the folder {root}/ is called {other}/: videos are taken from there", f"video_path of {folder / 'meta/info.json'}"
            )
            self.video = other + self.video[len(root) :]

    def data_file(self, row: Mapping[str, Any]) -> Path | None:
        """None: the row does not say."""
        path = self._filled(self.data, self._place(row, "data"), "data_path")
        return path if self.is_v3 or path is None or path.is_file() else self._found(path, "")

    def span(self, row: Mapping[str, Any], camera: str) -> VideoSpan:
        """The camera's part of the episode in that row."""
        prefix = f"videos/{camera}"
        path = self._filled(self.video, self._place(row, prefix), "video_path", video_key=camera)
        if not self.is_v3:
            return VideoSpan(path if path is None or path.is_file() else self._found(path, camera))
        if path is None:
            path = self._only(camera, row)
        return VideoSpan(path, *(_number(row.get(f"{prefix}/{name}_timestamp")) for name in ("from", "to")))

    def _files_of(self, camera: str) -> dict[str, list[Path]]:
        """name -> the video files of a camera, or, for "", the data files, that are called so, whatever folder they are in."""
        if camera not in self._listed:
            template = self.video if camera else self.data
            root, found = self.folder / Path(template).parts[0], defaultdict(list)
            for path in visible_files(root, Path(template).suffix) if root.is_dir() else []:
                if not camera or camera in path.parts:
                    found[path.name].append(path)
            self._listed[camera] = found
        return self._listed[camera]

    def _only(self, camera: str, row: Mapping[str, Any]) -> Path | None:
        """The camera's file, if there is just one."""
        files = [path for same in self._files_of(camera).values() for path in same]
        if len(files) != 1:
            return None
        where = f"episode {row['episode_index']}, {files[0]}"
        self._repairs.note("videos whose file meta/ does not name are taken from the camera's only file", where)
        return files[0]

    def _found(self, path: Path, camera: str) -> Path:
        """The only file of that name, where it is in another folder than the template says and its name has the episode's number."""
        same = self._files_of(camera).get(path.name, [])
        if len(same) != 1 or "episode_index" not in Path(self.video if camera else self.data).name:
            return path
        self._repairs.note("files that lie in another folder than info.json says are taken from there", f"{same[0]} instead of {path}")
        return same[0]

    def _place(self, row: Mapping[str, Any], prefix: str) -> dict[str, int] | None:
        number = int(row["episode_index"])
        if not self.is_v3:
            return {"episode_index": number, "episode_chunk": number // self._chunks_size}
        chunk, file = (_number(row.get(f"{prefix}/{name}_index")) for name in ("chunk", "file"))
        return None if chunk is None or file is None else {"chunk_index": int(chunk), "file_index": int(file)}

    def _filled(self, template: str, place: dict[str, int] | None, field: str, **more: str) -> Path | None:
        if place is None:
            return None
        try:
            return self.folder / template.format(**place, **more)
        except (KeyError, ValueError, IndexError) as error:
            known = ", ".join([*more, *place])
            message = (
                f"{self.folder / 'meta/info.json'}: {field} is {template!r}, which cannot be filled in ({error!r}); known fields: {known}"
            )
            raise ValueError(message) from error


def _number(value: Any) -> float | None:
    """None for what pandas and LeRobot write where there is no number."""
    return None if value is None or value != value else float(value)


def _places(folder: Path, templates: _Templates, rows: list[dict[str, Any]], repairs: Repairs) -> dict[int, EpisodePlace]:
    places: dict[int, EpisodePlace] = {}
    for row in rows:
        number = int(row["episode_index"])
        if number in places:
            repairs.note("episodes that meta/ lists twice are taken as listed last", f"episode {number} of {folder / 'meta'}")
        length = _number(row.get("length"))
        videos = {camera: templates.span(row, camera) for camera in templates.cameras}
        tasks = row.get("tasks", row.get("task")) or ()
        texts = (tasks,) if isinstance(tasks, str) else tuple(str(text) for text in tasks)
        places[number] = EpisodePlace(number, "", None if length is None else int(length), templates.data_file(row), videos, texts)
    return places


def _complete_spans(places: dict[int, EpisodePlace], fps: float) -> dict[int, EpisodePlace]:
    """Spans whose beginning or end meta/ leaves out follow from their neighbours in the file."""
    by_file: dict[tuple[str, Path], list[EpisodePlace]] = defaultdict(list)
    for number in sorted(places):
        for camera, span in places[number].videos.items():
            if span.path is not None:
                by_file[camera, span.path].append(places[number])
    completed = {number: dict(place.videos) for number, place in places.items()}
    for (camera, _), members in by_file.items():
        end: float | None = 0.0
        for place in members:
            span = place.videos[camera]
            start = end if span.start is None else span.start
            stop = span.stop
            end = stop if stop is not None else None if start is None or place.length is None else start + place.length / fps
            completed[place.number][camera] = replace(span, start=start, stop=stop)
        starts = sorted({start for place in members if (start := completed[place.number][camera].start) is not None})
        for place in members:
            span = completed[place.number][camera]
            if span.stop is None and span.start is not None:
                following = next((start for start in starts if start > span.start), None)
                completed[place.number][camera] = replace(span, stop=following)
    return {number: replace(place, videos=completed[number]) for number, place in places.items()}


def _read_v3_rows(folder: Path) -> list[dict[str, Any]]:
    files = visible_files(folder / "meta" / "episodes", ".parquet")
    if not files:
        raise ValueError(f"{folder / 'meta/episodes'} holds no parquet file; download meta/ again")
    rows: list[dict[str, Any]] = []
    for file in files:
        names = [name for name in open_parquet(file).schema_arrow.names if not name.startswith("stats/")]
        rows += read_parquet(file, names).to_pylist()
    return rows


def _read_tasks(folder: Path) -> dict[int, str]:
    """task_index -> text, from whichever file there is."""
    table, lines = folder / "meta" / "tasks.parquet", folder / "meta" / "tasks.jsonl"
    if table.is_file():
        return _distinct(table, _table_of_tasks(table))
    rows = read_json_lines(lines) if lines.is_file() else []
    return _distinct(lines, ((int(row.get("task_index", number)), str(row["task"])) for number, row in enumerate(rows)))


def _distinct(path: Path, tasks: Iterable[tuple[int, str]]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for number, text in tasks:
        if texts.setdefault(number, text) != text:
            raise ValueError(f"{path}: task_index {number} is {texts[number]!r} and {text!r}; give each text a number of its own")
    return texts


def _table_of_tasks(path: Path) -> Iterator[tuple[int, str]]:
    """The text is the index of a pandas table, so its column is called task or, unnamed, __index_level_0__."""
    table = read_parquet(path)
    column = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
    if column is None or "task_index" not in table.column_names:
        raise ValueError(f"{path} has the columns {table.column_names}, expected task_index and task")
    yield from zip(table["task_index"].to_pylist(), map(str, table[column].to_pylist()), strict=True)


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in visible_files(folder / "meta", ""):
        if "stats" not in path.name:
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()
