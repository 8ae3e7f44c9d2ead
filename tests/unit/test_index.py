from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing_reads import failing_reads
from hdf5_files import write_aloha
from lerobot_writer import make_episode as make_lerobot_episode
from lerobot_writer import write_v3
from rlds_writer import Episode, make_episode, write_dataset

from prismatic.vla.datasets.index import CACHE_FOLDER, EpisodeIndex, load_index
from prismatic.vla.datasets.locks import Owner
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry, StateEncoding
from prismatic.vla.datasets.rlds.oxe.materialize import NumpyTransform
from prismatic.vla.datasets.rlds.oxe.transforms import Trajectory, identity_dataset_transform, libero_dataset_transform
from prismatic.vla.datasets.rlds.source import RldsSource
from prismatic.vla.datasets.sources import open_source

ENTRY = DatasetEntry(robot_platform="METAWORLD")


def _load(
    folder: Path, entry: DatasetEntry = ENTRY, transform: Any = identity_dataset_transform, cache_dir: Path | None = None
) -> EpisodeIndex:
    return load_index(RldsSource(folder), entry, transform, cache_dir)


def _write(root: Path, *episodes: Episode) -> Path:
    return write_dataset(root, "demo", {"train": episodes})


def test_index_holds_every_step_and_its_place(tmp_path: Path) -> None:
    train, val = [make_episode(5, seed=1), make_episode(1, seed=2, instruction="")], [make_episode(3, seed=3, instruction="open it")]
    index = _load(write_dataset(tmp_path, "demo", {"train": train, "val": val}))
    assert index.lengths.tolist() == [5, 1, 3]
    assert index.splits == {"train": (0, 2), "val": (2, 3)}
    assert index.is_labelled().tolist() == [True, False, True]
    assert index.instructions == ("push the button", "open it")
    np.testing.assert_array_equal(index.actions, np.concatenate([episode["action"] for episode in [*train, *val]]))
    assert index.steps_of(np.array([2, 0])).tolist() == [5 + 1, 7, 8, 0, 1, 2, 3, 4]
    place = index.images[6, index.cameras.index("wrist")]
    data = index.files[place["file"]].read_bytes()
    assert data[place["offset"] :][: place["length"]] == val[0]["observation/wrist_image"][0]


