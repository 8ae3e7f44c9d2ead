"""One client cannot hurt another, and the server says truly how it is: the list of faults in docs/serving.md, each with its test."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from serving_house import IMAGE, STATE, House, TlsProxy, act_body, frame, http_head, open_house
from websockets.exceptions import ConnectionClosed

from prismatic.acting.client import ConnectionOptions, PolicyClient, RequestRefusedError, ServerUnavailableError
from prismatic.commands.deploy import DeployConfig
from prismatic.policy.policy import Policy
from prismatic.serving import connections
from prismatic.serving.batching import BatchingOptions
from prismatic.serving.server import DEVICE_LOST_STATUS, ServerOptions, serve
from prismatic.serving.service import ServedPolicy, ServiceOptions
from prismatic.vla.constants import ActionKind
from prismatic.vla.types import Observation
from prismatic.wire import keys
from prismatic.wire.api_key import VARIABLE, read_api_key
from prismatic.wire.arrays import json_array, pack_vla_eval
from prismatic.wire.msgpack_reader import read_msgpack

BODY = act_body()
DEGREES = np.full(4, 40.0)
SEEN = Observation({"primary": IMAGE, "wrist": IMAGE}, "lift", STATE)


@pytest.fixture
def house() -> Iterator[House]:
    with open_house() as running:
        yield running


def hold(house: House) -> threading.Thread:
    """A request that keeps the policy busy until `house.engine.go` is set."""
    house.engine.go.clear()
    before = len(house.engine.calls)
    thread = threading.Thread(target=house.request, args=("/act", BODY))
    thread.start()
    house.eventually(lambda: len(house.engine.calls) > before)
    return thread


def dropped(house: House, reason: str) -> float:
    return house.metric(f'prismatic_requests_dropped_total{{reason="{reason}"}}')


def test_a_request_whose_client_has_gone_is_not_computed(house: House) -> None:
    first = hold(house)
    gone = house.raw(http_head(len(BODY)) + BODY)
    websocket = house.open_websocket()
    websocket.recv()
    websocket.send(frame())
    house.eventually(lambda: house.service.batcher.queue_length == 2)
    gone.close()
    websocket.close()
    house.eventually(lambda: house.service.batcher.admitted == 1)
    house.engine.go.set()
    first.join()
    assert house.request("/act", BODY)[0] == 200
    assert house.engine.calls == [1, 1]
    assert dropped(house, "client gone") == 2


def test_a_request_whose_time_is_over_is_not_computed_and_its_client_is_told(house: House) -> None:
    first, statuses = hold(house), []

    def impatient() -> None:
        statuses.append(house.request("/act", BODY, {keys.DEADLINE_HEADER: "100"})[0])

    threads = [threading.Thread(target=impatient) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    house.engine.go.set()
    first.join()
    assert statuses == [504] * 8
    assert house.engine.calls == [1]
    assert "X-Deadline-Ms is 'soon'" in house.request("/act", BODY, {keys.DEADLINE_HEADER: "soon"})[1]


def test_what_was_asked_before_the_server_ends_is_answered() -> None:
    """SIGTERM sets `should_exit`; from then on nothing new is taken."""
    with open_house(server_options=ServerOptions(drain_s=60.0)) as house:
        robots = [house.open_websocket(path) for path in ("/policy", "/policy", "/")]
        for robot in robots:
            robot.recv()
        house.engine.go.clear()
        for robot in robots[:2]:
            robot.send(frame())
        house.eventually(lambda: house.service.batcher.admitted == 2)
        house.server.should_exit = True
        house.eventually(lambda: house.service.batcher._closed)
        robots[2].send(frame())
        assert "the server is shutting down" in robots[2].recv()
        with pytest.raises(OSError, match="refused"):
            house.raw()
        house.engine.go.set()
        for robot in robots[:2]:
            assert "actions" in read_msgpack(robot.recv())
            robot.close()


@pytest.mark.parametrize("path", ["/policy", "/"])
def test_an_answer_that_is_known_is_sent_before_the_server_ends(path: str) -> None:
    with open_house(server_options=ServerOptions(drain_s=60.0)) as house:
        robot = house.open_websocket(path)
        robot.recv()
        house.engine.go.clear()
        robot.send(frame())
        house.eventually(lambda: house.service.batcher.admitted == 1)
        assert house.service.unsent == 1
        with house.service.answering():  # as another connection is that has its answer and has not sent it
            house.engine.go.set()
            assert "actions" in read_msgpack(robot.recv())
            house.server.should_exit = True
            house.eventually(lambda: house.service.batcher._closed)
            with pytest.raises(TimeoutError):
                robot.recv(timeout=0.3)  # still open
        with pytest.raises(ConnectionClosed):
            robot.recv(timeout=60)


def test_idle_sockets_refuse_no_robot() -> None:
    with open_house(server_options=ServerOptions(max_connections=8, drain_s=0.1)) as house:
        silent = [house.raw() for _ in range(40)]
        assert house.request("/healthz") == (200, "OK\n")
        assert house.request("/act", BODY)[0] == 200
        assert len(house.server.server_state.connections) <= 9
        for one in silent:
            one.close()


def test_a_head_that_trickles_and_a_body_that_stops_hold_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_HEAD_S", 0.3)
    options = ServiceOptions(BatchingOptions(max_queue=1), request_timeout_s=2.0)
    with open_house(options) as house:
        head = house.raw(b"POST /act HTTP/1.1\r\nHo")
        bodies = [house.raw(http_head(len(BODY)) + BODY[:1000]) for _ in range(4)]
        assert house.request("/act", BODY)[0] == 200
        assert head.recv(100).startswith(b"HTTP/1.1 408")
        assert all(b"408" in body.recv(100) for body in bodies)
        assert house.request("/act", BODY)[0] == 200


def test_bytes_of_unfinished_requests_are_bounded(house: House) -> None:
    limits = connections.ConnectionLimits(max_bytes=1000)
    limits.hold("a", 600)
    with pytest.raises(Exception, match=r"requests of 0\.00095\d* MB in all are arriving"):
        limits.hold("b", 500)
    limits.hold("a", 700)
    limits.hold("a", 0)
    limits.hold("b", 1000)


def test_an_http_connection_lives_longer_than_a_robots_pause(house: House) -> None:
    assert house.server.config.timeout_keep_alive >= 600


def test_a_websocket_that_never_reads_is_dropped_and_holds_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_STALLED_S", 0.2)
    with open_house() as house:
        house.bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client = house.raw(
            b"GET /vla-eval HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        hello = pack_vla_eval({"type": "hello", "payload": {}, "seq": 0, "timestamp": 0.0})
        masked = bytes([0x82, 0x80 | len(hello), 0, 0, 0, 0]) + hello
        house.eventually(lambda: house.metric('prismatic_websocket_connections{protocol="vla-eval"}') == 1)
        with suppress(OSError):  # cut off already
            client.sendall(masked * 1000)
        house.eventually(lambda: house.metric('prismatic_websocket_connections{protocol="vla-eval"}') == 0)
        assert house.service.batcher.admitted == 0


def test_a_frame_that_is_too_large_is_reported_as_that() -> None:
    from websockets.exceptions import ConnectionClosed

    with open_house(ServiceOptions(max_body_bytes=100_000)) as house, house.websocket() as client:
        client.recv()
        with pytest.raises(ConnectionClosed) as caught:  # noqa: PT012
            client.send(b"x" * 8_000_000)
            client.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
        assert "exceeds limit of 100000 bytes" in caught.value.rcvd.reason


@pytest.mark.parametrize("protocol", ["act", "policy", "openpi"])
def test_warnings_belong_to_a_client_and_to_the_data_set_in_whose_units_it_is_answered(protocol: str) -> None:
    with open_house(data_sets=("arm", "giant")) as house:
        if protocol == "act":
            body = {name: act_body(state=json_array(DEGREES), unnorm_key=name) for name in ("arm", "giant")}
            told = []
            for session, name in (("one", "giant"), ("two", "arm"), ("one", "arm"), ("two", "arm"), ("three", "arm"), ("one", "arm")):
                assert house.request("/act", body[name], {keys.SESSION_HEADER: session})[0] == 200
                told.append(len(json.loads(house.headers.get(keys.WARNINGS_HEADER, "[]"))))
            assert told == [0, 1, 1, 0, 1, 0]
        else:
            path = "/policy" if protocol == "policy" else "/"
            with house.websocket(path) as one, house.websocket(path) as two:
                answers = []
                for client, state in ((one, STATE), (two, DEGREES), (one, DEGREES), (two, DEGREES)):  # each time a rollout begins
                    if len(answers) < 2:
                        client.recv()
                    client.send(frame(state, begins=True))
                    answers.append(len(read_msgpack(client.recv()).get("warnings", [])))
            assert answers == [0, 1, 1, 0]
        assert len(json.loads(house.request("/info")[1])["warnings"]) == 1


@pytest.mark.parametrize("fault", [RuntimeError("one bad batch"), SystemExit("a library ends the thread"), MemoryError()])
def test_a_fault_in_one_batch_never_ends_the_worker(house: House, fault: BaseException) -> None:
    house.engine.fault = fault
    assert house.request("/act", BODY)[0] == 500
    assert house.request("/healthz")[0] == 200
    status, text = house.request("/readyz")
    assert (status, "the last prediction failed" in text) == (503, True)
    house.engine.fault = None
    assert house.request("/readyz")[0] == 200  # which tried it
    assert house.request("/act", BODY)[0] == 200


def test_answers_that_are_missing_do_not_end_the_worker(house: House) -> None:
    house.engine.cut = 1
    assert house.request("/act", BODY)[0] == 500
    house.engine.cut = 0
    assert house.request("/act", BODY)[0] == 200


def test_readiness_before_the_warm_up() -> None:
    with open_house(is_warm=False) as house:
        assert house.request("/healthz")[0] == 200
        assert house.request("/readyz") == (503, "the policy is not warmed up yet\n")
        house.service.warm_up()
        assert house.request("/readyz")[0] == 200


def test_health_with_a_policy_that_hangs() -> None:
    with open_house(ServiceOptions(request_timeout_s=0.3)) as house:
        first = hold(house)
        house.eventually(lambda: house.request("/readyz")[0] == 503)
        assert "a call of the policy has lasted" in house.request("/readyz")[1]
        house.eventually(lambda: house.request("/healthz")[0] == 503)
        status, text = house.request("/act", BODY)
        assert (status, "must be started anew" in text) == (503, True)
        house.engine.go.set()
        first.join()
        house.eventually(lambda: house.request("/readyz")[0] == 200)


def test_health_with_a_dead_worker(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house.service.batcher, "_next_batch", lambda **_: [])  # nothing known ends the thread; this does
    house.request("/act", BODY, {keys.DEADLINE_HEADER: "2000"})
    house.eventually(lambda: not house.service.batcher._thread.is_alive())  # a moment after its last answer
    for path in ("/healthz", "/health", "/readyz"):
        status, text = house.request(path)
        assert (status, "the thread that calls the policy has ended" in text) == (503, True)
    assert house.request("/act", BODY)[0] == 503


class LostPolicy(Policy):
    """On a device that computes nothing after its first fault, as CUDA does."""

    def check_device(self) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_health_with_a_lost_device() -> None:
    with open_house(kind=LostPolicy) as house:
        house.engine.fault = RuntimeError("CUDA error: an illegal memory access was encountered")
        assert house.request("/act", BODY)[0] == 500
        for path in ("/healthz", "/readyz"):
            status, text = house.request(path)
            assert (status, "the device failed (RuntimeError: CUDA error: an illegal memory access" in text) == (503, True)
        status, text = house.request("/act", BODY)
        assert (status, "must be started anew" in text) == (503, True)
        assert house.engine.calls == [1]


def test_a_lost_device_ends_the_server_for_its_supervisor() -> None:
    with open_house(kind=LostPolicy) as house:  # for its policy
        pass
    house.engine.fault = RuntimeError("CUDA error: an illegal memory access was encountered")
    other = House(house.policy, house.engine, ServiceOptions(), ServerOptions())
    asking = threading.Thread(target=other.request, args=("/act", BODY))
    asking.start()
    with pytest.raises(SystemExit) as caught:
        serve(other.service, other.bound, ServerOptions(drain_s=1.0, exit_on_cuda_error=True))
    asking.join()
    assert caught.value.code == DEVICE_LOST_STATUS


@pytest.mark.parametrize("origin", ["http://evil.example", "http://evil.example:{port}", "null", "http://127.0.0.1:1", "http://["])
def test_a_web_page_of_another_site_drives_no_robot(house: House, origin: str) -> None:
    from websockets.exceptions import InvalidStatus

    origin = origin.format(port=house.port)
    rebound = {"Origin": origin, "Host": origin.removeprefix("http://")} if "example" in origin else {"Origin": origin}
    assert house.request("/act", BODY, rebound)[0] == 403
    for path in ("/", "/policy", "/vla-eval"):
        with pytest.raises(InvalidStatus, match="403"):
            house.websocket(path, origin=origin)
    assert house.engine.calls == []


def test_space_around_a_key_does_not_count_and_what_no_header_can_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "secret\n")  # as $(cat file) or an environment file may leave it
    assert read_api_key() == "secret"
    (tmp_path / "key").write_bytes(b"\xef\xbb\xbfsecret\r\n")  # as Windows' editor saves UTF-8
    assert read_api_key(tmp_path / "key") == "secret"
    for text in ("two words", "two\nlines", "schlüssel", " "):
        (tmp_path / "key").write_text(text)
        with pytest.raises(ValueError, match=r"--api_key_file .*key must hold the key in one line"):
            read_api_key(tmp_path / "key")
        monkeypatch.setenv(VARIABLE, text)
        with pytest.raises(ValueError, match=f"{VARIABLE} must hold the key"):
            read_api_key()


def test_a_refused_websocket_says_why_and_leaves_no_error_in_the_log(house: House, caplog: pytest.LogCaptureFixture) -> None:
    from websockets.exceptions import InvalidStatus

    for path, status, message in (
        ("/ws", 404, b"no websocket at '/ws'; ours is /policy"),
        ("/?adapter=x", 404, b"adapter 'x' is not served"),
    ):
        with pytest.raises(InvalidStatus) as caught:
            house.websocket(path)
        assert caught.value.response.status_code == status
        assert message in bytes(caught.value.response.body or b"")
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_compressed_body_is_named(house: House) -> None:
    status, text = house.request("/act", BODY, {"Content-Encoding": "gzip"})
    assert (status, "Content-Encoding: gzip" in text) == (400, True)


def test_the_servers_own_page_may_ask(house: House) -> None:
    assert house.request("/act", BODY, {"Origin": f"http://127.0.0.1:{house.port}"})[0] == 200
    with house.websocket("/policy", origin=f"http://127.0.0.1:{house.port}"):
        pass


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_our_client_says_how_long_it_waits_and_waits_as_long_as_it_is_told(house: House, scheme: str) -> None:
    client = PolicyClient(f"{scheme}://127.0.0.1:{house.port}", ConnectionOptions(reply_timeout_s=1.0, first_backoff_s=0.01))
    client.infer(SEEN)
    before = len(house.engine.calls)
    first = hold(house)
    with pytest.raises(ServerUnavailableError):
        client.infer(SEEN)
    house.eventually(lambda: house.service.batcher.admitted == 1)
    house.service.batcher.refuse_new()  # while the first one is at work: the worker ends behind the last
    with pytest.raises(ServerUnavailableError) as caught:
        client.infer(SEEN)
    assert caught.value.retry_after_s == 1
    house.engine.go.set()
    first.join()
    assert len(house.engine.calls) == before + 1  # what it no longer waited for was not computed
    client.close()


def test_our_client_is_told_of_an_observation_that_is_too_large() -> None:
    with open_house(ServiceOptions(max_body_bytes=1000)) as house:
        client = PolicyClient(f"ws://127.0.0.1:{house.port}")
        with pytest.raises(RequestRefusedError, match=r"too large for the server .*limit of 1000 bytes.*--max_body_mb"):
            client.infer(SEEN)
        client.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(folder / "key"), "-out", str(folder / "certificate")]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
@pytest.mark.parametrize("scheme", ["wss", "https"])
def test_encrypted_connections(house: House, certificate: Path, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "certificate", certificate / "key")
    with TlsProxy(context, house.port) as port:
        options = ConnectionOptions(reply_timeout_s=5.0)
        stranger = PolicyClient(f"{scheme}://localhost:{port}", options)
        with pytest.raises(ServerUnavailableError, match="certificate"):
            stranger.connect()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "certificate"))
        client = PolicyClient(f"{scheme}://localhost:{port}", options)
        assert client.infer(SEEN).shape == (8, 4)
        house.engine.go.clear()
        impatient = PolicyClient(f"{scheme}://localhost:{port}", ConnectionOptions(reply_timeout_s=0.5))
        with pytest.raises(ServerUnavailableError):
            impatient.infer(SEEN)
        for one in (client, impatient):
            one.close()


def test_published_flags_of_the_server_mean_something() -> None:
    with open_house(ServiceOptions(num_open_loop_steps=3, use_relative_actions=True, seed=5)) as house:
        client = PolicyClient(f"http://127.0.0.1:{house.port}", ConnectionOptions(reply_timeout_s=10))
        info = client.connect()
        assert info.num_actions_chunk == 3
        assert ActionKind.MOTION in info.action_kinds
        assert client.infer(SEEN).shape == (3, 4)
        client.close()
    with pytest.raises(ValueError, match="--num_open_loop_steps is 9, the policy predicts 8 actions"):
        ServedPolicy(house.policy, ServiceOptions(num_open_loop_steps=9))
    flags = {"pretrained_checkpoint": "x", "load_in_8bit": True, "model_family": "openvla", "use_relative_actions": True, "seed": 7}
    assert DeployConfig(**flags).chosen_quantization() == "int8"
    assert DeployConfig(pretrained_checkpoint="x", load_in_4bit=True).chosen_quantization() == "nf4"
    with pytest.raises(ValueError, match="set one"):
        DeployConfig(**flags, quantization="fp8").chosen_quantization()
    with pytest.raises(ValueError, match="the only one is openvla"):
        DeployConfig(pretrained_checkpoint="x", model_family="other")
