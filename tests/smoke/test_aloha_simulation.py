"""gym-aloha as a Simulator: scenes, cameras, scripted experts, recording. What renders runs in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import launching
import numpy as np
import pytest

from experiments.robot.aloha.environment import AlohaSimulator
from experiments.robot.aloha.robots import HIGH, LOW
from experiments.robot.aloha.tasks import ALOHA_TASKS, get_aloha_task
from experiments.robot.evaluation.backlog import PlannedEpisode
from experiments.robot.evaluation.rollout import EpisodeResult, Rollout, RolloutOptions
from experiments.robot.recording.record import RecordingOptions, record_demonstrations
from experiments.robot.simulators.episodes import EpisodeSpec
from prismatic.vla.datasets.hdf5.recording import read_recording

REPOSITORY = Path(__file__).parents[2]

pytest.importorskip("gym_aloha", reason="needs the extra [aloha]")


def play(num_envs: int) -> list[EpisodeResult]:
    episodes = [PlannedEpisode(EpisodeSpec(task, index, seed=3), "expert") for task in ALOHA_TASKS for index in range(2)]
    options = RolloutOptions(num_envs=num_envs, filmed_run="expert", num_pictures=2)
    results = Rollout(AlohaSimulator(image_size=32), None, {}, options).run(episodes)
    return sorted(results, key=lambda result: (result.task, result.index))


@pytest.mark.sim
def test_experts_solve_both_tasks_the_same_way_with_any_number_of_workers() -> None:
    one, two = play(num_envs=1), play(num_envs=2)
    assert [(result.task, result.num_steps) for result in one] == [(result.task, result.num_steps) for result in two]
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first.pictures, second.pictures)
        assert first.success, first
        assert first.num_steps < ALOHA_TASKS[first.task].max_steps
    assert not np.array_equal(one[0].pictures[0], one[1].pictures[0])  # the objects start elsewhere


@pytest.mark.sim
def test_cameras_proprio_and_success_of_the_scene() -> None:
    code = """
import sys
import numpy as np
from experiments.robot.aloha.environment import AlohaSimulator
from experiments.robot.simulators.episodes import EpisodeSpec
environment = AlohaSimulator(image_size=64).make_environment("transfer_cube")
seen = []
for index in (0, 1, 0):  # back to the first: an episode leaves nothing behind
    environment.reset(EpisodeSpec("transfer_cube", index, 0))
    start = environment.proprio().astype(float)
    seen.append(environment.observe())
    down = start + np.tile([0, 0.4, 0, 0, 0.7, 0, 0.9], 2)  # both grippers open and look at the table
    solved = [environment.step(down) for _ in range(20)]
    assert not any(solved)
