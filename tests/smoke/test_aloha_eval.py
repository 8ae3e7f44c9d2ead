"""run_aloha_eval.py as a process, in gym-aloha's simulation, against deploy.py as a process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversion_process import convert
from policy_server import API_KEY, ROOT, SIZES, FaultyProxy, Server
from terminal import Terminal

from experiments.robot.aloha.robots import HIGH, LOW
from prismatic.commands.inspect_dataset import InspectConfig
from prismatic.commands.inspect_dataset import main as inspect
from prismatic.models.base import write_tiny_base
from prismatic.training.config import FinetuneConfig
from prismatic.training.loop import finetune
from prismatic.vla.datasets.hdf5.recording import read_recording
from prismatic.vla.datasets.hdf5.source import Hdf5Source

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

pytestmark = pytest.mark.usefixtures("api_key")
SCRIPT = "experiments/robot/aloha/run_aloha_eval.py"


@pytest.fixture
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISMATIC_API_KEY", API_KEY)


def command(url: str, folder: Path, *flags: str) -> list[str]:
    return [sys.executable, SCRIPT, "--vla_server_url", url, "--local_log_dir", str(folder), "--image_size", "64", *flags]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_folder(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


@pytest.mark.sim
@pytest.mark.parametrize("task", ["transfer_cube", "insertion"])
def test_the_whole_script_in_simulation(aloha_server: Server, tmp_path: Path, task: str) -> None:
    pytest.importorskip("gym_aloha", reason="needs the extra [aloha]")
    url = f"127.0.0.1:{aloha_server.port}" if task == "insertion" else f"http://127.0.0.1:{aloha_server.port}/act"
    smooth = ["--prefetch_steps", "6", "--num_blend_steps", "3", "--record", "True"] if task == "insertion" else []
    flags = ["--robot", task, "--num_rollouts_planned", "2", "--max_steps", "30", "--run_id_note", "test", *smooth]
    done = subprocess.run(command(url, tmp_path, *flags), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    folder = run_folder(tmp_path)
    assert folder.name.startswith("EVAL-openvla-")
    assert folder.name.endswith("--test")
    rows = read_lines(folder / "rollouts.jsonl")
    assert [(row["ending"], row["num_steps"], row["success"]) for row in rows] == [("out of steps", 30, False)] * 2
    assert rows[1]["timing"]["period_ms_p50"] > 39  # not faster than the demonstrations; how much slower is a matter of the machine
    assert rows[1]["timing"]["latency_ms_mean"] > 1
    assert rows[0]["chunks"] >= 2
    assert (rows[0]["dropped_actions"] > 0) == (task == "insertion")
    assert rows[0]["beyond_rate_limits"], "random actions jump"
    steps = read_lines(folder / "rollout_001.steps.jsonl")
    actions = np.array([line["action"] for line in steps])
    assert (actions >= LOW - 1e-4).all()
    assert (actions <= HIGH + 1e-4).all()
    joints = np.delete(actions, [6, 13], axis=1)
    assert np.abs(np.diff(joints, axis=0)).max() <= 2.0 / 25 + 1e-4  # rad/s
    assert [line["step"] for line in steps if line["state"] == "acting" and not line["reason"]] == list(range(1, 31))
    assert (folder / "rollout_002_failure.mp4").stat().st_size > 1000
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["num_rollouts"], summary["num_successes"]) == (2, 0)
    assert summary["limits"] == ["ranges of all dimensions from platform ALOHA", "speeds of all dimensions from platform ALOHA"]
    assert API_KEY not in (folder / "summary.json").read_text()
    assert read_lines(folder / "rollout_002.steps.jsonl")[0]["position"][1] == pytest.approx(-0.96, abs=0.01)
    if task == "insertion":
        commanded = [line["action"] for line in steps if line["by"]]
        assert commanded
        _use_recordings(folder / "recordings", tmp_path, np.array(commanded))


def _use_recordings(recordings: Path, folder: Path, commanded: np.ndarray) -> None:
    """Recorded rollouts are inspected, trained on and converted like demonstrations; `commanded` [T, 14] is what the first one was told."""
    name, source = "aloha_sim_insertion_scripted", Hdf5Source(recordings)
    first = read_recording(source.files[0])
    np.testing.assert_allclose(first.actions, commanded, atol=1e-5)
    told = first.attributes
    assert (told["success"], told["ending"], told["seed"], told["robot"]) == (False, "out of steps", 7, "SimulatedRobot")
    assert first.instruction == "insert the peg into the socket"
    (folder / "data").mkdir()
    (folder / "data" / name).symlink_to(recordings)
    inspect(InspectConfig(dataset_name=name, data_root_dir=folder / "data", output=folder / "page.html"))
    assert first.instruction in (folder / "page.html").read_text()
    write_tiny_base(folder / "base", SIZES, seed=0)
    flags: dict[str, Any] = {"vla_path": str(folder / "base"), "data_root_dir": folder / "data", "dataset_name": name}
    flags |= {"run_root_dir": folder / "runs", "run_id_override": "on_rollouts", "num_images_in_input": 3, "use_proprio": True}
    finetune(FinetuneConfig.from_flags(**flags, use_lora=False, batch_size=2, num_workers=0, max_steps=1, save_freq=1))
    assert (folder / "runs" / "on_rollouts--1_chkpt" / "policy.json").exists()
    done = convert("aloha_hdf5_to_rlds.py", folder, "--input_dir", str(recordings))
    assert done.returncode == 0, done.stderr
    assert list((folder / "rlds" / "toy_robot" / "1.0.0").glob("*tfrecord*"))


@pytest.mark.sim
def test_keys_pause_continue_mark_and_quit(aloha_server: Server, tmp_path: Path) -> None:
    pytest.importorskip("gym_aloha", reason="needs the extra [aloha]")
    flags = ["--robot", "transfer_cube", "--max_steps", "100000", "--video_hz", "0"]
    terminal = Terminal(command(f"127.0.0.1:{aloha_server.port}", tmp_path, *flags))

    def steps(number: int) -> list[dict[str, Any]]:
        found = sorted(tmp_path.glob(f"*/rollout_{number:03d}.steps.jsonl"))
        whole = found[0].read_text().rpartition("\n")[0] if found else ""
        return [json.loads(line) for line in whole.splitlines()]

    terminal.wait_for(lambda: len(steps(1)) > 30)
    terminal.press("p")
    terminal.wait_for(lambda: steps(1)[-1]["reason"] == "paused")
    held = len(steps(1))
    terminal.wait_for(lambda: len(steps(1)) > held + 2)  # one line a second
    assert {tuple(line["action"]) for line in steps(1)[held:]} == {tuple(steps(1)[-1]["action"])}
    terminal.press("c")
    terminal.wait_for(lambda: steps(1)[-1]["state"] == "acting")
    terminal.press("s")
    terminal.wait_for(lambda: len(steps(2)) > 30)
    terminal.press("f")
    terminal.wait_for(lambda: len(steps(3)) > 30)
    assert termios.tcgetattr(terminal.slave) != terminal.before
    terminal.press("q")
    assert terminal.finish() == 0, terminal.text
    rows = read_lines(run_folder(tmp_path) / "rollouts.jsonl")
    assert [(row["ending"], row["success"]) for row in rows] == [("success", True), ("failure", False)]
    assert "1 of 2 rollouts succeeded" in terminal.text


@pytest.mark.sim
def test_a_server_that_disappears_ends_the_rollout(aloha_server: Server, tmp_path: Path) -> None:
    pytest.importorskip("gym_aloha", reason="needs the extra [aloha]")
    proxy = FaultyProxy(aloha_server.port)
    flags = ["--robot", "insertion", "--num_rollouts_planned", "1", "--stop_after_s", "0.6", "--video_hz", "0", "--max_steps", "100000"]
    process = subprocess.Popen(command(f"127.0.0.1:{proxy.port}", tmp_path, *flags), cwd=ROOT, stdin=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not any(path.read_text().count('"acting"') > 20 for path in tmp_path.glob("*/rollout_001.steps.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.1)
    proxy.do("refuse")
    assert process.wait(timeout=60) == 0
    proxy.stop()
    (row,) = read_lines(run_folder(tmp_path) / "rollouts.jsonl")
    assert re.match(r"stopped: waiting for the server for \d+\.\d s", row["ending"])  # 0.6, and more on a machine that is late
    assert row["success"] is False
    assert row["failed_requests"] >= 2
    last = read_lines(run_folder(tmp_path) / "rollout_001.steps.jsonl")[-10:]
    assert {line["state"] for line in last} == {"holding", "stopped"}
    assert len({tuple(line["action"]) for line in last}) == 1  # the position is held to the end


@pytest.mark.sim
def test_a_solved_task_ends_the_rollout_as_a_success(tmp_path: Path) -> None:
    """The expert's actions stand in for those of a trained policy; everything else is the script's own."""
    pytest.importorskip("gym_aloha", reason="needs the extra [aloha]")
    code = f"""
