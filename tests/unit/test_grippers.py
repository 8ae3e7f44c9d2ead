"""One gripper conversion: for LIBERO's evaluation, for websocket clients and for scripts of their own."""

from __future__ import annotations

import numpy as np

from experiments.robot import robot_utils
from prismatic.vla import grippers


def test_the_published_rule_with_one_half_undecided() -> None:
    actions = np.full((5, 7), 0.25)
    actions[:, -1] = [0.0, 0.49, 0.5, 0.51, 1.0]
    before = actions.copy()
    converted = grippers.to_robosuite(actions)
    assert converted[:, -1].tolist() == [1, 1, 0, -1, -1]
    np.testing.assert_array_equal(converted[:, :-1], before[:, :-1])
    np.testing.assert_array_equal(actions, before)


def test_without_binarizing_the_range_is_mapped() -> None:
    assert grippers.normalize_gripper_action(np.array([0.25, 0.75]), binarize=False).tolist() == [0.25, 0.5]


def test_the_familiar_names_are_the_same_functions() -> None:
    assert robot_utils.normalize_gripper_action is grippers.normalize_gripper_action
    assert robot_utils.invert_gripper_action is grippers.invert_gripper_action
