"""One port for every protocol: HTTP and websocket endpoints over a `PolicyService`, and the process around them.

POST /act                     OpenVLA-OFT and OpenVLA clients
websocket /policy             our own client: openpi's form, in the robot's own units
websocket /                   openpi-client, policy-websocket
websocket /vla-eval           vla-eval
GET /healthz /health          alive (no API key needed); 503 where only a new process helps
GET /readyz                   whether a request would be answered now (no API key needed)
GET /                         a page for people, which asks GET /status
GET /info /config /metrics    facts, batching settings, Prometheus

Where several adapters are served, `?adapter=NAME` chooses one: for a request on HTTP, for a connection on a websocket.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute

from prismatic.serving.act import act
from prismatic.serving.answering import error_response
from prismatic.serving.connections import KEEP_ALIVE_S, ConnectionLimits, connection_types
from prismatic.serving.protocols import openpi, openvla_rest, vla_eval
from prismatic.serving.service import PolicyService
from prismatic.serving.status import PAGE, describe_service
from prismatic.serving.websockets import chunk_session, refuse_path, serve_websocket, vla_eval_session
from prismatic.wire import keys
from prismatic.wire.errors import RequestError

_TURN_S = 1e-4  # for which a thread keeps the interpreter while another one waits for it; Python's default is 5 ms
DEVICE_LOST_STATUS = 75  # exit status: try again later (EX_TEMPFAIL), which supervisors understand

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class ServerOptions:
    """Limits of the process."""

    max_connections: int = 512  # sockets; those that are idle make room
    drain_s: float = 30.0  # for what has been accepted, after SIGTERM
    exit_on_cuda_error: bool = False  # end with `DEVICE_LOST_STATUS` when the device is lost


class Endpoints:
    """What is asked over HTTP besides actions."""

    def __init__(self, service: PolicyService) -> None:
        self._service, self._started = service, time.monotonic()

    async def healthz(self, request: Request) -> Response:
        problem = self._service.health.alive_problem()
        return PlainTextResponse(f"{problem or 'OK'}\n", 200 if problem is None else 503)

    async def health(self, request: Request) -> Response:
        problem = self._service.health.alive_problem()
        return JSONResponse(
            {"status": "ok"} if problem is None else {"status": "failed", "error": problem}, 200 if problem is None else 503
        )

    async def readyz(self, request: Request) -> Response:
        problem = await self._service.ready_problem()
        return PlainTextResponse(f"{problem or 'OK'}\n", 200 if problem is None else 503)

    async def page(self, request: Request) -> Response:
        return FileResponse(PAGE, media_type="text/html", headers={"Cache-Control": "no-store"})

    async def status(self, request: Request) -> Response:
        describe = functools.partial(describe_service, self._service, self._started)
        content = await asyncio.wrap_future(self._service.decoding.submit(None, describe))
        return JSONResponse(content, headers={"Cache-Control": "no-store"})

    async def info(self, request: Request) -> Response:
        tables = {"openpi": openpi.CAMERAS, "vla-eval": vla_eval.CAMERAS, "act": {**openvla_rest.CAMERAS, "*wrist*": "wrist"}}
        return JSONResponse({**self._service.info(self._service.asked_for(request.query_params)), "camera_names": tables})

    async def config(self, request: Request) -> Response:
        batching = self._service.options.batching
        values = {"max_batch_size": batching.max_batch_size, "max_wait_time": batching.window_s}
        if request.query_params.keys() - {"api_key"}:
            return JSONResponse({"config": values, "errors": ["settings are fixed when the server starts; restart it with its flags"]}, 400)
        return JSONResponse({"applied": {}, "config": values})

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics_page(), media_type=CONTENT_TYPE_LATEST)

    def guarded(self, endpoint: Endpoint) -> Endpoint:
        """`endpoint` for those who have the key."""

        @functools.wraps(endpoint)
        async def wrapper(request: Request) -> Response:
            try:
                self._service.check_key(request.headers, request.query_params)
                return await endpoint(request)
            except RequestError as error:
                return error_response(error)

        return wrapper


def create_app(service: PolicyService, limits: ConnectionLimits | None = None) -> Starlette:
    """The application of one server."""
    ask = Endpoints(service)
    return Starlette(
        routes=[
            Route("/healthz", ask.healthz),
            Route("/health", ask.health),
            Route("/readyz", ask.readyz),
            Route("/", ask.page),
            Route("/status", ask.guarded(ask.status)),
            Route("/info", ask.guarded(ask.info)),
            Route("/config", ask.guarded(ask.config)),
            Route("/metrics", ask.guarded(ask.metrics)),
            Route("/act", functools.partial(act, service, limits or ConnectionLimits()), methods=["POST"]),
            WebSocketRoute(keys.POLICY_PATH, functools.partial(serve_websocket, service, "policy", chunk_session)),
            WebSocketRoute("/", functools.partial(serve_websocket, service, "openpi", chunk_session)),
            WebSocketRoute("/vla-eval", functools.partial(serve_websocket, service, "vla-eval", vla_eval_session)),
            WebSocketRoute("/{path:path}", refuse_path),
        ]
    )


class DrainingServer(uvicorn.Server):
    """On SIGTERM or SIGINT: refuses new requests, answers those that are pending, on websockets too, then closes.

    The thread that calls the policy lets the interpreter go in every copy, launch and wait, a dozen times a call. Each time it may have to
    wait for threads that read or decode other requests, and the accelerator idles meanwhile: so turns are short.
    """

    def __init__(self, config: uvicorn.Config, service: PolicyService, drain_s: float) -> None:
        super().__init__(config)
        self._service, self._drain_s = service, drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        sys.setswitchinterval(_TURN_S)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        batcher = self._service.batcher
        batcher.refuse_new()
        for server in self.servers:
            server.close()
        until = time.monotonic() + self._drain_s
        while (batcher.admitted or self._service.unsent) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        logger.info(
            "shutting down: %s", "all requests are answered" if not batcher.admitted else f"{batcher.admitted} requests are dropped"
        )
        await super().shutdown(sockets)


def make_server(service: PolicyService, options: ServerOptions) -> DrainingServer:
    """What answers requests, once it runs."""
    max_bytes = service.options.max_body_bytes
    limits = ConnectionLimits(options.max_connections, 16 * max_bytes, service.options.request_timeout_s)
    http, websocket = connection_types(limits)
    config = uvicorn.Config(
        create_app(service, limits),
        log_level="warning",
        access_log=False,
        lifespan="off",
        http=http,
        ws=websocket,
        ws_max_size=max_bytes,
        ws_per_message_deflate=False,
        ws_ping_timeout=40,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(options.drain_s),
    )
    server = DrainingServer(config, service, options.drain_s)
    if options.exit_on_cuda_error:
        service.on_fault = functools.partial(setattr, server, "should_exit", True)
    return server


def serve(service: PolicyService, bound: socket.socket, options: ServerOptions) -> None:
    """Answers requests on `bound` until SIGTERM or SIGINT.

    Raises:
        SystemExit: the device was lost, and the options say that a supervisor starts the server anew.
    """
    server = make_server(service, options)
    # uvicorn raises the signal again once it has shut down; a server that was asked to stop and did so exits with status 0.
    # One that comes before uvicorn listens for it stops the server, too.
    signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
    try:
        server.run(sockets=[bound])
    finally:
        service.close()
    if options.exit_on_cuda_error and service.health.fault is not None:
        logger.error(
            "the device failed (%s); exit status %d, for a supervisor to start the server anew", service.health.fault, DEVICE_LOST_STATUS
        )
        raise SystemExit(DEVICE_LOST_STATUS)
