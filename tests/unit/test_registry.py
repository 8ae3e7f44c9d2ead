from __future__ import annotations

import inspect
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rlds_writer import make_episode, write_dataset

from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.vla.constants import ROBOT_PLATFORMS, ActionKind, RobotPlatform
from prismatic.vla.datasets.dataset import DatasetOptions, load_training_data
from prismatic.vla.datasets.index import source_of
from prismatic.vla.datasets.rlds.oxe import configs, mixtures
from prismatic.vla.datasets.rlds.oxe.configs import (
    OXE_DATASET_CONFIGS,
    ActionEncoding,
    DatasetEntry,
    StateEncoding,
    action_normalization_mask,
    as_entry,
    encoded_kinds,
    find_entry,
    kinds_text,
)
from prismatic.vla.datasets.rlds.oxe.locations import entry_location, platform_location
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec, resolve_datasets, select_policy_cameras
from prismatic.vla.datasets.rlds.oxe.transforms import find_transform, libero_dataset_transform
from prismatic.vla.images import ImageRecipe
from prismatic.vla.normalization import unnormalize

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


def test_names_say_what_a_dimension_is() -> None:
    names = ("x.vel", "theta.vel [deg/s]", "wheel_vel", "base_velocity", "base_x [m/s]", "dx", "left_delta_elbow [rad]", "elbow [rad]")
    platform = replace(ROBOT_PLATFORMS["LIBERO"], action_names=names, action_dim=len(names), action_kinds=())
    assert [kind.value for kind in platform.action_kinds] == ["velocity"] * 5 + ["motion"] * 2 + ["target"]


def test_a_platform_that_calls_a_motion_a_target_is_refused() -> None:
    names = ("vx", "dy", "dz", "droll", "delta_pitch", "dyaw [rad]", "gripper")
    platform = replace(ROBOT_PLATFORMS["LIBERO"], action_names=names, action_kinds=())
    spec = DatasetSpec("libero_10_no_noops", find_entry("libero_10_no_noops"), Path(), platform, libero_dataset_transform)
    with pytest.raises(ValueError, match=r'names of vx in.*action_kinds=\("target",\) \+ \("motion",\) \* 5 \+ \("target",\) to the entry'):
        spec.check_widths(7, 8)


MOBILE = RobotPlatform(
    name="MOBILE",
    num_actions_chunk=5,
    action_dim=4,
    proprio_dim=4,
    normalization=ROBOT_PLATFORMS["ALOHA"].normalization,
    control_hz=25,
    action_names=("joint_1 [rad]", "gripper", "base_1", "base_2"),
    proprio_names=("joint_1 [rad]", "gripper", "base_1", "base_2"),
)
MIXED = ("target", "target", "velocity", "motion")


def mobile_specs(root: Path, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> tuple[DatasetSpec, ...]:
    monkeypatch.setitem(ROBOT_PLATFORMS, "MOBILE", MOBILE)
    entry = {"action_encoding": ActionEncoding.JOINT_POS, "robot_platform": "MOBILE", **fields}
    monkeypatch.setitem(OXE_DATASET_CONFIGS, "mine", entry)
    if not (root / "mine").exists():
        write_dataset(root, "mine", {"train": [make_episode(6, action_dim=4, state_dim=4)]})
    return resolve_datasets("mine", root)


def test_an_entry_says_what_each_dimension_is_and_chunks_end_accordingly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = mobile_specs(tmp_path, monkeypatch, action_kinds=MIXED)
    assert [kind.value for kind in specs[0].platform.action_kinds] == list(MIXED)
    data = load_training_data(specs, DatasetOptions(("primary",), 24, cache_dir=tmp_path))
    part = data.train.parts[0]
    chunk = unnormalize(part.actions(5), part.action_bounds)  # the last step: four actions beyond the end
    last = part.index.actions[5]
    np.testing.assert_allclose(chunk[0], last, atol=1e-6)
    np.testing.assert_allclose(chunk[1:], np.tile((last[0], last[1], 0, 0), (4, 1)), atol=1e-6)
    assert data.statistics["mine"]["action"]["mask"] == [True] * 4


def test_an_entry_without_kinds_has_those_of_its_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (spec,) = mobile_specs(tmp_path, monkeypatch)
    assert spec.platform.action_kinds == (ActionKind.TARGET,) * 4
    spec.check_widths(4, 4)


def test_kinds_that_contradict_the_platform_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"lists 3 dimensions, robot platform MOBILE has 4"):
        mobile_specs(tmp_path, monkeypatch, action_kinds=MIXED[:3])
    with pytest.raises(ValueError, match=r"'mine' in .*action_kinds names 'speed', which is no kind of action; known: motion"):
        mobile_specs(tmp_path, monkeypatch, action_kinds=("target", "target", "speed", "motion"))
    with pytest.raises(ValueError, match=r"calls dimension 0 a velocity, but dx of .*constants.py:\d+ is a motion; correct either"):
        mobile_specs(tmp_path, monkeypatch, action_kinds=("velocity", *MIXED[1:]), robot_platform="METAWORLD")
    monkeypatch.setitem(OXE_DATASET_CONFIGS, "other", {"action_encoding": 2, "robot_platform": "MOBILE"})
    write_dataset(tmp_path, "other", {"train": [make_episode(2)]})
    monkeypatch.setitem(mixtures.OXE_NAMED_MIXTURES, "both", (("mine", 1.0), ("other", 1.0)))
    mobile_specs(tmp_path, monkeypatch, action_kinds=MIXED)
    with pytest.raises(ValueError, match=r'different robot platforms: .*MOBILE \("target",\) \* 2 \+ \("velocity",\) \+ \("motion",\)'):
        resolve_datasets("both", tmp_path)


