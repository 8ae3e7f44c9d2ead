"""A whole server in this process, on a socket of its own, over a tiny policy whose engine can be held up or made to fail."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from engine_policies import make_parts

from prismatic.policy.checkpoint.parts import PolicyParts
from prismatic.policy.inference.engine import EagerEngine, EngineInputs, nothing
from prismatic.policy.policy import Policy
from prismatic.serving.address import open_socket
from prismatic.serving.measuring import idle_observations
from prismatic.serving.server import ServerOptions, make_server
from prismatic.serving.service import PolicyService, ServiceOptions
from prismatic.vla.cameras import SENT_KEYS
from prismatic.wire.arrays import json_array, pack_openpi

KEY = "secret"
STATE = np.zeros(4)
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


class GatedEngine(EagerEngine):
    """Computes when `go` is set; `fault` is raised instead, `cut` answers are left out."""

    def __init__(self, policy_parts: Any) -> None:
        super().__init__(policy_parts)
        self.go = threading.Event()
        self.go.set()
        self.fault: BaseException | None = None
        self.cut = 0
        self.calls: list[int] = []  # observations in each
        self.lengths: list[list[int]] = []  # of their prompts [tokens]

    def __call__(self, inputs: EngineInputs) -> np.ndarray:
        self.calls.append(len(inputs))
        self.lengths.append([len(row) for row in inputs.prompts])
        inputs.meanwhile()
        inputs = replace(inputs, meanwhile=nothing)
        self.go.wait(20)
        if self.fault is not None:
            raise self.fault
        return super().__call__(inputs)[self.cut :]


class House:
    """The server, its policy and ways to ask it."""

    def __init__(self, policy: Policy, engine: GatedEngine, options: ServiceOptions, server_options: ServerOptions) -> None:
        self.policy, self.engine = policy, engine
        self.service = PolicyService(policy, options)
        self.server = make_server(self.service, server_options)
        self.bound = open_socket("127.0.0.1", 0)
        self.bound.listen(64)
        self.port = self.bound.getsockname()[1]
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.bound]}, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self.eventually(lambda: self.server.started)

    def stop(self) -> None:
        self.engine.go.set()
        self.server.should_exit = True
        self._thread.join(60)
        self.service.close()
        assert not self._thread.is_alive()

    def request(self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET" if body is None else "POST", path, body, dict(headers or {}))
        reply = connection.getresponse()
        text = reply.read().decode()
        self.headers = reply.headers
        connection.close()
        return reply.status, text

    def websocket(self, path: str = "/policy", **more: Any) -> Any:
        from websockets.sync.client import connect

        return connect(f"ws://127.0.0.1:{self.port}{path}", compression=None, proxy=None, **more)

    def open_websocket(self, path: str = "/policy") -> Any:
        """One that the caller closes, by any release of the package: the newest want to be asked for that, others know no such question."""
        return self.websocket(path).__enter__()

    def raw(self, data: bytes = b"", **options: int) -> socket.socket:
        """A socket on which `data` was sent."""
        found = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        found.sendall(data)
        return found

    def metric(self, name: str) -> float:
        lines = self.service.metrics.page().decode().splitlines()
        return float(next((line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")), 0))

    @staticmethod
    def eventually(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < until, "it did not come true"
            time.sleep(0.005)


@lru_cache
def _parts() -> PolicyParts:
    """A policy that has predicted once: what is compiled then must not count in a test's time."""
    parts = make_parts("l1")
    policy = Policy(parts)
    policy.predict(idle_observations(policy, 1))
    return parts


@contextmanager
def open_house(
    options: ServiceOptions | None = None,
    server_options: ServerOptions | None = None,
    kind: type[Policy] = Policy,
    data_sets: Sequence[str] = ("arm",),
    is_warm: bool = True,
    change: Callable[[PolicyParts], PolicyParts] = lambda parts: parts,
) -> Iterator[House]:
    """A running server; the statistics of every further data set are a hundred times as wide as those of the one before.

    `change` makes another policy of the tiny one.
    """
    parts = change(_parts())
    wide = {
        name: {
            part: {key: [100.0**number * value for value in row] for key, row in entry.items() if key in ("min", "max", "q01", "q99")}
            for part, entry in parts.norm_stats["arm"].items()
        }
        for number, name in enumerate(data_sets)
    }
    parts = replace(parts, norm_stats=wide)
    engine = GatedEngine(parts)
    house = House(kind(parts, "arm", engine), engine, options or ServiceOptions(), server_options or ServerOptions(drain_s=1.0))
    house.service.health.is_warm = is_warm
    house.start()
    try:
        yield house
    finally:
        house.stop()


def act_body(**changes: Any) -> bytes:
    body: dict[str, Any] = {SENT_KEYS[name]: json_array(IMAGE) for name in ("primary", "wrist")}
    body |= {"state": json_array(STATE), "instruction": "lift"}
    return json.dumps({name: value for name, value in {**body, **changes}.items() if value is not None}).encode()


def frame(state: np.ndarray = STATE, **more: Any) -> bytes:
    return pack_openpi({"images": {"primary": IMAGE, "wrist": IMAGE}, "state": state, "prompt": "lift", **more})


def http_head(length: int, more: str = "") -> bytes:
    return f"POST /act HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n{more}\r\n".encode()


class TlsProxy:
    """What stands before a server and encrypts: gives the port at which it does, for as long as the context lasts."""

    def __init__(self, context: ssl.SSLContext, target: int) -> None:
        self._context, self._target = context, target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listening]

    def __enter__(self) -> int:
        threading.Thread(target=self._accept, daemon=True).start()
        return self._listening.getsockname()[1]

    def __exit__(self, *_: object) -> None:
        for one in self._open:
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                plain = self._listening.accept()[0]
                with suppress(OSError):  # a client that trusts nobody
                    outside = self._context.wrap_socket(plain, server_side=True)
                    inside = socket.create_connection(("127.0.0.1", self._target))
                    self._open += [outside, inside]
                    for source, sink in ((outside, inside), (inside, outside)):
                        threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError, ValueError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
