"""Among clients: whose request is read and computed next, who gives up a place, and what is not even read."""

from __future__ import annotations

import gc
import json
import logging
import select
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from serving_house import STATE, House, act_body, frame, http_head, open_house

from prismatic.serving import connections, places
from prismatic.serving.batching import Batcher, BatchingOptions, PolicyCalls
from prismatic.serving.decoding import Decoders
from prismatic.serving.metrics import ServerMetrics
from prismatic.serving.observations import ObservationReader, PolicyRequest
from prismatic.serving.places import Place, Places
from prismatic.serving.turns import Turns
from prismatic.vla.types import ActionChunk, Observation
from prismatic.wire import keys
from prismatic.wire.arrays import json_array, pack_openpi
from prismatic.wire.errors import BusyError

BODY = act_body()


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The instructions that were decoded."""
    seen: list[str] = []
    read = ObservationReader.read

    def counted(self: ObservationReader, images: Any, state: Any, instruction: Any, *more: Any) -> PolicyRequest:
        seen.append(instruction)
        return read(self, images, state, instruction, *more)

    monkeypatch.setattr(ObservationReader, "read", counted)
    return seen


def test_turns_of_a_flood_and_of_one_who_asks_now_and_then() -> None:
    turns = Turns()
    assert [turns.next_of("flood") for _ in range(4)] == [0, 1, 2, 3]
    assert turns.next_of("robot") == 0
    turns.serve(2)
    assert turns.next_of("robot") == 2
    assert turns.next_of("flood") == 4
    turns.serve(9)
    assert turns.next_of("flood") == turns.next_of("robot") == 9


def test_bodies_are_read_in_turns_and_a_cancelled_one_is_not() -> None:
    cancelled, order, go = [], list[str](), [threading.Event() for _ in range(4)]
    decoders = Decoders(lambda: cancelled.append(1))
    held = [decoders.submit(number, lambda number=number: go[number].wait(10)) for number in range(4)]  # all threads
    jobs = [decoders.submit(name, lambda name=name: order.append(name)) for name in ["flood"] * 6 + ["one", "two"]]
    jobs[3].cancel()
    go[0].set()  # one thread alone reads the rest
    for job in [*jobs[:3], *jobs[4:]]:
        job.result(10)
    assert order == ["flood", "one", "two", *["flood"] * 4]
    assert len(cancelled) == 1
    for event in go:
        event.set()
    for job in held:
        job.result(10)
    with pytest.raises(ZeroDivisionError):
        decoders.submit("one", lambda: 1 // 0).result(10)
    decoders.close()


def test_the_policy_answers_in_turns_also_another_adapter() -> None:
    begun, go = list[str](), threading.Event()

    def predict(group: object, seen: Any, meanwhile: Callable[[], None]) -> list[ActionChunk]:
        begun.append("".join(one.instruction for one in seen))
        go.wait(10)
        return [ActionChunk(np.zeros((1, 1)))] * len(seen)

    batcher = Batcher(PolicyCalls(predict), BatchingOptions(max_batch_size=2), ServerMetrics())

    def ask(text: str, adapter: str | None = None) -> Any:
        return batcher.submit(PolicyRequest(Observation({}, text), adapter=adapter), place=Place(client=text, is_read=True))

    first = ask("first")
    while not begun:
        time.sleep(0.001)
    answers = [first, *(ask("F") for _ in range(6)), ask("R"), ask("A", "other")]
    go.set()
    for answer in answers:
        answer.result(10)
    batcher.close()
    assert begun == ["first", "FR", "A", "FF", "FF", "F"]


def test_a_place_goes_to_a_client_that_has_fewer() -> None:
    lost: list[Place] = []
    house = Places(4, lost.append)
    flood = [Place("flood") for _ in range(4)]
    for place in flood:
        house.take(place)
    flood[3].is_begun = True
    with pytest.raises(BusyError, match="--max_queue"):
        house.take(Place("flood"))
    for _ in range(2):
        house.take(Place("robot"))
    assert lost == [flood[2], flood[1]]
    with pytest.raises(BusyError, match="this client or its address has more requests there than others"):
        lost[0].check()
    with pytest.raises(BusyError, match="--max_queue"):
        house.take(Place("robot"))  # both have two
    assert len(house) == 4


def test_bytes_of_pending_pictures_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_BYTES", 100)
    lost: list[Place] = []
    house, flood, robot = Places(64, lost.append), [Place("flood", 45) for _ in range(2)], Place("robot", 10)
    for place in [*flood, robot]:
        house.take(place)
    house.weigh(robot, 30)
    assert lost == [flood[1]]
    with pytest.raises(BusyError, match="of pictures are pending"):
        house.weigh(robot, 80)
    house.leave(flood[0])
    house.weigh(robot, 300)  # alone, it may


def test_a_flood_does_not_refuse_a_robot() -> None:
    from prismatic.serving.service import ServiceOptions

    with open_house(ServiceOptions(BatchingOptions(max_queue=4))) as house:
        house.engine.go.clear()
        statuses: list[int] = []

        def ask(name: str) -> None:
            statuses.append(house.request("/act", BODY, {keys.SESSION_HEADER: name})[0])

        threads = [threading.Thread(target=ask, args=("flood",)) for _ in range(4)]
        threads[0].start()
        house.eventually(lambda: house.engine.calls == [1])
        for thread in threads[1:]:
            thread.start()
        house.eventually(lambda: house.service.batcher.queue_length == 3)
        threads.append(threading.Thread(target=ask, args=("robot",)))
        threads[-1].start()
        house.eventually(lambda: statuses == [503])
        house.engine.go.set()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [200, 200, 200, 200, 503]
        assert house.metric('prismatic_requests_dropped_total{reason="made room"}') == 1
        assert house.service.batcher.admitted == 0


@pytest.mark.skipif(not hasattr(socket, "TCP_CORK"), reason="needs Linux")
def test_what_is_sent_by_one_who_hangs_up_is_not_read(readings: list[str]) -> None:
    """The last bytes and the end of a connection are there at the same moment."""
    with open_house() as house:
        for _ in range(10):
            client = house.raw()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            client.sendall(http_head(len(BODY)) + BODY)
            client.close()
        for _ in range(10):
            with house.websocket() as websocket:
                websocket.recv()
                websocket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
                websocket.send(frame())
                websocket.socket.shutdown(socket.SHUT_RDWR)
        house.eventually(lambda: house.metric('prismatic_requests_dropped_total{reason="client gone"}') == 20)
        assert readings == []
        assert house.request("/act", BODY)[0] == 200
        assert readings == ["lift"]


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="needs Linux")
def test_a_look_at_a_connection_knows_more_than_the_event_loop() -> None:
    with open_house() as house:
        client = house.raw()
        house.eventually(lambda: bool(house.server.server_state.connections))
        connection: Any = next(iter(house.server.server_state.connections))
        assert not connections.has_left(connection.transport)
        busy, free = threading.Event(), threading.Event()
        connection.loop.call_soon_threadsafe(lambda: (busy.set(), free.wait(60)))
        assert busy.wait(60)
        client.close()
        house.eventually(lambda: connections.has_left(connection.transport))
        assert not connection.transport.is_closing()
        free.set()
        house.eventually(lambda: connection.transport.is_closing())
        assert connections.has_left(connection.transport)


def test_what_comes_too_late_is_not_read(readings: list[str]) -> None:
    with open_house() as house:
        client = house.raw(http_head(len(BODY), f"{keys.DEADLINE_HEADER}: 1\r\n"))
        time.sleep(0.02)
        client.sendall(BODY)
        assert client.recv(4096).startswith(b"HTTP/1.1 504")
        client.close()
        assert readings == []
        assert house.metric('prismatic_requests_dropped_total{reason="too late"}') == 1


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    logging.disable()  # pytest keeps what is logged, with the frames of its errors
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


LARGE = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)


def half_a_body(house: House, body: bytes, message: bytes) -> None:
    house.raw(http_head(len(body)) + body[: len(body) // 2]).close()


def a_whole_one(house: House, body: bytes, message: bytes) -> None:
    house.raw(http_head(len(body)) + body).close()


def a_damaged_one(house: House, body: bytes, message: bytes) -> None:
    assert house.request("/act", body[:-30])[0] == 400


def half_a_frame(house: House, body: bytes, message: bytes) -> None:
    with house.websocket() as client:
        client.recv()
        client.socket.sendall(bytes([0x82, 0xFF]) + len(message).to_bytes(8, "big") + bytes(4) + message[: len(message) // 2])
        client.socket.shutdown(socket.SHUT_RDWR)


def frames_ahead(house: House, body: bytes, message: bytes) -> None:
    house.engine.go.clear()
    with house.websocket() as client:
        client.recv()
        client.send(message)
        client.send(message)
        client.socket.shutdown(socket.SHUT_RDWR)
    house.engine.go.set()


@pytest.mark.parametrize("misdeed", [half_a_body, a_whole_one, a_damaged_one, half_a_frame, frames_ahead])
def test_what_misbehaving_clients_sent_is_free_at_once(no_collection: None, misdeed: Callable[[House, bytes, bytes], None]) -> None:
    body = act_body(full_image=json_array(LARGE), wrist_image=json_array(LARGE))
    message = pack_openpi({"images": {"primary": LARGE, "wrist": LARGE}, "state": STATE, "prompt": "lift"})
    with open_house() as house:

        def end() -> None:
            house.eventually(lambda: house.service.batcher.admitted == 0 and len(house.server.server_state.connections) == 0)
            assert house.request("/act", BODY)[0] == 200

        misdeed(house, body, message)
        end()
        tracemalloc.start()
        for _ in range(6):
            misdeed(house, body, message)
        end()
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert grown < 1.5 * len(message)  # of six; it was one each


def observations() -> int:
    """How many are there, of those that are asked here."""
    return sum(type(one) is Observation and one.instruction == "lift" for one in gc.get_objects())


@pytest.mark.parametrize("fault", [None, RuntimeError, ValueError])
@pytest.mark.parametrize("protocol", ["act", "policy"])
def test_pictures_of_a_request_that_fails_are_free_at_once(no_collection: None, fault: type[Exception] | None, protocol: str) -> None:
    with open_house() as house:
        before = observations()
        house.engine.fault = fault  # type: ignore[assignment]
        house.engine.go.clear() if fault is None else None
        for _ in range(4):
            if protocol == "act":
                assert house.request("/act", BODY, {keys.DEADLINE_HEADER: "100"})[0] in (400, 500, 504)
            else:
                with house.websocket(additional_headers={keys.DEADLINE_HEADER: "100"}) as client:
                    client.recv()
                    client.send(frame())
                    assert isinstance(client.recv(), str)
        house.engine.go.set()
        house.engine.fault = None
        assert house.request("/act", BODY)[0] == 200
        house.eventually(lambda: house.service.batcher.admitted == 0)
        assert json.loads(house.request("/status")[1])["queue"]["waiting"] == 0
        assert observations() - before <= 1  # the last one, for the status page
