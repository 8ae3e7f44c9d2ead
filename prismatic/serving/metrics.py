"""What the server counts, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (*range(1, 17), 24, 32)


class ServerMetrics:
    """Counters of one server; not global, so that tests can run several."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("prismatic_requests", "Requests answered", ["protocol", "status"], registry=registry)
        self.latency = Histogram(
            "prismatic_request_seconds",
            "From the arrival of a whole request to its answer, of requests that were answered with actions",
            ["protocol"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.reading = Histogram(
            "prismatic_reading_seconds",
            "From a decoder's beginning with a request to its being read and checked",
            buckets=(0.00025, 0.0005, 0.001, 0.002, *_SECONDS),
            registry=registry,
        )
        self.wait = Histogram("prismatic_queue_wait_seconds", "From queueing to prediction", buckets=_SECONDS, registry=registry)
        self.prediction = Histogram("prismatic_prediction_seconds", "One call of the policy", buckets=_SECONDS, registry=registry)
        self.batch_size = Histogram("prismatic_batch_size", "Observations in one call of the policy", buckets=_SIZES, registry=registry)
        self.dropped = Counter("prismatic_requests_dropped", "Requests that came and were not computed", ["reason"], registry=registry)
        self.queue_length = Gauge("prismatic_queue_length", "Observations that wait for the policy", registry=registry)
        self.admitted = Gauge("prismatic_requests_in_house", "Requests being decoded, waiting or predicted", registry=registry)
        self._in_use = Gauge("prismatic_in_use", "1: how a policy is computed", ["adapter", "name", "value"], registry=registry)
        self._left = Gauge(
            "prismatic_left", "1: a way to be faster that is not gone, and why", ["adapter", "name", "reason"], registry=registry
        )
        self._plain = Gauge(
            "prismatic_plain_calls", "Calls that ran plainly where others are recorded", ["adapter", "reason"], registry=registry
        )
        self.connections = Gauge("prismatic_websocket_connections", "Open websockets", ["protocol"], registry=registry)

    def tell(self, in_use: Mapping[str, Mapping[str, Any]]) -> None:
        """What `Policy.in_use` says, by adapter."""
        for adapter, facts in in_use.items():
            for name in ("engine", "device", "dtype", "attention", "padding"):
                self._in_use.labels(adapter, name, facts[name]).set(1)
            for kind, count in facts["quantized_layers"].items():
                self._in_use.labels(adapter, "quantized_layers", kind).set(count)
            for name, reason in facts["left"].items():
                self._left.labels(adapter, name, reason).set(1)

    def count_plain_calls(self, adapter: str, counts: Mapping[str, int]) -> None:
        """What an engine's `plain_calls` says."""
        for reason, count in counts.items():
            self._plain.labels(adapter, reason).set(count)

    def page(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)
