"""A robot's control loop asks here, once a step: the executor's decisions, with the policy asked in a thread.

limits = choose_limits(client.info).limits
actor = RemoteActor(client, ChunkExecutor(options, limits, client.info.control_hz))
actor.reset(Sensed(position, time.monotonic()), time.monotonic())
while running:                                              # every 1 / control_hz seconds
    command = actor.tick(time.monotonic(), Sensed(position, measured_at), observe)   # never waits for the network
    if command.is_due:
        send(command.action)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from prismatic.acting.client import ServerUnavailableError
from prismatic.acting.execution import ChunkExecutor, ChunkRequest, Command
from prismatic.acting.robot import Sensed
from prismatic.vla.types import Observation

logger = logging.getLogger(__name__)


class ChunkSource(Protocol):
    """Where chunks come from: `PolicyClient`, or a policy in this process."""

    def infer(self, observation: Observation, begins: bool = False) -> np.ndarray:
        """The next actions [H, A]; `begins`: the first observation of a rollout."""

    def take_warnings(self) -> list[str]:
        """What training saw differently, since the last call."""

    def close(self) -> None:
        """Ends the connection; harmless the second time."""


@dataclass(frozen=True)
class _Answer:
    actions: np.ndarray
    warnings: list[str]
    latency_s: float


class RemoteActor:
    """One source of chunks and one executor; at most one request is on its way."""

    def __init__(self, client: ChunkSource, executor: ChunkExecutor, waits_for_person: bool = False) -> None:
        """`waits_for_person`: what training saw differently stops the robot before its first motion, until `executor.go_on()`."""
        self.executor = executor
        self.latencies_s: list[float] = []  # of the answered requests of this rollout
        self.warnings: list[str] = []  # of this rollout
        self.num_failed_observations = 0
        self.delay_s = np.nan  # from the observation behind the newest chunk to its arrival
        self._client, self._waits_for_person = client, waits_for_person
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="policy-client")
        self._waiting: tuple[ChunkRequest, Future[_Answer], float] | None = None  # and when it was asked
        self._begins = True  # no observation of this rollout has been answered

    def reset(self, sensed: Sensed, now: float) -> None:
        """Starts a rollout from where the robot stands (see `ChunkExecutor.reset`).

        Raises:
            ValueError: that is not known.
        """
        self.executor.reset(sensed, now)
        self.clear()

    def clear(self) -> None:
        """Nothing has happened yet in the rollout that is to begin."""
        self.executor.clear()
        self.latencies_s, self.warnings, self.num_failed_observations, self._begins = [], [], 0, True

    def tick(
        self, now: float, sensed: Sensed, observe: Callable[[], Observation], person: np.ndarray | None = None, trouble: str = ""
    ) -> Command:
        """The command of this control step; `observe` is called only when the policy is to be asked.

        `person` [A] is what a person commands, if one has taken over; `trouble` is what the caller has found wrong.

        Raises:
            RequestRefusedError, ValueError: the observation does not fit the policy, or its answer not the robot.
        """
        self._collect(now)
        if self._waiting is None and not trouble and self.executor.wants_chunk(now, sensed):
            started = time.monotonic()
            trouble = self._ask(observe, now)
            now += time.monotonic() - started  # of a camera that makes the loop wait: what is known of the joints grows old
        return self.executor.next(now, sensed, person, trouble)

    def close(self) -> None:
        """Waits for the request that is on its way, at most as long as its time-outs, and disconnects."""
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def _ask(self, observe: Callable[[], Observation], now: float) -> str:
        """Sends a request; what prevented it, "" if nothing."""
        try:
            observation = observe()
        except Exception as error:  # drivers of cameras and joints raise what they like, and a robot is moving
            self.num_failed_observations += 1
            logger.warning("no observation: %s: %s", type(error).__name__, error)
            return f"no observation: {type(error).__name__}: {error}"[:160]
        self._waiting = (self.executor.request(), self._pool.submit(self._infer, observation.copy(), self._begins), now)
        return ""

    def _infer(self, observation: Observation, begins: bool) -> _Answer:
        started = time.monotonic()
        actions = self._client.infer(observation, begins)
        return _Answer(actions, self._client.take_warnings(), time.monotonic() - started)

    def _collect(self, now: float) -> None:
        """Hands the answer to the executor, if it is there."""
        if self._waiting is None or not self._waiting[1].done():
            return
        request, future, asked = self._waiting
        self._waiting = None
        try:
            answer = future.result()
        except ServerUnavailableError as error:
            logger.warning("no actions: %s; next attempt in %.1f s", error, error.retry_after_s)
            self.executor.fail(request, now + error.retry_after_s)
            return
        is_current = self.executor.is_waiting_for(request)
        self.executor.receive(request, answer.actions, now)
        if is_current:
            self._begins, self.delay_s = False, now - asked
            self.latencies_s.append(answer.latency_s)
        self._warn(answer.warnings)

    def _warn(self, warnings: list[str]) -> None:
        for warning in warnings:
            logger.warning("the policy's server warns: %s", warning)
        self.warnings += warnings
        if warnings and self._waits_for_person:
            logger.warning("the robot waits: press c to go on all the same, q to quit")
            self.executor.pause(" / ".join(warnings))
