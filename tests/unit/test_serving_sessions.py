"""One robot stays one client, however often its connection breaks: what it was told, what it was not, and whom people see."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from serving_house import IMAGE, STATE, House, act_body, frame, open_house

from prismatic.acting.client import ConnectionOptions, PolicyClient, ServerUnavailableError
from prismatic.policy.checkpoint.parts import PolicyParts
from prismatic.serving import clients
from prismatic.vla.reference import Reference, small_picture
from prismatic.vla.types import Observation
from prismatic.wire import keys
from prismatic.wire.arrays import json_array
from prismatic.wire.msgpack_reader import read_msgpack

DEGREES = np.full(4, 40.0)
FIRST = Observation({"primary": IMAGE, "wrist": IMAGE}, "lift", STATE)
COVERED = np.where(np.arange(32)[:, None, None] < 8, 0, 255).astype(np.uint8) * np.ones((32, 32, 3), np.uint8)
LATER = replace(FIRST, images={"primary": COVERED, "wrist": COVERED})  # as no demonstration began


def with_pictures(parts: PolicyParts) -> PolicyParts:
    """The demonstrations began with IMAGE before both cameras."""
    seen = small_picture(IMAGE)[None].repeat(4, 0)
    return replace(parts, reference=Reference({"primary": seen, "wrist": seen}, ("lift",)))


@pytest.fixture
def house() -> Iterator[House]:
    with open_house(change=with_pictures) as running:
        yield running


def client_of(house: House, scheme: str) -> PolicyClient:
    client = PolicyClient(f"{scheme}://127.0.0.1:{house.port}", ConnectionOptions(reply_timeout_s=1.0))
    client.connect()
    return client


def ask(client: PolicyClient, seen: Observation, begins: bool = False) -> None:
    """Asks until there is an answer: on a machine that is busy the client's short patience may end by itself."""
    until = time.monotonic() + 60
    while True:
        try:
            client.infer(seen, begins)
            return
        except ServerUnavailableError:
            if time.monotonic() > until:
                raise


def time_out(house: House, client: PolicyClient, seen: Observation, begins: bool = False) -> None:
    house.engine.go.clear()
    with pytest.raises(ServerUnavailableError):
        client.infer(seen, begins)
    house.engine.go.set()


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_after_a_time_out_the_middle_of_a_rollout_is_not_taken_for_its_start(house: House, scheme: str) -> None:
    client = client_of(house, scheme)
    ask(client, FIRST, begins=True)
    ask(client, LATER)
    for _ in range(2):
        time_out(house, client, LATER)
        ask(client, LATER)
    assert client.take_warnings() == []
    ask(client, LATER, begins=True)  # a rollout that begins so is another thing
    assert client.take_warnings()
    client.close()


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_a_warning_is_handed_out_once_whatever_happens_to_the_connection(house: House, scheme: str) -> None:
    client, odd = client_of(house, scheme), replace(FIRST, proprio=DEGREES)
    time_out(house, client, odd, begins=True)  # nobody has been told
    ask(client, odd, begins=True)
    told = client.take_warnings()
    assert len(told) == 1
    assert "the state is far" in told[0]
    client.close()  # at once after the answer: for the server it may be lost
    ask(client, odd)
    time_out(house, client, odd)
    ask(client, odd)
    ask(client, odd)
    assert client.take_warnings() == []
    client.close()


def answers(house: House, *visits: list[dict[str, str]]) -> list[int]:
    """How many warnings each `POST /act` with these headers is answered with."""
    body, found = act_body(state=json_array(DEGREES)), []
    for headers in [headers for visit in visits for headers in visit]:
        assert house.request("/act", body, headers)[0] == 200
        found.append(len(json.loads(house.headers.get(keys.WARNINGS_HEADER, "[]"))))
    return found


def test_what_a_lost_answer_held_is_handed_out_again_over_http() -> None:
    mine, back = {keys.SESSION_HEADER: "one"}, {keys.SESSION_HEADER: "one", keys.RETURNS_HEADER: "1"}
    with open_house() as house:
        assert answers(house, [back], [back], [back, mine], [back, mine]) == [1, 1, 1, 0, 0, 0]
        assert answers(house, [{keys.SESSION_HEADER: "two"}, back]) == [1, 0]
        assert answers(house, [{}, {}]) == [1, 0]  # a client that names no session


@pytest.mark.parametrize("path", ["/policy", "/"])
def test_what_a_lost_answer_held_is_handed_out_again_on_a_websocket(path: str) -> None:
    def visit(name: str, count: int) -> list[int]:
        with house.websocket(path, additional_headers={keys.SESSION_HEADER: name} if name else {}) as websocket:
            websocket.recv()
            found = []
            for _ in range(count):
                websocket.send(frame(DEGREES))
                found.append(len(read_msgpack(websocket.recv()).get("warnings", [])))
            return found

    with open_house() as house:
        assert [visit("one", 1), visit("one", 1), visit("one", 3), visit("one", 2)] == [[1], [1], [1, 0, 0], [0, 0]]
        assert visit("two", 2) == [1, 0]
        assert [visit("", 2), visit("", 2)] == [[1, 0], [1, 0]]  # each a client of its own


def test_an_old_connection_takes_nothing_that_the_new_one_is_to_be_told() -> None:
    with open_house() as house:
        mine = {keys.SESSION_HEADER: "one"}
        with house.websocket(additional_headers=mine) as old, house.websocket(additional_headers=mine) as new:
            told = {}
            for websocket in (old, new):
                websocket.recv()
            for name, websocket in (("old", old), ("new", new)):
                websocket.send(frame(DEGREES))
                told[name] = len(read_msgpack(websocket.recv()).get("warnings", []))
            assert told == {"old": 0, "new": 1}
            (shown,) = json.loads(house.request("/status")[1])["clients"]
            assert shown["answers"] == 2
        house.eventually(lambda: json.loads(house.request("/status")[1])["clients"] == [])


def test_the_page_shows_who_is_there_and_no_robot_that_has_gone(house: House) -> None:
    for _ in range(3):
        client = client_of(house, "http")
        client.infer(FIRST)
        client.close()
    shown = house.service.clients.facts()
    assert len(shown) == 3
    for one in house.service.clients._known.values():
        one.last_seen -= clients._SHOWN_S
    one.last_seen += 10.0
    assert [facts["name"] for facts in house.service.clients.facts()] == [one.name]
    assert len(house.service.clients._known) == 3  # a robot that comes back is not told everything again


def test_clients_that_are_remembered_are_bounded_and_those_that_are_connected_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_MAX_KNOWN", 4)
    known = clients.Clients()
    here = known.connect({keys.SESSION_HEADER: "here"}, "127.0.0.1:1", "policy")
    for number in range(20):
        known.of_http({keys.SESSION_HEADER: str(number)}, "127.0.0.1")
    assert known.connect({keys.SESSION_HEADER: "here"}, "127.0.0.1:2", "policy") is here
    assert len(known._known) == 4
    for _ in range(2):
        assert here in known._open
        known.disconnect(here)
    assert here not in known._open
