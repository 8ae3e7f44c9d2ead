"""Drives any robot in real time with a policy: keys, limits, watchdog, videos, a log of every step, a summary.

python scripts/run_robot.py --robot my_robots:DeskArm --server ws://192.168.1.20:8777 --task_label "put the cube into the box"
python scripts/run_robot.py --robot my_robots:DeskArm --pretrained_checkpoint runs/desk_arm
python scripts/run_robot.py --robot lerobot:so101_follower --robot_args '{"port": "/dev/ttyACM0", ...}' --server ws://192.168.1.20:8777
python scripts/run_robot.py --robot recorded:data/my_robot --server ws://127.0.0.1:8777 --unattended True

A robot is a class that inherits from prismatic.acting.robot.Robot (docs/own_robot.md has one of 25 lines). With --server this computer
needs no torch. Robots that LeRobot drives go by its type names (docs/lerobot.md). recorded:FOLDER is a rehearsal, in which the episodes of
that data set play the robot. Before anything moves, names and units are compared with the policy's, and the first state with those of the
demonstrations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.robot.evaluation.driving import DrivingFlags, connect_to_server, load_local, make_device, make_leader
from experiments.robot.evaluation.session import Driver, SessionOptions, drive, session_folder
from prismatic.acting.actor import ChunkSource
from prismatic.acting.keyboard import Keyboard
from prismatic.acting.limit_sources import choose_limits
from prismatic.acting.robot import Robot
from prismatic.acting.signals import end_at_signals
from prismatic.acting.start_check import check_names
from prismatic.cli import run_script


@dataclass
class RobotConfig(DrivingFlags):
    """Flags of a run."""

    # Robot and policy
    robot: str = ""  # module:Class, looked for in the working folder, too; lerobot:TYPE of LeRobot; recorded:FOLDER of a data set
    robot_args: dict[str, Any] = field(default_factory=dict)  # arguments of the class, as JSON: '{"port": "/dev/ttyACM0"}'
    server: str = ""  # ws://host:port or http://host:port of vla-scripts/deploy.py, with ?adapter=NAME where it serves several
    pretrained_checkpoint: str = ""  # instead: folder or Hub id of a policy that runs in this process
    unnorm_key: str | None = None  # of the checkpoint in this process: data set whose statistics count
    device: str | None = None  # of the checkpoint in this process: cuda, cpu; a GPU if there is one
    unattended: bool = False  # nobody prepares rollouts, reads warnings and says how they went; for simulated robots
    local_log_dir: Path = Path("runs/robot")  # receives a folder per run

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.robot:
            raise ValueError("--robot is missing; pass module:Class of a robot, see docs/own_robot.md, or lerobot:TYPE (docs/lerobot.md)")
        if bool(self.server) == bool(self.pretrained_checkpoint):
            found = "both given" if self.server else "missing"
            raise ValueError(
                f"--server and --pretrained_checkpoint are {found}; pass the address of deploy.py, or a checkpoint to run here"
            )


def make_robot(name: str, arguments: Mapping[str, Any]) -> Robot:
    """The robot of the class `module:Class`, LeRobot's of the type `lerobot:TYPE`, or that of the data set `recorded:FOLDER`.

    Raises:
        ValueError: see `make_device`.
    """
    kind, _, type_name = name.partition(":")
    if kind == "recorded" and type_name:
        from experiments.robot.recorded_robot import RecordedRobot

        if unknown := sorted(set(arguments) - {"stride", "robot_platform"}):
            raise ValueError(f"--robot_args has {', '.join(unknown)}; a recorded robot takes stride and robot_platform")
        return RecordedRobot(type_name, **arguments)
    if kind == "lerobot" and type_name:
        from experiments.robot.lerobot.robots import LeRobotArm

        return LeRobotArm(type_name, arguments)
    return make_device("robot", name, arguments, Robot)  # type: ignore[type-abstract]


def play(config: RobotConfig) -> Path:
    """Plays the rollouts; returns the folder with their results.

    Raises:
        ValueError: no policy, or one that cannot drive this robot.
    """
    keyboard = Keyboard()
    if not config.unattended and not keyboard.is_terminal:
        raise ValueError("a person at a terminal must be able to pause and stop the robot; for a simulated one pass --unattended True")
    robot, leader = make_robot(config.robot, config.robot_args), make_leader(config)
    if config.unattended and not (config.task_label or robot.instruction):
        raise ValueError("--task_label is missing: nobody is there to type what the robot is to do (--unattended True)")
    source: ChunkSource
    if config.server:
        source, info = connect_to_server(config, config.server, "server")
    else:
        source, info = load_local(config.pretrained_checkpoint, config.device, config.unnorm_key)
    robot.fit(info)
    check_names(robot, info)
    driver = Driver(source, info, config.execution(info.num_actions_chunk), choose_limits(info, config.limits, config.limit_mode))
    options = SessionOptions(
        folder=session_folder(config.local_log_dir, Path(config.robot.partition(":")[2]).name, config.run_id_note),
        num_rollouts=config.num_rollouts_planned,
        control_hz=info.control_hz,
        instruction=config.task_label,
        max_steps=config.max_steps,
        video_hz=config.video_hz,
        is_attended=not config.unattended,
        settings=config.settings,
        waits_for_person=not (config.ignore_warnings or config.unattended),
        leader=leader,
        records=config.record,
    )
    return drive(robot, driver, options, keyboard)


def main(config: RobotConfig) -> None:
    end_at_signals()  # robot held, terminal restored
    play(config)


def run() -> None:
    """Entry point."""
    run_script(main, RobotConfig)
