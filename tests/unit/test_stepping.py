"""Time that does not wait: the robot's executor in a simulation, with delays counted in steps, and what is reported of it."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import h5py
import numpy as np
import pytest
from toy_simulator import ToyEnvironment, ToyPolicy, ToySimulator

from experiments.robot.evaluation.delays import read_delays
from experiments.robot.evaluation.plan import EvaluationFlags
from experiments.robot.evaluation.rollout import EpisodeResult
from experiments.robot.evaluation.statistics import ks_test
from experiments.robot.evaluation.stepping import ActingOptions, SteppedActor
from experiments.robot.evaluation.timing import Timing
from experiments.robot.simulators.episodes import EpisodeSpec
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.types import Observation

SPEC = EpisodeSpec("left", 0, 5)


def ramp(observation: Observation) -> np.ndarray:
    """Chunks of 8 whose actions tell the step that they are for, seen from a state that tells the step of the question."""
    assert observation.proprio is not None
    return np.stack([observation.proprio[0] + np.arange(8.0), np.zeros(8)], axis=1)


def commands(num_steps: int, **options) -> tuple[list[float], SteppedActor, list[int]]:
    """(first dimension of each command, nan where the robot is held; the actor; the steps at which it asked)."""
    asked: list[int] = []
    actor = SteppedActor(ActingOptions(**options), ToyEnvironment.platform, np.zeros(2), SPEC, ramp)
    told = []
    for step in range(num_steps):

        def observe(step: int = step) -> Observation:
            asked.append(step)
            return Observation({"primary": np.zeros((4, 4, 3), np.uint8)}, "go", np.array([step, 0.0], np.float32))

        command = actor.tick(step, observe)
        assert (actor.observation is not None) == (bool(asked) and asked[-1] == step)
        told.append(np.nan if command.by is None else float(command.action[0]))
    return told, actor, asked


def test_without_delay_every_action_is_carried_out_to_the_bit_as_in_plain_open_loop() -> None:
    rng = np.random.default_rng(0)
    chunks = [rng.normal(0, 1e3, (8, 7)) for _ in range(5)]
    platform = ROBOT_PLATFORMS["LIBERO"]
    answers = iter(chunks)
    actor = SteppedActor(ActingOptions(num_open_loop_steps=5), platform, np.full(7, -1.0), SPEC, lambda _: next(answers))
    queue: deque[np.ndarray] = deque()
    plain = iter(chunks)
    for step in range(25):
        if not queue:
            queue.extend(next(plain)[:5])
        assert np.array_equal(actor.tick(step, lambda: None).action, queue.popleft())  # type: ignore[arg-type, return-value]
    assert actor.motions.held == 0
    assert actor.delay_s == 0.0


def test_an_answer_comes_after_its_delay_and_the_robot_holds_meanwhile() -> None:
    told, actor, asked = commands(22, delays=(3,))
    assert asked == [0, 11]
    assert np.array_equal(told, [np.nan] * 3 + list(range(8)) + [np.nan] * 3 + list(range(11, 19)), equal_nan=True)
    assert actor.motions.held == 6
    assert actor.delay_s == pytest.approx(0.3)  # 10 Hz


def test_a_chunk_that_is_asked_for_early_arrives_in_time_and_its_past_is_dropped() -> None:
    told, actor, asked = commands(20, delays=(2,), prefetch_steps=3)
    assert asked[:2] == [0, 7]  # 3 steps before the actions run out at 10
    assert np.isnan(told[:2]).all()
    assert told[2:10] == [0, 1, 2, 3, 4, 5, 6, 9]  # the chunk of step 7 takes over at 9, with its third action
    assert not np.isnan(told[2:]).any()
    assert actor.motions.held == 2


def test_a_delay_longer_than_the_lead_holds_for_the_rest() -> None:
    _, actor, _ = commands(30, delays=(5,), prefetch_steps=3)
    _, patient, _ = commands(30, delays=(5,))
    assert 5 < actor.motions.held < patient.motions.held


def test_drawn_delays_follow_from_the_episode() -> None:
    first, actor, asked = commands(60, delays=(0, 1, 4))
    again, _, asked_again = commands(60, delays=(0, 1, 4))
    assert np.array_equal(first, again, equal_nan=True)
    assert asked == asked_again
    assert len(set(np.diff(asked))) > 1  # they differ from query to query
    assert actor.motions.held > 0


def test_jumps_between_chunks_are_told_from_steps_within() -> None:
    _, actor, _ = commands(16, num_open_loop_steps=8)
    assert actor.motions.inner == [1.0] * 14
    assert actor.motions.seams == [1.0]  # the next chunk goes on where the last one ended
    _, held, _ = commands(24, delays=(4,))
    assert held.motions.seams == [0.0, 7.0, 12.0]  # the first action is 0; stopped from speed 7; off again at 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delays": (-1,)}, "--delay_steps is -1"),
        ({"prefetch_steps": -1}, "--prefetch_steps is -1"),
        ({"num_open_loop_steps": 4, "prefetch_steps": 4}, "--prefetch_steps is 4; choose 0 to 3"),
        ({"num_open_loop_steps": 0}, "--num_open_loop_steps is 0"),
        ({"num_blend_steps": 2, "ensemble_decay": 0.1}, "choose one of them"),
    ],
)
def test_options_that_make_no_sense_name_the_flag(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActingOptions(**options)
    with pytest.raises(ValueError, match="--prefetch_steps is 8; choose 0 to 7"):
        ActingOptions(prefetch_steps=8).execution(8)


def test_a_delay_that_stops_the_robot_for_good_is_refused() -> None:
    """Every episode failed, and nothing said why: the executor gives up a robot that has held for 5 s."""
    assert EvaluationFlags(pretrained_checkpoint="p", delay_steps="50").acting(10.0).delays == (50,)
    assert len(commands(120, delays=(50,))[2]) > 1  # times at which it asked
    assert len(commands(120, delays=(51,))[2]) == 1
    with pytest.raises(ValueError, match=r"--delay_steps 51 has 51 steps, 5.1 s at 10 Hz; .* stopped for good.*choose at most 50"):
        EvaluationFlags(pretrained_checkpoint="p", delay_steps="51").acting(10.0)
    assert EvaluationFlags(pretrained_checkpoint="p", delay_steps="51").acting(20.0).delays == (51,)


def test_delays_are_a_number_or_what_was_measured(tmp_path: Path) -> None:
    assert read_delays("4", 20) == (4,)
    milliseconds = tmp_path / "delays.json"
    milliseconds.write_text(json.dumps([50, 50.1, 120]))
    assert read_delays(str(milliseconds), 20) == (1, 2, 3)
    with h5py.File(tmp_path / "rollout_001.hdf5", "w") as file:
        file["rollout/chunk"] = np.array([0, 1, 1, 1, 2, 2], np.int32)
        file["rollout/delay_s"] = np.array([np.nan, 0.1, 0.1, 0.1, 0.2, 0.2], np.float32)
    assert read_delays(str(tmp_path / "rollout_001.hdf5"), 10) == (1, 2)  # float32(0.1) is no eleventh of a step more
    damaged = {
        "cut": ([1, 1, 2], [0.1], r"chunks \[3\] and delays \[1\]"),
        "flat": (1, 0.1, r"chunks \[\] and delays \[\]"),
        "words": (["a"], ["b"], "is no recording of a rollout"),
        "early": ([1, 2], [0.1, -0.2], "holds a delay of -0.2 s"),
        "simulated": ([0, 1, 2], [np.nan, 0.0, 0.0], "is of a simulation that waited for its policy"),  # it passed for no latency at all
    }
    for name, (chunks, delays, message) in damaged.items():
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            file["rollout/chunk"], file["rollout/delay_s"] = chunks, delays
        with pytest.raises(ValueError, match=rf"{name}\.hdf5.* {message}"):
            read_delays(str(tmp_path / f"{name}.hdf5"), 10)
    for text, message in (("two", "no number of steps"), ("-1", "no number of steps")):
        with pytest.raises(ValueError, match=message):
            read_delays(text, 10)
    for content, message in (
        *(("{}", "holds no list"), ("[-3]", "holds -3"), ("[]", "no measured delay"), ("[", "cannot be read")),
        *(("[" * 100_000, "cannot be read"), (f"[1{'0' * 400}]", "finite and not negative"), ("[NaN]", "holds nan")),
    ):
        milliseconds.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_delays(str(milliseconds), 10)


def result(success: bool, num_steps: int, **more) -> EpisodeResult:
    return EpisodeResult("none", "left", 0, 5, "go", success, num_steps, 1, 1.0, 1.0, **more)


def test_time_to_success_counts_failures_up_to_their_limit() -> None:
    timing = Timing.of([result(True, 5), result(True, 10, num_held_steps=5), result(False, 20, seam_changes=(0.5,), inner_changes=(0.1,))])
    assert timing.mean_steps == pytest.approx(35 / 3)
    assert dict(timing.curve)[4] == 0.0
    assert dict(timing.curve)[5] == pytest.approx(1 / 3)
    assert dict(timing.curve)[20] == pytest.approx(2 / 3)
    assert timing.held_share == pytest.approx(5 / 35)
    assert (timing.seam_p99, timing.inner_p99) == (0.5, 0.1)
    assert "held 14.3 %" in timing.line()


def test_times_are_compared_with_failures_as_the_latest() -> None:
    fast, slow = [5.0] * 30, [9.0] * 30
    assert ks_test(fast, slow)[0] == 1.0
    assert ks_test(fast, slow)[1] < 1e-6
    assert ks_test(fast, fast) == (0.0, 1.0)
    assert ks_test([80.0], [54.0]) == (1.0, 1.0), "one pair shows nothing"
    assert ks_test([1.0, 2.0], [3.0, np.inf])[1] == pytest.approx(1 / 3)  # of 6 orders 2 are so far apart
    assert ks_test([5.0] * 20 + [np.inf] * 10, fast)[0] == pytest.approx(1 / 3)


def test_a_policy_under_delay_needs_longer(tmp_path: Path) -> None:
    """The toy of the other tests, without processes."""

    def play(**options) -> tuple[bool, int]:
        environment, policy = ToySimulator().make_environment("left"), ToyPolicy()
        environment.reset(SPEC)
        ask = lambda observation: policy.predict([observation], [0])[0].actions  # noqa: E731
        actor = SteppedActor(ActingOptions(**options), environment.platform, environment.position(), SPEC, ask)
        for step in range(environment.max_steps):
            if environment.step(actor.tick(step, environment.observe).action):
                return True, step + 1
        return False, environment.max_steps

    now, late = play(), play(delays=(2,))
    assert now[0]
    assert late[0]
    assert late[1] >= now[1] + 2
