"""--exclude_episodes: its lines, what they refuse, and that excluded episodes are in no split, no statistic, and in policy.json's list."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_files import write_aloha
from lerobot_writer import make_episode as make_lerobot_episode
from lerobot_writer import write_v3
from rlds_writer import make_episode, write_dataset

from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.exclusions import excluded_episodes
from prismatic.vla.datasets.index import EpisodeIndex, load_index
from prismatic.vla.datasets.rlds.oxe.configs import OXE_DATASET_CONFIGS, ActionEncoding, DatasetEntry
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec, resolve_datasets
from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
from prismatic.vla.datasets.sources import open_source
from prismatic.vla.datasets.training_data import TrainingData, load_training_data

OPTIONS = DatasetOptions(cameras=("primary",), image_size=24, use_proprio=True, frame_cache_bytes=0)


def _index(root: Path, names: tuple[str, ...], splits: dict[str, tuple[int, int]]) -> EpisodeIndex:
    """A real index, whose episodes are called otherwise."""
    write_dataset(root, "metaworld_demo", {"train": [make_episode(2, seed=number, size=1) for number in range(len(names))]})
    spec = resolve_datasets("metaworld_demo", root)[0]
    index = load_index(open_source(spec.folder, spec.entry), spec.entry, spec.transform)
    return dataclasses.replace(index, names=names, splits=splits)


@pytest.fixture
def indexes(tmp_path: Path) -> dict[str, EpisodeIndex]:
    fold = ("train/episode_0.hdf5", "train/episode_10.hdf5", "val/episode_2.hdf5")
    goal = ("a/task.hdf5, demo_0", "a/task.hdf5, demo_1", "b/task.hdf5, demo_0", "b/other.hdf5, demo_7")
    return {
        "fold": _index(tmp_path / "fold", fold, {"train": (0, 2), "val": (2, 3)}),
        "goal": _index(tmp_path / "goal", goal, {"train": (0, 4)}),
    }


def _found(folder: Path, text: str, indexes: dict[str, EpisodeIndex], name: str = "bad.txt") -> dict[str, list[int]]:
    (folder / name).write_text(text)
    return {dataset: sorted(numbers) for dataset, numbers in excluded_episodes(folder / name, indexes).items()}


@pytest.mark.parametrize(
    ("line", "fold", "goal"),
    [
        ("val 0", [2], []),
        ("fold: train 1", [1], []),
        ("goal: train 3", [], [3]),
        ("episode_10.hdf5", [1], []),
        ("train/episode_0.hdf5", [0], []),
        ("a/task.hdf5", [], [0, 1]),
        ("a/task.hdf5, demo_1", [], [1]),
        ("demo_7", [], [3]),
        ("# none\n\n  train/episode_0.hdf5  # dropped the cup\nval 0\n", [0, 2], []),
    ],
)
def test_a_line_names_episodes(tmp_path: Path, indexes: dict[str, EpisodeIndex], line: str, fold: list[int], goal: list[int]) -> None:
    assert _found(tmp_path, line, indexes) == {"fold": fold, "goal": goal}


def test_the_same_in_json(tmp_path: Path, indexes: dict[str, EpisodeIndex]) -> None:
    assert _found(tmp_path, '["val 0", "demo_7"]', indexes, "bad.json") == {"fold": [2], "goal": [3]}
    assert _found(tmp_path, '{"fold": "train 0", "goal": ["train 1"]}', indexes, "bad.json") == {"fold": [0], "goal": [1]}
    assert excluded_episodes(None, indexes) == {"fold": frozenset(), "goal": frozenset()}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("episode_1.hdf5", r"'episode_1.hdf5' is no episode of fold, goal; .*train 0 to 1, val 0 to 0; by file: did you mean"),
        ("fold: train 2", r"'train 2': split train has 2 episodes, numbered from 0"),
        ("train 1", r"'train 1' is in fold and in goal; say which, such as fold: train 1"),
        ("demo_0", r"'demo_0' fits episodes of 2 files, a/task.hdf5 and b/task.hdf5; give its folder"),
        ("task.hdf5", r"'task.hdf5' fits episodes of 2 files"),
        ("gaol: train 1", r"'gaol' of the line 'gaol: train 1' is no data set of this run; did you mean goal"),
    ],
)
def test_an_unknown_or_unclear_episode_is_named(tmp_path: Path, indexes: dict[str, EpisodeIndex], text: str, says: str) -> None:
    with pytest.raises(ValueError, match=rf"--exclude_episodes .*bad.txt: {says}"):
        _found(tmp_path, text, indexes)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, indexes: dict[str, EpisodeIndex]) -> None:
    with pytest.raises(ValueError, match=r"--exclude_episodes .*none.txt cannot be read \(.*No such file"):
        excluded_episodes(tmp_path / "none.txt", indexes)
    with pytest.raises(ValueError, match=r"bad.json cannot be read"):
        _found(tmp_path, "[", indexes, "bad.json")
    with pytest.raises(ValueError, match=r"bad.json holds 3; it needs a list"):
        _found(tmp_path, "3", indexes, "bad.json")
    with pytest.raises(ValueError, match=r"bad.json cannot be read \('fold' stands there twice; put its episodes into one list\)"):
        _found(tmp_path, '{"fold": ["train 0"], "fold": ["train 1"]}', indexes, "bad.json")  # the first was trained on


def _load(folder: Path, spec: DatasetSpec, *lines: str, **changes: object) -> TrainingData:
    (folder / "bad.txt").write_text("\n".join(lines))
    return load_training_data([spec], dataclasses.replace(OPTIONS, exclude_episodes=folder / "bad.txt", **changes))


def test_excluded_episodes_are_in_no_split_and_no_statistic(tmp_path: Path) -> None:
    episodes = [make_episode(3, seed=number, size=1, instruction=f"task {number}") for number in range(10)]
    episodes[4]["action"][:] = 100
    write_dataset(tmp_path, "metaworld_demo", {"train": episodes})
    spec = resolve_datasets("metaworld_demo", tmp_path)[0]
    data = _load(tmp_path, spec, "train 4", "episode 7", val_fraction=0.25)
    assert data.val is not None
    used = {part.instruction(sample) for part in (data.train.parts[0], data.val.parts[0]) for sample in range(len(part))}
    assert used == {f"task {number}" for number in range(10) if number not in (4, 7)}
    assert (len(data.train), len(data.val)) == (6 * 3, 2 * 3)
    assert max(data.statistics["metaworld_demo"]["action"]["max"]) < 10
    assert data.excluded == {
        "metaworld_demo": (
            "train 4 (metaworld_demo-train.tfrecord-00000-of-00001, episode 4)",
            "train 7 (metaworld_demo-train.tfrecord-00000-of-00001, episode 7)",
        )
    }
    everything = _load(tmp_path, spec, "train 4", published_statistics=True)
    assert max(everything.statistics["metaworld_demo"]["action"]["max"]) < 10
    with pytest.raises(ValueError, match="no episode left; shorten --exclude_episodes"):
        _load(tmp_path, spec, "metaworld_demo-train.tfrecord-00000-of-00001")


def test_an_episode_that_cannot_be_used_stops_training_until_it_is_excluded(tmp_path: Path) -> None:
    episodes = [make_episode(3, seed=number, size=1) for number in range(4)]
    episodes[1]["action"][2, 0] = np.nan
    write_dataset(
        tmp_path, "metaworld_demo", {"train": episodes, "test": [{**make_episode(2), "action": np.full((2, 4), np.nan, np.float32)}]}
    )
    spec = resolve_datasets("metaworld_demo", tmp_path)[0]
    with pytest.raises(ValueError, match=r"'action' is nan at step 2.*1 of 5 episodes cannot be used.*one a line: train 1\)"):
        load_training_data([spec], OPTIONS)  # the test split is not used
    data = _load(tmp_path, spec, "train 1")
    assert len(data.train) == 9
    assert [data.train.origin(number).episode for number in (0, 3, 8)] == [0, 2, 3]  # numbers stay
    np.testing.assert_array_equal(data.train.parts[0].index.actions[3], episodes[2]["action"][0])


def test_the_first_episode_may_be_the_one_that_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry without robot_platform was refused for its first episode, which no --exclude_episodes could leave out."""
    entry = DatasetEntry(
        image_obs_keys={"primary": "cam_high"}, state_obs_keys=("qpos",), action_encoding=ActionEncoding.JOINT_POS_BIMANUAL
    )
    monkeypatch.setitem(OXE_DATASET_CONFIGS, "fold", entry)
    for number in range(3):
        write_aloha(tmp_path / "fold" / f"episode_{number}.hdf5", 4, number, instruction="fold")
    with h5py.File(tmp_path / "fold" / "episode_0.hdf5", "a") as file:
        file["action"][1, 2] = np.nan
    spec = resolve_datasets("fold", tmp_path)[0]
    assert spec.platform.name == "ALOHA"
    assert len(_load(tmp_path, spec, "train 0").train) == 8
    for number in (1, 2):
        with h5py.File(tmp_path / "fold" / f"episode_{number}.hdf5", "a") as file:
            file["action"][1, 2] = np.nan
    with pytest.raises(ValueError, match=r"does not say which robot it is, and .*episode_0.hdf5: 'action' is nan at step 1"):
        resolve_datasets("fold", tmp_path)


