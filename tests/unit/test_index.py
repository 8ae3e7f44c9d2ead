from __future__ import annotations

import multiprocessing
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rlds_writer import Episode, make_episode, write_dataset

from prismatic.vla.datasets.index import CACHE_FOLDER, EpisodeIndex, load_index, source_of
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.rlds.oxe.transforms import Trajectory, identity_dataset_transform, libero_dataset_transform
from prismatic.vla.datasets.rlds.source import RldsSource

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


def test_the_source_of_a_transform_covers_the_functions_it_calls() -> None:
    source = source_of(libero_dataset_transform)
    assert "def libero_dataset_transform" in source
    assert "def invert_gripper_actions" in source


def test_a_read_only_folder_falls_back_to_the_user_cache_then_to_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    folder = _write(tmp_path, make_episode(4))
    (folder / CACHE_FOLDER).touch()  # a file where the folder should be: writing fails for every user, root included
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = _load(folder)
    assert len(list((tmp_path / "cache" / "prismatic" / "index").glob("*/actions.npy"))) == 1
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


def test_an_episode_without_steps_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"episode 1.*no steps"):
        _load(_write(tmp_path, make_episode(1), make_episode(0)))


def test_episodes_of_different_widths_are_named(tmp_path: Path) -> None:
    folder = _write(tmp_path, make_episode(3), make_episode(3))
    source = RldsSource(folder)
    widths = iter((4, 3))

    def narrowing(trajectory: Trajectory) -> Trajectory:
        return {**trajectory, "action": trajectory["action"][:, : next(widths)]}

    with pytest.raises(ValueError, match="actions have 3 dimensions, earlier episodes have 4"):
        load_index(source, ENTRY, narrowing)


def test_steps_without_text_take_the_episodes_instruction(tmp_path: Path) -> None:
    index = _load(_write(tmp_path, _spoil(language_instruction=["", " lift it ", ""])))
    assert index.instructions == ("lift it",)
    assert index.instruction_ids.tolist() == [0, 0, 0]
