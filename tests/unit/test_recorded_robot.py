"""A rehearsal on recordings: `--robot recorded:FOLDER`."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_files import write_aloha
from test_loop import Keys

from experiments.robot.evaluation.session import Driver, SessionOptions, drive
from experiments.robot.recorded_robot import RecordedRobot
from experiments.robot.run_robot import make_robot
from prismatic.acting.actor import RemoteActor
from prismatic.acting.execution import ChunkExecutor, ExecutionOptions
from prismatic.acting.keyboard import Keyboard
from prismatic.acting.limit_sources import choose_limits
from prismatic.acting.limits import ActionLimits
from prismatic.acting.loop import RealTimeRollout, RolloutPlan
from prismatic.vla.constants import ROBOT_PLATFORMS, ActionKind, NormalizationType, RobotPlatform
from prismatic.vla.datasets.rlds.oxe import configs
from prismatic.vla.datasets.rlds.oxe.configs import ActionEncoding, DatasetEntry, StateEncoding
from prismatic.vla.demonstrated import Demonstrated
from prismatic.vla.types import Observation
from prismatic.wire.policy_info import PolicyInfo

JOINTS = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in (*(f"joint_{number}" for number in range(1, 7)), "gripper"))
KINDS = (ActionKind.TARGET,) * 14 + (ActionKind.VELOCITY,) * 2
MOBILE = RobotPlatform(
    "MOBILE_TEST", 5, 16, 14, NormalizationType.BOUNDS, 100.0, (*JOINTS, "base_linear_velocity", "base_angular_velocity"), JOINTS
)
LENGTH = 20


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two episodes of a mobile robot with two arms; in each step everything moves on."""
    entry = DatasetEntry(
        image_obs_keys={"primary": "cam_high", "left_wrist": "cam_left_wrist"},
        action_keys=("action", "base_action"),
        action_encoding=ActionEncoding.JOINT_POS_BIMANUAL,
        action_kinds=tuple(kind.value for kind in KINDS),
        state_encoding=StateEncoding.JOINT_BIMANUAL,
        robot_platform="MOBILE_TEST",
    )
    monkeypatch.setitem(ROBOT_PLATFORMS, MOBILE.name, MOBILE)
    monkeypatch.setitem(configs.OXE_DATASET_CONFIGS, "mobile_test", entry)
    for number in range(2):
        path = write_aloha(tmp_path / f"mobile_test/episode_{number}.hdf5", LENGTH, number, instruction=f"task {number}")
        with h5py.File(path, "r+") as file:
            file["observations/qpos"][...] = number + np.linspace(0, 1, LENGTH)[:, None] * np.ones(14)
            file["action"][...] = file["observations/qpos"][()] + 0.01
            file["base_action"] = np.linspace(0.1, 0.2, LENGTH)[:, None] * np.ones(2)
    return tmp_path / "mobile_test"


class Demonstrator:
    """A policy that does what was done in the recordings where the state was the same."""

    def __init__(self, states: np.ndarray, actions: np.ndarray) -> None:
        self._states, self._actions = states, actions

    def infer(self, observation: Observation, begins: bool = False) -> np.ndarray:
        first = int(np.abs(self._states - observation.proprio).sum(axis=1).argmin())
        return np.asarray(self._actions[[min(first + step, len(self._actions) - 1) for step in range(5)]], np.float64)

    def take_warnings(self) -> list[str]:
        return []

    def close(self) -> None: ...


