"""name -> trajectory transform: what must be done to a recorded trajectory before its keys are read.

A transform takes and returns a trajectory (nested dictionary of arrays whose first axis is time; see `prismatic.vla.datasets.episodes`).
It alters no array and no dictionary that it is given, and always does the same, since its result is cached. Images are references:
select and reorder them, never compute with them. Data sets whose "action" and state already have the recommended order need none.

What the published data sets need (read in a fork of openvla-oft) follows the existing layouts of Open X-Embodiment. Letters:
T steps. The gripper ends as 1 (open) .. 0 (closed).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import numpy as np

from prismatic.vla.constants import near_names
from prismatic.vla.datasets.rlds.oxe.rotations import quaternion_to_euler, velocity_in_tool_frame
from prismatic.vla.datasets.rlds.oxe.trajectories import (
    Trajectory,
    binarize_gripper_actions,
    find_value,
    invert_gripper_actions,
    join_columns,
    rel2abs_gripper_actions,
    replace_keys,
    select_steps,
    with_observed_instruction,
    zero_columns,
)


def _motion_and_gripper(trajectory: Trajectory, gripper: np.ndarray) -> Trajectory:
    """Actions of the groups world_vector [T, 3] and rotation_delta [T, 3], and `gripper`."""
    action = trajectory["action"]
    return with_observed_instruction(replace_keys(trajectory, join_columns(action["world_vector"], action["rotation_delta"], gripper)))


def _pose_and_gripper_state(trajectory: Trajectory, action: np.ndarray | None = None) -> Trajectory:
    """State -> EEF_state, its first 6 columns, and gripper_state, its last."""
    state = trajectory["observation"]["state"]
    return replace_keys(trajectory, action, EEF_state=state[:, :6], gripper_state=state[:, -1:])


def _closed_last(action: np.ndarray) -> np.ndarray:
    """Six motions and the last column, 1 (closed; below 0 counts as open), inverted."""
    return join_columns(action[:, :6], invert_gripper_actions(np.clip(action[:, -1:], 0, 1)))


def identity_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """The trajectory as recorded."""
    return trajectory


# The familiar name: ALOHA recordings need no change.
aloha_dataset_transform = identity_dataset_transform


def libero_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """LIBERO: gripper -1 (open) .. +1 (close) becomes 1 (open), 0 (close); the state is split into EEF pose and gripper."""
    action, state = trajectory["action"], trajectory["observation"]["state"]
    gripper = invert_gripper_actions(np.clip(action[:, -1:], 0, 1))
    observation = {**trajectory["observation"], "EEF_state": state[:, :6], "gripper_state": state[:, -2:]}
    return {**trajectory, "action": np.concatenate([action[:, :6], gripper], axis=1), "observation": observation}


def relabel_bridge_actions(trajectory: Trajectory) -> Trajectory:
    """Motions become the change of state that followed; the last step, after which nothing is known, goes."""
    pose = trajectory["observation"]["state"][:, :6]
    reached = join_columns(pose[1:] - pose[:-1], trajectory["action"][:-1, -1:])
    return {**select_steps(trajectory, slice(None, -1)), "action": reached}


def bridge_oxe_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """BridgeData V2 in the layout of Open X-Embodiment; the first step, whose action is all zero, goes."""
    trajectory = select_steps(trajectory, slice(1, None))
    trajectory = _motion_and_gripper(trajectory, trajectory["action"]["open_gripper"])
    return _pose_and_gripper_state(relabel_bridge_actions(trajectory))


def bridge_orig_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """BridgeData V2 of the project's own site; the first step, whose action is all zero, goes."""
    trajectory = select_steps(trajectory, slice(1, None))
    action = trajectory["action"]
    trajectory = {**trajectory, "action": join_columns(action[:, :6], binarize_gripper_actions(action[:, -1]))}
    return _pose_and_gripper_state(relabel_bridge_actions(trajectory))


