"""ALOHA's control loop and robots without a simulator: time keeping, limits, checks of the policy, and the hardware's arithmetic."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.robot.aloha.hardware import AlohaHardware
from experiments.robot.aloha.robots import HIGH, LOW, RelativeTargets
from experiments.robot.aloha.run_aloha_eval import AlohaEvalConfig, check_policy, make_limits, make_robot, with_kinds
from prismatic.acting.client import PolicyInfo
from prismatic.acting.leader import Leader, check_leader
from prismatic.acting.loop import Ticker
from prismatic.acting.robot import Robot, RobotError
from prismatic.vla.constants import ROBOT_PLATFORMS, ActionKind
from prismatic.vla.demonstrated import Demonstrated
from prismatic.vla.types import Observation

ALOHA = ROBOT_PLATFORMS["ALOHA"]
SEEN = Demonstrated((-1.0,) * 14, (1.0,) * 14, (0.04,) * 14, (0.1,) * 14)
INFO = PolicyInfo(
    platform="ALOHA",
    cameras=("primary", "left_wrist", "right_wrist"),
    num_actions_chunk=25,
    action_names=ALOHA.action_names,
    action_kinds=ALOHA.action_kinds,
    proprio_names=ALOHA.proprio_names,
    control_hz=25.0,
    needs_state=True,
    center_crop=True,
    jpeg_round_trip=True,
    unnorm_key="arm",
    demonstrated=SEEN,
    limits=ALOHA.limits,
)


def config(**flags: Any) -> AlohaEvalConfig:
    return AlohaEvalConfig(**{"vla_server_url": "127.0.0.1", "robot": "transfer_cube", **flags})


class Clock:
    """Time that passes only when somebody sleeps or works."""

    now = 100.0

    def read(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def test_ticker_keeps_time_and_tells_of_late_ticks() -> None:
    clock = Clock()
    ticker = Ticker(100, clock.read, clock.pass_)
    started = []
    for number in range(21):
        started.append(ticker.begin())
        clock.pass_(0.025 if number == 10 else 0.002)  # once, work of two and a half periods
        ticker.wait()
    found = ticker.statistics()
    assert (found["ticks"], found["late_ticks"]) == (21, 1)
    np.testing.assert_allclose(np.diff(started), [0.01] * 10 + [0.025] + [0.01] * 9)  # what was missed is not made up for
    assert found["period_ms_p50"] == pytest.approx(10)
    assert (found["period_ms_p100"], found["work_ms_p100"]) == (pytest.approx(25), pytest.approx(25))
    assert found["work_ms_p50"] == pytest.approx(2)


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"action_names": ("a",) * 7}, {}, "made for ALOHA .* needs 14 joint targets.*run_robot.py"),
        ({"action_kinds": (ActionKind.VELOCITY,) + (ActionKind.TARGET,) * 13}, {}, "needs 14 joint targets"),
        ({"action_names": tuple(f"left_d{number}" for number in range(14))}, {}, "whose action is left_d0.*in this order and in rad"),
        ({"action_names": (*INFO.action_names[7:], *INFO.action_names[:7])}, {}, "made for ALOHA, whose action is right_waist"),
        ({"proprio_names": tuple(f"{name} [deg]" for name in range(14))}, {}, r"whose state is 0 \[deg\]"),
        ({"cameras": ("primary", "wrist")}, {}, "wants the cameras primary, wrist"),
        ({"center_crop": False}, {"center_crop": True}, "--center_crop True contradicts the checkpoint"),
        ({"num_actions_chunk": 10}, {}, "--num_open_loop_steps is 25, but the policy predicts 10"),
        ({"control_hz": 50.0}, {}, "trained on 50 Hz"),
    ],
)
def test_a_policy_that_cannot_drive_aloha_is_refused(changes: dict[str, Any], flags: dict[str, Any], message: str) -> None:
    check_policy(config(), INFO)
    with pytest.raises(ValueError, match=message):
        check_policy(config(**flags), replace(INFO, **changes))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"use_vla_server": False}, "start vla-scripts/deploy.py"),
        ({"robot": "hardwear"}, "--robot is 'hardwear', expected hardware or a simulated task: transfer_cube, insertion"),
        ({"num_rollouts_planned": 0}, "--num_rollouts_planned is 0"),
        ({"control_hz": 50}, "the simulation executes 25 actions per second"),
        ({"prefetch_steps": 25}, "prefetch_steps is 25"),
        ({"vla_server_url": ""}, "--vla_server_url is missing"),
        ({"max_joint_speed": float("inf")}, "--max_joint_speed is inf, must be a finite number more than 0"),
        ({"max_joint_change": float("nan")}, "--max_joint_change is nan, must be a finite number more than 0"),
        ({"max_observation_age_s": float("inf")}, "max_observation_age_s is inf, must be a finite number more than 0"),
        ({"stop_after_s": float("nan")}, "stop_after_s is nan"),
    ],
)
def test_bad_flags_are_named(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlohaEvalConfig(**{"vla_server_url": "127.0.0.1", "robot": "insertion", **flags})


def test_limits_are_the_arms_ranges_and_speeds_well_below_its_own() -> None:
    chosen = make_limits(config(), INFO)
    assert (chosen.limits.low.tolist(), chosen.limits.high.tolist()) == (LOW.tolist(), HIGH.tolist())
    assert chosen.limits.high[2] == pytest.approx(1.6057)  # ViperX 300 S: the elbow
    assert set(np.delete(chosen.limits.max_speed, [6, 13])) == {2.0}  # of 3.14 rad/s
    assert chosen.notes == ("ranges of all dimensions from platform ALOHA", "speeds of all dimensions from platform ALOHA")
    for flags in ({"max_joint_change": 0.04}, {"max_joint_speed": 1.0}):
        limits = make_limits(config(**flags), INFO).limits
        np.testing.assert_allclose(limits.max_speed, ([1.0] * 6 + [5.0]) * 2)
    with pytest.raises(ValueError, match="pass one of them"):
        config(max_joint_change=0.04, max_joint_speed=1.0)


DELTAS = replace(
    INFO,
    platform="MINE",
    limits=None,
    action_kinds=(ActionKind.MOTION,) * 14,
    action_names=tuple(f"delta_{name}" for name in ALOHA.action_names),
)


def test_policies_of_changes_are_known_by_their_names_or_by_the_flag() -> None:
    check_policy(config(), DELTAS)
    assert isinstance(make_robot(config(robot="hardware"), DELTAS), RelativeTargets)
    assert not isinstance(make_robot(config(robot="hardware"), INFO), RelativeTargets)
    flagged = with_kinds(config(use_relative_actions=True), INFO)
    assert set(flagged.action_kinds) == {ActionKind.MOTION}
    limits = make_limits(config(use_relative_actions=True), flagged).limits
    np.testing.assert_allclose(limits.high, 1.2)  # of the demonstrations, not of the arm: a change is no angle


class SlowArm(Robot):
    """An arm that needs a while to reach where it is told to be, or never does."""

    action_names, state_names = ALOHA.action_names, ALOHA.proprio_names

    def __init__(self, reached: float = 1.0) -> None:
        self.commands: list[np.ndarray] = []
        self.at, self.target, self.reached = np.zeros(14), np.zeros(14), reached

    def connect(self) -> None: ...

    def reset(self, rollout: int) -> None:
        self.target = np.full(14, 0.5)

    def position(self) -> np.ndarray:
        self.at = self.at + self.reached * (self.target - self.at)
        return self.at.copy()

    def observe(self, instruction: str) -> Observation:
        raise AssertionError

    def send(self, action: np.ndarray) -> None:
        self.commands.append(action.copy())
        self.target = action

    def disconnect(self) -> None: ...


def test_relative_actions_add_up_within_the_arms_ranges() -> None:
    arm = SlowArm()
    robot = RelativeTargets(arm, DELTAS.action_kinds)
    robot.reset(0)
    for _ in range(100):
        robot.send(np.full(14, 0.1))
    np.testing.assert_allclose(arm.commands[1], 0.7)
    np.testing.assert_allclose(arm.commands[-1], HIGH)
    assert (LOW < HIGH).all()


def test_a_leader_of_angles_does_not_lead_a_robot_of_changes() -> None:
    """Its angles would be added to the arm's at every step."""

    class Angles(Leader):
        action_names = ALOHA.action_names

        def connect(self) -> None: ...
        def disconnect(self) -> None: ...
        def read(self) -> np.ndarray:
            return np.zeros(14)

    check_leader(Angles(), SlowArm.action_names)
    with pytest.raises(ValueError, match=r"the leader commands left_waist.*, the robot takes delta_left_waist"):
        check_leader(Angles(), RelativeTargets(SlowArm(), DELTAS.action_kinds).action_names)
    mixed = RelativeTargets(SlowArm(), (*(ActionKind.MOTION,) * 13, ActionKind.TARGET))
    assert mixed.action_names == (*DELTAS.action_names[:13], ALOHA.action_names[13])


