"""Requests of many clients -> calls of the policy with several observations, in one worker thread.

A batch starts when the policy is free and as many requests wait as clients were lately at work at once, or after `window_s`. One
client alone never waits. The queue is bounded: beyond `max_queue` pending requests, further ones are refused at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from prismatic.serving.metrics import ServerMetrics
from prismatic.serving.observations import PolicyRequest, RequestGroup
from prismatic.vla.types import ActionChunk, Observation
from prismatic.wire.errors import BusyError, PredictionError, RequestError

Predict = Callable[[RequestGroup, Sequence[Observation]], Sequence[ActionChunk]]

_PEAK_SECONDS = 1.0  # how long a number of clients at work is expected to stay

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchingOptions:
    """How requests are gathered."""

    max_batch_size: int = 16
    max_queue: int = 64  # requests being read, waiting or predicted
    window_s: float = 0.004  # the longest that a free policy waits for more requests


@dataclass
class _Waiting:
    request: PolicyRequest
    queued: float = field(default_factory=time.monotonic)
    answer: Future[ActionChunk] = field(default_factory=Future)


class Batcher:
    """The queue before a policy, and the thread that empties it."""

    def __init__(self, predict: Predict, options: BatchingOptions, metrics: ServerMetrics) -> None:
        self._predict, self._options, self._metrics = predict, options, metrics
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._admitted = 0
        self._closed = False
        self._in_flight = 0  # waiting or predicted
        self._peaks = (0, 0)  # most in flight in the previous and the present second
        self._peak_until = 0.0
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)
        self._thread.start()

    @property
    def admitted(self) -> int:
        """Requests that are pending: admitted and not answered yet."""
        return self._admitted

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Holds one place among the pending requests, from before a request's body is read until it is answered.

        Raises:
            BusyError: all places are taken, or the server is shutting down.
        """
        with self._changed:
            if self._closed:
                raise BusyError("the server is shutting down")
            if self._admitted >= self._options.max_queue:
                raise BusyError(f"the server already has {self._admitted} requests (--max_queue); try again in {BusyError.retry_after_s} s")
            self._admitted += 1
            self._metrics.admitted.set(self._admitted)
        try:
            yield
        finally:
            with self._changed:
                self._admitted -= 1
                self._metrics.admitted.set(self._admitted)

    def submit(self, request: PolicyRequest) -> Future[ActionChunk]:
        """The chunk to come. Cancelling it takes the request out of the queue."""
        waiting = _Waiting(request)
        with self._changed:
            self._queue.append(waiting)
            self._in_flight += 1
            self._note_peak()
            self._metrics.queue_length.set(len(self._queue))
            self._changed.notify()
        return waiting.answer

    def refuse_new(self) -> None:
        """From now on nothing is admitted; what is pending is finished."""
        with self._changed:
            self._closed = True

    def close(self) -> None:
        """Ends the worker after what waits now."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=60)

    def _note_peak(self) -> None:
        now = time.monotonic()
        if now >= self._peak_until:
            stale = now >= self._peak_until + _PEAK_SECONDS
            self._peaks = (0 if stale else self._peaks[1], 0)
            self._peak_until = now + _PEAK_SECONDS
        self._peaks = (self._peaks[0], max(self._peaks[1], self._in_flight))

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                self._answer(batch)
            finally:
                with self._changed:
                    self._in_flight -= len(batch)

    def _next_batch(self) -> list[_Waiting]:
        """At least one request, all of one group; empty when closed and done."""
        with self._changed:
            while not self._queue:
                if self._closed and self._admitted == 0:
                    return []
                self._changed.wait(timeout=1.0)
            until = time.monotonic() + self._options.window_s
            while len(self._queue) < min(self._options.max_batch_size, max(self._peaks)):
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(timeout=left)
            group = self._queue[0].request.group
            batch: list[_Waiting] = []
            others: deque[_Waiting] = deque()
            while self._queue and len(batch) < self._options.max_batch_size:
                waiting = self._queue.popleft()
                (batch if waiting.request.group == group else others).append(waiting)
            self._queue.extendleft(reversed(others))
            self._metrics.queue_length.set(len(self._queue))
            return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        live = [waiting for waiting in batch if waiting.answer.set_running_or_notify_cancel()]
        if not live:
            return
        started = time.monotonic()
        for waiting in live:
            self._metrics.wait.observe(started - waiting.queued)
        try:
            chunks = self._call([waiting.request for waiting in live])
        except Exception as error:  # whatever the policy raises, the worker lives on and the others get their answers
            if len(live) == 1:
                live[0].answer.set_exception(_explain(error))
                return
            for waiting in live:
                self._answer_alone(waiting)
            return
        for waiting, chunk in zip(live, chunks, strict=True):
            _settle(waiting, chunk)

    def _answer_alone(self, waiting: _Waiting) -> None:
        try:
            chunk = self._call([waiting.request])[0]
        except Exception as error:  # as above
            waiting.answer.set_exception(_explain(error))
        else:
            _settle(waiting, chunk)

    def _call(self, requests: list[PolicyRequest]) -> Sequence[ActionChunk]:
        self._metrics.batch_size.observe(len(requests))
        with self._metrics.prediction.time():
            return self._predict(requests[0].group, [request.observation for request in requests])


def _settle(waiting: _Waiting, chunk: ActionChunk) -> None:
    """Hands out `chunk`, unless it could hurt a robot."""
    if np.isfinite(chunk.actions).all():
        waiting.answer.set_result(chunk)
    else:
        waiting.answer.set_exception(PredictionError("the policy predicted actions that are not finite; none are sent"))


def _explain(error: Exception) -> RequestError:
    if isinstance(error, ValueError):
        return RequestError(str(error))
    logger.error("the policy failed", exc_info=error)
    return PredictionError(f"the policy failed ({type(error).__name__}); the server's log has the reason")
