"""The robot's client against deploy.py as a process, directly and through a proxy that delays, freezes, drops and refuses."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy_server import API_KEY, ROOT, FaultyProxy, Server, write_checkpoint

from prismatic.acting import transports
from prismatic.acting.actor import RemoteActor
from prismatic.acting.client import ConnectionOptions, PolicyClient, RequestRefusedError, ServerUnavailableError
from prismatic.acting.execution import ChunkExecutor, Command, ExecutionOptions
from prismatic.acting.limit_sources import choose_limits
from prismatic.acting.robot import Sensed
from prismatic.acting.states import State
from prismatic.policy.policy import Policy
from prismatic.vla.constants import ROBOT_PLATFORMS, ActionKind
from prismatic.vla.grippers import to_robosuite
from prismatic.vla.types import Observation
from prismatic.wire.arrays import as_array, pack_openpi
from prismatic.wire.msgpack_reader import read_msgpack
from prismatic.wire.policy_info import PolicyInfo

pytest.importorskip("uvicorn", reason="needs the extra [serve]")

PATIENCE = ConnectionOptions(connect_timeout_s=1.0, reply_timeout_s=0.5, first_backoff_s=0.05, max_backoff_s=0.2, api_key=API_KEY)
HZ = 25.0


@pytest.fixture
def proxy(aloha_server: Server) -> Iterator[FaultyProxy]:
    running = FaultyProxy(aloha_server.port)
    yield running
    running.stop()


def observation(side: int = 48) -> Observation:
    rng = np.random.default_rng(1)
    images = {camera: rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for camera in ("primary", "left_wrist", "right_wrist")}
    return Observation(images, "fold the shirt", np.linspace(-0.5, 0.5, 14))


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_both_transports_bring_what_the_policy_predicts(aloha_server: Server, aloha_checkpoint: Path, scheme: str) -> None:
    client = PolicyClient(f"{scheme}://127.0.0.1:{aloha_server.port}", PATIENCE)
    info = client.connect()
    assert (info.platform, info.cameras, info.num_actions_chunk) == ("ALOHA", ("primary", "left_wrist", "right_wrist"), 25)
    assert set(info.action_kinds) == {ActionKind.TARGET}
    assert info.demonstrated.action_high == (1.0,) * 14
    assert info.limits == ROBOT_PLATFORMS["ALOHA"].limits
    expected = Policy.from_pretrained(aloha_checkpoint, device="cpu").predict([observation()])[0].actions
    for _ in range(3):
        np.testing.assert_allclose(infer_at_last(client), expected, atol=1e-5)
    client.close()


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_pictures_that_travel_as_jpeg_give_the_same_actions_to_the_bit(aloha_server: Server, scheme: str) -> None:
    raw, small = (PolicyClient(f"{scheme}://127.0.0.1:{aloha_server.port}", replace(PATIENCE, jpeg_images=jpeg)) for jpeg in (False, True))
    seen = observation(side=120)
    np.testing.assert_array_equal(infer_at_last(small, seen), infer_at_last(raw, seen))
    for client in (raw, small):
        client.close()


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_what_looks_unlike_training_is_reported_to_each_robots_computer_with_its_first_actions(aloha_server: Server, scheme: str) -> None:
    degrees = replace(observation(), proprio=np.full(14, 40.0))
    other = PolicyClient(f"{scheme}://127.0.0.1:{aloha_server.port}", PATIENCE)  # a second robot, which sends what it should
    for _ in range(2):  # each connection is told
        client = PolicyClient(f"{scheme}://127.0.0.1:{aloha_server.port}", PATIENCE)
        infer_at_last(client, degrees)
        infer_at_last(other)
        infer_at_last(client, degrees)
        (told,) = client.take_warnings()
        assert client.take_warnings() == other.take_warnings() == []
        client.close()
        assert "left_waist [rad] = 40 (training: -1 to 1)" in told
        assert "It looks like degrees" in told
    status, body, _ = aloha_server.request("/info", headers={"X-API-Key": API_KEY})
    assert status == 200
    assert "It looks like degrees" in json.loads(body)["warnings"][0]


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_a_mistake_of_the_client_is_reported_and_not_repeated(aloha_server: Server, scheme: str) -> None:
    client = PolicyClient(f"{scheme}://127.0.0.1:{aloha_server.port}", PATIENCE)
    one_camera = Observation({"primary": observation().images["primary"]}, "fold", np.zeros(14))
    with pytest.raises(RequestRefusedError, match="lacks camera left_wrist, right_wrist"):
        client.infer(one_camera)
    assert infer_at_last(client).shape == (25, 14)
    client.close()
    stranger = PolicyClient(f"{scheme}://127.0.0.1:{aloha_server.port}", ConnectionOptions(api_key="wrong"))
    with pytest.raises(RequestRefusedError, match=r"401.*another key was sent"):
        stranger.connect(wait_s=10)


def infer_at_last(client: PolicyClient, seen: Observation | None = None) -> np.ndarray:
    """The answer; on a busy machine not always the first attempt is in time."""
    for _ in range(20):
        try:
            return client.infer(seen or observation())
        except ServerUnavailableError as error:
            time.sleep(error.retry_after_s)
    raise AssertionError("the connection did not come back")


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_faults_become_errors_in_time_and_the_connection_comes_back(proxy: FaultyProxy, scheme: str) -> None:
    client = PolicyClient(f"{scheme}://127.0.0.1:{proxy.port}", PATIENCE)
    expected = infer_at_last(client)
    for fault, seconds in (("delay 0.9", 2.0), ("trickle", 2.0), ("drop", 2.0), ("refuse", 2.0), ("freeze", 5.0)):
        proxy.do(fault)
        started = time.monotonic()
        with pytest.raises(ServerUnavailableError) as caught:
            client.infer(observation(side=1200 if fault == "freeze" else 48))  # more than the buffers of the sockets hold
        assert time.monotonic() - started < seconds, fault
        assert 0.05 <= caught.value.retry_after_s <= 0.2
        proxy.do("pass")
        np.testing.assert_allclose(infer_at_last(client), expected, atol=1e-5)
    client.close()


def test_back_off_doubles_up_to_its_limit_and_connect_waits_for_a_server() -> None:
    client = PolicyClient("http://127.0.0.1:9", PATIENCE)  # the port of "discard", where nobody listens
    waits = []
    for _ in range(4):
        with pytest.raises(ServerUnavailableError) as caught:
            client.infer(observation())
        waits.append(caught.value.retry_after_s)
    assert waits == [0.05, 0.1, 0.2, 0.2]
    started = time.monotonic()
    with pytest.raises(ServerUnavailableError):
        client.connect(wait_s=0.5)
    assert 0.2 < time.monotonic() - started < 5  # no earlier than it should, and it ends


class MovedError(Exception):
    """Ends a program's endless loop."""


