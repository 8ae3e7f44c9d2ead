"""Throughput and latency of deploy.py with several clients at once, over HTTP, image encoding and decoding included.

python benchmarks/serving.py --pretrained_checkpoint runs/demo/train/demo --json serving.json
python benchmarks/serving.py --random_7b /dev/shm/serving --json serving_7b.json    # needs a GPU
python benchmarks/serving.py --pretrained_checkpoint runs/demo/train/demo --body msgpack_jpeg
"""

from __future__ import annotations

import base64
import functools
import http.client
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pictures import camera_picture

from prismatic.cli import run_script
from prismatic.vla.cameras import SENT_KEYS

ROOT = Path(__file__).parents[1]
_INSTRUCTION = "pick up the bowl and place it on the plate"
_PARTS = {  # of a request within the server: histogram
    "reading": "prismatic_reading_seconds",
    "queue": "prismatic_queue_wait_seconds",
    "policy": "prismatic_prediction_seconds",
}
_TYPES = {"json": "application/json", "msgpack": "application/msgpack", "msgpack_jpeg": "application/msgpack"}


@dataclass
class ServingBenchmarkConfig:
    """Flags of the benchmark."""

    pretrained_checkpoint: str = ""  # folder of a checkpoint
    random_7b: Path | None = None  # instead: folder for a LIBERO policy of the real size with random weights, deleted afterwards
    clients: list[int] = field(default_factory=lambda: [1, 4, 16])  # at once; one line of the table each
    seconds: float = 10  # of each measurement, after one second of warm-up
    image_size: int = 256  # pixels, square
    body: str = "json"  # as the published clients send it; msgpack: raw pictures; msgpack_jpeg: pictures as JPEG files
    deploy_flags: str = ""  # further flags of deploy.py, in one text
    json: Path | None = None  # where the table is written, too

    def __post_init__(self) -> None:
        if bool(self.pretrained_checkpoint) == (self.random_7b is not None):
            raise ValueError("pass either --pretrained_checkpoint or --random_7b")
        if self.body not in _TYPES:
            raise ValueError(f"--body is {self.body!r}; choose one of {', '.join(_TYPES)}")


@contextmanager
def random_7b(folder: Path) -> Iterator[str]:
    """A checkpoint of the policy that benchmarks/inference.py measures, for as long as the context lasts.

    Raises:
        ValueError: there is no GPU, or something of its name already.
    """
    import torch

    if not torch.cuda.is_available():
        raise ValueError("no CUDA device; --random_7b needs one with 24 GB")
    checkpoint = folder / "random_7b"
    if checkpoint.exists():
        raise ValueError(f"{checkpoint} exists already; delete it, or pass another folder as --random_7b")
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as writer:  # which leaves the GPU to the server
            writer.submit(_write_random_7b, checkpoint).result()
        yield str(checkpoint)
    finally:
        shutil.rmtree(checkpoint, ignore_errors=True)


def _write_random_7b(folder: Path) -> None:
    import torch
    from inference import build_parts

    from prismatic.models.base import write_tokenizer
    from prismatic.policy.checkpoint.saving import save_policy

    folder.mkdir(parents=True)
    parts = build_parts("libero", "none", torch.device("cuda"))
    save_policy(parts, folder, step=None)
    write_tokenizer(folder, parts.processor.tokenizer)


