"""What `--suggest` prints: pasted, it is accepted, reads the recordings, and says what the dimensions are, or asks."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hdf5_files import write_aloha, write_libero
from lerobot_writer import change_column, change_info, write_v3
from lerobot_writer import make_episode as make_lerobot_episode
from rlds_writer import make_episode, write_dataset

from prismatic.commands.inspect_dataset import InspectConfig, main
from prismatic.vla import constants
from prismatic.vla.constants import ActionKind, RobotPlatform
from prismatic.vla.datasets.description import Dimension
from prismatic.vla.datasets.index import load_index
from prismatic.vla.datasets.inspection.checks import check_arrays
from prismatic.vla.datasets.inspection.view import DatasetView
from prismatic.vla.datasets.rlds.oxe import configs
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec, resolve_datasets
from prismatic.vla.datasets.sources import find_dataset_folder, open_source
from prismatic.vla.datasets.suggestion.arms import find_arms
from prismatic.vla.datasets.suggestion.columns import Recorded
from prismatic.vla.datasets.suggestion.suggest import suggest_entry

NUM_STEPS = 60
Rows = np.ndarray  # [NUM_STEPS, dims]


@dataclass
class Pasted:
    text: str
    entry: DatasetEntry
    spec: DatasetSpec
    view: DatasetView

    @property
    def platform(self) -> RobotPlatform:
        return self.spec.platform

    @property
    def kinds(self) -> str:
        """ "ttmv": first letters."""
        return "".join(kind.value[0] for kind in self.view.kinds)

    @property
    def grippers(self) -> list[int]:
        return [dim for dim, name in enumerate(self.platform.action_names) if "gripper" in name]


@pytest.fixture
def paste(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pasted]:
    """Suggests, pastes what was printed (with `changes` made by hand) and reads the data set as training does."""

    def suggest(root: Path, hz: float | None = None, changes: Mapping[str, str] | None = None, knows_robot: bool = False) -> Pasted:
        name = "mine"
        monkeypatch.delitem(configs.OXE_DATASET_CONFIGS, name, raising=False)  # of an earlier call
        if not knows_robot:
            monkeypatch.delitem(constants.ROBOT_PLATFORMS, "MINE", raising=False)
        text = suggest_entry(find_dataset_folder(root, name), name, hz).text()
        assert all(line.startswith(("#", " ")) or not line for line in text.splitlines())
        for old, new in (changes or {}).items():
            assert old in text
            text = text.replace(old, new)
        entry = re.search(r'^    "[^"]+": DatasetEntry\(.*?^    \),$', text, re.S | re.M)
        platform = re.search(r"^        RobotPlatform\(.*?^        \),$", text, re.S | re.M)
        assert entry
        registry = eval("{" + entry[0] + "}", vars(configs))
        monkeypatch.setitem(configs.OXE_DATASET_CONFIGS, name, registry[name])
        if platform:
            (made,) = eval("(" + platform[0] + ")", vars(constants))
            monkeypatch.setitem(constants.ROBOT_PLATFORMS, made.name, made)
        (spec,) = resolve_datasets(name, root)
        index = load_index(open_source(spec.folder, spec.entry), spec.entry, spec.transform)
        spec.check_widths(index.actions.shape[1], index.proprio.shape[1])
        view = DatasetView.of(spec, index)
        refused = [finding for finding in check_arrays(view) if finding.subject in ("dimensions", "encoding", "gripper")]
        assert [str(finding) for finding in refused if "never opens" not in finding.found] == []
        return Pasted(text, spec.entry, spec, view)

    return suggest


def walk(seed: int, dims: int, scale: float = 0.02) -> Rows:
    return np.cumsum(np.random.default_rng(seed).normal(0, scale, (NUM_STEPS, dims)), axis=0).astype(np.float32)


def ahead(states: Rows) -> Rows:
    """Targets that the next state equals."""
    return np.concatenate([states[1:], states[-1:]])


def changes_of(states: Rows) -> Rows:
    return np.diff(states, axis=0, append=states[-1:])


def opening(low: float = 0.0, high: float = 1.0) -> Rows:
    return np.where(np.abs(np.arange(NUM_STEPS) - 30) > 12, high, low)[:, None].astype(np.float32)


def write_act(
    root: Path, make: Callable[[int], tuple[Rows, Rows]], cameras: Sequence[str] = ("cam_high",), **columns: Callable[[int], Rows]
) -> Path:
    """Three HDF5 episodes of (actions, states); further columns by their paths, with __ for /."""
    for seed in range(3):
        actions, states = make(seed)
        (root / "mine").mkdir(parents=True, exist_ok=True)
        with h5py.File(root / "mine" / f"episode_{seed}.hdf5", "w") as file:
            if actions.shape[1]:
                file["action"] = actions
            if states.shape[1]:
                file["observations/qpos"] = states
            for path, values in columns.items():
                file[path.replace("__", "/")] = values(seed)
            for camera in cameras:
                file[f"observations/images/{camera}"] = np.full((NUM_STEPS, 8, 8, 3), 90, np.uint8)
            file.attrs["language_instruction"] = "push"
    return root


def moved(arm: int, num_arms: int = 1, low: float = 0.0, high: float = 1.0) -> Callable[[int], tuple[Rows, Rows]]:
    """Motions of `arm` dimensions and a gripper's command per arm."""

    def make(seed: int) -> tuple[Rows, Rows]:
        states = [np.hstack([walk(10 * seed + number, arm), opening(low, high)]) for number in range(num_arms)]
        return np.hstack([np.hstack([changes_of(state[:, :-1]), state[:, -1:]]) for state in states]), np.hstack(states)

    return make


