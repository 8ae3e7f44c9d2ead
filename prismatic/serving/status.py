"""The status page: what people want to know of a running server, on a desk or on a phone.

`GET /` is one file without anything from elsewhere and without any fact; its script asks `GET /status`, which wants the API key. Pictures
are given out only where the server has a key: they show somebody's room.
"""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.serving.service import PolicyService, ServedPolicy
from prismatic.vla.jpeg_files import encode_jpeg

PAGE = Path(__file__).with_name("status.html")
_MAX_SIDE = 360  # pixels of a picture on the page


def describe_service(service: PolicyService, started: float) -> dict[str, Any]:
    """Plain values for the page; `started`: monotonic time of the server's start."""
    batcher = service.batcher
    with_pictures = service.options.api_key is not None
    return {
        "problem": service.health.ready_problem(),
        "uptime_s": round(time.monotonic() - started),
        "policies": [_describe_policy(service, served, with_pictures) for served in service.served],
        "pictures": "shown" if with_pictures else "set an API key (PRISMATIC_API_KEY) to see what the cameras show",
        "clients": service.clients.facts(),
        "queue": {"waiting": batcher.queue_length, "in_house": batcher.admitted, "limit": service.options.batching.max_queue},
    }


def _describe_policy(service: PolicyService, served: ServedPolicy, with_pictures: bool) -> dict[str, Any]:
    info = served.describe()
    costs = service.batcher.costs.get(served.adapter)
    return {
        "adapter": served.adapter,
        "platform": info.platform,
        "cameras": list(info.cameras),
        "data_set": info.unnorm_key,
        "num_actions_chunk": info.num_actions_chunk,
        "control_hz": info.control_hz,
        "in_use": served.policy.in_use(),
        "batches_up_to": service.batcher.cap(served.adapter),
        "call_ms": {str(size): round(1e3 * seconds, 1) for size, seconds in costs.seconds.items()} if costs else {},
        "last_seen": _describe_last(served, with_pictures),
    }


def _describe_last(served: ServedPolicy, with_pictures: bool) -> dict[str, Any] | None:
    if served.last_seen is None:
        return None
    when, client, observation = served.last_seen
    pictures = {name: _data_url(image) for name, image in observation.images.items()} if with_pictures else {}
    return {
        "seconds_ago": round(time.monotonic() - when, 1),
        "client": client,
        "instruction": observation.instruction,
        "pictures": pictures,
    }


def _data_url(image: np.ndarray) -> str:
    step = max(1, -(-max(image.shape[:2]) // _MAX_SIDE))
    return f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(np.ascontiguousarray(image[::step, ::step]))).decode()}"
