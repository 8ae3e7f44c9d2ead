"""Evaluates a policy server on ALOHA, the real one or gym-aloha's simulation, at 25 Hz.

python experiments/robot/aloha/run_aloha_eval.py --vla_server_url 192.168.1.20 --num_rollouts_planned 20 --task_label "fold the shirt"
python experiments/robot/aloha/run_aloha_eval.py --vla_server_url 127.0.0.1 --robot transfer_cube --num_rollouts_planned 20

Runs on the robot's computer, which needs no torch. Start vla-scripts/deploy.py on the machine with the GPU first. Each rollout leaves
a line in rollouts.jsonl, a log of every control step and a video; summary.json counts the successes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.robot.aloha.environment import CAMERAS
from experiments.robot.aloha.robots import ACTION_DIM, RelativeTargets, SimulatedRobot
from experiments.robot.aloha.tasks import ALOHA_TASKS, CONTROL_HZ
from experiments.robot.evaluation.driving import DrivingFlags, connect_to_server, make_leader
from experiments.robot.evaluation.session import Driver, SessionOptions, drive, session_folder
from prismatic.acting.keyboard import Keyboard
from prismatic.acting.limit_sources import ChosenLimits, choose_limits
from prismatic.acting.robot import Robot
from prismatic.acting.signals import end_at_signals
from prismatic.cli import run_script
from prismatic.vla.constants import ROBOT_PLATFORMS, ActionKind
from prismatic.vla.types import check_side
from prismatic.wire.policy_info import CHANGE_PREFIX, PolicyInfo

HARDWARE = "hardware"


@dataclass
class AlohaEvalConfig(DrivingFlags):
    """Flags of the evaluation."""

    # As in the published script
    model_family: str = "openvla"  # part of the run's name
    center_crop: bool | None = None  # the checkpoint knows it; a value that contradicts it is refused
    num_open_loop_steps: int | None = 25  # actions executed per query
    use_vla_server: bool = True  # there is no other way
    vla_server_url: str = ""  # host, ws://host:port, or http://host:port for POST /act
    use_relative_actions: bool = False  # the policy's actions are changes of the joint angles, though their names do not say so (delta_...)
    local_log_dir: Path = Path("runs/aloha_eval")  # receives a folder per run

    # Robot and task
    robot: str = HARDWARE  # hardware, or a task of gym-aloha: transfer_cube, insertion
    control_hz: float = 25  # as the demonstrations
    seed: int = 7  # of the simulated starts
    image_size: int = 256  # simulation: pixels of the rendered images, as in the demonstrations
    fast_rendering: bool = True  # simulation: no anti-aliasing, shadows or reflections, as in the demonstrations

    # Speed
    max_joint_speed: float | None = None  # rad/s; 2, or what the platform or --limits says
    max_joint_change: float | None = None  # the same in rad per step

    def __post_init__(self) -> None:
        if not self.use_vla_server:
            raise ValueError("--use_vla_server False is not possible: start vla-scripts/deploy.py and pass --vla_server_url")
        if not self.vla_server_url:
            raise ValueError("--vla_server_url is missing; pass the address of the machine that runs vla-scripts/deploy.py")
        check_side("--image_size", self.image_size)
        if self.robot != HARDWARE and self.robot not in ALOHA_TASKS:
            raise ValueError(f"--robot is {self.robot!r}, expected {HARDWARE} or a simulated task: {', '.join(ALOHA_TASKS)}")
        for name in ("control_hz", "max_joint_speed", "max_joint_change"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"--{name} is {value}, must be a finite number more than 0")
        if self.robot != HARDWARE and self.control_hz != CONTROL_HZ:
            raise ValueError(f"--control_hz is {self.control_hz:g}; the simulation executes {CONTROL_HZ:g} actions per second")
        if self.max_joint_speed is not None and self.max_joint_change is not None:
            raise ValueError("--max_joint_speed and --max_joint_change are the same limit in rad/s and in rad per step; pass one of them")
        super().__post_init__()


def check_policy(config: AlohaEvalConfig, info: PolicyInfo) -> None:
    """Accepts a policy that can drive ALOHA with these flags.

    Raises:
        ValueError: it cannot; the message says what differs.
    """
    if info.action_dim != ACTION_DIM or ActionKind.VELOCITY in info.action_kinds:
        raise ValueError(
            f"the server's policy is made for {info.platform} ({', '.join(info.action_names)}); ALOHA needs {ACTION_DIM} joint targets, or "
            "changes of them. Another robot, such as one on a mobile base, is driven by scripts/run_robot.py (docs/own_robot.md)"
        )
    asked = [("action", info.action_names, ROBOT_PLATFORMS["ALOHA"].action_names)]
    if info.needs_state:
        asked.append(("state", info.proprio_names, ROBOT_PLATFORMS["ALOHA"].proprio_names))
    for what, names, wanted in asked:
        if [name.replace(CHANGE_PREFIX, "") for name in names] != list(wanted):
            raise ValueError(
                f"the server's policy is made for {info.platform}, whose {what} is {', '.join(names)}; ALOHA's is {', '.join(wanted)}, in "
                "this order and in rad: give the platform of ALOHA-like data these names, or drive another robot with scripts/run_robot.py"
            )
    if not set(info.cameras) <= set(CAMERAS):
        raise ValueError(f"the server's policy wants the cameras {', '.join(info.cameras)}; ALOHA has {', '.join(CAMERAS)}")
    if config.center_crop not in (None, info.center_crop):
        raise ValueError(f"--center_crop {config.center_crop} contradicts the checkpoint ({info.center_crop}); leave the flag out")
    config.execution(info.num_actions_chunk)
    if config.control_hz != info.control_hz:
        raise ValueError(f"--control_hz is {config.control_hz:g}, but the policy was trained on {info.control_hz:g} Hz")


def with_kinds(config: AlohaEvalConfig, info: PolicyInfo) -> PolicyInfo:
    """`info` as these flags understand it: --use_relative_actions makes motions of what is called like targets."""
    return info.as_changes() if config.use_relative_actions else info


def make_limits(config: AlohaEvalConfig, info: PolicyInfo) -> ChosenLimits:
    """What the platform, --limits and the demonstrations say; the speed of joints, but not of grippers, by the flags.

    Raises:
        ValueError: nothing is known of a dimension.
    """
    chosen = choose_limits(info, config.limits, config.limit_mode)
    speed = config.max_joint_speed or (config.max_joint_change or 0.0) * config.control_hz
    if not speed:
        return chosen
    joints = np.array(["gripper" not in name for name in info.action_names])
    limits = dataclasses.replace(chosen.limits, max_speed=np.where(joints, speed, chosen.limits.max_speed))
    return ChosenLimits(limits, (*chosen.notes, f"speed of the joints from the flags: {speed:g} rad/s"))


def make_robot(config: AlohaEvalConfig, info: PolicyInfo) -> Robot:
    """The robot of --robot, which takes changes of its targets where the policy gives such."""
    robot: Robot
    if config.robot == HARDWARE:
        from experiments.robot.aloha.hardware import AlohaHardware

        robot = AlohaHardware()
    else:
        robot = SimulatedRobot(config.robot, config.seed, config.image_size, config.fast_rendering)
    return RelativeTargets(robot, info.action_kinds) if ActionKind.MOTION in info.action_kinds else robot


def evaluate(config: AlohaEvalConfig) -> Path:
    """Runs the evaluation; returns the folder with its results.

    Raises:
        ValueError: no server, or one whose policy cannot drive this robot.
    """
    keyboard = Keyboard()
    if config.robot == HARDWARE and not keyboard.is_terminal:
        raise ValueError("--robot hardware needs a terminal: a person at the keys must be able to pause and stop the robot")
    client, info = connect_to_server(config, config.vla_server_url, "vla_server_url")
    check_policy(config, info)
    info = with_kinds(config, info)
    session = SessionOptions(
        folder=session_folder(config.local_log_dir, config.model_family, config.run_id_note),
        num_rollouts=config.num_rollouts_planned,
        control_hz=config.control_hz,
        instruction=config.task_label,
        max_steps=config.max_steps,
        video_hz=config.video_hz,
        is_attended=config.robot == HARDWARE,
        settings=config.settings,
        waits_for_person=not config.ignore_warnings,
        leader=make_leader(config),
        records=config.record,
        seed=config.seed if config.robot != HARDWARE else None,
    )
    driver = Driver(client, info, config.execution(info.num_actions_chunk), make_limits(config, info))
    return drive(make_robot(config, info), driver, session, keyboard)


def main(config: AlohaEvalConfig) -> None:
    end_at_signals()  # robot held, terminal restored
    evaluate(config)


def run() -> None:
    """Entry point."""
    run_script(main, AlohaEvalConfig)


if __name__ == "__main__":
    run()
