from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from rlds_writer import make_episode, smooth_image, write_dataset

from prismatic.vla.datasets.episodes import IMAGE_REF
from prismatic.vla.datasets.rlds.source import RldsSource
from prismatic.vla.datasets.sources import find_dataset_folder
from prismatic.vla.images import encode_jpeg


def test_episodes_come_in_order_with_their_arrays_texts_and_image_places(tmp_path: Path) -> None:
    train, val = [make_episode(5, seed=1), make_episode(3, seed=2, instruction="öffne die Schublade")], [make_episode(2, seed=3)]
    source = RldsSource(write_dataset(tmp_path, "Set", {"train": train, "val": val}))
    episodes = list(source.episodes())
    assert [episode.split for episode in episodes] == ["train", "train", "val"]
    assert source.num_episodes == 3
    for episode, written in zip(episodes, [*train, *val], strict=True):
        trajectory = episode.trajectory
        np.testing.assert_array_equal(trajectory["action"], written["action"])
        np.testing.assert_array_equal(trajectory["observation"]["state"], written["observation/state"])
        assert trajectory["is_first"].dtype == bool
        assert trajectory["language_instruction"].tolist() == written["language_instruction"]
        references = trajectory["observation"]["wrist_image"]
        assert references.dtype == IMAGE_REF
        for reference, encoded in zip(references, written["observation/wrist_image"], strict=True):
            data = source.files[reference["file"]].read_bytes()
            assert data[reference["offset"] : reference["offset"] + reference["length"]] == encoded


def test_nested_step_features_become_nested_dictionaries(tmp_path: Path) -> None:
    episode = {
        "action/arm/joints": np.ones((3, 6), np.float32),
        "action/gripper": np.arange(3),
        "observation/image": [encode_jpeg(smooth_image(0, 8, 8))] * 3,
    }
    trajectory = next(RldsSource(write_dataset(tmp_path, "nested", {"train": [episode]})).episodes()).trajectory
    assert trajectory["action"]["arm"]["joints"].shape == (3, 6)
    np.testing.assert_array_equal(trajectory["action"]["gripper"], [0, 1, 2])


def test_the_newest_version_is_taken_unless_one_is_named(tmp_path: Path) -> None:
    for version in ("1.0.0", "10.0.0", "2.0.0"):
        write_dataset(tmp_path, "My_Set", {"train": [make_episode(2)]}, version)
    assert find_dataset_folder(tmp_path, "My_Set").name == "10.0.0"
    assert find_dataset_folder(tmp_path, "My_Set:1.0.0").name == "1.0.0"
    with pytest.raises(ValueError, match=r"no version 3\.0\.0 .*found: 1\.0\.0, 10\.0\.0, 2\.0\.0"):
        find_dataset_folder(tmp_path, "my_set:3.0.0")


def test_a_folder_without_version_level_is_read(tmp_path: Path) -> None:
    write_dataset(tmp_path, "flat", {"train": [make_episode(2)]}).rename(tmp_path / "moved")
    assert find_dataset_folder(tmp_path, "moved") == tmp_path / "moved"


def test_a_missing_folder_lists_what_is_there(tmp_path: Path) -> None:
    write_dataset(tmp_path, "present", {"train": [make_episode(2)]})
    with pytest.raises(ValueError, match="holds: present"):
        find_dataset_folder(tmp_path, "absent")
    with pytest.raises(ValueError, match=r"data_root_dir .* is not a folder"):
        find_dataset_folder(tmp_path / "nowhere", "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no recordings.*found: nothing"):
        find_dataset_folder(tmp_path, "empty")


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "broken", {"train": [make_episode(2), make_episode(3)]})
    info = json.loads((folder / "dataset_info.json").read_text())
    shard = next(folder.glob("*tfrecord*"))
    complete = shard.read_bytes()

    shard.write_bytes(complete[: len(complete) // 2])
    first, second = RldsSource(folder).episodes()
    assert (first.problem, second.trajectory) == ("", {})
    assert re.search(r"broken-train.* byte \d+: the record has \d+ bytes, but the file ends after \d+", second.problem)
    shard.write_bytes(complete[:40] + b"?" + complete[41:])  # one byte of the first episode
    first, second = RldsSource(folder).episodes()
    assert re.search(r"broken-train.* byte 0: the checksum of the record's content is wrong", first.problem)
    assert len(second.trajectory["action"]) == 3
    shard.write_bytes(complete)

    info["splits"][0]["shardLengths"] = ["3"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"holds 2 episodes, dataset_info\.json says 3"):
        list(RldsSource(folder).episodes())

    info["splits"][0]["shardLengths"] = ["1", "1"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="00000-of-00002 is absent"):
        RldsSource(folder)

    (folder / "dataset_info.json").write_text(json.dumps({**info, "splits": []}))
    with pytest.raises(ValueError, match="lists no shards"):
        RldsSource(folder)

    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "array_record"}))
    with pytest.raises(ValueError, match="array_record"):
        RldsSource(folder)

    for content in (b"{", b'{"name": "\xff\xfe"}'):
        (folder / "dataset_info.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"dataset_info.json is not valid JSON"):
            RldsSource(folder)

    for odd in ({**info, "splits": [None]}, {name: value for name, value in info.items() if name != "name"}):
        (folder / "dataset_info.json").write_text(json.dumps(odd))
        with pytest.raises(ValueError, match=r"dataset_info.json is not as tensorflow-datasets writes it .*copy the data set again"):
            RldsSource(folder)

    (folder / "features.json").unlink()
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"features\.json is absent"):
        RldsSource(folder)


def test_a_dtype_that_numpy_does_not_know_is_named(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "odd", {"train": [make_episode(4)]})
    text = (folder / "features.json").read_text()
    (folder / "features.json").write_text(text.replace('"float32"', '"float42"', 1))
    with pytest.raises(ValueError, match=r"features.json says that \S+ is of the dtype 'float42', which NumPy does not know"):
        RldsSource(folder)


def test_features_that_contradict_the_record_are_named(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "odd", {"train": [make_episode(4)]})
    text = (folder / "features.json").read_text()
    (folder / "features.json").write_text(text.replace('"dimensions": ["4"]', '"dimensions": ["5"]'))
    (episode,) = RldsSource(folder).episodes()
    assert "episode 0" in episode.problem
