"""A robot's control loop asks here, once a step: the executor's decisions, with the policy server asked in a thread.

actor = RemoteActor(client, ChunkExecutor(options, is_relative, limits))
actor.reset(position)
while running:                                              # every 1 / control_hz seconds
    command = actor.tick(time.monotonic(), sensed_at, observe)   # never waits for the network
    if command.action is not None:
        send(command.action)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from prismatic.acting.client import PolicyClient, ServerUnavailableError
from prismatic.acting.execution import ChunkExecutor, ChunkRequest, Command
from prismatic.vla.types import Observation

logger = logging.getLogger(__name__)


class RemoteActor:
    """One policy server and one executor; at most one request is on its way."""

    def __init__(self, client: PolicyClient, executor: ChunkExecutor) -> None:
        self.executor = executor
        self.latencies_s: list[float] = []  # of the answered requests of this rollout
        self._client = client
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="policy-client")
        self._waiting: tuple[ChunkRequest, Future[tuple[np.ndarray, float]]] | None = None

    def reset(self, position: np.ndarray | None) -> None:
        """Starts a rollout from `position` [A] (see `ChunkExecutor.reset`)."""
        self.executor.reset(position)
        self.latencies_s = []

    def tick(self, now: float, sensed_at: float, observe: Callable[[], Observation]) -> Command:
        """The command of this control step; `observe` is called only when the policy is to be asked.

        Raises:
            RequestRefusedError, ValueError: the observation does not fit the policy, or its answer not the robot.
        """
        self._collect(now)
        if self._waiting is None and self.executor.wants_chunk(now, sensed_at):
            observation = observe()
            self._waiting = (self.executor.request(), self._pool.submit(self._infer, observation))
        return self.executor.next(now, sensed_at)

    def close(self) -> None:
        """Waits for the request that is on its way, at most as long as its time-outs, and disconnects."""
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def _infer(self, observation: Observation) -> tuple[np.ndarray, float]:
        started = time.monotonic()
        return self._client.infer(observation), time.monotonic() - started

    def _collect(self, now: float) -> None:
        """Hands the answer to the executor, if it is there."""
        if self._waiting is None or not self._waiting[1].done():
            return
        request, future = self._waiting
        self._waiting = None
        try:
            actions, latency_s = future.result()
        except ServerUnavailableError as error:
            logger.warning("no actions: %s; next attempt in %.1f s", error, error.retry_after_s)
            self.executor.fail(request, now + error.retry_after_s)
            return
        self.latencies_s.append(latency_s)
        self.executor.receive(request, actions, now)
