"""Small recordings in the layout of every published data set, as trajectories in memory and as RLDS folders. Letters: T steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rlds_writer import StringTensor, smooth_image, write_dataset

from prismatic.vla.datasets.episodes import IMAGE_REF
from prismatic.vla.datasets.rlds.oxe.configs import OXE_DATASET_CONFIGS, find_entry
from prismatic.vla.datasets.rlds.oxe.trajectories import Trajectory
from prismatic.vla.images import encode_jpeg

T = 6
RLDS = "_converted_externally_to_rlds"


def random_rows(width: int | None, low: float = -1, high: float = 1) -> np.ndarray:
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
    return {"world_vector": random_rows(3), "rotation_delta": random_rows(3), **gripper}


def _closedness(width: int | None) -> dict[str, Any]:
    return _vectors(gripper_closedness_action=np.sign(random_rows(width)))


def _plain(action: int = 7, **widths: int) -> Trajectory:
    """Actions of that width whose last column is a gripper in 0 .. 1, and observations of the widths given."""
    rows = random_rows(action)
    rows[:, -1] = np.arange(T) % 2
    return _recording(rows, **{key: random_rows(width) for key, width in widths.items()})


def _with_action(trajectory: Trajectory, column: int, values: Any) -> Trajectory:
    action = trajectory["action"].copy()
    action[:, column] = values
    return {**trajectory, "action": action}


def _tdroid() -> Trajectory:
    return _plain(7, cartesian_position=6, gripper_position=1)


def _droid() -> Trajectory:
    command = {"cartesian_velocity": random_rows(6), "gripper_position": random_rows(1, 0, 1)}
    return {**_plain(7, cartesian_position=6, gripper_position=1), "action_dict": command}


def _gnm() -> Trajectory:
    return _plain(2, state=3, position=2, yaw=1)


def _language_table() -> Trajectory:
    points = np.zeros((T, 20), np.int32)
    points[:, :5] = [ord(letter) for letter in "do it"]
    return {"action": random_rows(2), "observation": {"effector_translation": random_rows(2), "instruction": points}}


def _bc_z() -> Trajectory:
    action = {
        "future": {"xyz_residual": random_rows(30), "axis_angle_residual": random_rows(30), "target_close": np.ones((T, 10), np.int64)}
    }
    present = {"xyz": random_rows(3), "axis_angle": random_rows(3), "sensed_close": random_rows(1)}
    return _observed(action, present=present)


def _kuka() -> Trajectory:
    state = {"clip_function_input": {"base_pose_tool_reached": random_rows(7)}, "gripper_closed": random_rows(1)}
    return _observed(_closedness(1), **state)


def _rt1() -> Trajectory:
    return _observed(_closedness(1), base_pose_tool_reached=random_rows(7), gripper_closed=random_rows(1))


def _asu() -> Trajectory:
    return {**_plain(7, state=7), "ground_truth_states": {"EE": random_rows(6)}}


def _rh20t() -> Trajectory:
    return _recording(
        {"tcp_base": random_rows(6), "gripper": random_rows(None, 0, 1)}, tcp_base=random_rows(6), gripper_width=random_rows(None)
    )


def _bridge_oxe() -> Trajectory:
    return _observed(_vectors(open_gripper=np.arange(T) % 2 == 1), state=random_rows(7))


def _taco() -> Trajectory:
    return _observed({"rel_actions_world": random_rows(7)}, robot_obs=random_rows(15))


def _jaco() -> Trajectory:
    return _observed(_closedness(1), end_effector_cartesian_pos=random_rows(7))


def _fmb() -> Trajectory:
    trajectory = _plain(7, eef_pose=6)
    return {**trajectory, "observation": {**trajectory["observation"], "state_gripper_pose": random_rows(None)}}


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
    "berkeley_cable_routing": (lambda: _observed(_vectors(), robot_state=random_rows(7)), 7, 8),
    "roboturk": (lambda: _observed(_closedness(1)), 7, 8),
    "nyu_door_opening_surprising_effectiveness": (lambda: _observed(_closedness(1)), 7, 8),
    "viola": (lambda: _observed(_closedness(None), joint_states=random_rows(7), gripper_states=random_rows(1)), 7, 8),
    "berkeley_autolab_ur5": (lambda: _observed(_closedness(None), robot_state=random_rows(15)), 7, 8),
    "toto": (lambda: _observed(_vectors(open_gripper=np.arange(T) % 2 == 1), state=random_rows(7)), 7, 8),
    "language_table": (_language_table, 7, 8),
    "columbia_cairlab_pusht_real": (
        lambda: _observed(_vectors(gripper_closedness_action=np.ones(T, np.float32)), robot_state=random_rows(2)),
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
    "berkeley_fanuc_manipulation": (lambda: _recording(random_rows(6), state=np.ones((T, 13), np.float32)), 7, 8),
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


def record(name: str) -> Trajectory:
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


def write_recording(root: Path, name: str, recording: Trajectory | None = None) -> Path:
    """An RLDS folder with one episode: `recording`, None: that of the data set's layout. Returns the folder of the version."""
    episode = dict(_flat(record(name) if recording is None else recording))
    return write_dataset(root, name, {"train": [episode]}, version=find_entry(name).version or "1.0.0")


def _flat(group: Trajectory, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Paths and values as `rlds_writer` takes them."""
    for name, value in group.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif value.dtype == IMAGE_REF:
            yield f"{prefix}{name}", [encode_jpeg(smooth_image(int(offset), 24, 24)) for offset in value["offset"]]
        else:
            yield f"{prefix}{name}", _strings(value) if value.dtype == object else value


def _strings(values: np.ndarray) -> list[str] | StringTensor:
    return list(values) if isinstance(values[0], str) else StringTensor(values)
