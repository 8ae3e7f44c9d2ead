"""inspect_dataset.py --caches: what belongs to what, what nothing uses any more, and that only that is removed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from rlds_writer import make_episode, write_dataset

from prismatic.commands.inspect_dataset import InspectConfig, main
from prismatic.vla.datasets.caches import CacheItem, find_caches
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.index import CACHE_FOLDER
from prismatic.vla.datasets.locks import Owner
from prismatic.vla.datasets.rlds.oxe import configs
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
from prismatic.vla.datasets.training_data import load_training_data


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prismatic"


def _train(root: Path, name: str, frames: Path | None = None, stride: str | None = None, **options: Any) -> None:
    """Reads the data set once, as training does."""
    cameras = DatasetOptions(cameras=("primary",), image_size=24, frame_cache_dir=frames, frame_cache_bytes=0, **options)
    data = load_training_data(resolve_datasets(name, root, stride=stride), cameras).train
    list(data)


def _write(root: Path, name: str, seed: int = 0) -> Path:
    return write_dataset(root, name, {"train": [make_episode(6, seed=seed)]})


def _verdicts(items: list[CacheItem]) -> list[tuple[str, str, bool]]:
    return sorted((item.what.partition(" (")[0], item.verdict, item.is_used) for item in items)


def test_what_a_run_uses_is_used_also_with_a_stride(tmp_path: Path) -> None:
    _write(tmp_path / "data", "metaworld_demo")
    for stride in (None, "2"):
        _train(tmp_path / "data", "metaworld_demo", tmp_path / "frames", stride)
    found = find_caches(tmp_path / "data", tmp_path / "frames")
    assert _verdicts(found) == [("frames of metaworld_demo", "used", True)] * 2 + [("index of metaworld_demo", "used", True)] * 2
    assert all(item.num_bytes > 0 for item in found)
    assert {f"({tmp_path / 'data/metaworld_demo/1.0.0'})" in item.what for item in found} == {True}


def test_changed_data_entries_and_old_formats_are_used_by_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _write(tmp_path / "data", "metaworld_demo")
    _train(tmp_path / "data", "metaworld_demo", tmp_path / "frames")
    kept = folder / CACHE_FOLDER
    for path in folder.glob("*.tfrecord*"):
        os.utime(path, ns=(1, 1))  # copied again
    assert _verdicts(find_caches(tmp_path / "data", tmp_path / "frames")) == [
        ("frames of metaworld_demo", "cannot be told without a current index; inspect the data set first", True),
        ("index of metaworld_demo", "data, entry or transform have changed since", False),
    ]
    _train(tmp_path / "data", "metaworld_demo", tmp_path / "frames")
    entry = dataclasses.replace(configs.find_entry("metaworld_demo"), state_obs_keys=("state", None))
    monkeypatch.setitem(configs.OXE_DATASET_CONFIGS, "metaworld_demo", entry)
    _train(tmp_path / "data", "metaworld_demo", tmp_path / "frames")
    (kept / ("0" * 24)).mkdir()
    (tmp_path / "frames" / "metaworld_demo-0123-primary-24.v1.frames").write_bytes(bytes(5000))
    assert _verdicts(find_caches(tmp_path / "data", tmp_path / "frames")) == [
        ("frames", "of an earlier version; nothing says what it belongs to", False),
        ("frames of metaworld_demo", "data have changed since", False),
        ("frames of metaworld_demo", "used", True),  # another state has the same pixels
        ("index", "cut off, or of an earlier version", False),
        ("index of metaworld_demo", "data, entry or transform have changed since", False),
        ("index of metaworld_demo", "data, entry or transform have changed since", False),
        ("index of metaworld_demo", "used", True),
    ]


def test_what_cannot_be_told_stays(tmp_path: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("metaworld_demo", "single_eef_task_sample", "somebodys")):
        monkeypatch.setitem(configs.OXE_DATASET_CONFIGS, name, configs.find_entry("metaworld_demo"))
        _write(tmp_path / f"disk{number}", name, seed=number)
        _train(tmp_path / f"disk{number}", name, tmp_path / "frames", cache_dir=user_cache / "index")
    monkeypatch.delitem(configs.OXE_DATASET_CONFIGS, "somebodys")
    (tmp_path / "disk0" / "metaworld_demo").rename(tmp_path / "unmounted")  # its parent is gone, too
    shutil.rmtree(tmp_path / "disk1" / "single_eef_task_sample" / "1.0.0")
    assert _verdicts(find_caches(tmp_path / "none", tmp_path / "frames")) == [
        ("frames of metaworld_demo", "its data are not there now (a disk that is not mounted?)", True),
        ("frames of single_eef_task_sample", "its data are gone", False),
        ("frames of somebodys", "no entry 'somebodys' in this registry: somebody else's, or your code's", True),
        ("index of metaworld_demo", "its data are not there now (a disk that is not mounted?)", True),
        ("index of single_eef_task_sample", "its data are gone", False),
        ("index of somebodys", "no entry 'somebodys' in this registry: somebody else's, or your code's", True),
    ]


def test_unfinished_indexes_go_when_their_process_is_gone(user_cache: Path, tmp_path: Path) -> None:
    free_pid = int(Path("/proc/sys/kernel/pid_max").read_text()) - 1
    owners = {
        "gone": dataclasses.replace(Owner.this_process(), pid=free_pid),
        "alive": Owner.this_process(),
        "far": Owner("another-host", 1),
        "old": Owner("another-host", 2),
    }
    for name, owner in owners.items():
        folder = user_cache / "index" / f".building-{name}"
        folder.mkdir(parents=True)
        (folder / "owner.json").write_text(json.dumps(dataclasses.asdict(owner)))
    yesterday = time.time() - 25 * 3600
    for path in (folder, folder / "owner.json"):
        os.utime(path, (yesterday, yesterday))
    tables = user_cache / "frame_tables"
    tables.mkdir()
    for name in (".building-new.npz", ".building-old.npz", "0123.v1.npz"):
        (tables / name).touch()
    os.utime(tables / ".building-old.npz", (yesterday, yesterday))
    found = {item.path.name: (item.what, item.verdict, item.is_used) for item in find_caches(tmp_path, None)}
    host = Owner.this_process().host
    assert found == {
        ".building-gone": (f"unfinished index of process {free_pid} on {host}", "left behind", False),
        ".building-alive": (f"unfinished index of process {os.getpid()} on {host}", "being built", True),
        ".building-far": ("unfinished index of process 1 on another-host", "being built", True),
        ".building-old": ("unfinished index of process 2 on another-host", "no sign of life for a day", False),
        ".building-new.npz": ("frame tables of LeRobot videos", "being written", True),
        ".building-old.npz": ("frame tables of LeRobot videos", "no sign of life for a day", False),
        "0123.v1.npz": ("frame tables of LeRobot videos", "small, kept", True),
    }


def test_the_command_lists_first_and_removes_only_what_nothing_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, frames = _write(tmp_path / "data", "metaworld_demo"), tmp_path / "frames"
    _train(tmp_path / "data", "metaworld_demo", frames)
    for path in folder.glob("*.tfrecord*"):
        os.utime(path, ns=(1, 1))
    _train(tmp_path / "data", "metaworld_demo", frames)
    before = sorted(tmp_path.rglob("*"))
    flags = {"caches": True, "data_root_dir": tmp_path / "data", "frame_cache_dir": frames}
    main(InspectConfig(**flags))
    listed = capsys.readouterr().out
    assert "nothing uses 2 of 4 caches" in listed
    assert "--remove deletes them" in listed
    assert listed.count(f"index of metaworld_demo ({folder})") == 2
    assert sorted(tmp_path.rglob("*")) == before
    main(InspectConfig(**flags, remove=True))
    assert "removed 2 of 4 caches" in capsys.readouterr().out
    assert [item.verdict for item in find_caches(tmp_path / "data", frames)] == ["used", "used"]
    assert len(list(frames.iterdir())) == 2  # the frames and the note beside them


def test_flags_that_belong_together_are_named() -> None:
    with pytest.raises(ValueError, match="--remove and --frame_cache_dir belong to --caches"):
        InspectConfig(dataset_name="metaworld_demo", remove=True)
