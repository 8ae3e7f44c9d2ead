"""One rollout in real time: a command at every tick of the clock, whatever the server, the cameras or the person at the keys do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.acting.actor import RemoteActor
from prismatic.acting.execution import Command, Mode
from prismatic.acting.keyboard import Keyboard
from prismatic.acting.robot import Robot

PAUSE_KEYS, CONTINUE, SUCCESS, FAILURE, QUIT = "p ", "c", "s", "f", "q"
KEY_HELP = "keys: p or space pause, c continue, s success, f failure, q quit"
_LATE = 0.1  # of a period; a tick that starts later than this counts as late


@dataclass(frozen=True)
class RolloutPlan:
    """What one rollout is about."""

    number: int  # counts from 0
    instruction: str
    max_steps: int  # executed actions
    control_hz: float
    video_hz: float  # frames per second of the video; 0: no video
    step_log: Path  # JSON lines, one per tick


@dataclass
class RolloutOutcome:
    """How a rollout went."""

    success: bool | None  # None: nobody has said it yet
    ending: str  # solved, success, failure, quit, out of steps, or why the robot was stopped
    num_steps: int
    seconds: float
    timing: dict[str, float]
    frames: list[np.ndarray] = field(default_factory=list)
    frames_per_second: float = 0.0


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


class RealTimeRollout:
    """Plays one rollout."""

    def __init__(self, robot: Robot, actor: RemoteActor, keyboard: Keyboard, plan: RolloutPlan) -> None:
        self._robot, self._actor, self._keyboard, self._plan = robot, actor, keyboard, plan
        self._is_paused = False
        self._num_ticks = 0
        self._frames: list[np.ndarray] = []
        self._stride = max(1, round(plan.control_hz / plan.video_hz)) if plan.video_hz else 0

    def run(self) -> RolloutOutcome:
        """Until the task is solved, a key or the watchdog ends it, or the steps are used up."""
        self._actor.reset(self._robot.position())
        ticker, started, ending = Ticker(self._plan.control_hz), time.monotonic(), ""
        with self._plan.step_log.open("w") as log:
            while not ending:
                now = ticker.begin()
                ending = self._tick(now, now - started, log)
                ticker.wait()
        success = {"solved": True, "success": True, "failure": False, "quit": False}.get(ending)
        timing = ticker.statistics()
        if self._actor.latencies_s:
            latencies = 1e3 * np.asarray(self._actor.latencies_s)
            timing |= {"latency_ms_mean": float(latencies.mean()), "latency_ms_p99": float(np.percentile(latencies, 99))}
        hz = self._plan.control_hz / self._stride if self._stride else 0.0
        return RolloutOutcome(success, ending, self._actor.executor.step, time.monotonic() - started, timing, self._frames, hz)

    def _tick(self, now: float, elapsed: float, log: Any) -> str:
        """One control step; how the rollout ends with it, "" if it goes on."""
        if ending := self._read_key():
            return ending
        if self._is_paused:
            command = self._actor.executor.pause()
        else:
            command = self._actor.tick(now, self._robot.sensed_at(), lambda: self._robot.observe(self._plan.instruction))
        solved = command.action is not None and self._robot.step(command.action)
        self._film()
        log.write(json.dumps(self._line(elapsed, command)) + "\n")
        if solved:
            return "solved"
        if command.mode is Mode.STOP:
            return f"stopped: {command.reason}"
        return "out of steps" if self._actor.executor.step >= self._plan.max_steps else ""

    def _read_key(self) -> str:
        key = self._keyboard.pressed()
        if key and key in PAUSE_KEYS:
            self._is_paused = True
        elif key == CONTINUE:
            self._is_paused = False
        return {SUCCESS: "success", FAILURE: "failure", QUIT: "quit"}.get(key, "")

    def _film(self) -> None:
        if self._stride and self._num_ticks % self._stride == 0:
            self._frames.append(self._robot.picture())
        self._num_ticks += 1

    def _line(self, elapsed: float, command: Command) -> dict[str, Any]:
        action = None if command.action is None else [round(float(value), 5) for value in command.action]
        position = [round(float(value), 5) for value in self._robot.position()]
        return {
            "t": round(elapsed, 4),
            "step": self._actor.executor.step,
            "mode": command.mode.value,
            "reason": command.reason,
            "action": action,
            "position": position,
        }