def test_the_base_of_relative_targets_is_where_the_arms_have_come_to_rest() -> None:
    arm = SlowArm(reached=0.6)
    robot = RelativeTargets(arm, DELTAS.action_kinds)
    robot.reset(0)  # returns once the arms rest
    robot.send(np.zeros(14))
    np.testing.assert_allclose(arm.commands[0], 0.5, atol=0.002)  # not where they were when the reset was commanded


def test_a_reading_that_is_no_number_never_becomes_a_target() -> None:
    arm = SlowArm()
    robot = RelativeTargets(arm, (ActionKind.MOTION,) * 14)
    robot.send(np.full(14, 0.01))
    before = arm.position
    arm.position = lambda: np.full(14, np.nan)  # type: ignore[method-assign]
    with pytest.raises(RobotError, match="not a number"):
        robot.send(np.zeros(14))
    arm.position = before  # type: ignore[method-assign]
    robot.send(np.zeros(14))
    assert robot._target is not None
    assert np.isfinite(robot._target).all()


def test_relative_targets_do_not_run_away_from_an_arm_that_something_stops() -> None:
    arm = SlowArm()
    robot = RelativeTargets(arm, (*(ActionKind.MOTION,) * 13, ActionKind.TARGET))
    robot.reset(0)
    arm.reached = 0.0
    for _ in range(50):
        robot.send(np.full(14, 0.1))
    np.testing.assert_allclose(np.delete(arm.commands[-1], [6, 13]), 0.9)  # 0.4 rad before the arm
    assert arm.commands[-1][13] == 0.1  # a target stays one