from pathlib import Path
import numpy as np
from prismatic.acting.loop import RealTimeRollout, RolloutPlan
from experiments.robot.aloha.robots import SimulatedRobot
from experiments.robot.aloha.environment import AlohaSimulator
from prismatic.acting.keyboard import Keyboard
from prismatic.acting.actor import RemoteActor
from prismatic.acting.execution import ChunkExecutor, ExecutionOptions
from prismatic.acting.limits import ActionLimits
from prismatic.vla.constants import ActionKind
from experiments.robot.evaluation.video import BackgroundFilm, VideoWriter

simulator = AlohaSimulator(image_size=32)
robot = SimulatedRobot("transfer_cube", seed=1, image_size=32)

class ExpertClient:
    def take_warnings(self):
        return []
    def infer(self, observation, begins=False):
        assert observation.instruction == "hand over the cube"
        return np.array([expert.act() for _ in range(25)], np.float64)
    def close(self):
        pass

robot.reset(0)
expert = simulator.make_expert(robot._environment)
endless = np.full(14, np.inf)
limits = ActionLimits((ActionKind.TARGET,) * 14, -endless, endless, endless, endless, endless)
actor = RemoteActor(ExpertClient(), ChunkExecutor(ExecutionOptions(25), limits, 100))
folder = Path({str(tmp_path)!r})
film = BackgroundFilm(VideoWriter(folder / "film.mp4", 50))
plan = RolloutPlan(0, "hand over the cube", 200, control_hz=100, step_log=folder / "steps.jsonl", film=film, video_hz=50)
outcome = RealTimeRollout(robot, actor, Keyboard(), plan).run()
assert (outcome.success, outcome.ending) == (True, "solved"), outcome
assert 100 < outcome.num_steps < 140, outcome.num_steps
video = film.close(folder / "solved.mp4")
import av
with av.open(str(video)) as container:
    num_frames = sum(1 for _ in container.decode(video=0))
