"""How many of the waiting requests the free policy takes: decided from measured costs, without a thread or a clock.

While a batch is predicted, the bodies of the next one must arrive, or the policy idles and every client waits in lock-step. So at most half
of the requests that were lately in flight are gathered; the other half is predicted meanwhile. Within that, the size that gives most
answers per second is taken, as measured at warm-up: on a GPU nine observations may cost as much as twelve. What does not fit into one call
is divided evenly, so that nobody is left behind again and again. `tests/unit/
test_serving_scheduling.py` plays the same decisions with recorded costs. Letters: n observations in one call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_PEAK_SECONDS = 1.0  # how long a number of clients at work is expected to stay
_CLEARLY = 1.1  # a smaller batch is preferred to all that wait if it gives so many times the answers per second


@dataclass(frozen=True)
class BatchCosts:
    """What a call of the policy takes."""

    seconds: Mapping[int, float] = field(default_factory=dict)  # n -> seconds, n from 1 on; empty: not measured

    def of(self, count: int) -> float:
        """Seconds of a call with `count` observations: between measured sizes on the line through them, beyond them in proportion to the
        largest; 0: nothing was measured."""
        if not self.seconds:
            return 0.0
        below = max(size for size in self.seconds if size <= count)
        if below == count or below == max(self.seconds):
            return self.seconds[below] * count / below
        above = min(size for size in self.seconds if size > count)
        share = (count - below) / (above - below)
        return (1 - share) * self.seconds[below] + share * self.seconds[above]

    def rate(self, count: int) -> float:
        """Answers per second of calls with `count` observations."""
        return count / max(self.of(count), 1e-9)

    def largest_size(self, max_latency_s: float, limit: int) -> int:
        """The size up to `limit` that gives most answers per second, among those whose calls are short enough."""
        sizes = [size for size in self.seconds if size <= limit and self.is_short(size, max_latency_s)]
        return max(sizes, key=self.rate) if self.seconds else limit

    def is_short(self, count: int, max_latency_s: float) -> bool:
        """Whether a request that just missed a batch of that size waits for that one and its own no longer than `max_latency_s`. Where one
        observation alone takes so long, the limit cannot be kept, and a call may take twice as long as with one."""
        return self.of(count) <= max(max_latency_s / 2, 2 * self.of(1))


@dataclass(frozen=True)
class Waiting:
    """What a policy finds that could start now."""

    count: int  # requests that it may take together, the oldest first
    arriving: int  # further ones that are being read and will be there in a moment
    peak: int  # most requests in flight lately: being read, waiting or predicted
    waited_s: float  # since the policy could have started


def choose_batch(waiting: Waiting, costs: BatchCosts, cap: int, window_s: float) -> int:
    """How many requests to predict now; 0: wait for those that arrive."""
    most = max(1, min(cap, -(-waiting.peak // 2)))
    if waiting.count < most and waiting.arriving and waiting.waited_s < window_s:
        return 0
    count = _even_share(waiting, most)
    if not costs.seconds:
        return count
    best = max(range(1, count + 1), key=costs.rate)
    return best if costs.rate(best) > _CLEARLY * costs.rate(count) else count


def _even_share(waiting: Waiting, most: int) -> int:
    """How many go into the next of the calls, of at most `most`, that answer everyone in flight once.

    Calls of 7 with 16 in flight leave two of nine waiting behind each time: these wait for three calls where the others wait for two, half
    as long again. Calls of 5 and 6 cost a hundredth of the throughput, and nearly all wait for three.
    """
    in_flight = max(waiting.peak, waiting.count)
    calls = -(-in_flight // most)
    size = -(-in_flight // calls)
    to_come = max(1, min(-(-waiting.count // size), calls - 1))  # one of the calls has just ended
    return min(size, -(-waiting.count // to_come))


class Peak:
    """The most requests in flight in this second and the one before."""

    def __init__(self) -> None:
        self._previous = self._present = 0
        self._until = 0.0

    def note(self, in_flight: int, now: float) -> None:
        self._turn(now)
        self._present = max(self._present, in_flight)

    def value(self, now: float) -> int:
        self._turn(now)
        return max(self._previous, self._present)

    def _turn(self, now: float) -> None:
        if now >= self._until:
            is_stale = now >= self._until + _PEAK_SECONDS
            self._previous, self._present = (0 if is_stale else self._present), 0
            self._until = now + _PEAK_SECONDS
