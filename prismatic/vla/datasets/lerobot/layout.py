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
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


@dataclass(frozen=True)
class EpisodePlace:
    """Where one episode lies."""

    number: int
    split: str
    length: int  # steps
    data: Path
    videos: Mapping[str, tuple[Path, float]]  # video feature -> file, and the second at which the episode begins in it
    task: str  # where the steps name none


@dataclass(frozen=True)
class LeRobotLayout:
    """What meta/ says."""

    fps: float
    features: Mapping[str, Mapping[str, Any]]  # name -> {"dtype", "shape", "names"}
    tasks: Mapping[int, str]
    episodes: tuple[EpisodePlace, ...]  # split by split
    fingerprint: str  # changes with the contents of meta/

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(name for name, feature in self.features.items() if feature.get("dtype") in ("video", "image"))

    def is_video(self, camera: str) -> bool:
        return self.features[camera]["dtype"] == "video"


def read_layout(folder: Path) -> LeRobotLayout:
    """The layout of the data set in `folder`.

    Raises:
        ValueError: a file is absent or damaged, or the version is not read; the message names it.
    """
    info = _read_json(folder / "meta" / "info.json")
    version = str(info.get("codebase_version", "")).lstrip("v")
    if version.split(".")[0] not in ("2", "3"):
        raise ValueError(
            f"{folder / 'meta/info.json'} says codebase_version {info.get('codebase_version')!r}; v2.0, v2.1 and v3.0 are read. "
            "Convert the data set with LeRobot's own scripts"
        )
    is_v3 = version.startswith("3")
    try:
        rows = _read_v3_episodes(folder) if is_v3 else _read_jsonl(folder / "meta" / "episodes.jsonl")
        episodes = _v3_places(folder, info, rows) if is_v3 else _v2_places(folder, info, rows)
        tasks = _read_v3_tasks(folder) if is_v3 else _read_v2_tasks(folder)
        ordered = _in_splits(folder, episodes, info.get("splits") or {"train": f"0:{len(episodes)}"})
        return LeRobotLayout(float(info["fps"]), info["features"], tasks, ordered, _fingerprint(folder))
    except KeyError as error:
        raise ValueError(f"{folder / 'meta'} lacks {error}, which LeRobot v{version} writes; copy the data set again") from error


def read_parquet(path: Path, columns: list[str] | None = None) -> Any:
    """The table in `path` (pyarrow.Table).

    Raises:
        ValueError: absent, damaged, or pyarrow is not installed; the message names the file.
    """
    parquet = import_parquet()
    try:
        return parquet.ParquetFile(path).read(columns=columns, use_threads=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy it again (a git-lfs pointer? run git lfs pull)") from error


def import_parquet() -> Any:
    """pyarrow.parquet.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"reading LeRobot data sets needs pyarrow ({error}); install the extra: pip install -e '.[lerobot]'") from error
    return pyarrow.parquet


def _v2_places(folder: Path, info: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[int, EpisodePlace]:
    data, video = info.get("data_path") or _V2_DATA, info.get("video_path") or _V2_VIDEO
    places = {}
    for row in rows:
        number = int(row["episode_index"])
        where = {"episode_index": number, "episode_chunk": number // int(info.get("chunks_size", 1000))}
        videos = {key: (folder / video.format(video_key=key, **where), 0.0) for key in _video_features(info)}
        places[number] = EpisodePlace(number, "", int(row["length"]), folder / data.format(**where), videos, _first(row.get("tasks")))
    return places


def _v3_places(folder: Path, info: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[int, EpisodePlace]:
    data, video = info.get("data_path") or _V3_DATA, info.get("video_path") or _V3_VIDEO
    places = {}
    for row in rows:
        number, videos = int(row["episode_index"]), {}
        for key in _video_features(info):
            where = {name: int(row[f"videos/{key}/{name}"]) for name in ("chunk_index", "file_index")}
            videos[key] = (folder / video.format(video_key=key, **where), float(row[f"videos/{key}/from_timestamp"]))
        file = folder / data.format(chunk_index=int(row["data/chunk_index"]), file_index=int(row["data/file_index"]))
        places[number] = EpisodePlace(number, "", int(row["length"]), file, videos, _first(row.get("tasks")))
    return places


def _video_features(info: Mapping[str, Any]) -> list[str]:
    return [name for name, feature in info["features"].items() if feature.get("dtype") == "video"]


def _first(tasks: Any) -> str:
    return str(tasks[0]) if tasks else ""


def _in_splits(folder: Path, episodes: Mapping[int, EpisodePlace], splits: Mapping[str, str]) -> tuple[EpisodePlace, ...]:
    """The episodes split by split; "a:b" means the episodes with numbers a to b - 1."""
    chosen: dict[int, EpisodePlace] = {}
    for name, span in splits.items():
        start, colon, stop = str(span).partition(":")
        if not (colon and start.strip().isdigit() and stop.strip().isdigit()):
            raise ValueError(f"{folder / 'meta/info.json'}: split {name!r} is {span!r}, expected episode numbers such as '0:50'")
        for number in range(int(start), int(stop)):
            if number not in episodes:
                raise ValueError(
                    f"{folder / 'meta/info.json'}: split {name!r} is {span!r}, but episode {number} is not in meta/episodes; "
                    "correct the split or copy the data set again"
                )
            if number in chosen:
                raise ValueError(f"{folder / 'meta/info.json'}: episode {number} is in the splits {chosen[number].split!r} and {name!r}")
            chosen[number] = EpisodePlace(**{**vars(episodes[number]), "split": name})
    if len(chosen) < len(episodes):
        left_out = len(episodes) - len(chosen)
        logger.warning("%s: %d of %d episodes are in no split of info.json and are left out", folder, left_out, len(episodes))
    return tuple(chosen.values())


def _read_v3_episodes(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise ValueError(f"{folder / 'meta/episodes'} holds no parquet file; copy the data set again completely")
    rows: list[dict[str, Any]] = []
    for file in files:
        names = [name for name in import_parquet().ParquetFile(file).schema_arrow.names if not name.startswith("stats/")]
        rows += read_parquet(file, names).to_pylist()
    return rows


def _read_v2_tasks(folder: Path) -> dict[int, str]:
    path = folder / "meta" / "tasks.jsonl"
    return {int(row["task_index"]): str(row["task"]) for row in _read_jsonl(path)} if path.is_file() else {}


def _read_v3_tasks(folder: Path) -> dict[int, str]:
    """The text is the index of a pandas table, so its column is called task or, unnamed, __index_level_0__."""
    path = folder / "meta" / "tasks.parquet"
    if not path.is_file():
        return {}
    table = read_parquet(path)
    column = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
    if column is None or "task_index" not in table.column_names:
        raise ValueError(f"{path} has the columns {table.column_names}, expected task_index and task")
    return dict(zip(table["task_index"].to_pylist(), map(str, table[column].to_pylist()), strict=True))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is absent; copy the data set again completely") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy the data set again") from error


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise ValueError(f"{path} is absent; copy the data set again completely") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON lines ({error}); copy the data set again") from error


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted((folder / "meta").rglob("*")):
        if path.is_file() and "stats" not in path.name:
            digest.update(path.read_bytes())
    return digest.hexdigest()
