"""The robot's side of the connection: observations out, chunks of actions in.

    client = PolicyClient("ws://192.168.1.20:8777")
    info = client.connect(wait_s=60)
    actions = client.infer(Observation({"primary": image}, "open the drawer", state))  # [H, A], in the robot's units

`ws://` keeps one connection open and sends images as they are; `http://` posts JSON to /act, as the clients of the published server do;
`wss://` and `https://` are the same, encrypted, for a server behind a proxy that does this. Every request says how long it is waited for.
Actions are the same over both, in the units of the demonstrations, also for a LIBERO policy. What training saw differently is in
`client.take_warnings()` after the first answer of a rollout, and not again after a time-out. `?adapter=NAME` behind the address chooses
one of several adapters.
One request is sent once: after a failure the caller asks again, with a new observation, when `retry_after_s` has passed. A robot's
computer needs numpy, msgpack and websockets for this, no torch. Letters: H chunk, A action dim.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

import numpy as np

from prismatic.acting.transports import ConnectionOptions, RequestRefusedError, ServerUnavailableError, make_transport
from prismatic.vla.types import Observation
from prismatic.wire.errors import RequestError
from prismatic.wire.policy_info import ROBOT_UNITS, PolicyInfo

__all__ = ["ConnectionOptions", "PolicyClient", "PolicyInfo", "RequestRefusedError", "ServerUnavailableError"]

T = TypeVar("T")


class PolicyClient:
    """A connection to a policy server, opened again when it breaks. Not for several threads at once."""

    def __init__(self, url: str, options: ConnectionOptions | None = None) -> None:
        """`url`: ws://host:port, http://host:port (with or without /act; wss, https), or a bare host, which means ws:// and port 8777.

        Raises:
            ValueError: the URL is none of these.
        """
        self.options = options or ConnectionOptions()
        self.info: PolicyInfo | None = None  # of the first connection
        self._transport = make_transport(url, self.options)
        self._backoff_s = 0.0
        self._warnings: list[str] = []
        self._told: set[str] = set()  # warnings of this rollout

    def connect(self, wait_s: float = 0.0) -> PolicyInfo:
        """Opens the connection; waits so long for a server that is not there yet.

        Raises:
            ServerUnavailableError: no server in time.
            RequestRefusedError: a server that does not accept this client.
        """
        until = time.monotonic() + wait_s
        while True:
            try:
                return self._guarded(self._open)
            except ServerUnavailableError as error:
                if time.monotonic() + error.retry_after_s > until:
                    raise
                time.sleep(error.retry_after_s)

    def infer(self, observation: Observation, begins: bool = False) -> np.ndarray:
        """The next actions, finite float64 [H, A]; connects first where the connection is broken.

        `begins`: this is the first observation of a rollout, which the server compares with those of training.

        Raises:
            ServerUnavailableError: no usable answer in time; ask again after its `retry_after_s`.
            RequestRefusedError: the observation does not fit the policy, or the server now has another policy.
        """
        return self._guarded(lambda: self._ask(observation, begins))

    def take_warnings(self) -> list[str]:
        """What training saw differently, since the last call."""
        taken, self._warnings = self._warnings, []
        return taken

    def close(self) -> None:
        """Ends the connection; harmless the second time."""
        self._transport.close()

    def _open(self) -> PolicyInfo:
        info = self._transport.open()
        if info.action_units != ROBOT_UNITS:
            raise RequestRefusedError(f"the server sends actions in the units {info.action_units!r}, this client takes the robot's own")
        if self.info is not None and info != self.info:
            raise RequestRefusedError(f"the server now has another policy: {_differences(self.info, info)}; restart the client")
        self.info = info
        self._transport.sends_jpeg = self.options.jpeg_images and info.jpeg_round_trip
        return info

    def _ask(self, observation: Observation, begins: bool) -> np.ndarray:
        info = self.info if self._transport.is_open and self.info is not None else self._open()
        if begins:
            self._told.clear()
        actions, warnings = self._transport.ask(observation, begins)
        self._warnings += [warning for warning in warnings if warning not in self._told]
        self._told.update(warnings)
        if actions.ndim != 2 or actions.shape[1] != info.action_dim:
            raise RequestRefusedError(f"expected actions [steps, {info.action_dim}], the server sent shape {list(actions.shape)}")
        if not np.isfinite(actions).all():
            raise ServerUnavailableError("the server sent actions that are not finite")
        return actions

    def _guarded(self, call: Callable[[], T]) -> T:
        """`call()`; whatever breaks the connection becomes a ServerUnavailableError, and the connection is closed."""
        from websockets.exceptions import WebSocketException

        try:
            result = call()
        except RequestRefusedError:
            self._transport.close()
            raise
        except (OSError, WebSocketException, http.client.HTTPException, RequestError, ServerUnavailableError) as error:
            self._transport.close()
            self._backoff_s = min(2 * self._backoff_s or self.options.first_backoff_s, self.options.max_backoff_s)
            wish = error.retry_after_s if isinstance(error, ServerUnavailableError) else 0.0  # of a server that has too much to do
            raise ServerUnavailableError(f"{type(error).__name__}: {error}", max(wish, self._backoff_s)) from error
        self._backoff_s = 0.0
        return result


def _differences(before: PolicyInfo, now: PolicyInfo) -> str:
    pairs = [(item.name, getattr(before, item.name), getattr(now, item.name)) for item in fields(PolicyInfo)]
    return ", ".join(f"{name} was {str(old)[:80]}, is {str(new)[:80]}" for name, old, new in pairs if old != new)
