"""Ways to reach a policy server: a websocket, or HTTP. Letters: H chunk, A action dim."""

from __future__ import annotations

import http.client
import json
import re
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np

from prismatic.vla.cameras import SENT_KEYS
from prismatic.vla.types import Observation
from prismatic.wire import keys
from prismatic.wire.api_key import read_api_key
from prismatic.wire.arrays import as_array, json_array, pack_openpi, read_json
from prismatic.wire.errors import BusyError
from prismatic.wire.msgpack_reader import read_msgpack
from prismatic.wire.pictures import as_json, as_message
from prismatic.wire.policy_info import PolicyInfo

DEFAULT_PORT = 8777
_TLS_PORT = 443  # of wss and https: what stands before a server and encrypts
_TOO_LARGE_CODE = 1009
_MAX_REPLY_BYTES = 16 << 20
# What the server says of trouble that may pass; anything else is the client's mistake.
_PASSING_STATUS = (408, 429, 500, 502, 503, 504)
_PASSING_ERRORS = ("SlowPredictionError", "PredictionError")


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
    jpeg_images: bool = False  # pictures travel as JPEG, a seventh of their size, where the policy sees them through JPEG anyway
    api_key: str | None = field(default=None, repr=False)  # None: the environment variable PRISMATIC_API_KEY

    def __post_init__(self) -> None:
        for name in ("connect_timeout_s", "reply_timeout_s", "first_backoff_s", "max_backoff_s"):
            if not 0 < getattr(self, name) <= threading.TIMEOUT_MAX:  # beyond it a timer fails, and nothing ends the waiting
                most = f"at most {threading.TIMEOUT_MAX:.0f}"
                raise ValueError(f"{name} is {getattr(self, name)}, must be a finite number more than 0, {most}")

    @property
    def headers(self) -> dict[str, str]:
        """With every request: the key, and how long an answer is waited for, after which the server need not compute it."""
        key = self.api_key or read_api_key()
        patience = {keys.DEADLINE_HEADER: str(max(1, round(1e3 * self.reply_timeout_s)))}
        return {**patience, "Authorization": f"Api-Key {key}"} if key else patience


class Transport(Protocol):
    """One way to reach a server. Every method may raise OSError and the errors of this module."""

    sends_jpeg: bool

    @property
    def is_open(self) -> bool: ...

    def open(self) -> PolicyInfo: ...

    def ask(self, observation: Observation, begins: bool) -> tuple[np.ndarray, list[str]]:
        """Actions [H, A] and new warnings about what the policy is shown."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Address:
    """Where a server is. An encrypted one must show a certificate that this computer trusts (SSL_CERT_FILE names further ones)."""

    host: str
    port: int
    query: str
    is_encrypted: bool


def make_transport(url: str, options: ConnectionOptions) -> Transport:
    """A way to the server at `url`, which is asked under one name of a session however often it is opened anew.

    Raises:
        ValueError: the URL is none of a server.
    """
    try:
        parts = urlsplit(url if "://" in url else f"ws://{url}")
    except ValueError as error:
        raise ValueError(f"the server's URL is {url!r}: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise ValueError("the server's URL holds a name or password, which is not used: set the environment variable PRISMATIC_API_KEY")
    is_address = parts.scheme in ("ws", "wss", "http", "https") and parts.hostname and parts.path in ("", "/", "/act", keys.POLICY_PATH)
    if not is_address or not parts.hostname or not re.fullmatch(r"(adapter=[^&]+)?", parts.query):
        expected = (
            f"ws://HOST:{DEFAULT_PORT} or http://HOST:{DEFAULT_PORT} (wss, https: encrypted), "
            "with ?adapter=NAME behind it where a server has several"
        )
        raise ValueError(f"the server's URL is {url!r}; expected {expected}")
    try:
        parts.hostname.encode("idna")  # as it will be looked up: no part of the name may be empty or too long
        port = parts.port or (_TLS_PORT if parts.scheme in ("wss", "https") else DEFAULT_PORT)
    except ValueError as error:
        raise ValueError(f"the server's URL is {url!r}: {error}") from error
    query = f"?{parts.query}" if parts.query else ""
    address = Address(parts.hostname, port, query, is_encrypted=parts.scheme in ("wss", "https"))
    session = {keys.SESSION_HEADER: secrets.token_hex(8)}
    return (_Websocket if parts.scheme in ("ws", "wss") else _Rest)(address, options, session)


def _parse_info(content: Any) -> PolicyInfo:
    try:
        return PolicyInfo.parse(content)
    except ValueError as error:
        raise RequestRefusedError(f"{error}; start vla-scripts/deploy.py of the version that this client has") from error


class _Websocket:
    """The form of openpi's protocol: the server describes itself first, then answers each observation."""

    def __init__(self, address: Address, options: ConnectionOptions, session: Mapping[str, str]) -> None:
        host = f"[{address.host}]" if ":" in address.host else address.host
        self._url = f"{'wss' if address.is_encrypted else 'ws'}://{host}:{address.port}{keys.POLICY_PATH}{address.query}"
        self._options, self._session, self.sends_jpeg = options, session, False
        self._stack = ExitStack()  # websockets means its connections to be context managers
        self._connection: Any = None

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def open(self) -> PolicyInfo:
        import msgpack  # noqa: F401  (what lacks is told now, not when the robot is to move)
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
                additional_headers={**self._options.headers, **self._session},
                proxy=None,
            )
            self._connection = self._stack.enter_context(connection)
        except InvalidStatus as error:
            _raise_for_status(error.response.status_code, bytes(error.response.body or b""), error.response.headers)
            raise
        with _deadline(self._connection.socket, self._options.reply_timeout_s):
            return _parse_info(read_msgpack(self._receive()))

    def ask(self, observation: Observation, begins: bool) -> tuple[np.ndarray, list[str]]:
        images = {camera: as_message(image, self.sends_jpeg) for camera, image in observation.images.items()}
        content: dict[str, Any] = {keys.IMAGES: images, keys.PROMPT: observation.instruction}
        if observation.proprio is not None:
            content[keys.STATE] = np.asarray(observation.proprio, np.float64)
        if begins:
            content[keys.BEGINS] = True
        with _deadline(self._connection.socket, self._options.reply_timeout_s):
            reply = read_msgpack(self._exchange(pack_openpi(content)))
        found = reply if isinstance(reply, dict) else {}
        actions = as_array(found.get(keys.ACTIONS), keys.ACTIONS).astype(np.float64)
        return actions, _read_warnings(found.get(keys.WARNINGS, []))

    def _exchange(self, frame: bytes) -> bytes:
        from websockets.exceptions import ConnectionClosed

        try:
            self._connection.send(frame)
            return self._receive()
        except ConnectionClosed as closed:
            if closed.rcvd is not None and closed.rcvd.code == _TOO_LARGE_CODE:
                raise RequestRefusedError(
                    f"the observation is too large for the server ({closed.rcvd.reason}); send smaller images or JPEG, or start it with "
                    "a larger --max_body_mb"
                ) from closed
            raise

    def _receive(self) -> bytes:
        from websockets.exceptions import ConnectionClosed

        frame = self._connection.recv()
        if isinstance(frame, bytes):
            return frame
        try:  # a text is an error; the closing frame that follows says of which kind
            self._connection.recv()
        except ConnectionClosed as closed:
            reason = "" if closed.rcvd is None else closed.rcvd.reason
            if reason == BusyError.__name__:
                raise ServerUnavailableError(frame, BusyError.retry_after_s) from closed
            if closed.rcvd is not None and reason not in _PASSING_ERRORS:
                raise RequestRefusedError(frame) from closed
        raise ServerUnavailableError(frame)

    def close(self) -> None:
        self._connection = None
        self._stack.close()


