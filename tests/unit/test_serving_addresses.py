"""A flood under many names, or over many websockets, comes from one address and waits behind itself; robots of one address share it."""

from __future__ import annotations

import http.client
import sys
import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from serving_house import House, act_body, frame, open_house

from prismatic.serving.batching import BatchingOptions
from prismatic.serving.places import Place, Places
from prismatic.serving.service import ServiceOptions
from prismatic.serving.turns import _ROBOTS, Turns
from prismatic.wire import keys
from prismatic.wire.errors import BusyError

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="every 127.x.y.z is an address of this machine on Linux alone")


def place(client: str, address: str, is_begun: bool = False) -> Place:
    return Place(client, address=address, is_begun=is_begun)


def test_an_address_gets_a_place_from_one_that_has_more_whatever_its_clients_are_called() -> None:
    lost: list[Place] = []
    house = Places(6, lost.append)
    flood = [place(str(number), "flooder", is_begun=number == 0) for number in range(6)]
    for one in flood:
        house.take(one)
    for name in ("one", "two", "three"):
        house.take(place(name, "laboratory"))
    assert lost == flood[:2:-1]  # the latest first
    with pytest.raises(BusyError, match="--max_queue"):
        house.take(place("four", "laboratory"))  # both addresses have three, and its robots one each
    house.take(place("robot", "field"))
    assert [one.address for one in lost[3:]] in (["flooder"], ["laboratory"])
    with pytest.raises(BusyError, match="--max_queue"):
        house.take(place("more", "flooder"))


def test_robots_of_one_address_share_what_it_has() -> None:
    lost: list[Place] = []
    house = Places(6, lost.append)
    greedy = [place("greedy", "laboratory") for _ in range(3)]
    for one in (*greedy, place("one", "laboratory"), place("far", "field"), place("far", "field")):
        house.take(one)
    house.take(place("two", "laboratory"))
    assert lost == [greedy[2]]
    with pytest.raises(BusyError):
        house.take(place("two", "laboratory"))


def test_a_request_that_the_policy_computes_is_no_place_to_take() -> None:
    house = Places(2, lambda lost: None)
    for number in range(2):
        house.take(place(str(number), "flooder", is_begun=True))
    with pytest.raises(BusyError, match="--max_queue"):
        house.take(place("robot", "field"))


def test_turns_of_many_names_and_of_robots_behind_one_address() -> None:
    turns = Turns()
    flood = [turns.next_of(f"name {number}", "flooder") for number in range(3 * _ROBOTS)]
    assert flood == sorted([0, 1, 2] * _ROBOTS)
    assert [turns.next_of(f"robot {number}", "laboratory") for number in range(_ROBOTS)] == [0] * _ROBOTS
    turns.serve(2)
    assert turns.next_of("robot 0", "laboratory") == turns.next_of("another", "flooder") == 2
    assert not [key for key in turns._counts if key[0] < 2]


def test_one_clients_flood_does_not_move_other_robots_of_its_address() -> None:
    turns = Turns()
    assert [turns.next_of("flood", "laboratory") for _ in range(40)] == list(range(40))
    assert [turns.next_of(f"robot {number}", "laboratory") for number in range(_ROBOTS - 1)] == [0] * (_ROBOTS - 1)


def ask(house: House, address: str, session: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", house.port, timeout=60, source_address=(address, 0))
    connection.request("POST", "/act", act_body(), {keys.SESSION_HEADER: session})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.fixture
def held() -> Iterator[House]:
    """A server whose policy waits and which has room for eight."""
    with open_house(ServiceOptions(BatchingOptions(max_queue=8, max_batch_size=1))) as house:
        house.engine.go.clear()
        yield house


@on_linux
@pytest.mark.parametrize("kind", ["names", "websockets"])
def test_a_flood_from_one_address_does_not_refuse_a_robot_at_another(held: House, kind: str) -> None:
    statuses: list[int] = []
    robot = threading.Thread(target=lambda: statuses.append(ask(held, "127.0.0.2", "robot")))
    websockets, threads = [], []
    for number in range(8):
        if kind == "websockets":
            websockets.append(held.open_websocket())
            websockets[-1].recv()
            websockets[-1].send(frame())
        else:
            threads.append(threading.Thread(target=ask, args=(held, "127.0.0.1", f"name {number}")))
            threads[-1].start()
        held.eventually(lambda number=number: held.service.batcher.queue_length == number and held.engine.calls == [1])  # type: ignore[misc]
    robot.start()
    held.eventually(lambda: held.metric('prismatic_requests_dropped_total{reason="made room"}') == 1 and not statuses)
    held.eventually(lambda: held.service.batcher.queue_length == 7)
    held.engine.go.set()
    for thread in (robot, *threads):
        thread.join()
    for websocket in websockets:
        websocket.close()
    assert statuses == [200]


@on_linux
def test_robots_of_one_address_are_all_answered_where_nobody_floods() -> None:
    with open_house(ServiceOptions(BatchingOptions(max_queue=16))) as house:
        statuses: list[int] = []

        def work(name: str, address: str) -> None:
            statuses.extend(ask(house, address, name) for _ in range(4))

        robots = [threading.Thread(target=work, args=(f"robot {number}", f"127.0.0.{1 + number // 6}")) for number in range(7)]
        for robot in robots:
            robot.start()
        for robot in robots:
            robot.join()
        assert statuses == [200] * 28
