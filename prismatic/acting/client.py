"""The robot's side of the connection: observations out, chunks of actions in.

    client = PolicyClient("ws://192.168.1.20:8777")
    info = client.connect(wait_s=60)
    actions = client.infer(Observation({"primary": image}, "open the drawer", state))  # [H, A], in the robot's units

`ws://` keeps one connection open and sends images as they are; `http://` posts JSON to /act, as the clients of the published server do.
One request is sent once: after a failure the caller asks again, with a new observation, when `retry_after_s` has passed. A robot's
computer needs numpy, msgpack and websockets for this, no torch. Letters: H chunk, A action dim.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import numpy as np

from prismatic.vla.cameras import SENT_KEYS
from prismatic.vla.types import Observation
from prismatic.wire import keys
from prismatic.wire.arrays import as_array, json_array, pack_openpi, read_json
from prismatic.wire.errors import RequestError
from prismatic.wire.msgpack_reader import read_msgpack

T = TypeVar("T")

DEFAULT_PORT = 8777
_MAX_REPLY_BYTES = 16 << 20
# What the server says of trouble that may pass; anything else is the client's mistake.
_PASSING_STATUS = (408, 429, 500, 502, 503, 504)
_PASSING_ERRORS = ("BusyError", "SlowPredictionError", "PredictionError")

logger = logging.getLogger(__name__)


class ServerUnavailableError(RuntimeError):
    """No usable answer this time; asking again may help."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestRefusedError(ValueError):
    """The server does not accept such requests; the message says what to change."""


@dataclass(frozen=True)
class ConnectionOptions:
    """Patience and identity of a client."""

    connect_timeout_s: float = 3.0
    reply_timeout_s: float = 2.0  # from the request to the whole answer
    first_backoff_s: float = 0.1  # before the second attempt; doubled after each further failure
    max_backoff_s: float = 2.0
    api_key: str | None = None  # None: the environment variable PRISMATIC_API_KEY

    def __post_init__(self) -> None:
        for name in ("connect_timeout_s", "reply_timeout_s", "first_backoff_s", "max_backoff_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must be more than 0")

    @property
    def headers(self) -> dict[str, str]:
        key = self.api_key or os.environ.get("PRISMATIC_API_KEY")
        return {"Authorization": f"Api-Key {key}"} if key else {}


