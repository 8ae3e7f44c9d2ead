"""Chunks -> commands, step by step, with a clock that the test turns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismatic.acting.execution import ChunkExecutor, ChunkRequest, Command, ExecutionOptions
from prismatic.acting.limits import WALKING, ActionLimits
from prismatic.acting.robot import Sensed
from prismatic.acting.states import TRANSITIONS, Event, State
from prismatic.vla.constants import ActionKind

DT = 0.04
TARGET, MOTION, VELOCITY = ActionKind


def ramp(start: float, length: int = 10, dim: int = 1) -> np.ndarray:
    """A chunk [length, dim] whose values tell where they come from."""
    return np.repeat(start + np.arange(length, dtype=np.float64)[:, None], dim, axis=1)


def wide(kinds: tuple[ActionKind, ...], **bounds: Any) -> ActionLimits:
    """Limits that change nothing but what `bounds` say, one number or one per dimension."""
    dim = len(kinds)
    values = {"low": -1e9, "high": 1e9, "max_speed": 1e9, "max_acceleration": np.inf, "max_gap": np.inf} | bounds
    mode = values.pop("mode", "clip")
    return ActionLimits(
        kinds=kinds, mode=mode, **{name: np.broadcast_to(np.asarray(value, np.float64), (dim,)) for name, value in values.items()}
    )


class Arm:
    """A robot that stands where it is told to; every command turns the clock by one control step."""

    def __init__(self, executor: ChunkExecutor, start: float | np.ndarray = 0.0) -> None:
        self.executor, self.now = executor, 100.0
        self.is_target = executor._is_target
        self.position = np.broadcast_to(np.float64(start), self.is_target.shape).copy()
        self.follows = True  # False: something is in its way
        executor.reset(self.sensed(), self.now)

    def sensed(self, age: float = 0.0) -> Sensed:
        return Sensed(self.position.copy(), self.now - age)

    def ask(self) -> ChunkRequest | None:
        return self.executor.request() if self.executor.wants_chunk(self.now, self.sensed()) else None

    def answer(self, chunk: np.ndarray) -> None:
        request = self.ask()
        assert request is not None
        self.executor.receive(request, chunk, self.now)

    def step(self, age: float = 0.0, **what: Any) -> Command:
        command = self.executor.next(self.now, self.sensed(age), **what)
        if self.follows:
            self.position = np.where(self.is_target, command.action, self.position)
        self.now += DT
        return command

    def steps(self, count: int) -> list[Command]:
        return [self.step() for _ in range(count)]

    def values(self, count: int) -> list[float]:
        commands = self.steps(count)
        assert all(command.state is State.ACTING for command in commands), commands
        return [float(command.action[0]) for command in commands]


def make(kinds: tuple[ActionKind, ...] = (TARGET,), limits: ActionLimits | None = None, start: Any = 0.0, **options: Any) -> Arm:
    executor = ChunkExecutor(ExecutionOptions(**{"num_open_loop_steps": 7, **options}), limits or wide(kinds), 1 / DT)
    return Arm(executor, start)


def test_without_prefetch_a_chunk_is_executed_and_then_the_robot_holds_until_the_next_one_starts_at_its_first_action() -> None:
    robot = make()
    robot.answer(ramp(0))
    assert robot.values(7) == [0, 1, 2, 3, 4, 5, 6]
    request = robot.ask()
    assert request is not None
    assert robot.ask() is None  # one at a time
    held = [robot.step() for _ in range(3)]
    assert {(command.state, float(command.action[0])) for command in held} == {(State.HOLDING, 6.0)}
    robot.executor.receive(request, ramp(100), robot.now)
    assert robot.values(2) == [100, 101]
    assert robot.executor.counts.dropped_actions == 0
    assert robot.executor.counts.held == {"waiting for the server": 3}


def test_prefetched_chunk_drops_the_actions_that_lie_in_the_past() -> None:
    robot = make(prefetch_steps=3)
    robot.answer(ramp(0))
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
        assert (command.state, float(command.action[0])) == (State.ACTING, robot.executor.step - 1)
    assert np.diff(asked_at).tolist() == [4] + [7] * (len(asked_at) - 2)


def test_a_late_prefetched_chunk_goes_on_where_the_robot_waited() -> None:
    robot = make(prefetch_steps=2)
    robot.answer(ramp(0))
    robot.values(5)
    request = robot.ask()
    robot.values(2)
    assert [robot.step().state for _ in range(4)] == [State.HOLDING] * 4
    robot.executor.receive(request, ramp(105), robot.now)
    assert robot.values(1) == [107]


def test_blending_passes_from_the_old_chunk_to_the_new_one() -> None:
    robot = make(prefetch_steps=3, num_blend_steps=3)
    robot.answer(np.zeros((10, 1)))
    robot.values(4)
    robot.answer(np.full((10, 1), 8.0))
    assert robot.values(5) == [2, 4, 6, 8, 8]


def test_blending_stops_where_the_old_chunk_ends() -> None:
    robot = make(num_open_loop_steps=10, prefetch_steps=2, num_blend_steps=3)
    robot.answer(np.zeros((10, 1)))
    robot.values(8)
    robot.answer(np.full((10, 1), 8.0))
    assert robot.values(3) == [2, 4, 8]


def test_temporal_ensembling_weighs_predictions_as_act_does() -> None:
    decay = 0.5
    robot = make(num_open_loop_steps=2, ensemble_decay=decay)
    for start in (0, 100, 1000):
        robot.answer(ramp(start))
        last = robot.values(2)
    weights = np.exp(-decay * np.arange(3))  # the oldest counts most
    predictions = np.array([[4.0, 102.0, 1000.0], [5.0, 103.0, 1001.0]])
    np.testing.assert_allclose(last, predictions @ weights / weights.sum())


@pytest.mark.parametrize(("decay", "expected"), [(-0.5, None), (-1000.0, 1000.0), (1000.0, 4.0)])
def test_ensembling_of_any_decay_weighs_with_numbers(decay: float, expected: float | None) -> None:
    """With a large negative one, by which the newest counts alone, the robot held for good."""
    robot = make(num_open_loop_steps=2, ensemble_decay=decay)
    for start in (0, 100, 1000):
        robot.answer(ramp(start))
        last = robot.values(2)
    weights = np.exp(0.5 * np.arange(3))  # the newest counts most
    mean = float(np.array([4.0, 102.0, 1000.0]) @ weights / weights.sum())
    assert last[0] == pytest.approx(mean if expected is None else expected)


def test_a_slow_server_makes_the_robot_hold_and_then_stop() -> None:
    robot = make(kinds=(TARGET, MOTION), stop_after_s=1.0)
    robot.answer(ramp(3, dim=2))
    robot.values(7)
    request = robot.ask()
    commands = [robot.step() for _ in range(40)]
    modes = [command.state for command in commands]
    assert modes.index(State.STOPPED) == 25  # 1 s at 25 Hz
    assert set(modes[:25]) == {State.HOLDING}
    assert set(modes[25:]) == {State.STOPPED}
    assert all(command.action.tolist() == [9.0, 0.0] for command in commands)  # target repeated, motion 0
    assert "waiting for the server for 1.0 s" in commands[-1].reason
    robot.executor.receive(request, ramp(9, dim=2), robot.now)
    assert robot.step().state is State.STOPPED  # for good
    assert robot.ask() is None
    robot.executor.reset(robot.sensed(), robot.now)
    robot.answer(ramp(1, dim=2))
    assert robot.step().state is State.ACTING


@pytest.mark.parametrize(("held_s", "goes_on"), [(0.3, True), (1.0, False)])
def test_a_plan_is_not_continued_after_a_hold_in_which_the_scene_may_have_changed(held_s: float, goes_on: bool) -> None:
    robot = Arm(ChunkExecutor(ExecutionOptions(num_open_loop_steps=8), wide((TARGET,)), 25))
    robot.answer(ramp(1))
    assert robot.values(2) == [1, 2]
    for _ in range(round(held_s / DT)):
        assert robot.step(trouble="camera").state is State.HOLDING
    command = robot.step()
    assert (command.state, float(command.action[0])) == ((State.ACTING, 3.0) if goes_on else (State.HOLDING, 2.0))
    if goes_on:
        return
    assert command.reason == "waiting for the server"
    robot.answer(ramp(2.5))  # to what it sees now
    assert robot.values(2) == [2.5, 3.5]


def test_a_chunk_that_was_asked_for_before_a_long_hold_is_not_begun_after_it() -> None:
    robot = Arm(ChunkExecutor(ExecutionOptions(num_open_loop_steps=8, prefetch_steps=4), wide((TARGET,)), 25))
    robot.answer(ramp(1))
    robot.values(4)
    request = robot.ask()
    assert request is not None
    for step in range(25):
        if step == 20:
            robot.executor.receive(request, ramp(5), robot.now)
        assert robot.step(trouble="camera").state is State.HOLDING
    assert robot.step().reason == "waiting for the server"


def test_stale_observations_hold_the_robot_and_ask_nothing() -> None:
    robot = make(max_observation_age_s=0.1)
    robot.answer(ramp(0))
    assert robot.step(age=0.09).state is State.ACTING
    assert robot.step(age=0.2) == Command(State.HOLDING, pytest.approx(np.array([0.0])), "stale observation")
    assert robot.values(1) == [1]
    robot.values(5)
    assert not robot.executor.wants_chunk(robot.now, robot.sensed(age=0.2))
    assert robot.executor.wants_chunk(robot.now, robot.sensed())


def test_failed_requests_are_repeated_after_their_back_off() -> None:
    robot = make()
    request = robot.ask()
    robot.executor.fail(request, robot.now + 0.1)  # type: ignore[arg-type]
    assert robot.ask() is None
    robot.now += 0.1
    again = robot.ask()
    assert again is not None
    robot.executor.receive(request, ramp(50), robot.now)  # type: ignore[arg-type]  # an answer that was given up
    assert robot.step().state is State.HOLDING
    robot.executor.receive(again, ramp(0), robot.now)
    assert robot.values(1) == [0]
    assert robot.executor.counts.failed_requests == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_actions_that_are_not_finite_are_never_commanded(bad: float) -> None:
    robot = make()
    chunk = ramp(0)
    chunk[5] = bad
    robot.answer(chunk)
    command = robot.step()
    assert (command.state, command.action.tolist()) == (State.HOLDING, [0.0])
    assert robot.executor.counts.not_finite_chunks == 1
    assert robot.ask() is not None


def test_a_rollout_begins_only_where_the_robot_is_known_to_stand() -> None:
    executor = ChunkExecutor(ExecutionOptions(1, max_observation_age_s=0.5), wide((TARGET, MOTION)), 25, ("elbow [rad]", "dx"))
    with pytest.raises(ValueError, match="no rollout has begun"):
        executor.next(0.0, Sensed(np.zeros(2), 0.0))
    for position, time, message in (
        (np.zeros(3), 9.9, r"must be 2 numbers, one for each action .any number for a velocity., found 3"),
        (np.array([np.nan, 0.0]), 9.9, r"position of elbow \[rad\] is not finite"),
        (np.zeros(2), 9.0, "stale observation"),
        (np.zeros(2), np.nan, "stale observation"),
        (np.zeros(2), 11.0, "from the future"),
    ):
        with pytest.raises(ValueError, match=message):
            executor.reset(Sensed(position, time), 10.0)
    executor.reset(Sensed(np.array([0.3, np.nan]), 9.9), 10.0)  # a motion has no position
    assert executor.next(10.0, Sensed(np.array([0.3, np.nan]), 9.9)).action.tolist() == [0.3, 0.0]


def limits(mode: str) -> ActionLimits:
    return wide((TARGET, MOTION), low=[-1.0, -2.0], high=[1.0, 2.0], max_speed=0.5 / DT, mode=mode)


def test_limits_clip_and_count_each_dimension() -> None:
    robot = make(kinds=(TARGET, MOTION), limits=limits("clip"), start=[0.9, 0.0])
    robot.answer(np.tile([1.0, -0.4], (10, 1)))
    robot.step()
    robot.executor._plan.add(1, np.tile([-3.0, -0.4], (10, 1)), 1)
    commands = [robot.step().action.tolist() for _ in range(5)]
    np.testing.assert_allclose(commands, [[0.5, -0.4], [0.0, -0.4], [-0.5, -0.4], [-1.0, -0.4], [-1.0, -0.4]], atol=1e-12)
    assert robot.executor.counts.outside.tolist() == [5, 0]
    assert robot.executor.counts.too_fast.tolist() == [3, 0]


def test_refused_actions_hold_the_robot_and_stop_it_when_they_go_on() -> None:
    robot = make(kinds=(TARGET, MOTION), limits=limits("refuse"), stop_after_s=0.2)
    chunk = np.tile([0.1, 0.6], (10, 1))  # the motion is too fast
    chunk[0] = [0.1, 0.1]
    robot.answer(chunk)
    commands = robot.steps(7)
    assert commands[0].state is State.ACTING
    assert [command.action.tolist() for command in commands[1:]] == [[0.1, 0.0]] * 6
    assert commands[-1].state is State.STOPPED
    assert robot.executor.counts.too_fast.tolist() == [0, 6]


def test_the_first_target_is_walked_to_and_so_is_the_first_one_after_a_pause() -> None:
    robot = make(limits=wide((TARGET,), max_speed=1.0), num_open_loop_steps=4)
    reach = WALKING * 1.0 * DT
    for start in (0.0, 2.555):  # a policy that has never seen where the robot stands: 146 degrees away
        robot.answer(np.full((4, 1), start + 2.555))
        walked = []
        while (command := robot.step()).reason == "approaching the first target":
            walked.append(float(command.action[0]))
        np.testing.assert_allclose(np.diff([start, *walked]), reach, atol=1e-12)
        assert len(walked) == 255
        assert command.action.tolist() == [start + 2.555]
        assert robot.values(3) == [start + 2.555] * 3  # all four actions of the chunk are executed
        robot.executor.pause()
        robot.step()
        robot.executor.go_on()
    assert robot.executor.counts.approached == 2 * 255


def test_while_a_target_is_approached_motions_and_velocities_are_0() -> None:
    robot = make(kinds=(TARGET, MOTION, VELOCITY), limits=wide((TARGET, MOTION, VELOCITY), max_speed=1.0))
    robot.answer(np.tile([1.0, 0.01, 0.5], (10, 1)))
    assert robot.step().action.tolist() == [WALKING * DT, 0.0, 0.0]


def test_acceleration_bounds_speeding_up_alone() -> None:
    robot = make(kinds=(TARGET, VELOCITY), limits=wide((TARGET, VELOCITY), max_speed=10.0, max_acceleration=2.0), num_open_loop_steps=6)
    robot.executor._is_approaching = False
    robot.answer(np.array([[9.0, 9.0]] * 3 + [[0.0, 0.0]] * 3))
    actions = np.array([command.action for command in robot.steps(6)])
    grown = 2.0 * DT
    np.testing.assert_allclose(actions[:, 1], [grown, 2 * grown, 3 * grown, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(np.diff(actions[:3, 0], prepend=0) / DT, [grown, 2 * grown, 3 * grown], atol=1e-12)
    assert np.abs(np.diff(actions[2:, 0]) / DT).max() <= 3 * grown


def test_a_base_that_is_driven_by_velocities_stands_still_when_the_server_is_lost() -> None:
    robot = make(kinds=(TARGET, VELOCITY), stop_after_s=1.0)  # a mobile manipulator: elbow, and its base turning
    robot.answer(np.tile([0.4, 0.22], (10, 1)))
    assert [command.action.tolist() for command in robot.steps(7)] == [[0.4, 0.22]] * 7
    lost = robot.steps(40)
    assert {command.state for command in lost} == {State.HOLDING, State.STOPPED}
    assert {tuple(command.action) for command in lost} == {(0.4, 0.0)}
    assert robot.executor.neutral().tolist() == [0.4, 0.0]


def blocked(robot: Arm) -> Command:
    """The command at which it is noticed that the arm does not follow."""
    robot.answer(np.linspace(0, 1, 20)[:, None])
    robot.follows = False
    for _ in range(20):
        command = robot.step()
        if command.state is not State.ACTING:
            return command
    raise AssertionError("nothing was noticed")


def test_an_arm_that_does_not_follow_is_held_where_it_is_until_a_person_lets_it_go_on() -> None:
    robot = make(limits=wide((TARGET,), max_speed=2.0, max_gap=0.3), num_open_loop_steps=20, stop_after_s=3.0)
    command = blocked(robot)
    assert command.state is State.BLOCKED
    assert "dimension 0 is 0.316 from its target" in command.reason
    met = [float(command.action[0]) for command in robot.steps(10)]
    assert met[-1] == 0.0, "it is told to be where it is"
    robot.follows = True
    assert {command.state for command in robot.steps(5)} == {State.BLOCKED}  # also once it could move again
    robot.follows = False
    robot.position = robot.position + 0.5  # somebody moves the arm, or the emergency stop has let it sink
    sent = [0.0, *(float(command.action[0]) for command in robot.steps(20))]
    assert sent[-1] == 0.5, "letting go must not make it jump back"
    assert np.diff(sent).max() <= 2.0 * DT + 1e-9, "nor may a measurement make it jump"
    robot.follows = True
    robot.executor.go_on()
    assert robot.step().state is State.HOLDING
    robot.answer(np.full((20, 1), 0.5))
    assert robot.step().state is State.ACTING


def test_an_arm_that_stays_blocked_ends_the_rollout() -> None:
    robot = make(limits=wide((TARGET,), max_speed=2.0, max_gap=0.3), num_open_loop_steps=20, stop_after_s=1.0)
    blocked(robot)
    commands = robot.steps(30)
    assert commands[-1].state is State.STOPPED
    assert "dimension 0 is 0.316 from its target" in commands[-1].reason
    assert commands[-1].action.tolist() == [0.0]


def test_a_wrong_reading_is_worth_one_step_and_other_dimensions_keep_their_targets() -> None:
    robot = make(limits=wide((TARGET,) * 3, max_speed=1.0, max_gap=(0.3, 0.3, np.inf)), num_open_loop_steps=20)
    robot.answer(np.zeros((20, 3)))
    robot.steps(3)
    robot.follows, robot.position = False, np.array([-40.0, 0.0, 0.2])  # a driver that began anew; an object in the gripper
    command = robot.step()
    assert command.state is State.BLOCKED
    np.testing.assert_allclose(command.action, [-1.0 * DT, 0.0, 0.0], atol=1e-9)
    robot.position = np.array([0.0, 0.0, 0.2])
    np.testing.assert_allclose(robot.step().action, [0.0, 0.0, 0.0], atol=1e-9)
    assert robot.step().state is State.BLOCKED, "a person looks first"
    robot.position = np.array([0.4, -0.05, 0.2])  # a person leads one joint, another gives way a little under its load
    for _ in range(100):
        command = robot.step()
    np.testing.assert_allclose(command.action, [0.4, 0.0, 0.0], atol=1e-9)


def test_an_arm_that_takes_no_command_and_is_moved_meanwhile_does_not_jump_back_when_it_takes_one_again() -> None:
    """A driver behind an emergency stop refuses commands and goes on measuring; a camera may be missing, too."""
    robot = make(limits=wide((TARGET,), max_speed=2.0, max_gap=0.3), num_open_loop_steps=20, stop_after_s=9.0)
    robot.answer(np.zeros((20, 1)))
    robot.steps(3)
    robot.follows, robot.position = False, np.array([0.5])
    for _ in range(20):
        command = robot.step(trouble="the robot did not take a command")
    assert (command.state, command.action.tolist()) == (State.BLOCKED, [0.5])
    assert command.reason == "dimension 0 is 0.5 from its target: is something in the way, or is the emergency stop pressed?"


@pytest.mark.parametrize("is_paused", [True, False])
def test_an_arm_that_was_not_heard_of_for_long_is_taken_over_where_two_readings_find_it(is_paused: bool) -> None:
    robot = make(limits=wide((TARGET,) * 2, max_speed=2.0, max_gap=(0.4, np.inf)), num_open_loop_steps=20, stop_after_s=9.0)
    robot.answer(np.zeros((20, 2)))
    robot.steps(3)
    if is_paused:
        robot.executor.pause()
    robot.follows = False
    silent = [robot.step(age=9.0).is_due for _ in range(20)]
    assert silent == [True] * 12 + [False] * 8, "its power may come back at any moment, and what is sent then is what it does"
    robot.position = np.array([-40.0, 0.0])  # a driver that began anew says zeros, or anything, at first
    assert not robot.step().is_due
    robot.position = np.array([0.7, 0.2])
    command = robot.step()
    assert (command.is_due, command.action.tolist()) == (False, [0.0, 0.0]), "which of the two is right?"
    command = robot.step()
    assert (command.is_due, command.action.tolist()) == (True, [0.7, 0.0])
    assert command.state is (State.WAITING if is_paused else State.BLOCKED)
    assert robot.step().is_due


def test_two_readings_at_once_are_one() -> None:
    """The step after one that was late follows at once, and a driver that began anew says zeros for a while."""
    robot = make(limits=wide((TARGET,), max_speed=2.0, max_gap=0.4), num_open_loop_steps=20)
    robot.answer(np.zeros((20, 1)))
    robot.steps(3)
    robot.follows, robot.position, robot.now = False, np.array([-40.0]), robot.now + 9.0
    assert not robot.step().is_due
    robot.now -= DT - 0.001
    assert not robot.step().is_due
    robot.position = np.array([0.0])
    assert not robot.step().is_due
    assert robot.step().action.tolist() == [0.0]


def test_a_driver_that_uses_its_memory_again_does_not_confirm_a_wrong_reading() -> None:
    robot = make(limits=wide((TARGET,), max_speed=2.0, max_gap=0.4), num_open_loop_steps=20)
    robot.answer(np.zeros((20, 1)))
    robot.steps(3)
    robot.follows, robot.now, memory = False, robot.now + 9.0, np.zeros(1)
    are_due = []
    for reading in (-40.0, 0.0, 0.0):
        memory[:] = reading
        are_due.append(robot.executor.next(robot.now, Sensed(memory, robot.now)).is_due)
        robot.now += DT
    assert are_due == [False, False, True]


def test_an_arm_that_was_blocked_and_then_silent_is_blocked_where_it_is_found() -> None:
    """A person's c before it was heard of again was no sign about where it lies now."""
    robot = make(limits=wide((TARGET,), max_speed=2.0, max_gap=0.4), num_open_loop_steps=20, stop_after_s=90.0)
    robot.answer(np.zeros((20, 1)))
    robot.steps(3)
    robot.follows, robot.position = False, np.array([5.0])
    assert robot.step().state is State.BLOCKED
    for number in range(30):
        robot.step(age=9.0)
        if number == 25:
            robot.executor.go_on()
    robot.position = np.array([2.0])
    robot.step()
    command = robot.step()
    assert (command.state, command.action.tolist()) == (State.BLOCKED, [2.0])


