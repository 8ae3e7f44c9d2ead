"""Where limits come from: a file, the platform, the demonstrations; and what happens where none says anything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prismatic.acting.limit_sources import choose_limits
from prismatic.vla.constants import ActionKind
from prismatic.vla.demonstrated import Demonstrated
from prismatic.vla.stated_limits import StatedLimits
from prismatic.wire.policy_info import PolicyInfo

NAMES = ("elbow [rad]", "gripper", "dx", "base.vel [m/s]")
KINDS = (ActionKind.TARGET, ActionKind.TARGET, ActionKind.MOTION, ActionKind.VELOCITY)
INFO = PolicyInfo(
    platform="MINE",
    cameras=("primary",),
    num_actions_chunk=8,
    action_names=NAMES,
    action_kinds=KINDS,
    proprio_names=NAMES,
    control_hz=10.0,
    needs_state=True,
    center_crop=True,
    jpeg_round_trip=True,
    unnorm_key="my_arm",
    demonstrated=Demonstrated((-1.0, 0.0, 0.01, -0.2), (1.0, 1.0, 0.02, 0.3), (0.05, 1.0, 0.01, 0.1), (0.4, 0.9, None, None)),
)


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_without_any_statement_the_demonstrations_count_widened_by_a_tenth_and_it_is_said() -> None:
    chosen = choose_limits(INFO)
    limits = chosen.limits
    np.testing.assert_allclose(limits.low, [-1.2, -0.1, 0.0, -0.25])  # a motion and a velocity may always be 0
    np.testing.assert_allclose(limits.high, [1.2, 1.1, 0.021, 0.35])
    np.testing.assert_allclose(limits.max_speed, [0.5, 10.0, 0.21, 0.35])  # the largest step seen, ten times a second
    np.testing.assert_allclose(limits.max_acceleration, [np.inf, np.inf, 1.0, 1.0])
    np.testing.assert_allclose(limits.max_gap, [0.6, np.inf, np.inf, np.inf])  # 1.5 times the largest gap; a gripper holds an object
    assert chosen.notes[0] == "ranges of all dimensions from the demonstrations of my_arm"


def test_a_file_comes_before_the_platform_and_that_before_the_demonstrations(tmp_path: Path) -> None:
    stated = replace(INFO, limits=StatedLimits((-2.0, None, None, None), (2.0, None, None, None), (1.0, 3.0, None, None)))
    assert choose_limits(stated).limits.max_gap[0] == pytest.approx(0.6)
    file = write(tmp_path / "limits.json", {"elbow [rad]": {"max_speed": 0.3, "max_gap": 0.1, "max_acceleration": 4}})
    chosen = choose_limits(stated, file, "refuse")
    np.testing.assert_allclose(chosen.limits.low, [-2.0, -0.1, 0.0, -0.25])
    np.testing.assert_allclose(chosen.limits.max_speed, [0.3, 3.0, 0.21, 0.35])
    assert (chosen.limits.max_gap[0], chosen.limits.max_acceleration[0], chosen.limits.mode) == (0.1, 4.0, "refuse")
    assert chosen.notes == (
        f"speeds of elbow [rad] from --limits {file}",
        "ranges of elbow [rad] from platform MINE",
        "speeds of gripper from platform MINE",
        "ranges of gripper, dx, base.vel [m/s] from the demonstrations of my_arm",
        "speeds of dx, base.vel [m/s] from the demonstrations of my_arm",
    )


def test_a_robot_without_any_limit_is_not_moved(tmp_path: Path) -> None:
    silent = replace(INFO, demonstrated=replace(INFO.demonstrated, max_step=(None,) * 4))  # a published checkpoint
    with pytest.raises(ValueError, match=r"no limits are known for elbow \[rad\], gripper: .* pass it as --limits"):
        choose_limits(silent)
    endless = replace(INFO, demonstrated=replace(INFO.demonstrated, max_step=(np.inf, 1.0, 0.01, 0.1)))  # JSON has Infinity
    with pytest.raises(ValueError, match=r"no limits are known for elbow \[rad\]: "):
        choose_limits(endless)
    file = write(tmp_path / "limits.json", {name: {"max_speed": 0.3} for name in NAMES[:2]})
    assert choose_limits(silent, file).limits.max_speed[0] == 0.3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "expected {dimension: {low"),
        ({"elbow": {"low": 1}}, r"no dimension 'elbow'; did you mean elbow \[rad\]"),
        ({"gripper": {"speed": 1}}, "unknown 'speed'; did you mean max_speed"),
        ({"gripper": {"low": "a"}}, "low of gripper is 'a'"),
        ({"gripper": {"low": float("nan")}}, "low of gripper is nan"),
        ({"gripper": {"low": 1.5}}, r"limits of gripper: low is above high \(low 1.5, high 1.1"),
        ({"gripper": {"max_speed": -1}}, "limits of gripper: a bound is below 0"),
        ({"elbow [rad]": {"max_gap": 0}}, r"limits of elbow \[rad\]: with a max_acceleration or max_gap of 0 it could not move"),
        ({"dx": {"low": 0.01}}, "limits of dx: its range must have 0 in it"),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_limits(INFO, write(tmp_path / "limits.json", content))
    with pytest.raises(ValueError, match="cannot be read"):
        choose_limits(INFO, tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control_hz": 0.0}, "my_arm says 8 actions a query at 0 Hz"),
        ({"control_hz": np.inf}, "at inf Hz"),
        ({"num_actions_chunk": 0}, "says 0 actions a query"),
        ({"action_kinds": KINDS[:1]}, "my_arm has 1 action_kinds for 4 actions"),
        ({"limits": StatedLimits((0.0,), (1.0,), (9.0,))}, "my_arm has 1 limits for 4 actions"),
        ({"demonstrated": replace(INFO.demonstrated, max_step=(9.0,))}, r"\(policy.json\): max_step has 1 values for 4 dimensions"),
        ({"demonstrated": replace(INFO.demonstrated, action_low=("a",) * 4)}, "action_low holds 'a', expected a number"),
        ({"demonstrated": replace(INFO.demonstrated, start_low=(0.0,) * 4, start_high=(None,) * 4)}, "start_high holds None"),
    ],
)
def test_a_policy_that_does_not_describe_itself_whole_drives_no_robot(changes: dict[str, Any], message: str) -> None:
    """One speed for four dimensions counted for each of them."""
    info = replace(INFO, **changes)
    with pytest.raises(ValueError, match=message):
        choose_limits(info)
    with pytest.raises(ValueError, match=message):  # of a server
        PolicyInfo.parse(info.content())


def test_limits_of_a_platform_are_numbers() -> None:
    with pytest.raises(ValueError, match="stated limits: high holds 'a', expected a number or None"):
        StatedLimits((0.0, None), ("a", 1.0), (1.0, 1.0))  # type: ignore[arg-type]
