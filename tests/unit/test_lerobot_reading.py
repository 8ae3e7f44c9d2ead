"""How often an arm of LeRobot is read; LeRobot itself is played by the test."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from experiments.robot.lerobot.dimensions import Dimensions
from experiments.robot.lerobot.robots import LeRobotArm


class SlowCamera:
    """A robot whose camera lets every reading wait for its next frame."""

    num_readings = 0

    def get_observation(self) -> dict[str, Any]:
        self.num_readings += 1
        time.sleep(0.03)
        return {"elbow.pos": float(self.num_readings), "front": np.zeros((4, 4, 3), np.uint8)}


def make_arm(robot: SlowCamera) -> LeRobotArm:
    arm = LeRobotArm.__new__(LeRobotArm)
    arm._robot, arm._type_name, arm._values, arm._read_at, arm._was_read_at = robot, "so101_follower", {}, -np.inf, -np.inf
    arm._actions = arm._states = Dimensions(("elbow.pos",), np.ones(1))
    arm._cameras, arm.state_names = {"primary": "front"}, ("elbow.pos [deg]",)
    return arm


def test_what_is_seen_in_a_step_is_of_the_reading_of_its_position() -> None:
    """A second reading would wait for another frame: a loop that records every step went at half its rate."""
    robot = SlowCamera()
    arm = make_arm(robot)
    started = time.monotonic()
    assert arm.position().tolist() == [1.0]
    assert started <= arm.sensed_at() < started + 0.02, "a measurement may be as old as its reading took"
    seen = arm.observe("go")
    assert robot.num_readings == 1
    assert seen.proprio is not None
    assert seen.proprio.tolist() == [1.0]
    time.sleep(0.02)
    seen = arm.observe("go")
    assert robot.num_readings == 2, "of the step before"