class _Rest:
    """`POST /act` over one HTTP connection that is kept open."""

    def __init__(self, address: Address, options: ConnectionOptions, session: Mapping[str, str]) -> None:
        self._query, self._session, self.sends_jpeg = address.query, session, False
        self._returns = False  # nothing was asked on this connection yet
        kind = http.client.HTTPSConnection if address.is_encrypted else http.client.HTTPConnection
        self._connection = kind(address.host, address.port, timeout=options.connect_timeout_s)
        self._options = options

    @property
    def is_open(self) -> bool:
        return self._connection.sock is not None

    def open(self) -> PolicyInfo:
        self.close()
        self._returns = True
        self._connection.connect()
        self._connection.sock.settimeout(None)  # _call sees to the time
        return _parse_info(self._call("GET", "/info", None)[0])

    def ask(self, observation: Observation, begins: bool) -> tuple[np.ndarray, list[str]]:
        images = observation.images.items()
        content: dict[str, Any] = {SENT_KEYS.get(camera, camera): as_json(image, self.sends_jpeg) for camera, image in images}
        if observation.proprio is not None:
            content[keys.STATE] = json_array(np.asarray(observation.proprio, np.float64))
        marks = {**self._session, **({keys.BEGINS_HEADER: "1"} if begins else {}), **({keys.RETURNS_HEADER: "1"} if self._returns else {})}
        self._returns = False
        body = json.dumps({**content, keys.INSTRUCTION: observation.instruction})
        reply, warnings = self._call("POST", "/act", body, marks)
        if not isinstance(reply, list) or not reply:
            raise ServerUnavailableError(f"/act answered {str(reply)[:200]}, expected a list of actions")
        actions = [as_array(action, "action") for action in reply]
        if len({action.shape for action in actions}) != 1:
            raise ServerUnavailableError("/act answered with actions of different shapes")
        return np.stack(actions).astype(np.float64), _read_warnings(warnings)

    def _call(self, method: str, path: str, body: str | None, marks: Mapping[str, str] | None = None) -> tuple[Any, Any]:
        """The answer, and the warnings in its header."""
        headers = {"Content-Type": "application/json", **self._options.headers, **(marks or {})}
        with _deadline(self._connection.sock, self._options.reply_timeout_s):
            self._connection.request(method, path + self._query, body, headers)
            reply = self._connection.getresponse()
            content = reply.read(_MAX_REPLY_BYTES)
        _raise_for_status(reply.status, content, reply.headers)
        return read_json(content), read_json(reply.headers.get(keys.WARNINGS_HEADER, "[]"))

    def close(self) -> None:
        self._connection.close()


def _read_warnings(said: Any) -> list[str]:
    if not isinstance(said, list):
        raise ServerUnavailableError(f"the server's warnings are {str(said)[:200]!r}, expected a list")
    return [str(warning) for warning in said]


def _raise_for_status(status: int, body: bytes, headers: Mapping[str, str] | Message) -> None:
    if status in (101, 200):
        return
    message = f"the server answered {status}: {body.decode(errors='replace')[:500]}"
    if status in _PASSING_STATUS:
        wish = headers.get("Retry-After", "")
        raise ServerUnavailableError(message, float(wish) if wish.isdigit() and len(wish) < 4 else 0.0)
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