after = environment.observe()
environment.close()
first, other, again = seen
assert set(first.images) == {"primary", "left_wrist", "right_wrist"}
assert all(image.shape == (64, 64, 3) and image.std() > 5 for image in first.images.values())
assert all(np.array_equal(first.images[name], again.images[name]) for name in first.images)
red = lambda image: int(((image.astype(int) @ [1, -1, 0]) > 100).sum())
assert 3 < red(first.images["primary"]) < 100 and not np.array_equal(first.images["primary"], other.images["primary"])
assert red(after.images["right_wrist"]) > 10  # the right wrist camera sees the cube between the fingers
np.testing.assert_allclose(first.proprio, np.tile([0, -0.96, 1.16, 0, -0.3, 0, 0.0998], 2), atol=1e-3)
np.testing.assert_allclose(after.proprio[[1, 4]], down[[1, 4]], atol=0.02)  # targets are reached
assert after.proprio[6] > 0.9
assert not {"torch", "tensorflow", "gymnasium.envs.mujoco"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


JOINING = """
import json
import numpy as np
from experiments.robot.aloha.environment import AlohaSimulator
from experiments.robot.simulators.episodes import EpisodeSpec
simulator = AlohaSimulator(image_size=32)

def play(task, joins_at):
    environment.reset(EpisodeSpec(task, 0, seed=7, split="collection"))
    expert, actions, is_done, differences = simulator.make_expert(environment), [], False, []
    while not is_done and len(actions) < 400:
        if len(actions) == joins_at:
            expert = simulator.make_expert(environment)
        joined = simulator.make_expert(environment).act() if not joins_at and len(actions) % 5 == 2 else None
        actions.append(expert.act())
        if joined is not None:
            differences.append(np.abs(joined - actions[-1]).tolist())
        is_done = environment.step(actions[-1])
    changes = np.abs(np.diff(np.stack(actions), axis=0))
    changes[:, [6, 13]] = 0  # grippers are told to open or close at once
    return {"is_done": is_done, "steps": len(actions), "differences": differences, "change": float(changes[max(0, joins_at - 1)].max())}

found = {}
for task in ("transfer_cube", "insertion"):
    environment = simulator.make_environment(task)
    # Before anything is held; lifted; where the grippers meet.
    found[task] = {joins_at: play(task, joins_at) for joins_at in (0, 41, 70, 83, 107)}
print(json.dumps(found))
"""


@pytest.mark.sim
def test_an_expert_that_takes_over_goes_on_with_what_the_grippers_hold() -> None:
    done = subprocess.run([sys.executable, "-c", JOINING], cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for task, plays in json.loads(done.stdout.splitlines()[-1]).items():
        whole = plays.pop("0")
        differences = np.array(whole["differences"])  # what it teaches must not contradict the demonstrations
        grippers = differences[:, [6, 13]]
        assert (grippers < 0.5).all(), (task, np.flatnonzero(grippers.max(axis=1) >= 0.5))
        assert np.delete(differences, [6, 13], axis=1).max() < 0.15, task  # rad
        for joins_at, joined in plays.items():
            assert joined["is_done"], (task, joins_at)
            assert joined["steps"] <= whole["steps"] + 15, (task, joins_at, joined, whole)  # to begin again takes 40 and more
            assert joined["change"] < 0.1, (task, joins_at, joined)  # rad in one step


@pytest.mark.sim
def test_recorded_demonstrations_hold_what_training_needs(tmp_path: Path) -> None:
    options = RecordingOptions(tmp_path, num_episodes=1, noise_scale=0.004, noise_dims=(0, 7), num_workers=1)
    (path,) = record_demonstrations(AlohaSimulator(image_size=32), ["transfer_cube"], options)
    recording = read_recording(path)
    assert recording.attributes["success"]
    assert recording.instruction == get_aloha_task("transfer_cube").instruction
    assert recording.actions.shape == recording.proprio.shape == (recording.num_steps, 14)
    assert (recording.actions >= LOW).all()
    assert (recording.actions <= HIGH).all()
    assert set(np.unique(recording.actions[:, 13])) == {0.0, 1.0}  # the right gripper opens and closes
    assert set(recording.images) == {"primary", "left_wrist", "right_wrist"}
    assert {images.shape for images in recording.images.values()} == {(recording.num_steps, 32, 32, 3)}
    moved = recording.proprio[1:] - recording.actions[:-1]
    assert np.abs(np.delete(moved, [6, 13], axis=1)).max() < 0.25  # the arms follow their targets


@pytest.mark.sim
def test_an_episode_whose_physics_explodes_has_failed_and_the_next_one_is_sound() -> None:
    code = """
import numpy as np
from experiments.robot.aloha.environment import AlohaSimulator
from experiments.robot.simulators.episodes import EpisodeSpec
environment = AlohaSimulator().make_environment("insertion")
environment.reset(EpisodeSpec("insertion", 0, 0))
before = environment.physics.data.qpos.copy()
environment.physics.data.qvel[15] = 1e12
assert not any(environment.step(np.zeros(14)) for _ in range(3))
environment.reset(EpisodeSpec("insertion", 0, 0))
assert np.array_equal(environment.physics.data.qpos, before)
environment.step(np.zeros(14))
assert environment.physics.time() > 0.03
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "the episode has failed, since its physics became unstable" in done.stderr


@pytest.mark.sim
def test_scenes_change_and_come_back() -> None:
    words = [sys.executable, "tests/smoke/changed_scenes.py", "aloha", "transfer_cube"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found.pop("none").values()) == {0.0}
    for axis in ("camera", "robot", "light"):
        assert 0.3 < found[f"{axis}:1"]["primary"] < found[f"{axis}:3"]["primary"], axis
    assert found["camera:3"]["left_wrist"] == found["camera:3"]["state"] == 0.0
    assert 0.01 < found["robot:1"]["state"] < found["robot:3"]["state"] < 0.4


def evaluate(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "experiments/robot/aloha/run_aloha_sim_eval.py", "--local_log_dir", str(folder), "--image_size", "64", *flags]
    return launching.run(words, timeout=250)


@pytest.mark.sim
def test_a_checkpoint_is_evaluated_in_many_environments_and_the_expert_beside_it(aloha_checkpoint: Path, tmp_path: Path) -> None:
    words = ["--pretrained_checkpoint", str(aloha_checkpoint), "--num_pictures", "1", "--with_expert", "True"]
    outcomes = []
    for num_envs in ("1", "3"):
        done = evaluate(tmp_path / num_envs, *words, "--num_trials_per_task", "3", "--num_envs", num_envs)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (tmp_path / num_envs / "episodes.jsonl").read_text().splitlines()][1:]
        keys = ("run", "index", "success", "num_steps", "num_queries")
        outcomes.append(sorted(tuple(row[key] for key in keys) for row in rows))
    assert outcomes[0] == outcomes[1]
    assert [row[2] for row in outcomes[0]] == [True] * 3 + [False] * 3  # the expert's, then the untrained policy's
    assert {row[3:] for row in outcomes[0][3:]} == {(200, 8)}  # 25 actions a query
    report = json.loads((tmp_path / "3" / "report.json").read_text())
    assert report["summary"]["none"]["transfer_cube"]["num_trials"] == 3
    assert (tmp_path / "3" / "failures.png").stat().st_size > 1000


@pytest.mark.sim
def test_what_cannot_be_evaluated_is_one_line(aloha_checkpoint: Path, tmp_path: Path) -> None:
    words = ["--pretrained_checkpoint", str(aloha_checkpoint)]
    statistics = json.loads((aloha_checkpoint / "dataset_statistics.json").read_text())
    libero = tmp_path / "libero"
    made = [sys.executable, "scripts/make_untrained_policy.py", "--output_dir", str(libero), "--robot_platform", "LIBERO"]
    launching.run(made).check_returncode()
    for flags, message in (
        (["--task_names", "[transfer_cubes]"], "did you mean transfer_cube"),
        (["--unnorm_key", "leg"], f"leg.*{', '.join(statistics)}"),
        (["--pretrained_checkpoint", str(libero)], "drives LIBERO .*ALOHA has 14 and 14; pass a checkpoint that was trained on ALOHA"),
    ):
        done = evaluate(tmp_path / "logs", *words, *flags)
        assert done.returncode == 2, done.stderr
        assert re.search(message, done.stderr.strip().splitlines()[-1])
        assert "Traceback" not in done.stderr


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean transfer_cube"):
        AlohaSimulator().make_environment("transfer_cubes")


@pytest.mark.sim
@pytest.mark.timeout(600)
def test_the_smoke_target_evaluates_in_one_process_and_through_a_server(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/aloha_smoke.py", "--output_dir", str(tmp_path / "smoke"), "--num_envs", "1"]
    done = launching.run(command, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    summaries = sorted((tmp_path / "smoke" / "eval").rglob("summary.json"))
    assert [json.loads(path.read_text())["num_rollouts"] for path in summaries] == [1, 1]
    assert json.loads((tmp_path / "smoke" / "sim_eval" / "report.json").read_text())["summary"]["expert"]["mean"]["rate"] == 1
