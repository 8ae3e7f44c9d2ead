"""integrations/lerobot_policy_openvla_oft_remote in LeRobot's own environment: functions, lerobot-record or -rollout, lerobot-eval."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot_environment import LeRobot
from policy_server import Server, write_policy

from prismatic.policy.policy import Policy
from prismatic.vla.constants import ROBOT_PLATFORMS, NormalizationType, RobotPlatform
from prismatic.vla.datasets.lerobot.source import LeRobotSource
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.demonstrated import Demonstrated
from prismatic.vla.types import Observation

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900, func_only=True)]
SESSION = Path(__file__).parent / "clients" / "lerobot_policy_session.py"
NUM_STEPS = 1000
CAMERAS = {"primary": "observation.images.front", "wrist": "observation.images.wrist"}


def seen(dim: int) -> Demonstrated:
    return Demonstrated((-1.0,) * dim, (1.0,) * dim, (0.1,) * dim, (0.1,) * dim, (-0.5,) * dim, (0.5,) * dim, CAMERAS)


def write(folder: Path, names: tuple[str, ...], states: tuple[str, ...] | None = None) -> Path:
    platform = RobotPlatform("ARM", 10, len(names), len(names), NormalizationType.BOUNDS, 25.0, names, states or names)
    return write_policy(folder, platform, ("primary", "wrist"), seen(len(names)))


@contextmanager
def serving(checkpoint: Path) -> Iterator[Server]:
    server = Server(checkpoint)
    try:
        yield server
    finally:
        server.stop()


def observations() -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """State and pictures of every step, as the session draws them."""
    rng, drawn = np.random.default_rng(0), []
    for _ in range(NUM_STEPS):
        pictures = {slot: rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for slot in CAMERAS}
        drawn.append((rng.normal(size=3).astype(np.float32), pictures))
    return drawn


def test_a_thousand_steps_are_those_of_the_policy_bit_for_bit(lerobot: LeRobot, tmp_path: Path) -> None:
    names, states = (
        ("gripper.pos [0-100]", "shoulder_pan.pos [deg]", "wrist_roll.pos [deg]"),
        ("shoulder_pan.pos [deg]", "wrist_roll.pos [deg]", "gripper.pos [0-100]"),
    )
    checkpoint = write(tmp_path, names, states)
    with serving(checkpoint) as server:
        process = lerobot.start(SESSION, f"ws://127.0.0.1:{server.port}", tmp_path, NUM_STEPS)
        assert process.stdout is not None
        line = process.stdout.readline()
    log = process.communicate("go on\n", timeout=300)
    assert process.returncode == 0, log[1]
    policy = Policy.from_pretrained(checkpoint, device="cpu")
    expected: list[np.ndarray] = []
    for number, (state, pictures) in enumerate(observations()):
        if number % 10 == 0:
            proprio = state[[2, 0, 1]].astype(np.float64)  # LeRobot's order: wrist_roll, gripper, shoulder_pan
            expected.extend(policy.predict([Observation(pictures, "pick the cube", proprio)])[0].actions[:, [2, 0, 1]])
    with np.load(tmp_path / "actions.npz") as found:
        np.testing.assert_array_equal(found["actions"], expected)
        np.testing.assert_array_equal(found["resumed"], expected[0])
        assert found["two"].shape == (2, 10, 3)
        np.testing.assert_allclose(found["two"], [expected[:10]] * 2, atol=1e-5)
    assert len(np.unique(expected, axis=0)) > 100
    assert_told(json.loads(line))
    end: dict[str, Any] = json.loads(log[0])
    assert end["end"].startswith("ServerUnavailableError")
    assert np.allclose(end["held"], [end["state"]] * 3)  # nothing has been commanded yet: it stays where it is


def assert_told(told: dict[str, str]) -> None:
    messages = {
        "no task": "LeRobot gives no task text here.*--policy.task",
        "no camera": r"the policy's camera wrist \(called 'observation.images.wrist'\) is none of LeRobot's \(observation.images.front\)",
        "warned": "the state is far from all.*To act in spite of it: --policy.ignore_warnings=true",
        "begins elsewhere": r"shoulder_pan.pos .* before the start; the demonstrations began .* --policy.ignore_warnings=true",
        "too many": "num_open_loop_steps is 99, but the policy predicts 10 actions",
        "no server": "--policy.server ws://127.0.0.1:9: no server within 0.2 s",
        **{name: f"--policy.{name} is nan, must be" for name in ("connect_wait_s", "reply_timeout_s", "stop_after_s")},
        "one of two": "ServerUnavailableError: the first, False",  # nothing is asked any longer
        "other names": "the policy's actions are gripper.pos .*; LeRobot's are a.pos, gripper.pos, shoulder_pan.pos",
    }
    for name, message in messages.items():
        assert re.search(message, told[name]), (name, told[name])


def test_lerobots_own_command_drives_its_arm(lerobot: LeRobot, tmp_path: Path) -> None:
    joints = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
    checkpoint = write(tmp_path, (*(f"{joint}.pos [deg]" for joint in joints), "gripper.pos [0-100]"))
    folder, module = tmp_path / "remote_policy", "lerobot_policy_openvla_oft_remote"
    robot = ("--robot.type=simulated_so101", f"--robot.journal={tmp_path / 'journal.jsonl'}", "--robot.disable_torque_on_disconnect=false")
    policy = (f"--policy.path={folder}", "--policy.ignore_warnings=true", "--policy.reply_timeout_s=30", "--play_sounds=false")
    known = "import importlib.util as i, sys; sys.exit(i.find_spec('lerobot.scripts.lerobot_rollout') is None)"
    has_rollout = lerobot.run("-c", known).returncode == 0  # since 0.6 lerobot-record only records
    with serving(checkpoint) as server:
        made = lerobot.run("-m", module, "--server", f"ws://127.0.0.1:{server.port}", "--output_dir", folder)
        assert made.returncode == 0, made.stderr
        if has_rollout:
            short = ("--strategy.type=base", "--task=pick the cube", "--duration=3", "--fps=25", "--return_to_initial_position=false")
            done = lerobot.run("-m", "lerobot.scripts.lerobot_rollout", *robot, *short, *policy)
        else:
            data = ("--dataset.repo_id=me/eval_pick", f"--dataset.root={tmp_path / 'set'}", "--dataset.single_task=pick the cube")
            data += ("--dataset.num_episodes=1", "--dataset.episode_time_s=2", "--dataset.reset_time_s=0", "--dataset.fps=25")
            quiet = ("--dataset.vcodec=h264", "--dataset.push_to_hub=false")
            done = lerobot.run("-m", "lerobot.scripts.lerobot_record", *robot, *data, *quiet, *policy)
    assert done.returncode == 0, done.stderr[-3000:]
    journal = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    told = np.array([line["target"] for line in journal if line["what"] == "command"])
    assert len(told) > 10
    assert np.ptp(told, axis=0).max() > 0
    assert journal[-1] == {**journal[-1], "what": "disconnect", "torque": True}
    if not has_rollout:
        source = LeRobotSource(tmp_path / "set", DatasetEntry(image_obs_keys=CAMERAS))
        (episode,) = [episode.trajectory for episode in source.episodes()]
        np.testing.assert_allclose(told, episode["action"], atol=1e-3)


@pytest.mark.sim
def test_lerobot_eval_with_gym_aloha(lerobot: LeRobot, tmp_path: Path) -> None:
    env = ("--env.type=aloha", "--env.task=AlohaTransferCube-v0", "--env.episode_length=30", "--eval.n_episodes=2", "--eval.batch_size=2")
    told = (
        "--policy.task=pass the cube",
        "--policy.ignore_warnings=true",
        "--policy.reply_timeout_s=30",
        f"--output_dir={tmp_path / 'out'}",
        "--eval.use_async_envs=false",  # 0.6.1's default, environments in processes, ends with a broken pipe
    )
    with serving(write_policy(tmp_path, ROBOT_PLATFORMS["ALOHA"], ("primary",))) as server:
        policy = ("--policy.type=openvla_oft_remote", f"--policy.server=ws://127.0.0.1:{server.port}")
        done = lerobot.run("-m", "lerobot.scripts.lerobot_eval", *env, *policy, *told)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out/eval_info.json").read_text())
    assert found["overall"]["n_episodes"] == 2
