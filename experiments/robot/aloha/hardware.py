"""The real ALOHA: two ViperX 300 S followers and its cameras, through ROS 1 and Interbotix's interbotix_xs_modules.

Note: written from the public description of the stack and never run by the authors of this file. Before the first rollout check, with the
arms free to move: the topics (`rostopic list`), that `position()` follows the arms when they are moved by hand, and that the colours
of `observe()` are right. The launch files of ALOHA must be running (`roslaunch aloha 4arms_teleop.launch` or a follower-only one).

Joint order of `/puppet_*/joint_states`: waist, shoulder, elbow, forearm_roll, wrist_angle, wrist_rotate, gripper, left_finger,
right_finger. The recorded gripper is the left finger's position, the commanded one the gripper's joint, both normalised to 0..1.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from prismatic.acting.robot import Robot, RobotError
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.types import Observation

CAMERA_TOPICS = {  # slot -> topic of a sensor_msgs/Image
    "primary": "/usb_cam_high/image_raw",
    "left_wrist": "/usb_cam_left_wrist/image_raw",
    "right_wrist": "/usb_cam_right_wrist/image_raw",
}
_ARMS = ("puppet_left", "puppet_right")
_LEFT_FINGER = 7  # index in joint_states
_START_POSE = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0])  # [rad]
_FINGER_CLOSED, _FINGER_OPEN = 0.01844, 0.05800  # [m], of left_finger
_GRIPPER_CLOSED, _GRIPPER_OPEN = -0.6213, 1.4910  # [rad], of the gripper's motor
_MOVE_SECONDS, _MOVE_HZ, _FIRST_MESSAGE_SECONDS = 2.0, 50.0, 10.0
_MOVE_SPEED = 0.5  # of a reset [rad/s]
_MOVE_GAP = 0.4  # that an arm may be behind during a reset [rad]
_FRESH_S = 0.5  # age of a joint message on which an arm may move
_GRIPPERS = [6, 13]


class AlohaHardware(Robot):
    """Both followers; their leaders are not used."""

    action_names, state_names = ROBOT_PLATFORMS["ALOHA"].action_names, ROBOT_PLATFORMS["ALOHA"].proprio_names
    max_steps = 1500  # 60 s

    def __init__(self, camera_topics: dict[str, str] | None = None) -> None:
        self._topics = camera_topics or CAMERA_TOPICS
        self._joints: dict[str, tuple[float, np.ndarray]] = {}  # arm -> time, positions [9]
        self._images: dict[str, tuple[float, np.ndarray]] = {}  # slot -> time, RGB
        self._arms: dict[str, Any] = {}
        self._gripper_message: Any = None
        self._bad_encodings: dict[str, str] = {}  # slot -> what is neither rgb8 nor bgr8

    def connect(self) -> None:
        """Switches the motors on and waits for the first message of every topic.

        Raises:
            ValueError: ALOHA's packages are missing, or a topic is silent.
        """
        try:
            import rospy
            from interbotix_xs_modules.arm import InterbotixManipulatorXS
            from interbotix_xs_msgs.msg import JointSingleCommand
            from sensor_msgs.msg import Image, JointState
        except ImportError as error:
            raise ValueError(
                f"--robot hardware needs ALOHA's ROS workspace ({error}); source it first, or try --robot transfer_cube in simulation"
            ) from error
        self._gripper_message = JointSingleCommand
        self._arms = {
            name: InterbotixManipulatorXS("vx300s", group_name="arm", gripper_name="gripper", robot_name=name, init_node=number == 0)
            for number, name in enumerate(_ARMS)
        }
        for name in _ARMS:
            rospy.Subscriber(f"/{name}/joint_states", JointState, self._take_joints, name)
        for slot, topic in self._topics.items():
            rospy.Subscriber(topic, Image, self._take_image, slot, queue_size=1, buff_size=1 << 24)
        for arm in self._arms.values():
            arm.dxl.robot_set_operating_modes("group", "arm", "position")
            arm.dxl.robot_set_operating_modes("single", "gripper", "current_based_position")
            arm.dxl.robot_torque_enable("group", "arm", True)
            arm.dxl.robot_torque_enable("single", "gripper", True)
        self._wait_for_messages()

    def _take_joints(self, message: Any, name: str) -> None:
        self._joints[name] = (time.monotonic(), np.asarray(message.position, np.float64))

    def _take_image(self, message: Any, slot: str) -> None:
        if message.encoding not in ("rgb8", "bgr8"):
            self._bad_encodings[slot] = message.encoding
            return
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
        image = rows[:, : 3 * message.width].reshape(message.height, message.width, 3)
        self._images[slot] = (time.monotonic(), image if message.encoding == "rgb8" else image[:, :, ::-1])

    def _wait_for_messages(self) -> None:
        until = time.monotonic() + _FIRST_MESSAGE_SECONDS
        while len(self._joints) < len(_ARMS) or len(self._images) < len(self._topics):
            for slot, encoding in self._bad_encodings.items():
                raise ValueError(f"{self._topics[slot]} has the encoding {encoding}; set the camera's driver to rgb8 or bgr8")
            if time.monotonic() > until:
                silent = [f"/{name}/joint_states" for name in _ARMS if name not in self._joints]
                silent += [topic for slot, topic in self._topics.items() if slot not in self._images]
                raise ValueError(f"no message on {', '.join(silent)} within {_FIRST_MESSAGE_SECONDS:.0f} s; start ALOHA's launch file")
            time.sleep(0.05)

    def reset(self, rollout: int) -> None:
        """Moves both arms to their start, the farther they are the longer, and checks that they went there.

        Raises:
            RobotError: joint messages are old or contradict each other, a command is not taken, or an arm does not follow.
        """
        first = self._fresh_position()
        time.sleep(1 / _MOVE_HZ)
        start, goal = self._fresh_position(), np.concatenate([_START_POSE, [1.0]] * 2)
        if (gap := np.delete(np.abs(start - first), _GRIPPERS)).max() > _MOVE_GAP:
            raise RobotError(f"two readings of an arm differ by {gap.max():.2f} rad: it moves, or one of them is wrong; nothing is sent")
        seconds = max(_MOVE_SECONDS, float(np.abs(goal - start).max()) / _MOVE_SPEED)
        for part in np.linspace(0, 1, round(seconds * _MOVE_HZ)):
            target = (1 - part) * start + part * goal
            self.send(target)
            time.sleep(1 / _MOVE_HZ)
            gap = np.delete(np.abs(target - self._fresh_position()), _GRIPPERS)
            if gap.max() > _MOVE_GAP:
                self.send(self.position())
                raise RobotError(f"an arm is {gap.max():.2f} rad from where the reset moves it; clear its way, check its emergency stop")

    def _fresh_position(self) -> np.ndarray:
        age = time.monotonic() - min(received for received, _ in self._joints.values())
        if age > _FRESH_S:
            raise RobotError(f"the last joint message is {age:.1f} s old: nothing moves; check the arms' cables and ALOHA's launch file")
        position = self.position()
        if not np.isfinite(position).all():
            raise RobotError("a joint's reading is not a number: nothing moves; check the arms' cables")
        return position

    def position(self) -> np.ndarray:
        """float64 [14], by the last messages, however old they are: `sensed_at` says so."""
        arms = [self._joints[name][1] for name in _ARMS]
        return np.concatenate([np.append(arm[:6], (arm[_LEFT_FINGER] - _FINGER_CLOSED) / (_FINGER_OPEN - _FINGER_CLOSED)) for arm in arms])

    def sensed_at(self) -> float:
        return min(received for received, _ in [*self._joints.values(), *self._images.values()])

    def observe(self, instruction: str) -> Observation:
        images = {slot: np.ascontiguousarray(image) for slot, (_, image) in self._images.items()}
        return Observation(images, instruction, self.position())

    def send(self, action: np.ndarray) -> None:
        for (name, arm), part in zip(self._arms.items(), np.split(action, 2), strict=True):
            if arm.arm.set_joint_positions(part[:6].tolist(), blocking=False) is False:
                raise RobotError(f"{name} refuses the joint angles {np.round(part[:6], 3).tolist()}: beyond its own limits")
            motor = part[6] * (_GRIPPER_OPEN - _GRIPPER_CLOSED) + _GRIPPER_CLOSED
            arm.gripper.core.pub_single.publish(self._gripper_message(name="gripper", cmd=float(motor)))

    def picture(self) -> np.ndarray:
        return np.ascontiguousarray(self._images["primary"][1][::2, ::2])  # 240 x 320

    def disconnect(self) -> None:
        """The motors keep their torque, so the arms do not fall; ALOHA's own sleep script lays them down."""