def test_the_program_of_the_page_drives_a_robot(aloha_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """ALOHA.md's "The client in your own program", line by line; the sensors' messages are always fresh."""
    monkeypatch.setenv("PRISMATIC_API_KEY", API_KEY)
    section = (ROOT / "ALOHA.md").read_text().partition("## The client in your own program")[2]
    code = re.findall(r"^```python\n(.*?)^```", section, re.S | re.M)[0]
    address = f"ws://127.0.0.1:{aloha_server.port}"
    for written, here in (("ws://192.168.1.20:8777", address), ("last_sensor_message_at", "time.monotonic()")):
        assert written in code
        code = code.replace(written, here)
    commands = [observation().proprio]

    def send_to_robot(action: np.ndarray) -> None:
        commands.append(action)
        time.sleep(0.01)
        if not np.array_equal(action, commands[0]) or len(commands) > 1000:
            raise MovedError

    robot: dict[str, Any] = {"read_position": lambda: commands[-1], "observe": observation, "send_to_robot": send_to_robot}
    with pytest.raises(MovedError):
        exec(code, robot)
    robot["actor"].close()
    assert 0 < np.abs(commands[-1] - commands[0])[:6].max() <= 2.0 / HZ  # rad/s


@pytest.mark.parametrize(
    "url", ["ftp://host", "ws://", "http://host:8777/predict", "ws://host:port", "ws://..:8777", "http://robot..lab:8777"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="the server's URL is"):
        PolicyClient(url)


@pytest.mark.parametrize("host", ["[::1]", "my_robot.local", "robot.", "münchen.example", "192.168.1.20"])
def test_names_of_hosts_that_people_have_are_taken(host: str) -> None:
    PolicyClient(f"ws://{host}:8777")


@pytest.mark.parametrize("seconds", [0.0, float("nan"), float("inf"), 1e10])
def test_a_time_that_no_timer_can_count_is_refused(seconds: float) -> None:
    """A timer of 1e10 s failed in its thread with a trace, and nothing ended the waiting."""
    with pytest.raises(ValueError, match=re.escape(f"reply_timeout_s is {seconds}, must be a finite number more than 0, at most")):
        ConnectionOptions(reply_timeout_s=seconds)


@pytest.mark.parametrize("said", [None, 5, "three"])
def test_warnings_that_are_none_are_an_answer_that_cannot_be_used(said: Any) -> None:
    with pytest.raises(ServerUnavailableError, match=rf"the server's warnings are '{said}', expected a list"):
        transports._read_warnings(said)


def make_executor(options: ExecutionOptions, info: PolicyInfo) -> ChunkExecutor:
    """Without a bound on speed: where an untrained policy wants to go is reached at once."""
    return ChunkExecutor(options, replace(choose_limits(info).limits, max_speed=np.full(14, np.inf)), HZ)


class Arm:
    """A robot that stands where it is told to, at 25 Hz of real time."""

    def __init__(self, actor: RemoteActor) -> None:
        self.actor, self.position, self.commands = actor, np.zeros(14), []
        actor.reset(Sensed(self.position, time.monotonic()), time.monotonic())

    def run(self, seconds: float) -> list[Command]:
        """The commands of that time; every one of them comes at its moment, whatever the server does."""
        commands = []
        next_tick = time.monotonic()
        for _ in range(round(seconds * HZ)):
            now = time.monotonic()
            command = self.actor.tick(now, Sensed(self.position, now), observation)
            assert time.monotonic() - now < 0.25, "the control loop waited for the network"  # less than any fault; busy machines stall
            assert np.isfinite(command.action).all()
            if command.state is not State.ACTING:
                np.testing.assert_array_equal(command.action, self.position)
            self.position = command.action
            commands.append(command)
            next_tick += 1 / HZ
            time.sleep(max(0.0, next_tick - time.monotonic()))
        return commands


def modes(commands: list[Command]) -> list[State]:
    return [command.state for command in commands]


def test_the_robot_holds_during_faults_goes_on_after_them_and_stops_when_they_last(proxy: FaultyProxy) -> None:
    client = PolicyClient(f"ws://127.0.0.1:{proxy.port}", PATIENCE)
    options = ExecutionOptions(num_open_loop_steps=10, prefetch_steps=5, stop_after_s=6.0)
    actor = RemoteActor(client, make_executor(options, client.connect()))
    arm = Arm(actor)
    assert modes(arm.run(1.0)).count(State.ACTING) > 15  # inference is hidden behind execution but for the first chunk

    for fault in ("delay 0.3", "drop", "freeze", "refuse"):
        proxy.do(fault)
        during = modes(arm.run(0.7))
        assert State.STOPPED not in during, fault
        assert State.HOLDING in during or fault == "drop", fault  # a dropped connection is back before the actions run out
        proxy.do("pass")
        after = modes(arm.run(1.0))
        while after.count(State.ACTING) <= 10:  # on a busy machine the connection takes longer to come back
            assert State.STOPPED not in after, fault
            after += modes(arm.run(0.5))
        assert State.STOPPED not in after, fault

    proxy.do("refuse")
    lasting = modes(arm.run(8.0))
    assert lasting[-1] is State.STOPPED
    held = lasting[: lasting.index(State.STOPPED)].count(State.HOLDING)
    assert 6.0 * HZ / 2 < held < 6.0 * HZ + 3  # ticks of a busy machine may be missed
    proxy.do("pass")
    assert set(modes(arm.run(0.4))) == {State.STOPPED}
    assert actor.executor.counts.failed_requests >= 3
    assert max(actor.latencies_s) < 0.6
    actor.close()


def test_a_flapping_server_is_survived(proxy: FaultyProxy) -> None:
    client = PolicyClient(f"http://127.0.0.1:{proxy.port}", PATIENCE)
    options = ExecutionOptions(num_open_loop_steps=10, prefetch_steps=5, ensemble_decay=0.1, stop_after_s=3.0)
    actor = RemoteActor(client, make_executor(options, client.connect()))
    flapping = threading.Event()

    def flap() -> None:
        while not flapping.wait(0.5):
            proxy.do("refuse")
            time.sleep(0.2)
            proxy.do("pass")

    thread = threading.Thread(target=flap)
    thread.start()
    try:
        seen = modes(Arm(actor).run(4.0))
    finally:
        flapping.set()
        thread.join()
    assert State.STOPPED not in seen
    assert seen.count(State.ACTING) > len(seen) // 4
    assert actor.executor.counts.failed_requests >= 1
    assert actor.executor.counts.chunks >= 2
    actor.close()


def test_a_server_that_comes_back_with_another_policy_is_refused(tmp_path: Path, proxy: FaultyProxy) -> None:
    client = PolicyClient(f"ws://127.0.0.1:{proxy.port}", PATIENCE)
    client.connect()
    other = Server(write_checkpoint(tmp_path, "LIBERO"))
    proxy.do(f"target {other.port}")
    with pytest.raises(ServerUnavailableError):
        client.infer(observation())  # finds the old connection dead
    with pytest.raises(
        RequestRefusedError, match=r"another policy: platform was ALOHA, is LIBERO, cameras was .*; restart the client"
    ) as told:
        client.infer(observation())
    assert len(str(told.value)) < 2500  # what differs, not both descriptions
    other.stop()


def test_our_clients_get_the_robots_own_units_over_both_transports_and_simulators_theirs(tmp_path: Path) -> None:
    from websockets.sync.client import connect

    checkpoint = write_checkpoint(tmp_path, "LIBERO")
    server = Server(checkpoint)
    images = {camera: observation().images["primary"] for camera in ("primary", "wrist")}
    seen = Observation(images, "open the drawer", np.zeros(8))
    expected = Policy.from_pretrained(checkpoint, device="cpu").predict([seen])[0].actions
    answers = []
    for scheme in ("ws", "http"):
        client = PolicyClient(f"{scheme}://127.0.0.1:{server.port}", PATIENCE)
        answers.append(infer_at_last(client, seen))
        assert client.info is not None
        assert client.info.action_units == "robot"
        client.close()
    np.testing.assert_allclose(answers, [expected] * 2, atol=1e-5)
    with connect(f"ws://127.0.0.1:{server.port}/", compression=None) as simulator:
        assert read_msgpack(simulator.recv())["action_units"] == "robosuite"
        simulator.send(pack_openpi({"images": images, "prompt": seen.instruction, "state": seen.proprio}))
        np.testing.assert_allclose(as_array(read_msgpack(simulator.recv())["actions"], "actions"), to_robosuite(expected), atol=1e-5)
    units = json.loads(server.request("/info")[1])["action_units_by_protocol"]
    assert units == {"act": "robot", "policy": "robot", "openpi": "robosuite", "vla-eval": "robosuite"}
    server.stop()
