"""The aiohttp application that takes every request which is not an inference request.

Connections come from `connection.ClientConnection` by way of `handoff`, and close after one reply,
so that a client's next request starts in the relay again. Every error leaves as a JSON error object.
"""

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web

from rolemesh import errors
from rolemesh.names import RequestId
from rolemesh.relay.cors import cors_fields, preflight_fields
from rolemesh.relay.handoff import Admit, HandOff
from rolemesh.relay.paths import INFERENCE_PATHS, InferencePath
from rolemesh.relay.replies import Dialect, Reply, error_object, error_reply

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)
# What a client sends behind its request is not looked at, and not worth a traceback.
logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)

Respond = Callable[[web.Request], Awaitable[Reply]]
"""What a program writes per route; it raises from the error tree."""

LINES_TYPE: Final = "application/x-ndjson"
"""JSON texts, each on a line of its own (github.com/ndjson/ndjson-spec)."""

_MAX_LINE_BYTES: Final = 1 << 20
"""Far above limits.max_header_bytes, which bounds a head before aiohttp sees it."""

_SHUTDOWN_S: Final = 1.0


def route(method: str, path: str, respond: Respond) -> web.RouteDef:
    """Return a route that answers with a Reply."""

    async def handler(request: web.Request) -> web.StreamResponse:
        reply = await respond(request)
        return web.Response(status=reply.status, body=reply.body, headers=dict(reply.fields))

    return web.route(method, path, handler)


class ClientLeft(Exception):
    """Who asked is not there any more to be answered."""


class LineStream:
    """A reply of JSON lines that are sent as they come (application/x-ndjson)."""

    def __init__(self, request: web.Request) -> None:
        self.response = web.StreamResponse(headers={"Content-Type": LINES_TYPE})
        self._request = request

    async def send(self, lines: bytes) -> None:
        """Send whole lines, before the first ones the head; raises ClientLeft."""
        try:
            if not self.response.prepared:
                await self.response.prepare(self._request)
            await self.response.write(lines)
        except ConnectionError as err:
            raise ClientLeft from err

    async def send_object(self, tree: Any) -> None:
        """Send a line; raises ClientLeft."""
        await self.send(json.dumps(tree).encode() + b"\n")


RespondInLines = Callable[[web.Request, LineStream], Awaitable[Reply | None]]
"""What a program writes per route that may answer in lines, and returns None when it has.

It raises from the error tree; once a line has been sent, the error object is the last line.
"""


def lines_route(method: str, path: str, respond: RespondInLines) -> web.RouteDef:
    """Return a route that answers with a Reply, or with lines as they come."""

    async def handler(request: web.Request) -> web.StreamResponse:
        lines = LineStream(request)
        try:
            reply = await _respond_in_lines(request, lines, respond)
        except ClientLeft:
            return lines.response
        if reply is None:
            return lines.response
        return web.Response(status=reply.status, body=reply.body, headers=dict(reply.fields))

    return web.route(method, path, handler)


async def _respond_in_lines(
    request: web.Request, lines: LineStream, respond: RespondInLines
) -> Reply | None:
    try:
        return await respond(request, lines)
    except errors.RoleMeshError as err:
        if not lines.response.prepared:
            raise
        await lines.send_object(error_object(err, request_id_of(request)))
        return None


def request_id_of(request: web.Request) -> RequestId:
    """Return the id of a request: the client's own, or ours."""
    return RequestId(request.headers["X-Request-Id"])  # requests are handed on with one


def peer_of(request: web.Request) -> str:
    """Return the address a request came from."""
    return request.remote or "unix"


@asynccontextmanager
async def open_application(
    routes: list[web.RouteDef],
    *,
    max_body_bytes: int,
    admit: Admit,
    paths: Callable[[], Mapping[str, InferencePath]] = lambda: INFERENCE_PATHS,
    allowed_origins: Callable[[], tuple[str, ...]] = lambda: (),
) -> AsyncIterator[HandOff]:
    """Run an application with these routes; yields what makes the protocol for a connection.

    `paths` gives the inference paths, which are the relay's with POST and take nothing else. The
    other parameters are those of HandOff.
    """
    app = web.Application(middlewares=[_envelope(paths)], client_max_size=max_body_bytes)
    app.on_response_prepare.append(_reply_headers(allowed_origins))
    app.add_routes(routes)
    runner = web.AppRunner(
        app, access_log=None, max_line_size=_MAX_LINE_BYTES, max_field_size=_MAX_LINE_BYTES
    )
    await runner.setup()
    server = runner.server
    assert server is not None
    handed = HandOff(
        application=cast("Callable[[], asyncio.Protocol]", server),
        max_body_bytes=max_body_bytes,
        admit=admit,
        allowed_origins=allowed_origins,
    )
    try:
        yield handed
    finally:
        handed.close()
        # Where the runner takes a timeout for this differs between aiohttp's versions.
        await server.shutdown(_SHUTDOWN_S)
        await runner.cleanup()


def _envelope(paths: Callable[[], Mapping[str, InferencePath]]) -> Any:
    """Return the middleware that makes every error a JSON reply, and answers every OPTIONS."""

    @web.middleware
    async def answer(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        kind = paths().get(request.path)
        dialect = Dialect.OPENAI if kind is None else kind.dialect
        try:
            return await handler(request)
        except web.HTTPMethodNotAllowed as err:
            return _refuse_method(request, {*err.allowed_methods, "OPTIONS"}, dialect)
        except web.HTTPNotFound:
            if kind is not None:
                return _refuse_method(request, {"OPTIONS", "POST"}, dialect)
            unknown = errors.UnknownPath(f"there is no {request.method} {request.path[:256]} here")
            return _as_response(unknown, request, dialect)
        except web.HTTPException as err:
            return _as_response(errors.BadRequest(err.reason), request, dialect)
        except errors.RoleMeshError as err:
            return _as_response(err, request, dialect)
        except Exception:
            logger.exception("%s %s failed inside RoleMesh", request.method, request.path)
            failure = errors.RoleMeshError("internal error; the journal has the details")
            return _as_response(failure, request, dialect)

    return answer


def _refuse_method(request: web.Request, methods: set[str], dialect: Dialect) -> web.Response:
    allowed = tuple(sorted(methods))
    if request.method == "OPTIONS":
        fields = {"Allow": ", ".join(allowed)}
        return web.Response(status=HTTPStatus.NO_CONTENT, headers=fields)
    msg = f"{request.path} takes {', '.join(allowed)}, not {request.method}"
    return _as_response(errors.MethodNotAllowed(msg, allowed), request, dialect)


def _reply_headers(allowed_origins: Callable[[], tuple[str, ...]]) -> Any:
    """Return what gives every reply its headers, just before it is sent, and makes it the last."""

    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        headers, origins = response.headers, allowed_origins()
        headers["X-Request-Id"] = request_id_of(request)
        headers["Server"] = "rolemesh"
        headers["Connection"] = "close"
        origin = request.headers.get("Origin")
        headers.update(cors_fields(origin, origins))
        if request.method == "OPTIONS":
            wanted = request.headers.get("Access-Control-Request-Headers")
            methods = headers.get("Allow", "")
            headers.update(preflight_fields(origin, origins, methods=methods, headers=wanted))
        response.force_close()

    return prepare


def _as_response(
    error: errors.RoleMeshError, request: web.Request, dialect: Dialect
) -> web.Response:
    reply = error_reply(error, request_id_of(request), dialect)
    return web.Response(status=reply.status, body=reply.body, headers=dict(reply.fields))