def test_arms_that_sank_while_they_were_silent_are_taken_over_where_they_lie() -> None:
    """Their messages end with their power; sums of before, repeated, are what they would jump to."""
    arm = SlowArm()
    robot = RelativeTargets(arm, (ActionKind.MOTION,) * 14)
    sensed, lies = [time.monotonic()], np.zeros(14)
    arm.position = lambda: lies.copy()  # type: ignore[method-assign]
    arm.sensed_at = lambda: sensed[0]  # type: ignore[method-assign]
    robot.send(np.full(14, 0.05))
    num_before, sensed[0] = len(arm.commands), sensed[0] - 9.0
    robot.send(np.zeros(14))
    lies[:6], sensed[0] = 0.0, time.monotonic()  # a driver that began anew says anything at first
    robot.send(np.zeros(14))
    robot.send(np.zeros(14))  # the same reading confirms nothing
    for _ in range(2):
        lies[:6], sensed[0] = -0.8, time.monotonic()
        assert len(arm.commands) == num_before
        robot.send(np.zeros(14))
    (command,) = arm.commands[num_before:]
    np.testing.assert_allclose(command, [-0.8] * 6 + [0.05] * 8)


def _message(**content: Any) -> SimpleNamespace:
    return SimpleNamespace(**content)


@pytest.fixture
def ros(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand-ins for the robot's packages, which exist only on its computer: topics publish one message as soon as somebody listens."""
    seen = SimpleNamespace(joints={}, grippers={}, finger=0.058, accepts=True)
    seen.take = lambda name, joints: seen.joints.__setitem__(name, joints) if seen.accepts else False
    rows = np.zeros((4, 3 * 6 + 2), np.uint8)  # rows are padded by two bytes
    rows[:, 0:18:3] = 200  # blue comes first
    picture = _message(height=4, width=6, step=20, encoding="bgr8", data=rows.tobytes())

    class Arm:
        def __init__(self, model: str, group_name: str, gripper_name: str, robot_name: str, init_node: bool) -> None:
            calls: list[Any] = []
            self.dxl = _message(robot_set_operating_modes=lambda *_: None, robot_torque_enable=lambda *_: None)
            self.arm = _message(set_joint_positions=lambda joints, blocking: seen.take(robot_name, joints))
            publisher = _message(publish=lambda message: seen.grippers.__setitem__(robot_name, message.cmd))
            self.gripper = _message(core=_message(pub_single=publisher))
            assert (model, group_name, gripper_name, calls) == ("vx300s", "arm", "gripper", [])

    def subscribe(topic: str, kind: type, callback: Any, argument: str, **_: Any) -> None:
        joints = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.4, seen.finger, -seen.finger]
        callback(_message(position=joints) if "joint_states" in topic else picture, argument)

    modules = {
        "rospy": {"Subscriber": subscribe},
        "interbotix_xs_modules": {},
        "interbotix_xs_modules.arm": {"InterbotixManipulatorXS": Arm},
        "interbotix_xs_msgs": {},
        "interbotix_xs_msgs.msg": {"JointSingleCommand": SimpleNamespace},
        "sensor_msgs": {},
        "sensor_msgs.msg": {"Image": object, "JointState": object},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return seen


def test_hardware_reads_joints_and_colours_and_commands_each_arm(ros: SimpleNamespace) -> None:
    robot = AlohaHardware()
    robot.connect()
    np.testing.assert_allclose(robot.position(), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0] * 2)  # the fingers are open
    seen = robot.observe("fold")
    assert set(seen.images) == {"primary", "left_wrist", "right_wrist"}
    assert seen.images["primary"].shape == (4, 6, 3)
    assert seen.images["primary"][0, 0].tolist() == [0, 0, 200]  # RGB
    assert robot.picture().shape == (2, 3, 3)
    assert 0 <= time.monotonic() - robot.sensed_at() < 1
    robot.send(np.arange(14) / 10)
    np.testing.assert_allclose(ros.joints["puppet_right"], np.arange(7, 13) / 10)
    assert ros.grippers["puppet_left"] == pytest.approx(-0.6213 + 0.6 * (1.4910 + 0.6213))


