from __future__ import annotations

import inspect
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oxe_recordings import write_recording
from rlds_writer import make_episode, write_dataset

from prismatic.vla import constants
from prismatic.vla.constants import ROBOT_PLATFORMS, ActionKind, get_robot_platform
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.repairs import NO_STEPS
from prismatic.vla.datasets.rlds.oxe import configs
from prismatic.vla.datasets.rlds.oxe.configs import (
    OXE_DATASET_CONFIGS,
    ActionEncoding,
    DatasetEntry,
    StateEncoding,
    action_normalization_mask,
    as_entry,
    encoded_kinds,
    find_entry,
)
from prismatic.vla.datasets.rlds.oxe.locations import entry_location, platform_location
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets, select_policy_cameras
from prismatic.vla.datasets.rlds.oxe.transforms import find_transform, libero_dataset_transform
from prismatic.vla.datasets.training_data import load_training_data
from prismatic.vla.datasets.transform_key import transform_key

REPOSITORY = Path(__file__).parents[2]

# Entries of ours, beside the published ones.
OWN = {
    "metaworld_base",
    "metaworld_demo",
    "aloha_sim_transfer_cube_scripted",
    "aloha_sim_insertion_scripted",
    "libero_object_scripted",
    "libero_spatial_scripted",
    "single_joint_task_sample",
    "single_eef_task_sample",
    "dual_joint_task_sample",
    "dual_eef_task_sample",
}


@pytest.mark.parametrize("name", OXE_DATASET_CONFIGS)
def test_every_entry_can_be_used(name: str) -> None:
    entry = find_entry(name)
    assert entry.cameras
    find_transform(name, entry.transform)
    if entry.robot_platform is not None:
        platform = ROBOT_PLATFORMS[entry.robot_platform]
        assert action_normalization_mask(entry.action_encoding, platform.action_dim).shape == (platform.action_dim,)


@pytest.mark.parametrize("name", [name for name in OXE_DATASET_CONFIGS if find_entry(name).robot_platform is not None])
def test_platforms_and_encodings_agree_on_what_is_a_motion(name: str) -> None:
    entry = find_entry(name)
    platform = ROBOT_PLATFORMS[entry.robot_platform or ""]
    assert encoded_kinds(entry.action_encoding, platform.action_dim) == platform.action_kinds


def test_the_75_published_names_hold_48_distinct_entries() -> None:
    names = set(OXE_DATASET_CONFIGS) - OWN
    assert len(names) == 75
    described = set()
    for name in names:
        entry = find_entry(name)
        cameras, depth = sorted(entry.cameras.items()), sorted(entry.depth_obs_keys.items())
        described.add(repr((cameras, depth, entry.state_obs_keys, entry.state_encoding, entry.action_encoding)))
    assert len(described) == 48


@pytest.mark.parametrize("name", [*sorted(OWN), "bridge_orig", "bridge_oxe", "libero_10_no_noops"])
def test_robots_that_are_known_need_no_flag(name: str) -> None:
    assert find_entry(name).robot_platform in ROBOT_PLATFORMS


def test_of_bc_z_version_0_1_0_is_taken(tmp_path: Path) -> None:
    write_dataset(tmp_path, "bc_z", {"train": [make_episode(2)]}, version="1.0.0")
    with pytest.raises(ValueError, match=r"'bc_z' has no version 0\.1\.0 in .*; found: 1\.0\.0"):
        resolve_datasets("bc_z", tmp_path, "SINGLE_EEF")
    write_recording(tmp_path, "bc_z")
    assert resolve_datasets("bc_z", tmp_path, "SINGLE_EEF")[0].folder.name == "0.1.0"
    assert resolve_datasets("bc_z:1.0.0", tmp_path, "SINGLE_EEF")[0].folder.name == "1.0.0"


def test_a_bridge_episode_of_two_steps_is_left_out_and_counted(tmp_path: Path) -> None:
    episodes = [make_episode(length, action_dim=7, state_dim=7, cameras=("image_0", "image_1")) for length in (6, 2, 5)]
    write_dataset(tmp_path, "bridge_orig", {"train": episodes})
    data = load_training_data(resolve_datasets("bridge_orig", tmp_path), DatasetOptions(("primary",), 24, cache_dir=tmp_path))
    assert len(data.train) == 4 + 3
    (repair,) = data.repairs["bridge_orig"]
    assert (repair.what, repair.count) == (NO_STEPS, 1)
    assert repair.first.endswith("episode 1")


def test_published_numbers_of_the_encodings() -> None:
    assert {item.name: int(item) for item in StateEncoding} == {"NONE": -1, "POS_EULER": 1, "POS_QUAT": 2, "JOINT": 3, "JOINT_BIMANUAL": 4}
    assert [ActionEncoding(number).name for number in (1, 2, 3, 4)] == ["EEF_POS", "JOINT_POS", "JOINT_POS_BIMANUAL", "EEF_R6"]


