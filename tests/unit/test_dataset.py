from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlds_writer import Episode, make_episode, write_dataset

from prismatic.vla.datasets.dataset import DatasetOptions, VLADataset
from prismatic.vla.datasets.rlds.oxe import configs, mixtures
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec, resolve_datasets
from prismatic.vla.datasets.sampler import SampleKey
from prismatic.vla.datasets.training_data import TrainingData, load_training_data
from prismatic.vla.images import decode_image, prepare_batch_on_device, resize_lanczos3
from prismatic.vla.normalization import unnormalize
from prismatic.vla.types import Sample

OPTIONS = DatasetOptions(cameras=("primary", "wrist"), image_size=24, use_proprio=True)


def _specs(root: Path, train: list[Episode], **splits: list[Episode]) -> tuple[DatasetSpec, ...]:
    write_dataset(root, "metaworld_demo", {"train": train, **splits})
    return resolve_datasets("metaworld_demo", root)


def _load(root: Path, train: list[Episode], options: DatasetOptions = OPTIONS, **splits: list[Episode]) -> TrainingData:
    return load_training_data(_specs(root, train, **splits), options)


def _raw_actions(data: VLADataset, sample: Sample) -> np.ndarray:
    return unnormalize(sample.actions, data.parts[0].action_bounds)


def test_a_sample_holds_images_state_instruction_and_the_actions_that_follow(tmp_path: Path) -> None:
    episode = make_episode(30, instruction="open the window")
    data = _load(tmp_path, [episode]).train
    sample = data[3]
    assert (sample.images.shape, sample.images.dtype) == ((2, 24, 24, 3), np.uint8)
    np.testing.assert_array_equal(sample.images[1], decode_image(episode["observation/wrist_image"][3]))
    assert (sample.instruction, sample.sample_id) == ("open the window", 3)
    assert sample.actions.dtype == np.float32
    inside = np.abs(sample.actions[:, :3]) < 1  # beyond the 1st and 99th percentile values are clipped
    raw = _raw_actions(data, sample)[:, :3]
    np.testing.assert_allclose(raw[inside], episode["action"][3:11, :3][inside], atol=1e-6)
    np.testing.assert_array_equal(sample.actions[:, 3], episode["action"][3:11, 3])  # the gripper keeps its command
    assert sample.proprio is not None
    assert np.abs(sample.proprio).max() <= 1


def test_the_end_of_an_episode_repeats_targets_and_stops_motions(tmp_path: Path) -> None:
    episode = make_episode(12)
    data = _load(tmp_path, [episode, make_episode(5, seed=1)]).train
    assert len(data) == 12 + 5
    last = data[11]
    np.testing.assert_array_equal(last.actions[:, 3], np.full(8, episode["action"][11, 3]))
    np.testing.assert_allclose(_raw_actions(data, last)[1:, :3], 0, atol=1e-6)
    two_left = _raw_actions(data, data[10])
    np.testing.assert_allclose(two_left[2:, :3], 0, atol=1e-6)
    assert np.abs(two_left[:2, :3]).min() > 0


def test_absolute_joint_actions_repeat_the_last_target(tmp_path: Path) -> None:
    write_dataset(tmp_path, "single_joint_task_sample", {"train": [make_episode(6, action_dim=8, state_dim=8)]})
    data = load_training_data(resolve_datasets("single_joint_task_sample", tmp_path), OPTIONS).train
    chunk = data[4].actions
    assert chunk.shape == (25, 8)
    np.testing.assert_array_equal(chunk[1:], np.repeat(chunk[1:2], 24, 0))
    assert not np.array_equal(chunk[0], chunk[1])


def test_the_published_tail_leaves_out_the_last_steps_and_short_episodes(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, published_tail=True)
    data = _load(tmp_path, [make_episode(12), make_episode(5, seed=1), make_episode(8, seed=2)], options).train
    assert len(data) == 5 + 0 + 1
    assert data[5].sample_id == 5
    with pytest.raises(IndexError):
        data[6]


def test_only_short_episodes_with_the_published_tail_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no episode is as long as the chunk of 8"):
        _load(tmp_path, [make_episode(5)], dataclasses.replace(OPTIONS, published_tail=True))


def test_an_episode_of_one_step_is_a_sample(tmp_path: Path) -> None:
    data = _load(tmp_path, [make_episode(1), make_episode(9, seed=1)]).train
    assert len(data) == 10
    assert data[0].actions.shape == (8, 4)


def test_images_of_another_size_are_resized(tmp_path: Path) -> None:
    episode = make_episode(2, size=40)
    data = _load(tmp_path, [episode]).train
    np.testing.assert_array_equal(data[1].images[0], resize_lanczos3(decode_image(episode["observation/image"][1]), 24))


def test_unused_cameras_and_state_are_left_out(tmp_path: Path) -> None:
    data = _load(tmp_path, [make_episode(2)], DatasetOptions(cameras=("primary",), image_size=24)).train
    assert data[0].images.shape == (1, 24, 24, 3)
    assert data[0].proprio is None


