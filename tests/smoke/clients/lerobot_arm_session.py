"""LeRobotArm with LeRobot itself: what it says of arguments and policies, as JSON.

Arguments: JOURNAL. Each case is arguments of the arm and changes of a policy's description; the answer is its message, or what it found.
"""

import json
import sys
from dataclasses import replace

import numpy as np

from experiments.robot.lerobot.robots import LeRobotArm
from prismatic.vla.constants import ActionKind
from prismatic.vla.demonstrated import Demonstrated
from prismatic.wire.policy_info import PolicyInfo

JOURNAL = {"journal": sys.argv[1]}
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")


def described(unit: str, gripper: str = " [0-100]") -> PolicyInfo:
    names = (*(f"{joint}.pos{unit}" for joint in JOINTS), f"gripper.pos{gripper}")
    seen = Demonstrated((-90.0,) * 6, (90.0,) * 6, (2.0,) * 6, (None,) * 6, cameras={"primary": "observation.images.front"})
    return PolicyInfo("SO101", ("primary",), 10, names, (ActionKind.TARGET,) * 6, names, 25.0, True, True, True, "arm", seen)


def attempt(type_name: str, arguments: dict, info: PolicyInfo, connects: bool = False) -> object:
    arm = None
    try:
        arm = LeRobotArm(type_name, arguments)
        arm.fit(info)
        if connects:
            arm.connect()
            if arm.leader is not None:
                arm.leader.connect()
            arm.send(np.array([9.0, -9.0, 0.0, 0.0, 0.0, 10.0]))
            person = None if arm.leader is None else arm.leader.read()
            return {"state": arm.observe("pick").proprio.tolist(), "person": None if person is None else person.tolist()}
        return {"factors": arm._actions.factors.tolist(), "cameras": arm._cameras}
    except ValueError as error:
        return str(error)
    finally:
        if arm is not None:
            arm.disconnect()
            arm.disconnect()
            if arm.leader is not None:
                arm.leader.disconnect()


DEGREES = described(" [deg]")
RADIANS = described(" [rad]", " [0-1]")
NO_GRIPPER = replace(DEGREES, action_names=DEGREES.action_names[:5], action_kinds=DEGREES.action_kinds[:5])
UNSAID = described("", "")
CASES = {
    "degrees": ("simulated_so101", JOURNAL, DEGREES),
    "percent": ("simulated_so101", JOURNAL, described(" [-100..100]")),
    "unsaid": ("simulated_so101", JOURNAL, UNSAID),
    "said": ("simulated_so101", {**JOURNAL, "use_degrees": False}, UNSAID),
    "wrong": ("simulated_so101", {**JOURNAL, "use_degrees": False}, DEGREES),
    "dropped": ("simulated_so101", {**JOURNAL, "disable_torque_on_disconnect": True}, DEGREES),
    "no option": ("simulated_gripper", {}, DEGREES),
    "no type": ("simulated_so102", {}, DEGREES),
    "no argument": ("so101_follower", {"prt": "/dev/null"}, DEGREES),
    "no camera": ("simulated_so101", {**JOURNAL, "camera_names": ["top", "wrist"]}, DEGREES),
    "told camera": ("simulated_so101", {**JOURNAL, "camera_names": ["top", "wrist"], "slots": {"primary": "top"}}, DEGREES),
    "no motor": ("simulated_so101", JOURNAL, NO_GRIPPER),
    "not calibrated": ("simulated_so101", {**JOURNAL, "is_calibrated": False, "id": "my_arm"}, DEGREES, True),
    "connected": ("simulated_so101", {**JOURNAL, "start": 30.0, "teleop": {"type": "simulated_leader"}}, RADIANS, True),
}
print(json.dumps({name: attempt(*case) for name, case in CASES.items()}))
