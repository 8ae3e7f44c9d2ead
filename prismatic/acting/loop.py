"""One rollout in real time: a command at every tick of the clock, whatever server, cameras, robot and the person at the keys do."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prismatic.acting.actor import RemoteActor
from prismatic.acting.client import RequestRefusedError
from prismatic.acting.execution import Command
from prismatic.acting.frozen_cameras import FrozenCameras
from prismatic.acting.keyboard import Keyboard
from prismatic.acting.leader import Leader
from prismatic.acting.recorder import RecordedStep
from prismatic.acting.robot import Robot, RobotError, Sensed
from prismatic.acting.signals import undisturbed
from prismatic.acting.start_check import check_observation
from prismatic.acting.states import State
from prismatic.vla.rollout_record import Commander
from prismatic.vla.types import Observation
from prismatic.wire.policy_info import PolicyInfo

PAUSE_KEYS, CONTINUE, TAKE_OVER, SUCCESS, FAILURE, QUIT = "p ", "c", "t", "s", "f", "q"
KEY_HELP = "keys: p or space pause, c continue, t take over and hand back, s success, f failure, q quit"
_LATE = 0.1  # of a period; a tick that starts later than this counts as late
_HOLD_ATTEMPTS, _HOLD_PAUSE_S = 20, 0.05  # of the last command, by which a base comes to rest
_SLEPT_S = 0.1  # shorter is the inaccuracy of two clocks that are read one after the other
_IDLE_LOG_S = 1.0  # while a person is waited for, a line and a frame so often

logger = logging.getLogger(__name__)


class Film(Protocol):
    """A video that goes to disk as it is filmed."""

    def add(self, picture: np.ndarray) -> None:
        """Takes a picture uint8 [height, width, 3], even sides, and returns at once."""


class StepSink(Protocol):
    """A recording that goes to disk as it is made."""

    def add(self, step: RecordedStep) -> None:
        """Takes a step and returns at once."""


@dataclass(frozen=True)
class RolloutPlan:
    """What one rollout is about."""

    number: int  # counts from 0
    instruction: str
    max_steps: int  # executed actions
    control_hz: float
    step_log: Path  # JSON lines, one per tick
    film: Film | None = None
    video_hz: float = 0.0  # pictures per second of the film
    leader: Leader | None = None  # what a person takes over with, connected
    recorder: StepSink | None = None  # gets every command that somebody wanted, so that each step is observed
    policy: PolicyInfo | None = None  # an observation that lacks what it needs holds the robot


@dataclass
class RolloutOutcome:
    """How a rollout went."""

    success: bool | None  # None: nobody has said it yet
    ending: str  # solved, success, failure, quit, out of steps, or why the robot was stopped or the server refused
    num_steps: int
    seconds: float
    timing: dict[str, float]
    num_failed_commands: int = 0
    num_failed_readings: int = 0
    num_unseen_steps: int = 0  # commands that are not recorded, because no picture could be taken


class Ticker:
    """Sleeps from one control step to the next and remembers how punctual they were."""

    def __init__(self, control_hz: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> None:
        self.period = 1 / control_hz
        self._clock, self._sleep = clock, sleep
        self._planned = self._due = clock()  # a tick is late against the plan; the next plan starts from when it was due
        self._ticks: list[float] = []
        self._work: list[float] = []
        self._num_late = 0

    def begin(self) -> float:
        """The time of this tick."""
        now = self._clock()
        self._num_late += now > self._planned + _LATE * self.period
        self._ticks.append(now)
        return now

    def wait(self) -> None:
        """Until the next tick; one that was missed is not made up for."""
        now = self._clock()
        self._work.append(now - self._ticks[-1])
        self._planned = self._due + self.period
        self._due = max(self._planned, now)
        self._sleep(max(0.0, self._due - now))

    def statistics(self) -> dict[str, float]:
        """Milliseconds between ticks, milliseconds of work in a tick, and how many ticks were late."""
        periods, work = 1e3 * np.diff(self._ticks), 1e3 * np.asarray(self._work)
        found: dict[str, float] = {"ticks": len(self._ticks), "late_ticks": self._num_late}
        for name, values in (("period_ms", periods), ("work_ms", work)):
            if len(values):
                found |= {f"{name}_mean": float(values.mean())}
                found |= {f"{name}_p{rank}": float(np.percentile(values, rank)) for rank in (50, 99, 100)}
        return found


def _asleep_s() -> float:
    """Seconds for which this computer has slept since it was started; Linux does not count them in time.monotonic()."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if clock is None else time.clock_gettime(clock) - time.monotonic()


