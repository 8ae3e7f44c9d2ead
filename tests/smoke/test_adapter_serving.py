"""deploy.py as a process with two adapters over one base model: chosen per request and per connection, each with its own head and units."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from adapter_checkpoints import write_base, write_run
from policy_server import Server

from prismatic.commands.deploy import DeployConfig
from prismatic.policy.checkpoint.loading import LoadOptions
from prismatic.policy.checkpoint.spec import HeadSpec
from prismatic.policy.policy import Policy
from prismatic.vla.types import Observation

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from prismatic.wire.arrays import as_array, json_array, pack_openpi
from prismatic.wire.msgpack_reader import read_msgpack

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
BODY = json.dumps({"full_image": json_array(IMAGE), "state": json_array(np.zeros(8)), "instruction": "pick up the bowl"}).encode()
NAMES = ("a", "b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    base = write_base(folder / "base")
    for seed, name in enumerate(NAMES):
        write_run(folder / name, base, seed, HeadSpec(use_proprio=True), limit=1 + seed)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    running = Server(None, "--adapters", ",".join(f"{name}={folder / name}" for name in NAMES), "--robosuite_gripper", "False")
    yield running
    assert running.stop() == 0, "".join(running.lines)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, np.ndarray]:
    """What each run predicts that is loaded alone, its adapters unmerged."""
    seen = Observation({"primary": IMAGE}, "pick up the bowl", np.zeros(8))
    options = LoadOptions(keep_adapters=True, base_model=str(folder / "base"))
    actions = {name: Policy.from_pretrained(folder / name, "cpu", options=options).predict([seen])[0].actions for name in NAMES}
    merged = {name: Policy.from_pretrained(folder / name, "cpu").predict([seen])[0].actions for name in NAMES}
    assert np.abs(actions["a"] - actions["b"]).max() > 0.3
    for name in NAMES:  # merged weights are rounded to bfloat16
        np.testing.assert_allclose(actions[name], merged[name], atol=0.15)
    return actions


def test_requests_of_many_clients_are_not_mixed(server: Server, expected: dict[str, np.ndarray]) -> None:
    facts = json.loads(server.request("/info?adapter=b")[1])
    assert (facts["adapters"], facts["adapter"]) == (["a", "b"], "b")
    answers: dict[str, list[np.ndarray]] = {"": [], "a": [], "b": []}

    def ask(name: str) -> None:
        status, text, _ = server.request(f"/act?adapter={name}" if name else "/act", BODY)
        assert status == 200, text
        answers[name].append(np.stack([as_array(action, "action") for action in json.loads(text)]))

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("a", "b", "", "b", "a") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [len(found) for found in answers.values()] == [4, 8, 8]
    for name, found in answers.items():
        for actions in found:
            np.testing.assert_allclose(actions, expected[name or "a"], atol=1e-5)


def test_a_connection_chooses_its_adapter(server: Server, expected: dict[str, np.ndarray]) -> None:
    from websockets.sync.client import connect

    request = pack_openpi({"observation/image": IMAGE, "observation/state": np.zeros(8), "prompt": "pick up the bowl"})
    for name in NAMES:
        with connect(f"ws://127.0.0.1:{server.port}/?adapter={name}") as connection:
            assert read_msgpack(connection.recv(decode=False))["adapter"] == name
            connection.send(request)
            answer = read_msgpack(connection.recv(decode=False))
        np.testing.assert_allclose(as_array(answer["actions"], "actions"), expected[name], atol=1e-5)


def test_an_unknown_adapter_is_a_404(server: Server) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    for path, body in (("/act?adapter=c", BODY), ("/info?adapter=c", None)):
        status, text, _ = server.request(path, body)
        assert status == 404
        assert "adapter 'c' is not served here" in text
    with pytest.raises(InvalidStatus, match="404"):
        connect(f"ws://127.0.0.1:{server.port}/?adapter=c")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"adapters": "a"}, "expected name=folder,name=folder"),
        ({"adapters": "a=x,a=y"}, "with names that differ"),
        ({"adapters": "a=x", "pretrained_checkpoint": "y"}, "--pretrained_checkpoint and --adapters are both given"),
        ({}, "--pretrained_checkpoint and --adapters are missing"),
    ],
)
def test_adapters_that_are_named_wrongly(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeployConfig(**flags)
