"""One port for every protocol: HTTP and websocket endpoints over a `PolicyService`, and the process around them.

POST /act                     OpenVLA-OFT and OpenVLA clients
websocket /policy             our own client: openpi's form, in the robot's own units
websocket /                   openpi-client, policy-websocket
websocket /vla-eval           vla-eval
GET /healthz /health          alive (no API key needed)
GET /info /config /metrics    facts, batching settings, Prometheus

Where several adapters are served, `?adapter=NAME` chooses one: for a request on HTTP, for a connection on a websocket.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from prismatic.policy.watching import ObservationWatch
from prismatic.serving.protocols import openpi, openvla_rest, vla_eval
from prismatic.serving.service import PolicyService, ServedPolicy
from prismatic.vla.types import ActionChunk
from prismatic.wire import keys
from prismatic.wire.errors import BusyError, RequestError, TooLargeError

_ERROR_CLOSE_CODE = 1011
_POLICY_VIOLATION = 1008

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(service: PolicyService) -> Starlette:
    """The application of one server."""

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("OK\n")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def info(request: Request) -> Response:
        tables = {"openpi": openpi.CAMERAS, "vla-eval": vla_eval.CAMERAS, "act": {**openvla_rest.CAMERAS, "*wrist*": "wrist"}}
        return JSONResponse({**service.info(request.query_params.get("adapter")), "camera_names": tables})

    async def config(request: Request) -> Response:
        batching = service.options.batching
        values = {"max_batch_size": batching.max_batch_size, "max_wait_time": batching.window_s}
        if request.query_params.keys() - {"api_key"}:
            return JSONResponse({"config": values, "errors": ["settings are fixed when the server starts; restart it with its flags"]}, 400)
        return JSONResponse({"applied": {}, "config": values})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    def guarded(endpoint: Endpoint) -> Endpoint:
        @functools.wraps(endpoint)
        async def wrapper(request: Request) -> Response:
            try:
                service.check_key(request.headers, request.query_params)
                return await endpoint(request)
            except RequestError as error:
                return error_response(error)

        return wrapper

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/health", health),
            Route("/info", guarded(info)),
            Route("/config", guarded(config)),
            Route("/metrics", guarded(metrics)),
            Route("/act", functools.partial(_act, service), methods=["POST"]),
            WebSocketRoute(keys.POLICY_PATH, functools.partial(_serve_websocket, service, "policy", _policy_session)),
            WebSocketRoute("/", functools.partial(_serve_websocket, service, "openpi", _openpi_session)),
            WebSocketRoute("/vla-eval", functools.partial(_serve_websocket, service, "vla-eval", _vla_eval_session)),
        ]
    )


def error_response(error: RequestError) -> JSONResponse:
    """Status and message of `error`."""
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, BusyError) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Api-Key"
    return JSONResponse({"error": str(error)}, error.status, headers=headers)


async def _act(service: PolicyService, request: Request) -> Response:
    started = time.perf_counter()
    try:
        service.check_key(request.headers, request.query_params)
        served = service.find(request.query_params.get("adapter"))
        with service.batcher.admission():
            body = await asyncio.wait_for(_read_body(request, service.options.max_body_bytes), service.options.request_timeout_s)
            read = await asyncio.to_thread(openvla_rest.decode_act, body, served.reader)
            watch = served.sessions.of_http(request.headers, request.client.host if request.client else "")
            chunk = await service.answer(lambda: replace(read.request, begins=keys.BEGINS_HEADER in request.headers), watch)
            warnings = served.fresh_warnings(watch)
            headers = {keys.WARNINGS_HEADER: json.dumps(warnings)} if warnings else {}
            response: Response = Response(openvla_rest.encode_actions(chunk, read), media_type="application/json", headers=headers)
    except RequestError as error:
        response = error_response(error)
    except (asyncio.TimeoutError, TimeoutError):
        response = JSONResponse({"error": f"the body did not arrive within {service.options.request_timeout_s:g} s"}, 408)
    except ClientDisconnect:
        response = JSONResponse({"error": "the client went away"}, 499)
    _record(service, "act", response.status_code, started)
    return response


async def _read_body(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    parts: list[bytes] = []
    size = int(announced) if announced.isdigit() and len(announced) < 19 else 0
    if size <= limit:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                break
            parts.append(part)
    if size > limit:
        raise TooLargeError(f"the body exceeds {limit >> 20} MB (--max_body_mb); send smaller camera images")
    return b"".join(parts)


Session = Callable[[PolicyService, ServedPolicy, WebSocket], Awaitable[None]]


async def _serve_websocket(service: PolicyService, protocol: str, session: Session, websocket: WebSocket) -> None:
    try:
        service.check_key(websocket.headers, websocket.query_params)
        served = service.find(websocket.query_params.get("adapter"))
    except RequestError as error:
        await websocket.send_denial_response(error_response(error))
        return
    await websocket.accept()
    gauge = service.metrics.connections.labels(protocol)
    gauge.inc()
    try:
        await session(service, served, websocket)
    except WebSocketDisconnect:
        pass
    finally:
        gauge.dec()


async def _openpi_session(service: PolicyService, served: ServedPolicy, websocket: WebSocket) -> None:
    await _chunk_session(service, served, websocket, "openpi")


async def _policy_session(service: PolicyService, served: ServedPolicy, websocket: WebSocket) -> None:
    await _chunk_session(service, served, websocket, "policy")


async def _chunk_session(service: PolicyService, served: ServedPolicy, websocket: WebSocket, protocol: str) -> None:
    """Metadata, then a chunk for each observation; openpi's clients get the simulator's units."""
    watch, is_foreign = served.sessions.open(), protocol == "openpi"
    await websocket.send_bytes(openpi.encode_metadata(service.info(served.adapter, for_simulator=is_foreign)))
    while True:
        message = await _receive(websocket)
        started = time.perf_counter()
        try:
            with service.batcher.admission():
                chunk = await service.answer(functools.partial(openpi.decode_observation, _binary(message), served.reader), watch)
                seconds = time.perf_counter() - started
                actions = served.simulator_actions(chunk) if is_foreign else chunk.actions
                await websocket.send_bytes(openpi.encode_chunk(actions, 1e3 * seconds, served.fresh_warnings(watch)))
        except RequestError as error:
            _record(service, protocol, error.status, started)
            await websocket.send_text(str(error))
            await websocket.close(_ERROR_CLOSE_CODE, type(error).__name__)
            return
        _record(service, protocol, 200, started)


async def _vla_eval_session(service: PolicyService, served: ServedPolicy, websocket: WebSocket) -> None:
    buffer, watch = vla_eval.ActionBuffer(), served.sessions.open()
    while True:
        frame, started, seq = await _receive(websocket), time.perf_counter(), 0
        try:
            message = await asyncio.to_thread(vla_eval.decode_message, _binary(frame))
            seq = message.seq
            reply = await _vla_eval_reply(service, served, buffer, watch, message)
            status = 200
        except RequestError as error:
            reply, status = vla_eval.encode_message("error", {"error": str(error)}, seq), error.status
            buffer.clear()
        if reply is not None:
            await websocket.send_bytes(reply)
        _record(service, "vla-eval", status, started)


async def _vla_eval_reply(
    service: PolicyService, served: ServedPolicy, buffer: vla_eval.ActionBuffer, watch: ObservationWatch, message: vla_eval.Message
) -> bytes | None:
    if message.type == "hello":
        return vla_eval.encode_message("hello", vla_eval.hello_payload(served.policy.spec, served.converts_gripper), message.seq)
    if message.type in ("episode_start", "episode_end"):
        buffer.clear()
        watch.begin()
        return None
    if message.type == "error":
        logger.warning("vla-eval client: %s", str(message.payload)[:500])
        return None
    if message.type != "observation":
        raise RequestError(f"message type {message.type[:40]!r} is unknown; send hello, episode_start, observation or episode_end")
    if not buffer:
        with service.batcher.admission():
            decode = functools.partial(vla_eval.decode_observation, message.payload, served.reader)
            chunk: ActionChunk = await service.answer(decode, watch)
            served.fresh_warnings(watch)
        buffer.fill(served.simulator_actions(chunk))
    return vla_eval.encode_message("action", {"actions": buffer.next()}, message.seq)


async def _receive(websocket: WebSocket) -> dict[str, Any]:
    message: dict[str, Any] = dict(await websocket.receive())
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    return message


def _binary(message: dict[str, Any]) -> bytes:
    data = message.get("bytes")
    if data is None:
        raise RequestError("a text frame was sent; this protocol takes binary frames with msgpack")
    return bytes(data)


def _record(service: PolicyService, protocol: str, status: int, started: float) -> None:
    service.metrics.requests.labels(protocol, str(status)).inc()
    if status == 200:
        service.metrics.latency.labels(protocol).observe(time.perf_counter() - started)


class DrainingServer(uvicorn.Server):
    """On SIGTERM or SIGINT: refuses new requests, answers those that are pending, on websockets too, then closes."""

    def __init__(self, config: uvicorn.Config, service: PolicyService, drain_s: float) -> None:
        super().__init__(config)
        self._service, self._drain_s = service, drain_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        batcher = self._service.batcher
        batcher.refuse_new()
        for server in self.servers:
            server.close()
        until = time.monotonic() + self._drain_s
        while batcher.admitted and time.monotonic() < until:
            await asyncio.sleep(0.01)
        logger.info(
            "shutting down: %s", "all requests are answered" if not batcher.admitted else f"{batcher.admitted} requests are dropped"
        )
        await super().shutdown(sockets)


def open_socket(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one.

    Raises:
        ValueError: the address is taken, or is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, OverflowError) as error:
        raise ValueError(f"--host {host} --port {port}: {error}; choose another address or stop the server that has it") from error
    return found


def serve(service: PolicyService, bound: socket.socket, max_connections: int, drain_s: float) -> None:
    """Answers requests on `bound` until SIGTERM or SIGINT."""
    config = uvicorn.Config(
        create_app(service),
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="websockets-sansio",
        ws_max_size=service.options.max_body_bytes,
        ws_per_message_deflate=False,
        limit_concurrency=max_connections,
        timeout_graceful_shutdown=int(drain_s),
    )
    # uvicorn raises the signal again once it has shut down; a server that was asked to stop and did so exits with status 0.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        DrainingServer(config, service, drain_s).run(sockets=[bound])
    finally:
        service.batcher.close()