@dataclass(frozen=True)
class PolicyInfo:
    """What a server says of its policy."""

    platform: str
    cameras: tuple[str, ...]
    num_actions_chunk: int
    action_dim: int
    action_names: tuple[str, ...]
    relative_actions: tuple[bool, ...]  # True: a motion, neutral at 0; False: a target
    control_hz: float
    needs_state: bool
    center_crop: bool

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> PolicyInfo:
        """Out of the server's metadata.

        Raises:
            RequestRefusedError: it lacks a field.
        """
        try:
            return cls(
                platform=str(content["platform"]),
                cameras=tuple(content["cameras"]),
                num_actions_chunk=int(content["num_actions_chunk"]),
                action_dim=int(content["action_dim"]),
                action_names=tuple(content["action_names"]),
                relative_actions=tuple(bool(item) for item in content["relative_actions"]),
                control_hz=float(content["control_hz"]),
                needs_state=bool(content["needs_state"]),
                center_crop=bool(content["policy"]["image"]["center_crop"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RequestRefusedError(
                f"the server does not describe its policy as vla-scripts/deploy.py of this version does ({error!r}); update the server"
            ) from error


class _Transport(Protocol):
    """One way to reach a server. Every method may raise OSError and the errors of this module."""

    @property
    def is_open(self) -> bool: ...

    def open(self) -> PolicyInfo: ...

    def ask(self, observation: Observation) -> np.ndarray: ...

    def close(self) -> None: ...


class PolicyClient:
    """A connection to a policy server, opened again when it breaks. Not for several threads at once."""

    def __init__(self, url: str, options: ConnectionOptions | None = None) -> None:
        """`url`: ws://host:port, http://host:port (with or without /act), or a bare host, which means ws:// and port 8777.

        Raises:
            ValueError: the URL is none of these.
        """
        self.options = options or ConnectionOptions()
        self.info: PolicyInfo | None = None  # of the first connection
        self._transport = _make_transport(url, self.options)
        self._backoff_s = 0.0

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

    def infer(self, observation: Observation) -> np.ndarray:
        """The next actions, finite float64 [H, A]; connects first where the connection is broken.

        Raises:
            ServerUnavailableError: no usable answer in time; ask again after its `retry_after_s`.
            RequestRefusedError: the observation does not fit the policy, or the server now has another policy.
        """
        return self._guarded(lambda: self._ask(observation))

    def close(self) -> None:
        """Ends the connection; harmless the second time."""
        self._transport.close()

    def _open(self) -> PolicyInfo:
        info = self._transport.open()
        if self.info is not None and info != self.info:
            raise RequestRefusedError(f"the server now has another policy: {info}, before: {self.info}; restart the client")
        self.info = info
        return info

    def _ask(self, observation: Observation) -> np.ndarray:
        info = self.info if self._transport.is_open and self.info is not None else self._open()
        actions = self._transport.ask(observation)
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
            raise ServerUnavailableError(f"{type(error).__name__}: {error}", self._backoff_s) from error
        self._backoff_s = 0.0
        return result


def _make_transport(url: str, options: ConnectionOptions) -> _Transport:
    parts = urlsplit(url if "://" in url else f"ws://{url}")
    if parts.scheme not in ("ws", "http") or not parts.hostname or parts.path not in ("", "/", "/act"):
        raise ValueError(f"the server's URL is {url!r}; expected ws://HOST:{DEFAULT_PORT} or http://HOST:{DEFAULT_PORT}")
    try:
        port = parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ValueError(f"the server's URL is {url!r}: {error}") from error
    return (_Websocket if parts.scheme == "ws" else _Rest)(parts.hostname, port, options)


class _Websocket:
    """openpi's protocol: the server describes itself first, then answers each observation."""

    def __init__(self, host: str, port: int, options: ConnectionOptions) -> None:
        self._url = f"ws://[{host}]:{port}/" if ":" in host else f"ws://{host}:{port}/"
        self._options = options
        self._stack = ExitStack()  # websockets means its connections to be context managers
        self._connection: Any = None

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def open(self) -> PolicyInfo:
        from websockets.exceptions import InvalidStatus
        from websockets.sync.client import connect

        self.close()
        try:
            connection = connect(
                self._url,
                compression=None,
                max_size=_MAX_REPLY_BYTES,
                open_timeout=self._options.connect_timeout_s,
                close_timeout=0.2,
                additional_headers=self._options.headers,
                proxy=None,
            )
            self._connection = self._stack.enter_context(connection)
        except InvalidStatus as error:
            _raise_for_status(error.response.status_code, bytes(error.response.body or b""))
            raise
        with _deadline(self._connection.socket, self._options.reply_timeout_s):
            return PolicyInfo.parse(read_msgpack(self._receive()))

    def ask(self, observation: Observation) -> np.ndarray:
        content: dict[str, Any] = {keys.IMAGES: dict(observation.images), keys.PROMPT: observation.instruction}
        if observation.proprio is not None:
            content[keys.STATE] = np.asarray(observation.proprio, np.float64)
        with _deadline(self._connection.socket, self._options.reply_timeout_s):
            self._connection.send(pack_openpi(content))
            reply = read_msgpack(self._receive())
        for warning in reply.get(keys.WARNINGS, []) if isinstance(reply, dict) else []:
            logger.warning("the server warns: %s", warning)
        return as_array(reply.get(keys.ACTIONS) if isinstance(reply, dict) else reply, keys.ACTIONS).astype(np.float64)

    def _receive(self) -> bytes:
        from websockets.exceptions import ConnectionClosed

        frame = self._connection.recv()
        if isinstance(frame, bytes):
            return frame
        try:  # a text is an error; the closing frame that follows says of which kind
            self._connection.recv()
        except ConnectionClosed as closed:
            if closed.rcvd is not None and closed.rcvd.reason not in _PASSING_ERRORS:
                raise RequestRefusedError(frame) from closed
        raise ServerUnavailableError(frame)

    def close(self) -> None:
        self._connection = None
        self._stack.close()


class _Rest:
    """`POST /act` over one HTTP connection that is kept open."""

    def __init__(self, host: str, port: int, options: ConnectionOptions) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=options.connect_timeout_s)
        self._options = options

    @property
    def is_open(self) -> bool:
        return self._connection.sock is not None

    def open(self) -> PolicyInfo:
        self.close()
        self._connection.connect()
        self._connection.sock.settimeout(None)  # _call sees to the time
        return PolicyInfo.parse(self._call("GET", "/info", None))

    def ask(self, observation: Observation) -> np.ndarray:
        images = observation.images.items()
        content: dict[str, Any] = {SENT_KEYS.get(camera, camera): json_array(image) for camera, image in images}
        if observation.proprio is not None:
            content[keys.STATE] = json_array(np.asarray(observation.proprio, np.float64))
        reply = self._call("POST", "/act", json.dumps({**content, keys.INSTRUCTION: observation.instruction}))
        if not isinstance(reply, list) or not reply:
            raise ServerUnavailableError(f"/act answered {str(reply)[:200]}, expected a list of actions")
        actions = [as_array(action, "action") for action in reply]
        if len({action.shape for action in actions}) != 1:
            raise ServerUnavailableError("/act answered with actions of different shapes")
        return np.stack(actions).astype(np.float64)

    def _call(self, method: str, path: str, body: str | None) -> Any:
        with _deadline(self._connection.sock, self._options.reply_timeout_s):
            self._connection.request(method, path, body, {"Content-Type": "application/json", **self._options.headers})
            reply = self._connection.getresponse()
            content = reply.read(_MAX_REPLY_BYTES)
        _raise_for_status(reply.status, content)
        return read_json(content)

    def close(self) -> None:
        self._connection.close()


def _raise_for_status(status: int, body: bytes) -> None:
    if status in (101, 200):
        return
    message = f"the server answered {status}: {body.decode(errors='replace')[:500]}"
    if status in _PASSING_STATUS:
        raise ServerUnavailableError(message)
    raise RequestRefusedError(message)


@contextmanager
def _deadline(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Cuts `connection` off after `seconds`: a peer that stops reading, or sends byte by byte, would outlive the time-out of any one call.

    Raises:
        TimeoutError: the block failed because of that.
    """
    is_over = threading.Event()

    def cut() -> None:
        is_over.set()
        with suppress(OSError):  # closed already
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:  # what exactly breaks depends on what was going on
        if is_over.is_set():
            raise TimeoutError(f"no answer within {seconds:g} s") from error
        raise
    finally:
        timer.cancel()
