"""Rollout, controls and episode specs, with real worker processes around a toy simulator."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_simulator import INSTRUCTIONS, ToyPolicy, ToySimulator

from experiments.robot.evaluation.backlog import Backlog, PlannedEpisode
from experiments.robot.evaluation.controls import make_control, wrong_instructions
from experiments.robot.evaluation.episode_worker import EpisodeRequest, WorkerFailure, worker_main
from experiments.robot.evaluation.rollout import EpisodeResult, Rollout, RolloutOptions, _Worker
from experiments.robot.evaluation.stepping import ActingOptions
from experiments.robot.simulators.episodes import EpisodeSpec
from prismatic.vla.types import ActionChunk, Observation

TASKS = ["left", "right"]


def play(
    policy: ToyPolicy | None,
    run: str = "none",
    num_trials: int = 3,
    simulator: ToySimulator | None = None,
    acting: dict[str, Any] | None = None,
    **options,
) -> list[EpisodeResult]:
    simulator = simulator or ToySimulator()
    acting = ActingOptions(**({"num_open_loop_steps": 4} | (acting or {})))
    controls = {} if run == "expert" else {run: make_control(run, simulator, TASKS)}
    options = {"acting": acting, "filmed_run": run} | options
    episodes = [PlannedEpisode(EpisodeSpec(task, index, seed=5), run) for task in TASKS for index in range(num_trials)]
    results = list(Rollout(simulator, policy, controls, RolloutOptions(**options)).run(episodes))
    return sorted(results, key=lambda result: (result.task, result.index))


def outcomes(results: list[EpisodeResult]) -> list[tuple]:
    return [(result.task, result.index, result.success, result.num_steps, result.num_queries) for result in results]


def test_policy_succeeds_and_counts_queries_of_open_loop_steps() -> None:
    policy = ToyPolicy()
    results = play(policy, num_envs=1)
    assert all(result.success for result in results)
    assert [result.num_queries for result in results] == [int(np.ceil(result.num_steps / 4)) for result in results]
    assert len(policy.batch_sizes) == sum(result.num_queries for result in results)
    assert all(result.latency_ms is not None and result.latency_ms >= 0 for result in results)


def test_results_do_not_depend_on_the_number_of_workers() -> None:
    one, three = play(ToyPolicy(), num_envs=1), play(ToyPolicy(), num_envs=3)
    assert outcomes(one) == outcomes(three)
    assert len({result.num_steps for result in one}) > 1  # the starts differ, so the comparison says something


def test_policy_always_sees_the_same_batch_size() -> None:
    policy = ToyPolicy()
    results = play(policy, num_envs=2, batch_size=3)
    assert set(policy.batch_sizes) == {3}
    assert outcomes(results) == outcomes(play(ToyPolicy(), num_envs=1))


def test_expert_plays_in_the_worker() -> None:
    results = play(None, run="expert", num_envs=1)
    assert all(result.success and result.num_queries == 0 and result.latency_ms is None for result in results)


def test_controls_take_away_what_the_policy_needs() -> None:
    assert not any(result.success for result in play(ToyPolicy(), run="wrong_instruction", num_envs=1))
    grey = play(ToyPolicy(), run="grey", num_envs=1)
    assert {result.instruction for result in grey} == {INSTRUCTIONS["left"], INSTRUCTIONS["right"]}
    image = np.zeros((4, 4, 3), np.uint8)
    shown = make_control("grey", ToySimulator(), TASKS)("left", Observation({"primary": image, "wrist": image}, "go"))
    assert {int(value) for picture in shown.images.values() for value in np.unique(picture)} == {128}
    assert image.max() == 0  # the environment's own image is untouched


def test_wrong_instruction_is_the_most_similar_other_one() -> None:
    assert wrong_instructions(INSTRUCTIONS) == {
        "left": "walk to the right",
        "right": "walk to the left",
        "jump": "walk to the left",
    }
    with pytest.raises(ValueError, match="at least two tasks"):
        wrong_instructions({"left": "walk", "right": "walk"})
    with pytest.raises(ValueError, match="expected one of"):
        make_control("gray", ToySimulator(), TASKS)


def test_a_killed_worker_is_replaced_and_its_episode_repeated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    crash = tmp_path / "crash"
    crash.touch()
    results = play(ToyPolicy(), num_envs=2, simulator=ToySimulator(crash_file=str(crash)))
    assert "is repeated" in caplog.text
    assert "exit code 3" in caplog.text
    assert outcomes(results) == outcomes(play(ToyPolicy(), num_envs=1))


def test_a_worker_killed_in_the_middle_of_an_episode_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    crash = tmp_path / "crash"
    crash.touch()
    results = play(ToyPolicy(), num_envs=2, simulator=ToySimulator(kill_file=str(crash)))
    assert "exit code -9" in caplog.text
    assert outcomes(results) == outcomes(play(ToyPolicy(), num_envs=1))


def test_seeds_follow_from_the_episode_and_prompts_are_not_mixed() -> None:
    class Watched(ToyPolicy):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[tuple[set[str], list[int]]] = []

        def predict(self, observations: list[Observation], seeds: list[int]) -> list[ActionChunk]:
            self.calls.append(({observation.instruction for observation in observations}, seeds))
            return super().predict(observations, seeds)

    one, four = Watched(), Watched()
    play(one, num_trials=2, num_envs=1)
    play(four, num_trials=2, num_envs=4, batch_size=4)
    assert {seed for _, seeds in one.calls for seed in seeds} == {seed for _, seeds in four.calls for seed in seeds}
    assert len({seed for _, seeds in one.calls for seed in seeds}) == len(one.calls)
    assert all(len(instructions) == 1 for instructions, _ in four.calls)


def taken(num_tasks: int, num_processes: int, counts: dict[str, int]) -> list[list[str]]:
    """The tasks that each process plays, one episode of each at a time, all of the same length."""
    backlog = Backlog([PlannedEpisode(EpisodeSpec(task, index, 0), "none") for task, n in counts.items() for index in range(n)], num_tasks)
    played: list[list[str]] = [[] for _ in range(num_processes)]
    playing: dict[int, str] = {}
    for _ in range(1000):
        for number in range(num_processes):
            playing.pop(number, None)
            episode = backlog.take(played[number][-1] if played[number] else None, playing.values())
            if episode is not None:
                played[number].append(episode.spec.task)
                playing[number] = episode.spec.task
    assert Counter(task for tasks in played for task in tasks) == counts
    return played


def test_processes_keep_to_their_task_and_all_episodes_are_played() -> None:
    assert taken(2, 2, {"a": 3, "b": 3}) == [["a"] * 3, ["b"] * 3]
    assert taken(9, 4, {"a": 5, "b": 5, "c": 5, "d": 5}) == [["a"] * 5, ["b"] * 5, ["c"] * 5, ["d"] * 5]
    assert taken(1, 4, {"a": 8, "b": 8}) == [["a", "a", "b", "b"]] * 4, "a full batch is about one task"
    many = taken(3, 30, dict.fromkeys("abcdefghij", 50))
    changes = [sum(one != other for one, other in pairwise(tasks)) for tasks in many]
    assert max(map(len, many)) <= 18, "nobody waits while others have much to do"
    assert max(changes) <= 4, "in order each would have opened nine more environments"
    assert taken(2, 3, {"a": 1, "b": 7}) == [["a", "b", "b"], ["b"] * 3, ["b"] * 2], "who has nothing to do helps"
    assert taken(4, 6, {"a": 1, "b": 1}) == [["a"], ["b"], [], [], [], []]


def test_processes_start_before_the_policy_is_loaded() -> None:
    rollout = Rollout(ToySimulator(), None, {"none": make_control("none", ToySimulator(), TASKS)}, RolloutOptions())
    found: list[int] = []

    def load() -> ToyPolicy:
        found.append(sum(worker.process.is_alive() for worker in rollout._workers))
        return ToyPolicy()

    results = list(rollout.run([PlannedEpisode(EpisodeSpec("left", index, 5), "none") for index in range(2)], load))
    assert ([result.success for result in results], found) == ([True, True], [2])

    def fail() -> ToyPolicy:
        raise ValueError("no such checkpoint")

    with pytest.raises(ValueError, match="no such checkpoint"):
        list(rollout.run([PlannedEpisode(EpisodeSpec("left", 0, 5), "none")], fail))
    assert rollout._workers == []


def test_a_worker_that_is_dead_before_its_first_request_is_a_failure_not_an_exception() -> None:
    worker = _Worker(ToySimulator())
    worker.process.kill()
    worker.process.join()
    planned = PlannedEpisode(EpisodeSpec("left", 0, 0), "none")
    worker.start(planned, RolloutOptions().request(planned))
    message = worker.receive()
    worker.close(60)
    assert isinstance(message, WorkerFailure)
    assert "died with exit code -9" in message.traceback


def test_an_episode_that_crashes_twice_counts_as_failed() -> None:
    results = play(ToyPolicy(), num_trials=1, num_envs=1, simulator=ToySimulator(broken=True))
    assert [result.success for result in results] == [False, False]
    assert all("the toy is broken" in (result.error or "") for result in results)


def test_a_simulator_that_never_works_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="the toy is broken"):
        play(ToyPolicy(), num_trials=6, num_envs=1, simulator=ToySimulator(broken=True))


def test_videos_and_pictures(tmp_path: Path) -> None:
    import av

    results = play(ToyPolicy(), num_trials=2, num_envs=1, save_video="first_1", video_dir=tmp_path, num_pictures=1)
    assert [bool(result.video) for result in results] == [True, False, True, False]
    assert [len(result.pictures) for result in results] == [2, 0, 2, 0]
    with av.open(results[0].video) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.width) == ("h264", "yuv420p", 256)
        assert len(list(container.decode(video=0))) == results[0].num_steps + 1
    assert not any(result.video for result in play(ToyPolicy(), num_trials=1, num_envs=1, save_video="failures", video_dir=tmp_path))


def test_bad_options_name_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--save_video is 'some'"):
        RolloutOptions(save_video="some", video_dir=tmp_path)
    with pytest.raises(ValueError, match="--num_envs is 0"):
        RolloutOptions(num_envs=0)


def test_too_short_chunks_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="--num_open_loop_steps is 8, but the policy predicts 4"):
        play(ToyPolicy(), num_envs=1, acting={"num_open_loop_steps": 8})

    class Diverged(ToyPolicy):
        def _chunk(self, observation: Observation) -> ActionChunk:
            return ActionChunk(np.full((4, 2), np.nan))

    with pytest.raises(ValueError, match="not finite"):
        play(Diverged(), num_envs=1)


def test_episode_specs_draw_differently_for_every_field() -> None:
    specs = [
        EpisodeSpec("left", 0, 0),
        EpisodeSpec("right", 0, 0),
        EpisodeSpec("left", 1, 0),
        EpisodeSpec("left", 0, 1),
        EpisodeSpec("left", 0, 0, "demonstration"),
        EpisodeSpec("left", 0, 0, "collection"),
        EpisodeSpec("left", 0, 0, attempt=1),
    ]
    draws = [spec.rng().random() for spec in specs] + [specs[0].rng("noise").random()]
    assert len(set(draws)) == len(draws)
    assert specs[0].rng().random() == draws[0]
    with pytest.raises(ValueError, match="expected one of"):
        EpisodeSpec("left", 0, 0, "training")


def test_a_worker_whose_parent_was_killed_ends_without_a_word() -> None:
    """It wrote a stack trace for each process beneath the prompt of who had killed the evaluation."""
    parent, worker = multiprocessing.Pipe()
    parent.send(EpisodeRequest(EpisodeSpec("left", 0, seed=5)))
    parent.close()
    worker_main(worker, ToySimulator())
