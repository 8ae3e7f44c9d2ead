"""The real-time loop with a simulated arm whose devices fail, and a person at the keys who is played by the test."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_arm import NAMES, SimulatedArm

from prismatic.acting.actor import RemoteActor
from prismatic.acting.client import ServerUnavailableError
from prismatic.acting.execution import ChunkExecutor, ExecutionOptions
from prismatic.acting.limits import ActionLimits
from prismatic.acting.loop import RealTimeRollout, RolloutOutcome, RolloutPlan, StepSink
from prismatic.acting.recorder import RecordedStep
from prismatic.acting.robot import Sensed
from prismatic.acting.signals import end_at_signals
from prismatic.acting.states import State
from prismatic.vla.constants import ActionKind
from prismatic.vla.types import Observation

HZ = 50.0
LIMITS = ActionLimits(
    kinds=(ActionKind.TARGET,) * 6,
    low=np.array([-110.0] * 5 + [0.0]),
    high=np.array([110.0] * 5 + [100.0]),
    max_speed=np.array([90.0] * 5 + [200.0]),
    max_acceleration=np.full(6, np.inf),
    max_gap=np.array([25.0] * 5 + [np.inf]),
)


class Policy:
    """Moves every joint up and down by a few degrees around where the observation found it."""

    def __init__(self, warnings: tuple[str, ...] = ()) -> None:
        self.begun: list[bool] = []
        self.is_lost = False
        self.num_closed = 0
        self._to_tell = list(warnings)
        self._told: list[str] = []

    def infer(self, observation: Observation, begins: bool = False) -> np.ndarray:
        if self.is_lost:
            raise ServerUnavailableError("the network is gone", 0.05)
        self.begun.append(begins)
        self._told, self._to_tell = self._to_tell, []
        assert observation.proprio is not None
        steps = np.sin(np.linspace(0, 1.5, 10))[:, None]
        return observation.proprio + steps * np.array([8, 8, 8, 8, 8, 20])

    def take_warnings(self) -> list[str]:
        told, self._told = self._told, []
        return told

    def close(self) -> None:
        self.num_closed += 1


class Keys:
    """A keyboard whose keys the test presses."""

    def __init__(self) -> None:
        self.queue: list[str] = []

    def pressed(self) -> str:
        return self.queue.pop(0) if self.queue else ""


class Rollout:
    """One rollout that runs in a thread while the test looks on."""

    def __init__(
        self,
        folder: Path,
        arm: SimulatedArm,
        policy: Policy | None = None,
        waits: bool = False,
        recorder: StepSink | None = None,
        **changes: Any,
    ) -> None:
        options = ExecutionOptions(**{"num_open_loop_steps": 8, "prefetch_steps": 4, "stop_after_s": 0.6, **changes})
        self.policy, self.arm, self.keys, self.log = policy or Policy(), arm, Keys(), folder / "steps.jsonl"
        self.actor = RemoteActor(self.policy, ChunkExecutor(options, LIMITS, HZ, NAMES), waits)
        plan = RolloutPlan(0, arm.instruction, arm.max_steps, HZ, self.log, recorder=recorder)
        self.rollout = RealTimeRollout(arm, self.actor, self.keys, plan)  # type: ignore[arg-type]
        self.outcome: RolloutOutcome | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.outcome = self.rollout.run()

    def lines(self) -> list[dict[str, Any]]:
        text = self.log.read_text().rpartition("\n")[0] if self.log.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, (self.lines()[-3:], self.outcome)
            time.sleep(0.01)

    def state(self) -> State:
        return self.actor.executor.state

    def finish(self, seconds: float = 60.0) -> RolloutOutcome:
        self.thread.join(seconds)
        self.actor.close()
        assert self.outcome is not None, self.lines()[-3:]
        commands = np.array(self.arm.commands)
        if len(commands) > 1:  # whatever happened: never faster than allowed
            steps = np.abs(np.diff(commands, axis=0))[:, :5]
            found = [index + 1 for index, line in enumerate(steps) if line.max() > 90.0 / HZ + 1e-9]
            assert not found, found
        return self.outcome


def test_a_rollout_runs_to_its_end_and_the_arm_is_held(tmp_path: Path) -> None:
    arm = SimulatedArm()
    outcome = Rollout(tmp_path, arm).finish()
    assert (outcome.ending, outcome.num_steps, outcome.num_failed_commands, outcome.num_failed_readings) == ("out of steps", 60, 0, 0)
    assert arm.calls == ["stop"]
    np.testing.assert_array_equal(arm.commands[-1], arm.commands[-2])  # the last thing that it is told is to stay


def test_only_the_first_observation_of_a_rollout_is_marked_as_such(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, SimulatedArm())
    rollout.finish()
    assert rollout.policy.begun[0] is True
    assert not any(rollout.policy.begun[1:])


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("nan", "the position of shoulder_pan [deg], shoulder_lift [deg]"),
        ("no camera", "no observation: TimeoutError: camera top: no frame for 200 ms"),
        ("frozen camera", "no observation: RobotError: camera primary shows the same picture as before the robot moved: does it hang?"),
        ("no bus", "no position: ConnectionError: no status packet"),
        ("stale", "stale observation"),
        ("refuses", "the robot did not take a command: RobotError: torque is off"),
    ],
)
def test_a_device_that_fails_for_a_moment_holds_the_arm_and_for_good_ends_the_rollout(tmp_path: Path, fault: str, reason: str) -> None:
    arm = SimulatedArm()
    arm.max_steps = 10_000
    rollout = Rollout(tmp_path, arm)
    rollout.wait_for(lambda: rollout.actor.executor.step > 15)
    arm.fault = fault
    rollout.wait_for(lambda: reason in rollout.lines()[-1]["reason"])
    arm.fault = ""
    step = rollout.actor.executor.step
    rollout.wait_for(lambda: rollout.actor.executor.step > step + 15)  # it goes on
    arm.fault = fault
    outcome = rollout.finish()
    assert outcome.ending.startswith(f"stopped: {reason}"), outcome
    held = [line["action"] for line in rollout.lines()[-10:]]
    assert all(action == held[0] for action in held)
    assert arm.calls == ["stop"]
    assert sum(rollout.actor.executor.counts.held.values()) > 20


@pytest.mark.parametrize(("said", "reason"), [(None, "found shape []"), (np.zeros((6, 1)), "found shape [6, 1]")])
def test_a_driver_that_says_no_position_once_does_not_end_the_session(tmp_path: Path, said: np.ndarray | None, reason: str) -> None:
    arm = SimulatedArm()
    position, readings = arm.position, iter(range(10_000))
    arm.position = lambda: said if next(readings) == 40 else position()  # type: ignore[method-assign, assignment, return-value]
    rollout = Rollout(tmp_path, arm)
    assert rollout.finish().ending == "out of steps"
    (held,) = (line for line in rollout.lines() if line["reason"].endswith(reason))
    assert held["position"] == ([None] if said is None else [0.0] * 6)


def test_a_blocked_arm_is_held_where_it_is_until_a_person_lets_it_go_on(tmp_path: Path) -> None:
    arm = SimulatedArm()
    arm.max_steps = 10_000
    rollout = Rollout(tmp_path, arm, stop_after_s=20.0)
    rollout.wait_for(lambda: rollout.actor.executor.step > 15)
    arm.fault = "blocked"
    arm.at = arm.at - 30.0  # and pushed away
    rollout.wait_for(lambda: rollout.state() is State.BLOCKED)
    rollout.wait_for(lambda: rollout.lines()[-1]["state"] == "blocked")
    rollout.wait_for(lambda: np.allclose(rollout.lines()[-1]["action"][:5], arm.at[:5], atol=1e-4))  # the gripper keeps its grip
    assert "2 more: is something in the way, or is the emergency stop pressed?" in rollout.lines()[-1]["reason"]
    arm.fault = ""
    rollout.keys.queue.append("c")
    rollout.wait_for(lambda: rollout.state() is State.ACTING)
    rollout.keys.queue.append("f")
    assert rollout.finish().ending == "failure"


class Switched(SimulatedArm):
    """An arm whose power somebody switches off ("off") and on."""

    def position(self) -> np.ndarray:
        self.check_power()
        return super().position()

    def send(self, action: np.ndarray) -> None:
        self.check_power()
        super().send(action)

    def check_power(self) -> None:
        if self.fault == "off":
            raise ConnectionError("no status packet")


@pytest.mark.parametrize("fault", ["off", "refuses"])
def test_an_arm_that_sank_without_power_does_not_jump_to_its_old_target(tmp_path: Path, fault: str) -> None:
    arm = Switched()
    rollout = Rollout(tmp_path, arm, stop_after_s=20.0)
    rollout.wait_for(lambda: rollout.actor.executor.step > 15)
    rollout.keys.queue.append("p")
    rollout.wait_for(lambda: rollout.state() is State.WAITING)
    arm.fault = fault
    time.sleep(0.2)
    num_before = len(arm.commands)
    arm.at = arm.target = arm.at - 50.0
    time.sleep(1.0)
    arm.fault = ""
    rollout.wait_for(lambda: len(arm.commands) > num_before + 5)
    sent, arm.commands = np.array(arm.commands[num_before:]), []
    rollout.keys.queue.append("q")
    rollout.finish()
    assert np.ptp(sent[:, :5], axis=0).max() < 1.0, "what it was told last of all is where it lies"
    assert np.abs(sent[0, :5] - arm.at[:5]).max() < 1.0


def test_nothing_is_sent_at_the_end_to_an_arm_of_which_nobody_knows_where_it_is(tmp_path: Path) -> None:
    arm = Switched()
    rollout = Rollout(tmp_path, arm)
    rollout.wait_for(lambda: rollout.actor.executor.step > 15)
    arm.fault = "off"
    rollout.wait_for(lambda: rollout.actor.executor.is_lost(time.monotonic()))
    num_before, arm.check_power = len(arm.commands), lambda: None  # type: ignore[method-assign]
    arm.position = lambda: np.full(6, np.nan)  # type: ignore[method-assign]
    assert rollout.finish().ending.startswith("stopped: ")
    assert len(arm.commands) == num_before
    assert arm.calls == ["stop"]


@pytest.mark.parametrize("is_asleep", [False, True])
def test_nothing_is_sent_at_the_end_after_the_driver_or_the_computer_stood_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_asleep: bool
) -> None:
    """A person who sees the arm sink presses q, which is read before the next position is."""
    asleep_s = [7.0]
    monkeypatch.setattr("prismatic.acting.loop._asleep_s", lambda: asleep_s[0])
    arm, send = SimulatedArm(), SimulatedArm.send

    def stand_still(action: np.ndarray) -> None:
        send(arm, action)
        if len(arm.commands) == 15:
            if is_asleep:
                asleep_s[0] += 3600.0
            else:
                time.sleep(0.8)
            rollout.keys.queue.append("q")

    arm.send = stand_still  # type: ignore[method-assign]
    rollout = Rollout(tmp_path, arm)
    assert rollout.finish().ending == "quit"
    assert len(arm.commands) == 15
    assert arm.calls == ["stop"]


class Recording:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.steps: list[RecordedStep] = []

    def add(self, step: RecordedStep) -> None:
        self.steps.append(step)


def test_a_camera_that_hangs_while_a_step_is_recorded_holds_the_arm(tmp_path: Path) -> None:
    """Between the policy's questions pictures are taken for the recording alone, after the command was decided."""
    arm, recording = SimulatedArm(), Recording()
    observe = arm.observe
    hung: list[int] = []

    def hang(instruction: str) -> Observation:
        if len(recording.steps) == 21 and not hung:  # the policy is asked at other steps
            time.sleep(0.8)
            hung.append(len(arm.commands))
        return observe(instruction)

    arm.observe = hang  # type: ignore[method-assign]
    rollout = Rollout(tmp_path, arm, recorder=recording, num_open_loop_steps=10, prefetch_steps=0)
    assert rollout.finish().ending == "out of steps"
    reasons = [line["reason"] for line in rollout.lines()]
    assert reasons[hung[0]] == "stale observation"
    assert reasons[hung[0] + 1] == "a second reading must confirm where the robot stands now"
    assert len(arm.commands) == len(reasons) + 1 - sum("observation" in reason or "reading" in reason for reason in reasons)
    sent = [command.tolist() for command in arm.commands]
    assert all(step.action.tolist() in sent for step in recording.steps)


