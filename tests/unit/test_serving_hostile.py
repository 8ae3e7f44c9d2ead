"""What a client sends is never more than its own trouble: names and texts that cannot be printed, sent on or counted on."""

from __future__ import annotations

import io
import json
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from serving_house import STATE as STATE4
from serving_house import House, act_body, frame, open_house
from test_serving_decoders import IMAGE, STATE, reader
from websockets.exceptions import InvalidStatus

from prismatic.serving import service
from prismatic.serving.answering import error_response
from prismatic.serving.measuring import idle_observations
from prismatic.serving.protocols import openpi, openvla_rest
from prismatic.serving.service import ServiceOptions
from prismatic.wire.arrays import describe_names, json_array, pack_openpi, read_json
from prismatic.wire.errors import MAX_MESSAGE_CHARACTERS, RequestError, UnknownPathError
from prismatic.wire.msgpack_reader import read_msgpack

HALF = '"\\ud800"'  # as JSON writes half a character
WHOLE = act_body().decode()


def is_well(house: House) -> None:
    """Whoever asks next is answered."""
    assert house.request("/act", act_body())[0] == 200
    for path in ("/info", "/status"):
        assert house.request(path)[0] == 200, path
    for path in ("/policy", "/"):
        with house.websocket(path) as client:
            assert "action_names" in read_msgpack(client.recv(timeout=10))


@pytest.mark.parametrize(
    "body",
    [
        f"{{{HALF}: {{}}, {WHOLE[1:]}",
        f'{{{HALF}: {{}}, "instruction": "a"}}',
        f'{{"instruction": {HALF}}}',
        json.dumps({"encoded": f"{{{HALF}: {{}}, {WHOLE[1:]}"}),
        f'{{"front": {{{HALF}: [{HALF}]}}, {WHOLE[1:]}',
    ],
)
def test_half_a_character_in_json_is_refused_and_forgotten(body: str) -> None:
    with open_house() as house:
        status, text = house.request("/act", body.encode(), {"Content-Type": "application/json"})
        assert status == 400
        assert "half a character" in json.loads(text)["error"]
        is_well(house)


def test_half_a_character_as_bytes_or_alone_is_refused() -> None:
    for body in (b'{"\xed\xa0\x80": 1}', '{"\ud800": 1}', f"[{HALF}]", HALF):
        with pytest.raises(RequestError, match="half a character"):
            read_json(body)
    assert read_json('["\\ud83e\\udd16", "ü"]') == ["\U0001f916", "ü"]


def test_half_a_character_in_a_npz_file_is_refused() -> None:
    stream = io.BytesIO()
    np.savez(stream, full_image=IMAGE, wrist_image=IMAGE, state=STATE, instruction=np.array("lift \ud800"))
    with pytest.raises(RequestError, match="half a character"):
        openvla_rest.decode_act(stream.getvalue(), reader(), "application/x-npz")


@pytest.mark.parametrize("kind", [RequestError, UnknownPathError])
def test_an_error_can_always_be_sent(kind: type[RequestError]) -> None:
    error = kind("no image \ud800 " + "x" * 10**6)
    assert len(str(error)) <= MAX_MESSAGE_CHARACTERS + 10
    assert "no image \\ud800 x" in json.loads(bytes(error_response(error).body))["error"]


def test_names_that_are_quoted_and_kept_are_few_and_short() -> None:
    own, unknown = reader(), {f"view {number} {'n' * 10**5}": IMAGE for number in range(100)}
    with pytest.raises(RequestError) as missing:
        openpi.decode_observation(pack_openpi({"images": unknown, "state": STATE, "prompt": "go"}), own)
    assert len(str(missing.value)) < MAX_MESSAGE_CHARACTERS
    assert str(missing.value).endswith("GET /info lists the names of each protocol")
    assert "and 92 more" in str(missing.value)
    openpi.decode_observation(pack_openpi({"images": {**unknown, "primary": IMAGE, "wrist": IMAGE}, "state": STATE, "prompt": "go"}), own)
    assert 0 < len(own.ignored_names) <= 32
    assert max(map(len, own.ignored_names)) <= 64
    assert describe_names(["a", "b"]) == "'a', 'b'"


def test_two_long_names_of_one_camera_are_told_apart_from_the_advice() -> None:
    names: dict[str, Any] = {f"wrist_{side}_{'n' * 10**5}": json_array(IMAGE) for side in "ab"}
    body = json.dumps({"full_image": json_array(IMAGE), **names, "state": json_array(STATE), "instruction": "go"})
    with pytest.raises(RequestError, match="GET /info lists the names"):
        openvla_rest.decode_act(body.encode(), reader())