def tdroid_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Gripper commands to 0 and 1; the state from cartesian and gripper position."""
    action, observation = trajectory["action"], trajectory["observation"]
    return replace_keys(
        trajectory,
        join_columns(action[:, :6], binarize_gripper_actions(action[:, -1])),
        EEF_state=observation["cartesian_position"][:, :6],
        gripper_state=observation["gripper_position"][:, -1:],
    )


def relative_gripper_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """RT-1, NYU door opening: gripper_closedness_action [T, 1] is a change."""
    return _motion_and_gripper(trajectory, rel2abs_gripper_actions(trajectory["action"]["gripper_closedness_action"][:, 0]))


def _floats(values: np.ndarray, width: int) -> np.ndarray:
    """float32 [T, width], also of one zlib-compressed byte string a step (as text where its bytes happen to be UTF-8)."""
    if values.dtype == object:
        packed = [value.encode() if isinstance(value, str) else value for value in values.ravel()]
        values = np.array([np.frombuffer(zlib.decompress(value), np.float32) for value in packed], np.float32)
    return values.reshape(-1, width)


def kuka_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """As RT-1; the state may still be compressed, and its key has a slash."""
    observation, pose = trajectory["observation"], "clip_function_input/base_pose_tool_reached"
    state = {pose: _floats(find_value(observation, pose), 7), "gripper_closed": _floats(observation["gripper_closed"], 1)}
    return replace_keys(relative_gripper_dataset_transform(trajectory), **state)


def taco_play_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Motions relative to the world frame; gripper -1 (close) .. 1 (open) clipped to 0 .. 1."""
    action, state = trajectory["action"]["rel_actions_world"], trajectory["observation"]["robot_obs"]
    action = join_columns(action[:, :6], np.clip(action[:, -1:], 0, 1))
    return with_observed_instruction(replace_keys(trajectory, action, state_eef=state[:, :6], state_gripper=state[:, 7:8]))


def jaco_play_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Translations only; gripper_closedness_action [T, 1] is a change."""
    action, state = trajectory["action"], trajectory["observation"]["end_effector_cartesian_pos"]
    motion = action["world_vector"]
    action = join_columns(motion, zero_columns(motion, 3), rel2abs_gripper_actions(action["gripper_closedness_action"][:, 0]))
    return with_observed_instruction(replace_keys(trajectory, action, state_eef=state[:, :6], state_gripper=state[:, -1:]))


def berkeley_cable_routing_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """The gripper is never commanded: 0, it holds the cable."""
    return _motion_and_gripper(trajectory, zero_columns(trajectory["action"]["world_vector"], 1))


def closedness_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """RoboTurk, VIOLA: gripper_closedness_action ([T] or [T, 1], below 0 is open) is a target."""
    gripper = np.clip(trajectory["action"]["gripper_closedness_action"], 0, 1)
    return _motion_and_gripper(trajectory, invert_gripper_actions(gripper))


def berkeley_autolab_ur5_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """The state is xyz, quaternion and gripper within robot_state; gripper_closedness_action [T] is a change."""
    gripper = rel2abs_gripper_actions(trajectory["action"]["gripper_closedness_action"])
    return replace_keys(_motion_and_gripper(trajectory, gripper), state=trajectory["observation"]["robot_state"][:, 6:14])


def toto_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """open_gripper [T] is True or False."""
    return _motion_and_gripper(trajectory, trajectory["action"]["open_gripper"])


def language_table_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Motions in the plane, gripper open; the instruction is stored as code points padded with zeros."""
    action, points = trajectory["action"], np.asarray(trajectory["observation"]["instruction"])
    texts = np.empty(len(points), object)
    texts[:] = ["".join(map(chr, row)).partition("\0")[0] for row in points]
    planar = join_columns(action, zero_columns(action, 4), np.ones(len(action)))
    return {**trajectory, "action": planar, "language_instruction": texts}


def pusht_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """gripper_closedness_action [T] is kept as it is: the tool is a stick."""
    return _motion_and_gripper(trajectory, trajectory["action"]["gripper_closedness_action"])