def test_an_arm_that_stands_where_it_was_goes_on_after_a_long_silence() -> None:
    robot = make(limits=wide((TARGET,), max_speed=2.0, max_gap=0.4), num_open_loop_steps=20)
    robot.answer(np.zeros((20, 1)))
    robot.steps(3)
    for _ in range(20):
        robot.step(age=9.0)
    assert [command.state for command in robot.steps(3)] == [State.HOLDING] * 3
    robot.answer(np.zeros((20, 1)))
    assert robot.step().state is State.ACTING


def test_a_base_is_told_to_stand_still_whether_or_not_it_is_known_where_the_arm_on_it_is() -> None:
    robot = make(limits=wide((TARGET, VELOCITY)), num_open_loop_steps=20)
    robot.answer(np.tile([0.0, 0.5], (20, 1)))
    robot.steps(3)
    commands = [robot.step(age=9.0) for _ in range(20)]
    assert all(command.is_due and command.action.tolist() == [0.0, 0.0] for command in commands)


def test_what_was_planned_before_the_program_stood_still_is_not_done_after_it() -> None:
    """Ctrl-Z and fg, a driver that did not return for seconds: nobody held, and the scene is another one."""
    robot = make(limits=wide((VELOCITY,)), num_open_loop_steps=20)
    robot.answer(np.full((20, 1), 0.25))
    assert robot.values(2) == [0.25, 0.25]
    robot.now += 3600.0
    command = robot.step()
    assert (command.state, command.action.tolist()) == (State.HOLDING, [0.0])
    robot.answer(np.full((20, 1), 0.25))
    assert robot.values(1) == [0.25]


