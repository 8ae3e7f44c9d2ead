"""Websockets: one session for each connection, in the form of its protocol."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from prismatic.serving.answering import Asked, Inbox, error_response, forget_frames, seconds_left, unless_gone
from prismatic.serving.clients import Client, ClientGoneError, Listener
from prismatic.serving.connections import look_of
from prismatic.serving.observations import PolicyRequest
from prismatic.serving.protocols import openpi, vla_eval
from prismatic.serving.service import PolicyService, ServedPolicy
from prismatic.vla.types import ActionChunk
from prismatic.wire import keys
from prismatic.wire.errors import RequestError, UnknownPathError

_ERROR_CLOSE_CODE = 1011

logger = logging.getLogger(__name__)


@dataclass
class Connection:
    """One open websocket."""

    service: PolicyService
    served: ServedPolicy
    websocket: WebSocket
    protocol: str
    client: Client
    patience_s: float  # how long the client waits for any answer
    inbox: Inbox = field(init=False)
    visit: int = field(init=False)

    def __post_init__(self) -> None:
        self.inbox, self.visit = Inbox(self.websocket), self.client.come_back()

    def asked(self) -> Asked:
        """A request that is there now."""
        self.client.go_on(self.visit)
        return Asked(self.service, self.client, self.protocol, time.perf_counter(), self.visit)

    async def predict(self, decode: Callable[[], PolicyRequest], num_bytes: int) -> ActionChunk:
        """The chunk for what `decode` reads out of so many bytes.

        Raises:
            RequestError: a request that does not fit, or no answer in time.
            ClientGoneError: the client did not wait for it.
        """
        until = time.monotonic() + min(self.patience_s, self.service.options.request_timeout_s)
        address = self.websocket.client.host if self.websocket.client else ""
        listener = Listener(self.client, until, look_of(self.websocket.scope), address)

        async def answer() -> ActionChunk:
            with self.service.batcher.admission(self.client, num_bytes, address) as place:
                return await self.service.answer(decode, listener, place)

        return await unless_gone(answer(), self.inbox.gone())


Session = Callable[[Connection], Awaitable[None]]


async def serve_websocket(service: PolicyService, protocol: str, session: Session, websocket: WebSocket) -> None:
    """One connection from its handshake to its end."""
    try:
        service.check_sender(websocket.headers, websocket.query_params)
        served = service.asked_for(websocket.query_params)
        patience_s = seconds_left(websocket.headers)
    except RequestError as error:
        await websocket.send_denial_response(error_response(error))
        return
    await websocket.accept()
    host, port = (websocket.client.host, websocket.client.port) if websocket.client else ("", 0)
    client = service.clients.connect(websocket.headers, f"{host}:{port}", protocol)
    connection = Connection(service, served, websocket, protocol, client, patience_s)
    gauge = service.metrics.connections.labels(protocol)
    gauge.inc()
    try:
        await session(connection)
    except (WebSocketDisconnect, ClientGoneError) as error:
        forget_frames(error)
    finally:
        connection.inbox.close()
        service.clients.disconnect(connection.client)
        gauge.dec()


async def refuse_path(websocket: WebSocket) -> None:
    """Says where the websockets are, which a plain refusal (403) would not."""
    error = UnknownPathError(
        f"no websocket at {websocket.url.path[:80]!r}; ours is {keys.POLICY_PATH}, openpi's / and vla-eval's /vla-eval"
    )
    await websocket.send_denial_response(error_response(error))


async def chunk_session(connection: Connection) -> None:
    """Metadata, then a chunk for each observation; openpi's clients get the simulator's units."""
    service, is_foreign = connection.service, connection.protocol == "openpi"
    await connection.websocket.send_bytes(openpi.encode_metadata(service.info(connection.served, for_simulator=is_foreign)))
    while True:
        message = await connection.inbox.receive()
        with service.answering():
            if not await _send_chunk(connection, message, is_foreign):
                return


async def _send_chunk(connection: Connection, message: dict[str, Any], is_foreign: bool) -> bool:
    """Answers one observation; False: with an error, which ends the connection."""
    served, websocket, asked = connection.served, connection.websocket, connection.asked()
    try:
        frame = _binary(message)
        chunk = await connection.predict(functools.partial(openpi.decode_observation, frame, served.reader), len(frame))
    except RequestError as error:
        forget_frames(error)
        asked.record(error.status)
        await websocket.send_text(str(error))
        await websocket.close(_ERROR_CLOSE_CODE, type(error).__name__)
        return False
    seconds = time.perf_counter() - asked.arrived
    actions = served.simulator_actions(chunk) if is_foreign else chunk.actions
    asked.record(200)
    await websocket.send_bytes(openpi.encode_chunk(actions, 1e3 * seconds, served.fresh_warnings(asked.client, asked.visit)))
    return True


async def vla_eval_session(connection: Connection) -> None:
    """One action for each observation, and nothing for the start and the end of an episode."""
    buffer = vla_eval.ActionBuffer()
    while True:
        frame = await connection.inbox.receive()
        with connection.service.answering():
            await _answer_harness(connection, buffer, frame)


async def _answer_harness(connection: Connection, buffer: vla_eval.ActionBuffer, frame: dict[str, Any]) -> None:
    asked, seq = connection.asked(), 0
    try:
        message = await asyncio.to_thread(vla_eval.decode_message, _binary(frame))
        seq = message.seq
        reply = await _vla_eval_reply(connection, buffer, message)
        if message.type == "observation":
            asked.record(200)
    except RequestError as error:
        forget_frames(error)
        reply = vla_eval.encode_message("error", {"error": str(error)}, seq)
        asked.record(error.status)
        buffer.clear()
    if reply is not None:
        await connection.websocket.send_bytes(reply)


async def _vla_eval_reply(connection: Connection, buffer: vla_eval.ActionBuffer, message: vla_eval.Message) -> bytes | None:
    served = connection.served
    if message.type == "hello":
        return vla_eval.encode_message("hello", vla_eval.hello_payload(served.policy.spec, served.converts_gripper), message.seq)
    if message.type in ("episode_start", "episode_end"):
        buffer.clear()
        connection.client.begin()
        return None
    if message.type == "error":
        logger.warning("vla-eval client: %s", str(message.payload)[:500])
        return None
    if message.type != "observation":
        raise RequestError(f"message type {message.type[:40]!r} is unknown; send hello, episode_start, observation or episode_end")
    if not buffer:
        decode = functools.partial(vla_eval.decode_observation, message.payload, served.reader)
        chunk = await connection.predict(decode, message.num_bytes)
        # The harness has no field for warnings: they stand in the log, in /info and on the status page.
        served.fresh_warnings(connection.client, connection.visit)
        buffer.fill(served.simulator_actions(chunk))
    return vla_eval.encode_message("action", {"actions": buffer.next()}, message.seq)


def _binary(message: dict[str, Any]) -> bytes:
    data = message.get("bytes")
    if data is None:
        raise RequestError("a text frame was sent; this protocol takes binary frames with msgpack")
    return bytes(data)
