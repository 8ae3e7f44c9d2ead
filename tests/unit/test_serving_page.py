"""What people see of a server: the status page, the health check of the image; and answers in msgpack."""

from __future__ import annotations

import http.client
import json
import re
import sys
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from serving_house import IMAGE, STATE, House, act_body, open_house

from prismatic.models.attention import PADDING_FORMS
from prismatic.serving.healthcheck import check
from prismatic.serving.service import ServiceOptions
from prismatic.wire import keys
from prismatic.wire.arrays import as_array, json_array, pack_openpi
from prismatic.wire.msgpack_reader import read_msgpack

BODY = act_body()
DEGREES = np.full(4, 40.0)


@pytest.fixture
def house() -> Iterator[House]:
    with open_house() as running:
        yield running


def test_threads_take_short_turns(house: House) -> None:
    """Else the one that calls the policy waits 5 ms for the interpreter, several times a call, while requests are decoded."""
    assert sys.getswitchinterval() <= 0.0005


def test_the_status_page_is_whole_and_gives_pictures_only_for_the_key() -> None:
    with open_house(ServiceOptions(api_key="secret")) as house:
        key = {"X-API-Key": "secret"}
        status, page = house.request("/")
        assert status == 200
        assert "width=device-width" in page
        assert not re.findall(r"""(?:src|href)=|https?://|@import|url\(""", page)  # nothing from elsewhere
        assert house.request("/status")[0] == 401
        assert house.request("/act", act_body(state=json_array(DEGREES)), {**key, keys.SESSION_HEADER: "robot-1"})[0] == 200
        facts = json.loads(house.request("/status", headers=key)[1])
        assert facts["problem"] is None
        policy, (client,) = facts["policies"][0], facts["clients"]
        assert (client["name"], client["answers"], len(client["warnings"])) == ("robot-1", 1, 1)
        assert (policy["last_seen"]["client"], policy["last_seen"]["instruction"]) == ("robot-1", "lift")
        assert all(url.startswith("data:image/jpeg;base64,/9j/") for url in policy["last_seen"]["pictures"].values())
        in_use = policy["in_use"]
        assert in_use == json.loads(house.request("/info", headers=key)[1])["in_use"]
        assert [in_use[name] for name in ("engine", "device", "dtype", "attention")] == ["eager", "cpu", "float32", "sdpa"]
        assert in_use["padding"] == PADDING_FORMS["sdpa"]
        assert in_use["quantized_layers"] == in_use["plain_calls"] == {}
        assert in_use["left"] == {"compiled": "--engine eager", "recorded": "--engine eager"}


def test_metrics_say_what_is_in_use_and_what_is_left(house: House) -> None:
    house.service.warm_up()
    page = house.request("/metrics")[1]
    assert 'prismatic_in_use{adapter="",name="engine",value="eager"} 1.0' in page
    assert 'prismatic_left{adapter="",name="recorded",reason="--engine eager"} 1.0' in page


def test_pictures_are_not_given_out_by_a_server_without_a_key(house: House) -> None:
    assert house.request("/act", BODY)[0] == 200
    facts = json.loads(house.request("/status")[1])
    assert facts["policies"][0]["last_seen"]["pictures"] == {}
    assert "set an API key" in facts["pictures"]


def test_the_health_check_of_the_image(house: House) -> None:
    assert check(house.port) is None
    house.service.health.fault = "CUDA error"
    assert check(house.port) == "the device failed (CUDA error)"
    assert check(9) is None  # nothing listens: another kind of container


def test_msgpack_is_answered_with_msgpack_where_that_is_asked_for(house: House) -> None:
    body = pack_openpi({"full_image": IMAGE, "wrist_image": IMAGE, "state": STATE, "instruction": "lift"})
    connection = http.client.HTTPConnection("127.0.0.1", house.port, timeout=60)
    connection.request("POST", "/act", body, {"Content-Type": "application/msgpack", "Accept": "application/msgpack"})
    reply = connection.getresponse()
    assert reply.status == 200
    found = as_array(read_msgpack(reply.read())["actions"], "actions")
    expected = np.stack([as_array(row, "action") for row in json.loads(house.request("/act", BODY)[1])])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    connection.close()