def test_lerobot_episodes_have_their_own_numbers(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "door", [make_lerobot_episode(5, seed) for seed in range(3)])
    entry = DatasetEntry(image_obs_keys={"primary": "top"}, robot_platform="METAWORLD")
    index = load_index(open_source(folder, entry), entry, identity_dataset_transform, tmp_path / "cache")
    assert _found(tmp_path, json.dumps(["episode 1"]), {"door": index}, "bad.json") == {"door": [1]}


def test_a_recording_without_one_of_the_cameras_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    for number in range(3):
        write_aloha(tmp_path / "fold" / f"episode_{number}.hdf5", 4, number, instruction="fold")
    with h5py.File(tmp_path / "fold" / "episode_1.hdf5", "a") as file:
        del file["observations/images/cam_left_wrist"]
    entry = DatasetEntry(image_obs_keys={"primary": "cam_high", "left_wrist": "cam_left_wrist"}, robot_platform="ALOHA", action_encoding=3)
    spec = DatasetSpec("fold", entry, tmp_path / "fold", ROBOT_PLATFORMS["ALOHA"], identity_dataset_transform)
    options = {"cameras": ("primary", "left_wrist"), "use_proprio": False}
    with pytest.raises(ValueError, match=r"episode_1.hdf5: no key 'cam_left_wrist'.*1 of 3 episodes cannot be used.*one a line: train 1\)"):
        load_training_data([spec], dataclasses.replace(OPTIONS, **options))
    assert len(_load(tmp_path, spec, "episode_1.hdf5", **options).train) == 2 * 4