def targets(arm: int, num_arms: int = 1, low: float = 0.0, high: float = 1.0) -> Callable[[int], tuple[Rows, Rows]]:
    """Targets of `arm` dimensions and a gripper's command per arm."""

    def make(seed: int) -> tuple[Rows, Rows]:
        states = np.hstack([np.hstack([walk(10 * seed + number, arm), opening(low, high)]) for number in range(num_arms)])
        return ahead(states), states

    return make


def quaternions(seed: int) -> tuple[Rows, Rows]:
    turned = walk(seed, 4, 0.05) + np.array([1, 0, 0.5, 0])
    states = np.hstack([walk(seed + 50, 3), turned / np.linalg.norm(turned, axis=1, keepdims=True), opening()])
    return ahead(states), states


def hands(seed: int) -> tuple[Rows, Rows]:
    """34 targets, of which the fingers' 20 hardly move."""
    states = np.hstack([walk(seed, 14), np.zeros((NUM_STEPS, 20), np.float32)])
    noise = np.random.default_rng(seed).normal(0, 1e-3, states.shape)
    return ahead(states), (states + 0.1 * (np.arange(34) > 13) + noise).astype(np.float32)


@pytest.mark.parametrize(
    ("make", "hz", "kinds", "encoding", "grippers"),
    [
        (moved(6), 10, "m" * 6 + "t", "EEF_POS", [6]),
        (moved(7), 10, "m" * 7 + "t", "JOINT_POS", [7]),
        (moved(9), 15, "m" * 9 + "t", "EEF_R6", [9]),
        (moved(6, 2), 20, ("m" * 6 + "t") * 2, "DUAL_EEF_POS", [6, 13]),
        (moved(9, 2), 20, ("m" * 9 + "t") * 2, "DUAL_EEF_POS", [9, 19]),
        (moved(6, 1, 0, 0.08), 10, "m" * 6 + "t", "JOINT_POS", [6]),
        (moved(6, 1, 0, 850), 10, "m" * 6 + "t", "JOINT_POS", [6]),
        (targets(5), 30, "t" * 6, "JOINT_POS", [5]),
        (targets(7, 1, 0, 100), 30, "t" * 8, "JOINT_POS", [7]),
        (targets(7, 2), None, "t" * 16, "JOINT_POS_BIMANUAL", [7, 15]),
        (quaternions, 20, "t" * 8, "JOINT_POS", [7]),
        (hands, 30, "t" * 34, "JOINT_POS", []),
    ],
)
def test_what_was_printed_is_accepted_and_right(
    tmp_path: Path,
    paste: Callable[..., Pasted],
    make: Callable[[int], tuple[Rows, Rows]],
    hz: float | None,
    kinds: str,
    encoding: str,
    grippers: list[int],
) -> None:
    pasted = paste(write_act(tmp_path, make), hz=hz)
    assert pasted.kinds == kinds
    assert (pasted.entry.action_encoding.name, pasted.grippers) == (encoding, grippers)
    assert (pasted.platform.name, pasted.platform.control_hz) == ("MINE", hz or 25)  # of no robot of the table: width and rate say nothing
    assert "Question" not in pasted.text
    assert ("pass --control_hz" in pasted.text) == (hz is None)
    assert pasted.entry.state_obs_keys == ("state",)  # which a converted set has, too
    if make is quaternions:
        assert pasted.platform.action_names[3:7] == ("quaternion_1", "quaternion_2", "quaternion_3", "quaternion_4")
        assert pasted.entry.state_encoding.name == "POS_QUAT"


