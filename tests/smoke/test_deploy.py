"""deploy.py as a process on a tiny checkpoint, asked by every kind of client.

The published clients run in environments of their own (openpi-client needs numpy < 2, and typing-extensions, which it does not name).
They are built when PRISMATIC_CLIENT_TESTS=1, or found in the folder that PRISMATIC_CLIENT_ENVS names.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import launching
import numpy as np
import pytest
from client_environments import client_python
from policy_server import Server, write_checkpoint

from prismatic.policy.policy import Policy
from prismatic.vla.types import Observation

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

CLIENTS = Path(__file__).parent / "clients"
PACKAGES = {
    "openpi": ["openpi-client==0.1.2", "typing-extensions"],
    "vla_eval": ["vla-eval==0.8.0"],
    "oft": ["json-numpy==2.1.1", "requests", "numpy"],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("libero"), "LIBERO")


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Server]:
    running = Server(checkpoint)
    yield running
    assert running.stop() == 0, "".join(running.lines)


def encode(array: np.ndarray) -> dict[str, Any]:
    return {"__numpy__": base64.b64encode(array.tobytes()).decode(), "dtype": array.dtype.str, "shape": list(array.shape)}


def decode(value: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value["__numpy__"]), value["dtype"]).reshape(value["shape"])


def images() -> tuple[np.ndarray, np.ndarray]:
    """Primary and wrist image, as the client scripts make them."""
    rng = np.random.default_rng(0)
    primary, wrist = (rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(2))
    return primary, wrist


def act_body(**changes: Any) -> dict[str, Any]:
    primary, wrist = images()
    body = {"full_image": encode(primary), "wrist_image": encode(wrist), "state": encode(np.zeros(8)), "instruction": "pick up the bowl"}
    return {name: value for name, value in {**body, **changes}.items() if value is not None}


def expected_actions(checkpoint: Path) -> np.ndarray:
    primary, wrist = images()
    observation = Observation({"primary": primary, "wrist": wrist}, "pick up the bowl", np.zeros(8))
    return Policy.from_pretrained(checkpoint, device="cpu").predict([observation])[0].actions


def test_every_form_of_act_gives_what_the_policy_predicts(server: Server, checkpoint: Path) -> None:
    expected = expected_actions(checkpoint)
    status, text, _ = server.request("/act", json.dumps(act_body()).encode())
    assert status == 200, text
    np.testing.assert_allclose([decode(step) for step in json.loads(text)], expected, atol=1e-5)

    status, text, _ = server.request("/act", json.dumps({"encoded": json.dumps(act_body())}).encode())
    assert status == 200, text
    np.testing.assert_allclose([decode(step) for step in json.loads(json.loads(text))], expected, atol=1e-5)

    primary, _ = images()
    openvla = act_body(full_image=None, image=encode(primary), unnorm_key="arm")
    status, text, _ = server.request("/act", json.dumps(openvla).encode())
    assert status == 200, text
    np.testing.assert_allclose(decode(json.loads(text)), expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wrist_image": None}, "lacks camera wrist"),
        ({"full_image": None, "front": encode(images()[0])}, "lacks camera primary.*'front' is no camera name"),
        ({"full_image": encode(np.zeros((4, 4, 3), np.float32))}, "expected uint8, found float32"),
        ({"full_image": encode(np.zeros((4, 4), np.uint8))}, r"found shape \[4, 4\]"),
        ({"state": encode(np.full(8, np.nan))}, "is not finite"),
        ({"state": encode(np.zeros(7))}, r"needs 8 numbers .* found shape \[7\]"),
        ({"state": None}, "lacks the state"),
        ({"instruction": ""}, "instruction must be a text"),
        ({"unnorm_key": "leg"}, "unnorm_key 'leg' is not in the checkpoint; known: arm"),
        ({"full_image": {"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}}, r"dtype '\|O' is not accepted"),
    ],
)
def test_a_bad_request_is_a_400_that_says_what_to_fix(server: Server, changes: dict[str, Any], message: str) -> None:
    status, text, _ = server.request("/act", json.dumps(act_body(**changes)).encode())
    assert status == 400
    assert re.search(message, json.loads(text)["error"])


def test_facts_health_and_metrics(server: Server) -> None:
    assert server.request("/healthz")[:2] == (200, "OK\n")
    assert json.loads(server.request("/health")[1]) == {"status": "ok"}
    assert json.loads(server.request("/config")[1])["config"]["max_batch_size"] == 16
    assert server.request("/config?max_batch_size=900")[0] == 400
    info = json.loads(server.request("/info")[1])
    assert (info["platform"], info["cameras"], info["num_actions_chunk"], info["unnorm_keys"]) == (
        "LIBERO",
        ["primary", "wrist"],
        8,
        ["arm"],
    )
    assert info["policy"]["image"]["size"] == 28
    server.request("/act", json.dumps(act_body()).encode())
    page = server.request("/metrics")[1]
    assert re.search(r'prismatic_request_seconds_count\{protocol="act"\} [1-9]', page)
    assert re.search(r'prismatic_batch_size_bucket\{le="1.0"\} [1-9]', page)
    assert "prismatic_queue_length 0.0" in page


def test_many_clients_and_a_bad_one(server: Server, checkpoint: Path) -> None:
    """Eight clients ask at the same moments, until some of them have been predicted together: whether they are in one round is chance."""
    expected, statuses, rounds = expected_actions(checkpoint), [], 0
    together = threading.Barrier(8)

    def client(index: int) -> None:
        bad = index % 4 == 3
        body = json.dumps(act_body(state=encode(np.full(8, np.inf))) if bad else act_body()).encode()
        together.wait(timeout=60)
        for _ in range(5):
            status, text, _ = server.request("/act", body)
            statuses.append((bad, status))
            if not bad:
                np.testing.assert_allclose([decode(step) for step in json.loads(text)], expected, atol=1e-5)

    def are_batched() -> bool:
        page = server.request("/metrics")[1]
        total, alone = (
            int(float(re.search(rf"prismatic_batch_size_{name} (\d+)", page)[1]))  # type: ignore[index]
            for name in ("count", r'bucket\{le="1.0"\}')
        )
        return total > alone

    until = time.monotonic() + 60
    while rounds == 0 or (not are_batched() and time.monotonic() < until):
        threads = [threading.Thread(target=client, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rounds += 1
    assert sorted(statuses) == [(False, 200)] * 30 * rounds + [(True, 400)] * 10 * rounds
    assert are_batched(), "no two requests were predicted together"


def test_limits_keys_and_shutdown(checkpoint: Path, tmp_path: Path) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    (tmp_path / "key").write_text("secret\n")
    limits = ("--api_key_file", str(tmp_path / "key"), "--max_body_mb", "0.2", "--max_queue", "1", "--batch_window_ms", "0")
    server = Server(checkpoint, *limits)
    body, key = json.dumps(act_body()).encode(), {"Authorization": "Api-Key secret"}
    assert server.request("/act", body)[0] == 401
    assert server.request("/act", body, {"Authorization": "Api-Key other"})[0] == 401
    assert server.request("/info")[0] == server.request("/metrics")[0] == 401
    assert server.request("/healthz")[0] == 200
    assert server.request("/act", body, key)[0] == 200
    assert server.request("/act", body, {"X-API-Key": "secret"})[0] == 200
    status, text, _ = server.request("/act", b"x" * 300_000, key)
    assert status == 413
    assert "--max_body_mb" in text
    for path in ("/", "/policy", "/vla-eval"):
        with pytest.raises(InvalidStatus, match="401"):
            connect(f"ws://127.0.0.1:{server.port}{path}")
    replies: list[tuple[int, dict[str, str]]] = []

    def client() -> None:
        for _ in range(10):
            status, _, headers = server.request("/act", body, key)
            replies.append((status, headers))

    threads = [threading.Thread(target=client) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _ in replies} == {200, 503}
    assert all(int(headers["retry-after"]) >= 1 for status, headers in replies if status == 503)
    assert server.stop() == 0
    assert any("all requests are answered" in line for line in server.lines)


def test_what_the_warm_up_has_made_is_not_walked_through_amid_requests(checkpoint: Path, tmp_path: Path) -> None:
    walk = "lambda *_: print('walked through', len(gc.get_objects()), flush=True)"
    (tmp_path / "sitecustomize.py").write_text(f"import gc, signal\nsignal.signal(signal.SIGUSR1, {walk})\n")
    command = [sys.executable, "vla-scripts/deploy.py", "--pretrained_checkpoint", str(checkpoint), "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path}{os.pathsep}{launching.ROOT}"}
    server = subprocess.Popen(command, cwd=launching.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    try:
        found = None
        for line in server.stdout:
            if "serving on" in line:
                server.send_signal(signal.SIGUSR1)
            if found := re.match(r"walked through (\d+)", line):
                break
    finally:
        server.terminate()
        server.communicate(timeout=60)
    assert found is not None
    assert int(found[1]) < 50_000  # nearly 500,000 where all are kept in the collector's sight


def test_a_folder_that_is_no_checkpoint_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "vla-scripts/deploy.py", "--pretrained_checkpoint", str(tmp_path), "--port", "0"]
    result = launching.run(command)
    assert result.returncode == 2
    assert "lacks dataset_statistics.json" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def client_envs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Client name -> the Python of an environment that holds it."""
    return {name: client_python(name, packages, tmp_path_factory) for name, packages in PACKAGES.items()}


