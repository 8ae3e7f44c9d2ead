"""A policy's chunks as the commands of a simulated robot, with time counted in steps: the robot's executor, without a clock.

    step        0  1  2  3  4  5  6  7  8  9 10 11
    asked       *           *                 *       prefetch_steps = 4 of 8: asked four steps before the actions run out
    known             *           *                   delay_steps = 2: what is asked at step t is known at step t + 2
    commands    h  h  a  a  a  a  b  b ...            h: held until the first chunk is there

The counterpart of `prismatic.acting.actor.RemoteActor`: what it decides by a clock and a thread follows here from numbers alone, so
that an episode can be repeated. Limits are left open: simulators have their own. Letters: H chunk, A action dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from experiments.robot.simulators.episodes import EpisodeSpec
from prismatic.acting.execution import ChunkExecutor, ChunkRequest, Command, ExecutionOptions
from prismatic.acting.limits import ActionLimits
from prismatic.acting.robot import Sensed
from prismatic.vla.constants import RobotPlatform
from prismatic.vla.types import Observation


@dataclass(frozen=True)
class ActingOptions:
    """How a policy's chunks become commands, and how long they take to come."""

    num_open_loop_steps: int | None = None  # actions executed per query; all that the policy predicts by default
    delays: tuple[int, ...] = (0,)  # steps from an observation to its actions; each query draws one of them
    prefetch_steps: int = 0  # the next chunk is asked for so many steps before the actions run out
    num_blend_steps: int = 0  # steps over which the old chunk passes into the new one
    ensemble_decay: float | None = None  # ACT's temporal ensembling

    def __post_init__(self) -> None:
        if self.num_open_loop_steps is not None and self.num_open_loop_steps < 1:
            raise ValueError(f"--num_open_loop_steps is {self.num_open_loop_steps}, must be at least 1")
        if not self.delays or min(self.delays) < 0:
            raise ValueError(f"--delay_steps is {min(self.delays, default=None)}, must not be negative")
        if self.prefetch_steps < 0:
            raise ValueError(f"--prefetch_steps is {self.prefetch_steps}, must not be negative")
        self.execution(self.num_open_loop_steps or self.prefetch_steps + 1)  # checks what else there is

    def execution(self, num_actions_chunk: int) -> ExecutionOptions:
        """For chunks of so many actions.

        Raises:
            ValueError: these are fewer than the options ask for, or the options contradict each other.
        """
        wanted = self.num_open_loop_steps or num_actions_chunk
        if wanted > num_actions_chunk:
            raise ValueError(f"--num_open_loop_steps is {wanted}, but the policy predicts {num_actions_chunk} actions a query")
        if self.prefetch_steps >= wanted:
            raise ValueError(f"--prefetch_steps is {self.prefetch_steps}; choose 0 to {wanted - 1}, less than the steps of a query")
        return ExecutionOptions(
            wanted, prefetch_steps=self.prefetch_steps, ensemble_decay=self.ensemble_decay, num_blend_steps=self.num_blend_steps
        )


@dataclass
class Motions:
    """How even the motion of an episode was: changes of the command from one step to the next, in the units of its actions.

    A change is the largest of all dimensions that are no grippers.
    """

    held: int = 0  # steps without a command of the policy
    seams: list[float] = field(default_factory=list)  # changes where a chunk, or holding, begins or ends
    inner: list[float] = field(default_factory=list)  # changes within a chunk
    _last: tuple[np.ndarray, int] | None = None

    def add(self, command: Command, chunk: int, counted: np.ndarray) -> None:
        """One command of the chunk with that number; `counted` [A]: which dimensions count."""
        is_held = command.by is None
        self.held += is_held
        source = -1 if is_held else chunk
        if self._last is not None:
            before, last_source = self._last
            change = float(np.abs(command.action - before)[counted].max(initial=0.0))
            (self.inner if source == last_source else self.seams).append(float(f"{change:.4g}"))
        self._last = command.action, source


class SteppedActor:
    """One episode's executor and the policy behind it; at most one request is on its way."""

    def __init__(
        self,
        options: ActingOptions,
        platform: RobotPlatform,
        position: np.ndarray,
        spec: EpisodeSpec,
        ask: Callable[[Observation], np.ndarray],
    ) -> None:
        """`position` float64 [A] holds the robot still where it stands; `ask` returns the chunk [H, A] that answers an observation."""
        self._options, self._platform, self._position, self._ask = options, platform, position, ask
        self._dt, self._delays = 1 / platform.control_hz, spec.rng("delays")
        self._is_counted = np.array(["gripper" not in name for name in platform.action_names])
        self._executor: ChunkExecutor | None = None
        self._waiting: tuple[ChunkRequest, np.ndarray, int, int] | None = None  # and the step at which it is known, and the delay
        self.delay_s = np.nan  # of the newest chunk
        self.motions = Motions()
        self.observation: Observation | None = None  # what was asked with at this step

    @property
    def num_chunks(self) -> int:
        """Chunks that have arrived; the newest has this number."""
        return self._executor.counts.chunks if self._executor is not None else 0

    def tick(self, step: int, observe: Callable[[], Observation]) -> Command:
        """The command of step number `step` of the episode; `observe` is called only when the policy is to be asked."""
        now, self.observation = step * self._dt, None
        sensed = Sensed(self._position, now)  # only the start counts: a gap that is not limited never blocks
        self._collect(step)
        if self._executor is None or (self._waiting is None and self._executor.wants_chunk(now, sensed)):
            self.observation = observe()
            actions = self._ask(self.observation)
            if self._executor is None:
                self._executor = self._make_executor(actions, sensed)
            delay = int(self._delays.choice(self._options.delays))
            self._waiting = (self._executor.request(), actions, step + delay, delay)
            self._collect(step)
        command = self._executor.next(now, sensed)
        self.motions.add(command, self.num_chunks, self._is_counted)
        return command

    def _make_executor(self, actions: np.ndarray, sensed: Sensed) -> ChunkExecutor:
        """The executor of a policy that answers with such chunks, at the start of an episode."""
        kinds = self._platform.action_kinds
        open_end = np.full(len(kinds), np.inf)
        limits = ActionLimits(kinds, -open_end, open_end, max_speed=open_end, max_acceleration=open_end, max_gap=open_end)
        executor = ChunkExecutor(self._options.execution(len(actions)), limits, 1 / self._dt)
        executor.reset(sensed, sensed.time)
        return executor

    def _collect(self, step: int) -> None:
        """Hands the answer to the executor, if its time has come."""
        if self._waiting is None or step < self._waiting[2]:
            return
        assert self._executor is not None
        request, actions, _, delay = self._waiting
        self._waiting, self.delay_s = None, delay * self._dt
        self._executor.receive(request, actions, step * self._dt)
