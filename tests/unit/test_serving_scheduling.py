"""The scheduler's decisions, played in simulated time with recorded costs: no thread, no clock, the same figures every time.

Clients ask again as soon as they are answered. What happens between two calls of the policy takes time of its own: a request travels, is
decoded by one interpreter, and its answer is encoded there, too.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest

from prismatic.serving.scheduling import BatchCosts, Peak, Waiting, choose_batch

MAX_LATENCY_S, WINDOW_S = 0.25, 0.004

# Milliseconds of Policy.predict on an H200, LIBERO shape: 1 and 8 measured on 2026-11-28 (benchmarks/README.md), the best size that was;
# sizes between and beyond on the line through both.
MEASURED = {"bf16": (16.7, 117.0), "fp8": (12.3, 79.7)}
TRAVEL_S, DECODE_S = 0.0015, 0.0033  # there and back; 3.0 to 3.6 ms of CPU a request were measured


def costs_of(kind: str) -> BatchCosts:
    one, eight = MEASURED[kind]
    return BatchCosts({size: 1e-3 * (one + (eight - one) * (size - 1) / 7) for size in range(1, 17)})


@dataclass
class Simulation:
    """One server with clients that each ask again at once."""

    costs: BatchCosts
    num_clients: int
    jitter: float = 0.2  # of travel and decoding
    gathers_all: bool = False  # instead: the earlier scheduler, which waited for everyone
    now: float = 0.0
    events: list[tuple[float, int, str, int]] = field(default_factory=list)
    queue: deque[int] = field(default_factory=deque)
    latencies: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.cap = self.costs.largest_size(MAX_LATENCY_S, 16)
        self.peak, self.admitted, self.decoding = Peak(), 0, 0
        self.decoder_free, self.free_since, self.is_busy, self.count = 0.0, 0.0, False, 0
        self.asked = [0.0] * self.num_clients
        self.batch: list[int] = []

    def run(self, seconds: float) -> dict[str, float]:
        for client in range(self.num_clients):
            self._later(1e-3 * client, "ask", client)
        while self.events and self.events[0][0] < seconds:
            self.now, _, what, client = heapq.heappop(self.events)
            getattr(self, f"_{what}")(client)
            if not self.is_busy:
                self._start()
        kept = np.array(self.latencies[len(self.latencies) // 5 :])  # without the beginning
        rate = self.num_clients / kept.mean()  # Little's law: every client has one request at all times
        return {"rate": rate, "median": float(np.median(kept)), "p99": float(np.percentile(kept, 99))}

    def _later(self, seconds: float, what: str, client: int) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + seconds, self.count, what, client))

    def _vary(self, seconds: float) -> float:
        return seconds * float(self.rng.uniform(1 - self.jitter, 1 + self.jitter))

    def _ask(self, client: int) -> None:
        self.asked[client] = self.now
        self._later(self._vary(TRAVEL_S / 2), "arrive", client)

    def _arrive(self, client: int) -> None:
        self.admitted += 1
        self.decoding += 1
        self.peak.note(self.admitted, self.now)
        self.decoder_free = max(self.decoder_free, self.now) + self._vary(DECODE_S)
        self._later(self.decoder_free - self.now, "decoded", client)

    def _decoded(self, client: int) -> None:
        self.decoding -= 1
        self.queue.append(client)

    def _look(self, client: int) -> None:
        """Nothing but another look at the queue."""

    def _start(self) -> None:
        if not self.queue:
            self.free_since = self.now
            return
        waited = self.now - self.free_since
        if self.gathers_all:
            taken = 0 if len(self.queue) < min(16, self.peak.value(self.now)) and waited < WINDOW_S else min(16, len(self.queue))
        else:
            found = Waiting(len(self.queue), self.decoding, self.peak.value(self.now), waited)
            taken = choose_batch(found, self.costs, self.cap, WINDOW_S)
        if not taken:
            self._later(max(1e-6, WINDOW_S - waited), "look", 0)
            return
        self.batch = [self.queue.popleft() for _ in range(taken)]
        self.batches.append(taken)
        self.is_busy = True
        self._later(self.costs.of(taken), "done", 0)

    def _done(self, _: int) -> None:
        self.is_busy, self.free_since = False, self.now
        for client in self.batch:
            self.admitted -= 1
            back = self._vary(TRAVEL_S / 2)
            self.latencies.append(self.now + back - self.asked[client])
            self._later(back, "ask", client)


@pytest.mark.parametrize("kind", MEASURED)
@pytest.mark.parametrize("num_clients", [4, 16])
def test_nine_tenths_of_what_the_policy_alone_reaches_and_no_stragglers(kind: str, num_clients: int) -> None:
    costs = costs_of(kind)
    found = Simulation(costs, num_clients).run(60)
    assert found["rate"] >= 0.9 * costs.rate(8), found  # 61 and 90 requests/s
    assert found["p99"] <= 1.5 * found["median"], found


@pytest.mark.parametrize("kind", MEASURED)
def test_one_client_waits_for_nobody(kind: str) -> None:
    costs = costs_of(kind)
    found = Simulation(costs, 1).run(20)
    assert found["p99"] <= costs.of(1) + 1.2 * (TRAVEL_S + DECODE_S) + 1e-9
    assert found["median"] <= costs.of(1) + TRAVEL_S + 1.05 * DECODE_S


@pytest.mark.parametrize("num_clients", [4, 16])
def test_the_simulation_shows_what_lock_step_costs(num_clients: int) -> None:
    """The scheduler of before, which waited for everyone, in the same simulation: it could not show a gain otherwise."""
    costs = costs_of("bf16")
    before = Simulation(costs, num_clients, gathers_all=True).run(60)
    assert Simulation(costs, num_clients).run(60)["rate"] > 1.03 * before["rate"]


@pytest.mark.parametrize(("num_clients", "cap"), [(16, 7), (10, 4), (12, 5), (24, 10), (20, 6), (16, 5), (16, 16)])
def test_no_size_leaves_some_behind_again_and_again(num_clients: int, cap: int) -> None:
    """A largest size of 7 was chosen on the GPU once, and the slowest of 16 clients waited for three calls where most waited for two."""
    simulation = Simulation(costs_of("bf16"), num_clients)
    simulation.cap = cap
    found = simulation.run(60)
    assert found["p99"] <= 1.15 * found["median"], found
    assert found["rate"] >= 0.98 * simulation.costs.rate(min(cap, num_clients // 2)), found


def test_never_more_than_half_of_those_in_flight() -> None:
    simulation = Simulation(costs_of("fp8"), 10)
    simulation.run(20)
    assert max(simulation.batches) <= 5
    assert np.median(simulation.batches) == 5


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        (Waiting(1, 0, 1, 0.0), 1),
        (Waiting(2, 0, 8, 0.0), 2),  # nothing else arrives
        (Waiting(2, 3, 8, 0.0), 0),  # it will in a moment
        (Waiting(2, 3, 8, 0.005), 2),  # not for longer than the window
        (Waiting(9, 3, 16, 0.0), 8),
        (Waiting(9, 0, 40, 0.0), 9),
        (Waiting(40, 0, 80, 0.0), 10),  # in four calls, none of them small
        (Waiting(3, 0, 0, 0.0), 1),  # held for so long that the peak is forgotten
    ],
)
def test_decisions(waiting: Waiting, expected: int) -> None:
    assert choose_batch(waiting, BatchCosts(), 12, 0.004) == expected


def test_a_size_that_costs_as_much_as_a_larger_one_is_avoided() -> None:
    steps = BatchCosts({size: 0.01 * (8 if size <= 8 else 16) for size in range(1, 17)})  # as where 9 were padded to 16
    assert choose_batch(Waiting(9, 0, 32, 0.0), steps, 16, 0.004) == 8
    assert choose_batch(Waiting(15, 0, 32, 0.0), steps, 16, 0.004) == 15


def test_the_cap_is_the_best_size_within_the_latency() -> None:
    costs = BatchCosts({1: 0.02, 2: 0.03, 4: 0.05, 8: 0.09, 16: 0.2})
    assert costs.largest_size(0.25, 16) == 8  # 16 takes too long
    assert costs.largest_size(1.0, 16) == 8  # and gives fewer answers per second
    assert costs.largest_size(0.07, 16) == 2
    assert costs.largest_size(0.001, 16) == 2  # one alone takes longer than that: no more than twice as long as one
    assert costs.largest_size(0.25, 4) == 4
    assert BatchCosts().largest_size(0.25, 16) == 16
    assert costs.of(3) == pytest.approx(0.04)
    assert costs.of(32) == 0.4


def test_peaks_are_forgotten_after_two_seconds() -> None:
    peak = Peak()
    peak.note(9, 10.0)
    assert [peak.value(now) for now in (10.5, 11.5, 12.5, 20.0)] == [9, 9, 0, 0]
