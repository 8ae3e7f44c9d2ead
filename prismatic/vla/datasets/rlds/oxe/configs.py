"""name -> data-set entry: which stored keys are the cameras and the state, and what the actions mean.

To train on your own data, add one line to `OXE_DATASET_CONFIGS`, at the end of this file. An entry states only what is special about its
data set; a plain dictionary with the familiar keys (image_obs_keys, depth_obs_keys, state_obs_keys, state_encoding, action_encoding,
aux_kwargs) may be pasted into the table instead of a `DatasetEntry`.

The encodings and their numbers are those of the published system (openvla-oft 213c5ff); DUAL_EEF_POS is the bimanual form
of EEF_POS.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np

from prismatic.vla.cameras import CAMERA_ORDER, ONE_ARM, TWO_ARMS, stored_keys
from prismatic.vla.constants import ActionKind, as_action_kinds, near_names

E = TypeVar("E", bound=IntEnum)

CHANNEL_ORDERS = ("rgb", "bgr")

# Named in messages that ask the user to edit an entry.
CONFIGS_FILE = "prismatic/vla/datasets/rlds/oxe/configs.py"
TRANSFORMS_FILE = CONFIGS_FILE.replace("configs.py", "transforms.py")


class StateEncoding(IntEnum):
    """What the state is. It helps to find the platform of an entry that names none; nothing else follows from it."""

    NONE = -1  # no state
    POS_EULER = 1  # xyz, roll pitch yaw, (padding,) gripper
    POS_QUAT = 2  # xyz, quaternion, gripper
    JOINT = 3  # joint angles, gripper
    JOINT_BIMANUAL = 4  # two arms, each joint angles, gripper


class ActionEncoding(IntEnum):
    """What the actions are, in short; decides what each dimension is (`encoded_kinds`) and which are normalised."""

    EEF_POS = 1  # relative xyz, relative roll pitch yaw, absolute gripper
    JOINT_POS = 2  # absolute joint angles, gripper
    JOINT_POS_BIMANUAL = 3  # two arms, each absolute joint angles, gripper
    EEF_R6 = 4  # relative xyz, relative 6-D rotation, absolute gripper
    DUAL_EEF_POS = 5  # two arms, each as EEF_POS


# Encodings of end effectors -> number of arms, each of which ends in its gripper.
ENDS_OF_ARMS = {ActionEncoding.EEF_POS: 1, ActionEncoding.EEF_R6: 1, ActionEncoding.DUAL_EEF_POS: 2}


def _is_gripper(encoding: ActionEncoding, action_dim: int) -> np.ndarray:
    """bool [A]: the last dimension of each arm."""
    num_arms = ENDS_OF_ARMS[encoding]
    if action_dim < 2 * num_arms or action_dim % num_arms:
        raise ValueError(
            f"actions of {action_dim} dimensions cannot be {encoding.name}, which needs {num_arms} x (motion + gripper); "
            f"correct action_encoding in {CONFIGS_FILE}"
        )
    return np.arange(action_dim) % (action_dim // num_arms) == action_dim // num_arms - 1


def encoded_kinds(encoding: ActionEncoding, action_dim: int) -> tuple[ActionKind, ...]:
    """What each of the A dimensions is, by the encoding: motions and the gripper's target at each arm's end, or targets throughout.

    Raises:
        ValueError: `action_dim` does not fit the encoding.
    """
    if encoding not in ENDS_OF_ARMS:
        return (ActionKind.TARGET,) * action_dim
    return tuple(ActionKind.TARGET if is_gripper else ActionKind.MOTION for is_gripper in _is_gripper(encoding, action_dim))


def kinds_text(kinds: Iterable[ActionKind]) -> str:
    """The kinds as Python to paste: ("target",) * 14 + ("velocity",) * 2."""
    runs = [(kind.value, len(list(run))) for kind, run in itertools.groupby(kinds)]
    return " + ".join(f'("{name}",)' + (f" * {count}" if count > 1 else "") for name, count in runs) or "()"


def action_normalization_mask(encoding: ActionEncoding, action_dim: int) -> np.ndarray:
    """bool [A]: True where the action is mapped to [-1, 1]; grippers of end-effector actions keep their command.

    Raises:
        ValueError: `action_dim` does not fit the encoding.
    """
    if encoding in ENDS_OF_ARMS:
        return ~_is_gripper(encoding, action_dim)
    return np.ones(action_dim, bool)


@dataclass(frozen=True)
class DatasetEntry:
    """One data set of the registry; the defaults are a single arm in the layout of the LIBERO data sets."""

    # A key is a stored name, or a path through groups: "images/cam_high".
    image_obs_keys: Mapping[str, str | None] = field(default_factory=lambda: stored_keys(ONE_ARM))
    state_obs_keys: tuple[str | None, ...] = ("state",)  # joined in this order; None adds one column of zeros
    action_keys: tuple[str, ...] = ("action",)  # stored beside the observation; joined in this order
    action_encoding: ActionEncoding = ActionEncoding.EEF_POS
    action_kinds: tuple[ActionKind, ...] = ()  # "target", "motion" or "velocity" of each dimension, where no encoding says it right
    state_encoding: StateEncoding = StateEncoding.NONE
    robot_platform: str | None = None  # a name of ROBOT_PLATFORMS; None: --robot_platform, or the only one that fits
    fps: float | None = None  # steps per second of the recording; None: as the recordings say, if they do
    stride: int = 1  # use every n-th step: recordings that are faster than the robot will be commanded
    version: str | None = None  # the one to take where --dataset_name names none ("0.1.0"); None: the newest
    transform: str | Callable[[Any], Any] | None = None  # a function or a name of transforms.py; None: that of its own name, else no change
    image_channel_order: str = "rgb"  # "bgr" where the recorder exchanged red and blue (OpenCV's order); the frames read are RGB
    depth_obs_keys: Mapping[str, str | None] = field(default_factory=dict)  # accepted for old entries, unused
    aux_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cameras(self) -> dict[str, str]:
        """Camera name -> stored key, in the order in which a policy takes the cameras."""
        return {name: key for name in CAMERA_ORDER if (key := self.image_obs_keys.get(name)) is not None}

    def kinds(self, action_dim: int) -> tuple[ActionKind, ...]:
        """What each of the A dimensions of the action is: as `action_kinds` says, else by the encoding.

        Raises:
            ValueError: the entry describes another number of dimensions.
        """
        if not self.action_kinds:
            return encoded_kinds(self.action_encoding, action_dim)
        if len(self.action_kinds) != action_dim:
            raise ValueError(
                f"action_kinds lists {len(self.action_kinds)} kinds for actions of {action_dim} dimensions; correct {CONFIGS_FILE}"
            )
        return self.action_kinds

    def __post_init__(self) -> None:
        for name in ("state_obs_keys", "action_keys"):
            object.__setattr__(self, name, _as_keys(getattr(self, name)))
        object.__setattr__(self, "action_kinds", as_action_kinds(self.action_kinds or ()))
        object.__setattr__(self, "action_encoding", _as_encoding(ActionEncoding, self.action_encoding, "action_encoding"))
        object.__setattr__(self, "state_encoding", _as_encoding(StateEncoding, self.state_encoding, "state_encoding"))
        if not isinstance(self.image_obs_keys, Mapping):
            raise ValueError(f'image_obs_keys is {self.image_obs_keys!r}; it says which camera is which: {{"primary": "its stored key"}}')
        for name in self.image_obs_keys:
            if name not in CAMERA_ORDER:
                raise ValueError(f"image_obs_keys has the camera {name!r}; {near_names(name, CAMERA_ORDER)}")
        if not self.cameras:
            raise ValueError(f"image_obs_keys needs a key for a camera, mostly the primary one, found {dict(self.image_obs_keys)}")
        if not self.action_keys or not all(isinstance(key, str) for key in self.action_keys):
            raise ValueError(f'action_keys lists {list(self.action_keys)}; it needs the stored key of the actions, mostly ("action",)')
        if not isinstance(self.stride, Integral) or not isinstance(self.fps, Real | None):
            raise ValueError(f"stride is {self.stride!r} and fps {self.fps!r}; write a whole number for the one, a number for the other")
        if self.stride < 1 or (self.fps is not None and not self.fps > 0):
            raise ValueError(f"stride is {self.stride} and fps {self.fps}; a stride is at least 1, a rate above 0")
        if self.stride > 1 and self.action_encoding == ActionEncoding.EEF_R6:
            raise ValueError(
                f"stride is {self.stride}, but 6-D rotations (EEF_R6) cannot be added up; use stride 1, or convert them before"
            )
        if self.image_channel_order not in CHANNEL_ORDERS:
            raise ValueError(f"image_channel_order is {self.image_channel_order!r}; {near_names(self.image_channel_order, CHANNEL_ORDERS)}")
        if self.aux_kwargs:
            raise ValueError(f"aux_kwargs {sorted(self.aux_kwargs)} are not supported; do this in a trajectory transform instead")


def _as_encoding(kind: type[E], value: Any, field: str) -> E:
    """The encoding, also of its published number."""
    if isinstance(value, str):
        near = near_names(value.rpartition(".")[2], [item.name for item in kind])
        raise ValueError(f"{field} is the text {value!r}; write {kind.__name__}.NAME without quotes, {near}")
    return kind(value)


def _as_keys(keys: str | Iterable[str | None] | None) -> tuple[str | None, ...]:
    """One key needs no list."""
    return (keys,) if isinstance(keys, str) else tuple(keys or ())


def as_entry(name: str, entry: DatasetEntry | Mapping[str, Any]) -> DatasetEntry:
    """The entry of `name`, also if it was pasted into the table as a plain dictionary.

    Raises:
        ValueError: unknown keys or values; the message names the entry.
    """
    if isinstance(entry, DatasetEntry):
        return entry
    known = [item.name for item in fields(DatasetEntry)]
    for key in entry:
        if key not in known:
            raise ValueError(f"entry {name!r} in {CONFIGS_FILE} has an unknown key {key!r}; {near_names(key, known)}")
    try:
        return DatasetEntry(**entry)
    except ValueError as error:
        raise ValueError(f"entry {name!r} in {CONFIGS_FILE}: {error}") from error


def find_entry(name: str) -> DatasetEntry:
    """The entry called `name`, in any case.

    Raises:
        ValueError: no such entry; the message lists near names.
    """
    known_name = registered_name(name)
    if known_name is None:
        raise ValueError(f"data set {name!r} is not in OXE_DATASET_CONFIGS of {CONFIGS_FILE}; {near_names(name, OXE_DATASET_CONFIGS)}")
    return as_entry(known_name, OXE_DATASET_CONFIGS[known_name])


def registered_name(name: str) -> str | None:
    """How the table spells `name`, which may be in any case; None: it has no such entry.

    Of me/so101_pick, as LeRobot names data sets, also so101_pick is the entry, unless there is one for the whole name.
    """
    wanted = [name, name.lower()] + ([short, short.lower()] if (short := name.rpartition("/")[2]) != name else [])
    spellings = {known.lower(): known for known in reversed(OXE_DATASET_CONFIGS)} | {known: known for known in OXE_DATASET_CONFIGS}
    return next((spellings[spelling] for spelling in wanted if spelling in spellings), None)


def is_pasted(name: str) -> bool:
    """Whether the entry called `name` is a plain dictionary."""
    return isinstance(OXE_DATASET_CONFIGS.get(name), Mapping)


def is_shipped(name: str) -> bool:
    """Whether the entry called `name` is one of this project, not of a user."""
    return not is_pasted(name) and OXE_DATASET_CONFIGS.get(name) is SHIPPED_CONFIGS.get(name)


def _libero() -> DatasetEntry:
    return DatasetEntry(
        state_obs_keys=("EEF_state", "gripper_state"),
        state_encoding=StateEncoding.POS_EULER,
        robot_platform="LIBERO",
        transform="libero",
    )


_THREE_CAMERAS = stored_keys(TWO_ARMS)


def _aloha() -> DatasetEntry:
    return DatasetEntry(
        image_obs_keys=_THREE_CAMERAS,
        state_encoding=StateEncoding.JOINT_BIMANUAL,
        action_encoding=ActionEncoding.JOINT_POS_BIMANUAL,
        robot_platform="ALOHA",
    )


_POSE_STATE = ("EEF_state", "gripper_state")  # 6 + 1
_NO_STATE = (None,) * 8
_WRIST = stored_keys(ONE_ARM)
_EULER, _QUAT, _JOINT = StateEncoding.POS_EULER, StateEncoding.POS_QUAT, StateEncoding.JOINT


def _oxe(
    cameras: Mapping[str, str],
    state: tuple[str | None, ...],
    encoding: StateEncoding,
    depth: Mapping[str, str] | None = None,
    **special: Any,
) -> DatasetEntry:
    """A data set of Open X-Embodiment: mostly one arm driven by end-effector changes."""
    return DatasetEntry(image_obs_keys=cameras, state_obs_keys=state, state_encoding=encoding, depth_obs_keys=depth or {}, **special)


def _gnm() -> DatasetEntry:
    return _oxe({"wrist": "image"}, ("state", None, None), _EULER)


def _tdroid() -> DatasetEntry:
    return _oxe({"primary": "static_image"}, _POSE_STATE, _EULER, {"primary": "static_depth_image"}, transform="tdroid")


def _metaworld() -> DatasetEntry:
    return DatasetEntry(state_encoding=StateEncoding.POS_EULER, robot_platform="METAWORLD")


# The entries that come with this project. Copy them; a line of OXE_DATASET_CONFIGS with the same name comes before them.
SHIPPED_CONFIGS: dict[str, DatasetEntry | Mapping[str, Any]] = {
    # LIBERO, no-op steps filtered out, images re-rendered at 256 px
    "libero_spatial_no_noops": _libero(),
    "libero_object_no_noops": _libero(),
    "libero_goal_no_noops": _libero(),
    "libero_10_no_noops": _libero(),
    "libero_spatial_scripted": _libero(),  # made by experiments/robot/libero/record_demos.py
    "libero_object_scripted": _libero(),
    "libero_4_task_suites_no_noops": _libero(),  # as unnorm_key of published checkpoints; for training the mixture of that name is taken
    # ALOHA, absolute joint angles at 25 Hz
    "aloha1_fold_shorts_20_demos": _aloha(),
    "aloha1_fold_shirt_30_demos": _aloha(),
    "aloha1_scoop_X_into_bowl_45_demos": _aloha(),
    "aloha1_put_X_into_pot_300_demos": _aloha(),
    # Scripted experts of gym-aloha, recorded by experiments/robot/aloha/record_demos.py at 25 Hz
    "aloha_sim_transfer_cube_scripted": _aloha(),
    "aloha_sim_insertion_scripted": _aloha(),
    # Scripted experts of MetaWorld, recorded by scripts/demo.py and scripts/pretrain_base.py: state is x, y, z, gripper opening
    "metaworld_demo": _metaworld(),
    "metaworld_base": _metaworld(),
    # Samples for a robot of your own.
    # One arm, state = action = [joint_1 .. joint_7, gripper]. Fewer joints: state_obs_keys=("state", None, None, None) pads 5 to 8.
    "single_joint_task_sample": DatasetEntry(
        state_encoding=StateEncoding.JOINT,
        action_encoding=ActionEncoding.JOINT_POS,
        robot_platform="SINGLE_JOINT",
    ),
    # One arm, state = [x, y, z, roll, pitch, yaw, gripper], action = its change and the gripper command.
    "single_eef_task_sample": DatasetEntry(state_encoding=StateEncoding.POS_EULER, robot_platform="SINGLE_EEF"),
    # Two arms, each as in single_joint_task_sample, left before right.
    "dual_joint_task_sample": DatasetEntry(
        image_obs_keys=_THREE_CAMERAS,
        state_encoding=StateEncoding.JOINT_BIMANUAL,
        action_encoding=ActionEncoding.JOINT_POS_BIMANUAL,
        robot_platform="DUAL_JOINT",
    ),
    # Two arms, each as in single_eef_task_sample, left before right.
    "dual_eef_task_sample": DatasetEntry(
        image_obs_keys=_THREE_CAMERAS,
        action_encoding=ActionEncoding.DUAL_EEF_POS,
        robot_platform="DUAL_EEF",
    ),
    # Open X-Embodiment and related sets. Where robot_platform is absent, --robot_platform must say which robot the policy drives.
    "fractal20220817_data": _oxe({"primary": "image"}, ("base_pose_tool_reached", "gripper_closed"), _QUAT),  # RT-1
    "kuka": _oxe({"primary": "image"}, ("clip_function_input/base_pose_tool_reached", "gripper_closed"), _QUAT),
    "bridge_oxe": _oxe({"primary": "image", "secondary": "image_1"}, _POSE_STATE, _EULER, robot_platform="BRIDGE"),
    "bridge_orig": _oxe({"primary": "image_0", "secondary": "image_1"}, _POSE_STATE, _EULER, robot_platform="BRIDGE"),
    "bridge_dataset": _oxe({"primary": "image_0", "secondary": "image_1"}, _POSE_STATE, _EULER, robot_platform="BRIDGE"),
    "taco_play": _oxe(
        {"primary": "rgb_static", "wrist": "rgb_gripper"},
        ("state_eef", None, "state_gripper"),
        _EULER,
        {"primary": "depth_static", "wrist": "depth_gripper"},
    ),
    "jaco_play": _oxe({"primary": "image", "wrist": "image_wrist"}, ("state_eef", None, "state_gripper"), _EULER),
    "berkeley_cable_routing": _oxe({"primary": "image", "secondary": "top_image", "wrist": "wrist45_image"}, ("robot_state", None), _JOINT),
    "roboturk": _oxe({"primary": "front_rgb"}, _NO_STATE, StateEncoding.NONE),
    "nyu_door_opening_surprising_effectiveness": _oxe({"wrist": "image"}, _NO_STATE, StateEncoding.NONE),
    "viola": _oxe({"primary": "agentview_rgb", "wrist": "eye_in_hand_rgb"}, ("joint_states", "gripper_states"), _JOINT),
    "berkeley_autolab_ur5": _oxe({"primary": "image", "wrist": "hand_image"}, ("state",), _QUAT, {"primary": "depth"}),
    "toto": _oxe({"primary": "image"}, ("state", None), _JOINT),
    "language_table": _oxe({"primary": "rgb"}, ("effector_translation", *(None,) * 6), _EULER),
    "columbia_cairlab_pusht_real": _oxe(_WRIST, ("robot_state", *(None,) * 6), _EULER),
    "stanford_kuka_multimodal_dataset_converted_externally_to_rlds": _oxe(
        {"primary": "image"}, ("ee_position", "ee_orientation", None), _QUAT, {"primary": "depth_image"}
    ),
    "nyu_rot_dataset_converted_externally_to_rlds": _oxe({"primary": "image"}, _POSE_STATE, _EULER),
    "stanford_hydra_dataset_converted_externally_to_rlds": _oxe(_WRIST, _POSE_STATE, _EULER),
    "austin_buds_dataset_converted_externally_to_rlds": _oxe(_WRIST, ("state",), _JOINT),
    "nyu_franka_play_dataset_converted_externally_to_rlds": _oxe(
        {"primary": "image", "secondary": "image_additional_view"},
        ("eef_state", None, None),
        _EULER,
        {"primary": "depth", "secondary": "depth_additional_view"},
    ),
    "maniskill_dataset_converted_externally_to_rlds": _oxe(
        _WRIST, ("tcp_pose", "gripper_state"), _QUAT, {"primary": "depth", "wrist": "wrist_depth"}
    ),
    "furniture_bench_dataset_converted_externally_to_rlds": _oxe(_WRIST, ("state",), _QUAT),
    "cmu_franka_exploration_dataset_converted_externally_to_rlds": _oxe({"primary": "highres_image"}, _NO_STATE, StateEncoding.NONE),
    "ucsd_kitchen_dataset_converted_externally_to_rlds": _oxe({"primary": "image"}, ("joint_state", None), _JOINT),
    "ucsd_pick_and_place_dataset_converted_externally_to_rlds": _oxe({"primary": "image"}, _POSE_STATE, _EULER),
    "austin_sailor_dataset_converted_externally_to_rlds": _oxe(_WRIST, ("state",), _QUAT),
    "austin_sirius_dataset_converted_externally_to_rlds": _oxe(_WRIST, ("state",), _QUAT),
    # Later versions of bc_z are broken.
    "bc_z": _oxe({"primary": "image"}, ("present/xyz", "present/axis_angle", None, "present/sensed_close"), _EULER, version="0.1.0"),
    "utokyo_pr2_opening_fridge_converted_externally_to_rlds": _oxe({"primary": "image"}, _POSE_STATE, _EULER),
    "utokyo_pr2_tabletop_manipulation_converted_externally_to_rlds": _oxe({"primary": "image"}, _POSE_STATE, _EULER),
    "utokyo_xarm_pick_and_place_converted_externally_to_rlds": _oxe(
        {"primary": "image", "secondary": "image2", "wrist": "hand_image"}, ("end_effector_pose", None, None), _EULER
    ),
    "utokyo_xarm_bimanual_converted_externally_to_rlds": _oxe({"primary": "image"}, ("pose_r", None, None), _EULER),
    "robo_net": _oxe({"primary": "image", "secondary": "image1"}, _POSE_STATE, _EULER),
    "berkeley_mvp_converted_externally_to_rlds": _oxe(
        {"wrist": "hand_image"}, ("pose", "gripper"), _QUAT, action_encoding=ActionEncoding.JOINT_POS
    ),
    "berkeley_rpt_converted_externally_to_rlds": _oxe(
        {"wrist": "hand_image"}, ("joint_pos", "gripper"), _JOINT, action_encoding=ActionEncoding.JOINT_POS
    ),
    "kaist_nonprehensile_converted_externally_to_rlds": _oxe({"primary": "image"}, ("state", None), _QUAT),
    "stanford_mask_vit_converted_externally_to_rlds": _oxe({"primary": "image"}, _POSE_STATE, _EULER),
    "tokyo_u_lsmo_converted_externally_to_rlds": _oxe({"primary": "image"}, _POSE_STATE, _EULER),
    "dlr_sara_pour_converted_externally_to_rlds": _oxe({"primary": "image"}, ("state", None, None), _EULER),
    "dlr_sara_grid_clamp_converted_externally_to_rlds": _oxe({"primary": "image"}, ("state", None, None), _EULER),
    "dlr_edan_shared_control_converted_externally_to_rlds": _oxe({"primary": "image"}, ("state", None), _EULER),
    "asu_table_top_converted_externally_to_rlds": _oxe({"primary": "image"}, _POSE_STATE, _EULER),
    "stanford_robocook_converted_externally_to_rlds": _oxe(
        {"primary": "image_1", "secondary": "image_2"}, _POSE_STATE, _EULER, {"primary": "depth_1", "secondary": "depth_2"}
    ),
    "imperialcollege_sawyer_wrist_cam": _oxe(_WRIST, (*(None,) * 7, "state"), StateEncoding.NONE),
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": _oxe(_WRIST, ("joint_state", "gripper_state"), _JOINT),
    "uiuc_d3field": _oxe(
        {"primary": "image_1", "secondary": "image_2"}, _NO_STATE, StateEncoding.NONE, {"primary": "depth_1", "secondary": "depth_2"}
    ),
    "utaustin_mutex": _oxe(_WRIST, ("state",), _JOINT),
    "berkeley_fanuc_manipulation": _oxe(_WRIST, ("joint_state", None, "gripper_state"), _JOINT),
    "cmu_playing_with_food": _oxe({"primary": "image", "wrist": "finger_vision_1"}, ("state", None, None), _EULER),
    "cmu_play_fusion": _oxe({"primary": "image"}, ("state",), _JOINT),
    "cmu_stretch": _oxe({"primary": "image"}, _POSE_STATE, _EULER),
    "berkeley_gnm_recon": _gnm(),
    "berkeley_gnm_cory_hall": _gnm(),
    "berkeley_gnm_sac_son": _gnm(),
    # The published entry has an aux_kwargs filter that leaves out chunks without any motion, found by comparing normalised actions with
    # fixed quantiles of DROID. It is not reproduced: those chunks are trained on too. An entry with aux_kwargs is refused.
    "droid": _oxe(
        {"primary": "exterior_image_1_left", "secondary": "exterior_image_2_left", "wrist": "wrist_image_left"}, ("proprio",), _QUAT
    ),
    "fmb_dataset": _oxe(
        {"primary": "image_side_1", "secondary": "image_side_2", "wrist": "image_wrist_1"},
        ("proprio",),
        _EULER,
        {"primary": "image_side_1_depth", "secondary": "image_side_2_depth", "wrist": "image_wrist_1_depth"},
    ),
    "dobbe": _oxe({"primary": "wrist_image"}, ("proprio",), _EULER),
    "roboset": _oxe(
        {"primary": "image_left", "secondary": "image_right", "wrist": "image_wrist"},
        ("proprio",),
        _JOINT,
        action_encoding=ActionEncoding.JOINT_POS,
    ),
    "rh20t": _oxe({"primary": "image_front", "secondary": "image_side_right", "wrist": "image_wrist"}, ("proprio",), _EULER),
    # Fine-tuning sets on the DROID robot, 5 Hz
    "tdroid_carrot_in_bowl": _tdroid(),
    "tdroid_pour_corn_in_pot": _tdroid(),
    "tdroid_flip_pot_upright": _tdroid(),
    "tdroid_move_object_onto_plate": _tdroid(),
    "tdroid_knock_object_over": _tdroid(),
    "tdroid_cover_object_with_towel": _tdroid(),
    "droid_wipe": _oxe({"primary": "exterior_image_2_left", "wrist": "wrist_image_left"}, ("proprio",), _EULER),
}

# Your own data sets: paste their lines here.
OXE_DATASET_CONFIGS: dict[str, DatasetEntry | Mapping[str, Any]] = {
    # Templates to copy for your own robot.
    # Above, under SHIPPED_CONFIGS: single_joint_task_sample, single_eef_task_sample, dual_joint_task_sample, dual_eef_task_sample.
}
for _name in SHIPPED_CONFIGS:
    OXE_DATASET_CONFIGS.setdefault(_name, SHIPPED_CONFIGS[_name])
