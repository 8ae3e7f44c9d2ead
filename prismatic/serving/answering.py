"""A request of any protocol on its way: who asks, how long an answer is of use to him, and whether he is still there."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from prismatic.serving.clients import Client, ClientGoneError
from prismatic.serving.service import PolicyService
from prismatic.serving.waiting import ended_by
from prismatic.wire import keys
from prismatic.wire.errors import BusyError, RequestError

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """One request: whose it is and when it was there."""

    service: PolicyService
    client: Client
    protocol: str
    arrived: float  # perf_counter
    visit: int  # the client's connection on which it came

    def record(self, status: int) -> None:
        """Counts its answer."""
        seconds = time.perf_counter() - self.arrived
        self.service.metrics.requests.labels(self.protocol, str(status)).inc()
        if status == 200:
            self.service.metrics.latency.labels(self.protocol).observe(seconds)
        self.client.note(status, seconds)


def error_response(error: RequestError) -> JSONResponse:
    """Status and message of `error`."""
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, BusyError) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Api-Key"
    return JSONResponse({"error": str(error)}, error.status, headers=headers)


def seconds_left(headers: Mapping[str, str]) -> float:
    """How long the client wants to wait; infinite where it does not say.

    Raises:
        RequestError: it says something else.
    """
    text = headers.get(keys.DEADLINE_HEADER)
    if text is None:
        return math.inf
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = math.nan
    if not milliseconds > 0:
        raise RequestError(f"{keys.DEADLINE_HEADER} is {text[:40]!r}; it must be a positive number of milliseconds")
    return milliseconds / 1e3


def forget_frames(error: BaseException) -> None:
    """Lets go of the frames that `error` left. Tasks and futures in them remember the error: all that these frames hold, bodies and
    pictures among it, would stay until a garbage collection looks for such circles."""
    found: BaseException | None = error
    while found is not None:
        found.__traceback__ = None
        found = found.__cause__ or found.__context__


async def unless_gone(answer: Coroutine[Any, Any, T], gone: Coroutine[Any, Any, None]) -> T:
    """What `answer` gives; it is cancelled when `gone` comes first.

    Raises:
        ClientGoneError: that happened.
    """
    leaving = asyncio.ensure_future(gone)
    try:
        with ended_by(ClientGoneError) as end:
            leaving.add_done_callback(functools.partial(_end_unless_cancelled, end))
            return await answer
    except (RequestError, ClientGoneError) as error:
        forget_frames(error)
        raise
    finally:
        leaving.cancel()
        del leaving  # as `forget_frames`


def _end_unless_cancelled(end: Callable[[], None], leaving: asyncio.Future[None]) -> None:
    if not leaving.cancelled():
        leaving.exception()  # whatever ended it, its client has gone
        end()


class Inbox:
    """What a websocket's client sends; one message may be taken ahead, to notice while an answer is computed that he has gone."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._next: asyncio.Task[dict[str, Any]] | None = None

    async def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            WebSocketDisconnect: there is none any more.
        """
        message = await self._ahead()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        self._next = None
        return message

    async def gone(self) -> None:
        """Returns when the client has gone; never, once he has sent another message ahead."""
        if (await self._ahead())["type"] != "websocket.disconnect":
            await asyncio.Event().wait()

    def close(self) -> None:
        """Nothing is received any more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    async def _ahead(self) -> dict[str, Any]:
        if self._next is None:
            self._next = asyncio.ensure_future(self._receive())
        return await asyncio.shield(self._next)

    async def _receive(self) -> dict[str, Any]:
        return dict(await self._websocket.receive())