def test_augmentation_follows_from_seed_pass_and_sample_alone(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, augment=True)
    specs = _specs(tmp_path, [make_episode(6)])
    first, again = load_training_data(specs, options).train, load_training_data(specs, options).train
    other_seed = load_training_data(specs, dataclasses.replace(options, seed=8)).train
    for sample in (5, 0):  # in any order
        np.testing.assert_array_equal(first[SampleKey(sample, 2)].images, again[SampleKey(sample, 2)].images)
    assert not np.array_equal(first[SampleKey(0, 0)].images, first[SampleKey(0, 1)].images)
    assert not np.array_equal(first[SampleKey(0, 0)].images, other_seed[SampleKey(0, 0)].images)
    np.testing.assert_array_equal(first[SampleKey(0, 0)].actions, first[SampleKey(0, 1)].actions)


def test_a_cached_frame_cannot_be_spoiled_by_its_reader(tmp_path: Path) -> None:
    data = _load(tmp_path, [make_episode(2)]).train
    data[0].images[:] = 0
    assert data[0].images.max() > 0
    data[0].images[:] = 0
    assert data[0].images.max() > 0


def test_a_data_set_can_be_sent_to_a_spawned_process(tmp_path: Path) -> None:
    data = _load(tmp_path, [make_episode(3)]).train
    before = data[1]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data))[1].images, before.images)


def test_episodes_without_instruction_are_dropped_and_counted(tmp_path: Path, caplog: Any) -> None:
    data = _load(tmp_path, [make_episode(4), make_episode(5, seed=1, instruction=" "), make_episode(6, seed=2)])
    assert len(data.train) == 10
    assert "1 of 3 episodes have no instruction" in caplog.text
    assert data.statistics["metaworld_demo"]["num_trajectories"] == 2


def test_published_statistics_cover_every_split_and_episode(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, published_statistics=True)
    episodes = [make_episode(4), make_episode(5, seed=1, instruction="")]
    data = _load(tmp_path, episodes, options, val=[make_episode(3, seed=2)])
    assert data.statistics["metaworld_demo"]["num_transitions"] == 12


def test_no_episode_with_an_instruction_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no episode with an instruction \(of 1\).*language_instruction"):
        _load(tmp_path, [make_episode(4, instruction="")])


def test_the_val_split_is_used_where_there_is_one(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, val_fraction=0.5, augment=True)
    data = _load(tmp_path, [make_episode(4)], options, val=[make_episode(3, seed=2, instruction="close it")])
    assert data.val is not None
    assert (len(data.train), len(data.val), data.val[0].instruction) == (4, 3, "close it")
    np.testing.assert_array_equal(data.val[0].images, data.val[SampleKey(0, 5)].images)  # not augmented
    assert data.statistics["metaworld_demo"]["num_trajectories"] == 1


def test_else_episodes_are_split_off_the_same_ones_every_time(tmp_path: Path) -> None:
    specs = _specs(tmp_path, [make_episode(3, seed=seed, instruction=f"task {seed}", size=1) for seed in range(10)])
    options = dataclasses.replace(OPTIONS, val_fraction=0.2)
    data, again = load_training_data(specs, options), load_training_data(specs, dataclasses.replace(options, seed=99))

    def tasks(dataset: VLADataset | None) -> set[str]:
        assert dataset is not None
        return {dataset.parts[0].instruction(sample) for sample in range(len(dataset))}

    assert len(tasks(data.val)) == 2
    assert tasks(data.train) | tasks(data.val) == {f"task {seed}" for seed in range(10)}
    assert not tasks(data.train) & tasks(data.val)
    assert tasks(data.val) == tasks(again.val)
    assert data.statistics["metaworld_demo"]["num_trajectories"] == 8


def test_one_episode_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is left to validate on"):
        _load(tmp_path, [make_episode(4)], dataclasses.replace(OPTIONS, val_fraction=0.1))


def test_a_set_without_train_split_lists_its_splits(tmp_path: Path) -> None:
    write_dataset(tmp_path, "metaworld_demo", {"test": [make_episode(3)]})
    with pytest.raises(ValueError, match="no split 'train'; found: test"):
        load_training_data(resolve_datasets("metaworld_demo", tmp_path), OPTIONS)


def test_widths_are_checked_against_the_platform(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="actions of 7 dimensions"):
        _load(tmp_path, [make_episode(3, action_dim=7)])
    wide = _specs(tmp_path / "wide", [make_episode(3, state_dim=9)])
    with pytest.raises(ValueError, match="states of 9 dimensions"):
        load_training_data(wide, OPTIONS)
    assert len(load_training_data(wide, dataclasses.replace(OPTIONS, use_proprio=False)).train) == 3


def test_a_camera_that_the_set_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no camera 'left_wrist'.*did you mean wrist"):
        _load(tmp_path, [make_episode(3)], dataclasses.replace(OPTIONS, cameras=("primary", "left_wrist")))


