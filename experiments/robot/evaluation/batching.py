"""How many observations a policy call should hold: measured with the policy at hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prismatic.vla.types import Observation

_NUM_CALLS = 3  # timed of each size, after one that is not
_WORTH = 0.95  # a larger batch must need less than that share of the time per observation


@dataclass(frozen=True)
class BatchTimes:
    """Milliseconds of a call by batch size, and the size that is best."""

    call_ms: dict[int, float]
    best: int

    def line(self) -> str:
        """For people."""
        listed = ", ".join(f"{size}: {ms / size:.1f}" for size, ms in self.call_ms.items())
        return f"measured ms per observation by batch size: {listed}; --batch_size {self.best}"


def measure_batch_size(call: Callable[[list[Observation]], object], observation: Observation, num_envs: int) -> BatchTimes:
    """The batch size with the shortest time per observation, of those up to half the number of environments.

    While one half is answered the other half simulates. A batch of all of them would wait for the slowest and be filled up by repetition.
    """
    times: dict[int, float] = {}
    size = 1
    while size <= max(1, num_envs // 2):
        call([observation] * size)
        seconds = []
        for _ in range(_NUM_CALLS):
            started = time.perf_counter()
            call([observation] * size)
            seconds.append(time.perf_counter() - started)
        times[size] = 1e3 * float(np.median(seconds))
        size *= 2
    return BatchTimes(times, best_size(times))


def best_size(call_ms: dict[int, float]) -> int:
    """The smallest size that no larger one beats by more than 5 % per observation."""
    best = min(call_ms)
    for size in sorted(call_ms):
        if call_ms[size] / size < _WORTH * call_ms[best] / best:
            best = size
    return best