@pytest.mark.parametrize(
    ("encoding", "dim", "grippers"),
    [
        (ActionEncoding.EEF_POS, 7, [6]),
        (ActionEncoding.EEF_POS, 4, [3]),
        (ActionEncoding.EEF_R6, 10, [9]),
        (ActionEncoding.DUAL_EEF_POS, 14, [6, 13]),
    ],
)
def test_end_effector_actions_are_relative_and_normalised_but_for_the_grippers(
    encoding: ActionEncoding, dim: int, grippers: list[int]
) -> None:
    assert [number for number, kind in enumerate(encoded_kinds(encoding, dim)) if kind is ActionKind.TARGET] == grippers
    assert np.flatnonzero(~action_normalization_mask(encoding, dim)).tolist() == grippers


@pytest.mark.parametrize("dim", [6, 8, 14, 16])
@pytest.mark.parametrize("encoding", [ActionEncoding.JOINT_POS, ActionEncoding.JOINT_POS_BIMANUAL])
def test_joint_actions_are_absolute_and_normalised(encoding: ActionEncoding, dim: int) -> None:
    assert encoded_kinds(encoding, dim) == (ActionKind.TARGET,) * dim
    assert action_normalization_mask(encoding, dim).all()


def test_a_width_that_cannot_be_two_arms_is_refused() -> None:
    with pytest.raises(ValueError, match=r"13 dimensions cannot be DUAL_EEF_POS.*configs\.py"):
        action_normalization_mask(ActionEncoding.DUAL_EEF_POS, 13)


def test_a_pasted_dictionary_is_an_entry() -> None:
    entry = as_entry(
        "mine",
        {
            "image_obs_keys": {"primary": "image", "secondary": "image_1", "wrist": None},
            "depth_obs_keys": {"primary": None, "secondary": None, "wrist": None},
            "state_obs_keys": ["state", None, None, None],
            "state_encoding": StateEncoding.JOINT,
            "action_encoding": ActionEncoding.JOINT_POS,
            "aux_kwargs": {},
        },
    )
    assert entry.cameras == {"primary": "image", "secondary": "image_1"}
    assert entry.state_obs_keys == ("state", None, None, None)
    assert entry.robot_platform is None


def test_mistakes_in_an_entry_name_it() -> None:
    with pytest.raises(ValueError, match=r"'mine'.*unknown key 'image_keys'.*image_obs_keys"):
        as_entry("mine", {"image_keys": {}})
    with pytest.raises(ValueError, match=r"'mine'.*needs a key for a camera.*primary"):
        as_entry("mine", {"image_obs_keys": {"primary": None, "wrist": None}})
    with pytest.raises(ValueError, match="camera 'left_wrst'; did you mean left_wrist"):
        DatasetEntry(image_obs_keys={"primary": "image", "left_wrst": "x"})
    with pytest.raises(ValueError, match="aux_kwargs"):
        DatasetEntry(aux_kwargs={"chunk_filter_fn": 1})
    with pytest.raises(ValueError, match="9 is not a valid ActionEncoding"):
        as_entry("mine", {"action_encoding": 9})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_obs_keys": "front"}, "image_obs_keys is 'front'; it says which camera is which: {\"primary\": "),
        (
            {"action_encoding": "JOINT_POSS"},
            "action_encoding is the text 'JOINT_POSS'; write ActionEncoding.NAME without quotes, did you mean",
        ),
        ({"state_encoding": "JOINT"}, "state_encoding is the text 'JOINT'; write StateEncoding.NAME without quotes, did you mean JOINT"),
        ({"fps": "30"}, "stride is 1 and fps '30'; write a whole number for the one, a number for the other"),
        ({"stride": "2"}, "stride is '2' and fps None; write a whole number"),
        ({"stride": 2.0}, "stride is 2.0 and fps None; write a whole number"),
    ],
)
def test_values_of_another_kind_in_an_entry_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        DatasetEntry(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"control_hz": "25"}, "robot platform LIBERO: control_hz is '25'; write a number above 0"),
        ({"control_hz": 0}, "control_hz is 0; write a number above 0"),
        ({"control_hz": float("inf")}, "control_hz is inf; write a number above 0"),
        ({"action_dim": "7"}, "action_dim is '7'; write a whole number"),
        ({"num_actions_chunk": 8.0}, "num_actions_chunk is 8.0; write a whole number"),
        ({"normalization": "BOUNDS"}, "normalization is 'BOUNDS'; write NormalizationType.BOUNDS or NormalizationType.BOUNDS_Q99"),
        ({"action_names": "gripper", "action_dim": 7}, "action_names is the text 'gripper'; a single name needs a comma: (\"gripper\",)"),
    ],
)
def test_values_of_another_kind_in_a_platform_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(get_robot_platform("LIBERO"), **fields)


