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

from prismatic.vla.datasets.episodes import IMAGE_REF, Episode, RawEpisode, standardize
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
    invert_gripper_actions,
    rel2abs_gripper_actions,
    select_steps,
)
from prismatic.vla.datasets.rlds.oxe.transforms import Trajectory, find_transform

T = 6
RLDS = "_converted_externally_to_rlds"


def _numbers(width: int | None, low: float = -1, high: float = 1) -> np.ndarray:
    """float32 [T, width], or [T]."""
    shape = T if width is None else (T, width)
    return np.random.default_rng(width or 0).uniform(low, high, shape).astype(np.float32)


def _texts() -> np.ndarray:
    return np.array(["do it"] * T, object)


def _recording(action: Any, instruction: np.ndarray | None = None, **observation: Any) -> Trajectory:
    return {"action": action, "observation": observation, "language_instruction": _texts() if instruction is None else instruction}


def _observed(action: Any, **observation: Any) -> Trajectory:
    return {"action": action, "observation": {**observation, "natural_language_instruction": _texts()}}


def _vectors(**gripper: Any) -> dict[str, Any]:
    return {"world_vector": _numbers(3), "rotation_delta": _numbers(3), **gripper}


def _closedness(width: int | None) -> dict[str, Any]:
    return _vectors(gripper_closedness_action=np.sign(_numbers(width)))


def _plain(action: int = 7, **widths: int) -> Trajectory:
    """Actions of that width whose last column is a gripper in 0 .. 1, and observations of the widths given."""
    rows = _numbers(action)
    rows[:, -1] = np.arange(T) % 2
    return _recording(rows, **{key: _numbers(width) for key, width in widths.items()})


def _with_action(trajectory: Trajectory, column: int, values: Any) -> Trajectory:
    action = trajectory["action"].copy()
    action[:, column] = values
    return {**trajectory, "action": action}


def _tdroid() -> Trajectory:
    return _plain(7, cartesian_position=6, gripper_position=1)


def _droid() -> Trajectory:
    command = {"cartesian_velocity": _numbers(6), "gripper_position": _numbers(1, 0, 1)}
    return {**_plain(7, cartesian_position=6, gripper_position=1), "action_dict": command}


def _gnm() -> Trajectory:
    return _plain(2, state=3, position=2, yaw=1)


def _language_table() -> Trajectory:
    points = np.zeros((T, 20), np.int32)
    points[:, :5] = [ord(letter) for letter in "do it"]
    return {"action": _numbers(2), "observation": {"effector_translation": _numbers(2), "instruction": points}}


def _bc_z() -> Trajectory:
    action = {"future": {"xyz_residual": _numbers(30), "axis_angle_residual": _numbers(30), "target_close": np.ones((T, 10), np.int64)}}
    present = {"xyz": _numbers(3), "axis_angle": _numbers(3), "sensed_close": _numbers(1)}
    return _observed(action, present=present)


def _kuka() -> Trajectory:
    state = {"clip_function_input": {"base_pose_tool_reached": _numbers(7)}, "gripper_closed": _numbers(1)}
    return _observed(_closedness(1), **state)


def _rt1() -> Trajectory:
    return _observed(_closedness(1), base_pose_tool_reached=_numbers(7), gripper_closed=_numbers(1))


def _asu() -> Trajectory:
    return {**_plain(7, state=7), "ground_truth_states": {"EE": _numbers(6)}}


def _rh20t() -> Trajectory:
    return _recording({"tcp_base": _numbers(6), "gripper": _numbers(None, 0, 1)}, tcp_base=_numbers(6), gripper_width=_numbers(None))


def _bridge_oxe() -> Trajectory:
    return _observed(_vectors(open_gripper=np.arange(T) % 2 == 1), state=_numbers(7))


def _taco() -> Trajectory:
    return _observed({"rel_actions_world": _numbers(7)}, robot_obs=_numbers(15))


def _jaco() -> Trajectory:
    return _observed(_closedness(1), end_effector_cartesian_pos=_numbers(7))


