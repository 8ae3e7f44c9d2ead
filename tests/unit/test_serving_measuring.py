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


def test_calls_that_cost_little_are_all_measured_whatever_one_seems_to_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = measured(monkeypatch, {2: [0.018] * 4})
    assert list(costs.seconds) == [1, 2, 4, 8, 16]
    assert costs.largest_size(max_latency_s=0.25, limit=16) == 16


def test_long_calls_end_with_the_first_that_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = measured(monkeypatch, {1: [2.0] * 2, 2: [3.9] * 4})
    assert list(costs.seconds) == [1, 2]
    costs = measured(monkeypatch, {1: [2.0] * 2, 2: [3.0] * 2, 4: [3.8] * 2, 8: [9.0] * 4})
    assert list(costs.seconds) == [1, 2, 4, 8]
    assert costs.largest_size(max_latency_s=0.25, limit=16) == 4
