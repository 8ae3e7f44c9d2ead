"""Who is being served and still waits: each robot's observations are watched apart from those of others, over websockets as over HTTP.

A client is a websocket, or over HTTP whoever names its session in a header, else an address. What it sends is compared with the data set
in whose units it is answered, by a watch of its own for each of them.
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

_MAX_HTTP_CLIENTS = 256  # whose end nobody notices
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

    def take_warnings(self) -> list[str]:
        """What this client has not been told yet."""
        with self._lock:
            fresh = [warning for watch in self._watches.values() for warning in watch.take()]
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
        self._http: OrderedDict[str, Client] = OrderedDict()
        self._open: dict[Client, None] = {}  # websockets

    def of_http(self, headers: Mapping[str, str], host: str) -> Client:
        """The client that names its session in a header, else that of its address."""
        name = headers.get(keys.SESSION_HEADER, "")[:64] or host
        with self._lock:
            client = self._http.pop(name, None) or Client(name, "act")
            self._http[name] = client  # the latest last
            if len(self._http) > _MAX_HTTP_CLIENTS:
                self._http.popitem(last=False)
            return client

    def connect(self, name: str, protocol: str) -> Client:
        """A websocket's client, until `disconnect`."""
        client = Client(name, protocol)
        with self._lock:
            self._open[client] = None
        return client

    def disconnect(self, client: Client) -> None:
        with self._lock:
            self._open.pop(client, None)

    def facts(self) -> list[dict[str, Any]]:
        """Of every client, those that asked last first."""
        with self._lock:
            found = [*self._http.values(), *self._open]
        return [client.facts() for client in sorted(found, key=lambda client: -client.last_seen)]
