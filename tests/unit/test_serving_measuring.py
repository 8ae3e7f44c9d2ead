"""Which batch sizes are measured, with recorded times in the place of the policy's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from prismatic.policy.policy import Policy
from prismatic.serving import measuring
from prismatic.serving.batching import BatchingOptions
from prismatic.serving.scheduling import BatchCosts

SECONDS = {1: 0.009, 2: 0.012, 4: 0.017, 8: 0.024, 16: 0.040}


def measured(monkeypatch: pytest.MonkeyPatch, times: dict[int, list[float]]) -> BatchCosts:
    """Costs of a policy whose calls take `times` one after the other, and then what SECONDS say."""
    monkeypatch.setattr(measuring, "_call", lambda policy, count: times[count].pop(0) if times.get(count) else SECONDS[count])
    return measuring.measure_costs(cast(Policy, cast(Any, SimpleNamespace(batch_sizes=(1,)))), BatchingOptions())


def test_a_moment_of_another_process_does_not_keep_batches_small(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, {2: [0.5, 0.5]}).seconds == SECONDS
    assert measured(monkeypatch, {}).seconds == SECONDS


def test_sizes_beyond_the_first_that_gains_nothing_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = measured(monkeypatch, {4: [0.05] * 4})
    assert list(costs.seconds) == [1, 2, 4]
    assert costs.largest_size(max_latency_s=0.25, limit=16) == 2
