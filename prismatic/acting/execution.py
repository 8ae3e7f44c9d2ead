"""Chunks of actions -> one safe command for every control step.

A state machine (`states`) without clock, thread or I/O: times [s] come in as arguments, so that everything can be tested step by step.

    step      0  1  2  3  4  5  6  7  8  9 10
    chunk 1   a  a  a  a  a  a  .  .           asked at step 0; num_open_loop_steps = 7, prefetch_steps = 2: the next one is asked at step 5
    chunk 2                  x  b  b  b  b ..  arrived before step 6: x is in the past and is dropped

A step is a command that was executed; while the robot holds its position, its time stands still. A chunk is therefore continued where
the robot is, however long it took to arrive. A robot that begins, or goes on after a person's sign, walks to the first target of its plan.
Letters: H chunk, A action dim.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from prismatic.acting.limits import WALKING, ActionLimits, Motion
from prismatic.acting.plans import Plan, make_plan
from prismatic.acting.robot import Sensed
from prismatic.acting.states import TRANSITIONS, Event, State
from prismatic.acting.whereabouts import Whereabouts
from prismatic.vla.rollout_record import Commander

_WAITING = "waiting for the server"
_BLOCKED = ": is something in the way, or is the emergency stop pressed?"
_MAX_REASONS = 32
_FOLLOWING = (State.ACTING, State.HOLDING)  # the states in which the policy is asked and obeyed


@dataclass(frozen=True)
class ExecutionOptions:
    """How chunks become commands."""

    num_open_loop_steps: int  # actions executed per query
    prefetch_steps: int = 0  # the next chunk is asked for so many steps before the actions run out; 0: when they have run out
    ensemble_decay: float | None = (
        None  # m of ACT's temporal ensembling: all predictions for a step count with exp(-m i), the oldest is i = 0
    )
    num_blend_steps: int = 0  # steps over which the old chunk passes into the new one
    max_observation_age_s: float = 0.5  # older measurements stop the robot where it is; a plan is not continued after a longer hold
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
        if self.ensemble_decay is not None and not np.isfinite(self.ensemble_decay):
            raise ValueError(f"ensemble_decay is {self.ensemble_decay}, must be a finite number")
        for name in ("max_observation_age_s", "stop_after_s"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, must be a finite number more than 0")


@dataclass(frozen=True)
class Command:
    """What to send to the robot at this step."""

    state: State
    action: np.ndarray  # float64 [A]
    reason: str = ""  # why it does not act
    by: Commander | None = None  # who wants it; None: the robot is held
    mode: str = ""  # of a command that somebody wants: acting, approaching or intervention
    # False: where the robot stands has not been known for long, so that a target of before, repeated, might make it jump: send nothing
    is_due: bool = True


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
    approached: int = 0  # steps of walking to the first target of a plan
    held: Counter[str] = field(default_factory=Counter)  # reason -> control steps
    chunks: int = 0
    failed_requests: int = 0
    not_finite_chunks: int = 0
    dropped_actions: int = 0  # lay in the past when their chunk arrived
    refused_actions: int = 0
    outside: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # [A], actions beyond the value limits
    too_fast: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # [A], actions beyond speed or acceleration
    longest_hold_s: float = 0.0


class ChunkExecutor:
    """Decides at every control step what the robot is told, and when the next chunk is asked for."""

    def __init__(self, options: ExecutionOptions, limits: ActionLimits, control_hz: float, names: tuple[str, ...] = ()) -> None:
        """`names` [A] of the dimensions are for messages.

        Raises:
            ValueError: another number of names than of dimensions.
        """
        self.options, self._limits, self._dt = options, limits, 1 / control_hz
        self._dim, self._is_target = len(limits.kinds), limits.is_target
        self._names = names or tuple(f"dimension {number}" for number in range(self._dim))
        if len(self._names) != self._dim:
            raise ValueError(f"the limits have {self._dim} dimensions, the robot's actions have {len(self._names)}")
        self._long_s = max(options.max_observation_age_s, 3 * self._dt)  # after which the world may have changed
        self._whereabouts = Whereabouts(limits, self._names, options.max_observation_age_s, self._long_s, self._dt / 2)
        self._number = 0
        self._step, self._last_now = 0, np.inf
        self.state, self._reason = State.STOPPED, "no rollout has begun"
        self._known_motion: Motion | None = None
        self._is_straying = np.zeros(self._dim, bool)  # dimensions whose command is on its way to where they are
        self.travel = np.zeros(self._dim)  # how far each dimension was moved, either way, in seconds at full speed
        self._forget()
        self.counts = self._no_counts()

    @property
    def _motion(self) -> Motion:
        """The last command."""
        if self._known_motion is None:
            raise ValueError("no rollout has begun: reset(sensed, now) says where the robot stands")
        return self._known_motion

    @_motion.setter
    def _motion(self, motion: Motion) -> None:
        self._known_motion = motion

    def _no_counts(self) -> ExecutionCounts:
        return ExecutionCounts(outside=np.zeros(self._dim, np.int64), too_fast=np.zeros(self._dim, np.int64))

    def clear(self) -> None:
        """Nothing has happened yet in the rollout that is to begin."""
        self.counts, self._step = self._no_counts(), 0

    def reset(self, sensed: Sensed, now: float) -> None:
        """Starts a rollout from where the robot stands.

        Raises:
            ValueError: that is not known: too old, of another width, or not finite.
        """
        if trouble := self.find_trouble(sensed, now):
            raise ValueError(f"a rollout cannot begin: {trouble}")
        self.clear()
        self._motion = Motion(np.where(self._is_target, sensed.position, 0.0), np.zeros(self._dim))
        self._last_now, self._is_straying = now, np.zeros(self._dim, bool)
        self._whereabouts.reset(now)
        self._happen(Event.RESET)

    def find_trouble(self, sensed: Sensed, now: float) -> str:
        """Why nothing may move on this measurement; "" if it may."""
        return self._whereabouts.find_trouble(sensed, now)

    def find_motion(self, before: Sensed, sensed: Sensed) -> str:
        """Why a rollout cannot begin between these two sound measurements, one right after the other; "" if it can."""
        return self._whereabouts.find_motion(before, sensed)

    def is_lost(self, now: float) -> bool:
        """Whether nothing has said for long where the robot stands, which keeps its targets by itself."""
        return self._whereabouts.is_lost(now)

    def _forget(self) -> None:
        """Drops every prediction, also the one that is on its way; what comes next is approached."""
        self._drop_plan()
        self._pending: ChunkRequest | None = None
        self._retry_at = -np.inf
        self._held_since: float | None = None

    def _drop_plan(self) -> None:
        """What was planned before a hold is about a scene that may have changed since; the policy looks again before the robot goes on."""
        self._plan: Plan = make_plan(self.options.num_blend_steps, self.options.ensemble_decay)
        self._end = self._step  # of the plan's turn
        self._is_approaching = True

    def _happen(self, event: Event, reason: str = "") -> None:
        before, self.state = self.state, TRANSITIONS[self.state, event]
        if (self.state is not before and not {before, self.state} <= set(_FOLLOWING)) or event is Event.RESET:
            self._forget()
        if self.state is not before or self.state in (State.HOLDING, State.BLOCKED):
            self._reason = reason or self._reason

    @property
    def step(self) -> int:
        """The number of commands executed."""
        return self._step

    def wants_chunk(self, now: float, sensed: Sensed) -> bool:
        """Whether a request should be sent now, with an observation of that time."""
        is_due = self._end - self._step <= self.options.prefetch_steps
        is_free = self._pending is None and now >= self._retry_at and self.state in _FOLLOWING
        return is_due and is_free and not self.find_trouble(sensed, now)

    def request(self) -> ChunkRequest:
        """Notes that a chunk is asked for, with an observation of this moment."""
        self._number += 1
        left = self._end - self._step
        self._pending = ChunkRequest(self._number, self._step, self._step + left + self.options.num_open_loop_steps)
        return self._pending

    def is_waiting_for(self, request: ChunkRequest) -> bool:
        """Whether its answer would be used: not after a reset or a pause."""
        return request == self._pending

    def receive(self, request: ChunkRequest, actions: np.ndarray, now: float) -> None:
        """Takes over the chunk [H, A] that answers `request`; one with NaN or infinity counts as a failure.

        Raises:
            ValueError: the chunk has another width, or is too short for the options.
        """
        if request != self._pending:
            return  # of a rollout that was reset or paused meanwhile
        if actions.ndim != 2 or actions.shape[1] != self._dim:
            raise ValueError(f"expected a chunk of actions [steps, {self._dim}], found shape {list(actions.shape)}")
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

    def pause(self, reason: str = "paused") -> None:
        """A person is to look; what was predicted is forgotten."""
        self._happen(Event.PAUSE, reason)

    def go_on(self) -> None:
        """A person has looked."""
        self._happen(Event.CONTINUE, _WAITING)

    def take_over(self) -> None:
        """A person commands from now on, through `next`."""
        self._happen(Event.TAKE_OVER, "a person commands")

    def hand_back(self) -> None:
        """The policy commands again, after a new observation."""
        self._happen(Event.HAND_BACK, _WAITING)

    def notice_lost_time(self) -> None:
        """Time has passed that `now` does not count."""
        self._last_now = -np.inf
        self._whereabouts.reset(-np.inf)

    def next(self, now: float, sensed: Sensed, person: np.ndarray | None = None, trouble: str = "") -> Command:
        """The command of this control step.

        `person` [A]: what a person commands, if one has taken over; `trouble`: what the caller has found wrong.
        """
        if now - self._last_now > self._long_s:  # the program stood still, the world did not
            self._drop_plan()
            self._pending = None
        self._last_now = now
        unknown, is_found = self._whereabouts.look(sensed, now)
        # Whatever else is wrong: a robot that takes no command, behind an emergency stop, must not jump back when it takes one again.
        if not unknown and (strayed := self._find_strayed(sensed, is_found)):
            self._is_approaching = True
            self._happen(Event.BLOCKED, f"{strayed}{_BLOCKED}")
            return self._hold(now)
        trouble = trouble or unknown
        if self.state in _FOLLOWING:
            return self._follow_plan(now, trouble)
        if self.state is State.INTERVENTION and person is not None and not trouble and np.isfinite(person).all():
            return self._obey(person)
        if self.state is State.INTERVENTION:
            self._reason, self._is_approaching = trouble or "a person is to command, and no command comes", True
        return self._hold(now)

    def _find_strayed(self, sensed: Sensed, is_found: bool) -> str:
        """Which dimensions are away from where they were told to be; these are told to be where they are from now on.

        Their command goes there at the limit of speed, within the limits of values: a single wrong measurement is worth one step. The
        others keep their targets, a gripper its grip and a shoulder its load. Where the robot has been found again (`is_found`), the
        command goes there at once, as at the start of a rollout.
        """
        command = self._motion.command
        measured = np.where(self._is_target, sensed.position, command)
        gap = np.abs(command - measured)
        allowed = self._limits.max_gap if self.state in (*_FOLLOWING, State.INTERVENTION) else self._limits.resting_gap
        is_new = (gap > allowed) & ~self._is_straying
        if is_found:
            self._motion = Motion(np.where(gap > self._limits.resting_gap, measured, self.neutral()), np.zeros(self._dim))
            self._is_straying = np.zeros(self._dim, bool)
            return self._describe(gap > allowed, gap)
        self._is_straying |= is_new
        if not self._is_straying.any():
            return ""
        step = self._limits.max_speed * self._dt
        low, high = np.minimum(self._limits.low, command), np.maximum(self._limits.high, command)
        followed = np.clip(command + np.clip(measured - command, -step, step), low, high)
        self._motion = Motion(np.where(self._is_straying, followed, self.neutral()), np.zeros(self._dim))
        self._is_straying &= followed != np.clip(measured, low, high)
        return self._describe(is_new, gap) or self._reason.partition(_BLOCKED)[0] or "away from its target"

    def _describe(self, is_away: np.ndarray, gap: np.ndarray) -> str:
        """The first of the dimensions `is_away` [A], and how far they are from their targets; "" where there is none."""
        names = [f"{self._names[dim]} is {gap[dim]:.3g} from its target" for dim in np.flatnonzero(is_away)]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def _follow_plan(self, now: float, trouble: str) -> Command:
        action = self._plan.at(self._step) if self._step < self._end else None
        if action is not None and not np.isfinite(action).all():  # a mean of numbers that were finite, each by itself
            action, trouble = None, trouble or "action beyond all numbers"
        if trouble or action is None:
            self._happen(Event.TROUBLE, trouble or _WAITING)
            return self._hold(now)
        if self._is_approaching and self._is_far(action):
            return self._approach(action, now)
        self._is_approaching = False
        limited = self._limits.check(action, self._motion, self._dt)
        self.counts.outside += limited.outside
        self.counts.too_fast += limited.too_fast
        self._step += 1
        if limited.motion is None:
            self.counts.refused_actions += 1
            self._happen(Event.TROUBLE, "action beyond the limits")
            return self._hold(now)
        self.counts.executed += 1
        return self._act(limited.motion)

    def _is_far(self, action: np.ndarray) -> bool:
        """Whether a target is further away than a step at walking speed; a dimension that must not move cannot be approached."""
        target = np.clip(action, self._limits.low, self._limits.high)
        reach = WALKING * self._limits.max_speed * self._dt
        return bool((self._is_target & (reach > 0) & (np.abs(target - self._motion.command) > reach)).any())

    def _approach(self, action: np.ndarray, now: float) -> Command:
        """A step towards the plan's action, whose turn comes when it is reached."""
        limited = self._limits.check(np.where(self._is_target, action, 0.0), self._motion, self._dt, WALKING)
        if limited.motion is None:
            self.counts.refused_actions += 1
            self._step += 1
            self._happen(Event.TROUBLE, "action beyond the limits")
            return self._hold(now)
        self.counts.approached += 1
        return self._act(limited.motion, "approaching the first target", "approaching")

    def _obey(self, person: np.ndarray) -> Command:
        self._is_approaching = self._is_approaching and self._is_far(person)
        speed = WALKING if self._is_approaching else 1.0
        limited = self._limits.check(np.asarray(person, np.float64), self._motion, self._dt, speed)
        if limited.motion is None:
            self._motion = Motion(self.neutral(), np.zeros(self._dim))
            return Command(self.state, self.neutral(), "a person's command beyond the limits")
        self._move(limited.motion)
        return Command(self.state, limited.motion.command.copy(), "a person commands", Commander.PERSON, self.state.value)

    def _act(self, motion: Motion, reason: str = "", mode: str = State.ACTING.value) -> Command:
        self._happen(Event.ACTION)
        self._held_since, self._reason = None, ""
        self._move(motion)
        return Command(self.state, motion.command.copy(), reason, Commander.POLICY, mode)

    def _move(self, motion: Motion) -> None:
        self._motion = motion
        self.travel = self.travel + np.abs(motion.rate) * self._dt / np.maximum(self._limits.max_speed, np.finfo(float).tiny)

    def _hold(self, now: float) -> Command:
        reason = self._reason
        self.counts.held[reason if reason in self.counts.held or len(self.counts.held) < _MAX_REASONS else "other"] += 1
        if self._held_since is None:
            self._held_since = now
        held_s = now - self._held_since
        self.counts.longest_hold_s = max(self.counts.longest_hold_s, held_s)
        if held_s > self.options.max_observation_age_s:
            self._drop_plan()
            if reason != _WAITING:  # what was asked for before something went wrong is about a scene of before
                self._pending = None
        if held_s >= self.options.stop_after_s:
            self._happen(Event.TOO_LONG, f"{reason} for {held_s:.1f} s")
        self._motion = Motion(self.neutral(), np.zeros(self._dim))
        return Command(self.state, self.neutral(), self._reason, is_due=not self.is_lost(now))

    def neutral(self) -> np.ndarray:
        """What holds the robot still: the last targets, motions and velocities of 0."""
        return np.where(self._is_target, self._motion.command, 0.0)