def stanford_kuka_multimodal_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Translations only."""
    action = trajectory["action"]
    return {**trajectory, "action": join_columns(action[:, :3], zero_columns(action, 3), action[:, -1:])}


def nyu_rot_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """The first 7 of the action, the state split."""
    return _pose_and_gripper_state(trajectory, trajectory["action"][:, :7])


def stanford_hydra_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Gripper inverted; the state is xyz, quaternion, Euler angles, joints (..), gripper and two more."""
    action, state = trajectory["action"], trajectory["observation"]["state"]
    action = join_columns(action[:, :6], invert_gripper_actions(action[:, -1:]))
    return replace_keys(trajectory, action, EEF_state=join_columns(state[:, :3], state[:, 7:10]), gripper_state=state[:, -3:-2])


def closed_last_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Austin Sailor, Austin Sirius: the gripper command, 1 is closed, is clipped and inverted."""
    return {**trajectory, "action": _closed_last(trajectory["action"])}


def closed_last_joints_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Austin Buds, UT Austin Mutex: as the others of Austin; the state begins with 7 joints and the gripper."""
    return replace_keys(trajectory, _closed_last(trajectory["action"]), state=trajectory["observation"]["state"][:, :8])


def nyu_franka_play_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """The action ends in xyz, Euler angles, gripper and an end-of-episode flag; the state ends in the pose."""
    action = trajectory["action"]
    action = join_columns(action[:, -8:-2], np.clip(action[:, -2:-1], 0, 1))
    return replace_keys(trajectory, action, eef_state=trajectory["observation"]["state"][:, -6:])


def maniskill_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """The gripper follows 7 joints in the state."""
    return replace_keys(trajectory, gripper_state=trajectory["observation"]["state"][:, 7:8])


def furniture_bench_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Rotations are quaternions; the gripper command, 1 is closed, is clipped and inverted."""
    action, state = trajectory["action"], trajectory["observation"]["state"]
    gripper = invert_gripper_actions(np.clip(action[:, -1:], 0, 1))
    action = join_columns(action[:, :3], quaternion_to_euler(action[:, 3:7]), gripper)
    return replace_keys(trajectory, action, state=join_columns(state[:, :7], state[:, -1:]))


def without_last_action_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """CMU Franka exploration, Imperial wrist camera: the last of the action is an end-of-episode flag."""
    return {**trajectory, "action": trajectory["action"][:, :-1]}


def ucsd_kitchen_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """The last of the action is an end-of-episode flag; the state begins with the joints."""
    return replace_keys(trajectory, trajectory["action"][:, :-1], joint_state=trajectory["observation"]["state"][:, :7])


def ucsd_pick_place_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Translations only."""
    action = trajectory["action"]
    return _pose_and_gripper_state(trajectory, join_columns(action[:, :3], zero_columns(action, 3), action[:, -1:]))


def bc_z_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Actions are the next 10 waypoints, of which the first is taken; keys have slashes."""
    action, observation = trajectory["action"], trajectory["observation"]
    joined = join_columns(
        find_value(action, "future/xyz_residual")[:, :3],
        find_value(action, "future/axis_angle_residual")[:, :3],
        invert_gripper_actions(find_value(action, "future/target_close")[:, :1]),
    )
    state = {key: find_value(observation, key) for key in ("present/xyz", "present/axis_angle", "present/sensed_close")}
    return with_observed_instruction(replace_keys(trajectory, joined, **state))


def pose_state_without_last_action_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """PR2 of the University of Tokyo: the last of the action is an end-of-episode flag."""
    return _pose_and_gripper_state(trajectory, trajectory["action"][:, :-1])


def last_seven_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Bimanual xArm: only the right arm is used."""
    return {**trajectory, "action": trajectory["action"][:, -7:]}


def _four_dof(trajectory: Trajectory, pose: np.ndarray) -> Trajectory:
    """Arms that move xyz and one angle: the two other angles are 0, in action and state."""
    action = trajectory["action"]
    action = join_columns(action[:, :4], zero_columns(action, 2), action[:, -1:])
    return replace_keys(trajectory, action, EEF_state=join_columns(pose[:, :4], zero_columns(pose, 2)), gripper_state=pose[:, -1:])