def test_a_chunk_that_was_asked_for_before_a_long_trouble_is_not_begun_after_it() -> None:
    robot = make(num_open_loop_steps=10, prefetch_steps=5, max_observation_age_s=0.2)
    robot.answer(ramp(0, 20))
    robot.steps(6)
    request = robot.ask()
    assert request is not None
    for _ in range(20):
        robot.step(trouble="no observation")
    robot.executor.receive(request, np.full((20, 1), 9.0), robot.now)
    assert robot.step().state is State.HOLDING
    assert robot.ask() is not None


@pytest.mark.parametrize("options", [{"ensemble_decay": 0.01}, {"num_blend_steps": 3}])
def test_predictions_of_before_a_long_wait_are_not_mixed_into_what_comes_after_it(options: dict[str, Any]) -> None:
    robot = make(num_open_loop_steps=4, max_observation_age_s=0.2, **options)
    robot.answer(np.zeros((20, 1)))
    robot.values(4)
    request = robot.ask()
    assert request is not None
    robot.steps(20)
    robot.executor.receive(request, np.ones((20, 1)), robot.now)
    assert robot.values(3)[-1] == 1.0


def test_one_reading_that_is_no_number_holds_the_robot_and_does_no_more() -> None:
    robot = make()
    robot.answer(ramp(0))
    robot.values(2)
    known, robot.position = robot.position, np.array([np.nan])
    robot.follows = False
    command = robot.step()
    assert (command.state, command.action.tolist()) == (State.HOLDING, [1.0])
    assert "position of dimension 0 is not finite" in command.reason
    assert robot.ask() is None
    robot.position, robot.follows = known, True
    assert robot.values(2) == [2, 3]


