"""The cache of decoded, resized frames: the same pixels, from every source, shared, torn, full, read-only, filled in order."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from hdf5_files import write_aloha
from lerobot_writer import make_episode as make_lerobot_episode
from lerobot_writer import write_v3
from rlds_writer import make_episode, write_dataset
from torch.utils.data import DataLoader

from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.datasets.dataset import DatasetOptions, VLADataset
from prismatic.vla.datasets.episodes import FrameReader
from prismatic.vla.datasets.frame_cache import FrameCache, record_bytes
from prismatic.vla.datasets.frame_filling import NodeShare, fill_sequential_caches
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec, resolve_datasets
from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
from prismatic.vla.datasets.sampler import SampleKey
from prismatic.vla.datasets.training_data import TrainingData, load_training_data

SIZE = 24
OPTIONS = DatasetOptions(cameras=("primary", "wrist"), image_size=SIZE, frame_cache_bytes=0)


def _rlds(root: Path) -> DatasetSpec:
    write_dataset(root, "metaworld_demo", {"train": [make_episode(6, size=40), make_episode(4, seed=1, size=40)]})
    return resolve_datasets("metaworld_demo", root)[0]


def _lerobot(root: Path) -> DatasetSpec:
    folder = write_v3(root / "door", [make_lerobot_episode(7, 1), make_lerobot_episode(9, 2), make_lerobot_episode(5, 3)])
    entry = DatasetEntry(image_obs_keys={"primary": "top", "wrist": "observation.images.wrist"}, robot_platform="METAWORLD")
    return DatasetSpec("door", entry, folder, ROBOT_PLATFORMS["METAWORLD"], identity_dataset_transform)


def _hdf5(root: Path) -> DatasetSpec:
    for number in range(2):
        write_aloha(root / "fold_shirt" / f"episode_{number}.hdf5", seed=number, instruction="fold the shirt")
    entry = DatasetEntry(image_obs_keys={"primary": "cam_high", "wrist": "cam_left_wrist"}, robot_platform="ALOHA", action_encoding=3)
    return DatasetSpec("fold_shirt", entry, root / "fold_shirt", ROBOT_PLATFORMS["ALOHA"], identity_dataset_transform)


SOURCES: dict[str, Callable[[Path], DatasetSpec]] = {"rlds": _rlds, "lerobot": _lerobot, "hdf5": _hdf5}


def _load(spec: DatasetSpec, **changes: Any) -> TrainingData:
    return load_training_data([spec], dataclasses.replace(OPTIONS, **changes))


def _refuse_to_decode(data: VLADataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in data.parts:
        monkeypatch.setattr(type(part.index.reader), "read", lambda *_: pytest.fail("decoded again"))


def _assert_same(data: VLADataset, expected: list[np.ndarray]) -> None:
    for number, images in enumerate(expected):
        np.testing.assert_array_equal(data[SampleKey(number, 1)].images, images)


@pytest.mark.parametrize("source", SOURCES)
def test_frames_of_every_source_are_decoded_once_by_any_worker_and_read_by_the_next_run(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, folder = SOURCES[source](tmp_path / "data"), tmp_path / "frames"
    plain = _load(spec, augment=True).train
    expected = [plain[SampleKey(number, 1)].images for number in range(len(plain))]
    first = _load(spec, augment=True, frame_cache_dir=folder).train
    keys = [SampleKey(number, 1) for number in range(len(first))]
    loaded = [sample for batch in DataLoader(first, batch_size=3, sampler=keys, num_workers=2, collate_fn=list) for sample in batch]
    for sample in loaded:
        np.testing.assert_array_equal(sample.images, expected[sample.sample_id])
    later = _load(spec, augment=True, frame_cache_dir=folder).train
    _refuse_to_decode(later, monkeypatch)
    _assert_same(later, expected)
    _assert_same(first, expected)


def test_a_small_set_is_kept_in_memory_and_one_byte_less_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, needed = _rlds(tmp_path), 10 * 2 * record_bytes(SIZE)
    assert not _load(spec, frame_cache_bytes=needed - 1).train.parts[0].stored.caches
    plain, kept = _load(spec).train, _load(spec, frame_cache_bytes=needed).train
    expected = [plain[number].images for number in range(10)]
    list(DataLoader(kept, batch_size=2, num_workers=2, collate_fn=list))
    _refuse_to_decode(kept, monkeypatch)
    _assert_same(kept, expected)


def test_under_device_augmentation_workers_read_resized_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, changes = _rlds(tmp_path / "data"), {"augment": True, "device_augmentation": True, "frame_cache_dir": tmp_path / "frames"}
    expected = [_load(spec).train[number].images for number in range(10)]
    list(_load(spec, **changes).train)
    later = _load(spec, **changes).train
    _refuse_to_decode(later, monkeypatch)
    _assert_same(later, expected)
    assert later[0].draw is not None


def test_training_and_validation_share_a_file_and_another_size_or_content_has_its_own(tmp_path: Path) -> None:
    spec, folder = _rlds(tmp_path / "data"), tmp_path / "frames"
    _load(spec, frame_cache_dir=folder, val_fraction=0.5)
    assert len(list(folder.glob("*.frames"))) == 2  # one a camera
    _load(spec, frame_cache_dir=folder, image_size=16)
    assert len(list(folder.glob("*.frames"))) == 4
    shutil.rmtree(tmp_path / "data")
    write_dataset(tmp_path / "data", "metaworld_demo", {"train": [make_episode(9, seed=5)]})
    changed = _load(spec, frame_cache_dir=folder).train
    assert len(list(folder.glob("*.frames"))) == 6
    np.testing.assert_array_equal(changed[3].images, _load(spec).train[3].images)


def test_a_torn_record_is_decoded_again_and_mended(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(1, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    cache = FrameCache(3, SIZE, tmp_path / "camera.frames")
    for number in (0, 2):
        cache.write(number, frames[number])
    with (tmp_path / "camera.frames").open("r+b") as file:  # a page that never reached the disk
        file.seek(2 * record_bytes(SIZE) + 1000)
        file.write(bytes(300))
    frame = np.empty_like(frames[0])
    assert [cache.read_into(number, frame) for number in range(3)] == [True, False, False]
    cache.write(2, frames[2])
    assert cache.read_into(2, frame)
    np.testing.assert_array_equal(frame, frames[2])


def test_black_frames_and_the_last_bytes_of_odd_sizes_count(tmp_path: Path) -> None:
    cache = FrameCache(2, 5, tmp_path / "camera.frames")  # 75 bytes: nine words and three bytes
    frame = np.zeros((5, 5, 3), np.uint8)
    cache.write(0, frame)
    assert cache.read_into(0, frame)
    assert not cache.read_into(1, frame)
    with (tmp_path / "camera.frames").open("r+b") as file:
        file.seek(8 + 74)
        file.write(b"\x01")
    assert not cache.read_into(0, frame)


class _Written(NamedTuple):
    folder: Path
    spec: DatasetSpec


def _read_all(written: _Written, barrier: Any, results: Any) -> None:
    data = _load(written.spec, frame_cache_dir=written.folder).train
    barrier.wait()
    results.put([int(data[number].images.sum()) for number in range(len(data))])


def test_several_ranks_fill_one_cache_at_once(tmp_path: Path) -> None:
    spec = _rlds(tmp_path / "data")
    expected = [int(sample.images.sum()) for sample in map(_load(spec).train.__getitem__, range(10))]
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_read_all, args=(_Written(tmp_path / "frames", spec), barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [expected] * 3
    for process in processes:
        process.join()


def _write_for_ever(path: Path) -> None:
    cache, frame = FrameCache(1, 224, path), np.zeros((224, 224, 3), np.uint8)
    while True:
        for level in (1, 2):
            cache.write(0, np.full_like(frame, level))


def test_a_frame_that_is_being_written_or_whose_writer_was_killed_is_whole_or_absent(tmp_path: Path) -> None:
    path, frame = tmp_path / "camera.frames", np.empty((224, 224, 3), np.uint8)
    writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path,))
    cache = FrameCache(1, 224, path)
    writer.start()
    read = 0
    while read < 100:
        if cache.read_into(0, frame):
            assert frame.min() == frame.max()
            read += 1
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    assert not cache.read_into(0, frame) or frame.min() == frame.max()


def _read_on_a_full_disk(written: _Written, results: Any) -> None:
    data = _load(written.spec, frame_cache_dir=written.folder).train
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing beyond the limit then fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * record_bytes(SIZE) + 500,) * 2)
    sums = [int(data[number].images.sum()) for number in range(len(data))]
    results.put((sums, [cache.is_writable for cache in data.parts[0].stored.caches]))


def test_a_disk_that_fills_up_later_ends_the_writing_and_not_the_run(tmp_path: Path) -> None:
    spec = _rlds(tmp_path / "data")
    plain = _load(spec).train
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_read_on_a_full_disk, args=(_Written(tmp_path / "frames", spec), results))
    process.start()
    sums, writable = results.get(timeout=60)
    process.join()
    assert sums == [int(plain[number].images.sum()) for number in range(10)]
    assert writable == [False, False]
    again = _load(spec, frame_cache_dir=tmp_path / "frames").train
    _assert_same(again, [plain[number].images for number in range(10)])


def test_too_little_space_is_reported_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, folder = _rlds(tmp_path / "data"), tmp_path / "frames"
    usage = type("Usage", (), {"free": 20 * record_bytes(SIZE) - 1})
    monkeypatch.setattr("prismatic.vla.datasets.frame_cache.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"--frame_cache_dir .*frames: 20 frames need 0.00 GB more"):
        _load(spec, frame_cache_dir=folder)
    usage.free += 1
    list(_load(spec, frame_cache_dir=folder).train)
    usage.free = 0  # all are there: no more is needed
    _load(spec, frame_cache_dir=folder)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ValueError, match=r"--frame_cache_dir .*taken/frames cannot be used"):
        _load(_rlds(tmp_path / "data"), frame_cache_dir=tmp_path / "taken" / "frames")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that other users may enter, which pytest's are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def _read_as_another_user(path: Path, results: Any) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)
    cache, frame = FrameCache(2, SIZE, path), np.full((SIZE, SIZE, 3), 9, np.uint8)
    cache.write(1, frame)
    results.put((cache.is_writable, cache.read_into(0, frame), int(frame.max()), cache.read_into(1, frame)))


def test_a_cache_that_may_not_be_written_is_read(open_folder: Path) -> None:
    path = open_folder / "camera.frames"
    FrameCache(2, SIZE, path).write(0, np.full((SIZE, SIZE, 3), 7, np.uint8))
    path.chmod(0o444)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_read_as_another_user, args=(path, results))
    process.start()
    assert results.get(timeout=60) == (False, True, 7, False)
    process.join()


def test_videos_are_filled_in_order_before_training_each_rank_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, folder = _lerobot(tmp_path / "data"), tmp_path / "frames"
    expected = [_load(spec).train[number].images for number in range(21)]
    data = _load(spec, frame_cache_dir=folder)
    places: list[tuple[int, int]] = []
    reader_class = type(data.train.parts[0].index.reader)
    read = reader_class.read

    def noting_read(self: FrameReader, reference: np.void) -> np.ndarray:
        places.append((int(reference["file"]), int(reference["offset"])))
        return read(self, reference)

    monkeypatch.setattr(reader_class, "read", noting_read)
    counts = [fill_sequential_caches(data, 0, NodeShare(rank, 2)) for rank in range(2)]
    assert sum(counts) == 21 * 2
    assert min(counts) >= 10
    assert sum(after == (before[0], before[1] + 1) for before, after in itertools.pairwise(places)) >= 2 * (21 - 3)
    _refuse_to_decode(data.train, monkeypatch)
    _assert_same(data.train, expected)
    assert fill_sequential_caches(_load(spec, frame_cache_dir=folder), 2) == 0


@pytest.mark.parametrize("rows_per_group", [5, 1000])
def test_images_in_parquet_are_filled_row_group_by_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_group: int) -> None:
    folder = write_v3(tmp_path / "door", [make_lerobot_episode(10, seed) for seed in range(6)], as_images=True)
    for path in (folder / "data").rglob("*.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=rows_per_group)
    entry = DatasetEntry(image_obs_keys={"primary": "top", "wrist": "observation.images.wrist"}, robot_platform="METAWORLD")
    spec = DatasetSpec("door", entry, folder, ROBOT_PLATFORMS["METAWORLD"], identity_dataset_transform)
    expected = [_load(spec).train[number].images for number in range(60)]
    groups: list[int] = []
    read = pq.ParquetFile.read_row_group

    def noting_read(self: Any, group: int, *arguments: Any, **named: Any) -> Any:
        groups.append(group)
        return read(self, group, *arguments, **named)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noting_read)
    monkeypatch.setattr("prismatic.vla.datasets.lerobot.frames._ROW_GROUP_BYTES", 1)  # only the last one is kept
    data = _load(spec, frame_cache_dir=tmp_path / "frames", val_fraction=0.3)
    assert fill_sequential_caches(data, 0) == 60 * 2
    assert len(groups) == 2 * -(-60 // rows_per_group)  # each once a camera
    _refuse_to_decode(data.train, monkeypatch)
    assert data.val is not None
    shown = {step: sample.images for part in (data.train, data.val) for step, sample in zip(_steps(part), part, strict=True)}
    for step, images in enumerate(expected):
        np.testing.assert_array_equal(shown[step], images)


def _steps(data: VLADataset) -> list[int]:
    return [data.parts[0].locate(sample)[0] for sample in range(len(data))]


def test_a_small_set_of_videos_is_filled_in_memory_in_order_by_each_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _lerobot(tmp_path / "data")
    expected = [_load(spec).train[number].images for number in range(21)]
    for rank in range(2):
        data = _load(spec, frame_cache_bytes=2**24)
        assert fill_sequential_caches(data, 2, NodeShare(rank, 2)) == 21 * 2
    _refuse_to_decode(data.train, monkeypatch)
    _assert_same(data.train, expected)


def test_videos_without_a_place_for_their_frames_are_reported(tmp_path: Path, caplog: Any) -> None:
    assert fill_sequential_caches(_load(_lerobot(tmp_path)), 0) == 0
    assert "data set door: its frames are slow to read in random order; --frame_cache_dir keeps them (0.0 GB)" in caplog.text


def test_every_node_fills_a_folder_of_its_own_and_nodes_share_out_a_common_one(tmp_path: Path) -> None:
    spec, num_frames = _lerobot(tmp_path / "data"), 21 * 2
    for node in range(2):
        data = _load(spec, frame_cache_dir=tmp_path / f"node {node}")
        assert sum(fill_sequential_caches(data, 0, NodeShare(rank, 2, node, 2)) for rank in range(2)) == num_frames
    data = _load(spec, frame_cache_dir=tmp_path / "shared")
    tasks = [f"task {number}" for number in range(7)]
    first, second = (NodeShare(0, 1, node, 2).of(tasks) for node in range(2))  # type: ignore[arg-type]
    assert sorted(first) == sorted(second) == tasks
    assert not set(first[:3]) & set(second[:3])  # each begins with a part of its own
    counts = [fill_sequential_caches(data, 0, NodeShare(0, 1, node, 2)) for node in range(2)]
    assert counts == [num_frames, 0]  # the second finds everything done


def test_a_damaged_video_leaves_its_frames_out_of_the_cache_and_the_filling_goes_on(tmp_path: Path, caplog: Any) -> None:
    spec = _lerobot(tmp_path / "data")
    data = _load(spec, frame_cache_dir=tmp_path / "frames")  # the index is made while the file is whole
    (video,) = (spec.folder / "videos/observation.images.wrist").rglob("*.mp4")
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    assert 21 <= fill_sequential_caches(data, 2) < 2 * 21
    assert f"frames cannot be decoded and are left out of the frame cache; the first: {video}" in caplog.text


def test_sources_of_single_images_fill_while_training(tmp_path: Path) -> None:
    assert fill_sequential_caches(_load(_rlds(tmp_path), frame_cache_dir=tmp_path / "frames"), 0) == 0