def test_platforms_whose_names_would_never_be_found_are_refused() -> None:
    mine = replace(get_robot_platform("LIBERO"), name="MY_ARM")
    assert constants._by_name([mine, get_robot_platform("ALOHA")])["MY_ARM"] is mine
    with pytest.raises(ValueError, match="has MY_ARM twice; give one another name"):
        constants._by_name([mine, get_robot_platform("ALOHA"), replace(mine, control_hz=5)])
    with pytest.raises(ValueError, match="has 'my_arm'; write 'MY_ARM'"):
        constants._by_name([replace(mine, name="my_arm")])


def test_cameras_come_primary_first_then_wrists_whatever_the_order_of_the_entry() -> None:
    entry = DatasetEntry(image_obs_keys={"secondary": "s", "right_wrist": "r", "left_wrist": "l", "primary": "p"})
    assert list(entry.cameras) == ["primary", "left_wrist", "right_wrist", "secondary"]


def test_libero_gripper_is_clipped_and_inverted_and_nothing_given_is_altered() -> None:
    action = np.array([[0.1] * 6 + [-1], [0.2] * 6 + [1]], np.float32)
    state = np.arange(16, dtype=np.float32).reshape(2, 8)
    trajectory: dict[str, Any] = {"action": action, "observation": {"state": state}}
    result = libero_dataset_transform(trajectory)
    assert result["action"][:, -1].tolist() == [1, 0]
    np.testing.assert_array_equal(result["observation"]["gripper_state"], state[:, 6:])
    assert action[:, -1].tolist() == [-1, 1]
    assert "EEF_state" not in trajectory["observation"]


def test_a_transform_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"'libbero'.*did you mean libero"):
        find_transform("mine", "libbero")
    assert find_transform("libero", None) is libero_dataset_transform
    assert find_transform("mine", libero_dataset_transform) is libero_dataset_transform


def _write(root: Path, *names: str, action_dim: int = 7, state_dim: int = 8) -> None:
    for name in names:
        write_dataset(root, name, {"train": [make_episode(2, action_dim=action_dim, state_dim=state_dim)]})


def test_a_name_resolves_in_any_case_and_to_its_platform(tmp_path: Path) -> None:
    _write(tmp_path, "aloha1_put_X_into_pot_300_demos")
    (spec,) = resolve_datasets("ALOHA1_put_x_into_pot_300_demos", tmp_path)
    assert (spec.name, spec.platform.name) == ("aloha1_put_X_into_pot_300_demos", "ALOHA")
    assert spec.folder.name == "1.0.0"
    (overridden,) = resolve_datasets("aloha1_put_X_into_pot_300_demos:1.0.0", tmp_path, robot_platform="dual_eef")
    assert overridden.platform.name == "DUAL_EEF"


def test_an_unknown_name_suggests_near_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'libero_spatial_no_nops'.*configs\.py.*did you mean libero_spatial_no_noops"):
        resolve_datasets("libero_spatial_no_nops", tmp_path)
    _write(tmp_path, "metaworld_demo")
    with pytest.raises(ValueError, match="did you mean METAWORLD"):
        resolve_datasets("metaworld_demo", tmp_path, robot_platform="metawrld")


def test_an_entry_without_platform_asks_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(configs.OXE_DATASET_CONFIGS, "mine", {"image_obs_keys": {"primary": "image"}, "action_encoding": 2})
    _write(tmp_path, "mine")
    with pytest.raises(ValueError, match="--robot_platform; platforms: LIBERO"):
        resolve_datasets("mine", tmp_path)
    assert resolve_datasets("mine", tmp_path, robot_platform="SINGLE_JOINT")[0].platform.name == "SINGLE_JOINT"


def test_more_images_than_cameras_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, "metaworld_demo")
    specs = resolve_datasets("metaworld_demo", tmp_path)
    assert select_policy_cameras(specs, 1) == ("primary",)
    with pytest.raises(ValueError, match=r"--num_images_in_input is 3.*has 2 cameras: primary, wrist"):
        select_policy_cameras(specs, 3)