def test_hardware_that_refuses_a_command_is_heard(ros: SimpleNamespace) -> None:
    robot = AlohaHardware()
    robot.connect()
    ros.accepts = False
    with pytest.raises(RobotError, match="puppet_left refuses the joint angles"):
        robot.send(np.zeros(14))


def test_a_reset_moves_nothing_on_old_or_broken_joint_messages_and_stops_where_an_arm_does_not_follow(ros: SimpleNamespace) -> None:
    robot = AlohaHardware()
    robot.connect()
    robot._joints["puppet_right"] = (time.monotonic() - 2.0, robot._joints["puppet_right"][1])  # the arm's cable came off
    with pytest.raises(RobotError, match=r"the last joint message is 2\.\d s old: nothing moves"):
        robot.reset(0)
    assert not ros.joints
    for name in robot._joints:
        robot._joints[name] = (time.monotonic(), np.full(9, np.nan))
    with pytest.raises(RobotError, match="reading is not a number"):
        robot.reset(0)
    assert not ros.joints
    for name in robot._joints:
        robot._joints[name] = (
            time.monotonic() + 60,
            np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.4, 0.058, -0.058]),
        )  # it stands for a minute
    with pytest.raises(RobotError, match="rad from where the reset moves it"):
        robot.reset(0)
    np.testing.assert_allclose(ros.joints["puppet_left"], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])  # held where it was found


def test_hardware_without_ros_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match="needs ALOHA's ROS workspace"):
        AlohaHardware().connect()
