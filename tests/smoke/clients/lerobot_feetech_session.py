"""LeRobot's own so101_follower on the serial line PORT: where the arm was and is, what is said of one that is not calibrated or taken."""

import json
import sys
from dataclasses import dataclass

import numpy as np

from experiments.robot.lerobot import ports
from experiments.robot.lerobot.robots import LeRobotArm
from prismatic.vla.constants import ActionKind
from prismatic.vla.demonstrated import Demonstrated
from prismatic.wire.policy_info import PolicyInfo

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
NAMES = (*(f"{joint} [rad]" for joint in JOINTS), "gripper [0-1]")
SEEN = Demonstrated((-1.0,) * 6, (1.0,) * 6, (0.1,) * 6, (None,) * 6)
INFO = PolicyInfo("SO101", (), 10, NAMES, (ActionKind.TARGET,) * 6, NAMES, 25.0, True, True, True, "arm", SEEN)


@dataclass
class RobotPort:
    """What another program has."""

    port: str


def connected(name: str) -> LeRobotArm:
    arm = LeRobotArm("so101_follower", {"port": sys.argv[1], "id": name})
    arm.fit(INFO)
    try:
        arm.connect()
    except ValueError:
        arm.disconnect()
        raise
    return arm


try:
    connected("another_arm")
    said = ""
except ValueError as error:
    said = str(error)
taken = ""
held = ports.hold(RobotPort(sys.argv[1]))
try:
    connected("my_arm")
except ValueError as error:
    taken = str(error)
ports.release(held)
arm = connected("my_arm")
before = arm.position()
arm.send(before + np.array([0.1, -0.1, 0.0, 0.0, 0.0, 0.25]))
after = arm.position()
arm.disconnect()
print(json.dumps({"said": said, "taken": taken, "before": before.tolist(), "after": after.tolist()}))
