"""Chunks of actions -> one safe command for every control step.

A state machine without clock, thread or I/O: times [s] come in as arguments, so that everything can be tested step by step.

    step      0  1  2  3  4  5  6  7  8  9 10
    chunk 1   a  a  a  a  a  a  .  .           asked at step 0; num_open_loop_steps = 7, prefetch_steps = 2: the next one is asked at step 5
    chunk 2                  x  b  b  b  b ..  arrived before step 6: x lies in the past and is dropped

A step is a command that was executed; while the robot holds its position, its time stands still. A chunk is therefore continued where
the robot is, however long it took to arrive. Letters: H chunk, A action dim.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np

from prismatic.acting.limits import ActionLimits


@dataclass(frozen=True)
class ExecutionOptions:
    """How chunks become commands."""

    num_open_loop_steps: int  # actions executed per query
    prefetch_steps: int = 0  # the next chunk is asked for so many steps before the actions run out; 0: when they have run out
    ensemble_decay: float | None = (
        None  # m of ACT's temporal ensembling: all predictions for a step count with exp(-m i), the oldest is i = 0
    )
    num_blend_steps: int = 0  # steps over which the old chunk passes into the new one
    max_observation_age_s: float = 0.5  # older observations stop the robot where it is
    stop_after_s: float = 5.0  # after holding its position for so long, the robot is stopped for good

    def __post_init__(self) -> None:
        if self.num_open_loop_steps < 1:
            raise ValueError(f"num_open_loop_steps is {self.num_open_loop_steps}, must be at least 1")
        if self.prefetch_steps and not 0 < self.prefetch_steps < self.num_open_loop_steps:
            most = self.num_open_loop_steps - 1
            raise ValueError(f"prefetch_steps is {self.prefetch_steps}; choose 0 to {most}, less than num_open_loop_steps")
        if self.num_blend_steps < 0:
            raise ValueError(f"num_blend_steps is {self.num_blend_steps}, must not be negative")
        if self.ensemble_decay is not None and self.num_blend_steps:
            raise ValueError("ensemble_decay and num_blend_steps both smooth the passage between chunks; choose one of them")
        for name in ("max_observation_age_s", "stop_after_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must be more than 0")


class Mode(str, Enum):
    """What a command is for."""

    ACT = "act"  # the policy's next action
    HOLD = "hold"  # stay where the last command led
    STOP = "stop"  # stay, and end the rollout


@dataclass(frozen=True)
class Command:
    """What to send to the robot at this step."""

    mode: Mode
    action: np.ndarray | None  # float64 [A]; None: send nothing, since no target is known yet
    reason: str = ""  # of a hold or stop


@dataclass(frozen=True)
class ChunkRequest:
    """A chunk that is on its way: its action 0 is meant for `step`."""

    number: int
    step: int
    end: int  # step at which its turn ends


@dataclass
class ExecutionCounts:
    """What happened in one rollout."""

    executed: int = 0
    held: Counter[str] = field(default_factory=Counter)  # reason -> control steps
    chunks: int = 0
    failed_requests: int = 0
    not_finite_chunks: int = 0
    dropped_actions: int = 0  # lay in the past when their chunk arrived
    refused_actions: int = 0
    outside: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # [A], actions beyond the value limits
    too_fast: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # [A], actions beyond the change limits
    longest_hold_s: float = 0.0


class _Plan(Protocol):
    """The predictions that are known."""

    def add(self, step: int, actions: np.ndarray, now_step: int) -> None:
        """Takes in a chunk whose action 0 is meant for `step`; the robot is at `now_step`."""

    def at(self, step: int) -> np.ndarray | None:
        """The action [A] for `step`; None: no prediction reaches so far."""


class _BlendedPlan:
    """The newest chunk; its first steps are mixed with what the plan said before."""

    def __init__(self, num_blend_steps: int) -> None:
        self._num_blend_steps = num_blend_steps
        self._start = 0
        self._actions: np.ndarray | None = None  # [n, A], from step _start on

    def add(self, step: int, actions: np.ndarray, now_step: int) -> None:
        fresh = actions[now_step - step :].copy()
        if self._actions is not None and self._num_blend_steps:
            old = self._actions[now_step - self._start :][: min(self._num_blend_steps, len(fresh))]
            weight = (np.arange(len(old))[:, None] + 1) / (self._num_blend_steps + 1)
            fresh[: len(old)] = (1 - weight) * old + weight * fresh[: len(old)]
        self._start, self._actions = now_step, fresh

    def at(self, step: int) -> np.ndarray | None:
        index = step - self._start
        return self._actions[index] if self._actions is not None and index < len(self._actions) else None


class _EnsembledPlan:
    """All chunks that reach the present step, averaged. Source: Zhao et al. 2023 (arXiv:2304.13705), algorithm 2: w_i = exp(-m i)."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._chunks: list[tuple[int, np.ndarray]] = []  # (step of action 0, [H, A]), oldest first

    def add(self, step: int, actions: np.ndarray, now_step: int) -> None:
        self._chunks = [(start, chunk) for start, chunk in self._chunks if start + len(chunk) > now_step]
        self._chunks.append((step, actions))

    def at(self, step: int) -> np.ndarray | None:
        predictions = [chunk[step - start] for start, chunk in self._chunks if step - start < len(chunk)]
        if not predictions:
            return None
        weights = np.exp(-self._decay * np.arange(len(predictions)))
        return np.average(predictions, axis=0, weights=weights)