def test_the_second_time_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _write(tmp_path, make_episode(4))
    first = _load(folder)
    monkeypatch.setattr(RldsSource, "episodes", lambda self: pytest.fail("read again"))
    second = _load(folder)
    for name in ("actions", "proprio", "images", "instruction_ids", "episode_starts"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.splits == second.splits
    assert (folder / CACHE_FOLDER).is_dir()


def test_a_large_index_is_mapped_not_loaded(tmp_path: Path) -> None:
    index = _load(_write(tmp_path, make_episode(600, size=1)))
    assert isinstance(index.actions.base, np.memmap)
    assert not index.actions.flags.writeable


def _negated(trajectory: Trajectory) -> Trajectory:
    return {**trajectory, "action": -trajectory["action"]}


def test_a_change_of_files_entry_or_transform_builds_a_new_one(tmp_path: Path) -> None:
    folder = _write(tmp_path, make_episode(4, seed=1))
    first = _load(folder)
    np.testing.assert_array_equal(_load(folder, transform=_negated).actions, -first.actions)
    wider = _load(folder, DatasetEntry(state_obs_keys=("state", None), robot_platform="METAWORLD"))
    assert wider.proprio.shape == (4, 5)
    assert (wider.proprio[:, 4] == 0).all()
    shutil.rmtree(folder)
    _write(tmp_path, make_episode(4, seed=2))
    assert not np.array_equal(_load(folder).actions, first.actions)


def test_a_read_only_folder_falls_back_to_the_user_cache_then_to_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    folder = _write(tmp_path, make_episode(4))
    (folder / CACHE_FOLDER).touch()  # a file where the folder should be: writing fails for every user, root included
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = _load(folder)
    assert len(list((tmp_path / "cache" / "prismatic" / "index").glob("*/actions.bin"))) == 1
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    np.testing.assert_array_equal(_load(folder).actions, index.actions)
    assert "cannot be cached" in caplog.text


def _load_with_little_room(folder: Path, cache: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing beyond the limit then fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    assert _load(folder, cache_dir=cache).num_episodes == 1


def test_nothing_half_written_is_left_when_the_disk_is_full(tmp_path: Path) -> None:
    folder = _write(tmp_path, make_episode(400, size=1))  # 6400 bytes of actions
    process = multiprocessing.get_context("fork").Process(target=_load_with_little_room, args=(folder, tmp_path / "cache"))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def test_a_key_that_the_transform_needs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"libero_dataset_transform needs the key 'state'.*did you mean states"):
        _load(
            _write(tmp_path, _rename(make_episode(3, action_dim=7), "observation/state", "observation/states")),
            transform=libero_dataset_transform,
        )


def _rename(episode: Episode, old: str, new: str) -> Episode:
    return {new if key == old else key: values for key, values in episode.items()}


def _build_and_count(folder: Path, cache: Path, barrier: Any, builds: Any) -> None:
    real = RldsSource.episodes

    def counted(self: RldsSource) -> Any:
        with builds.get_lock():
            builds.value += 1
        return real(self)

    RldsSource.episodes = counted  # type: ignore[method-assign]
    barrier.wait()
    assert _load(folder, cache_dir=cache).num_episodes == 20


def test_of_several_processes_one_builds_and_the_others_wait(tmp_path: Path) -> None:
    folder = _write(tmp_path, *(make_episode(10, seed=seed, size=1) for seed in range(20)))
    context = multiprocessing.get_context("fork")
    barrier, builds = context.Barrier(3), context.Value("i", 0)
    workers = [context.Process(target=_build_and_count, args=(folder, tmp_path / "cache", barrier, builds)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert builds.value == 1


def test_a_changed_entry_in_a_new_cache_leaves_the_old_one(tmp_path: Path) -> None:
    folder = _write(tmp_path, make_episode(4))
    _load(folder)
    _load(folder, transform=_negated)
    assert len([path for path in (folder / CACHE_FOLDER).iterdir() if path.is_dir()]) == 2


def _spoil(**changes: Any) -> Episode:
    return {**make_episode(3), **changes}


@pytest.mark.parametrize(
    ("episode", "says"),
    [
        (make_episode(3, cameras=("image", "wrist_img")), r"episode 0.*no key 'wrist_image'.*image_obs_keys.*did you mean wrist_img"),
        ({key: value for key, value in make_episode(3).items() if key != "observation/state"}, "no key 'state'.*state_obs_keys"),
        ({key: value for key, value in make_episode(3).items() if key != "action"}, "no key 'action'"),
        (
            _spoil(**{"action": np.array([[0, 0, 0, 0], [0, np.nan, 0, 0], [0, 0, 0, 0]], np.float32)}),
            "'action' is nan at step 1, dimension 1",
        ),
        (_spoil(**{"observation/state": np.full((3, 4), np.inf, np.float32)}), "'state' is inf at step 0.*12 such values"),
        (_spoil(**{"observation/image": np.zeros((3, 8), np.float32)}), "'image' should hold encoded images, found float32"),
        (_spoil(**{"observation/image": ["a", "b", "c"]}), "'image' should hold encoded images, found object"),
        (_spoil(**{"observation/state": ["a", "b", "c"]}), "'state' should be numbers"),
        (_spoil(**{"action": np.zeros((2, 4), np.float32)}), "2 actions but 3 steps"),
        (_spoil(**{"action/arm": np.zeros((3, 4), np.float32)} | {"action": None}), "group of"),
        (_spoil(**{"action": np.zeros((3, 2, 2), np.float32)}), "should be numbers"),
    ],
)
def test_data_that_do_not_fit_the_entry_are_named(tmp_path: Path, episode: Episode, says: str) -> None:
    folder = _write(tmp_path, {key: value for key, value in episode.items() if value is not None})
    with pytest.raises(ValueError, match=says):
        _load(folder)
    assert not any(path.is_dir() for path in (folder / CACHE_FOLDER).iterdir())


def test_episodes_without_steps_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = _write(tmp_path, *(make_episode(length) for length in (2, 4, 3, 4)))
    index = _load(folder, transform=_only_short)
    assert index.lengths.tolist() == [2, 0, 3, 0]
    assert index.episodes_of("train").tolist() == [0, 2]
    assert index.is_labelled().tolist() == [True, False, True, False]
    assert [str(repair) for repair in index.repairs] == [
        f"episodes without steps are left out (2, first: {tmp_path / 'demo/1.0.0/demo-train.tfrecord-00000-of-00001'}, episode 1)"
    ]
    with pytest.raises(ValueError, match="holds no episodes with steps"):
        _load(folder, transform=_emptied)


def _only_short(trajectory: Trajectory) -> Trajectory:
    return trajectory if len(trajectory["action"]) < 4 else _emptied(trajectory)


def _emptied(trajectory: Trajectory) -> Trajectory:
    return {key: _emptied(value) if isinstance(value, dict) else value[:0] for key, value in trajectory.items()}


@pytest.mark.parametrize("kept_in_file", [True, False])
def test_states_that_change_their_width_are_named_and_never_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_in_file: bool
) -> None:
    folder = write_dataset(tmp_path, "demo", {"train": [make_episode(3, seed=number, state_dim=16) for number in range(4)]})
    widths = iter((14, 16, 12, 14))

    def narrowing(trajectory: Trajectory) -> Trajectory:
        return {**trajectory, "observation": {**trajectory["observation"], "state": trajectory["observation"]["state"][:, : next(widths)]}}

    if not kept_in_file:
        monkeypatch.setattr("prismatic.vla.datasets.index.write_index", _refuse_to_write)
    with pytest.raises(
        ValueError,
        match=r"episode 1: states have 16 dimensions, earlier episodes have 14 .*2 of 4 episodes cannot be used.*"
        r"--exclude_episodes, one a line: train 1, train 2\)",
    ):
        load_index(RldsSource(folder), ENTRY, narrowing, tmp_path / "cache")
    widths = iter((14, 16, 12, 14))
    index = load_index(RldsSource(folder), ENTRY, narrowing, tmp_path / "cache", is_lenient=True)
    assert index.proprio.shape == (6, 14)
    assert (index.lengths.tolist(), sorted(index.refused)) == ([3, 0, 0, 3], [1, 2])
    np.testing.assert_array_equal(index.proprio[3], make_episode(3, seed=3, state_dim=16)["observation/state"][0, :14])


def _refuse_to_write(*_: Any) -> None:
    raise OSError(30, "Read-only file system")


def test_an_entry_that_fits_no_episode_is_reported_before_all_are_read(tmp_path: Path) -> None:
    folder, num_read = _write(tmp_path, *(make_episode(2, seed=seed, size=1) for seed in range(40))), 0

    def refusing(trajectory: Trajectory) -> Trajectory:
        nonlocal num_read
        num_read += 1
        raise ValueError("not mine")

    with pytest.raises(ValueError, match=r"episode 0: the transform refusing refuses the episode: not mine \(11 of 11 episodes"):
        load_index(RldsSource(folder), ENTRY, refusing)
    assert num_read == 11


def test_documentation_and_layout_of_code_change_no_index_and_no_frame_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _write(tmp_path, make_episode(4))
    first = _load(folder)
    monkeypatch.setattr(RldsSource, "episodes", lambda self: pytest.fail("read again"))
    documented = dataclasses.replace(ENTRY, state_encoding=StateEncoding.JOINT, robot_platform="LIBERO", depth_obs_keys={"primary": None})
    assert _load(folder, documented).key == first.key
    monkeypatch.undo()
    other = _load(folder, dataclasses.replace(ENTRY, state_obs_keys=("state", None)), _negated)
    assert other.key != first.key
    assert other.frame_keys == first.frame_keys  # the pixels are the same
    swapped = _load(folder, dataclasses.replace(ENTRY, image_obs_keys={"primary": "wrist_image", "wrist": "image"}))
    assert swapped.frame_keys == first.frame_keys[::-1]
    os.utime(first.files[0], ns=(1, 1))
    assert not set(_load(folder).frame_keys) & set(first.frame_keys)


def test_a_partial_and_an_object_are_transforms(tmp_path: Path) -> None:
    folder = _write(tmp_path, make_episode(4))
    plain = _load(folder)
    for factor in (2, 3):
        scaled = _load(folder, transform=NumpyTransform(functools.partial(_scaled, factor=factor)))
        np.testing.assert_array_equal(scaled.actions, factor * plain.actions)
    with pytest.raises(ValueError, match=r"the transform functools.partial\(.*_scaled.* needs the key 'factor'"):
        _load(folder, transform=NumpyTransform(functools.partial(_scaled_by_key, key="factor")))


def _scaled(trajectory: Trajectory, factor: float) -> Trajectory:
    return {**trajectory, "action": factor * trajectory["action"]}


def _scaled_by_key(trajectory: Trajectory, key: str) -> Trajectory:
    return _scaled(trajectory, trajectory[key])


def test_an_index_that_was_cut_off_is_built_again(tmp_path: Path) -> None:
    folder, cache = _write(tmp_path, make_episode(600, size=1)), tmp_path / "cache"
    index = _load(folder, cache_dir=cache)
    os.truncate(cache / index.key / "actions.bin", 5000)
    np.testing.assert_array_equal(_load(folder, cache_dir=cache).actions, make_episode(600, size=1)["action"])
    assert sorted(path.name for path in cache.iterdir()) == sorted([index.key, "lock"])
    (cache / index.key / "description.json").write_text("{")
    assert _load(folder, cache_dir=cache).num_episodes == 1


def test_what_a_killed_process_was_building_goes_and_what_a_live_one_builds_stays(tmp_path: Path, caplog: Any) -> None:
    cache = tmp_path / "cache"
    caplog.set_level("INFO")
    for name, owner in {
        "gone": dataclasses.replace(Owner.this_process(), pid=_free_pid()),
        "alive": Owner.this_process(),
        "elsewhere": Owner("another-host", 1),
    }.items():
        (cache / f".building-{name}").mkdir(parents=True)
        (cache / f".building-{name}" / "owner.json").write_text(json.dumps(dataclasses.asdict(owner)))
    _load(_write(tmp_path, make_episode(4)), cache_dir=cache)
    assert sorted(path.name for path in cache.glob(".building-*")) == [".building-alive", ".building-elsewhere"]
    assert f"left behind by process {_free_pid()} on {Owner.this_process().host}, which is gone" in caplog.text


def _free_pid() -> int:
    return int(Path("/proc/sys/kernel/pid_max").read_text()) - 1


def _build_slowly(folder: Path, cache: Path, has_begun: Any) -> None:
    real = RldsSource.episodes

    def slow(self: RldsSource) -> Any:
        yield from real(self)
        has_begun.set()
        time.sleep(60)

    RldsSource.episodes = slow  # type: ignore[method-assign]
    _load(folder, cache_dir=cache)


def test_a_process_that_was_killed_while_building_is_not_waited_for_and_leaves_nothing(tmp_path: Path) -> None:
    folder, cache = _write(tmp_path, make_episode(4)), tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    has_begun = context.Event()
    process = context.Process(target=_build_slowly, args=(folder, cache, has_begun))
    process.start()
    assert has_begun.wait(30)
    assert len(list(cache.glob(f".building-{Owner.this_process().host}-{process.pid}-*"))) == 1
    process.kill()
    process.join()
    index = _load(folder, cache_dir=cache)
    assert sorted(path.name for path in cache.iterdir()) == sorted([index.key, "lock"])


_LOAD = """
import logging, sys
from pathlib import Path
from prismatic.vla.datasets.index import load_index
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
from prismatic.vla.datasets.rlds.source import RldsSource
logging.basicConfig(level=logging.INFO)
try:
    load_index(RldsSource(Path(sys.argv[1])), DatasetEntry(), identity_dataset_transform)
except ValueError as error:
    print(error)
"""


def test_what_the_disk_refuses_is_said_of_the_data_not_of_the_cache(tmp_path: Path) -> None:
    folder = _write(tmp_path, make_episode(4))
    (shard,) = folder.glob("*.tfrecord*")
    words = [sys.executable, "-c", _LOAD, str(folder)]
    done = subprocess.run(words, env=failing_reads(tmp_path, shard.name), capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{shard} cannot be read: Input/output error; check the disk")
    assert "cache" not in done.stderr


_LOAD_HDF5 = (
    _LOAD.replace("RldsSource(", "Hdf5Source(")
    .replace("rlds.source import Rlds", "hdf5.source import Hdf5")
    .replace("DatasetEntry()", 'DatasetEntry(image_obs_keys={"primary": "cam_high"}, state_obs_keys=("qpos",))')
)


def test_a_disk_that_fails_once_leaves_no_episode_refused_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / "fold"
    for number in range(3):
        write_aloha(folder / f"episode_{number}.hdf5", 3, number)
    words = [sys.executable, "-c", _LOAD_HDF5 + 'else:\n    print("sound")\n', str(folder)]
    failing = failing_reads(tmp_path, "episode_1.hdf5")
    done = subprocess.run(words, env=failing, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{folder / 'episode_1.hdf5'}"), done.stderr
    assert "Input/output error" in done.stdout
    done = subprocess.run(words, env={**failing, "FAILING_READS": "nothing"}, capture_output=True, text=True, check=True)
    assert done.stdout == "sound\n"


def test_the_index_of_a_lerobot_folder_lies_elsewhere_and_an_old_one_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    caplog.set_level("INFO")
    folder = write_v3(tmp_path / "door", [make_lerobot_episode(5, 1)])
    entry = DatasetEntry(image_obs_keys={"primary": "top"}, robot_platform="METAWORLD")
    before = sorted(folder.rglob("*"))
    index = load_index(open_source(folder, entry), entry, identity_dataset_transform)
    assert sorted(folder.rglob("*")) == before
    assert (tmp_path / "cache" / "prismatic" / "index" / index.key / "actions.bin").is_file()
    (folder / CACHE_FOLDER / "old").mkdir(parents=True)
    load_index(open_source(folder, entry), entry, identity_dataset_transform)
    assert (folder / CACHE_FOLDER / "old").is_dir()
    assert f"{folder / CACHE_FOLDER} is not used any more" in caplog.text


def test_steps_without_text_take_the_episodes_instruction(tmp_path: Path) -> None:
    index = _load(_write(tmp_path, _spoil(language_instruction=["", " lift it ", ""])))
    assert index.instructions == ("lift it",)
    assert index.instruction_ids.tolist() == [0, 0, 0]
