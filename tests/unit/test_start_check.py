"""A robot against its policy before anything moves: names, units, cameras, and the posture in which demonstrations began."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from simulated_arm import NAMES, SimulatedArm

from prismatic.acting.limit_sources import choose_limits
from prismatic.acting.robot import Robot
from prismatic.acting.start_check import check_names, check_observation, check_range, check_start
from prismatic.vla.constants import ActionKind
from prismatic.vla.demonstrated import Demonstrated
from prismatic.vla.types import Observation
from prismatic.wire.policy_info import PolicyInfo

SEEN = Demonstrated(
    action_low=(-90.0, -100.0, -90.0, -80.0, -90.0, 0.0),
    action_high=(90.0, 20.0, 95.0, 80.0, 90.0, 100.0),
    max_step=(3.0,) * 6,
    max_gap=(5.0,) * 6,
    start_low=(-3.0, -98.0, 80.0, 60.0, -2.0, 60.0),
    start_high=(3.0, -94.0, 86.0, 66.0, 2.0, 70.0),
    cameras={"primary": "observation.images.top", "wrist": "observation.images.wrist"},
)
INFO = PolicyInfo(
    platform="SO101",
    cameras=("primary", "wrist"),
    num_actions_chunk=8,
    action_names=NAMES,
    action_kinds=(ActionKind.TARGET,) * 6,
    proprio_names=NAMES,
    control_hz=30.0,
    needs_state=True,
    center_crop=True,
    jpeg_round_trip=True,
    unnorm_key="arm",
    demonstrated=SEEN,
)
HOME = np.array([0.0, -96.0, 83.0, 63.0, 0.0, 65.0])


def test_a_robot_as_the_demonstrations_had_it_is_accepted_without_a_word() -> None:
    arm = SimulatedArm()
    check_names(arm, INFO)
    check_observation(arm.observe("go"), INFO)
    assert check_start(HOME + np.array([5.0, 1.0, -6.0, 4.0, 5.0, 8.0]), INFO) == []


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (
            np.deg2rad(HOME),
            "shoulder_lift [deg] is -1.676 before the start; .* began between -98 and -94. It looks like radians",
        ),
        (HOME * [1, 1, 1, 1, 1, 0.01], "gripper is 0.65 before .* between 60 and 70. It looks like 0..1 where training had 0..100"),
        # Where it was left by the rollout before: no unit is in question, since the name has it.
        (
            HOME + np.array([57.0, 0, 0, 0, 0, 0]),
            "shoulder_pan [deg] is 57 before .* between -3 and 3. Check its unit, sign and zero; or bring",
        ),
        (HOME * [1, -1, 1, 1, 1, 1], "shoulder_lift [deg] is 96 before .* It looks like the opposite sign"),
        (
            HOME + np.array([0, 0, -45, 0, 0, 0]),
            "elbow_flex [deg] is 38 before .* Check its unit, sign and zero",
        ),  # another zero of the calibration
        (HOME * [1, 100 / 120, 1, 1, 1, 1], "shoulder_lift [deg] is -80 before"),  # -100..100 for degrees
    ],
)
def test_one_posture_shows_units_signs_and_zeros_that_differ(state: np.ndarray, told: str) -> None:
    found = check_start(state, INFO)
    pattern = told.replace("[", r"\[").replace("]", r"\]")
    assert any(re.search(pattern, text) for text in found), found


def test_without_first_states_nothing_is_said() -> None:
    assert check_start(np.zeros(6), replace(INFO, demonstrated=replace(SEEN, start_low=(), start_high=()))) == []
    assert check_start(None, INFO) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[:5], r"has 5 action dimensions .* made for 6"),
        ((*NAMES[:4], "gripper", "wrist_roll [deg]"), "in another order than the policy's; it needs shoulder_pan"),
        ((*NAMES[:4], "wrist_roll [rad]", "gripper"), r"other units than the policy's: wrist_roll in rad, trained in deg"),
        ((*NAMES[:4], "wrist_rol [deg]", "gripper"), r"wrist_rol \[deg\]: did you mean wrist_roll \[deg\]"),
    ],
)
def test_a_robot_with_other_dimensions_is_refused(names: tuple[str, ...], message: str) -> None:
    arm = SimulatedArm()
    arm.action_names = names
    with pytest.raises(ValueError, match=message):
        check_names(arm, INFO)


def test_a_robot_that_does_not_say_what_its_actions_are_is_told_what_to_write() -> None:
    class Nameless(Robot):
        def connect(self) -> None: ...
        def position(self) -> np.ndarray: ...  # type: ignore[empty-body]
        def observe(self, instruction: str) -> Observation: ...  # type: ignore[empty-body]
        def send(self, action: np.ndarray) -> None: ...
        def disconnect(self) -> None: ...

    with pytest.raises(ValueError, match=r"Nameless does not say what its actions are; .* action_names = \('shoulder_pan \[deg\]', "):
        check_names(Nameless(), INFO)


def test_a_robot_without_what_the_policy_needs_is_refused() -> None:
    seen = SimulatedArm().observe("go")
    with pytest.raises(ValueError, match=r"lacks the camera wrist \(called 'observation.images.wrist' in the data\)"):
        check_observation(Observation({"primary": seen.images["primary"]}, "go", seen.proprio), INFO)
    with pytest.raises(ValueError, match=r"needs a state of 6 numbers .* the robot gives 5 numbers"):
        check_observation(replace(seen, proprio=np.zeros(5)), INFO)
    with pytest.raises(ValueError, match="the robot gives none"):
        check_observation(replace(seen, proprio=None), INFO)


def test_a_robot_that_stands_beyond_its_limits_is_named_before_it_walks_into_them() -> None:
    limits = choose_limits(replace(INFO, action_names=NAMES)).limits
    at = np.array([0.0, -115.0, 0.0, 0.0, 0.0, 50.0])
    assert check_range(at, limits, NAMES) == []  # a little
    narrow = replace(limits, low=limits.low * np.pi / 180, high=limits.high * np.pi / 180)  # radians in a file for degrees
    found = check_range(at, narrow, NAMES)
    assert [told.partition(" ")[0] for told in found] == ["shoulder_lift", "gripper"]
    assert "is at -115 before the start; its limits are -1.955 and 0.5585, and it walks into them" in found[0]
