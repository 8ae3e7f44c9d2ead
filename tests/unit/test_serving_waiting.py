"""A quiet server's client is not kept waiting: for nobody, for no turn of the event loop without an answer, for no second piece of one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from serving_house import act_body, http_head, open_house

from prismatic.serving import places
from prismatic.serving.batching import Batcher, BatchingOptions, PolicyCalls
from prismatic.serving.connections import HttpConnection
from prismatic.serving.metrics import ServerMetrics
from prismatic.serving.observations import PolicyRequest
from prismatic.serving.places import Place
from prismatic.serving.waiting import answer_of, ended_by
from prismatic.vla.types import ActionChunk, Observation
from prismatic.wire.errors import BusyError

BODY = act_body()


class TooLateError(Exception):
    pass


class OverError(Exception):
    pass


def hours() -> float:
    return 3600.0


def wait_for_answer(job: Future[Future[int]], seconds_left: Callable[[], float] = hours) -> asyncio.Task[int]:
    return asyncio.ensure_future(answer_of(job, seconds_left, TooLateError))


def test_the_event_loop_is_woken_once_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> tuple[int, int]:
        job, answer, woken = Future[Future[int]](), Future[int](), 0
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe

        def count(*arguments: Any) -> Any:
            nonlocal woken
            woken += 1
            return wake(*arguments)

        monkeypatch.setattr(loop, "call_soon_threadsafe", count)
        asking = wait_for_answer(job)
        await asyncio.sleep(0)
        job.set_result(answer)
        answer.set_result(7)
        return await asking, woken

    assert asyncio.run(ask()) == (7, 1)


def test_errors_of_reading_and_of_answering_arrive() -> None:
    async def ask(is_read: bool) -> None:
        job, answer = Future[Future[int]](), Future[int]()
        asking = wait_for_answer(job)
        await asyncio.sleep(0)
        if is_read:
            job.set_result(answer)
        (answer if is_read else job).set_exception(OverError())
        await asking

    for is_read in (False, True):
        with pytest.raises(OverError):
            asyncio.run(ask(is_read))


@pytest.mark.parametrize("moment", ["before it is read", "while it is read", "while it waits"])
def test_who_leaves_takes_his_request_along(moment: str) -> None:
    async def leave() -> tuple[Future[Future[int]], Future[int]]:
        job, answer = Future[Future[int]](), Future[int]()
        if moment != "before it is read":
            job.set_running_or_notify_cancel()
        asking = wait_for_answer(job)
        await asyncio.sleep(0)
        if moment == "while it waits":
            job.set_result(answer)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        if moment == "while it is read":
            job.set_result(answer)
        return job, answer

    job, answer = asyncio.run(leave())
    assert (job if moment == "before it is read" else answer).cancelled()


def test_a_request_whose_time_ends_while_it_is_read_is_given_up_then() -> None:
    async def ask() -> tuple[bool, Future[int]]:
        job, answer = Future[Future[int]](), Future[int]()
        job.set_running_or_notify_cancel()
        asking = wait_for_answer(job, lambda: 0.0)
        await asyncio.sleep(0.01)
        was_waiting = not asking.done()
        job.set_result(answer)
        with pytest.raises(TooLateError):
            await asking
        return was_waiting, answer

    was_waiting, answer = asyncio.run(ask())
    assert was_waiting
    assert answer.cancelled()


def test_who_ends_a_wait_from_outside_is_told_apart_from_other_cancellations() -> None:
    async def wait(is_cancelled: bool) -> bool:
        async def within() -> None:
            with ended_by(OverError) as end:
                asyncio.get_running_loop().call_soon(end)
                if is_cancelled:
                    asyncio.get_running_loop().call_soon(task.cancel)
                await asyncio.sleep(60)

        task = asyncio.ensure_future(within())
        try:
            await task
        except OverError:
            return not task.cancelled()
        return False

    assert asyncio.run(wait(is_cancelled=False))
    if hasattr(asyncio.Task, "uncancel"):
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(wait(is_cancelled=True))


def test_an_end_that_comes_behind_a_wait_ends_nothing() -> None:
    async def wait() -> str:
        with ended_by(OverError) as end:
            await asyncio.sleep(0)
        end()
        await asyncio.sleep(0)
        return "went on"

    assert asyncio.run(wait()) == "went on"


def test_a_request_that_is_alone_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long requests may be gathered: between queueing and the call of the policy there is no wait with an end to it."""
    with open_house() as house:
        batcher, waits = house.service.batcher, list[float]()
        wait = batcher._changed.wait

        def note(timeout: float) -> bool:
            if batcher._queue:
                waits.append(timeout)
            return wait(timeout)

        monkeypatch.setattr(batcher._changed, "wait", note)
        for _ in range(3):
            assert house.request("/act", BODY)[0] == 200
        assert waits == []
        assert house.engine.calls == [1, 1, 1]


