"""What happened since the last log line: means of the metrics, samples per second of training alone, share of time spent on data."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from prismatic.training.distributed import Ranks


class StepMeter:
    """Metrics stay on the device until `report` reads them; the clock stands still in `paused`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Forgets everything; the clock starts now."""
        self._num_steps = 0
        self._totals: dict[str, torch.Tensor] = {}
        self._counts: Counter[str] = Counter()
        self._waited = self._paused = 0.0  # seconds
        self._started = time.monotonic()

    def add(self, metrics: dict[str, torch.Tensor]) -> None:
        """Counts one optimizer step."""
        self._num_steps += 1
        for name, value in metrics.items():
            self._totals[name] = self._totals.get(name, 0) + value
            self._counts[name] += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for the next batch."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around validation, saving and evaluation: they count neither as training nor as waiting."""
        self._finish_queued_work()
        started = time.monotonic()
        yield
        self._finish_queued_work()
        self._paused += time.monotonic() - started

    def report(self, samples_per_step: int) -> tuple[dict[str, float], dict[str, float]]:
        """(means of the metrics, rates), and a new start. Waits for the device."""
        means = {name: float(value) / self._counts[name] for name, value in self._totals.items()}
        self._finish_queued_work()
        seconds = max(time.monotonic() - self._started - self._paused, 1e-9)
        rates = {
            "samples_per_second": self._num_steps * samples_per_step / seconds,
            "step_seconds": seconds / max(self._num_steps, 1),
            "data_wait": self._waited / seconds,
        }
        self.restart()
        return means, rates

    def state(self) -> dict[str, Any]:
        """Plain values from which `restore` makes the same sums: a run that stops between two log lines goes on as if it had not."""
        totals = {name: float(value) for name, value in self._totals.items()}
        seconds = time.monotonic() - self._started - self._paused
        return {"num_steps": self._num_steps, "totals": totals, "counts": dict(self._counts), "waited": self._waited, "seconds": seconds}

    def start(self, earlier: Sequence[Mapping[str, Any]], ranks: Ranks) -> None:
        """Goes on with what was metered before the run was interrupted, by process, if as many processes did it; else begins."""
        if len(earlier) == ranks.world_size:
            self.restore(earlier[ranks.rank])
        else:
            self.restart()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        self.restart()
        self._num_steps, self._waited, self._counts = state["num_steps"], state["waited"], Counter(state["counts"])
        self._totals = {name: torch.tensor(value, dtype=torch.float32, device=self._device) for name, value in state["totals"].items()}
        self._started -= state["seconds"]

    def _finish_queued_work(self) -> None:
        """A device works behind the process that commands it; the clock must not stop or start in between."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
