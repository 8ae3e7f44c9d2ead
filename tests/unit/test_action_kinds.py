"""What robot platforms and entries say of each dimension of the action: target, motion or velocity."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rlds_writer import make_episode, write_dataset

from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.vla.constants import ROBOT_PLATFORMS, ActionKind, RobotPlatform
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.rlds.oxe import mixtures
from prismatic.vla.datasets.rlds.oxe.configs import OXE_DATASET_CONFIGS, ActionEncoding, find_entry, kinds_text
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec, resolve_datasets
from prismatic.vla.datasets.rlds.oxe.transforms import libero_dataset_transform
from prismatic.vla.datasets.training_data import load_training_data
from prismatic.vla.images import ImageRecipe
from prismatic.vla.normalization import unnormalize

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