def test_pause_forgets_the_plan_and_does_not_stop() -> None:
    robot = make(stop_after_s=0.2)
    robot.answer(ramp(0))
    robot.values(3)
    robot.executor.pause()
    assert {(command.state, float(command.action[0]), command.reason) for command in robot.steps(20)} == {(State.WAITING, 2.0, "paused")}
    assert robot.ask() is None
    robot.executor.go_on()
    assert robot.step().state is State.HOLDING
    robot.answer(ramp(20))
    assert robot.values(1) == [20]


def test_a_person_takes_over_smoothly_and_hands_back() -> None:
    robot = make(limits=wide((TARGET,), low=-1.0, high=1.0, max_speed=1.0), num_open_loop_steps=20)
    robot.answer(np.zeros((20, 1)))
    robot.values(2)
    robot.executor.take_over()
    leader = np.array([0.02])  # the leader arm stands elsewhere
    first = robot.step(person=leader)
    assert (first.state, first.action.tolist()) == (State.INTERVENTION, [WALKING * DT])
    robot.step(person=leader)
    robot.executor._is_approaching = False
    assert robot.step(person=np.array([9.0])).action[0] <= 0.02 + DT + 1e-12  # within the limits, too
    assert robot.step().reason == "a person is to command, and no command comes"  # held
    assert robot.step(person=np.array([np.nan])).action.tolist() == robot.position.tolist()
    assert robot.step(age=1.0, person=leader).action.tolist() == robot.position.tolist()  # nothing moves on old data
    robot.executor.hand_back()
    assert robot.step().state is State.HOLDING
    assert robot.ask() is not None