class RealTimeRollout:
    """Plays one rollout."""

    def __init__(self, robot: Robot, actor: RemoteActor, keyboard: Keyboard, plan: RolloutPlan) -> None:
        self._robot, self._actor, self._keyboard, self._plan = robot, actor, keyboard, plan
        self.refusal: RequestRefusedError | None = None  # of the server, which will refuse the next request, too
        self._num_ticks = 0
        self._stride = max(1, round(plan.control_hz / plan.video_hz)) if plan.film and plan.video_hz else 0
        self._trouble = ""  # of the robot: a reading that failed, or a command that it did not take
        self._has_begun = False
        self._slept_s, self._woke_at = _asleep_s(), -np.inf
        self._cameras = FrozenCameras()
        self._seen: np.ndarray | None = None  # the primary camera's picture, as last observed
        self._observation: Observation | None = None  # of this tick
        self._num_failed_commands = self._num_failed_readings = self._num_unseen_steps = 0
        self._logged_at = -np.inf
        self._log_error: OSError | None = None

    def run(self) -> RolloutOutcome:
        """Until the task is solved, a key, the watchdog or a `refusal` ends it, or the steps are used up; the robot is held in any case."""
        ticker, started = Ticker(self._plan.control_hz), time.monotonic()
        ending = self._begin(ticker)
        try:
            with self._plan.step_log.open("wb", buffering=0) as log:
                while not ending:
                    with undisturbed():
                        ending = self._tick(ticker.begin() - started, log)
                    ticker.wait()
        except RequestRefusedError as error:
            self.refusal, ending = error, f"refused: {error}"
        finally:
            with undisturbed():
                self._hold()
        timing = ticker.statistics()
        if self._actor.latencies_s:
            latencies = 1e3 * np.asarray(self._actor.latencies_s)
            timing |= {"latency_ms_mean": float(latencies.mean()), "latency_ms_p99": float(np.percentile(latencies, 99))}
        return RolloutOutcome(
            success={"solved": True, "success": True, "failure": False, "quit": False}.get(ending),
            ending=ending,
            num_steps=self._actor.executor.step,
            seconds=time.monotonic() - started,
            timing=timing,
            num_failed_commands=self._num_failed_commands,
            num_failed_readings=self._num_failed_readings,
            num_unseen_steps=self._num_unseen_steps,
        )

    def _begin(self, ticker: Ticker) -> str:
        """Waits for a fresh measurement that the one before confirms, and starts from there; why it cannot, "" if it can."""
        self._actor.clear()
        executor = self._actor.executor
        before: Sensed | None = None
        until = time.monotonic() + executor.options.stop_after_s
        while True:
            sensed = self._sense()
            trouble = self._trouble or executor.find_trouble(sensed, time.monotonic())
            if trouble:
                before = None
            elif before is None or sensed.time <= before.time or (trouble := executor.find_motion(before, sensed)):
                before = sensed
            else:
                self._actor.reset(sensed, time.monotonic())
                self._has_begun = True
                return ""
            if trouble and time.monotonic() > until:
                return f"stopped: {trouble} for {executor.options.stop_after_s:.1f} s before the start"
            time.sleep(ticker.period)

    def _notice_sleep(self) -> None:
        """Says that the world may have changed, if the computer has slept since the last step."""
        slept_s = _asleep_s()
        if slept_s - self._slept_s > _SLEPT_S:
            logger.warning("this computer has slept for %.1f s; the policy looks again", slept_s - self._slept_s)
            self._slept_s, self._woke_at = slept_s, time.monotonic()
            self._actor.executor.notice_lost_time()

    def _sensed_at(self) -> float:
        """When what the robot says was measured; before the computer slept counts as long ago."""
        measured = self._robot.sensed_at()
        return -np.inf if measured < self._woke_at else measured

    def _tick(self, elapsed: float, log: FileIO) -> str:
        """One control step; how the rollout ends with it, "" if it goes on."""
        self._notice_sleep()
        if ending := self._read_key():
            return ending
        not_taken, sensed, self._observation = self._trouble, self._sense(), None
        person = self._read_leader() if self._actor.executor.state is State.INTERVENTION else None
        command = self._actor.tick(time.monotonic(), sensed, self._observe, person, self._trouble or not_taken)
        seen = self._see(command)
        if command.by is not None and self._actor.executor.find_trouble(sensed, now := time.monotonic()):
            command = self._actor.executor.next(now, sensed)  # a camera made it wait: what was decided is about a scene of before
        self._send(command)
        self._record(command, sensed, seen)
        self._log(elapsed, command, sensed, log)
        if self._is_solved():
            return "solved"
        if command.state is State.STOPPED:
            return f"stopped: {command.reason}"
        return "out of steps" if self._actor.executor.step >= self._plan.max_steps else ""

    def _observe(self) -> Observation:
        seen = self._robot.observe(self._plan.instruction)
        if self._plan.policy is not None:
            check_observation(seen, self._plan.policy)
        self._observation = seen
        self._seen = seen.images.get("primary")
        if frozen := self._cameras.find(seen.images, self._actor.executor.travel):
            raise RobotError(frozen)
        return seen

    def _see(self, command: Command) -> Observation | None:
        """What is seen before a command is carried out, where it is to be recorded."""
        if self._plan.recorder is None or command.by is None or self._observation is not None:
            return self._observation
        try:
            return self._observe()
        except Exception as error:  # the command is carried out all the same: the policy saw enough for it
            self._num_unseen_steps += 1
            logger.warning("a step is not recorded: %s: %s", type(error).__name__, error)
            return None

    def _record(self, command: Command, sensed: Sensed, seen: Observation | None) -> None:
        """A step of the recording, if somebody wanted the command and the robot took it."""
        if self._plan.recorder is None or command.by is None or seen is None or self._trouble:
            return
        is_policy = command.by is Commander.POLICY
        chunk, delay_s = (self._actor.executor.counts.chunks, self._actor.delay_s) if is_policy else (0, np.nan)
        self._plan.recorder.add(RecordedStep(seen, command.action, command.by, command.mode, chunk, delay_s, sensed.position))

    def _sense(self) -> Sensed:
        """Where the robot is; a reading that fails is trouble."""
        self._trouble = ""
        try:
            position = np.array(self._robot.position(), np.float64)  # of our own: a driver may use its memory again
            return Sensed(position, self._sensed_at())
        except Exception as error:  # drivers raise what they like, and a robot is moving
            self._num_failed_readings += 1
            self._trouble = f"no position: {type(error).__name__}: {error}"[:160]
            return Sensed(np.zeros(0), -np.inf)

    def _read_leader(self) -> np.ndarray | None:
        """What a person commands; a leader that fails, or says something else, is trouble."""
        if self._plan.leader is None:
            return None
        try:
            target = np.asarray(self._plan.leader.read(), np.float64)
        except Exception as error:
            self._trouble = self._trouble or f"no command of a person: {type(error).__name__}: {error}"[:160]
            return None
        wanted = (len(self._robot.action_names),)
        if target.shape != wanted:
            self._trouble = self._trouble or f"the leader commands shape {list(target.shape)}, the robot takes {list(wanted)}"
            return None
        return target

    def _send(self, command: Command) -> None:
        """Commands the robot; one that does not take a command is held at the next tick."""
        self._trouble = ""
        if not command.is_due:
            return
        try:
            self._robot.send(command.action)
        except Exception as error:
            self._num_failed_commands += 1
            self._trouble = f"the robot did not take a command: {type(error).__name__}: {error}"[:160]
            logger.warning("%s", self._trouble)

    def _hold(self) -> None:
        """The last thing that a rollout does, however it ends: motions and velocities of 0, targets as they are; repeated until taken.

        A robot of which nobody knows where it stands keeps its targets by itself; one whose power comes back now must not jump to them.
        """
        try:
            executor = self._actor.executor
            self._notice_sleep()
            is_due = not executor.is_lost(time.monotonic())  # now: the last step may be long ago, if a driver did not return
            for _ in range(_HOLD_ATTEMPTS if self._has_begun else 0):
                self._send(Command(State.STOPPED, executor.neutral(), is_due=is_due))
                if not self._trouble:
                    return
                time.sleep(_HOLD_PAUSE_S)
            if self._has_begun:
                logger.error("the robot did not take its last command, to hold still; it may be moving: use its emergency stop")
        finally:
            self._robot.stop()

    def _is_solved(self) -> bool:
        try:
            return self._robot.is_solved()
        except Exception as error:
            logger.warning("whether the task is solved is not known: %s", error)
            return False

    def _read_key(self) -> str:
        key, executor = self._keyboard.pressed(), self._actor.executor
        if key and key in PAUSE_KEYS:
            executor.pause()
        elif key == CONTINUE:
            executor.go_on()
        elif key == TAKE_OVER and self._plan.leader is None:
            logger.warning("there is nothing to take over with (--leader module:Class); the robot waits for c")
            executor.pause("no leader to take over with")
        elif key == TAKE_OVER:
            (executor.hand_back if executor.state is State.INTERVENTION else executor.take_over)()
        return {SUCCESS: "success", FAILURE: "failure", QUIT: "quit"}.get(key, "")

    def _log(self, elapsed: float, command: Command, sensed: Sensed, log: FileIO) -> None:
        """A line and, if its turn has come, a picture; while a person is waited for, fewer of both."""
        is_idle = command.state is State.WAITING
        if is_idle and elapsed - self._logged_at < _IDLE_LOG_S:
            return
        self._logged_at = elapsed if is_idle else -np.inf
        if self._stride and self._num_ticks % self._stride == 0:
            self._film()
        self._num_ticks += 1
        try:
            log.write((json.dumps(self._line(elapsed, command, sensed)) + "\n").encode())
        except OSError as error:  # of a full disk; a robot is moving
            if self._log_error is None:
                logger.warning("%s is not complete: %s", self._plan.step_log, error)
            self._log_error = error

    def _film(self) -> None:
        try:
            picture = self._robot.picture()
            picture = self._seen if picture is None else picture
            if picture is not None and self._plan.film is not None:
                self._plan.film.add(picture)
        except Exception as error:
            logger.warning("no picture for the video: %s: %s", type(error).__name__, error)

    def _line(self, elapsed: float, command: Command, sensed: Sensed) -> dict[str, Any]:
        return {
            "t": round(elapsed, 4),
            "step": self._actor.executor.step,
            "state": command.state.value,
            "by": None if command.by is None else command.by.value,
            "reason": command.reason,
            "action": _rounded(command.action),
            "position": _rounded(sensed.position),
        }


def _rounded(values: np.ndarray) -> list[float | None]:
    """`values` of any shape: a driver that has missed a packet may say None, and a robot is moving."""
    return [round(float(value), 5) if np.isfinite(value) else None for value in values.ravel()]
