"""LeRobot's values by name <-> a policy's dimensions: order, units, refusals. LeRobot itself: tests/smoke/test_lerobot_robots.py."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.robot.lerobot.dimensions import match_dimensions, split_unit

UNITS = {"shoulder_pan.pos": "deg", "elbow_flex.pos": "deg", "gripper.pos": "0-100", "x.vel": "m/s", "lift.pos": ""}


def test_values_go_by_name_in_the_policys_order_and_units() -> None:
    wanted = ("gripper [0..1]", "elbow_flex [rad]", "shoulder_pan.pos [degrees]", "x.vel [m/s]", "hoist")
    found = match_dimensions("action", wanted, UNITS, {"hoist": "lift.pos"})
    assert found.keys == ("gripper.pos", "elbow_flex.pos", "shoulder_pan.pos", "x.vel", "lift.pos")
    values = {"shoulder_pan.pos": 30.0, "elbow_flex.pos": -90.0, "gripper.pos": 25.0, "x.vel": 0.2, "lift.pos": 7.0, "front": 1.0}
    numbers = found.read(values)
    np.testing.assert_allclose(numbers, [0.25, -np.pi / 2, 30.0, 0.2, 7.0])
    assert found.write(numbers) == pytest.approx({name: values[name] for name in found.keys})


def test_a_value_that_a_motor_did_not_say_is_no_number() -> None:
    found = match_dimensions("state", ("shoulder_pan", "elbow_flex [rad]"), UNITS, {})
    assert np.isnan(found.read({"shoulder_pan.pos": None, "elbow_flex.pos": 90.0})).tolist() == [True, False]  # type: ignore[dict-item]


def test_a_policy_that_states_no_units_is_taken_at_its_word() -> None:
    found = match_dimensions("action", ("shoulder_pan.pos", "gripper.pos"), UNITS, {})
    assert found.factors.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("elbow.pos",), r"'elbow.pos' is none of the robot's values .*\"names\": \{\"elbow.pos\".*did you mean elbow_flex.pos\?"),
        (("elbow_flex [-100..100]",), r"cannot be had from the robot's 'elbow_flex.pos', which is in \[deg\].*use_degrees"),
        (("lift.pos [m]",), r"the robot's driver does not say in which its 'lift.pos' is.*\"units\": \{\"lift.pos\": \"m\"\}"),
        (("elbow_flex.pos [deg]", "elbow_flex [rad]"), "two of the policy's actions are the robot's 'elbow_flex.pos'"),
    ],
)
def test_what_does_not_fit_says_what_to_write(wanted: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match_dimensions("action", wanted, UNITS, {})


@pytest.mark.parametrize(
    ("dimension", "parts"),
    [("a [°]", ("a", "deg")), ("a [0 to 100]", ("a", "0-100")), ("a [-100..100]", ("a", "-100-100")), ("a", ("a", ""))],
)
def test_units_have_one_spelling(dimension: str, parts: tuple[str, str]) -> None:
    assert split_unit(dimension) == parts