def robo_net_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """xyz and one angle."""
    return _four_dof(trajectory, trajectory["observation"]["state"])


def stanford_mask_vit_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """xyz and one angle."""
    return _four_dof(trajectory, trajectory["observation"]["end_effector_pose"])


def kaist_nonprehensile_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """No gripper; the state ends in the pose."""
    action = trajectory["action"]
    return replace_keys(trajectory, join_columns(action[:, :6], zero_columns(action, 1)), state=trajectory["observation"]["state"][:, -7:])


def pose_state_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """LSMO of the University of Tokyo, RoboCook: only the state is split."""
    return _pose_and_gripper_state(trajectory)


def dlr_sara_grid_clamp_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """The state begins with the pose."""
    return replace_keys(trajectory, state=trajectory["observation"]["state"][:, :6])


def dlr_edan_shared_control_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Gripper inverted."""
    action = trajectory["action"]
    return {**trajectory, "action": join_columns(action[:, :6], invert_gripper_actions(action[:, -1:]))}


def asu_table_top_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """The pose stands outside the observation."""
    gripper = trajectory["observation"]["state"][:, -1:]
    return replace_keys(trajectory, EEF_state=trajectory["ground_truth_states"]["EE"], gripper_state=gripper)


def iamlab_pick_insert_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Rotations are quaternions; the state begins with 7 joints and the gripper."""
    action, state = trajectory["action"], trajectory["observation"]["state"]
    action = join_columns(action[:, :3], quaternion_to_euler(action[:, 3:7]), action[:, 7:8])
    return replace_keys(trajectory, action, joint_state=state[:, :7], gripper_state=state[:, 7:8])


def uiuc_d3field_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Translations only, no gripper."""
    return {**trajectory, "action": join_columns(trajectory["action"], zero_columns(trajectory["action"], 4))}


def berkeley_fanuc_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """The gripper's command was not recorded; its state, 1 is closed, stands in for it."""
    state = trajectory["observation"]["state"]
    action = join_columns(trajectory["action"], invert_gripper_actions(state[:, 6:7]))
    return replace_keys(trajectory, action, joint_state=state[:, :6], gripper_state=state[:, 6:7])


def cmu_playing_with_food_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Rotations are quaternions."""
    action = trajectory["action"]
    return {**trajectory, "action": join_columns(action[:, :3], quaternion_to_euler(action[:, 3:7]), action[:, -1:])}


def playfusion_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """The action is xyz, something else, Euler angles and gripper."""
    action = trajectory["action"]
    return {**trajectory, "action": join_columns(action[:, :3], action[:, -4:])}


def cmu_stretch_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """No orientation in the state; the last of the action is an end-of-episode flag."""
    state = trajectory["observation"]["state"]
    pose = join_columns(state[:, :3], zero_columns(state, 3))
    return replace_keys(trajectory, trajectory["action"][:, :-1], EEF_state=pose, gripper_state=state[:, -1:])


def gnm_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Wheeled robots: motions and position in the plane, heading as yaw, no gripper."""
    action, observation = trajectory["action"], trajectory["observation"]
    pose = join_columns(observation["position"], zero_columns(action, 3), observation["yaw"])
    return replace_keys(trajectory, join_columns(action, zero_columns(action, 5)), state=pose)


def fmb_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """The state is joined from pose and gripper."""
    observation = trajectory["observation"]
    return replace_keys(trajectory, proprio=join_columns(observation["eef_pose"], observation["state_gripper_pose"]))


def dobbe_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """The state under its published name."""
    return replace_keys(trajectory, proprio=trajectory["observation"]["state"])


def roboset_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """7 joints; gripper -1 (open) .. 1 (close) clipped and inverted."""
    action = trajectory["action"]
    gripper = invert_gripper_actions(np.clip(action[:, -1:], 0, 1))
    return replace_keys(trajectory, join_columns(action[:, :7], gripper), proprio=trajectory["observation"]["state"])