def test_every_transition_is_in_the_table() -> None:
    assert set(TRANSITIONS) == {(state, event) for state in State for event in Event}
    following = {State.ACTING, State.HOLDING}
    for (before, event), after in TRANSITIONS.items():
        if event is Event.RESET:
            assert after is State.HOLDING
        elif before is State.STOPPED:
            assert after is State.STOPPED, "nothing but a new rollout ends a stop"
        elif after is State.ACTING:
            assert before in following, "from elsewhere the policy acts only after a hold and a new observation"
            assert event is Event.ACTION or before is after
        elif after is State.INTERVENTION:
            assert before is after or event is Event.TAKE_OVER
    assert all(TRANSITIONS[state, Event.TROUBLE] is not State.ACTING for state in State)
    assert all(TRANSITIONS[state, Event.BLOCKED] not in following for state in State)
    assert TRANSITIONS[State.WAITING, Event.TOO_LONG] is State.WAITING


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", [Event.PAUSE, Event.CONTINUE, Event.TAKE_OVER, Event.HAND_BACK, Event.RESET])
def test_the_executor_obeys_the_table(state: State, event: Event) -> None:
    robot = make()
    robot.answer(ramp(0))
    robot.values(1)
    robot.executor.state = state
    act = {
        Event.PAUSE: robot.executor.pause,
        Event.CONTINUE: robot.executor.go_on,
        Event.TAKE_OVER: robot.executor.take_over,
        Event.HAND_BACK: robot.executor.hand_back,
        Event.RESET: lambda: robot.executor.reset(robot.sensed(), robot.now),
    }[event]
    act()
    assert robot.executor.state is TRANSITIONS[state, event]
    stays = {state, robot.executor.state} <= {State.ACTING, State.HOLDING} and event is not Event.RESET
    if stays:
        assert robot.step().state is State.ACTING  # the plan goes on
    else:
        assert robot.step().state is not State.ACTING  # the plan was forgotten


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_open_loop_steps": 0}, "num_open_loop_steps is 0"),
        ({"prefetch_steps": 7}, "choose 0 to 6"),
        ({"num_blend_steps": -1}, "num_blend_steps is -1"),
        ({"num_blend_steps": 2, "ensemble_decay": 0.1}, "choose one"),
        ({"stop_after_s": 0}, "stop_after_s is 0"),
        ({"ensemble_decay": np.inf}, "ensemble_decay is inf, must be a finite number"),
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
    with pytest.raises(ValueError, match="limits have 2 dimensions, the robot's actions have 1"):
        ChunkExecutor(ExecutionOptions(1), limits("clip"), 25, ("elbow",))


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"low": 1.0, "high": 0.0}, "low <= high"),
        ({"max_speed": -1.0}, "not below 0"),
        ({"max_gap": np.nan}, "found NaN"),
        ({"low": [-1.0, 0.1]}, "must allow 0"),
        ({"mode": "ignore"}, "limit mode is 'ignore'"),
    ],
)
def test_limits_that_are_none_are_named(bounds: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wide((TARGET, VELOCITY), **bounds)


KINDS = (TARGET, MOTION, VELOCITY)
BOUNDS = wide(
    KINDS, low=[-1.0, -0.02, -0.5], high=[1.0, 0.02, 0.5], max_speed=[1.0, 0.5, 0.5], max_acceleration=[20.0, np.inf, 5.0], max_gap=0.4
)
EVENTS = ("nothing", "nothing", "nothing", "pause", "go_on", "go_on", "take_over", "hand_back", "reset", "no camera")
targets = st.one_of(st.floats(-1.2, 1.2), st.sampled_from([0.0, 0.9, -0.9, 1e9, np.nan, np.inf]))


class Stretch(NamedTuple):
    """Some control steps under the same conditions; the event happens at the first of them."""

    event: str
    length: int
    delay: int  # steps until an answer comes; 99: it never does
    value: float  # of the actions in it
    arm: str  # how the arm does what it is told
    age: float  # of measurements, also from the future
    wait: float  # until the next step: a computer that stalls, or a clock that jumps


stretches = st.builds(
    Stretch,
    event=st.sampled_from(EVENTS),
    length=st.integers(1, 25),
    delay=st.sampled_from([0, 1, 3, 6, 99]),
    value=targets,
    arm=st.sampled_from(["follows", "follows", "follows", "stuck", "pushed", "nan", "misread"]),
    age=st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.3, 0.6, -5.0, 1e6]),
    wait=st.sampled_from([DT, DT, DT, DT, 0.0, 0.5, 30.0]),
)


