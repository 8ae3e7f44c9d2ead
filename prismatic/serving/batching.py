"""Requests of many clients -> calls of the policy with several observations, in one worker thread.

`scheduling.py` says how many are taken. Where the next batch is there already, it is begun before the answers of the last one are handed
out: reading what those clients ask next would keep the interpreter from the thread that launches it, and the device would idle. A request
that nobody waits for any more (its client has gone, its time is over or will be before an answer could come) is not computed. The queue is
bounded: beyond `max_queue` pending requests, further ones are refused at once (`places.py`), and clients take turns (`turns.py`). Whatever
a batch raises, the thread lives on.
"""

from __future__ import annotations

import bisect
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from prismatic.serving.health import PolicyHealth
from prismatic.serving.metrics import ServerMetrics
from prismatic.serving.observations import PolicyRequest, RequestGroup
from prismatic.serving.places import Place, Places
from prismatic.serving.scheduling import BatchCosts, Peak, Waiting, choose_batch
from prismatic.serving.turns import Turns
from prismatic.vla.types import ActionChunk, Observation
from prismatic.wire.errors import BusyError, PredictionError, RequestError, SlowPredictionError

_IDLE_S = 1.0  # between two looks at the clock of a worker without work
_CLOSE_S = 5.0  # for the worker to end; one that hangs is left behind

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchingOptions:
    """How requests are gathered."""

    max_batch_size: int = 16
    max_queue: int = 64  # requests being decoded, waiting or predicted
    window_s: float = 0.004  # the longest that a free policy waits for requests that are being read
    max_latency_s: float = 0.25  # a batch takes at most half of it, see `BatchCosts.largest_size`


@dataclass(frozen=True)
class PolicyCalls:
    """What the worker calls."""

    predict: Callable[[RequestGroup, Sequence[Observation], Callable[[], None]], Sequence[ActionChunk]]  # calls the last one on the way
    check_device: Callable[[], None] = lambda: None  # raises if nothing can be computed any more
    on_fault: Callable[[], None] = lambda: None  # the device is lost


@dataclass(eq=False)
class _Waiting:
    request: PolicyRequest
    deadline: float  # monotonic time after which nobody wants the answer
    place: Place
    turn: int
    queued: float = field(default_factory=time.monotonic)
    answer: Future[ActionChunk] = field(default_factory=Future)