def _fmb() -> Trajectory:
    trajectory = _plain(7, eef_pose=6)
    return {**trajectory, "observation": {**trajectory["observation"], "state_gripper_pose": _numbers(None)}}


# Name -> (recording, action dim, state dim). Data sets that are recorded alike share a line.
LAYOUTS: dict[str, tuple[Any, int, int]] = {
    **{f"libero_{suite}_no_noops": (lambda: _plain(7, state=8), 7, 8) for suite in ("spatial", "object", "goal", "10", "4_task_suites")},
    **{f"libero_{suite}_scripted": (lambda: _plain(7, state=8), 7, 8) for suite in ("spatial", "object")},
    **{name: (lambda: _plain(14, state=14), 14, 14) for name in OXE_DATASET_CONFIGS if name.startswith(("aloha1_", "aloha_sim_"))},
    "metaworld_demo": (lambda: _plain(4, state=4), 4, 4),
    "metaworld_base": (lambda: _plain(4, state=4), 4, 4),
    "single_joint_task_sample": (lambda: _plain(8, state=8), 8, 8),
    "single_eef_task_sample": (lambda: _plain(7, state=7), 7, 7),
    "dual_joint_task_sample": (lambda: _plain(16, state=16), 16, 16),
    "dual_eef_task_sample": (lambda: _plain(14, state=14), 14, 14),
    "fractal20220817_data": (_rt1, 7, 8),
    "kuka": (_kuka, 7, 8),
    "bridge_oxe": (_bridge_oxe, 7, 7),
    "bridge_orig": (lambda: _plain(7, state=7), 7, 7),
    "bridge_dataset": (lambda: _plain(7, state=7), 7, 7),
    "taco_play": (_taco, 7, 8),
    "jaco_play": (_jaco, 7, 8),
    "berkeley_cable_routing": (lambda: _observed(_vectors(), robot_state=_numbers(7)), 7, 8),
    "roboturk": (lambda: _observed(_closedness(1)), 7, 8),
    "nyu_door_opening_surprising_effectiveness": (lambda: _observed(_closedness(1)), 7, 8),
    "viola": (lambda: _observed(_closedness(None), joint_states=_numbers(7), gripper_states=_numbers(1)), 7, 8),
    "berkeley_autolab_ur5": (lambda: _observed(_closedness(None), robot_state=_numbers(15)), 7, 8),
    "toto": (lambda: _observed(_vectors(open_gripper=np.arange(T) % 2 == 1), state=_numbers(7)), 7, 8),
    "language_table": (_language_table, 7, 8),
    "columbia_cairlab_pusht_real": (
        lambda: _observed(_vectors(gripper_closedness_action=np.ones(T, np.float32)), robot_state=_numbers(2)),
        7,
        8,
    ),
    f"stanford_kuka_multimodal_dataset{RLDS}": (lambda: _plain(4, ee_position=3, ee_orientation=4), 7, 8),
    f"nyu_rot_dataset{RLDS}": (lambda: _plain(7, state=7), 7, 7),
    f"stanford_hydra_dataset{RLDS}": (lambda: _plain(7, state=27), 7, 7),
    f"austin_buds_dataset{RLDS}": (lambda: _plain(7, state=24), 7, 8),
    f"nyu_franka_play_dataset{RLDS}": (lambda: _with_action(_plain(15, state=13), -2, np.arange(T) % 2), 7, 8),
    f"maniskill_dataset{RLDS}": (lambda: _plain(7, state=18, tcp_pose=7), 7, 8),
    f"furniture_bench_dataset{RLDS}": (lambda: _plain(8, state=35), 7, 8),
    f"cmu_franka_exploration_dataset{RLDS}": (lambda: _with_action(_plain(8), 6, 1), 7, 8),
    f"ucsd_kitchen_dataset{RLDS}": (lambda: _with_action(_plain(8, state=21), 6, 1), 7, 8),
    f"ucsd_pick_and_place_dataset{RLDS}": (lambda: _plain(4, state=7), 7, 7),
    f"austin_sailor_dataset{RLDS}": (lambda: _plain(7, state=8), 7, 8),
    f"austin_sirius_dataset{RLDS}": (lambda: _plain(7, state=8), 7, 8),
    "bc_z": (_bc_z, 7, 8),
    f"utokyo_pr2_opening_fridge{RLDS}": (lambda: _with_action(_plain(8, state=7), 6, 1), 7, 7),
    f"utokyo_pr2_tabletop_manipulation{RLDS}": (lambda: _with_action(_plain(8, state=7), 6, 1), 7, 7),
    f"utokyo_xarm_pick_and_place{RLDS}": (lambda: _plain(7, end_effector_pose=6), 7, 8),
    f"utokyo_xarm_bimanual{RLDS}": (lambda: _plain(14, pose_r=6), 7, 8),
    "robo_net": (lambda: _plain(5, state=5), 7, 7),
    f"berkeley_mvp{RLDS}": (lambda: _plain(8, pose=7, gripper=1), 8, 8),
    f"berkeley_rpt{RLDS}": (lambda: _plain(8, joint_pos=7, gripper=1), 8, 8),
    f"kaist_nonprehensile{RLDS}": (lambda: _plain(20, state=21), 7, 8),
    f"stanford_mask_vit{RLDS}": (lambda: _plain(5, end_effector_pose=5), 7, 7),
    f"tokyo_u_lsmo{RLDS}": (lambda: _plain(7, state=13), 7, 7),
    f"dlr_sara_pour{RLDS}": (lambda: _plain(7, state=6), 7, 8),
    f"dlr_sara_grid_clamp{RLDS}": (lambda: _plain(7, state=12), 7, 8),
    f"dlr_edan_shared_control{RLDS}": (lambda: _plain(7, state=7), 7, 8),
    f"asu_table_top{RLDS}": (_asu, 7, 7),
    f"stanford_robocook{RLDS}": (lambda: _plain(7, state=7), 7, 7),
    "imperialcollege_sawyer_wrist_cam": (lambda: _with_action(_plain(8, state=1), 6, 1), 7, 8),
    f"iamlab_cmu_pickup_insert{RLDS}": (lambda: _plain(8, state=20), 7, 8),
    "uiuc_d3field": (lambda: _plain(3), 7, 8),
    "utaustin_mutex": (lambda: _plain(7, state=24), 7, 8),
    "berkeley_fanuc_manipulation": (lambda: _recording(_numbers(6), state=np.ones((T, 13), np.float32)), 7, 8),
    "cmu_playing_with_food": (lambda: _plain(8, state=6), 7, 8),
    "cmu_play_fusion": (lambda: _plain(9, state=8), 7, 8),
    "cmu_stretch": (lambda: _with_action(_plain(8, state=4), 6, 1), 7, 7),
    **{f"berkeley_gnm_{place}": (_gnm, 7, 8) for place in ("recon", "cory_hall", "sac_son")},
    "droid": (_droid, 7, 7),
    "droid_wipe": (_droid, 7, 7),
    "fmb_dataset": (_fmb, 7, 7),
    "dobbe": (lambda: _plain(7, state=7), 7, 7),
    "roboset": (lambda: _plain(8, state=8), 8, 8),
    "rh20t": (_rh20t, 7, 7),
    **{name: (_tdroid, 7, 7) for name in OXE_DATASET_CONFIGS if name.startswith("tdroid_")},
}
# Their gripper is as recorded, outside 0 .. 1 in these random rows.
WITHOUT_RANGE = {name for name, entry in OXE_DATASET_CONFIGS.items() if int(find_entry(name).action_encoding) in (2, 3)}