def rh20t_dataset_transform(trajectory: Trajectory) -> Trajectory:
    """Action and state are joined from the tool's pose and the gripper."""
    action, observation = trajectory["action"], trajectory["observation"]
    state = join_columns(observation["tcp_base"], observation["gripper_width"])
    return replace_keys(trajectory, join_columns(action["tcp_base"], action["gripper"]), proprio=state)


def droid_finetuning_transform(trajectory: Trajectory) -> Trajectory:
    """DROID: velocities in the base's frame; gripper_position [T, 1], 1 is closed, is inverted."""
    action, observation = trajectory["action_dict"], trajectory["observation"]
    joined = join_columns(action["cartesian_velocity"][:, :6], invert_gripper_actions(action["gripper_position"]))
    return replace_keys(trajectory, joined, proprio=join_columns(observation["cartesian_position"], observation["gripper_position"]))


def swap_exterior_cameras(trajectory: Trajectory) -> Trajectory:
    """Both outer cameras change places in half of the episodes, chosen by the states so that an index is the same when it is rebuilt."""
    observation = trajectory["observation"]
    if zlib.crc32(np.ascontiguousarray(observation["cartesian_position"]).tobytes()) % 2:
        return trajectory
    first, second = "exterior_image_1_left", "exterior_image_2_left"
    return replace_keys(trajectory, **{first: observation[second], second: observation[first]})


def droid_baseact_transform(trajectory: Trajectory) -> Trajectory:
    """DROID for pre-training: as for fine-tuning, and the outer cameras are swapped in half of the episodes."""
    return swap_exterior_cameras(droid_finetuning_transform(trajectory))


def droid_wristact_transform(trajectory: Trajectory) -> Trajectory:
    """DROID with 10-dimensional actions (EEF_R6) in the tool's frame; the gripper is 1 (closed), as published."""
    action, observation = trajectory["action_dict"], trajectory["observation"]
    velocity = velocity_in_tool_frame(action["cartesian_velocity"], observation["cartesian_position"][:, 3:6])
    state = join_columns(observation["cartesian_position"], observation["gripper_position"])
    return swap_exterior_cameras(replace_keys(trajectory, join_columns(velocity, action["gripper_position"]), proprio=state))