def test_warnings_wait_for_a_person_before_the_first_motion(tmp_path: Path) -> None:
    arm = SimulatedArm()
    rollout = Rollout(tmp_path, arm, Policy(("The cameras are exchanged.",)), waits=True, stop_after_s=0.2)
    rollout.wait_for(lambda: rollout.state() is State.WAITING)
    time.sleep(0.5)  # longer than it may be held
    assert rollout.state() is State.WAITING
    assert {tuple(command) for command in arm.commands} == {(0.0,) * 6}, "it moved before anybody had read the warning"
    assert rollout.lines()[-1]["reason"] == "The cameras are exchanged."
    rollout.keys.queue.append("c")
    assert rollout.finish().ending == "out of steps"
    assert rollout.actor.warnings == ["The cameras are exchanged."]


def test_without_anybody_to_ask_warnings_are_logged_and_kept(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, SimulatedArm(), Policy(("The picture is upside down.",)))
    assert rollout.finish().ending == "out of steps"
    assert rollout.actor.warnings == ["The picture is upside down."]


def test_a_pause_is_logged_once_a_second_and_kept_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path, SimulatedArm(), stop_after_s=0.2)
    rollout.wait_for(lambda: rollout.actor.executor.step > 5)
    rollout.keys.queue.append("p")
    rollout.wait_for(lambda: rollout.state() is State.WAITING)
    time.sleep(0.1)
    before = len(rollout.lines())
    time.sleep(1.5)
    assert 1 <= len(rollout.lines()) - before <= 2  # of 75 control steps
    rollout.keys.queue.append("c")
    assert rollout.finish().ending == "out of steps"