def _record(name: str) -> Trajectory:
    """The recording of `name` with its cameras: the offset of an image tells camera and step."""
    trajectory = LAYOUTS[name][0]()
    entry = find_entry(name)
    for number, key in enumerate([*entry.cameras.values()], start=1):
        references = np.zeros(T, IMAGE_REF)
        references["offset"] = 100 * number + np.arange(T)
        trajectory["observation"][key] = references
    if "droid" in name and "tdroid" not in name:  # the outer cameras may change places, so both are there
        for key in ("exterior_image_1_left", "exterior_image_2_left"):
            trajectory["observation"].setdefault(key, np.zeros(T, IMAGE_REF))
    return trajectory


def _standard(name: str) -> Episode:
    entry = find_entry(name)
    return standardize(RawEpisode("train", name, _record(name)), entry, NumpyTransform(find_transform(name, entry.transform)))


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
    recording = _record(name)
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
    recording = _record("bridge_orig")
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
    recording = _record("droid")
    result = transforms.droid_wristact_transform(recording)
    assert result["action"].shape == (T, 10)
    np.testing.assert_array_equal(result["action"][:, -1:], recording["action_dict"]["gripper_position"])


def test_droid_swaps_its_outer_cameras_in_half_of_the_episodes_always_the_same() -> None:
    swapped = []
    for seed in range(200):
        recording = _record("droid")
        recording["observation"]["cartesian_position"] = np.random.default_rng(seed).normal(size=(T, 6)).astype(np.float32)
        results = [transforms.droid_baseact_transform(recording)["observation"]["exterior_image_1_left"] for _ in range(2)]
        np.testing.assert_array_equal(*results)
        swapped.append(results[0]["offset"][0] != recording["observation"]["exterior_image_1_left"]["offset"][0])
    assert 70 < sum(swapped) < 130


