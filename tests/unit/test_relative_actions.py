"""Actions that are changes though their names do not say so: from the server's flag to a robot that would take them for targets."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from serving_house import open_house
from simulated_arm import SimulatedArm
from test_start_check import HOME, INFO

from experiments.robot.aloha.robots import ALOHA, RelativeTargets
from experiments.robot.lerobot.dimensions import check_kinds, match_dimensions
from prismatic.acting.client import ConnectionOptions, PolicyClient
from prismatic.acting.limit_sources import choose_limits
from prismatic.acting.start_check import check_names, check_start
from prismatic.policy.checkpoint.parts import PolicyParts
from prismatic.serving.service import ServiceOptions
from prismatic.vla.constants import ActionKind
from prismatic.wire.msgpack_reader import read_msgpack
from prismatic.wire.policy_info import PolicyInfo

CHANGES = INFO.as_changes()


def check_described(described: Any, plain: PolicyInfo) -> None:
    assert described["action_names"] == [f"delta_{name}" for name in plain.action_names]
    assert described["action_kinds"] == ["motion"] * plain.action_dim
    assert described["relative_actions"] == [True] * plain.action_dim


def of_targets(parts: PolicyParts) -> PolicyParts:
    names = ("joint_1 [rad]", "joint_2 [rad]", "joint_3 [rad]", "gripper")
    platform = replace(parts.spec.platform, name="ARM", action_names=names, action_kinds=(ActionKind.TARGET,) * 4)
    return replace(parts, spec=replace(parts.spec, platform=platform))


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_the_servers_flag_names_changes_as_such_wherever_it_describes_itself(scheme: str) -> None:
    with open_house(change=of_targets) as house:
        client = PolicyClient(f"{scheme}://127.0.0.1:{house.port}", ConnectionOptions(reply_timeout_s=10))
        plain = client.connect()
        client.close()
        told = json.loads(house.request("/info")[1])
        assert told["relative_actions"] == [kind is ActionKind.MOTION for kind in plain.action_kinds]
    assert ActionKind.MOTION not in plain.action_kinds
    with open_house(ServiceOptions(use_relative_actions=True), change=of_targets) as house:
        client = PolicyClient(f"{scheme}://127.0.0.1:{house.port}", ConnectionOptions(reply_timeout_s=10))
        assert client.connect() == plain.as_changes()
        client.close()
        check_described(json.loads(house.request("/info")[1]), plain)
        with house.websocket("/") as websocket:
            check_described(read_msgpack(websocket.recv()), plain)


def test_a_robot_that_takes_targets_is_refused_with_advice_that_works() -> None:
    arm = SimulatedArm()
    check_names(arm, INFO)
    with pytest.raises(ValueError, match=r"actions are changes .*give its class the policy's names, delta_shoulder_pan \[deg\]") as refused:
        check_names(arm, CHANGES)
    assert "did you mean" not in str(refused.value)
    arm.action_names = CHANGES.action_names
    check_names(arm, CHANGES)
    assert check_start(HOME, CHANGES) == []
    limits = choose_limits(CHANGES).limits
    assert not limits.is_target.any()


def test_changes_of_another_unit_are_changes_all_the_same() -> None:
    arm = SimulatedArm()
    arm.action_names = tuple(name.replace("deg", "rad") for name in arm.action_names)
    with pytest.raises(ValueError, match="actions are changes"):
        check_names(arm, CHANGES)


def test_what_is_called_a_change_already_stays_so() -> None:
    assert CHANGES.as_changes() == CHANGES
    named = replace(INFO, action_names=("delta_pan", *INFO.action_names[1:])).as_changes()
    assert named.action_names == ("delta_pan", *CHANGES.action_names[1:])
    assert CHANGES.proprio_names == INFO.proprio_names


def test_lerobots_arms_take_no_changes() -> None:
    own = {f"{name.partition(' ')[0]}.pos": "" for name in INFO.action_names}
    with pytest.raises(ValueError, match="is none of the robot's values"):
        match_dimensions("action", CHANGES.action_names, own, {})
    check_kinds(INFO.action_names, INFO.action_kinds, list(own))
    with pytest.raises(ValueError, match=r"are changes \(delta_shoulder_pan \[deg\].* LeRobot's driver takes targets"):
        check_kinds(CHANGES.action_names, CHANGES.action_kinds, list(own))  # named by hand, in --robot_args
    check_kinds(("base [m]", "x"), (ActionKind.MOTION, ActionKind.TARGET), ("x.vel", "x.pos"))


def test_aloha_adds_them_up() -> None:
    info = replace(INFO, action_names=ALOHA.action_names, action_kinds=ALOHA.action_kinds).as_changes()
    sent: list[np.ndarray] = []

    class Arms(SimulatedArm):
        action_names = ALOHA.action_names

        def position(self) -> np.ndarray:
            return np.full(14, 0.6)

        def send(self, action: np.ndarray) -> None:
            sent.append(action)

    RelativeTargets(Arms(), info.action_kinds).send(np.full(14, 0.02))
    np.testing.assert_allclose(sent, [np.full(14, 0.62)])