# Keys are names of data sets, or names that an entry's `transform` may give.
OXE_STANDARDIZATION_TRANSFORMS: Mapping[str, Callable[[Trajectory], Trajectory]] = {
    "identity": identity_dataset_transform,
    "aloha": aloha_dataset_transform,
    "libero": libero_dataset_transform,
    "tdroid": tdroid_dataset_transform,
    "droid_wristact": droid_wristact_transform,
    "bridge_oxe": bridge_oxe_dataset_transform,
    "bridge_orig": bridge_orig_dataset_transform,
    "bridge_dataset": bridge_orig_dataset_transform,
    "ppgm": tdroid_dataset_transform,  # published without entries
    "ppgm_static": tdroid_dataset_transform,
    "ppgm_wrist": tdroid_dataset_transform,
    "fractal20220817_data": relative_gripper_dataset_transform,
    "kuka": kuka_dataset_transform,
    "taco_play": taco_play_dataset_transform,
    "jaco_play": jaco_play_dataset_transform,
    "berkeley_cable_routing": berkeley_cable_routing_dataset_transform,
    "roboturk": closedness_dataset_transform,
    "nyu_door_opening_surprising_effectiveness": relative_gripper_dataset_transform,
    "viola": closedness_dataset_transform,
    "berkeley_autolab_ur5": berkeley_autolab_ur5_dataset_transform,
    "toto": toto_dataset_transform,
    "language_table": language_table_dataset_transform,
    "columbia_cairlab_pusht_real": pusht_dataset_transform,
    "stanford_kuka_multimodal_dataset_converted_externally_to_rlds": stanford_kuka_multimodal_dataset_transform,
    "nyu_rot_dataset_converted_externally_to_rlds": nyu_rot_dataset_transform,
    "stanford_hydra_dataset_converted_externally_to_rlds": stanford_hydra_dataset_transform,
    "austin_buds_dataset_converted_externally_to_rlds": closed_last_joints_dataset_transform,
    "nyu_franka_play_dataset_converted_externally_to_rlds": nyu_franka_play_dataset_transform,
    "maniskill_dataset_converted_externally_to_rlds": maniskill_dataset_transform,
    "furniture_bench_dataset_converted_externally_to_rlds": furniture_bench_dataset_transform,
    "cmu_franka_exploration_dataset_converted_externally_to_rlds": without_last_action_dataset_transform,
    "ucsd_kitchen_dataset_converted_externally_to_rlds": ucsd_kitchen_dataset_transform,
    "ucsd_pick_and_place_dataset_converted_externally_to_rlds": ucsd_pick_place_dataset_transform,
    "austin_sailor_dataset_converted_externally_to_rlds": closed_last_dataset_transform,
    "austin_sirius_dataset_converted_externally_to_rlds": closed_last_dataset_transform,
    "bc_z": bc_z_dataset_transform,
    "utokyo_pr2_opening_fridge_converted_externally_to_rlds": pose_state_without_last_action_dataset_transform,
    "utokyo_pr2_tabletop_manipulation_converted_externally_to_rlds": pose_state_without_last_action_dataset_transform,
    "utokyo_xarm_bimanual_converted_externally_to_rlds": last_seven_dataset_transform,
    "robo_net": robo_net_dataset_transform,
    "kaist_nonprehensile_converted_externally_to_rlds": kaist_nonprehensile_dataset_transform,
    "stanford_mask_vit_converted_externally_to_rlds": stanford_mask_vit_dataset_transform,
    "tokyo_u_lsmo_converted_externally_to_rlds": pose_state_dataset_transform,
    "dlr_sara_grid_clamp_converted_externally_to_rlds": dlr_sara_grid_clamp_dataset_transform,
    "dlr_edan_shared_control_converted_externally_to_rlds": dlr_edan_shared_control_dataset_transform,
    "asu_table_top_converted_externally_to_rlds": asu_table_top_dataset_transform,
    "stanford_robocook_converted_externally_to_rlds": pose_state_dataset_transform,
    "imperialcollege_sawyer_wrist_cam": without_last_action_dataset_transform,
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": iamlab_pick_insert_dataset_transform,
    "uiuc_d3field": uiuc_d3field_dataset_transform,
    "utaustin_mutex": closed_last_joints_dataset_transform,
    "berkeley_fanuc_manipulation": berkeley_fanuc_dataset_transform,
    "cmu_playing_with_food": cmu_playing_with_food_dataset_transform,
    "cmu_play_fusion": playfusion_dataset_transform,
    "cmu_stretch": cmu_stretch_dataset_transform,
    "berkeley_gnm_recon": gnm_dataset_transform,
    "berkeley_gnm_cory_hall": gnm_dataset_transform,
    "berkeley_gnm_sac_son": gnm_dataset_transform,
    "droid": droid_baseact_transform,
    "droid_wipe": droid_finetuning_transform,
    "fmb_dataset": fmb_dataset_transform,
    "dobbe": dobbe_dataset_transform,
    "roboset": roboset_dataset_transform,
    "rh20t": rh20t_dataset_transform,
}


def find_transform(
    dataset_name: str, transform_name: str | Callable[[Trajectory], Trajectory] | None
) -> Callable[[Trajectory], Trajectory]:
    """The transform that an entry names (or holds), else the one called like the data set, else no change.

    Raises:
        ValueError: the entry names a transform that does not exist; the message lists near names.
    """
    if transform_name is None:
        return OXE_STANDARDIZATION_TRANSFORMS.get(dataset_name, identity_dataset_transform)
    if callable(transform_name):
        return transform_name
    if transform_name not in OXE_STANDARDIZATION_TRANSFORMS:
        raise ValueError(
            f"data set {dataset_name!r} names the transform {transform_name!r}, which is not in OXE_STANDARDIZATION_TRANSFORMS of "
            f"prismatic/vla/datasets/rlds/oxe/transforms.py; {near_names(transform_name, OXE_STANDARDIZATION_TRANSFORMS)}"
        )
    return OXE_STANDARDIZATION_TRANSFORMS[transform_name]
