"""Writes small LeRobot folders in the documented layouts of v2.1 and v3.0, with real parquet and real mp4."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rlds_writer import smooth_image

FPS = 10


@dataclass
class LeRobotEpisode:
    actions: np.ndarray  # float32 [T, A]
    state: np.ndarray  # float32 [T, P]
    task: str
    images: Mapping[str, np.ndarray] = field(default_factory=dict)  # feature -> uint8 [T, H, W, 3]


def make_episode(
    length: int,
    seed: int,
    task: str = "push",
    cameras: Sequence[str] = ("observation.images.top", "observation.images.wrist"),
    dim: int = 4,
) -> LeRobotEpisode:
    rng = np.random.default_rng(seed)
    images = {
        camera: np.stack([smooth_image(1000 * seed + 100 * number + step, 48, 64) for step in range(length)])
        for number, camera in enumerate(cameras)
    }
    rows = rng.normal(size=(2, length, dim)).astype(np.float32)
    return LeRobotEpisode(rows[0], rows[1], task, images)


def encode_video(path: Path, images: np.ndarray, codec: str = "libx264", gop: int = 12, fps: int = FPS, **options: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *images.shape[1:3], "yuv420p", gop
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())


def decode_video(path: Path) -> np.ndarray:
    """All frames in order, from the start: what random access must reproduce."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def write_v2(folder: Path, episodes: Sequence[LeRobotEpisode], splits: Mapping[str, str] | None = None, as_images: bool = False) -> Path:
    tasks = list(dict.fromkeys(episode.task for episode in episodes))
    _write_info(folder, "v2.1", episodes, splits, as_images)
    _jsonl(folder / "meta" / "tasks.jsonl", [{"task_index": number, "task": task} for number, task in enumerate(tasks)])
    _jsonl(
        folder / "meta" / "episodes.jsonl",
        [{"episode_index": number, "tasks": [item.task], "length": len(item.actions)} for number, item in enumerate(episodes)],
    )
    start = 0
    for number, episode in enumerate(episodes):
        path = folder / f"data/chunk-000/episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(_table(episode, number, start, tasks, as_images), path)
        start += len(episode.actions)
        if not as_images:
            for camera, images in episode.images.items():
                encode_video(folder / f"videos/chunk-000/{camera}/episode_{number:06d}.mp4", images)
    return folder


def write_v3(
    folder: Path,
    episodes: Sequence[LeRobotEpisode],
    splits: Mapping[str, str] | None = None,
    as_images: bool = False,
    task_column: str = "task",
) -> Path:
    tasks = list(dict.fromkeys(episode.task for episode in episodes))
    _write_info(folder, "v3.0", episodes, splits, as_images)
    pq.write_table(pa.table({"task_index": list(range(len(tasks))), task_column: tasks}), folder / "meta" / "tasks.parquet")
    starts = np.cumsum([0, *(len(episode.actions) for episode in episodes)]).tolist()
    tables = [_table(episode, number, starts[number], tasks, as_images) for number, episode in enumerate(episodes)]
    (folder / "data/chunk-000").mkdir(parents=True)
    with pq.ParquetWriter(folder / "data/chunk-000/file-000.parquet", tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)  # a row group per episode
    rows = []
    for number, episode in enumerate(episodes):
        row = {"episode_index": number, "tasks": [episode.task], "length": len(episode.actions)}
        row |= {"data/chunk_index": 0, "data/file_index": 0}
        row |= {"dataset_from_index": starts[number], "dataset_to_index": starts[number + 1], "stats/action/min": [0.0]}
        if not as_images:
            for camera in episode.images:
                times = {"from_timestamp": starts[number] / FPS, "to_timestamp": starts[number + 1] / FPS}
                row |= {f"videos/{camera}/{name}": value for name, value in ({"chunk_index": 0, "file_index": 0} | times).items()}
        rows.append(row)
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "meta/episodes/chunk-000/file-000.parquet")
    if not as_images:
        for camera in episodes[0].images:
            images = np.concatenate([episode.images[camera] for episode in episodes])
            encode_video(folder / f"videos/{camera}/chunk-000/file-000.mp4", images)
    return folder