class Noting:
    """A transport, and what was written to it."""

    def __init__(self, transport: asyncio.Transport, pieces: list[bytes]) -> None:
        self._transport, self._pieces = transport, pieces

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if data:
            self._pieces.append(bytes(data))
        self._transport.write(data)


def test_an_answer_leaves_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[bytes] = []
    made = HttpConnection.connection_made
    monkeypatch.setattr(HttpConnection, "connection_made", lambda one, transport: made(one, cast(Any, Noting(transport, pieces))))
    with open_house() as house:
        for path, body, status in (("/act", BODY, 200), ("/act", b"{}", 400), ("/info", None, 200), ("/nothing", None, 404)):
            pieces.clear()
            assert house.request(path, body)[0] == status
            answers = [piece for piece in pieces if piece.startswith(b"HTTP/1.1 ")]
            assert len(answers) == len(pieces) == 1
            assert answers[0].partition(b"\r\n\r\n")[2]


def test_one_who_asks_before_he_sends_is_told_to_go_on() -> None:
    """The interim answer is sent at once, and the answer behind it in one piece."""
    head = http_head(len(BODY)).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    with open_house() as house:
        sender = house.raw(head)
        assert sender.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        sender.sendall(BODY)
        assert sender.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        sender.close()


def test_small_segments_are_sent_at_once() -> None:
    """Nagle's algorithm is off on accepted connections."""
    with open_house() as house:
        client = house.raw()
        house.eventually(lambda: len(house.server.server_state.connections) == 1)
        (connection,) = house.server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.close()


def test_what_is_read_for_one_who_has_left_is_not_queued() -> None:
    metrics = ServerMetrics()
    batcher = Batcher(PolicyCalls(lambda *_: [ActionChunk(np.zeros((1, 1)))]), BatchingOptions(), metrics)
    with batcher.admission("robot") as place:
        pass
    assert place.is_left
    assert batcher.submit(PolicyRequest(Observation({}, "lift")), place=place).cancelled()
    assert batcher.queue_length == 0
    assert batcher.submit(PolicyRequest(Observation({}, "lift")), place=Place(is_read=True)).result(10).actions.shape == (1, 1)
    batcher.close()
    assert 'prismatic_requests_dropped_total{reason="client gone"} 1.0' in metrics.page().decode()


def test_pictures_that_were_refused_weigh_nothing_until_their_place_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder's thread is refused, and the event loop leaves the place some time later: meanwhile its client may ask again."""
    monkeypatch.setattr(places, "MAX_BYTES", 100)
    batcher = Batcher(PolicyCalls(lambda *_: []), BatchingOptions(), ServerMetrics())
    too_large = PolicyRequest(Observation({"primary": np.zeros((8, 8, 3), np.uint8)}, "lift"))
    with batcher.admission("robot", 10), batcher.admission("robot", 10) as place:
        with pytest.raises(BusyError, match="pictures are pending"):
            batcher.submit(too_large, place=place)
        with batcher.admission("robot", 10):
            assert batcher.admitted == 3
    batcher.close()