def test_grippers_of_an_end_effector_that_drives_keep_their_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("motion", "target", "velocity", "target")  # dx, gripper, base, lift
    (spec,) = mobile_specs(tmp_path, monkeypatch, action_kinds=kinds, action_encoding=ActionEncoding.EEF_POS)
    assert spec.normalization_mask(4).tolist() == [True, False, True, True]


def test_policy_json_and_its_reader_keep_the_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (spec,) = mobile_specs(tmp_path, monkeypatch, action_kinds=MIXED)
    PolicySpec(spec.platform, ("primary",), ImageRecipe(28), "mine").save(tmp_path)
    content = json.loads((tmp_path / "policy.json").read_text())
    assert content["platform"]["action_kinds"] == list(MIXED)
    assert PolicySpec.load(tmp_path).platform == spec.platform
    del content["platform"]["action_kinds"]  # as written before there were any: by the names
    (tmp_path / "policy.json").write_text(json.dumps(content))
    assert PolicySpec.load(tmp_path).platform == MOBILE


def test_kinds_are_printed_as_python_to_paste() -> None:
    kinds = (ActionKind.TARGET,) * 14 + (ActionKind.VELOCITY,) * 2
    assert eval(kinds_text(kinds)) == tuple(kind.value for kind in kinds)
    assert kinds_text(kinds) == '("target",) * 14 + ("velocity",) * 2'


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


@pytest.mark.parametrize("name", mixtures.OXE_NAMED_MIXTURES)
def test_every_mixture_names_entries_that_exist_once_each(name: str) -> None:
    parts = mixtures.OXE_NAMED_MIXTURES[name]
    assert all(part in OXE_DATASET_CONFIGS and weight > 0 for part, weight in parts)
    assert len({part for part, _ in parts}) == len(parts)


# Number of data sets and sum of the weights of the published lists (rtx_franka without its four repetitions).
@pytest.mark.parametrize(
    ("name", "count", "total"),
    [
        ("bridge", 1, 1.0),
        ("bridge_rt_1", 2, 2.0),
        ("rtx", 10, 14.3749758),
        ("rtx_franka", 24, 36.5749758),
        ("oxe_magic_soup", 23, 29.5749758),
        ("oxe_magic_soup_plus", 27, 31.0349758),
        ("oxe_magic_soup_plus_minus", 25, 31.3341046),
        ("libero_4_task_suites_no_noops", 4, 4.0),
    ],
)
def test_published_mixtures_have_their_weights(name: str, count: int, total: float) -> None:
    weights = [weight for _, weight in mixtures.OXE_NAMED_MIXTURES[name]]
    assert len(weights) == count
    assert sum(weights) == pytest.approx(total, abs=1e-6)


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


def test_a_mixture_resolves_to_its_parts(tmp_path: Path) -> None:
    parts = [name for name, _ in mixtures.OXE_NAMED_MIXTURES["libero_4_task_suites_no_noops"]]
    _write(tmp_path, *parts)
    specs = resolve_datasets("libero_4_task_suites_no_noops", tmp_path)
    assert [spec.name for spec in specs] == parts
    assert select_policy_cameras(specs, 2) == ("primary", "wrist")


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


def test_a_mixture_of_two_robots_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "metaworld_demo", "libero_10_no_noops")
    monkeypatch.setitem(mixtures.OXE_NAMED_MIXTURES, "both", (("metaworld_demo", 1.0), ("libero_10_no_noops", 1.0)))
    with pytest.raises(ValueError, match="different robot platforms"):
        resolve_datasets("both", tmp_path)


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


def test_a_published_mixture_refuses_a_data_set_that_is_absent(tmp_path: Path) -> None:
    _write(tmp_path, "bridge_orig")
    with pytest.raises(ValueError, match="fractal20220817_data"):
        resolve_datasets("bridge_rt_1", tmp_path, robot_platform="BRIDGE")


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
    assert "binarize_gripper_actions" in source_of(again.transform)


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
