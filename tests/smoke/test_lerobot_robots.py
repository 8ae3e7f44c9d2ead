"""LeRobot's robots in our loop, in LeRobot's own environment: a plugin simulates an arm like an SO-101 that falls without torque."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from feetech_bus import HIGHEST, LOWEST, MIDDLE, NUM_MOTORS, FeetechBus
from lerobot_environment import LeRobot
from policy_server import Server, write_policy
from terminal import Terminal

from prismatic.vla.constants import NormalizationType, RobotPlatform
from prismatic.vla.datasets.hdf5.source import Hdf5Source
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.demonstrated import Demonstrated

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900, func_only=True)]
CLIENTS = Path(__file__).parent / "clients"
# Another order and other units than LeRobot's.
NAMES = ("gripper [0-1]", *(f"{joint} [rad]" for joint in ("wrist_roll", "wrist_flex", "elbow_flex", "shoulder_lift", "shoulder_pan")))
PLATFORM = RobotPlatform("SO101", 10, 6, 6, NormalizationType.BOUNDS, 25.0, NAMES, NAMES)
SEEN = Demonstrated(
    (-1.0,) * 6,
    (1.0,) * 6,
    (0.04,) * 6,
    (0.1,) * 6,
    (0.4, *(-0.1,) * 5),
    (0.6, *(0.1,) * 5),
    {"primary": "observation.images.front", "wrist": "observation.images.wrist"},
)
LARGEST_STEP = np.rad2deg(0.04) + 1e-3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(write_policy(tmp_path_factory.mktemp("so101"), PLATFORM, ("primary", "wrist"), SEEN))
    yield running
    assert running.stop() == 0, "".join(running.lines)


def flags(server: Server, folder: Path, is_attended: bool = False, **arguments: Any) -> list[str]:
    said = json.dumps({"journal": str(folder / "journal.jsonl"), **arguments})
    robot = ["scripts/run_robot.py", "--robot", "lerobot:simulated_so101", "--robot_args", said, "--task_label", "pick the cube"]
    return [
        *robot,
        "--server",
        f"ws://127.0.0.1:{server.port}",
        "--unattended",
        str(not is_attended),
        "--local_log_dir",
        str(folder / "runs"),
    ]


def journal(folder: Path) -> list[dict[str, Any]]:
    path = folder / "journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_rollout_moves_motors_by_name_within_the_limits_and_leaves_the_arm_up(lerobot: LeRobot, server: Server, tmp_path: Path) -> None:
    done = lerobot.run(*flags(server, tmp_path), "--num_rollouts_planned", "1", "--max_steps", "40")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("EVAL-simulated_so101-")
    assert list(folder.glob("rollout_001_*.mp4"))
    steps = [json.loads(line) for line in (folder / "rollout_001.steps.jsonl").read_text().splitlines()]
    wanted = np.array([step["action"] for step in steps])
    what, targets = zip(*[(line["what"], line.get("target")) for line in journal(tmp_path)], strict=True)
    assert what == ("connect", *("command",) * (len(steps) + 2), "disconnect")  # before the first step and after the last: stay
    told = np.array(targets[2:-2])
    np.testing.assert_allclose(told[:, :5], np.rad2deg(wanted[:, :0:-1]), atol=1e-2)  # LeRobot's order is the other way round
    np.testing.assert_allclose(told[:, 5], 100 * wanted[:, 0], atol=1e-2)
    assert np.abs(np.diff(told[:, :5], axis=0)).max() <= LARGEST_STEP
    assert np.ptp(told[:, :5], axis=0).min() > 0
    assert journal(tmp_path)[-1]["torque"]
    assert "the arm keeps its torque and holds where it is" in done.stderr


def test_sigterm_in_the_middle_leaves_the_arm_where_it_is(lerobot: LeRobot, server: Server, tmp_path: Path) -> None:
    process = lerobot.start(*flags(server, tmp_path, start=3.0), "--video_hz", "0", "--max_steps", "2000")
    until = time.monotonic() + 120
    while len(journal(tmp_path)) < 30:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    last = journal(tmp_path)[-1]
    assert (last["what"], last["torque"]) == ("disconnect", True), log
    assert process.returncode == 130


def test_a_leader_arm_takes_over_in_a_rollout_and_is_in_its_record(lerobot: LeRobot, server: Server, tmp_path: Path) -> None:
    words = flags(server, tmp_path, is_attended=True, teleop={"type": "simulated_leader"})
    more = ("--num_rollouts_planned", "1", "--max_steps", "100000", "--video_hz", "0", "--record", "True")
    terminal = Terminal([str(lerobot.python), *words, *more], lerobot.environment)

    def steps() -> list[dict[str, Any]]:
        found = list((tmp_path / "runs").glob("*/rollout_001.steps.jsonl"))
        whole = found[0].read_text().rpartition("\n")[0] if found else ""
        return [json.loads(line) for line in whole.splitlines()]

    held_at = [0.5, *[np.pi / 3] * 5]  # by the person who holds the leader
    terminal.wait_for(lambda: "press c to begin" in terminal.text, 180)
    terminal.press("c")
    terminal.wait_for(lambda: len(steps()) > 10)
    terminal.press("t")
    terminal.wait_for(lambda: np.allclose(steps()[-1]["action"], held_at, atol=1e-3), 180)
    assert steps()[-1]["state"] == "intervention"
    terminal.press("t")
    terminal.wait_for(lambda: steps()[-1]["state"] == "acting")
    terminal.press("s")
    assert terminal.finish() == 0, terminal.text

    (file,) = tmp_path.glob("runs/*/recordings/**/*.hdf5")
    with h5py.File(file) as stored:
        by, told = [name.decode() for name in stored["rollout/commanded_by"][()]], dict(stored.attrs)
    (episode,) = Hdf5Source(file.parent, DatasetEntry(image_obs_keys=dict(SEEN.cameras))).episodes()  # as training reads it
    actions = episode.trajectory["action"]
    assert told["success"]
    assert told["num_person_steps"] == by.count("person") > 10
    assert by[0] == by[-1] == "policy"
    assert np.abs(np.diff(actions[:, 1:], axis=0)).max() <= np.deg2rad(LARGEST_STEP)  # smooth, also where the person begins and ends
    np.testing.assert_allclose(actions[len(by) - by[::-1].index("person") - 1], held_at, atol=1e-3)


def test_what_lerobot_and_the_policy_say_of_each_other(lerobot: LeRobot, tmp_path: Path) -> None:
    done = lerobot.run(CLIENTS / "lerobot_arm_session.py", tmp_path / "journal.jsonl")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["degrees"] == {"factors": [1.0] * 6, "cameras": {"primary": "front"}}
    assert found["percent"] == found["said"] == found["degrees"]
    assert found["told camera"]["cameras"] == {"primary": "top"}
    assert np.allclose(found["connected"]["state"], [np.pi / 6] * 5 + [0.5], atol=0.05)
    assert np.allclose(found["connected"]["person"], [np.pi / 3] * 5 + [0.5])  # the leader speaks as the arm does
    messages = {
        "unsaid": 'does not say whether its joints are in degrees or from -100 to 100.*"use_degrees": true or false',
        "wrong": r"cannot be had from the robot's 'shoulder_pan.pos', which is in \[-100-100\].*use_degrees",
        "dropped": "drops the arm at the end; leave it out",
        "no option": "has no disable_torque_on_disconnect, so that its arm might fall.*holds_at_the_end",
        "no type": "LeRobot has no robot of the type 'simulated_so102'; did you mean simulated_so101",
        "no argument": "so101_follower does not take these arguments.*it has .*port",
        "no camera": r"the policy's camera primary \(called 'front' in the data\) is none of the robot's \(top, wrist\).*\"slots\"",
        "no motor": "also takes gripper.pos, which the policy does not command",
        "not calibrated": "is not calibrated.*run: lerobot-calibrate --robot.type=simulated_so101 --robot.id=my_arm",
    }
    for name, message in messages.items():
        assert re.search(message, found[name]), (name, found[name])
    ends = [line["torque"] for line in journal(tmp_path) if line["what"] == "disconnect"]
    assert ends == [True, True]  # of the two cases that connect


def test_lerobots_own_so101_is_told_to_stay_when_it_is_connected_and_keeps_its_torque_at_the_end(lerobot: LeRobot) -> None:
    calibration = lerobot.folder / "lerobot/calibration/robots/so_follower/my_arm.json"
    calibration.parent.mkdir(parents=True)
    for _ in range(3):  # LeRobot gives up where a busy machine takes more than 50 ms for an answer
        bus = FeetechBus()
        calibration.write_text(json.dumps(bus.calibration))
        done = lerobot.run(CLIENTS / "lerobot_feetech_session.py", bus.port)
        if "no status packet" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert f"lerobot-calibrate --robot.type=so101_follower --robot.port={bus.port} --robot.id=another_arm" in found["said"]
    assert f"another program commands the arm at {bus.port}" in found["taken"]
    assert np.allclose(found["before"], [0.0] * 5 + [0.5], atol=2e-3)
    assert np.allclose(found["after"], [0.1, -0.1, 0.0, 0.0, 0.0, 0.75], atol=2e-3)
    turn = round(0.1 / (2 * np.pi) * 4095)
    assert [bus.word(number) for number in (1, 2, 6)] == pytest.approx(
        [MIDDLE + turn, MIDDLE - turn, LOWEST + 0.75 * (HIGHEST - LOWEST)], abs=2
    )
    assert all(motor[40] for motor in bus.motors.values()), "a motor is off"
    last_off = max(place for place, (what, _, value) in enumerate(bus.history) if what == "torque" and not value)
    goals = [(number, value) for what, number, value in bus.history[last_off:] if what == "goal"]
    assert goals[:NUM_MOTORS] == [(number, pytest.approx(MIDDLE, abs=1)) for number in range(1, NUM_MOTORS + 1)]  # as it was found
    assert len(goals) == 2 * NUM_MOTORS