def test_a_lost_network_holds_and_then_stops_the_arm(tmp_path: Path) -> None:
    arm = SimulatedArm()
    rollout = Rollout(tmp_path, arm)
    rollout.wait_for(lambda: rollout.actor.executor.step > 5)
    rollout.policy.is_lost = True
    outcome = rollout.finish()
    assert outcome.ending.startswith("stopped: waiting for the server for 0.6 s")
    assert rollout.actor.executor.counts.failed_requests >= 2


def test_a_computer_that_slept_looks_again_before_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux does not count in time.monotonic() how long it sleeps: what was measured and planned before seems new."""
    asleep_s = [7.0]
    monkeypatch.setattr("prismatic.acting.loop._asleep_s", lambda: asleep_s[0])
    arm, of_before = SimulatedArm(), [0.0]
    arm.max_steps = 10_000
    rollout = Rollout(tmp_path, arm, num_open_loop_steps=10, prefetch_steps=0)
    rollout.wait_for(lambda: rollout.actor.executor.step > 15)
    of_before[0] = time.monotonic()
    arm.sensed_at = lambda: of_before[0] or time.monotonic()  # type: ignore[method-assign]
    asleep_s[0] += 3600.0
    rollout.wait_for(lambda: rollout.lines()[-1]["reason"] == "stale observation")
    assert rollout.actor.executor._plan.at(rollout.actor.executor.step) is None
    of_before[0] = 0.0
    step = rollout.actor.executor.step
    rollout.wait_for(lambda: rollout.actor.executor.step > step + 15)
    rollout.keys.queue.append("q")
    rollout.finish()
    assert "a second reading must confirm where the robot stands now" in {line["reason"] for line in rollout.lines()}


def test_an_arm_whose_joints_are_not_known_is_not_moved_at_all(tmp_path: Path) -> None:
    arm = SimulatedArm(30.0)
    arm.fault = "stale"
    outcome = Rollout(tmp_path, arm).finish()
    assert outcome.ending == "stopped: stale observation for 0.6 s before the start"
    assert arm.commands == []
    assert outcome.num_steps == 0


def test_a_wrong_reading_at_the_start_is_no_place_to_begin(tmp_path: Path) -> None:
    class Misread(SimulatedArm):
        """Every third reading, the first one among them, has a wrong shoulder."""

        num_readings = 0

        def position(self) -> np.ndarray:
            self.num_readings += 1
            wrong = [40.0, 0, 0, 0, 0, 0] if self.num_readings % 3 == 1 else [0.0] * 6
            return super().position() + wrong

    arm = Misread(12.0)
    rollout = Rollout(tmp_path, arm)
    rollout.wait_for(lambda: len(arm.commands) > 0)
    np.testing.assert_allclose(arm.commands[0], np.full(6, 12.0), atol=2.0)
    rollout.keys.queue.append("q")
    rollout.finish()


def test_a_driver_may_use_the_memory_of_its_positions_again(tmp_path: Path) -> None:
    """Two readings in the same memory would always agree; a state in it would be that of a later time when it is sent."""

    class Reused(SimulatedArm):
        memory = np.zeros(6)

        def position(self) -> np.ndarray:
            self.memory[:] = 400.0 * time.monotonic() % 90
            return self.memory

    arm = Reused()
    assert Rollout(tmp_path, arm).finish().ending.startswith("stopped: two readings of the position differ")
    assert arm.commands == []
    seen = Observation({}, "go", arm.memory)
    copied = seen.copy()
    arm.memory[:] = 1e3
    assert copied.proprio is not None
    assert copied.proprio.max() < 1e3


def test_an_arm_that_is_moved_by_hand_is_waited_for_and_then_named(tmp_path: Path) -> None:
    class Pushed(SimulatedArm):
        def position(self) -> np.ndarray:
            return np.full(6, 400.0 * time.monotonic() % 90)

    arm = Pushed()
    outcome = Rollout(tmp_path, arm).finish()
    assert outcome.ending.startswith("stopped: two readings of the position differ (shoulder_pan [deg] by ")
    assert outcome.ending.endswith(" more): it moves, or one of them is wrong for 0.6 s before the start")
    assert arm.commands == []


def test_an_exception_that_nobody_foresaw_leaves_the_arm_held(tmp_path: Path) -> None:
    class Narrow(Policy):
        def infer(self, observation: Observation, begins: bool = False) -> np.ndarray:
            return np.zeros((10, 3))  # of another robot

    arm = SimulatedArm(12.0)
    policy = Narrow()
    actor = RemoteActor(policy, ChunkExecutor(ExecutionOptions(8), LIMITS, HZ, NAMES))
    plan = RolloutPlan(0, "go", 10, HZ, tmp_path / "steps.jsonl")
    with pytest.raises(ValueError, match="expected a chunk of actions"):
        RealTimeRollout(arm, actor, Keys(), plan).run()  # type: ignore[arg-type]
    assert arm.calls == ["stop"]
    np.testing.assert_array_equal(arm.commands[-1], np.full(6, 12.0))
    actor.close()


class Wheel(SimulatedArm):
    """Its last dimension is a base that is driven by velocities."""

    num_refused = 3  # of the last commands

    def send(self, action: np.ndarray) -> None:
        if self.num_refused and self.fault == "bus glitch":
            self.num_refused -= 1
            raise ConnectionError("no status packet")
        super().send(action)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP])
def test_a_signal_ends_a_rollout_between_two_commands_and_repeated_ones_change_nothing(tmp_path: Path, number: int) -> None:
    saved = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)}
    arm = Wheel()
    send = arm.send
    broken: list[int] = []

    def send_slowly(action: np.ndarray) -> None:
        if len(arm.commands) in (5, 6):  # in the midst of a command, and of the last one
            arm.fault = "bus glitch"
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt:
                broken.append(len(arm.commands))
        send(action)

    arm.send = send_slowly  # type: ignore[method-assign]
    kinds = (ActionKind.TARGET,) * 5 + (ActionKind.VELOCITY,)
    actor = RemoteActor(Policy(), ChunkExecutor(ExecutionOptions(8), replace(LIMITS, kinds=kinds), HZ, NAMES))
    plan = RolloutPlan(0, "go", 1000, HZ, tmp_path / "steps.jsonl")
    try:
        end_at_signals()
        with pytest.raises(KeyboardInterrupt):
            RealTimeRollout(arm, actor, Keys(), plan).run()  # type: ignore[arg-type]
    finally:
        for kind, handler in saved.items():
            signal.signal(kind, handler)
        actor.close()
    assert not broken
    assert arm.commands[-1][5] == 0.0, "the base drives on"
    assert arm.calls == ["stop"]


def test_a_full_disk_does_not_end_the_loop(tmp_path: Path) -> None:
    arm = SimulatedArm()
    actor = RemoteActor(Policy(), ChunkExecutor(ExecutionOptions(8), LIMITS, HZ, NAMES))
    plan = RolloutPlan(0, "go", 5, HZ, Path("/dev/full"))
    assert RealTimeRollout(arm, actor, Keys(), plan).run().ending == "out of steps"  # type: ignore[arg-type]
    actor.close()


def test_a_camera_may_use_its_memory_again_and_one_that_makes_the_loop_wait_holds_the_arm() -> None:
    picture, state, seen = np.full((8, 8, 3), 7, np.uint8), np.zeros(6), threading.Event()

    class Late(Policy):
        def infer(self, observation: Observation, begins: bool = False) -> np.ndarray:
            seen.wait(5)
            assert observation.images["primary"].max() == 7
            assert observation.proprio is not None
            assert observation.proprio.max() == 0
            return super().infer(observation, begins)

    def observe() -> Observation:
        time.sleep(0.1)
        return Observation({"primary": picture}, "go", state)

    actor = RemoteActor(Late(), ChunkExecutor(ExecutionOptions(8, max_observation_age_s=0.05), LIMITS, HZ, NAMES))
    now = time.monotonic()
    actor.reset(Sensed(np.zeros(6), now), now)
    assert actor.tick(now, Sensed(np.zeros(6), now), observe).reason == "stale observation"
    picture[:], state[:] = 0, 9.0
    seen.set()
    assert actor._waiting is not None
    assert actor._waiting[1].result(60).actions.shape == (10, 6)
    actor.close()


def test_a_state_that_is_no_number_holds_the_robot_for_that_step(tmp_path: Path) -> None:
    arm = SimulatedArm()
    observe, looks = arm.observe, []

    def blink(instruction: str) -> Observation:
        looks.append(instruction)
        seen = observe(instruction)
        assert seen.proprio is not None
        return replace(seen, proprio=np.full_like(seen.proprio, np.nan)) if len(looks) == 3 else seen

    arm.observe = blink  # type: ignore[method-assign]
    rollout = Rollout(tmp_path, arm)
    assert rollout.finish().ending == "out of steps"
    assert any("must be one row of finite numbers" in line["reason"] for line in rollout.lines())


def test_a_rollout_that_cannot_begin_reports_none_of_the_steps_before_it(tmp_path: Path) -> None:
    arm = SimulatedArm()
    rollout = Rollout(tmp_path, arm)
    assert rollout.finish().num_steps == 60

    def lost() -> np.ndarray:
        raise ConnectionError("no status packet")

    arm.position = lost  # type: ignore[method-assign]
    rollout.actor.executor.options = replace(rollout.actor.executor.options, stop_after_s=0.1)
    plan = RolloutPlan(1, "go", 60, HZ, tmp_path / "second.jsonl")
    outcome = RealTimeRollout(arm, rollout.actor, Keys(), plan).run()  # type: ignore[arg-type]
    assert outcome.ending.startswith("stopped: no position: ConnectionError")
    assert (outcome.num_steps, rollout.actor.executor.counts.executed) == (0, 0)


def test_a_last_command_that_is_not_taken_is_said_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arm = SimulatedArm()
    rollout = Rollout(tmp_path, arm)
    rollout.wait_for(lambda: rollout.actor.executor.step > 5)

    def refuse(action: np.ndarray) -> None:
        raise ConnectionError("no status packet")

    arm.send = refuse  # type: ignore[method-assign]
    rollout.keys.queue.append("f")
    assert rollout.finish().ending == "failure"
    assert "did not take its last command, to hold still; it may be moving: use its emergency stop" in caplog.text
