"""Rates count training alone; what stands between two log lines survives a restart."""

from __future__ import annotations

import pytest
import torch

from prismatic.training.meter import StepMeter


class Clock:
    """Stands still until somebody moves it."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


def test_pauses_count_neither_as_training_nor_as_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("prismatic.training.meter.time", clock)
    meter = StepMeter(torch.device("cpu"))
    for _ in range(2):
        with meter.waiting():
            clock.seconds += 1
        clock.seconds += 3
        meter.add({"loss": torch.tensor(1.0)})
    with meter.paused():
        clock.seconds += 50
    _, rates = meter.report(samples_per_step=8)
    assert rates == {"samples_per_second": 2.0, "step_seconds": 4.0, "data_wait": 0.25}
    assert meter.report(samples_per_step=8)[0] == {}  # a new start


def test_a_metric_that_is_not_in_every_step_is_averaged_over_its_own() -> None:
    meter = StepMeter(torch.device("cpu"))
    meter.add({"loss": torch.tensor(1.0), "rare": torch.tensor(5.0)})
    meter.add({"loss": torch.tensor(2.0)})
    assert meter.report(1)[0] == {"loss": 1.5, "rare": 5.0}


def test_what_stands_between_two_log_lines_is_restored() -> None:
    first, second = StepMeter(torch.device("cpu")), StepMeter(torch.device("cpu"))
    first.add({"loss": torch.tensor(1.0)})
    second.restore(first.state())
    for meter in (first, second):
        meter.add({"loss": torch.tensor(4.0)})
    assert first.report(1)[0] == second.report(1)[0] == {"loss": 2.5}