ROBOT_ARMS = "\U0001f9be" * 1024  # characters; four tokens each


@pytest.mark.parametrize("protocol", ["act", "policy"])
def test_an_instruction_of_more_tokens_than_the_model_reads_is_refused(protocol: str) -> None:
    with open_house() as house:
        limit = house.policy.max_prompt_tokens
        assert house.policy.num_prompt_tokens(ROBOT_ARMS) > 4000 > 2048 > limit > 1900
        if protocol == "act":
            status, text = house.request("/act", act_body(instruction=ROBOT_ARMS))
            assert status == 400
        else:
            with house.websocket() as client:
                client.recv()
                client.send(frame(prompt=ROBOT_ARMS))
                text = client.recv()
        assert f"tokens, the policy reads at most {limit:,}; say it in fewer words" in text
        assert house.metric("prismatic_queue_wait_seconds_count") == 0  # nobody waited for it
        fitting = ROBOT_ARMS[: (limit - house.policy.num_prompt_tokens("a")) // 4]
        assert house.request("/act", act_body(instruction=fitting))[0] == 200
        with pytest.raises(ValueError, match="say it in fewer words"):  # without a server
            house.policy.predict([replace(idle_observations(house.policy, 1)[0], instruction=ROBOT_ARMS)])


def test_nobody_is_padded_to_a_long_instruction() -> None:
    with open_house() as house:
        house.engine.go.clear()
        texts = ["lift", "put " * 200, "lift", "push " * 200, "lift"]
        threads = [threading.Thread(target=house.request, args=("/act", act_body(instruction=text))) for text in texts]
        threads[0].start()
        house.eventually(lambda: house.engine.calls == [1])
        for number, thread in enumerate(threads[1:], 1):
            thread.start()
            house.eventually(lambda number=number: house.service.batcher.queue_length == number)  # type: ignore[misc]
        house.engine.go.set()
        for thread in threads:
            thread.join()
        short, *long = (house.policy.num_prompt_tokens(text) for text in texts[:4])
        assert sorted(house.engine.lengths) == sorted([[short], [short, short], [long[0]], [long[2]]])


def test_a_limit_below_a_megabyte_is_told_as_it_is() -> None:
    with open_house(ServiceOptions(max_body_bytes=1 << 19)) as house:
        status, text = house.request("/act", b"x" * 600_000)
        assert status == 413
        assert "the body exceeds 0.5 MB (--max_body_mb)" in text


@pytest.mark.parametrize("query", ["adapters=b", "Adapter=b", "adaptor=b", "ADAPTER=b", "adapter=&adapters=b"])
def test_a_misspelt_adapter_is_not_taken_for_none(query: str) -> None:
    with open_house() as house:
        status, text = house.request(f"/act?{query}", act_body())
        assert status == 400
        assert "did you mean adapter" in text
        assert house.request(f"/info?{query}")[0] == 400
        with pytest.raises(InvalidStatus) as refused, house.websocket(f"/policy?{query}"):
            pass
        assert refused.value.response.status_code == 400
        for known in ("", "adapter=", "api_key=x", "run=7&client=me"):
            assert house.request(f"/act?{known}", act_body())[0] == 200


@pytest.mark.parametrize("value", [1e300, -1e39])
def test_a_state_that_the_policys_numbers_cannot_hold_is_refused_by_name(value: float) -> None:
    with open_house() as house:
        state = STATE4.copy()
        state[1] = value
        status, text = house.request("/act", act_body(state=json_array(state)))
        assert status == 400
        assert "y [m] is" in text
        assert house.engine.calls == []
        assert house.request("/readyz")[0] == 200


def test_asking_whether_a_failed_policy_works_again_is_no_flood() -> None:
    with open_house() as house:
        house.engine.fault = RuntimeError("broken for a while")
        assert house.request("/act", act_body())[0] == 500
        house.engine.go.clear()
        before = len(house.engine.calls)
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(house.request("/readyz")[0])) for _ in range(20)]
        for thread in threads:
            thread.start()
        house.eventually(lambda: len(house.engine.calls) > before)
        assert house.service.batcher.queue_length == 0
        house.engine.fault = None
        house.engine.go.set()
        for thread in threads:
            thread.join()
        assert found == [200] * 20
        assert len(house.engine.calls) == before + 1
        house.engine.fault = RuntimeError("broken for good")
        assert house.request("/act", act_body())[0] == 500
        before, started = len(house.engine.calls), time.monotonic()
        assert {house.request("/readyz")[0] for _ in range(4)} == {503}
        assert len(house.engine.calls) - before <= 2 + (time.monotonic() - started) / service._PROBE_AGAIN_S
        assert len(house.engine.calls) > before