def test_a_policy_that_does_what_was_done_is_told_so_by_the_real_loop(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    robot = RecordedRobot(str(folder))
    assert (robot.instruction, robot.max_steps, robot.action_names) == ("task 0", LENGTH, MOBILE.action_names)
    limits = ActionLimits(
        KINDS, np.full(16, -10.0), np.full(16, 10.0), np.full(16, 1e4), np.full(16, np.inf), np.r_[np.full(14, np.inf), [np.inf] * 2]
    )
    policy = Demonstrator(robot._index.proprio, robot._index.actions)
    actor = RemoteActor(policy, ChunkExecutor(ExecutionOptions(num_open_loop_steps=5), limits, 100.0, MOBILE.action_names))
    robot.connect()
    plan = RolloutPlan(number=0, instruction=robot.instruction, max_steps=robot.max_steps, control_hz=100.0, step_log=tmp_path / "log")
    with caplog.at_level(logging.INFO):
        outcome = RealTimeRollout(robot, actor, Keys(), plan).run()
    actor.close()
    assert (outcome.ending, outcome.num_steps) == ("out of steps", LENGTH)
    told = caplog.text  # with the last command, so before anything that sums up
    robot.reset(1)
    assert caplog.text == told
    assert robot.instruction == "task 1"
    assert "episode train 0 (episode_0.hdf5): 20 commands, on average 0.0 % of a dimension's range" in caplog.text
    assert "staying at the start: 0.0 %" not in caplog.text


def test_a_rehearsal_counts_as_neither_success_nor_failure(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    robot = RecordedRobot(str(folder))
    actions, states = robot._index.actions, robot._index.proprio
    seen = Demonstrated(
        action_low=tuple(actions.min(axis=0)),
        action_high=tuple(actions.max(axis=0)),
        max_step=(10.0,) * 16,
        max_gap=(10.0,) * 16,
        start_low=tuple(states.min(axis=0)),
        start_high=tuple(states.max(axis=0)),
        cameras={},
    )
    info = PolicyInfo("MOBILE_TEST", (), 5, MOBILE.action_names, KINDS, MOBILE.proprio_names, 100.0, True, True, True, "arm", seen)
    driver = Driver(Demonstrator(states, actions), info, ExecutionOptions(num_open_loop_steps=5), choose_limits(info))
    options = SessionOptions(tmp_path / "rollouts", num_rollouts=2, control_hz=100.0, is_attended=False, video_hz=10.0)
    drive(robot, driver, options, Keyboard(io.StringIO()))
    rows = [json.loads(line) for line in (tmp_path / "rollouts/rollouts.jsonl").read_text().splitlines()]
    assert [row["success"] for row in rows] == [None, None]
    assert json.loads((tmp_path / "rollouts/summary.json").read_text())["is_rehearsal"]
    assert sorted(path.name for path in (tmp_path / "rollouts").glob("*.mp4")) == ["rollout_001_rehearsed.mp4", "rollout_002_rehearsed.mp4"]
    printed = capsys.readouterr().out
    assert "rollout 1: rehearsed (out of steps), 20 steps" in printed
    assert "2 rollouts rehearsed, none counts as a success or a failure" in printed
    assert "failure (" not in printed
    assert "so far" not in printed


def test_the_episode_goes_on_with_commands_that_move_and_stands_while_the_robot_is_held(folder: Path) -> None:
    robot = RecordedRobot(str(folder))
    held = np.r_[robot.position()[:14], 0.0, 0.0]
    np.testing.assert_allclose(held[:14], 0.0)  # as the state says, not the first command
    for _ in range(3):
        robot.send(held)
    assert robot.observe("").proprio[0] == 0.0
    robot.send(np.r_[held[:14], 0.1, 0.0])  # the base drives
    robot.send(np.r_[held[:14] + 0.1, 0.0, 0.0])  # an arm moves
    np.testing.assert_allclose(robot.observe("").proprio, 2 / (LENGTH - 1), rtol=1e-6)
    np.testing.assert_array_equal(robot.position(), np.r_[held[:14] + 0.1, 0.0, 0.0])
    for step in range(2 * LENGTH):
        robot.send(np.r_[held[:14] + step, 0.0, 0.0])
    last, again = (robot.observe("").images["primary"] for _ in range(2))
    assert robot.observe("").proprio[0] == 1.0
    assert 0 < np.abs(last.astype(int) - again).sum() <= 1  # a picture that never changed would be taken for a camera that hangs


def test_what_cannot_be_rehearsed_says_why(folder: Path) -> None:
    with pytest.raises(ValueError, match="--robot_args has port; a recorded robot takes stride and robot_platform"):
        make_robot(f"recorded:{folder}", {"port": 1})
    with pytest.raises(ValueError, match="mobile_tst is not there; did you mean mobile_test"):
        make_robot(f"recorded:{folder.parent / 'mobile_tst'}", {})
    file = next(folder.rglob("*.hdf5"))
    with pytest.raises(ValueError, match=re.escape(f"{file} is a file; pass the folder of the data set, recorded:{file.parent}")):
        make_robot(f"recorded:{file}", {})
    assert make_robot(f"recorded:{folder}", {"stride": 2}).max_steps == LENGTH // 2
