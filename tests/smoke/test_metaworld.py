"""MetaWorld end to end, rendering included. Everything that renders runs in a process of its own: TensorFlow may be loaded here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.robot.evaluation.backlog import PlannedEpisode
from experiments.robot.evaluation.controls import make_control
from experiments.robot.evaluation.rollout import EpisodeResult, Rollout, RolloutOptions
from experiments.robot.metaworld.environment import MetaWorldEnvironment, MetaWorldSimulator
from experiments.robot.metaworld.tasks import BASE_TASKS, DEMO_TASKS, METAWORLD_TASKS, get_metaworld_task
from experiments.robot.recording.record import RecordingOptions, record_demonstrations
from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.rendering import RenderingUnavailableError, configure_rendering
from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.datasets.hdf5.recording import read_recording
from prismatic.vla.images import ImageRecipe
from prismatic.vla.types import ActionChunk, Observation

REPOSITORY = Path(__file__).parents[2]
EVAL = "experiments/robot/metaworld/run_metaworld_eval.py"


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


class PicturePolicy:
    """Turns every pixel into motion: any difference in what is rendered ends in another episode."""

    def predict(self, observations: list[Observation], seeds: list[int]) -> list[ActionChunk]:
        return [ActionChunk(np.tile(self._action(observation), (8, 1))) for observation in observations]

    def _action(self, observation: Observation) -> np.ndarray:
        mean = {name: image.astype(np.float64).mean(axis=(0, 1)) for name, image in observation.images.items()}
        return np.append(np.sin(mean["primary"] + mean["wrist"]), 1.0)


def play(run: str, num_envs: int) -> list[EpisodeResult]:
    simulator = MetaWorldSimulator()
    policy = None if run == "expert" else PicturePolicy()
    controls = {} if run == "expert" else {run: make_control(run, simulator, DEMO_TASKS)}
    episodes = [PlannedEpisode(EpisodeSpec(task, index, seed=3), run) for task in DEMO_TASKS[1:] for index in range(2)]
    options = RolloutOptions(num_envs=num_envs, filmed_run=run, num_pictures=2)
    return sorted(Rollout(simulator, policy, controls, options).run(episodes), key=lambda result: (result.task, result.index))


@pytest.mark.sim
@pytest.mark.parametrize("run", ["expert", "none"])
def test_same_seed_same_outcome_with_any_number_of_workers(run: str) -> None:
    one, two = play(run, num_envs=1), play(run, num_envs=2)
    assert [(result.task, result.index, result.success, result.num_steps) for result in one] == [
        (result.task, result.index, result.success, result.num_steps) for result in two
    ]
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first.pictures, second.pictures)  # the last frame shows where 120 actions led
    assert all(result.success for result in one) == (run == "expert")
    assert not np.array_equal(one[0].pictures[0], one[1].pictures[0])  # episodes start at different positions


@pytest.mark.sim
def test_recorded_demonstrations_hold_what_training_needs(tmp_path: Path) -> None:
    options = RecordingOptions(tmp_path, num_episodes=1, num_workers=1)
    paths = list(record_demonstrations(MetaWorldSimulator(image_size=64), ["button-press-topdown"], options))
    recording = read_recording(paths[0])
    assert recording.attributes["success"]
    assert recording.attributes["task"] == "button-press-topdown"
    assert recording.instruction == METAWORLD_TASKS["button-press-topdown"].instruction
    assert recording.actions.shape == (recording.num_steps, 4)
    assert recording.proprio.shape == (recording.num_steps, 4)
    assert np.abs(recording.actions).max() <= 1
    assert 20 < recording.num_steps < METAWORLD_TASKS["button-press-topdown"].max_steps
    for name in ("primary", "wrist"):
        assert recording.images[name].shape == (recording.num_steps, 64, 64, 3)
        assert recording.images[name].std(axis=(1, 2)).min() > 10  # no blank frame
    yellow = (recording.images["primary"][0].astype(int) @ np.array([1, 1, -2])) > 200
    assert 40 < yellow.sum() < 600  # the button's box is in the picture


@pytest.mark.sim
def test_the_first_picture_does_not_tell_faucet_open_from_faucet_close() -> None:
    code = """
import numpy as np
from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.metaworld.environment import MetaWorldSimulator
shown = []
for task in ("faucet-open", "faucet-close"):
    environment = MetaWorldSimulator().make_environment(task)
    for index in (0, 1, 0):  # back to the first: an episode leaves nothing behind
        environment.reset(EpisodeSpec("same positions", index, 0))
        shown.append(environment.observe())
        for _ in range(10):
            environment.step(np.array([0.5, 1.0, -0.2, 1.0]))
    environment.close()
first, other, again, close = shown[0], shown[1], shown[2], shown[3]
for name in first.images:
    assert np.array_equal(first.images[name], again.images[name]), name
    assert np.array_equal(first.images[name], close.images[name]), name
