"""Frame tables: small, exact, stored once for all processes and runs, and never trusted beyond the file they were read from."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from lerobot_writer import encode_video, make_episode, write_v2, write_v3

from prismatic.vla.datasets.lerobot import frame_tables
from prismatic.vla.datasets.lerobot.frame_tables import FrameTables, Runs
from prismatic.vla.datasets.lerobot.source import LeRobotSource
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry

ENTRY = DatasetEntry(image_obs_keys={"primary": "top", "wrist": "wrist"})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "values",
    [
        [],
        [7],
        [0, 512, 1024],
        [0, 512, 1024, 1500, 2012, 2524],
        [3, 3, 4, 9, 9, 9, 200],
        np.cumsum(np.random.default_rng(0).integers(1, 9, 500)).tolist(),
    ],
)
def test_runs_are_the_sequence(values: list[int]) -> None:
    array = np.array(values, np.int64)
    runs = Runs.of(array)
    np.testing.assert_array_equal(runs.expand(), array)
    assert [runs[place] for place in range(len(runs))] == values
    for value in [-1, *values, *(value + 1 for value in values)]:
        assert runs.last_not_above(value) == np.searchsorted(array, value, side="right") - 1


def test_two_hours_take_as_little_as_two_seconds() -> None:
    assert len(Runs.of(np.arange(0, 216_000 * 512, 512)).pieces) == 1


def _count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []
    original = frame_tables.read_frame_table
    monkeypatch.setattr(frame_tables, "read_frame_table", lambda path: read.append(path) or original(path))
    return read


@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_files_are_demuxed_once_for_all_runs(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, write: object) -> None:
    folder = write(tmp_path / "door", [make_episode(5, seed) for seed in range(3)])
    read = _count_reads(monkeypatch)
    first = [episode.trajectory["observation"]["top"] for episode in LeRobotSource(folder, ENTRY).episodes()]
    num_videos = len(list(folder.rglob("*.mp4")))
    assert len(read) == num_videos
    again = LeRobotSource(folder, ENTRY)
    reader = pickle.loads(pickle.dumps(again.frame_reader()))  # what a worker is sent
    for references in first:
        assert reader.read(references[4]).shape == (48, 64, 3)
    assert len(read) == num_videos
    assert [path.suffix for path in cache.rglob("*") if path.is_file()] == [".npz"]
    assert not list(folder.rglob("*.npz"))


def test_a_file_that_has_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_v2(tmp_path / "door", [make_episode(5, seed) for seed in range(3)])
    list(LeRobotSource(folder, ENTRY).episodes())
    video = folder / "videos/chunk-000/observation.images.top/episode_000001.mp4"
    encode_video(video, make_episode(4, 9).images["observation.images.top"])
    read = _count_reads(monkeypatch)
    tables = FrameTables(folder)
    assert len(tables[video]) == 4
    tables.save()
    assert read == [video]
    other = folder / "videos/chunk-000/observation.images.top/episode_000002.mp4"
    tables = FrameTables(folder)
    assert (len(tables[video]), len(tables[other])) == (4, 5)
    assert read == [video]


def test_a_store_that_is_damaged_or_may_not_be_written_costs_only_time(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_v2(tmp_path / "door", [make_episode(5, 1)])
    list(LeRobotSource(folder, ENTRY).episodes())
    (store,) = (path for path in cache.rglob("*.npz"))
    store.write_bytes(b"torn")
    assert len(list(LeRobotSource(folder, ENTRY).episodes())) == 1
    assert len(FrameTables(folder)._stored.names) == 2
    shutil.rmtree(cache)
    cache.write_text("a file where the folder should be")
    assert len(list(LeRobotSource(folder, ENTRY).episodes())) == 1