def run_client(python: Path, script: str, *arguments: object) -> dict[str, Any]:
    result = subprocess.run(
        [str(python), str(CLIENTS / script), *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def to_simulator(actions: np.ndarray) -> np.ndarray:
    return np.concatenate([actions[:, :-1], np.where(actions[:, -1:] > 0.5, -1.0, 1.0)], axis=1)


@pytest.mark.clients
@pytest.mark.timeout(900, func_only=True)  # building the environments is not counted
def test_the_published_rest_clients(server: Server, checkpoint: Path, client_envs: dict[str, Path]) -> None:
    seen = run_client(client_envs["oft"], "oft_session.py", server.port)
    expected = expected_actions(checkpoint)
    for form in ("actions", "twice", "patched"):
        np.testing.assert_allclose(seen[form], expected, atol=1e-5)
    np.testing.assert_allclose(seen["openvla"], expected[0], atol=1e-5)


@pytest.mark.clients
def test_openpi_client_with_libero_keys(server: Server, checkpoint: Path, client_envs: dict[str, Path]) -> None:
    seen = run_client(client_envs["openpi"], "openpi_session.py", server.port, "", "libero")
    assert seen["metadata"] == {"platform": "LIBERO", "cameras": ["primary", "wrist"], "num_actions_chunk": 8}
    np.testing.assert_allclose(seen["actions"], to_simulator(expected_actions(checkpoint)), atol=1e-5)
    assert seen["repeatable"]
    assert seen["infer_ms"] > 0
    assert "is not finite" in run_client(client_envs["openpi"], "openpi_session.py", server.port, "", "bad")["error"]


@pytest.mark.clients
def test_openpi_client_with_aloha_keys_and_an_api_key(tmp_path: Path, client_envs: dict[str, Path]) -> None:
    checkpoint = write_checkpoint(tmp_path, "ALOHA")
    server = Server(checkpoint, api_key="secret")
    try:
        seen = run_client(client_envs["openpi"], "openpi_session.py", server.port, "secret", "aloha")
    finally:
        server.stop()
    rng = np.random.default_rng(0)
    [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(2)]
    sent = {name: rng.integers(0, 256, (3, 48, 64), dtype=np.uint8) for name in ("primary", "secondary", "left_wrist", "right_wrist")}
    upright = {name: np.ascontiguousarray(image.transpose(1, 2, 0)) for name, image in sent.items()}
    chunk = Policy.from_pretrained(checkpoint, device="cpu").predict([Observation(upright, "fold the shirt", np.zeros(14))])[0]
    np.testing.assert_allclose(seen["actions"], chunk.actions, atol=1e-5)
    assert np.shape(seen["actions"]) == (25, 14)


@pytest.mark.clients
def test_the_vla_eval_harness(server: Server, checkpoint: Path, client_envs: dict[str, Path]) -> None:
    seen = run_client(client_envs["vla_eval"], "vla_eval_session.py", f"ws://127.0.0.1:{server.port}/vla-eval")
    assert seen["hello"]["protocol_version"] == 1
    assert seen["hello"]["observation_params"] == {"env_seed": 0, "quat_no_antipodal": True, "send_wrist_image": True, "send_state": True}
    assert seen["spec_warnings"] == []
    chunk = to_simulator(expected_actions(checkpoint))
    episode = np.concatenate([chunk, chunk[:2]])
    np.testing.assert_allclose(seen["actions"], np.concatenate([episode, episode]), atol=1e-5)
    assert "lacks camera primary" in seen["error"]
    assert seen["after_error"] == 7