class World:
    """An arm under an executor, and everything that can go wrong; the assertions are what a person beside the arm relies on."""

    def __init__(self, options: dict[str, Any], mode: str) -> None:
        self.bounds = replace(BOUNDS, mode=mode)
        self.executor = ChunkExecutor(ExecutionOptions(4, prefetch_steps=2, stop_after_s=2.0, **options), self.bounds, 1 / DT)
        self.now, self.tick, self.position, self.last = 50.0, 0, np.zeros(3), np.zeros(3)
        self.pending: list[tuple[int, float, ChunkRequest]] = []  # tick of the answer, value, request
        self.forgotten: set[int] = set()  # numbers of requests that were sent before a reset, a pause, a stop, ...
        self.num_acted = 0
        self.known_at = self.now  # when it was known where the arm stands
        self.before: Sensed | None = None  # a sound measurement that must be confirmed
        self.executor.reset(Sensed(self.position, self.now), self.now)

    def forget(self) -> None:
        self.forgotten |= {request.number for _, _, request in self.pending}

    def happen(self, event: str, sensed: Sensed) -> None:
        if event == "reset":
            try:
                self.executor.reset(sensed, self.now)
            except ValueError:
                assert self.executor.find_trouble(sensed, self.now)
            else:
                self.last = np.where(self.bounds.is_target, sensed.position, 0.0)
                self.known_at, self.before = self.now, None
                self.forget()
        elif event in ("pause", "go_on", "take_over", "hand_back"):
            getattr(self.executor, event)()
        if self.executor.state not in (State.ACTING, State.HOLDING):
            self.forget()

    def converse(self, stretch: Stretch, sensed: Sensed) -> None:
        """Requests go out and answers come in, also those of a rollout that is over."""
        if self.executor.wants_chunk(self.now, sensed):
            self.pending.append((self.tick + stretch.delay, stretch.value, self.executor.request()))
        for item in [item for item in self.pending if item[0] <= self.tick]:
            self.pending.remove(item)
            before = self.executor.counts.chunks
            self.executor.receive(item[2], np.tile([item[1], 0.01, 0.3], (5, 1)), self.now)
            assert self.executor.counts.chunks == before or item[2].number not in self.forgotten, "an action of a forgotten rollout"

    def step(self, stretch: Stretch, event: str) -> None:
        wrong = {"nan": np.nan, "misread": -3.0}
        position = np.array([wrong[stretch.arm], 0, 0]) if stretch.arm in wrong and self.tick % 3 == 0 else self.position
        sensed = Sensed(position, self.now - stretch.age)
        self.happen(event, sensed)
        self.converse(stretch, sensed)
        trouble = "no observation" if event == "no camera" else ""
        person = np.full(3, stretch.value) if self.executor.state is State.INTERVENTION else None
        command = self.executor.next(self.now, sensed, person, trouble)
        if command.state not in (State.ACTING, State.HOLDING):
            self.forget()
        is_known, is_found = self.look(sensed)
        if is_found and abs(position[0] - self.last[0]) > 0.1:  # where it lies now, as at the start of a rollout
            self.last = np.where(self.bounds.is_target, position, self.last)
        self.judge(command, position, is_known, may_move=is_known and not trouble)
        self.position = {"follows": command.action, "pushed": self.position + np.array([0.05, 0, 0])}.get(stretch.arm, self.position).copy()
        self.now, self.tick = self.now + stretch.wait, self.tick + 1

    def look(self, sensed: Sensed) -> tuple[bool, bool]:
        """Whether it is known where the arm stands, and whether two readings that agree say so for the first time after long."""
        is_sound, is_long, before = not self.executor.find_trouble(sensed, self.now), self.now - self.known_at > 0.5, self.before
        is_another = before is not None and sensed.time >= before.time + DT / 2
        is_known = is_sound and (not is_long or (is_another and abs(sensed.position[0] - before.position[0]) <= 0.1))  # type: ignore[union-attr]
        self.known_at = self.now if is_known else self.known_at
        self.before = None if is_known or not is_sound else sensed if is_another or before is None else before
        return is_known, is_known and is_long

    def judge(self, command: Command, position: np.ndarray, is_known: bool, may_move: bool) -> None:
        action, last = command.action, self.last
        assert np.isfinite(action).all()
        is_followed = is_known and abs(action[0] - position[0]) < abs(last[0] - position[0])  # the command goes to where the arm is
        assert abs(action[0]) <= max(1.0, abs(last[0])) + 1e-9, "beyond its range"
        assert abs(action[1]) <= 0.02 + 1e-12
        assert abs(action[2]) <= 0.5 + 1e-12
        assert abs(action[0] - last[0]) <= 1.0 * DT + 1e-9, "the command jumped"
        if is_known:
            assert is_followed or abs(action[0] - position[0]) <= 0.4 + 2 * DT or action[0] == last[0], "the command ran away from the arm"
        if not may_move or command.state not in (State.ACTING, State.INTERVENTION):
            assert is_followed or action[0] == last[0], "a robot that is held moved"
            assert action[1] == action[2] == 0.0, "a robot that is held moved"
        self.num_acted += command.state is State.ACTING and not command.reason
        self.last = action