def change_info(folder: Path, **changes: object) -> None:
    """Replaces what meta/info.json says."""
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_v3_rows(folder: Path, change: Callable[[dict], None]) -> None:
    """Lets `change` alter each row of meta/episodes."""
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        change(row)
    pq.write_table(pa.Table.from_pylist(rows), path)


def change_column(path: Path, name: str, values: pa.Array | None) -> None:
    """Replaces or adds a column of a parquet file; None takes it away."""
    table = pq.read_table(path)
    table = table.drop_columns([name]) if name in table.column_names else table
    pq.write_table(table if values is None else table.append_column(name, values), path)


def _write_info(folder: Path, version: str, episodes: Sequence[LeRobotEpisode], splits: Mapping[str, str] | None, as_images: bool) -> None:
    first = episodes[0]
    features = {
        "action": {"dtype": "float32", "shape": [first.actions.shape[1]], "names": None},
        "observation.state": {"dtype": "float32", "shape": [first.state.shape[1]], "names": None},
        **{
            camera: {"dtype": "image" if as_images else "video", "shape": list(images.shape[1:]), "names": ["height", "width", "channel"]}
            for camera, images in first.images.items()
        },
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **{name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "episode_index", "index", "task_index")},
    }
    data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    video = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    if version == "v3.0":
        data = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        video = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    info = {"codebase_version": version, "robot_type": "toy", "fps": FPS, "chunks_size": 1000, "total_episodes": len(episodes)}
    info |= {"splits": dict(splits or {"train": f"0:{len(episodes)}"}), "features": features}
    info |= {"data_path": data, "video_path": None if as_images else video}
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info, indent=4))


def _table(episode: LeRobotEpisode, number: int, start: int, tasks: list[str], as_images: bool) -> pa.Table:
    length = len(episode.actions)
    columns = {
        "action": pa.array(episode.actions.tolist(), pa.list_(pa.float32(), episode.actions.shape[1])),
        "observation.state": pa.array(episode.state.tolist(), pa.list_(pa.float32())),
        "timestamp": pa.array(np.arange(length, dtype=np.float32) / FPS),
        "frame_index": pa.array(range(length)),
        "episode_index": pa.array([number] * length),
        "index": pa.array(range(start, start + length)),
        "task_index": pa.array([tasks.index(episode.task)] * length),
    }
    if as_images:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        for camera, images in episode.images.items():
            columns[camera] = pa.array([{"bytes": _png(image), "path": f"frame_{step:06d}.png"} for step, image in enumerate(images)], kind)
    return pa.table(columns)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_so101(folder: Path) -> Path:
    """A v3.0 folder as LeRobot records an SO-101 in degrees: names of joints, statistics, two cameras."""
    episodes = [
        make_episode(24, seed, "put the cube into the bowl", ("observation.images.front", "observation.images.wrist"), 6) for seed in (0, 1)
    ]
    for number, episode in enumerate(episodes):
        degrees = np.linspace(-130, 115, 25)[:, None] * np.linspace(0.6, 1, 6) * (-1) ** number
        degrees[:, 5] = np.linspace(80, 5, 25)  # the gripper, 0 to 100
        episode.state[:], episode.actions[:] = degrees[:-1], degrees[1:]
    write_v3(folder, episodes)
    joints = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    for column in ("action", "observation.state"):
        features[column]["names"] = [f"{joint}.pos" for joint in joints]
    change_info(folder, features=features, robot_type="so101_follower")
    rows = np.concatenate([episode.actions for episode in episodes])
    (folder / "meta/stats.json").write_text(json.dumps({"action": {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}}))
    return folder
