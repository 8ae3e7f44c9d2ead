"""scripts/run_robot.py as a process: an arm like an SO-101 with the policy in the same process, and gym-aloha through a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import launching
import numpy as np
import pytest
from policy_server import API_KEY, ROOT, Server, write_policy

from experiments.robot.run_robot import RobotConfig, play
from prismatic.vla.constants import NormalizationType, RobotPlatform
from prismatic.vla.demonstrated import Demonstrated

sys.path.insert(0, str(ROOT / "tests" / "unit"))
from simulated_arm import NAMES, SimulatedArm

SO101 = RobotPlatform("SO101", 10, 6, 6, NormalizationType.BOUNDS, 25.0, NAMES, NAMES)
SEEN = Demonstrated((-50.0,) * 5 + (0.0,), (50.0,) * 5 + (100.0,), (2.0,) * 6, (6.0,) * 6, (-5.0,) * 6, (5.0,) * 6, {"primary": "top"})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("so101"), SO101, ("primary", "wrist"), SEEN)


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/run_robot.py", "--local_log_dir", str(folder), "--unattended", "True", *flags]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/unit'}", "PRISMATIC_API_KEY": API_KEY, "OMP_NUM_THREADS": "1"}
    return launching.run(command, env=environment, timeout=180)


def test_an_arm_of_ones_own_with_a_policy_in_the_same_process(checkpoint: Path, tmp_path: Path) -> None:
    flags = ("--robot", "simulated_arm:SimulatedArm", "--pretrained_checkpoint", str(checkpoint), "--device", "cpu")
    done = run(tmp_path, *flags, "--num_rollouts_planned", "2", "--max_steps", "25", "--prefetch_steps", "4")
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("EVAL-SimulatedArm-")
    rows = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    assert [(row["ending"], row["num_steps"]) for row in rows] == [("out of steps", 25)] * 2
    steps = [json.loads(line) for line in (folder / "rollout_001.steps.jsonl").read_text().splitlines()]
    actions = np.array([line["action"] for line in steps])
    assert np.abs(np.diff(actions, axis=0)).max() <= 2.0 + 1e-4, "faster than any demonstration"
    assert np.abs(actions[:, :5]).max() <= 60.0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["limits"] == [f"{what} of all dimensions from the demonstrations of arm" for what in ("ranges", "speeds")]
    assert list(folder.glob("rollout_002_not_judged.mp4"))


def test_a_posture_that_no_demonstration_began_in_is_named_before_anything_moves(checkpoint: Path, tmp_path: Path) -> None:
    flags = ("--robot", "simulated_arm:SimulatedArm", "--robot_args", '{"start": 40}', "--pretrained_checkpoint", str(checkpoint))
    done = run(tmp_path, *flags, "--device", "cpu", "--num_rollouts_planned", "1", "--max_steps", "2", "--video_hz", "0")
    assert done.returncode == 0, done.stderr
    assert "elbow_flex [deg] is 40 before the start; the demonstrations began between -5 and 5" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--robot", "simulated_arm"], "expected module:Class"),
        (["--robot", "simulated_arm:SimulatedArms"], "did you mean SimulatedArm?"),
        (["--robot", "no_such_module:Arm"], "the module cannot be imported"),
        (["--robot", "simulated_arm:SimulatedArm", "--robot_args", '{"port": 1}'], "unexpected keyword argument 'port'"),
        (["--robot", "simulated_arm:SimulatedArm", "--server", "ws://127.0.0.1:9", "--connect_wait_s", "0.1"], "no server within 0.1 s"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path: Path, flags: list[str], message: str) -> None:
    done = run(tmp_path, *flags, *(() if "--server" in flags else ("--server", "ws://127.0.0.1:9")))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


class UntoldArm(SimulatedArm):
    instruction = ""

    def connect(self) -> None:
        raise AssertionError("it was connected before anybody said what it is to do")


def test_where_nobody_is_there_and_nobody_said_what_to_do_no_robot_is_connected(tmp_path: Path) -> None:
    config = RobotConfig(robot=f"{__name__}:UntoldArm", server="ws://127.0.0.1:9", unattended=True, local_log_dir=tmp_path)
    with pytest.raises(ValueError, match="--task_label is missing: nobody is there to type what the robot is to do"):
        play(config)


@pytest.mark.sim
def test_gym_aloha_through_a_server_and_another_robot_is_refused(aloha_server: Server, tmp_path: Path) -> None:
    pytest.importorskip("gym_aloha", reason="needs the extra [aloha]")
    server = ("--server", f"ws://127.0.0.1:{aloha_server.port}")
    robot = ("--robot", "experiments.robot.aloha.robots:SimulatedRobot", "--robot_args", '{"task": "insertion", "image_size": 64}')
    done = run(tmp_path, *robot, *server, "--num_rollouts_planned", "1", "--max_steps", "10", "--video_hz", "0")
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "rollouts.jsonl").read_text())["num_steps"] == 10
    other = run(tmp_path, "--robot", "simulated_arm:SimulatedArm", *server)
    assert other.returncode == 2
    assert "the robot has 6 action dimensions" in other.stderr.strip().splitlines()[-1]
