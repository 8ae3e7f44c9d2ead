"""Chunks -> commands, step by step, with a clock that the test turns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismatic.acting.execution import ChunkExecutor, ChunkRequest, Command, ExecutionOptions, Mode
from prismatic.acting.limits import ActionLimits

DT = 0.04


def ramp(start: float, length: int = 10, dim: int = 1) -> np.ndarray:
    """A chunk [length, dim] whose values tell where they come from."""
    return np.repeat(start + np.arange(length, dtype=np.float64)[:, None], dim, axis=1)


class Robot:
    """Turns the clock by one control step per command."""

    def __init__(self, executor: ChunkExecutor) -> None:
        self.executor, self.now, self.requests = executor, 0.0, []

    def ask(self) -> ChunkRequest | None:
        return self.executor.request() if self.executor.wants_chunk(self.now, self.now) else None

    def step(self, age: float = 0.0) -> Command:
        command = self.executor.next(self.now, self.now - age)
        self.now += DT
        return command

    def values(self, count: int) -> list[float]:
        commands = [self.step() for _ in range(count)]
        assert all(command.mode is Mode.ACT and command.action is not None for command in commands), commands
        return [float(command.action[0]) for command in commands]  # type: ignore[index]


def make(is_relative: tuple[bool, ...] = (False,), limits: ActionLimits | None = None, **options: object) -> Robot:
    executor = ChunkExecutor(ExecutionOptions(**{"num_open_loop_steps": 7, **options}), is_relative, limits)  # type: ignore[arg-type]
    executor.reset(np.zeros(len(is_relative)))
    return Robot(executor)


def test_without_prefetch_a_chunk_is_executed_and_then_the_robot_holds_until_the_next_one_starts_at_its_first_action() -> None:
    robot = make()
    robot.executor.receive(robot.ask(), ramp(0), robot.now)  # type: ignore[arg-type]
    assert robot.values(7) == [0, 1, 2, 3, 4, 5, 6]
    request = robot.ask()
    assert request is not None
    assert robot.ask() is None  # one at a time
    held = [robot.step() for _ in range(3)]
    assert {(command.mode, float(command.action[0])) for command in held} == {(Mode.HOLD, 6.0)}  # type: ignore[index]
    robot.executor.receive(request, ramp(100), robot.now)
    assert robot.values(2) == [100, 101]
    assert robot.executor.counts.dropped_actions == 0
    assert robot.executor.counts.held == {"waiting for the server": 3}


def test_prefetched_chunk_drops_the_actions_that_lie_in_the_past() -> None:
    robot = make(prefetch_steps=3)
    robot.executor.receive(robot.ask(), ramp(0), robot.now)  # type: ignore[arg-type]
    assert robot.ask() is None
    assert robot.values(4) == [0, 1, 2, 3]
    request = robot.ask()  # 3 of 7 actions are left
    assert request is not None
    assert request.step == 4
    assert robot.values(2) == [4, 5]
    robot.executor.receive(request, ramp(104), robot.now)
    assert robot.values(5) == [106, 107, 108, 109, 110]
    assert robot.executor.counts.dropped_actions == 2
    assert (robot.ask() is not None, robot.executor.step) == (True, 11)  # 7 steps after the request before, whatever the latency


@pytest.mark.parametrize("latency_steps", [0, 1, 2, 3])
def test_every_query_is_followed_by_the_open_loop_length_whatever_the_latency(latency_steps: int) -> None:
    robot, asked_at, waiting = make(prefetch_steps=3), [], []
    for _ in range(60):
        if request := robot.ask():
            asked_at.append(request.step)
            waiting.append((robot.executor.step + latency_steps if asked_at[1:] else 0, request))
        if waiting and robot.executor.step >= waiting[0][0]:
            request = waiting.pop(0)[1]
            robot.executor.receive(request, ramp(request.step), robot.now)
        command = robot.step()
        assert (command.mode, float(command.action[0])) == (Mode.ACT, robot.executor.step - 1)  # type: ignore[index]
    assert np.diff(asked_at).tolist() == [4] + [7] * (len(asked_at) - 2)


def test_a_late_prefetched_chunk_goes_on_where_the_robot_waited() -> None:
    robot = make(prefetch_steps=2)
    robot.executor.receive(robot.ask(), ramp(0), robot.now)  # type: ignore[arg-type]
    robot.values(5)
    request = robot.ask()
    robot.values(2)
    assert [robot.step().mode for _ in range(4)] == [Mode.HOLD] * 4
    robot.executor.receive(request, ramp(105), robot.now)  # type: ignore[arg-type]
    assert robot.values(1) == [107]


def test_blending_passes_from_the_old_chunk_to_the_new_one() -> None:
    robot = make(prefetch_steps=3, num_blend_steps=3)
    robot.executor.receive(robot.ask(), np.zeros((10, 1)), robot.now)  # type: ignore[arg-type]
    robot.values(4)
    robot.executor.receive(robot.ask(), np.full((10, 1), 8.0), robot.now)  # type: ignore[arg-type]
    assert robot.values(5) == [2, 4, 6, 8, 8]


def test_blending_stops_where_the_old_chunk_ends() -> None:
    robot = make(num_open_loop_steps=10, prefetch_steps=2, num_blend_steps=3)
    robot.executor.receive(robot.ask(), np.zeros((10, 1)), robot.now)  # type: ignore[arg-type]
    robot.values(8)
    robot.executor.receive(robot.ask(), np.full((10, 1), 8.0), robot.now)  # type: ignore[arg-type]
    assert robot.values(3) == [2, 4, 8]


def test_temporal_ensembling_weighs_predictions_as_act_does() -> None:
    decay = 0.5
    robot = make(num_open_loop_steps=2, ensemble_decay=decay)
    for start in (0, 100, 1000):
        robot.executor.receive(robot.ask(), ramp(start), robot.now)  # type: ignore[arg-type]
        last = robot.values(2)
    weights = np.exp(-decay * np.arange(3))  # the oldest counts most
    predictions = np.array([[4.0, 102.0, 1000.0], [5.0, 103.0, 1001.0]])
    np.testing.assert_allclose(last, predictions @ weights / weights.sum())


def test_a_slow_server_makes_the_robot_hold_and_then_stop() -> None:
    robot = make(is_relative=(False, True), stop_after_s=1.0)
    robot.executor.receive(robot.ask(), ramp(3, dim=2), robot.now)  # type: ignore[arg-type]
    robot.values(7)
    request = robot.ask()
    commands = [robot.step() for _ in range(40)]
    modes = [command.mode for command in commands]
    assert modes.index(Mode.STOP) == 25  # 1 s at 25 Hz
    assert set(modes[:25]) == {Mode.HOLD}
    assert set(modes[25:]) == {Mode.STOP}
    assert all(command.action.tolist() == [9.0, 0.0] for command in commands)  # type: ignore[union-attr]  # target repeated, motion 0
    assert "waiting for the server for 1.0 s" in commands[-1].reason
    robot.executor.receive(request, ramp(9, dim=2), robot.now)  # type: ignore[arg-type]
    assert robot.step().mode is Mode.STOP  # for good
    assert robot.ask() is None
    robot.executor.reset(np.zeros(2))
    robot.executor.receive(robot.ask(), ramp(1, dim=2), robot.now)  # type: ignore[arg-type]
    assert robot.step().mode is Mode.ACT


def test_stale_observations_hold_the_robot_and_ask_nothing() -> None:
    robot = make(max_observation_age_s=0.1)
    robot.executor.receive(robot.ask(), ramp(0), robot.now)  # type: ignore[arg-type]
    assert robot.step(age=0.09).mode is Mode.ACT
    assert robot.step(age=0.2) == Command(Mode.HOLD, pytest.approx(np.array([0.0])), "stale observation")
    assert robot.values(1) == [1]
    robot.values(5)
    assert not robot.executor.wants_chunk(robot.now, robot.now - 0.2)
    assert robot.executor.wants_chunk(robot.now, robot.now)


def test_failed_requests_are_repeated_after_their_back_off() -> None:
    robot = make()
    request = robot.ask()
    robot.executor.fail(request, robot.now + 0.1)  # type: ignore[arg-type]
    assert robot.ask() is None
    robot.now += 0.1
    again = robot.ask()
    assert again is not None
    robot.executor.receive(request, ramp(50), robot.now)  # type: ignore[arg-type]  # an answer that was given up
    assert robot.step().mode is Mode.HOLD
    robot.executor.receive(again, ramp(0), robot.now)
    assert robot.values(1) == [0]
    assert robot.executor.counts.failed_requests == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_actions_that_are_not_finite_are_never_commanded(bad: float) -> None:
    robot = make()
    chunk = ramp(0)
    chunk[5] = bad
    robot.executor.receive(robot.ask(), chunk, robot.now)  # type: ignore[arg-type]
    command = robot.step()
    assert (command.mode, command.action.tolist()) == (Mode.HOLD, [0.0])  # type: ignore[union-attr]
    assert robot.executor.counts.not_finite_chunks == 1
    assert robot.ask() is not None
    with pytest.raises(ValueError, match="finite"):
        robot.executor.reset(np.array([np.nan]))


def test_without_a_known_position_nothing_is_sent_before_the_first_action() -> None:
    robot = make()
    robot.executor.reset(None)
    assert robot.step().action is None
    motions = ChunkExecutor(ExecutionOptions(1), (True, True))
    assert motions.next(0.0, 0.0).action.tolist() == [0.0, 0.0]  # type: ignore[union-attr]


def limits(mode: str) -> ActionLimits:
    return ActionLimits(np.array([-1.0, -2.0]), np.array([1.0, 2.0]), np.array([0.5, 0.5]), mode)


def test_limits_clip_and_count_each_dimension() -> None:
    robot = make(is_relative=(False, True), limits=limits("clip"))
    robot.executor.receive(robot.ask(), np.tile([3.0, -0.4], (10, 1)), robot.now)  # type: ignore[arg-type]
    commands = [robot.step().action.tolist() for _ in range(4)]  # type: ignore[union-attr]
    assert commands == [[0.5, -0.4], [1.0, -0.4], [1.0, -0.4], [1.0, -0.4]]
    assert robot.executor.counts.outside.tolist() == [4, 0]
    assert robot.executor.counts.too_fast.tolist() == [1, 0]


def test_refused_actions_hold_the_robot_and_stop_it_when_they_go_on() -> None:
    robot = make(is_relative=(False, True), limits=limits("refuse"), stop_after_s=0.2)
    chunk = np.tile([0.2, 0.6], (10, 1))  # the motion is too fast
    chunk[0] = [0.2, 0.1]
    robot.executor.receive(robot.ask(), chunk, robot.now)  # type: ignore[arg-type]
    modes = [robot.step() for _ in range(7)]
    assert modes[0].mode is Mode.ACT
    assert [command.action.tolist() for command in modes[1:]] == [[0.2, 0.0]] * 6  # type: ignore[union-attr]
    assert modes[-1].mode is Mode.STOP
    assert robot.executor.counts.too_fast.tolist() == [0, 6]


def test_pause_forgets_the_plan_and_does_not_stop() -> None:
    robot = make(stop_after_s=0.2)
    robot.executor.receive(robot.ask(), ramp(0), robot.now)  # type: ignore[arg-type]
    robot.values(3)
    for _ in range(20):
        assert robot.executor.pause().action.tolist() == [2.0]  # type: ignore[union-attr]
        robot.now += DT
    assert robot.step().mode is Mode.HOLD
    robot.executor.receive(robot.ask(), ramp(20), robot.now)  # type: ignore[arg-type]
    assert robot.values(1) == [20]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_open_loop_steps": 0}, "num_open_loop_steps is 0"),
        ({"prefetch_steps": 7}, "choose 0 to 6"),
        ({"num_blend_steps": -1}, "num_blend_steps is -1"),
        ({"num_blend_steps": 2, "ensemble_decay": 0.1}, "choose one"),
        ({"stop_after_s": 0}, "stop_after_s is 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_chunks_that_do_not_fit_are_errors() -> None:
    robot = make()
    request = robot.ask()
    assert request is not None
    with pytest.raises(ValueError, match=r"found shape \[10, 2\]"):
        robot.executor.receive(request, ramp(0, dim=2), 0.0)
    with pytest.raises(ValueError, match="predicts 5 actions a query"):
        robot.executor.receive(request, ramp(0, 5), 0.0)
    with pytest.raises(ValueError, match="limits have 2 dimensions"):
        make(limits=limits("clip"))
    with pytest.raises(ValueError, match="low <= high"):
        ActionLimits(np.ones(1), np.zeros(1), np.ones(1))


events = st.lists(st.sampled_from(["step", "ask", "answer", "fail", "nan", "stale", "pause"]), max_size=80)
numbers = st.floats(-100, 100)


@settings(max_examples=60, deadline=None)
@given(events, st.lists(numbers, min_size=8, max_size=8), st.sampled_from([{}, {"ensemble_decay": 0.1}, {"num_blend_steps": 2}]))
def test_whatever_happens_commands_are_finite_and_within_the_limits(happened: list[str], values: list[float], options: dict) -> None:  # type: ignore[type-arg]
    robot = make(is_relative=(False, True), limits=limits("clip"), num_open_loop_steps=3, prefetch_steps=1, **options)
    request, last = None, np.zeros(2)
    for event in happened:
        if event == "ask":
            request = robot.ask() or request
        elif event == "fail" and request is not None:
            robot.executor.fail(request, robot.now + 0.1)
        elif event in ("answer", "nan") and request is not None:
            chunk = np.reshape(values, (4, 2)).copy()
            chunk[2, 1] = np.nan if event == "nan" else chunk[2, 1]
            robot.executor.receive(request, chunk, robot.now)
        elif event in ("step", "stale", "pause"):
            command = robot.executor.pause() if event == "pause" else robot.step(age=1.0 if event == "stale" else 0.0)
            assert command.action is not None
            assert np.isfinite(command.action).all()
            assert (np.abs(command.action) <= [1.0, 0.5]).all()
            assert abs(command.action[0] - last[0]) <= 0.5 + 1e-12
            assert command.mode is Mode.ACT or command.action.tolist() == [last[0], 0.0]
            last = command.action
