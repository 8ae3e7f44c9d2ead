"""A server with well-behaved clients, alone and beside ones that misbehave: its memory, and the latency of those that behave.

python benchmarks/serving_soak.py --pretrained_checkpoint runs/demo/train/demo --seconds 1200 --json soak.json

Each of the misbehaving clients does one thing again and again: idle sockets, a head that trickles, a body that stops, a websocket that
never reads, one that leaves before its answer, damaged bodies, frames that are too large, and requests without patience.
"""

from __future__ import annotations

import functools
import http.client
import itertools
import json
import multiprocessing
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pictures import camera_picture
from serving import call, make_body, start_server

from prismatic.acting.client import ConnectionOptions, PolicyClient, ServerUnavailableError
from prismatic.cli import run_script
from prismatic.vla.types import Observation
from prismatic.wire import keys

_UPGRADE = (
    b"GET /vla-eval HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@dataclass
class SoakConfig:
    """Flags of the benchmark."""

    pretrained_checkpoint: str  # folder of a checkpoint
    seconds: float = 1200  # with all clients; those that behave are measured alone for a quarter of it before, at most three minutes
    num_clients: int = 16  # that behave: half over websockets, half over HTTP
    num_misbehaving: int = 8
    pause_s: float = 0.1  # of a client that behaves, between its answer and its next request
    image_size: int = 256  # pixels, square
    deploy_flags: str = ""  # further flags of deploy.py, in one text
    json: Path | None = None  # where the result is written, too


class StopSign(Protocol):
    """An event of threads, or of processes."""

    def set(self) -> None: ...

    def wait(self, timeout: float) -> bool: ...


@dataclass
class Clients:
    """Threads that ask until they are told to stop."""

    port: int
    info: dict[str, Any]
    image_size: int
    stop: StopSign = field(default_factory=threading.Event)
    latencies: list[tuple[float, float]] = field(default_factory=list)  # when, seconds
    failures: list[str] = field(default_factory=list)

    def behave(self, number: int, pause_s: float) -> None:
        """Asks, waits for the answer, pauses."""
        rng = np.random.default_rng(number)
        images = {camera: camera_picture(rng, self.image_size) for camera in self.info["cameras"]}
        seen = Observation(images, "pick up the bowl", np.zeros(self.info["proprio_dim"]))
        scheme = "ws" if number % 2 else "http"
        client = PolicyClient(f"{scheme}://127.0.0.1:{self.port}", ConnectionOptions(reply_timeout_s=30))
        while not self.stop.wait(pause_s):
            started = time.perf_counter()
            try:
                client.infer(seen)
                self.latencies.append((started, time.perf_counter() - started))
            except ServerUnavailableError as error:
                self.failures.append(str(error)[:200])
                self.stop.wait(error.retry_after_s)
        client.close()

    def misbehave(self, do: Callable[[], None]) -> None:
        """Does it again and again, whatever comes of it."""
        while not self.stop.wait(0.02):
            with suppress(OSError, http.client.HTTPException, ValueError):
                do()

    def misdeeds(self) -> Iterator[Callable[[], None]]:
        """What misbehaving clients do."""
        body = make_body(self.info, self.image_size)
        head = f"POST /act HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        kept: list[socket.socket] = []

        def raw(*parts: bytes, wait_s: float = 0.0, is_kept: bool = False) -> None:
            connection = socket.create_connection(("127.0.0.1", self.port), timeout=5)
            for part in parts:
                connection.sendall(part)
            if is_kept:
                kept.append(connection)
                if len(kept) > 200:
                    kept.pop(0).close()
                return
            self.stop.wait(wait_s)
            connection.close()

        def ask(content: bytes, **headers: str) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("POST", "/act", content, headers)
            connection.getresponse().read()
            connection.close()

        damaged = itertools.cycle([body[:-1], b"[" * 1000, body.replace(b"|u1", b"|O"), b"\x00" * 5000])
        hello = bytes([0x82, 0x80 | 40, 0, 0, 0, 0]) + b"\x84\xa4type\xa5hello\xa7payload\x80\xa3seq\x00\xa9timestamp\xcb" + bytes(8)
        yield lambda: raw(is_kept=True)
        yield lambda: raw(*(bytes([byte]) for byte in head[:20]), wait_s=2)
        yield lambda: raw(head, body[: len(body) // 2], wait_s=2)
        yield lambda: raw(_UPGRADE, hello * 500, wait_s=2)
        yield lambda: raw(head, body)
        yield lambda: ask(next(damaged))
        yield lambda: raw(_UPGRADE, bytes([0x82, 0xFF]) + (1 << 32).to_bytes(8, "big") + bytes(4), bytes(1 << 20))
        yield lambda: ask(body, **{keys.DEADLINE_HEADER: "1"})

    @contextmanager
    def running(self, targets: Sequence[Callable[[], None]]) -> Iterator[None]:
        threads = [threading.Thread(target=target, daemon=True) for target in targets]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(40)


def be_rude(clients: Clients, number: int) -> None:
    """So many misbehaving clients, until they are told to stop; a process, so that they slow down none of those that are measured."""
    targets = [functools.partial(clients.misbehave, do) for do in itertools.islice(itertools.cycle(list(clients.misdeeds())), number)]
    with clients.running(targets):
        while not clients.stop.wait(1.0):
            pass


@contextmanager
def rude_process(port: int, info: dict[str, Any], image_size: int, number: int) -> Iterator[None]:
    """Misbehaving clients while the block runs."""
    context = multiprocessing.get_context("spawn")
    clients = Clients(port, info, image_size, context.Event())
    process = context.Process(target=be_rude, args=(clients, number), daemon=True)
    process.start()
    try:
        yield
    finally:
        clients.stop.set()
        process.join(60)


def memory_mib(pid: int) -> float:
    """What the process has in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


def figures(latencies: list[tuple[float, float]], since: float) -> dict[str, float]:
    """Answers, and their latency [ms], from `since` on."""
    found = [1e3 * seconds for when, seconds in latencies if when >= since]
    if not found:
        raise ValueError("no request was answered; look at the server's log")
    return {"answers": len(found), "median_ms": float(np.median(found)), "p99_ms": float(np.percentile(found, 99))}


def main(config: SoakConfig) -> None:
    """Prints latencies alone and together, and the server's memory on the way."""
    process, port = start_server(config.pretrained_checkpoint, config.deploy_flags)
    try:
        result = soak(config, process.pid, port)
        metrics = call(port, "GET", "/metrics").decode()
        result["ready"] = call(port, "GET", "/readyz").decode().strip()
        result["dropped"] = [line for line in metrics.splitlines() if line.startswith("prismatic_requests_dropped_total")]
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:  # a busy machine; the figures are there all the same
            process.kill()
    result["p99_ratio"] = result["together"]["p99_ms"] / result["alone"]["p99_ms"]
    print(json.dumps(result, indent=2))
    if config.json is not None:
        config.json.write_text(json.dumps(result, indent=2) + "\n")


def soak(config: SoakConfig, pid: int, port: int) -> dict[str, Any]:
    """The figures of both phases."""
    info = json.loads(call(port, "GET", "/info"))
    clients = Clients(port, info, config.image_size)
    good = [functools.partial(clients.behave, number, config.pause_s) for number in range(config.num_clients)]
    settle_s = min(config.seconds / 20, 30)  # until all are at work
    with clients.running(good):
        time.sleep(settle_s)
        since = time.perf_counter()
        time.sleep(min(config.seconds / 4, 180))
        alone, memory = figures(clients.latencies, since), []
        with rude_process(port, info, config.image_size, config.num_misbehaving):
            time.sleep(settle_s)
            since = time.perf_counter()
            while time.perf_counter() - since < config.seconds:
                memory.append(round(memory_mib(pid), 1))
                time.sleep(config.seconds / 20)
            together = figures(clients.latencies, since)
    return {
        "alone": alone,
        "together": together,
        "failures": clients.failures[:10],
        "num_failures": len(clients.failures),
        "memory_mib": memory,
    }


if __name__ == "__main__":
    run_script(main, SoakConfig)