assert num_frames + film.num_dropped in (outcome.timing["ticks"] // 2, outcome.timing["ticks"] // 2 + 1)
assert sorted(path.name for path in folder.iterdir()) == ["solved.mp4", "steps.jsonl"]
actor.close()
robot.disconnect()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.sim
def test_interrupting_leaves_a_summary_and_the_terminal_as_it_was(aloha_server: Server, tmp_path: Path) -> None:
    pytest.importorskip("gym_aloha", reason="needs the extra [aloha]")
    terminal = Terminal(command(f"127.0.0.1:{aloha_server.port}", tmp_path, "--robot", "insertion", "--video_hz", "0"))
    terminal.wait_for(lambda: any(tmp_path.glob("*/rollout_001.steps.jsonl")))
    terminal.process.terminate()
    assert terminal.finish() == 130, terminal.text
    assert json.loads((run_folder(tmp_path) / "summary.json").read_text())["num_rollouts"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--robot", "hardware"], "--robot hardware needs a terminal"),
        (["--robot", "insertion", "--connect_wait_s", "0.1"], "--vla_server_url http://127.0.0.1:9: no server within 0.1 s"),
        (["--num_open_loop_steps", "0"], "num_open_loop_steps is 0"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path: Path, flags: list[str], message: str) -> None:
    arguments = command("http://127.0.0.1:9", tmp_path, *flags)
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_robots_computer_needs_no_torch() -> None:
    code = """
import sys
import experiments.robot.aloha.run_aloha_eval
heavy = {"torch", "transformers", "tensorflow", "mujoco", "dm_control", "starlette"} & sys.modules.keys()
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
