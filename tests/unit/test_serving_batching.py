"""Batches form when several clients ask, one bad request disturbs nobody, and the house has a limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="needs the extra [serve]")

from prismatic.serving.batching import Batcher, BatchingOptions, PolicyCalls
from prismatic.serving.metrics import ServerMetrics
from prismatic.serving.observations import PolicyRequest, RequestGroup
from prismatic.serving.scheduling import BatchCosts
from prismatic.vla.types import ActionChunk, Observation
from prismatic.wire.errors import BusyError, PredictionError, RequestError, SlowPredictionError


class Recorder:
    """A policy that notes the batches it gets; instructions say what goes wrong."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begun: list[int] = []  # observations of each call
        self.calls_back = True
        self.go = threading.Event()
        self.go.set()

    def __call__(self, group: RequestGroup, observations: Sequence[Observation], meanwhile: Callable[[], None]) -> list[ActionChunk]:
        self.begun.append(len(observations))
        if self.calls_back:
            meanwhile()
        self.go.wait(5)
        texts = [observation.instruction for observation in observations]
        self.batches.append(texts)
        if "refuse" in texts:
            raise ValueError("no such thing")
        if "break" in texts:
            raise RuntimeError("device lost")
        return [ActionChunk(np.full((2, 3), np.nan if text == "nan" else len(text))) for text in texts]


@pytest.fixture
def policy() -> Recorder:
    return Recorder()


@pytest.fixture
def batcher(policy: Recorder) -> Iterator[Batcher]:
    made = Batcher(PolicyCalls(policy), BatchingOptions(max_batch_size=4, max_queue=3, window_s=0.05), ServerMetrics())
    yield made
    policy.go.set()
    made.close()


def request(text: str, unnorm_key: str | None = None) -> PolicyRequest:
    return PolicyRequest(Observation({}, text), unnorm_key)


def test_waiting_requests_are_predicted_together_at_most_the_maximum(batcher: Batcher, policy: Recorder) -> None:
    policy.go.clear()
    answers = [batcher.submit(request("a" * length)) for length in range(1, 8)]
    policy.go.set()
    assert [answer.result(60).actions[0, 0] for answer in answers] == [1, 2, 3, 4, 5, 6, 7]
    assert max(map(len, policy.batches)) == 4
    assert len(policy.batches) <= 3


def test_one_client_never_waits_for_others(policy: Recorder) -> None:
    made = Batcher(PolicyCalls(policy), BatchingOptions(max_batch_size=4, max_queue=3, window_s=600), ServerMetrics())
    try:
        for _ in range(5):
            made.submit(request("a")).result(60)  # a wait for others would last ten minutes
    finally:
        made.close()
    assert [len(batch) for batch in policy.batches] == [1] * 5


def test_answers_are_handed_out_when_the_next_batch_has_begun(batcher: Batcher, policy: Recorder) -> None:
    seen: list[int] = []  # batches begun when each answer was there
    policy.go.clear()
    answers = [batcher.submit(request("a" * length)) for length in range(1, 8)]
    for answer in answers:
        answer.add_done_callback(lambda _: seen.append(len(policy.begun)))
    policy.go.set()
    assert [answer.result(60).actions[0, 0] for answer in answers] == [1, 2, 3, 4, 5, 6, 7]
    ends = np.cumsum(policy.begun)
    batch_of = [int(np.searchsorted(ends, number, side="right")) for number in range(7)]
    assert seen == [min(batch + 2, len(policy.begun)) for batch in batch_of]  # the last one's at once


def test_answers_are_not_lost_when_the_next_call_fails_before_it_begins(batcher: Batcher, policy: Recorder) -> None:
    policy.calls_back = False
    policy.go.clear()
    first = batcher.submit(request("good"))
    while not policy.begun:
        time.sleep(0.001)
    bad = batcher.submit(request("break"))
    policy.go.set()
    assert first.result(60).actions[0, 0] == 4
    with pytest.raises(PredictionError):
        bad.result(60)


def test_different_statistics_are_not_mixed(batcher: Batcher, policy: Recorder) -> None:
    policy.go.clear()
    answers = [batcher.submit(request(key * 2, key)) for key in ("a", "b", "a", "b")]
    policy.go.set()
    assert all(answer.result(60) is not None for answer in answers)
    assert all(len(set(texts)) == 1 for texts in policy.batches)


def test_different_adapters_are_not_mixed(batcher: Batcher, policy: Recorder) -> None:
    policy.go.clear()
    answers = [batcher.submit(PolicyRequest(Observation({}, name), "arm", name)) for name in ("a", "bb", "a", "bb", "a")]
    policy.go.set()
    assert [answer.result(60).actions[0, 0] for answer in answers] == [1, 2, 1, 2, 1]
    assert all(len(set(texts)) == 1 for texts in policy.batches)
    assert max(map(len, policy.batches)) > 1


@pytest.mark.parametrize(("text", "kind", "message"), [("refuse", RequestError, "no such"), ("break", PredictionError, "RuntimeError")])
def test_a_request_that_fails_disturbs_no_other(batcher: Batcher, policy: Recorder, text: str, kind: type[Exception], message: str) -> None:
    policy.go.clear()
    good, bad, other = (batcher.submit(request(name)) for name in ("good", text, "other"))
    policy.go.set()
    assert (good.result(60).actions[0, 0], other.result(60).actions[0, 0]) == (4, 5)
    with pytest.raises(kind, match=message):
        bad.result(60)


def test_actions_that_are_not_finite_are_never_sent(batcher: Batcher) -> None:
    with pytest.raises(PredictionError, match="not finite"):
        batcher.submit(request("nan")).result(60)


def test_the_house_is_bounded_and_closes(batcher: Batcher) -> None:
    with batcher.admission(), batcher.admission(), batcher.admission(), pytest.raises(BusyError, match="--max_queue"), batcher.admission():
        pass
    assert batcher.admitted == 0
    batcher.refuse_new()
    with pytest.raises(BusyError, match="shutting down"), batcher.admission():
        pass


def test_a_slow_moment_refuses_nothing_for_ever(batcher: Batcher) -> None:
    batcher.costs[None] = BatchCosts({1: 100.0})  # measured while the machine was busy
    batcher._fastest[None] = 100.0
    for _ in range(3):
        assert batcher.submit(request("abc"), time.monotonic() + 5).result(60).actions[0, 0] == 3
    assert batcher._fastest[None] < 5


def test_what_waited_and_cannot_be_in_time_is_not_computed(batcher: Batcher, policy: Recorder) -> None:
    policy.go.clear()
    first = batcher.submit(request("first"))
    while batcher.health.busy_since is None:
        time.sleep(0.001)
    late = batcher.submit(request("late"), time.monotonic() + 0.2)
    in_time = batcher.submit(request("in time"), time.monotonic() + 60)
    time.sleep(0.15)  # a call takes so long that the second one could not be answered within 0.2 s
    policy.go.set()
    assert first.result(60) is not None
    with pytest.raises(SlowPredictionError):
        late.result(60)
    assert in_time.result(60) is not None
    assert "late" not in [text for texts in policy.batches for text in texts]