assert not np.array_equal(first.images["primary"], other.images["primary"])
assert np.array_equal(first.proprio, again.proprio)
assert first.instruction != close.instruction
import sys
assert "torch" not in sys.modules and "tensorflow" not in sys.modules
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.sim
def test_scenes_change_and_come_back() -> None:
    done = run_python("tests/smoke/changed_scenes.py", "metaworld", "faucet-open")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("none") == {"primary": 0.0, "wrist": 0.0, "state": 0.0}
    assert {label.split(":")[0] for label in found} == {"camera", "robot", "light"}
    for axis in ("camera", "robot", "light"):
        assert 0.5 < found[f"{axis}:1"]["primary"] < found[f"{axis}:3"]["primary"], axis
    assert found["camera:3"]["wrist"] == 0.0  # which is bolted to the hand
    assert found["camera:3"]["state"] == found["light:3"]["state"] == 0.0
    assert 0.005 < found["robot:1"]["state"] < found["robot:3"]["state"] < 0.09


@pytest.mark.sim
def test_evaluation_script_writes_the_report(tmp_path: Path) -> None:
    done = run_python(EVAL, "--policy", "expert", "--num_trials_per_task", "1", "--save_video", "all", "--local_log_dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "100 % (3/3)" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["success"] for row in report["episodes"]["expert"]] == [True, True, True]
    assert all(Path(row["video"]).stat().st_size > 1000 for row in report["episodes"]["expert"])
    assert (tmp_path / "report.html").read_text().count("data:image/png") == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "expert", "--task_names", "[faucet-opem]"], "did you mean faucet-open"),
        ([], "--pretrained_checkpoint is missing"),
        (["--policy", "expert", "--save_video", "sometimes"], "--save_video is 'sometimes'"),
        (["--policy", "expert", "--num_trials_per_task", "0"], "--num_trials_per_task is 0"),
        (["--policy", "expert", "--max_steps", "0"], "--max_steps is 0"),
    ],
)
def test_bad_flags_end_with_one_clear_line(arguments: list[str], message: str) -> None:
    done = run_python(EVAL, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_what_does_not_fit_the_chunks_is_told_before_the_weights_are_read(tmp_path: Path) -> None:
    PolicySpec(ROBOT_PLATFORMS["METAWORLD"], ("primary",), ImageRecipe(28), "metaworld_demo").save(tmp_path)  # there are none
    done = run_python(EVAL, "--pretrained_checkpoint", str(tmp_path), "--prefetch_steps", "8", "--local_log_dir", str(tmp_path / "log"))
    assert done.returncode == 2
    assert "error: --prefetch_steps is 8; choose 0 to 7, less than the steps of a query" in done.stderr


def test_missing_renderer_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr("experiments.robot.simulators.rendering._loads", lambda library: False)
    with pytest.raises(RenderingUnavailableError, match=r"libOSMesa.so.8.*apt-get install -y libosmesa6"):
        configure_rendering()


def test_every_task_has_an_expert() -> None:
    configure_rendering()  # before MuJoCo is imported
    import metaworld.policies
    from metaworld.env_dict import ENV_CLS_MAP

    for task in METAWORLD_TASKS.values():
        assert hasattr(metaworld.policies, task.expert_class)
        assert f"{task.base_name}-v3" in ENV_CLS_MAP
    assert get_metaworld_task("faucet-open-v3").name == "faucet-open"
    assert set(DEMO_TASKS) | set(BASE_TASKS) <= set(METAWORLD_TASKS)


@pytest.mark.sim
def test_a_moving_target_slides_to_and_fro_and_its_expert_follows() -> None:
    simulator, name = MetaWorldSimulator(max_steps=600), "button-press-topdown-moving"
    environment = simulator.make_environment(name)
    assert environment.max_steps == 600
    task = get_metaworld_task(name)
    low, high = task.travel
    assert isinstance(environment, MetaWorldEnvironment)

    def play(index: int, num_steps: int) -> list[float]:
        environment.reset(EpisodeSpec(name, index, 0, "evaluation"))
        places = [float(environment.state[4])]
        for _ in range(num_steps):
            environment.step(np.zeros(4))
            places.append(float(environment.state[4]))
        return places

    places = np.array(play(0, 510))  # MetaWorld's own episodes end after 500
    np.testing.assert_allclose(np.abs(np.diff(places)), task.speed / environment.control_hz, atol=1e-6)
    assert len({*np.sign(np.diff(places))}) == 2  # it has turned round
    assert low < places.min() < places.max() < high
    assert play(0, 510) == list(places)  # the same episode is the same again
    sides = {np.sign(np.diff(play(index, 1)))[0] for index in range(6)}
    assert sides == {-1, 1}

    environment.reset(EpisodeSpec(name, 0, 0, "evaluation"))
    expert = simulator.make_expert(environment)
    assert any(environment.step(expert.act()) for _ in range(environment.max_steps))


def test_the_base_never_saw_what_the_demo_learns() -> None:
    told = {METAWORLD_TASKS[name].instruction for name in BASE_TASKS}
    assert len(BASE_TASKS) == len(told) >= 15
    assert not told & {METAWORLD_TASKS[name].instruction for name in DEMO_TASKS}
    assert not {name.split("-")[0] for name in BASE_TASKS if "topdown" in name or "faucet" in name}