def test_a_chunk_is_one_second_but_no_longer_than_half_an_episode(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    assert paste(write_act(tmp_path / "slow", targets(5)), hz=10).platform.num_actions_chunk == 10
    assert paste(write_act(tmp_path / "fast", targets(5)), hz=50).platform.num_actions_chunk == NUM_STEPS // 2


def driven(seed: int) -> Rows:
    """Speeds of a base: a while at rest, a while running."""
    return np.where(np.arange(NUM_STEPS) < 25 + seed, 0.3, 0.0)[:, None] * np.ones((1, 2), np.float32)


@pytest.mark.parametrize("shown_by", ["speeds", "delay", "width"])
def test_velocities_of_a_base_are_recognised_by_their_values_and_asked_about(
    tmp_path: Path, paste: Callable[..., Pasted], shown_by: str
) -> None:
    def make(seed: int) -> tuple[Rows, Rows]:
        arms = np.hstack([walk(10 * seed, 14, 0.05)])
        states = np.hstack([arms, driven(seed)]) if shown_by != "width" else arms
        return np.hstack([ahead(arms), driven(seed)]), states

    columns = {"observations__qvel": lambda seed: changes_of(walk(10 * seed, 14, 0.05))} if shown_by == "speeds" else {}
    write_act(tmp_path, make, **columns)
    pasted = paste(tmp_path)
    assert pasted.kinds == "t" * 14 + "v" * 2
    assert pasted.platform.action_names[14:] == ("base_linear_velocity", "base_angular_velocity")
    assert "Question: do they drive a base?" in pasted.text
    assert pasted.platform.normalization.value == "bounds"
    changes = {"base_linear_velocity": "lift", "base_angular_velocity": "torso"}
    answered = paste(tmp_path, changes={'("target",) * 14 + ("velocity",) * 2': '("target",) * 16', **changes})
    assert answered.kinds == "t" * 16


def test_a_column_of_base_commands_is_joined(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    pasted = paste(write_act(tmp_path / "runs", targets(6, 2), base_action=driven))
    assert (pasted.entry.action_keys, pasted.kinds) == (("action", "base_action"), "t" * 14 + "v" * 2)
    assert pasted.platform.action_names[14:] == ("base_linear_velocity", "base_angular_velocity")
    assert "take it out of action_keys" in pasted.text
    still = paste(write_act(tmp_path / "stands", targets(6, 2), base_action=lambda seed: np.zeros((NUM_STEPS, 2))))
    assert (still.entry.action_keys, still.kinds) == (("action",), "t" * 14)
    assert "'base_action' is always 0 and left out" in still.text


def test_columns_of_arms_and_grippers_are_joined_left_before_right(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    parts = {"right": 1, "left": 2}
    columns: dict[str, Callable[[int], Rows]] = {}
    for side, number in parts.items():
        columns[f"observations__qpos__{side}_gripper"] = lambda seed: opening()
        columns[f"action__{side}_gripper"] = lambda seed: ahead(opening())
        columns[f"observations__qpos__{side}_joints"] = lambda seed, number=number: walk(seed + number, 6)
        columns[f"action__{side}_joints"] = lambda seed, number=number: ahead(walk(seed + number, 6))
        columns[f"action__{side}_joints_delta"] = lambda seed, number=number: changes_of(walk(seed + number, 6))
    pasted = paste(write_act(tmp_path, lambda seed: (np.zeros((NUM_STEPS, 0)), np.zeros((NUM_STEPS, 0))), **columns))
    order = ("left_joints", "left_gripper", "right_joints", "right_gripper")
    assert pasted.entry.action_keys == tuple(f"action/{name}" for name in order)
    assert pasted.entry.state_obs_keys == tuple(f"qpos/{name}" for name in order)
    assert (pasted.kinds, pasted.grippers) == ("t" * 14, [6, 13])
    assert "Other columns of commands, for action_keys: action/left_joints_delta, action/right_joints_delta" in pasted.text


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda seed: (np.zeros((NUM_STEPS, 7), np.float32), np.zeros((NUM_STEPS, 7), np.float32)), "no dimension of the actions changes"),
        (lambda seed: (walk(seed, 7), walk(seed + 9, 7)), "the state neither follows them nor changes with them"),
        (lambda seed: (walk(seed, 7), np.zeros((NUM_STEPS, 0))), "no recorded state measures what they command"),
    ],
)
def test_what_values_do_not_show_is_asked_and_the_answer_is_accepted(
    tmp_path: Path, paste: Callable[..., Pasted], make: Callable[[int], tuple[Rows, Rows]], why: str
) -> None:
    write_act(tmp_path, make)
    pasted = paste(tmp_path)
    assert f"Cannot tell whether the actions are targets or motions, because {why}" in pasted.text
    assert pasted.text.count("Question") == 1
    assert pasted.kinds == "t" * 7
    answer = re.search(r"for motions write (action_kinds=.*) into the entry", pasted.text)
    assert answer
    answered = paste(tmp_path, changes={'robot_platform="MINE"': f'{answer[1]}, robot_platform="MINE"'})
    assert answered.kinds == "mmmmmmt"


