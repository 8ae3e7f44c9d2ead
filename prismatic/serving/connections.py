"""Sockets that do not hurt each other: uvicorn's HTTP and websocket connections, with an end to everything that somebody might not do.

A head or a frame that begins must arrive in time; whoever does not read his answers is cut off; bytes that are not whole requests yet are
bounded for all connections together. Idle sockets cost nothing: when there are too many, those that were silent longest make room, and no
robot that works is ever refused for their sake.
"""

from __future__ import annotations

import asyncio
import functools
import select
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from prismatic.wire.errors import BusyError

KEEP_ALIVE_S = 600  # an HTTP connection may be silent between two requests; a person may think for minutes between two rollouts
_SILENT_S = 60.0  # and before the first one
_HEAD_S = 10.0  # from the first byte of a request to the end of its head
_STALLED_S = 10.0  # a peer reads nothing of what waits for it
_LINGER_S = 5.0  # in which a peer that still sends what is too large may read why that ends,
_QUIET_S = 0.2  # or until it has stopped so long
_MIN_IDLE_WEBSOCKET_S = 120.0  # silent so long, a websocket may make room for another connection
_TRY_AGAIN_LATER = 1013  # close code
_INFORMATIONAL = b"HTTP/1.1 1"  # "100 Continue", before the answer
_LOOK = "has_left"  # key in the state of a request
_LEFT = getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)


@dataclass
class ConnectionLimits:
    """What all connections of a server have in common."""

    max_connections: int = 512
    max_bytes: int = 512 << 20  # of requests that are not whole yet
    frame_s: float = 30.0  # from the first byte of a frame or a body to its last one
    _held: dict[object, int] = field(default_factory=dict, repr=False)
    _total: int = 0

    def hold(self, owner: object, count: int) -> None:
        """`owner` has `count` bytes of an unfinished request.

        Raises:
            BusyError: that is too much for all together.
        """
        self._total += count - self._held.pop(owner, 0)
        if not count:
            return
        if self._total > self.max_bytes:
            self._total -= count
            raise BusyError(f"requests of {self.max_bytes / 2**20:g} MB in all are arriving; try again in {BusyError.retry_after_s} s")
        self._held[owner] = count


def has_left(transport: asyncio.Transport) -> bool:
    """Whether the other end has closed the connection, as far as this machine knows. For any thread: the event loop may notice it later."""
    number = -1 if transport.is_closing() else transport.get_extra_info("socket").fileno()
    if number < 0 or not hasattr(select, "poll"):
        return number < 0
    looking = select.poll()
    looking.register(number, _LEFT)
    return bool(looking.poll(0))


def look_of(scope: MutableMapping[str, Any]) -> Callable[[], bool]:
    """`has_left` of the connection on which a request came."""
    return scope["state"][_LOOK]