def test_a_mixture_keeps_statistics_apart_and_numbers_samples_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(configs.OXE_DATASET_CONFIGS, "other", configs.find_entry("metaworld_demo"))
    monkeypatch.setitem(mixtures.OXE_NAMED_MIXTURES, "both", (("metaworld_demo", 1.0), ("other", 2.0)))
    scaled = make_episode(6, seed=1, instruction="other task")
    scaled["action"] = scaled["action"] * 100
    write_dataset(tmp_path, "metaworld_demo", {"train": [make_episode(4)]})
    write_dataset(tmp_path, "other", {"train": [scaled]})
    data = load_training_data(resolve_datasets("both", tmp_path), OPTIONS)
    assert list(data.statistics) == ["metaworld_demo", "other"]
    assert max(data.statistics["other"]["action"]["max"]) > 50
    assert [data.train[sample].instruction for sample in (3, 4)] == ["push the button", "other task"]
    assert data.train[9].sample_id == 9
    assert np.abs(data.train[5].actions[:, :3]).max() <= 1
    assert data.train.sampler(seed=0).num_samples_per_epoch == 4 + 12


def test_fewer_joints_are_padded_by_none_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {
        "image_obs_keys": {"primary": "image", "wrist": "wrist_image"},
        "state_obs_keys": ["state", None, None, None],
        "state_encoding": configs.StateEncoding.JOINT,
        "action_encoding": configs.ActionEncoding.JOINT_POS,
        "robot_platform": "SINGLE_JOINT",
    }
    monkeypatch.setitem(configs.OXE_DATASET_CONFIGS, "five_joints", entry)
    write_dataset(tmp_path, "five_joints", {"train": [make_episode(4, action_dim=8, state_dim=5)]})
    sample = load_training_data(resolve_datasets("five_joints", tmp_path), OPTIONS).train[2]
    assert sample.proprio is not None
    assert sample.proprio.shape == (8,)
    assert (sample.proprio[5:] == 0).all()


def test_episodes_without_instruction_take_the_default(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, default_instruction=" lift the cup ")
    data = _load(tmp_path, [make_episode(4), make_episode(5, seed=1, instruction="")], options).train
    assert len(data) == 9
    assert [data[sample].instruction for sample in (0, 8)] == ["push the button", "lift the cup"]
    with pytest.raises(ValueError, match="--default_instruction is empty"):
        dataclasses.replace(OPTIONS, default_instruction=" ")


def test_an_empty_train_split_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path, "metaworld_demo", {"val": [make_episode(3)], "train": []})
    with pytest.raises(ValueError, match="no split 'train'; found: val"):
        load_training_data(resolve_datasets("metaworld_demo", tmp_path), OPTIONS)


def test_the_device_gets_recorded_frames_and_draws_that_give_the_same_pixels(tmp_path: Path) -> None:
    specs = _specs(tmp_path, [make_episode(6, size=40)])
    options = dataclasses.replace(OPTIONS, augment=True, frame_cache_bytes=0)
    on_cpu = load_training_data(specs, options).train
    on_device = load_training_data(specs, dataclasses.replace(options, device_augmentation=True)).train
    for key in (SampleKey(2, 0), SampleKey(5, 3)):
        recorded, expected = on_device[key], on_cpu[key]
        assert recorded.images.shape == (2, 40, 40, 3)
        assert expected.draw is None
        assert recorded.draw is not None
        prepared = prepare_batch_on_device(torch.from_numpy(recorded.images[None]), torch.from_numpy(recorded.draw[None]), 24)
        assert np.abs(prepared[0].numpy().astype(int) - expected.images).mean() < 0.1
        np.testing.assert_array_equal(recorded.actions, expected.actions)


def test_cameras_of_different_sizes_are_resized_by_the_worker(tmp_path: Path) -> None:
    episode = {**make_episode(3, size=40), "observation/wrist_image": make_episode(3, size=32)["observation/wrist_image"]}
    data = _load(tmp_path, [episode], dataclasses.replace(OPTIONS, augment=True, device_augmentation=True, frame_cache_bytes=0)).train
    assert data[0].images.shape == (2, 24, 24, 3)
    assert data[0].draw is not None  # the device still augments


def test_episodes_of_different_image_sizes_are_resized_by_the_worker(tmp_path: Path) -> None:
    episodes = [make_episode(3, seed=number, size=size) for number, size in enumerate((40, 40, 32))]
    options = dataclasses.replace(OPTIONS, augment=True, device_augmentation=True, frame_cache_bytes=0)
    data = _load(tmp_path, episodes, options).train
    assert {data[sample].images.shape for sample in range(9)} == {(2, 24, 24, 3)}
    np.testing.assert_array_equal(data[7].images[0], resize_lanczos3(decode_image(episodes[2]["observation/image"][1]), 24))


def test_frames_that_change_size_within_a_set_are_named(tmp_path: Path) -> None:
    episode = make_episode(3, size=40)
    episode["observation/image"][2] = make_episode(1, size=32)["observation/image"][0]
    data = _load(tmp_path, [episode], dataclasses.replace(OPTIONS, device_augmentation=True, frame_cache_bytes=0)).train
    told = r"metaworld_demo, train episode 0 \(.*\), step 2 has \(32, 32\) \(camera primary\). Leave the flag out"
    with pytest.raises(ValueError, match=rf"--device_augmentation True .* \(40, 40\); {told}"):
        data[2]
