"""Who is being served and still waits: each robot's observations are watched apart from those of others, over websockets as over HTTP.

A client is whoever names its session in a header, however often it connects, else a websocket, or over HTTP an address. What it sends is
compared with the data set in whose units it is answered, by a watch of its own for each of them. A warning is handed out once, and once
more where the answer that held it may be lost: when its client comes back on another connection before it has asked again on the old one.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismatic.policy.watching import ObservationWatch
from prismatic.vla.types import Observation
from prismatic.wire import keys
from prismatic.wire.errors import SlowPredictionError

_MAX_KNOWN = 256  # clients without a connection, whose end nobody notices
_SHOWN_S = 300.0  # after its last request a client over HTTP may be gone
_MAX_WATCHES = 16  # of one client: data sets times adapters
_MAX_TIMES = 64  # requests from which rate and latency are told
_RECENT_S = 10.0

WatchOf = tuple[str | None, str | None]  # adapter and data set
MakeWatch = Callable[[], ObservationWatch]


class Client:
    """One robot, or whatever asks like one."""

    def __init__(self, name: str, protocol: str) -> None:
        self.name, self.protocol = name, protocol
        self.num_answers = self.num_errors = 0
        self.last_seen = time.monotonic()
        self._lock = threading.Lock()
        self._watches: OrderedDict[WatchOf, ObservationWatch] = OrderedDict()
        self._warnings: dict[str, None] = {}
        self._visit = 0  # connections that this client began
        self._handed_out: list[str] = []  # and perhaps not received
        self._lost: list[str] = []  # to be handed out again
        self._answered: deque[tuple[float, float]] = deque(maxlen=_MAX_TIMES)  # when, and after how many seconds

    def look(self, observation: Observation, of: WatchOf, make_watch: MakeWatch) -> None:
        """Compares `observation` with what training saw; the warnings are there for `take_warnings`."""
        with self._lock:
            watch = self._watches.pop(of, None) or make_watch()
            self._watches[of] = watch  # the latest last
            if len(self._watches) > _MAX_WATCHES:
                self._watches.popitem(last=False)
            watch.look([observation])

    def begin(self) -> None:
        """A rollout begins."""
        with self._lock:
            for watch in self._watches.values():
                watch.begin()

    @property
    def visit(self) -> int:
        """The number of the connection on which this client was there last."""
        return self._visit

    def come_back(self) -> int:
        """It is there on a new connection, whose number this is: what was handed out last may be lost."""
        with self._lock:
            self._visit += 1
            self._lost += self._handed_out
            self._handed_out.clear()
            return self._visit

    def go_on(self, visit: int) -> None:
        """It asks again on the same connection: its answers have arrived."""
        with self._lock:
            if visit == self._visit:
                self._handed_out.clear()

    def take_warnings(self, visit: int) -> list[str]:
        """What this client has not been told yet; nothing for a connection that it has left."""
        with self._lock:
            if visit != self._visit:
                return []
            fresh = self._lost + [warning for watch in self._watches.values() for warning in watch.take()]
            self._lost = []
            self._handed_out += fresh
            self._warnings |= dict.fromkeys(fresh)
            return fresh

    def note(self, status: int, seconds: float) -> None:
        """One request was answered."""
        with self._lock:
            self.last_seen = time.monotonic()
            if status == 200:
                self.num_answers += 1
                self._answered.append((self.last_seen, seconds))
            else:
                self.num_errors += 1

    def facts(self) -> dict[str, Any]:
        """For people: name, protocol, requests per second, latency [ms] and warnings."""
        with self._lock:
            now = time.monotonic()
            recent = [seconds for when, seconds in self._answered if now - when < _RECENT_S]
            oldest = min((when for when, _ in self._answered if now - when < _RECENT_S), default=now)
            return {
                "name": self.name,
                "protocol": self.protocol,
                "answers": self.num_answers,
                "errors": self.num_errors,
                "requests_per_s": round(len(recent) / max(now - oldest, 1.0), 2),
                "latency_ms": round(1e3 * float(np.median(recent)), 1) if recent else None,
                "seconds_since_last": round(now - self.last_seen, 1),
                "warnings": list(self._warnings),
            }


class ClientGoneError(Exception):
    """Nobody is there to take the answer."""


@dataclass(frozen=True)
class Listener:
    """Who waits for one answer, and how long."""

    client: Client
    until: float  # monotonic time after which it is of no use
    has_left: Callable[[], bool]  # a look at the connection, from any thread
    address: str  # where he asks from

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.until - time.monotonic())

    def check(self) -> None:
        """Accepts one who waits.

        Raises:
            ClientGoneError: he does not.
            SlowPredictionError: his time is over.
        """
        if self.has_left():
            raise ClientGoneError
        if not self.seconds_left:
            raise SlowPredictionError("the time for this request was over before it was read; the server is overloaded, or it came slowly")


class Clients:
    """All clients of a server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], Client] = OrderedDict()  # by protocol and name, the latest last
        self._open: dict[Client, int] = {}  # how many websockets each has

    def of_http(self, headers: Mapping[str, str], host: str) -> Client:
        """The client that names its session in a header, else that of its address."""
        with self._lock:
            return self._recall(session_of(headers) or host, "act")

    def connect(self, headers: Mapping[str, str], address: str, protocol: str) -> Client:
        """A websocket's client, until `disconnect`: that of the session which the header names, else a new one."""
        with self._lock:
            session = session_of(headers)
            client = self._recall(session, protocol) if session else Client(address, protocol)
            self._open[client] = self._open.get(client, 0) + 1
        return client

    def disconnect(self, client: Client) -> None:
        with self._lock:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    def facts(self) -> list[dict[str, Any]]:
        """Of every client that is connected, or asked over HTTP within minutes; those that asked last first."""
        since = time.monotonic() - _SHOWN_S
        with self._lock:
            over_http = [client for (protocol, _), client in self._known.items() if protocol == "act" and client.last_seen > since]
            found = {**self._open, **dict.fromkeys(over_http)}
        return [client.facts() for client in sorted(found, key=lambda client: -client.last_seen)]

    def _recall(self, name: str, protocol: str) -> Client:
        client = self._known.pop((protocol, name), None) or Client(name, protocol)
        self._known[protocol, name] = client
        if len(self._known) > _MAX_KNOWN:
            silent = next((key for key, one in self._known.items() if one not in self._open), None)
            self._known.pop(silent or next(iter(self._known)))
        return client


def session_of(headers: Mapping[str, str]) -> str:
    """The name that a client gives its session; "" where it gives none."""
    return headers.get(keys.SESSION_HEADER, "")[:64]