class Batcher:
    """The queue before a policy, and the thread that empties it."""

    def __init__(self, calls: PolicyCalls, options: BatchingOptions, metrics: ServerMetrics, health: PolicyHealth | None = None) -> None:
        self._calls, self._options, self._metrics = calls, options, metrics
        self.health = health or PolicyHealth()
        self.costs: dict[str | None, BatchCosts] = {}  # of each adapter's policy
        self._fastest: dict[str | None, float] = {}  # call of each adapter's policy [s], ever
        self._free_at = 0.0  # monotonic time at which the latest call ended
        self._queue: list[_Waiting] = []  # whose turn comes first, first
        self._turns = Turns()
        self._unsent: list[tuple[_Waiting, ActionChunk]] = []  # answers of the last batch
        self._changed = threading.Condition()
        self._places = Places(options.max_queue, self._give_up)
        self._arriving = 0  # admitted and not read yet
        self._closed = False
        self._in_flight = 0  # waiting or predicted
        self._peak = Peak()
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)
        self.health.thread = self._thread
        self._thread.start()

    @property
    def admitted(self) -> int:
        """Requests that are pending: admitted and not answered yet."""
        return len(self._places)

    @property
    def queue_length(self) -> int:
        """Requests that wait for the policy."""
        return len(self._queue)

    @contextmanager
    def admission(self, client: Hashable = None, num_bytes: int = 0, address: Hashable = None) -> Iterator[Place]:
        """Holds one place among the pending requests, from before a request of `num_bytes` is decoded until its answer is known.

        `client` asks from `address`.

        Raises:
            BusyError: all places are taken, the policy cannot answer, or the server is shutting down.
        """
        place = Place(client, num_bytes, address=address)
        with self._changed:
            self._check_admission()
            self._places.take(place)
            self._arriving += 1
            self._peak.note(max(self.admitted, self._in_flight), time.monotonic())
            self._metrics.admitted.set(self.admitted)
        try:
            yield place
        finally:
            with self._changed:
                self._places.leave(place)
                self._arrived(place)
                self._metrics.admitted.set(self.admitted)

    def _check_admission(self) -> None:
        if self._closed:
            raise BusyError("the server is shutting down")
        if problem := self.health.alive_problem():
            raise BusyError(f"{problem}; the server must be started anew")

    def submit(self, request: PolicyRequest, deadline: float = math.inf, place: Place | None = None) -> Future[ActionChunk]:
        """The chunk to come, wanted until `deadline` (monotonic time). Cancelling it takes the request out of the queue; it is cancelled
        already where its client has gone and left `place`.

        Raises:
            BusyError: another client got the place, or the pictures are too large beside those that wait.
        """
        with self._changed:
            if place is None:
                place = Place(is_read=True)
            else:
                self._arrived(place)
                place.check()
                if place.is_left:
                    self._metrics.dropped.labels("client gone").inc()
                    return _cancelled()
                self._places.weigh(place, request.num_bytes)
            waiting = _Waiting(request, deadline, place, self._turns.next_of(place.client, place.address))
            bisect.insort(self._queue, waiting, key=lambda one: one.turn)
            self._in_flight += 1
            self._peak.note(max(self.admitted, self._in_flight), waiting.queued)
            self._note_queue()
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
        self._thread.join(timeout=_CLOSE_S)

    def cap(self, adapter: str | None) -> int:
        """The largest batch of that adapter's policy."""
        return self.costs.get(adapter, BatchCosts()).largest_size(self._options.max_latency_s, self._options.max_batch_size)

    def _arrived(self, place: Place) -> None:
        if not place.is_read:
            place.is_read = True
            self._arriving -= 1
            self._changed.notify()

    def _give_up(self, place: Place) -> None:
        """Another client has got `place`."""
        self._metrics.dropped.labels("made room").inc()
        self._arrived(place)
        for waiting in [waiting for waiting in self._queue if waiting.place is place]:
            self._queue.remove(waiting)
            self._in_flight -= 1
            _fail(waiting, place.refusal())
        self._note_queue()

    def _note_queue(self) -> None:
        self._metrics.queue_length.set(len(self._queue))
        self.health.waiting_since = min((waiting.queued for waiting in self._queue), default=None)

    def _work(self) -> None:
        while True:
            batch: list[_Waiting] = []
            try:
                if self._unsent and self._queue:
                    batch = self._next_batch(at_once=True)
                if not batch:
                    self._send()
                    batch = self._next_batch()
                if not batch:
                    return
                self._answer(batch)
            except BaseException as error:  # a fault in one batch, of whatever kind, must not end the answers to all later ones
                logger.error("a batch failed", exc_info=error)
                for waiting in batch:
                    _fail(waiting, PredictionError(f"the policy failed ({type(error).__name__}); the server's log has the reason"))
            finally:
                with self._changed:
                    self._in_flight -= len(batch)

    def _next_batch(self, at_once: bool = False) -> list[_Waiting]:
        """At least one request, all of one group; empty when closed and done, and with `at_once` where it would have to wait."""
        free_since: float | None = None
        with self._changed:
            while True:
                self._drop_unwanted()
                if not self._queue:
                    if at_once or (self._closed and self.admitted == 0):
                        return []
                    free_since = None
                    self._changed.wait(timeout=_IDLE_S)
                    continue
                now = time.monotonic()
                free_since = now if free_since is None else free_since
                group = self._queue[0].request.group
                count = sum(waiting.request.group == group for waiting in self._queue)
                found = Waiting(count, self._arriving, self._peak.value(now), now - free_since)
                costs = self.costs.get(group.adapter, BatchCosts())
                cap = 1 if group.is_long else self.cap(group.adapter)
                if taken := choose_batch(found, costs, cap, self._options.window_s):
                    return self._take(group, taken)
                if at_once:
                    return []
                self._changed.wait(timeout=max(0.0, self._options.window_s - found.waited_s))

    def _take(self, group: RequestGroup, count: int) -> list[_Waiting]:
        batch: list[_Waiting] = []
        others: list[_Waiting] = []
        for waiting in self._queue:
            (batch if waiting.request.group == group and len(batch) < count else others).append(waiting)
        for waiting in batch:
            waiting.place.is_begun = True
        self._turns.serve(batch[-1].turn)
        self._queue = others
        self._note_queue()
        return batch

    def _drop_unwanted(self) -> None:
        """Takes out what nobody waits for, or what could not be answered in time.

        What came to a free policy is computed in any case: costs that were measured while the machine was busy must not refuse for ever.
        """
        now, kept = time.monotonic(), list[_Waiting]()
        for waiting in self._queue:
            soonest = now + (self._fastest.get(waiting.request.adapter, 0.0) if waiting.queued < self._free_at else 0.0)
            if waiting.answer.cancelled():
                self._metrics.dropped.labels("client gone").inc()
            elif soonest > waiting.deadline:
                self._metrics.dropped.labels("too late").inc()
                _fail(
                    waiting, SlowPredictionError("the time for this request was over before the policy was free; the server is overloaded")
                )
            else:
                kept.append(waiting)
        self._in_flight -= len(self._queue) - len(kept)
        self._queue = kept
        self._note_queue()

    def _answer(self, batch: list[_Waiting]) -> None:
        live = [waiting for waiting in batch if waiting.answer.set_running_or_notify_cancel()]
        if not live:
            return
        started = time.monotonic()
        for waiting in live:
            self._metrics.wait.observe(started - waiting.queued)
        try:
            chunks = self._call(live)
        except Exception as error:  # whatever the policy raises, the worker lives on and the others get their answers
            if len(live) == 1 or self.health.fault is not None:
                for waiting in live:
                    _fail(waiting, self._explain(error))
                return
            for waiting in live:
                self._answer_alone(waiting)
            return
        self._unsent = list(zip(live, chunks, strict=True))

    def _send(self) -> None:
        """Hands out what the last batch gave, once."""
        unsent, self._unsent = self._unsent, []
        for waiting, chunk in unsent:
            self._settle(waiting, chunk)

    def _answer_alone(self, waiting: _Waiting) -> None:
        try:
            chunk = self._call([waiting])[0]
        except Exception as error:  # as above
            _fail(waiting, self._explain(error))
        else:
            self._settle(waiting, chunk)

    def _call(self, batch: list[_Waiting]) -> Sequence[ActionChunk]:
        """One chunk for each request.

        Raises:
            Exception: whatever the policy raises.
        """
        if self.health.fault is not None:
            raise PredictionError(f"the device failed ({self.health.fault}); the server must be started anew")
        self._metrics.batch_size.observe(len(batch))
        self.health.busy_since = started = time.monotonic()
        try:
            with self._metrics.prediction.time():
                chunks = self._calls.predict(batch[0].request.group, [waiting.request.observation for waiting in batch], self._send)
            if len(chunks) != len(batch):
                raise RuntimeError(f"{len(batch)} observations gave {len(chunks)} chunks")
            return chunks
        except ValueError:  # of a request, not of the policy
            raise
        except BaseException as error:
            self._note_failure(error)
            raise
        finally:
            self._send()  # if that did not get so far
            self._note_call(batch[0].request.adapter, started)
            self.health.busy_since = None

    def _note_call(self, adapter: str | None, since: float) -> None:
        self._free_at = time.monotonic()
        self._fastest[adapter] = min(self._fastest.get(adapter, math.inf), self._free_at - since)

    def _note_failure(self, error: BaseException) -> None:
        logger.error("the policy failed", exc_info=error)
        self.health.failure = type(error).__name__
        try:
            self._calls.check_device()
        except Exception as lost:
            logger.error("the device computes nothing any more", exc_info=lost)
            self.health.fault = f"{type(lost).__name__}: {str(lost).splitlines()[0] if str(lost) else 'no details'}"
            self._calls.on_fault()

    def _settle(self, waiting: _Waiting, chunk: ActionChunk) -> None:
        """Hands out `chunk`, unless it could hurt a robot."""
        if np.isfinite(chunk.actions).all():
            self.health.failure = None
            waiting.answer.set_result(chunk)
        else:
            self.health.failure = "actions that are not finite"
            _fail(waiting, PredictionError("the policy predicted actions that are not finite; none are sent"))

    def _explain(self, error: Exception) -> RequestError:
        if isinstance(error, RequestError):
            return error
        if isinstance(error, ValueError):
            return RequestError(str(error))
        return PredictionError(f"the policy failed ({type(error).__name__}); the server's log has the reason")


def _cancelled() -> Future[ActionChunk]:
    answer: Future[ActionChunk] = Future()
    answer.cancel()
    return answer


def _fail(waiting: _Waiting, error: RequestError) -> None:
    """Answers with `error`, unless there is an answer already or nobody wants one."""
    if not waiting.answer.done() and (waiting.answer.running() or waiting.answer.set_running_or_notify_cancel()):
        waiting.answer.set_exception(error)