@settings(max_examples=150, deadline=None)
@given(
    st.lists(stretches, min_size=3, max_size=15),
    st.sampled_from([{}, {"ensemble_decay": 0.1}, {"num_blend_steps": 2}]),
    st.sampled_from(["clip", "clip", "refuse"]),
)
def test_whatever_happens_no_command_leaves_the_limits_none_jumps_and_nothing_moves_without_reason(
    happened: list[Stretch], options: dict[str, Any], mode: str
) -> None:
    world = World(options, mode)
    for stretch in happened:
        for number in range(stretch.length):
            world.step(stretch, stretch.event if number == 0 or stretch.event == "no camera" else "nothing")


def test_the_world_of_the_test_above_lets_the_arm_act() -> None:
    world = World({}, "clip")
    for _ in range(80):
        world.step(Stretch("nothing", 1, 1, 0.5, "follows", 0.0, DT), "nothing")
    assert world.num_acted > 10
    assert world.position[0] == pytest.approx(0.5)


def test_an_arm_with_a_delay_is_led_without_stuttering() -> None:
    robot = make(limits=wide((TARGET,), max_speed=90.0, max_gap=45.0))
    robot.follows = False
    robot.executor.take_over()
    commands = [0.0]
    for number in range(60):
        command = robot.step(person=np.array([90.0 * DT * number]))
        robot.position += (command.action - robot.position) * (1 - np.exp(-DT / 0.15))
        commands.append(float(command.action[0]))
    assert np.diff(commands).min() >= 0, "the command went back to where the arm was"


