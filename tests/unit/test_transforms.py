"""Every published entry, on a small trajectory in the layout of its data set: widths, gripper, images, nothing altered.

Letters: T steps.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oxe_recordings import LAYOUTS, T, random_rows, record, write_recording

from prismatic.vla.datasets.episodes import Episode, RawEpisode, standardize
from prismatic.vla.datasets.rlds.oxe import transforms
from prismatic.vla.datasets.rlds.oxe.configs import OXE_DATASET_CONFIGS, find_entry
from prismatic.vla.datasets.rlds.oxe.materialize import NumpyTransform
from prismatic.vla.datasets.rlds.oxe.rotations import (
    euler_to_matrix,
    euler_to_quaternion,
    matrix_to_rot6d,
    quaternion_to_euler,
    rot6d_to_matrix,
    velocity_in_tool_frame,
)
from prismatic.vla.datasets.rlds.oxe.trajectories import (
    binarize_gripper_actions,
    find_value,
    invert_gripper_actions,
    rel2abs_gripper_actions,
    select_steps,
)
from prismatic.vla.datasets.rlds.oxe.transforms import Trajectory, find_transform
from prismatic.vla.datasets.rlds.source import RldsSource

# Their gripper is as recorded, outside 0 .. 1 in these random rows.
WITHOUT_RANGE = {name for name, entry in OXE_DATASET_CONFIGS.items() if int(find_entry(name).action_encoding) in (2, 3)}


def _standard(name: str) -> Episode:
    entry = find_entry(name)
    return standardize(RawEpisode("train", name, record(name)), entry, NumpyTransform(find_transform(name, entry.transform)))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    return np.array_equal(one, other)


def test_every_entry_has_a_layout_here() -> None:
    assert set(LAYOUTS) == set(OXE_DATASET_CONFIGS)


@pytest.mark.parametrize("name", OXE_DATASET_CONFIGS)
def test_entry_and_transform_fit_each_other(name: str) -> None:
    _, action_dim, state_dim = LAYOUTS[name]
    episode = _standard(name)
    dropped = 2 if name.startswith("bridge") else 0  # the first step, whose action says nothing, and the last
    assert episode.actions.shape == (T - dropped, action_dim)
    assert episode.proprio.shape == (T - dropped, state_dim)
    assert episode.instructions == ["do it"] * (T - dropped)
    if name not in WITHOUT_RANGE:
        gripper = episode.actions[:, -1]
        assert gripper.min() >= 0
        assert gripper.max() <= 1


@pytest.mark.parametrize("name", OXE_DATASET_CONFIGS)
def test_images_stay_with_their_steps(name: str) -> None:
    episode = _standard(name)
    first = 1 if name.startswith("bridge") else 0
    offsets = episode.images["offset"]
    np.testing.assert_array_equal(offsets % 100, np.tile(np.arange(first, first + len(offsets))[:, None], (1, offsets.shape[1])))
    assert sorted(set(offsets.ravel() // 100)) == list(range(1, offsets.shape[1] + 1))


@pytest.mark.parametrize("name", OXE_DATASET_CONFIGS)
def test_a_transform_alters_nothing_that_it_is_given_and_repeats_itself(name: str) -> None:
    recording = record(name)
    before = copy.deepcopy(recording)
    transform = find_transform(name, find_entry(name).transform)
    first, second = transform(recording), transform(recording)
    assert _same(before, recording)
    assert _same(first, second)


def test_binarizing_gives_a_value_in_between_what_is_reached_after_it() -> None:
    assert binarize_gripper_actions(np.array([1, 0.7, 0.3, 0, 0.02, 0.5, 0.96])).tolist() == [1, 0, 0, 0, 0, 1, 1]
    np.testing.assert_allclose(binarize_gripper_actions(np.array([0.0, 0.4, 0.6])), [0, 0.6, 0.6], rtol=1e-6)
    assert binarize_gripper_actions(np.zeros(0)).shape == (0,)


def test_relative_gripper_commands_become_states() -> None:
    assert rel2abs_gripper_actions(np.array([0, 0.05, 1, 0, -1, 0])).tolist() == [1, 1, 0, 0, 1, 1]
    assert rel2abs_gripper_actions(np.array([0, -1, 0, 1])).tolist() == [0, 1, 1, 0]
    assert rel2abs_gripper_actions(np.zeros(3)).tolist() == [1, 1, 1]


def test_inverting_twice_changes_nothing() -> None:
    values = np.array([0, 0.25, 1])
    np.testing.assert_array_equal(invert_gripper_actions(invert_gripper_actions(values)), values)


def test_bridge_motions_lead_from_each_state_to_the_next() -> None:
    recording = record("bridge_orig")
    episode = _standard("bridge_orig")
    pose = recording["observation"]["state"][1:, :6]
    np.testing.assert_allclose(pose[:-1] + episode.actions[:, :6], pose[1:], atol=1e-6)
    np.testing.assert_array_equal(episode.actions[:, 6], recording["action"][1:-1, 6])


def test_euler_angles_follow_the_published_formula() -> None:
    quaternions = np.random.default_rng(0).normal(size=(50, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    x, y, z, w = quaternions.T
    roll = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = np.arcsin(2 * (w * y - z * x))
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    np.testing.assert_allclose(quaternion_to_euler(quaternions), np.stack([roll, pitch, yaw], 1), atol=1e-5)


def test_rotations_come_back_from_every_form() -> None:
    angles = np.random.default_rng(1).uniform(-1.4, 1.4, (20, 3))
    np.testing.assert_allclose(quaternion_to_euler(euler_to_quaternion(angles)), angles, atol=1e-5)
    matrices = euler_to_matrix(angles)
    np.testing.assert_allclose(rot6d_to_matrix(matrix_to_rot6d(matrices)), matrices, atol=1e-6)
    np.testing.assert_allclose(rot6d_to_matrix(3 * matrix_to_rot6d(matrices)), matrices, atol=1e-6)  # of any length
    empty = np.zeros((0, 4))
    assert quaternion_to_euler(empty).shape == (0, 3)
    assert velocity_in_tool_frame(np.zeros((0, 6)), np.zeros((0, 3))).shape == (0, 9)


def test_velocity_in_the_frame_of_a_turned_tool() -> None:
    tool = np.array([[0, 0, np.pi / 2]])  # the tool's x axis points along the base's y
    moved = velocity_in_tool_frame(np.array([[0, 1, 0, 0, 0.3, 0]]), tool)
    np.testing.assert_allclose(moved[0, :3], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(rot6d_to_matrix(moved[:, 3:]), euler_to_matrix(np.array([[0.3, 0, 0]])), atol=1e-6)


def test_droid_actions_in_the_frame_of_the_wrist_have_10_dimensions() -> None:
    recording = record("droid")
    result = transforms.droid_wristact_transform(recording)
    assert result["action"].shape == (T, 10)
    np.testing.assert_array_equal(result["action"][:, -1:], recording["action_dict"]["gripper_position"])


def test_droid_swaps_its_outer_cameras_in_half_of_the_episodes_always_the_same() -> None:
    swapped = []
    for seed in range(200):
        recording = record("droid")
        recording["observation"]["cartesian_position"] = np.random.default_rng(seed).normal(size=(T, 6)).astype(np.float32)
        results = [transforms.droid_baseact_transform(recording)["observation"]["exterior_image_1_left"] for _ in range(2)]
        np.testing.assert_array_equal(*results)
        swapped.append(results[0]["offset"][0] != recording["observation"]["exterior_image_1_left"]["offset"][0])
    assert 70 < sum(swapped) < 130


def test_kuka_states_are_read_compressed_and_plain() -> None:
    plain = record("kuka")
    pose = plain["observation"]["clip_function_input"]["base_pose_tool_reached"]
    packed = np.array([zlib.compress(row.tobytes()) for row in pose], object)
    compressed = {**plain, "observation": {**plain["observation"], "clip_function_input/base_pose_tool_reached": packed}}
    for recording in (plain, compressed):
        result = transforms.kuka_dataset_transform(recording)["observation"]["clip_function_input/base_pose_tool_reached"]
        np.testing.assert_array_equal(result, pose)


def test_kuka_states_that_the_reader_delivers_compressed_are_read(tmp_path: Path) -> None:
    plain = record("kuka")["observation"]
    packed = {
        path: np.array([zlib.compress(row.tobytes(), level=1) for row in find_value(plain, path)], object)
        for path in ("clip_function_input/base_pose_tool_reached", "gripper_closed")
    }
    recording = record("kuka")
    recording["observation"]["clip_function_input"] = {"base_pose_tool_reached": packed["clip_function_input/base_pose_tool_reached"]}
    recording["observation"]["gripper_closed"] = packed["gripper_closed"]
    (raw,) = RldsSource(write_recording(tmp_path, "kuka", recording=recording)).episodes()
    episode = standardize(raw, find_entry("kuka"), NumpyTransform(find_transform("kuka", None)))
    expected = np.concatenate([find_value(plain, path) for path in packed], axis=1)
    np.testing.assert_array_equal(episode.proprio, expected)


def test_selecting_steps_goes_through_groups() -> None:
    selected = select_steps({"a": {"b": np.arange(4)}, "language_instruction": "one for all"}, slice(1, None))
    assert selected["a"]["b"].tolist() == [1, 2, 3]
    assert selected["language_instruction"] == "one for all"


def test_a_transform_that_assigns_into_its_argument_leaves_the_recording_alone() -> None:
    def familiar_style(trajectory: Trajectory) -> Trajectory:
        trajectory["observation"]["proprio"] = trajectory["observation"].pop("state")
        trajectory["action"] = trajectory["action"][:, :6]
        return trajectory

    recording = record("dobbe")
    before = copy.deepcopy(recording)
    assert NumpyTransform(familiar_style)(recording)["action"].shape == (T, 6)
    assert _same(before, recording)


def test_a_recording_that_lacks_what_the_transform_takes_is_named() -> None:
    raw = RawEpisode("train", "episode 3", {"action": {"world_vector": random_rows(3)}, "observation": {}})
    with pytest.raises(ValueError, match=r"episode 3.*transform toto_dataset_transform needs the key 'open_gripper'"):
        standardize(raw, find_entry("toto"), NumpyTransform(find_transform("toto", None)))


@pytest.mark.rlds
def test_a_transform_written_with_tensorflow_runs_eagerly(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs the extra [rlds]")
    action, state = random_rows(7), random_rows(8)
    np.savez(tmp_path / "episode.npz", action=action, state=state)
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(here / "tensorflow_transform.py"), str(tmp_path / "episode.npz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    episode = np.load(tmp_path / "episode.npz")
    np.testing.assert_allclose(episode["actions"][:, -1], 1 - np.clip(action[1:, -1], 0, 1), rtol=1e-6)
    np.testing.assert_array_equal(episode["proprio"], state[1:])
    np.testing.assert_array_equal(episode["offsets"], np.tile(np.arange(1, T)[:, None], (1, 2)))
    assert episode["instructions"].tolist() == ["DO IT"] * (T - 1)
    assert len(str(episode["key"])) == 64


def test_a_zero_quaternion_is_no_rotation() -> None:
    quaternions = np.array([[0.0, 0, 0, 0], [0, 0, 2 * np.sin(0.25), 2 * np.cos(0.25)]], np.float32)
    np.testing.assert_allclose(quaternion_to_euler(quaternions), [[0, 0, 0], [0, 0, 0.5]], atol=1e-6)