def test_kuka_states_are_read_compressed_and_plain() -> None:
    plain = _record("kuka")
    pose = plain["observation"]["clip_function_input"]["base_pose_tool_reached"]
    packed = np.array([zlib.compress(row.tobytes()) for row in pose], object)
    compressed = {**plain, "observation": {**plain["observation"], "clip_function_input/base_pose_tool_reached": packed}}
    for recording in (plain, compressed):
        result = transforms.kuka_dataset_transform(recording)["observation"]["clip_function_input/base_pose_tool_reached"]
        np.testing.assert_array_equal(result, pose)


def test_selecting_steps_goes_through_groups() -> None:
    selected = select_steps({"a": {"b": np.arange(4)}, "language_instruction": "one for all"}, slice(1, None))
    assert selected["a"]["b"].tolist() == [1, 2, 3]
    assert selected["language_instruction"] == "one for all"


def test_a_transform_that_assigns_into_its_argument_leaves_the_recording_alone() -> None:
    def familiar_style(trajectory: Trajectory) -> Trajectory:
        trajectory["observation"]["proprio"] = trajectory["observation"].pop("state")
        trajectory["action"] = trajectory["action"][:, :6]
        return trajectory

    recording = _record("dobbe")
    before = copy.deepcopy(recording)
    assert NumpyTransform(familiar_style)(recording)["action"].shape == (T, 6)
    assert _same(before, recording)


def test_a_recording_that_lacks_what_the_transform_takes_is_named() -> None:
    raw = RawEpisode("train", "episode 3", {"action": {"world_vector": _numbers(3)}, "observation": {}})
    with pytest.raises(ValueError, match=r"episode 3.*transform toto_dataset_transform needs the key 'open_gripper'"):
        standardize(raw, find_entry("toto"), NumpyTransform(find_transform("toto", None)))


@pytest.mark.rlds
def test_a_transform_written_with_tensorflow_runs_eagerly(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs the extra [rlds]")
    action, state = _numbers(7), _numbers(8)
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
    assert "tf.strings.upper" in str(episode["source"])


def test_a_zero_quaternion_is_no_rotation() -> None:
    quaternions = np.array([[0.0, 0, 0, 0], [0, 0, 2 * np.sin(0.25), 2 * np.cos(0.25)]], np.float32)
    np.testing.assert_allclose(quaternion_to_euler(quaternions), [[0, 0, 0], [0, 0, 0.5]], atol=1e-6)