def test_widths_that_contradict_the_platform_name_file_and_fix(tmp_path: Path) -> None:
    _write(tmp_path, "metaworld_demo")
    (spec,) = resolve_datasets("metaworld_demo", tmp_path)
    spec.check_widths(4, 4)
    spec.check_widths(4, None)
    with pytest.raises(ValueError, match=r"actions of 7 dimensions.*METAWORLD expects 4.*configs\.py.*constants\.py.*LIBERO"):
        spec.check_widths(7, 4)
    for name, pattern in (("configs.py", '"metaworld_demo"'), ("constants.py", 'name="METAWORLD"')):
        with pytest.raises(ValueError, match=rf"{re.escape(name)}:\d+") as raised:
            spec.check_widths(7, 4)
        found = re.search(rf"(\S+{re.escape(name)}):(\d+)", str(raised.value))
        assert found is not None
        assert pattern in (REPOSITORY / found[1]).read_text().splitlines()[int(found[2]) - 1]
    with pytest.raises(ValueError, match=r"states of 39 dimensions.*state_obs_keys.*platforms with proprio_dim 39: none"):
        spec.check_widths(4, 39)


def test_a_state_that_is_too_narrow_suggests_padding(tmp_path: Path) -> None:
    _write(tmp_path, "single_joint_task_sample", action_dim=8, state_dim=5)
    (spec,) = resolve_datasets("single_joint_task_sample", tmp_path)
    with pytest.raises(ValueError, match=r'To pad 5 to 8 with zeros: state_obs_keys=\("state", None, None, None\)'):
        spec.check_widths(8, 5)
    with pytest.raises(ValueError, match="states of 9") as raised:
        spec.check_widths(8, 9)
    assert "pad" not in str(raised.value)


def test_an_entry_that_stands_in_no_file_names_the_file() -> None:
    assert entry_location("no_such_entry") == "prismatic/vla/datasets/rlds/oxe/configs.py"
    assert platform_location("NO_SUCH_ROBOT") == "prismatic/vla/constants.py"
    assert entry_location("droid_wipe").startswith("prismatic/vla/datasets/rlds/oxe/configs.py:")


def test_a_published_entry_without_platform_names_its_line(tmp_path: Path) -> None:
    _write(tmp_path, "taco_play")
    with pytest.raises(ValueError, match=r"'taco_play' does not say which robot.*configs\.py:\d+.*--robot_platform; platforms: LIBERO"):
        resolve_datasets("taco_play", tmp_path)


def test_a_wrist_camera_alone_is_enough(tmp_path: Path) -> None:
    _write(tmp_path, "berkeley_gnm_recon")
    specs = resolve_datasets("berkeley_gnm_recon", tmp_path, robot_platform="LIBERO")
    assert select_policy_cameras(specs, 1) == ("wrist",)


def test_a_resolved_spec_survives_pickling_and_its_transform_is_found(tmp_path: Path) -> None:
    _write(tmp_path, "bridge_orig")
    (spec,) = resolve_datasets("bridge_orig", tmp_path)
    (again,) = pickle.loads(pickle.dumps((spec,)))
    assert inspect.unwrap(again.transform) is find_transform("bridge_orig", None)
    assert transform_key(again.transform) == transform_key(find_transform("bridge_orig", None))


def test_a_published_entry_pasted_as_it_stands_is_the_same_as_ours() -> None:
    pasted = {
        "image_obs_keys": {"primary": "image", "secondary": "top_image", "wrist": "wrist45_image"},
        "depth_obs_keys": {"primary": None, "secondary": None, "wrist": None},
        "state_obs_keys": ["robot_state", None],
        "state_encoding": StateEncoding.JOINT,
        "action_encoding": ActionEncoding.EEF_POS,
    }
    entry, ours = as_entry("mine", pasted), find_entry("berkeley_cable_routing")
    assert entry.cameras == ours.cameras
    for field in ("state_obs_keys", "state_encoding", "action_encoding"):
        assert getattr(entry, field) == getattr(ours, field)
    assert not any(entry.depth_obs_keys.values())


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("NUM_ACTIONS_CHUNK", "num_actions_chunk"),
        ("ACTION_DIM", "action_dim"),
        ("PROPRIO_DIM", "proprio_dim"),
        ("ACTION_PROPRIO_NORMALIZATION_TYPE", "normalization"),
    ],
)
def test_importing_a_published_constant_says_what_it_is_here(name: str, field: str) -> None:
    with pytest.raises(ImportError) as raised:
        exec(f"from prismatic.vla.constants import {name}")
    advice = re.search(r"write (get_robot_platform\(\"ALOHA\"\)\.\w+)\. ", str(raised.value))
    assert advice is not None
    assert eval(advice[1], {"get_robot_platform": get_robot_platform}) == getattr(ROBOT_PLATFORMS["ALOHA"], field)
    with pytest.raises(ImportError, match="cannot import name 'ACTION_DIMS'"):
        exec("from prismatic.vla.constants import ACTION_DIMS")
    assert not hasattr(constants, "ACTION_DIMS")
