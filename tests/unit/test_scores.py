"""Episodes that are unlike the others of their task are found, and left out by the file of weights."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rlds_writer import Episode, make_episode, write_dataset
from rollout_files import load, manifest

from prismatic.commands.inspect_dataset import InspectConfig, main
from prismatic.policy.disagreement import episode_disagreement
from prismatic.vla.datasets.inspection.page import inspect_dataset
from prismatic.vla.datasets.inspection.scores import score_episodes
from prismatic.vla.datasets.inspection.view import DatasetView
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
from prismatic.vla.types import ActionChunk, Observation

NUM_EPISODES, STOPPED, NOISY = 12, 3, 7
WRONG, MIXED = 4, 9


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Smooth episodes, one of which stops half-way and one of which shakes."""
    episodes = []
    for number in range(NUM_EPISODES):
        rng = np.random.default_rng(number)
        length = 15 if number == STOPPED else 28 + int(rng.integers(5))
        time = np.arange(length)[:, None]
        action = 0.8 * np.sin(0.2 * time + rng.uniform(0, 6, 4)) + (0.5 * rng.normal(size=(length, 4)) if number == NOISY else 0)
        action[:, 3] = np.where(np.arange(length) < length // 2, 1, -1)
        episodes.append({**make_episode(length, seed=number, size=16), "action": action.astype(np.float32)})
    write_dataset(tmp_path / "data", "metaworld_demo", {"train": episodes})
    return tmp_path / "data" / "metaworld_demo"


def test_what_stops_or_shakes_comes_first_and_the_rest_is_left_in_peace(tmp_path: Path, recordings: Path) -> None:
    (spec,) = resolve_datasets("metaworld_demo", recordings.parent)
    scores = inspect_dataset(spec).scores
    assert {(item.episode, item.worst) for item in scores[:2]} == {(STOPPED, "length"), (NOISY, "jerk")}
    assert [item.is_doubtful for item in scores] == [True, True] + [False] * (NUM_EPISODES - 2)
    assert [item.score for item in scores] == sorted((item.score for item in scores), reverse=True)


def test_a_policy_that_disagrees_makes_an_episode_doubtful_one_that_agrees_does_not(recordings: Path) -> None:
    (spec,) = resolve_datasets("metaworld_demo", recordings.parent)
    view = inspect_dataset(spec).view
    said = {episode: {"disagreement": {0: 0.9, 1: 0.01}.get(episode, 0.1)} for episode in range(NUM_EPISODES)}
    del said[2]  # its pictures cannot be decoded
    scores = {item.episode: item for item in score_episodes(view, said)}
    assert (scores[0].worst, scores[0].is_doubtful) == ("disagreement", True)
    assert not scores[1].is_doubtful
    assert scores[2].deviations["disagreement"] == 0


def view_of(folder: Path, episodes: list[Episode]) -> DatasetView:
    write_dataset(folder / "data", "metaworld_demo", {"train": episodes})
    (spec,) = resolve_datasets("metaworld_demo", folder / "data")
    return inspect_dataset(spec).view


def test_tasks_of_few_episodes_and_what_stands_still_are_not_doubtful(tmp_path: Path) -> None:
    episodes = []
    for number in range(12):
        task = "wipe" if number >= 8 else "push"  # four longer ones, with which nothing is wrong
        length = (60 if task == "wipe" else 30) + number % 3
        action = 0.8 * np.sin(0.2 * np.arange(length)[:, None] + np.arange(4))
        if number == 0:  # a short one in which nothing moves
            action = np.tile(action[:1], (length, 1))
        episodes.append({**make_episode(length, seed=number, size=16, instruction=task), "action": action.astype(np.float32)})
    write_dataset(tmp_path / "data", "metaworld_demo", {"train": episodes})
    (spec,) = resolve_datasets("metaworld_demo", tmp_path / "data")
    scores = {item.episode: item for item in inspect_dataset(spec).scores}
    assert not any(item.is_doubtful for item in scores.values())
    assert all(scores[number].score == 0 for number in range(8, 12))


def test_sound_episodes_are_rarely_doubtful_however_few_there_are(recordings: Path) -> None:
    (spec,) = resolve_datasets("metaworld_demo", recordings.parent)
    view, rng = inspect_dataset(spec).view, np.random.default_rng(0)
    for number in (5, 8, 12):
        few = replace(view, episodes=view.episodes[:number])
        found = []
        for _ in range(200):
            asked = {episode: {"disagreement": float(np.exp(0.3 * rng.normal()))} for episode in range(number)}
            found += [item.deviations["disagreement"] > 2.7 for item in score_episodes(few, asked)]
        assert np.mean(found) < 0.02


@pytest.mark.parametrize("is_known", [True, False])
def test_words_for_the_same_task_are_no_wrong_instructions(tmp_path: Path, is_known: bool) -> None:
    """Of two words for each of two tasks: a policy acts almost alike under both, or never heard one of them."""
    goals = {"lift": 0.5, "raise": 0.52, "push": -0.5, "shove": -0.52}
    episodes = []
    for number in range(24):
        told = list(goals)[number % 4]
        action = np.tile([0.51 if goals[told] > 0 else -0.51, 0, 0, 1], (20, 1))
        action += 0.05 * np.random.default_rng(number).normal(size=(20, 4))
        episodes.append({**make_episode(20, seed=number, size=16, instruction=told), "action": action.astype(np.float32)})
    view = view_of(tmp_path, episodes)

    class Worded:
        action_bounds = view.action_bounds

        def knows(self, instruction: str) -> bool:
            return is_known or instruction in ("lift", "push")

        def predict(self, observations: list[Observation], seeds: list[int], is_watched: bool = False) -> list[ActionChunk]:
            said = [goals[item.instruction] if self.knows(item.instruction) else 0.1 for item in observations]
            return [ActionChunk(np.tile([goal, 0, 0, 1], (2, 1))) for goal in said]

    scores = score_episodes(view, episode_disagreement(Worded(), view.index, view.episodes))  # type: ignore[arg-type]
    assert not any(item.deviations["instruction"] for item in scores)


def test_an_episode_that_another_instruction_fits_better_is_doubtful(tmp_path: Path) -> None:
    """The policy moves up when it is told to lift and down when it is told to push; one episode was told the wrong one, one is mixed."""
    moves = {"lift": 0.5, "push": -0.5}
    episodes = []
    for number in range(NUM_EPISODES):
        told, done = ("lift", "push") if number % 2 else ("push", "lift")
        if number != WRONG:
            done = told
        shaken = np.random.default_rng(number).normal(size=(20, 4))
        action = np.tile([moves[done], 0, 0, 1], (20, 1)) + 0.05 * shaken
        if number == MIXED:
            action[:, 0] = np.where(np.arange(20) < 8, moves["push"], moves["lift"])
        episodes.append({**make_episode(20, seed=number, size=16, instruction=told), "action": action.astype(np.float32)})
    view = view_of(tmp_path, episodes)

    class Listening:
        """Predicts what it would do, at each step the same."""

        action_bounds = view.action_bounds

        def __init__(self, listens: bool = True) -> None:
            self.listens = listens

        def knows(self, instruction: str) -> bool:
            return instruction != "lift it"

        def predict(self, observations: list[Observation], seeds: list[int], is_watched: bool = False) -> list[ActionChunk]:
            goals = [moves[item.instruction] if self.listens else 0.5 for item in observations]
            return [ActionChunk(np.tile([goal, 0, 0, 1], (2, 1))) for goal in goals]

    asked = episode_disagreement(Listening(), view.index, view.episodes)  # type: ignore[arg-type]
    scores = {item.episode: item for item in score_episodes(view, asked)}
    assert [number for number, item in scores.items() if item.deviations["instruction"] > 0] == [WRONG]
    assert (scores[WRONG].worst, scores[WRONG].is_doubtful) == ("instruction", True)
    assert scores[WRONG].values["instruction"] > 2
    assert scores[0].values["instruction"] < 0.5
    asked = episode_disagreement(Listening(listens=False), view.index, view.episodes)  # type: ignore[arg-type]
    assert {said["instruction"] for said in asked.values()} == {1.0}, "a policy that does not listen knows nothing of instructions"
    assert not any(item.deviations["instruction"] for item in score_episodes(view, asked))


def test_the_page_lists_the_worst_and_its_weights_are_those_of_training(
    tmp_path: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    main(InspectConfig("metaworld_demo", recordings.parent, output=page))
    weights = tmp_path / "page.weights.json"
    assert f"2 doubtful episodes have the weight 0 in {weights}" in capsys.readouterr().out
    text = page.read_text()
    assert text.index(f"train {STOPPED} ") < text.index("Instructions</h2>")
    assert text.count("(doubtful)") == 2
    assert set(json.loads(weights.read_text())["metaworld_demo"].values()) == {0}
    data = load(manifest(tmp_path, {"path": str(recordings)}), episode_weights=str(weights))
    assert data.weights == {"metaworld_demo": {"0": 2, "1": NUM_EPISODES - 2}}
    assert not {STOPPED, NOISY} & set(data.train.parts[0].episodes.tolist())


@pytest.mark.skipif(importlib.util.find_spec("rerun") is not None, reason="rerun-sdk is installed")
def test_a_file_for_rerun_needs_its_package_and_says_so_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--rerun needs the package rerun-sdk: pip install rerun-sdk, or leave the flag out"):
        main(InspectConfig("nothing", tmp_path / "nowhere", rerun=tmp_path / "episodes.rrd"))


def test_a_file_for_rerun_holds_the_worst_episodes(tmp_path: Path, recordings: Path) -> None:
    pytest.importorskip("rerun", reason="needs the package rerun-sdk")
    path = tmp_path / "episodes.rrd"
    main(InspectConfig("metaworld_demo", recordings.parent, output=tmp_path / "page.html", rerun=path))
    assert path.stat().st_size > 20_000
    assert b"train_3/action" in path.read_bytes()
    assert not list(tmp_path.glob(".episodes*"))