def write_lerobot(root: Path, make: Callable[[int], tuple[Rows, Rows]], names: Any, state_names: Any = None, **info: Any) -> Path:
    """Three episodes whose info.json names the dimensions."""
    episodes = []
    for seed in range(3):
        actions, states = make(seed)
        episode = make_lerobot_episode(NUM_STEPS, seed, cameras=("observation.images.front",), dim=1)
        episodes.append(dataclasses.replace(episode, actions=actions, state=states))
    folder = write_v3(root / "mine", episodes)
    content = json.loads((folder / "meta/info.json").read_text())
    content["features"]["action"]["names"] = names
    content["features"]["observation.state"]["names"] = names if state_names is None else state_names
    change_info(folder, features=content["features"], **info)
    statistics = {
        key: {"min": np.min(rows, axis=(0, 1)).tolist(), "max": np.max(rows, axis=(0, 1)).tolist()}
        for key, rows in (("action", [one.actions for one in episodes]), ("observation.state", [one.state for one in episodes]))
    }
    (folder / "meta/stats.json").write_text(json.dumps(statistics))
    return root


JOINTS = ["shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "wrist_flex.pos", "wrist_roll.pos"]


def in_degrees(num_arms: int = 1, extra: int = 0) -> Callable[[int], tuple[Rows, Rows]]:
    """Joints beyond 100 degrees, a gripper from 0 to 100, and speeds that the state measures."""

    def make(seed: int) -> tuple[Rows, Rows]:
        joints = [150 * np.sin(walk(10 * seed + arm, 5, 0.2)) + [0, 60, 0, 0, 0] for arm in range(num_arms)]
        states = np.hstack([np.hstack([rows, opening(5, 60)]) for rows in joints] + [np.repeat(driven(seed), 2, 1)[:, :extra]])
        return ahead(states.astype(np.float32)), states.astype(np.float32)

    return make


def test_names_decide_what_a_mobile_arm_is(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    """LeKiwi's theta.vel is no gripper, and what is measured like a target is a velocity by its name."""
    names = [*(f"arm_{name}" for name in (*JOINTS, "gripper.pos")), "x.vel", "y.vel", "theta.vel"]
    pasted = paste(write_lerobot(tmp_path, in_degrees(extra=3), names, fps=30))
    assert (pasted.kinds, pasted.grippers) == ("tttttt" + "vvv", [5])
    assert pasted.platform.action_names[4:7] == ("arm_wrist_roll.pos [deg]", "arm_gripper.pos [0-100]", "x.vel [m/s]")
    assert pasted.platform.control_hz == 30
    assert "Question" not in pasted.text


@pytest.mark.parametrize(
    ("names", "base"),
    [
        (["base", "shoulder", "elbow", "wrist1", "wrist2", "wrist3", "gripper"], ()),  # UR
        (["left_base", "left_elbow", "right_base_joint", "right_elbow", "gripper"], ()),
        (["base_yaw", "elbow", "gripper", "base_x", "base_theta"], (3, 4)),
        (["elbow", "gripper", "base_1", "base_2"], (2, 3)),
        (["elbow", "gripper", "left_wheel", "right_wheel"], (2, 3)),
        (["elbow", "gripper", "mobile_base_w"], (2,)),
    ],
)
def test_the_base_of_an_arm_is_a_joint(names: list[str], base: tuple[int, ...]) -> None:
    """Held still as a velocity, it would be sent to 0."""
    rows, dims = walk(0, len(names)), tuple(Dimension(name) for name in names)
    places, goes_on = tuple(range(len(names))), np.ones(NUM_STEPS - 1, bool)
    recorded = Recorded(("action",), ("state",), rows, rows, goes_on, dims, dims, places, None, NUM_STEPS)
    arms = find_arms(recorded, [ActionKind.TARGET] * len(names))
    assert (arms.base, arms.num_arms) == (base, 2 if names[0] == "left_base" else 1)


def test_motions_called_like_positions_are_accepted(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    names = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]  # BridgeData in LeRobot's format
    pasted = paste(write_lerobot(tmp_path, moved(6), names))
    assert (pasted.kinds, pasted.platform.action_names, pasted.entry.state_encoding.name) == ("m" * 6 + "t", tuple(names), "NONE")


def test_a_column_of_all_parts_is_not_joined_with_them(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    """As RoboTwin records; and joints are not measured by poses, whatever chance makes of their values."""
    parts = {"left_arm": 6, "left_gripper": 1, "right_arm": 6, "right_gripper": 1}
    columns: dict[str, Callable[[int], Rows]] = {
        f"joint_action__{name}": lambda seed, name=name, dims=dims: walk(seed + len(name), dims) for name, dims in parts.items()
    }
    columns["joint_action__vector"] = lambda seed: np.hstack([walk(seed + len(name), dims) for name, dims in parts.items()])
    columns["endpose__left_endpose"] = lambda seed: changes_of(walk(seed + 8, 7))
    pasted = paste(write_act(tmp_path, lambda seed: (np.zeros((NUM_STEPS, 0)), np.zeros((NUM_STEPS, 0))), **columns))
    assert pasted.entry.action_keys == tuple(f"joint_action/{name}" for name in parts)
    assert "no recorded state measures what they command" in pasted.text


def test_whole_actions_in_several_frames_are_alternatives(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    """Open X-Embodiment's taco_play."""
    columns = {
        "action__rel_actions_world": lambda seed: changes_of(walk(seed, 7)),
        "action__rel_actions_gripper": lambda seed: changes_of(walk(seed + 5, 7)),
        "action__actions": lambda seed: ahead(walk(seed, 7)),
        "observations__robot_obs": lambda seed: walk(seed, 7),
    }
    pasted = paste(write_act(tmp_path, lambda seed: (np.zeros((NUM_STEPS, 0)), np.zeros((NUM_STEPS, 0))), **columns))
    assert (pasted.entry.action_keys, pasted.entry.state_obs_keys, pasted.kinds) == (("action/actions",), ("robot_obs",), "t" * 7)


def test_a_world_vector_goes_with_its_rotation(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    """fractal20220817: the pose of its tool, seen from its base, is no velocity."""
    columns = {
        "action__world_vector": lambda seed: changes_of(walk(seed, 3)),
        "action__rotation_delta": lambda seed: changes_of(walk(seed + 5, 3)),
        "action__gripper_closedness_action": lambda seed: opening(),
        "observations__base_pose_tool_reached": lambda seed: np.hstack([walk(seed, 3), walk(seed + 5, 3)]),
    }
    pasted = paste(write_act(tmp_path, lambda seed: (np.zeros((NUM_STEPS, 0)), np.zeros((NUM_STEPS, 0))), **columns))
    parts = ("world_vector", "rotation_delta", "gripper_closedness_action")
    assert (pasted.entry.action_keys, pasted.kinds) == (tuple(f"action/{name}" for name in parts), "m" * 6 + "t")
    assert not any("velocity" in name for name in pasted.platform.proprio_names)


def test_single_joints_in_columns_of_their_own(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    """Their names are those of the columns; the gripper comes last; no column is taken twice under two names."""
    folder = write_lerobot(tmp_path, in_degrees(), None) / "mine"
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    (path,) = (folder / "data").rglob("*.parquet")
    names = [*JOINTS[:2], "gripper.pos"]
    for group, stored in (("actions", "action"), ("observation.states", "observation.state")):
        rows = np.array(pq.read_table(path, columns=[stored])[stored].to_pylist())
        for place, name in ((5, names[2]), (0, names[0]), (1, names[1])):
            change_column(path, f"{group}.{name}", pa.array(rows[:, place]))
            features[f"{group}.{name}"] = {"dtype": "float32", "shape": [1], "names": None}
        change_column(path, stored, None)
        del features[stored]
    change_info(folder, features=features)
    pasted = paste(tmp_path)
    assert pasted.entry.action_keys == tuple(f"actions.{name}" for name in names)
    assert pasted.entry.state_obs_keys == tuple(f"states.{name}" for name in names)
    assert (pasted.platform.action_names, pasted.kinds) == (tuple(names), "ttt")


def test_pictures_that_training_cannot_decode_are_not_proposed(tmp_path: Path) -> None:
    write_act(tmp_path, targets(5))
    for path in (tmp_path / "mine").iterdir():
        with h5py.File(path, "a") as file:
            del file["observations/images/cam_high"]
            file["observations/images/cam_high"] = np.zeros((NUM_STEPS, 8, 8, 3), np.float32)
    with pytest.raises(ValueError, match=r"episode_0.hdf5: /observations/images/cam_high holds float32 \[60, 8, 8, 3\], expected raw"):
        suggest_entry(tmp_path / "mine", "mine")


def test_cameras_called_like_depth_are_no_colour(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    pasted = paste(write_act(tmp_path, targets(5), cameras=("head_depth", "front_segmentation", "side_rgb")))
    assert dict(pasted.entry.cameras) == {"primary": "side_rgb"}
    assert "called like depth or labels, and are no colour pictures then: front_segmentation, head_depth" in pasted.text


def test_widths_that_fit_do_not_make_a_joint_of_a_velocity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry of the published form names no platform: 14 dimensions at 25 Hz are ALOHA's, but these names drive a base."""
    names = [*(f"{side}_{name}" for side in ("left", "right") for name in (*JOINTS, "gripper.pos")), "x.vel", "theta.vel"]
    write_lerobot(tmp_path, in_degrees(2, extra=2), names, fps=25)
    entry = {
        "image_obs_keys": {"primary": "front"},
        "state_encoding": configs.StateEncoding.JOINT_BIMANUAL,
        "action_encoding": configs.ActionEncoding.JOINT_POS_BIMANUAL,
    }
    monkeypatch.setitem(configs.OXE_DATASET_CONFIGS, "mine", entry)
    with pytest.raises(ValueError, match=r"ALOHA \(but its right_wrist_rotate \[rad\] is a target, where the recordings name a velocity"):
        resolve_datasets("mine", tmp_path)
    write_lerobot(tmp_path / "named", in_degrees(2, extra=2), None, fps=25)
    assert resolve_datasets("mine", tmp_path / "named")[0].platform.name == "ALOHA"


@pytest.mark.parametrize("form", ["left_{}", "left.{}", "{}.left"])
def test_names_decide_which_arm_is_which(tmp_path: Path, paste: Callable[..., Pasted], form: str) -> None:
    left = [form.format(name.removesuffix(".pos")) + ".pos" for name in (*JOINTS, "gripper.pos")]
    names = {"motors": [*left, *(name.replace("left", "right") for name in left)]}
    pasted = paste(write_lerobot(tmp_path, in_degrees(2), names))
    assert (pasted.entry.action_encoding.name, pasted.grippers) == ("JOINT_POS_BIMANUAL", [5, 11])
    assert pasted.platform.action_names[0] == f"{left[0]} [deg]"


def test_degrees_are_fine_and_said_to_be(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    pasted = paste(write_lerobot(tmp_path, in_degrees(), [*JOINTS, "gripper.pos"]))
    assert "Units: 0-100, deg. Any unit will do" in pasted.text
    assert [finding for finding in check_arrays(pasted.view) if "units" in finding.found] == []


def test_a_robot_that_is_known_by_its_names_needs_no_new_platform(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    paste(write_lerobot(tmp_path / "first", in_degrees(), [*JOINTS, "gripper.pos"]))
    again = paste(write_lerobot(tmp_path / "again", in_degrees(), [*JOINTS, "gripper.pos"]), knows_robot=True)
    assert "RobotPlatform" not in again.text
    assert "MINE is known by the names of its dimensions" in again.text
    others = paste(write_lerobot(tmp_path / "others", in_degrees(), ["pan.pos", *JOINTS[1:], "gripper.pos"]), knows_robot=True)
    assert "RobotPlatform" in others.text


def test_recordings_that_are_faster_than_the_robot_get_a_stride(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    write_lerobot(tmp_path, in_degrees(), [*JOINTS, "gripper.pos"])  # 10 Hz
    pasted = paste(tmp_path, hz=5)
    assert (pasted.entry.stride, pasted.platform.control_hz, len(pasted.view.actions)) == (2, 5, 3 * NUM_STEPS // 2)
    assert "Recorded at 10 Hz: one step in 2 is used" in pasted.text
    assert paste(tmp_path, hz=8).entry.stride == 1


def test_a_depth_video_is_never_a_camera(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    write_lerobot(tmp_path, in_degrees(), [*JOINTS, "gripper.pos"])
    info = json.loads((tmp_path / "mine/meta/info.json").read_text())
    info["features"]["observation.images.back"] = {"dtype": "video", "shape": [48, 64, 1], "info": {"video.is_depth_map": True}}
    change_info(tmp_path / "mine", features=info["features"])
    assert paste(tmp_path).entry.cameras == {"primary": "front"}


def _aloha(root: Path, gripper: float) -> Path:
    for seed in range(2):
        path = write_aloha(root / "mine" / f"episode_{seed}.hdf5", NUM_STEPS, seed, instruction="open the pot")
        states = targets(6, 2, 0, gripper)(seed)[1]
        with h5py.File(path, "a") as file:
            file["observations/qpos"][:], file["action"][:] = states, ahead(states)
    return root


def test_aloha_is_known_by_its_recorder_and_ranges(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    pasted = paste(_aloha(tmp_path / "aloha", 1.0))
    assert pasted.platform.name == "ALOHA"
    assert pasted.entry.cameras == {"primary": "cam_high", "left_wrist": "cam_left_wrist", "right_wrist": "cam_right_wrist"}
    assert "known by its cameras and the layout of its recorder" in pasted.text
    assert paste(_aloha(tmp_path / "other_rate", 1.0), hz=50).platform.name == "MINE"
    assert paste(_aloha(tmp_path / "agilex", 0.07)).platform.name == "MINE"  # the same recorder, another robot


def test_libero_is_read_as_its_data_sets_are(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    write_libero(tmp_path / "mine" / "pick_up_the_bowl_demo.hdf5", (20, 20))
    pasted = paste(tmp_path)
    assert (pasted.platform.name, pasted.entry.transform) == ("LIBERO", "libero")
    assert set(np.unique(pasted.view.actions[:, 6])) == {0, 1}  # recorded: -1 opens, 1 closes


def test_an_entry_of_the_registry_is_shown_as_it_is(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    write_dataset(tmp_path, "metaworld_demo", {"train": [make_episode(20, action_dim=4, state_dim=4, size=8)]})
    suggestion = suggest_entry(find_dataset_folder(tmp_path, "metaworld_demo"), "metaworld_demo")
    assert suggestion.is_registered
    assert "nothing is to be pasted" in suggestion.text()
    assert suggestion.entry == configs.find_entry("metaworld_demo")


def test_cameras_are_found_by_their_names(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    two = paste(write_act(tmp_path / "two", targets(7, 2), ("cam_right_wrist", "cam_left_wrist", "cam_low", "cam_high")))
    assert two.entry.cameras == {
        "primary": "cam_high", "left_wrist": "cam_left_wrist", "right_wrist": "cam_right_wrist", "secondary": "cam_low",
    }  # fmt: skip
    one = paste(write_act(tmp_path / "one", moved(6), ("image_1", "image_0", "wrist_image")))
    assert one.entry.cameras == {"primary": "image_0", "wrist": "wrist_image", "secondary": "image_1"}
    numbered = paste(write_act(tmp_path / "numbered", moved(6), ("image_10", "image_2")))
    assert numbered.entry.cameras == {"primary": "image_2", "secondary": "image_10"}


def test_a_camera_of_recordings_with_one_observation_more_is_offered_once(tmp_path: Path, paste: Callable[..., Pasted]) -> None:
    write_act(tmp_path, targets(7), ("cam_high",))
    for path in (tmp_path / "mine").iterdir():
        with h5py.File(path, "a") as file:
            actions = file["action"][:-1]
            del file["action"]
            file["action"] = actions
    pasted = paste(tmp_path)
    assert "one step more than actions" in pasted.text
    assert pasted.entry.cameras == {"primary": "cam_high"}  # "image" is another name of it
    assert "Other keys" not in pasted.text


@pytest.mark.parametrize(
    ("key", "problem"), [("action", "'action' is inf at step 4"), ("observations/images/cam_high", "no key 'cam_high'")]
)
def test_one_damaged_episode_does_not_keep_the_entry_back(tmp_path: Path, key: str, problem: str) -> None:
    write_act(tmp_path, targets(7, 2), ("cam_high", "cam_left_wrist", "cam_right_wrist"))
    sound = suggest_entry(tmp_path / "mine", "mine")
    with h5py.File(tmp_path / "mine" / "episode_1.hdf5", "a") as file:
        if key == "action":
            file[key][4, 1] = np.inf
        else:
            del file[key]
    suggestion = suggest_entry(tmp_path / "mine", "mine")
    assert (suggestion.entry, suggestion.platform) == (sound.entry, sound.platform)
    assert "1 of the first 3 episodes cannot be used" in suggestion.text()
    assert f"First: {tmp_path / 'mine' / 'episode_1.hdf5'}: {problem}" in suggestion.text()
    with h5py.File(tmp_path / "mine" / "episode_2.hdf5", "a") as file:
        del file["observations/images/cam_high"]
    if key != "action":
        with pytest.raises(ValueError, match="no key 'cam_high'"):  # most of them
            suggest_entry(tmp_path / "mine", "mine")


@pytest.mark.parametrize(("folders", "told"), [(("pick", "place"), "of 2 folders are one data set: pick, place. "), (("train", "val"), "")])
def test_folders_that_are_read_as_one_data_set_are_named(tmp_path: Path, folders: tuple[str, str], told: str) -> None:
    for name in folders:
        write_act(tmp_path / "all", targets(7, 2))
        (tmp_path / "all" / "mine").rename(tmp_path / "all" / name)
    text = suggest_entry(tmp_path / "all", "all").text()
    assert told in text
    assert ("one data set" in text) == bool(told)


def test_recordings_without_actions_name_what_is_there(tmp_path: Path) -> None:
    episode = make_episode(5)
    episode["command"] = episode.pop("action")
    with pytest.raises(ValueError, match="no key 'action' that holds numbers; known: command"):
        suggest_entry(write_dataset(tmp_path, "mine", {"train": [episode]}), "mine")


def test_episodes_of_different_robots_are_one_line(tmp_path: Path) -> None:
    write_act(tmp_path, lambda seed: targets(5 + seed)(seed))
    with pytest.raises(ValueError, match=r"actions have 6 dimensions in one episode, 8 in another \(.*_0\.hdf5 and .*_2\.hdf5\)"):
        suggest_entry(tmp_path / "mine", "mine")
    write_act(tmp_path / "lacking", targets(5), **{"observations__pose": lambda seed: walk(seed, 3)})
    for seed in range(3):
        with h5py.File(tmp_path / f"lacking/mine/episode_{seed}.hdf5", "a") as file:
            del file["observations/qpos"]
            if seed:
                del file["observations/pose"]
    with pytest.raises(ValueError, match=r"_1\.hdf5: an episode lacks a column of pose, which the first one has; move"):
        suggest_entry(tmp_path / "lacking/mine", "mine")


def test_kinds_are_those_of_the_wire() -> None:
    assert {kind.value[0] for kind in ActionKind} == {"t", "m", "v"}  # what `Pasted.kinds` relies on


def test_a_rate_that_only_the_flag_says_is_told_with_the_lines_for_faster_recordings(tmp_path: Path) -> None:
    write_aloha(tmp_path / "mine/episode_0.hdf5", 40, instruction="go")
    printed = suggest_entry(tmp_path / "mine", "mine", 25.0).text()
    assert (
        "do not say their rate: each step is taken for a command at 25 Hz. If they were recorded at 50 Hz, add fps=50, stride=2" in printed
    )
    assert "do not say their rate" not in suggest_entry(tmp_path / "mine", "mine").text()


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="--suggest recordings/nowhere is not a folder"):
        main(InspectConfig(suggest="recordings/nowhere"))