class _Alarm:
    """Something that happens later, unless it is called off."""

    def __init__(self, loop: asyncio.AbstractEventLoop, do: Any) -> None:
        self._loop, self._do = loop, do
        self._handle: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Once; an alarm that is set already stays as it is."""
        if self._handle is None:
            self._handle = self._loop.call_later(seconds, self._ring)

    def off(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _ring(self) -> None:
        self._handle = None
        self._do()


class _WholeAnswer(asyncio.Transport):
    """Where uvicorn writes one answer: its head leaves together with the first part of its body. Apart they would wake the client twice."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._head: bytes | None = None  # b"": it has left

    def write(self, data: Any) -> None:
        if self._head is None and not data.startswith(_INFORMATIONAL):
            self._head = data
        else:
            self._transport.write((self._head or b"") + data)
            self._head = self._head and b""

    def close(self) -> None:
        if self._head:
            self.write(b"")
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class HttpConnection(H11Protocol):
    """One HTTP connection."""

    limits: ConnectionLimits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, _LOOK: functools.partial(has_left, transport)}  # websockets take it over
        self._silence, self._head = (_Alarm(self.loop, self._time_out) for _ in range(2))
        self._stalled = _Alarm(self.loop, transport.abort)
        self._last_use = self.loop.time()
        self._silence.set(_SILENT_S)
        make_room(self.connections, self.limits.max_connections, self)

    @property
    def idle_rank(self) -> tuple[bool, float] | None:
        """Whether it was ever used, and when it was last; None while it works."""
        return None if self._is_working else (self.cycle is not None, self._last_use)

    @property
    def _is_working(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        self._silence.off()
        self._last_use = self.loop.time()
        if not self._is_working:
            self._head.set(_HEAD_S)
        super().data_received(data)
        is_upgraded = self.transport.get_protocol() is not self
        if self._is_working or is_upgraded:
            self._head.off()
        if is_upgraded:
            self.conn = h11.Connection(h11.SERVER)  # the old one holds what came with the handshake

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and self.cycle.transport is self.transport:
            self.cycle.transport = _WholeAnswer(self.transport)

    def on_response_complete(self) -> None:
        self._last_use = self.loop.time()
        super().on_response_complete()

    def _time_out(self) -> None:
        self._end(b"408 Request Timeout")

    def _end(self, status: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()
            self._stalled.set(_STALLED_S)

    def drop(self) -> None:
        """Makes room for another one."""
        self.transport.abort()

    def refuse(self) -> None:
        """There is no room."""
        self._end(b"503 Service Unavailable")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled.set(_STALLED_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled.off()

    def connection_lost(self, exc: Exception | None) -> None:
        for alarm in (self._silence, self._head, self._stalled):
            alarm.off()
        super().connection_lost(exc)


class WebsocketConnection(WebSocketsSansIOProtocol):
    """One websocket."""

    limits: ConnectionLimits

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._frame = _Alarm(self.loop, lambda: self._fail(1008, "a frame did not arrive in time"))
        self._stalled = _Alarm(self.loop, transport.abort)
        self._last_use = self.loop.time()
        self._is_lingering = False
        self._quiet = _Alarm(self.loop, transport.close)
        make_room(self.connections, self.limits.max_connections, self)

    @property
    def idle_rank(self) -> tuple[bool, float] | None:
        """As a used one, when something last came; None where that is not long ago."""
        return (True, self._last_use) if self.loop.time() - self._last_use > _MIN_IDLE_WEBSOCKET_S else None

    def data_received(self, data: bytes) -> None:
        if self._is_lingering:
            self._quiet.off()
            self._quiet.set(_QUIET_S)
            return
        super().data_received(data)
        unfinished = len(self.conn.reader.buffer) + sum(map(len, self.frames))
        try:
            self.limits.hold(self, unfinished)
        except BusyError as error:
            self._fail(_TRY_AGAIN_LATER, str(error))
            return
        if unfinished:
            self._frame.set(self.limits.frame_s)
        else:
            self._frame.off()

    def send_receive_event_to_app(self) -> None:
        self._last_use = self.loop.time()
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """A frame that is too large, or none at all. What is still sent is read for a while: closing over unread bytes would take the
        closing frame, which says why, away from the peer."""
        closing = self.conn.close_sent
        assert closing is not None
        self.queue.put_nowait({"type": "websocket.disconnect", "code": closing.code, "reason": closing.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self._linger()

    def _fail(self, code: int, reason: str) -> None:
        if not self.transport.is_closing():
            self.conn.fail(code, reason[:120])  # a closing frame has room for 123 bytes
            self.handle_parser_exception()

    def _linger(self) -> None:
        self._is_lingering = self.close_sent = True
        self.conn.reader.buffer.clear()
        self.limits.hold(self, 0)
        self._frame.off()
        self.stop_keepalive()
        self.transport.resume_reading()
        self._quiet.set(_QUIET_S)
        self.close_timer = self.loop.call_later(_LINGER_S, self.transport.abort)  # while there is one, uvicorn leaves the socket open

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self._stalled.set(2 * _STALLED_S)  # after the closing handshake, which has ten seconds

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()  # who answers no ping reads nothing: a socket with bytes for him would stay open for ever

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True  # a refusal was sent: nothing for uvicorn to complain of in the log

    def drop(self) -> None:
        """Makes room for another one."""
        self.transport.abort()

    def refuse(self) -> None:
        """There is no room."""
        self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled.set(_STALLED_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.close_sent:
            self._stalled.off()

    def connection_lost(self, exc: Exception | None) -> None:
        for alarm in (self._frame, self._stalled, self._quiet):
            alarm.off()
        self.limits.hold(self, 0)
        while not self.queue.empty():
            self.queue.get_nowait()
        super().connection_lost(exc)
        # Connections are circles of objects, and wait for a garbage collection with all that they hold: here what came last.
        self.conn.reader.buffer.clear()
        self.conn.parser.close()
        self.frames = []


def make_room(connections: set[Any], most: int, newest: HttpConnection | WebsocketConnection) -> None:
    """Ends connections that do not work while there are more than `most`: first those that never asked for anything, then those that were
    silent longest. Without any of those, the newest is refused."""
    if len(connections) <= most:
        return
    ranked = [(connection.idle_rank, connection) for connection in connections if connection is not newest]
    idle = sorted(((rank, connection) for rank, connection in ranked if rank is not None), key=lambda pair: pair[0])
    for _, victim in idle[: len(connections) - most]:
        victim.drop()
    if not idle:
        newest.refuse()


def connection_types(limits: ConnectionLimits) -> tuple[type[HttpConnection], type[WebsocketConnection]]:
    """The connections of one server."""
    return (
        type("BoundHttpConnection", (HttpConnection,), {"limits": limits}),
        type("BoundWebsocketConnection", (WebsocketConnection,), {"limits": limits}),
    )