def test_an_arm_that_sinks_under_its_load_is_not_led_to_the_ground() -> None:
    limits = replace(wide((TARGET,), max_speed=10.0, max_gap=8.25), usual_gap=np.array([5.5]))
    robot = make(limits=limits, start=50.0)
    robot.follows = False
    robot.executor.pause()
    for _ in range(50):
        robot.position = robot.step().action - 5.0  # the demonstrations saw this gap, too
    assert robot.position.tolist() == [45.0]


def test_a_person_beyond_the_limits_leaves_no_speed_behind() -> None:
    robot = make(limits=wide((TARGET,), max_speed=10.0, max_acceleration=5.0, high=1.0, mode="refuse"))
    robot.executor.take_over()
    robot.step(person=np.array([0.005]))
    robot.step(person=np.array([2.0]))
    assert robot.executor._motion.rate.tolist() == [0.0]


def test_predictions_whose_mean_is_no_number_hold_the_robot() -> None:
    robot = make(num_open_loop_steps=1, ensemble_decay=0.1)
    for value in (1.0, np.inf):
        robot.executor._plan.add(0, np.full((10, 1), value), 0)
    robot.executor._end = 5
    command = robot.step()
    assert (command.state, command.action.tolist(), command.reason) == (State.HOLDING, [0.0], "action beyond all numbers")