class ChunkExecutor:
    """Decides at every control step what the robot is told, and when the next chunk is asked for."""

    def __init__(self, options: ExecutionOptions, is_relative: Sequence[bool], limits: ActionLimits | None = None) -> None:
        """`is_relative`, one per dimension: motions, which are neutral at 0; the others are targets, which are held by repeating them."""
        self.options = options
        self._is_relative = np.asarray(is_relative, bool)
        self._limits = limits or ActionLimits.unlimited(len(self._is_relative))
        if self._limits.low.shape != self._is_relative.shape:
            raise ValueError(f"the limits have {len(self._limits.low)} dimensions, the robot's actions have {len(self._is_relative)}")
        self._number = 0
        self.reset(None)

    def reset(self, position: np.ndarray | None) -> None:
        """Starts a rollout from `position` [A], the targets at which the robot stands (None: unknown).

        Raises:
            ValueError: the position has another width or is not finite.
        """
        if position is not None and (position.shape != self._is_relative.shape or not np.isfinite(position).all()):
            raise ValueError(f"the robot's position must be {len(self._is_relative)} finite numbers, found {position}")
        dim = len(self._is_relative)
        self.counts = ExecutionCounts(outside=np.zeros(dim, np.int64), too_fast=np.zeros(dim, np.int64))
        self._last = None if position is None else np.array(position, np.float64)
        if self._last is None and self._is_relative.all():
            self._last = np.zeros(dim)
        self._step = 0
        self._stopped = ""
        self._forget()

    def _forget(self) -> None:
        """Drops every prediction, also the one that is on its way."""
        decay = self.options.ensemble_decay
        self._plan: _Plan = _BlendedPlan(self.options.num_blend_steps) if decay is None else _EnsembledPlan(decay)
        self._end = self._step  # of the plan's turn
        self._pending: ChunkRequest | None = None
        self._retry_at = -np.inf
        self._held_since: float | None = None

    @property
    def step(self) -> int:
        """The number of commands executed."""
        return self._step

    def wants_chunk(self, now: float, observed_at: float) -> bool:
        """Whether a request should be sent now, with an observation of that time."""
        is_fresh = now - observed_at <= self.options.max_observation_age_s
        is_due = self._end - self._step <= self.options.prefetch_steps
        return is_due and is_fresh and self._pending is None and now >= self._retry_at and not self._stopped

    def request(self) -> ChunkRequest:
        """Notes that a chunk is asked for, with an observation of this moment."""
        self._number += 1
        left = self._end - self._step
        self._pending = ChunkRequest(self._number, self._step, self._step + left + self.options.num_open_loop_steps)
        return self._pending

    def receive(self, request: ChunkRequest, actions: np.ndarray, now: float) -> None:
        """Takes over the chunk [H, A] that answers `request`; one with NaN or infinity counts as a failure.

        Raises:
            ValueError: the chunk has another width, or is too short for the options.
        """
        if request != self._pending:
            return  # of a rollout that was reset or paused meanwhile
        if actions.ndim != 2 or actions.shape[1] != len(self._is_relative):
            raise ValueError(f"expected a chunk of actions [steps, {len(self._is_relative)}], found shape {list(actions.shape)}")
        if len(actions) < self.options.num_open_loop_steps:
            raise ValueError(
                f"num_open_loop_steps is {self.options.num_open_loop_steps}, but the policy predicts {len(actions)} actions a query"
            )
        if not np.isfinite(actions).all():
            self.counts.not_finite_chunks += 1
            self.fail(request, now)
            return
        self._pending = None
        self.counts.chunks += 1
        self.counts.dropped_actions += self._step - request.step
        self._plan.add(request.step, np.asarray(actions, np.float64), self._step)
        self._end = min(request.end, request.step + len(actions))

    def fail(self, request: ChunkRequest, retry_at: float) -> None:
        """Notes that `request` gets no answer; the next one is due at `retry_at`."""
        if request == self._pending:
            self._pending = None
            self._retry_at = retry_at
            self.counts.failed_requests += 1

    def next(self, now: float, observed_at: float) -> Command:
        """The command of this control step; `observed_at` is the time of the robot's latest observation."""
        if self._stopped:
            return Command(Mode.STOP, self._neutral(), self._stopped)
        if now - observed_at > self.options.max_observation_age_s:
            return self._hold(now, "stale observation")
        action = self._plan.at(self._step) if self._step < self._end else None
        if action is None:
            return self._hold(now, "waiting for the server")
        limited = self._limits.check(action, self._last, self._is_relative)
        self.counts.outside += limited.outside
        self.counts.too_fast += limited.too_fast
        self._step += 1
        if limited.action is None:
            self.counts.refused_actions += 1
            return self._hold(now, "action beyond the limits")
        self.counts.executed += 1
        self._last, self._held_since = limited.action, None
        return Command(Mode.ACT, limited.action.copy())

    def pause(self) -> Command:
        """Holds without end; afterwards a new observation is asked about."""
        self._forget()
        return Command(Mode.HOLD, self._neutral(), "paused")

    def _hold(self, now: float, reason: str) -> Command:
        self.counts.held[reason] += 1
        if self._held_since is None:
            self._held_since = now
        held_s = now - self._held_since
        self.counts.longest_hold_s = max(self.counts.longest_hold_s, held_s)
        if held_s >= self.options.stop_after_s:
            self._stopped = f"{reason} for {held_s:.1f} s"
            return Command(Mode.STOP, self._neutral(), self._stopped)
        return Command(Mode.HOLD, self._neutral(), reason)

    def _neutral(self) -> np.ndarray | None:
        """Motions of 0 and the last targets."""
        return None if self._last is None else np.where(self._is_relative, 0.0, self._last)