def start_server(checkpoint: str, deploy_flags: str) -> tuple[subprocess.Popen[str], int]:
    """A running deploy.py and its port.

    Raises:
        ValueError: it did not start; the message has what it said.
    """
    command = [sys.executable, "vla-scripts/deploy.py", "--pretrained_checkpoint", checkpoint, "--port", "0"]
    process = subprocess.Popen([*command, *deploy_flags.split()], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if found := re.search(r"serving on http://[^ ]*:(\d+):", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, int(found[1])
    raise ValueError(f"deploy.py did not start:\n{''.join(lines)}")


def make_body(info: dict[str, Any], image_size: int, kind: str = "json") -> bytes:
    """A request in the names of the OpenVLA-OFT form."""
    rng = np.random.default_rng(0)
    arrays = {SENT_KEYS[camera]: camera_picture(rng, image_size) for camera in info["cameras"]}
    if kind != "json":
        from prismatic.wire.arrays import pack_openpi
        from prismatic.wire.pictures import as_message

        images = {name: as_message(image, kind == "msgpack_jpeg") for name, image in arrays.items()}
        return pack_openpi({**images, "state": np.zeros(info["proprio_dim"]), "instruction": _INSTRUCTION})
    arrays["state"] = np.zeros(info["proprio_dim"])
    encoded = {
        name: {"__numpy__": base64.b64encode(array.tobytes()).decode(), "dtype": array.dtype.str, "shape": list(array.shape)}
        for name, array in arrays.items()
    }
    return json.dumps({**encoded, "instruction": _INSTRUCTION}).encode()


def call(port: int, method: str, path: str, body: bytes | None = None) -> bytes:
    """The answer to one request.

    Raises:
        ValueError: a status other than 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body)
    reply = connection.getresponse()
    content = reply.read()
    if reply.status != 200:
        raise ValueError(f"{path} answered {reply.status}: {content[:300]!r}")
    return content


def measure(port: int, body: bytes, num_clients: int, seconds: float, content_type: str = "application/json") -> dict[str, float]:
    """Requests per second and latency percentiles [ms] of clients that each ask again as soon as they are answered."""
    measured_from = time.perf_counter() + 1.0
    until = measured_from + seconds
    latencies: list[float] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while (started := time.perf_counter()) < until:
            connection.request("POST", "/act", body, {"Content-Type": content_type})
            reply = connection.getresponse()
            reply.read()
            if reply.status == 200 and started >= measured_from:
                latencies.append(time.perf_counter() - started)

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not latencies:
        raise ValueError("no request was answered; look at the server's log")
    p50, p99 = (1e3 * float(np.percentile(latencies, rank)) for rank in (50, 99))
    mean = 1e3 * float(np.mean(latencies))
    return {"clients": num_clients, "requests_per_s": len(latencies) / seconds, "mean_ms": mean, "p50_ms": p50, "p99_ms": p99}


def measure_parts(port: int, ask: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """What `ask` gives, and in `parts_ms` where its `mean_ms` went, as the server's counters tell; they count the warm-up, too.

    `http` is outside of the server's own clock, from a whole body to its answer: the client, the network, reading the head and the body,
    and sending the answer. `between` is within it, from one thread to the next.
    """
    before = counters(call(port, "GET", "/metrics").decode())
    row = ask()
    after = counters(call(port, "GET", "/metrics").decode())
    inside, *parts = (
        1e3 * (after[f"{name}_sum"] - before.get(f"{name}_sum", 0.0)) / (after[f"{name}_count"] - before.get(f"{name}_count", 0.0))
        for name in ("prismatic_request_seconds", *_PARTS.values())
    )
    rest = {"http": row["mean_ms"] - inside, "between": inside - sum(parts)}
    return {**row, "parts_ms": {**dict(zip(_PARTS, parts, strict=True)), **rest}}


def counters(page: str) -> dict[str, float]:
    """Name -> value of what a page of /metrics counts, whatever its labels."""
    found: dict[str, float] = {}
    for name, value in re.findall(r"^(\w+)(?:\{.*\})? (\S+)$", page, re.MULTILINE):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def main(config: ServingBenchmarkConfig) -> None:
    """Prints two lines per number of clients: what they see, and where a request's time goes."""
    if config.random_7b is None:
        benchmark(config, config.pretrained_checkpoint)
    else:
        with random_7b(config.random_7b) as checkpoint:
            benchmark(config, checkpoint)


def benchmark(config: ServingBenchmarkConfig, checkpoint: str) -> None:
    """The same for one checkpoint."""
    started = time.perf_counter()
    process, port = start_server(checkpoint, config.deploy_flags)
    start_s = time.perf_counter() - started
    try:
        info = json.loads(call(port, "GET", "/info"))
        if config.random_7b is not None and (left := {"compiled", "recorded"} & set(info["in_use"]["left"])):
            raise ValueError(f"the server is not {' and '.join(sorted(left))}: {info['in_use']['left']}")
        body = make_body(info, config.image_size, config.body)
        kind = _TYPES[config.body]
        rows = [measure_parts(port, functools.partial(measure, port, body, count, config.seconds, kind)) for count in config.clients]
        page = call(port, "GET", "/metrics").decode()
    finally:
        process.terminate()
        process.wait(timeout=60)
    print(f"{info['platform']}: ready after {start_s:.1f} s")
    for row in rows:
        times = f"p50 {row['p50_ms']:7.1f} ms  p99 {row['p99_ms']:7.1f} ms"
        print(f"{row['clients']:3.0f} clients  {row['requests_per_s']:8.1f} requests/s  {times}")
        print(f"    mean {row['mean_ms']:.2f} ms:", ", ".join(f"{name} {value:.2f}" for name, value in row["parts_ms"].items()))
    batches = {size: float(count) for size, count in re.findall(r'prismatic_batch_size_bucket\{le="([^"]+)"\} ([\d.]+)', page)}
    print("calls of the policy with at most so many observations:", batches)
    if config.json is not None:
        content = {
            "platform": info["platform"],
            "in_use": info.get("in_use"),
            "start_s": start_s,
            "body_bytes": len(body),
            "rows": rows,
            "batch_sizes": batches,
        }
        config.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    run_script(main, ServingBenchmarkConfig)
