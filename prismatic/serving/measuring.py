"""What a call of the policy costs by its number of observations, measured at the start."""

from __future__ import annotations

import math
import time

import numpy as np

from prismatic.policy.policy import DEFAULT_FRAME_SIZE, Policy
from prismatic.serving.batching import BatchingOptions
from prismatic.serving.scheduling import BatchCosts
from prismatic.vla.types import Observation

_NUM_CALLS = 2  # of each size; the fastest counts, and the first one prepares the size
_GAIN = 1.05  # times the answers per second


def idle_observations(policy: Policy, count: int) -> list[Observation]:
    """Observations that fit the policy and mean nothing."""
    spec = policy.spec
    images = {camera: np.zeros((*DEFAULT_FRAME_SIZE, 3), np.uint8) for camera in spec.cameras}
    proprio = np.zeros(spec.platform.proprio_dim) if spec.heads.use_proprio else None
    return [Observation(images, "wait", proprio)] * count


def measure_costs(policy: Policy, options: BatchingOptions) -> BatchCosts:
    """Seconds of each batch size, up to the first one that takes too long: larger ones take longer still.

    Where sizes are not recorded one by one, costs grow evenly, and powers of two tell enough; where calls are long besides, up to the first
    that gains nothing. A size that seems to end it is measured once more: what another process takes for a moment must not keep a server at
    small batches.
    """
    is_recorded, most = len(policy.batch_sizes) > 1, options.max_batch_size
    costs, best = BatchCosts(), 0.0

    def ends(costs: BatchCosts, count: int) -> bool:
        is_costly = not is_recorded and costs.of(count) > options.max_latency_s / 2
        return not costs.is_short(count, options.max_latency_s) or (is_costly and costs.rate(count) <= _GAIN * best)

    for count in range(1, most + 1) if is_recorded else (1 << power for power in range(most.bit_length())):
        costs = _with_size(costs, policy, count)
        if ends(costs, count):
            costs = _with_size(costs, policy, count)
        if ends(costs, count):
            break
        best = max(best, costs.rate(count))
    return costs


def _with_size(costs: BatchCosts, policy: Policy, count: int) -> BatchCosts:
    """`costs` and the fastest call of that size, seen now or before."""
    fastest = min(_call(policy, count) for _ in range(_NUM_CALLS))
    return BatchCosts({**costs.seconds, count: min(fastest, costs.seconds.get(count, math.inf))})


def _call(policy: Policy, count: int) -> float:
    observations = idle_observations(policy, count)
    started = time.perf_counter()
    policy.predict(observations, seeds=[0] * count, is_watched=True)
    return time.perf_counter() - started
