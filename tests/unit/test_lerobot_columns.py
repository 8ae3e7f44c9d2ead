"""What meta/ says about dimensions: names in every form, units, kinds, parts; cameras with and without files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lerobot_writer import change_info, make_episode, write_v2, write_v3

from prismatic.vla.constants import ActionKind
from prismatic.vla.datasets.lerobot.columns import dimension_names, kind_of
from prismatic.vla.datasets.sources import describe_recordings

SO101 = ["shoulder_pan.pos", "wrist_roll.pos", "gripper.pos"]


def _folder(tmp_path: Path, names: object, low: list[float], high: list[float]) -> Path:
    width = len(low)
    folder = write_v2(tmp_path / "door", [make_episode(3, 1, dim=width)])
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    for column in ("action", "observation.state"):
        features[column]["names"] = names
    change_info(folder, features=features, robot_type="so101_follower")
    stats = {"action": {"min": low, "max": high}, "observation.state": {"min": [value / 2 for value in low], "max": [1.0] * width}}
    (folder / "meta/episodes_stats.jsonl").write_text(json.dumps({"episode_index": 0, "stats": stats}))
    return folder


@pytest.mark.parametrize(
    ("largest", "units"),
    [(140.0, ["deg", "deg", "0-100"]), (97.0, ["", "", "0-100"])],
    ids=["degrees", "degrees or percent"],
)
def test_units_of_lerobots_arms(tmp_path: Path, largest: float, units: list[str]) -> None:
    described = describe_recordings(_folder(tmp_path, SO101, [-20.0, -largest, 0.0], [15.0, 2.0, 98.0]))
    assert (described.hz, described.robot) == (10, "so101_follower")
    for column in ("action", "state"):  # the state moves little: its units are those of the action
        dimensions = described.dimensions((column,))
        assert [dimension.unit for dimension in dimensions] == units
        assert [dimension.name for dimension in dimensions] == SO101
        assert {dimension.kind for dimension in dimensions} == {ActionKind.TARGET}
    assert described.dimensions(("action", None))[3].name == "zero"
    assert described.dimensions(("action", "unknown")) == ()


def test_small_values_leave_units_open(tmp_path: Path) -> None:
    described = describe_recordings(_folder(tmp_path, SO101, [-1.0, -3.0, 0.0], [1.0, 2.0, 1.2]))
    assert [dimension.unit for dimension in described.dimensions(("action",))] == ["", "", ""]


def test_a_mobile_base_has_velocities(tmp_path: Path) -> None:
    names = ["arm_wrist_roll.pos", "arm_gripper.pos", "x.vel", "y.vel", "theta.vel"]
    dimensions = describe_recordings(_folder(tmp_path, names, [-150.0, 0, -1, -1, -60], [150.0, 100, 1, 1, 60])).dimensions(("action",))
    assert [dimension.label for dimension in dimensions] == [
        "arm_wrist_roll.pos [deg]",
        "arm_gripper.pos [0-100]",
        "x.vel [m/s]",
        "y.vel [m/s]",
        "theta.vel [deg/s]",
    ]
    assert [dimension.kind for dimension in dimensions] == [ActionKind.TARGET] * 2 + [ActionKind.VELOCITY] * 3


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a", "b"], ("a", "b")),
        ({"motors": ["a", "b"]}, ("a", "b")),
        ([["a", "b"]], ("a", "b")),
        ({"b": 1, "a": 0}, ("a", "b")),
        (["a"], ()),
        (["a", None], ()),
        (None, ()),
        ("ab", ()),
    ],
)
def test_names_in_every_form(names: object, found: tuple[str, ...]) -> None:
    assert dimension_names({"names": names}, 2) == found


@pytest.mark.parametrize(
    ("column", "name", "kind"),
    [
        ("action", "left.joint_1.pos", ActionKind.TARGET),
        ("action", "base.vx", ActionKind.VELOCITY),
        ("action", "theta.vel", ActionKind.VELOCITY),
        ("action", "delta_x", ActionKind.MOTION),
        ("action.delta_eef_position", "", ActionKind.MOTION),
        ("action.joint.position", "", ActionKind.TARGET),
        ("state.joints_velocity", "", ActionKind.VELOCITY),
        ("observation.state", "gripper.load", None),
        ("action", "motor_3", None),
        ("action", "linear_x", ActionKind.VELOCITY),
        ("action", "angular.z", ActionKind.VELOCITY),
        ("action", "base", None),
    ],
)
def test_kinds(column: str, name: str, kind: ActionKind | None) -> None:
    assert kind_of(column, name) is kind


def test_a_rotation_vector_beside_positions_is_no_rate_of_turning() -> None:
    """LeRobot's poses are called ee.x, ee.wx; a twist is called vx, wx."""
    assert kind_of("action", "ee.wx", ["ee.x", "ee.y", "ee.z", "ee.wx", "ee.gripper_pos"]) is None
    assert kind_of("action", "wx", ["vx", "vy", "vz", "wx"]) is ActionKind.VELOCITY


def test_units_that_are_written_down(tmp_path: Path) -> None:
    dimensions = describe_recordings(_folder(tmp_path, ["elbow [rad]", "lift (mm)"], [-1.0, 0.0], [1.0, 300.0])).dimensions(("action",))
    assert [(dimension.name, dimension.unit) for dimension in dimensions] == [("elbow", "rad"), ("lift", "mm")]


def test_parts_take_their_names_from_modality_json(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ["motor_0", "motor_1", "motor_2"], [-1.0] * 3, [1.0] * 3)
    content = {"action": {"arm": {"start": 0, "end": 2, "absolute": False}, "hand": {"start": 2, "end": 3}, "leg": {"start": 3, "end": 9}}}
    (folder / "meta/modality.json").write_text(json.dumps(content))
    columns = {column.key: column for column in describe_recordings(folder).columns}
    assert [dimension.name for dimension in columns["action.arm"].dimensions] == ["arm_1", "arm_2"]
    assert columns["action.arm"].kind is ActionKind.MOTION
    assert columns["action.hand"].width == 1
    assert "action.leg" not in columns
    assert [dimension.name for dimension in columns["action"].dimensions] == ["arm_1", "arm_2", "hand"]
    assert [dimension.name for dimension in columns["state"].dimensions] == ["motor_0", "motor_1", "motor_2"]


def test_cameras_with_and_without_their_files(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "door", [make_episode(3, 1), make_episode(4, 2)])
    (folder / "videos/observation.images.wrist/chunk-000/file-000.mp4").unlink()
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    change_info(
        folder, features=features | {"observation.images.range": features["observation.images.top"] | {"info": {"is_depth_map": True}}}
    )
    cameras = {camera.key: camera for camera in describe_recordings(folder).cameras}
    assert [(camera.num_present, camera.num_files, camera.is_depth) for camera in cameras.values()] == [
        (1, 1, False),
        (0, 1, False),
        (0, 1, True),
    ]
    assert list(cameras) == ["top", "wrist", "range"]
