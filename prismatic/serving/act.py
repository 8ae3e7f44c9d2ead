"""`POST /act`: the whole way of one request."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from prismatic.serving.answering import Asked, error_response, forget_frames, seconds_left, unless_gone
from prismatic.serving.clients import ClientGoneError, Listener
from prismatic.serving.connections import ConnectionLimits, look_of
from prismatic.serving.observations import PolicyRequest
from prismatic.serving.protocols import openvla_rest
from prismatic.serving.service import PolicyService, ServedPolicy
from prismatic.serving.waiting import ended_by
from prismatic.wire import keys
from prismatic.wire.errors import RequestError, TooLargeError

_MSGPACK = "application/msgpack"
_GONE = 499  # nobody reads this status


async def act(service: PolicyService, limits: ConnectionLimits, request: Request) -> Response:
    """The answer to one request."""
    try:
        service.check_sender(request.headers, request.query_params)
    except RequestError as error:  # a stranger is no client, and takes no client's place
        service.metrics.requests.labels("act", str(error.status)).inc()
        return error_response(error)
    address = request.client.host if request.client else ""
    client = service.clients.of_http(request.headers, address)
    visit = client.come_back() if keys.RETURNS_HEADER in request.headers else client.visit
    client.go_on(visit)
    asked = Asked(service, client, "act", time.perf_counter(), visit)
    try:
        served = service.asked_for(request.query_params)
        until = time.monotonic() + min(seconds_left(request.headers), service.options.request_timeout_s)
        if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
            raise RequestError(
                f"the body is compressed (Content-Encoding: {encoding[:40]}); send it as it is, with JPEG pictures if it should be small"
            )
        bodies = [await _read_in_time(request, service, limits)]
        asked = replace(asked, arrived=time.perf_counter())
        listener = Listener(client, until, look_of(request.scope), address)
        response = await unless_gone(_answer(asked, served, bodies, listener, request), _gone(request))
    except RequestError as error:
        response = error_response(error)
        forget_frames(error)
    except (ClientDisconnect, ClientGoneError) as error:
        response = JSONResponse({"error": "the client went away"}, _GONE)
        forget_frames(error)
    asked.record(response.status_code)
    return response


async def _answer(asked: Asked, served: ServedPolicy, bodies: list[bytes], listener: Listener, request: Request) -> Response:
    """The response to the only one of `bodies`, which is taken out: it is not held any longer than until it is read."""
    service = asked.service
    content_type, begins = request.headers.get("content-type", ""), keys.BEGINS_HEADER in request.headers
    forms: list[openvla_rest.AnswerForm] = []

    def decode() -> PolicyRequest:
        read = openvla_rest.decode_act(bodies.pop(), served.reader, content_type)
        forms.append(read.form)
        return replace(read.request, begins=begins)

    with service.batcher.admission(asked.client, len(bodies[0]), listener.address) as place:
        chunk = await service.answer(decode, listener, place)
    warnings = served.fresh_warnings(asked.client, asked.visit)
    headers = {keys.WARNINGS_HEADER: json.dumps(warnings)} if warnings else {}
    if _MSGPACK in request.headers.get("accept", ""):
        return Response(openvla_rest.encode_msgpack(chunk, forms[0]), media_type=_MSGPACK, headers=headers)
    return Response(openvla_rest.encode_actions(chunk, forms[0]), media_type="application/json", headers=headers)


async def _gone(request: Request) -> None:
    """Returns when the client of a request whose body was read has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_in_time(request: Request, service: PolicyService, limits: ConnectionLimits) -> bytes:
    """The body.

    Raises:
        RequestError: it is too large, does not arrive in time, or too many others arrive.
    """
    seconds = service.options.request_timeout_s
    try:
        with ended_by(lambda: SlowBodyError(f"the body did not arrive within {seconds:g} s")) as end:
            timer = asyncio.get_running_loop().call_later(seconds, end)
            try:
                return await _read_body(request, service.options.max_body_bytes, limits)
            finally:
                timer.cancel()
    finally:
        limits.hold(request, 0)


async def _read_body(request: Request, limit: int, limits: ConnectionLimits) -> bytes:
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
            limits.hold(request, size)
    if size > limit:
        raise TooLargeError(f"the body exceeds {limit / 2**20:g} MB (--max_body_mb); send smaller camera images")
    return b"".join(parts)


class SlowBodyError(RequestError):
    """A body that did not arrive in time."""

    status = 408
