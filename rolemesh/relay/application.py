"""The aiohttp application that takes every request which is not an inference request.

Connections come from `connection.ClientConnection` by hand-off and close after one reply, so that
a client's next request starts in the relay again. Every error leaves as a JSON error object.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, cast

from aiohttp import web

from rolemesh import errors
from rolemesh.names import RequestId, new_request_id, parse_request_id
from rolemesh.relay.replies import Reply, error_reply

logger = logging.getLogger(__name__)
# A request that aiohttp cannot parse is the client's fault, and not worth a traceback.
logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)

Respond = Callable[[web.Request], Awaitable[Reply]]
"""What a program writes per route; it raises from the error tree."""

_MAX_LINE_BYTES: Final = 1 << 20
"""Far above limits.max_header_bytes, which bounds a head before aiohttp sees it."""

_SHUTDOWN_S: Final = 1.0

ProtocolFactory = Callable[[], asyncio.Protocol]


def route(method: str, path: str, respond: Respond) -> web.RouteDef:
    """Return a route that answers with a Reply."""

    async def handler(request: web.Request) -> web.StreamResponse:
        reply = await respond(request)
        return web.Response(status=reply.status, body=reply.body, headers=dict(reply.fields))

    return web.route(method, path, handler)


def refuse_method(path: str, *, allowed: str) -> web.RouteDef:
    """Return a route for a path that the relay serves itself, with the one method it takes."""

    async def handler(request: web.Request) -> web.StreamResponse:
        raise web.HTTPMethodNotAllowed(request.method, [allowed])

    return web.route("*", path, handler)


def peer_of(request: web.Request) -> str:
    """Return the address a request came from."""
    return request.remote or "unix"


@asynccontextmanager
async def open_application(
    routes: list[web.RouteDef], *, max_body_bytes: int
) -> AsyncIterator[ProtocolFactory]:
    """Run an application with these routes; yields what makes the protocol for a connection."""
    app = web.Application(middlewares=[_envelope(max_body_bytes)], client_max_size=max_body_bytes)
    app.add_routes(routes)
    runner = web.AppRunner(
        app, access_log=None, max_line_size=_MAX_LINE_BYTES, max_field_size=_MAX_LINE_BYTES
    )
    await runner.setup()
    server = runner.server
    assert server is not None
    try:
        yield cast("ProtocolFactory", server)
    finally:
        # Where the runner takes a timeout for this differs between aiohttp's versions.
        await server.shutdown(_SHUTDOWN_S)
        await runner.cleanup()


def _envelope(max_body_bytes: int) -> Any:
    """Return the middleware that makes every error a JSON reply, and every reply the last."""

    @web.middleware
    async def answer(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        wanted = request.headers.get("X-Request-Id", "")
        request_id = parse_request_id(wanted) or new_request_id()
        try:
            response = await handler(request)
        except errors.RoleMeshError as err:
            response = _as_response(err, request_id)
        except web.HTTPRequestEntityTooLarge:
            response = _as_response(errors.BodyTooLarge(max_body_bytes), request_id)
        except web.HTTPException as err:
            response = _as_response(_translate(err, request), request_id)
        except Exception:
            logger.exception("%s %s failed inside RoleMesh", request.method, request.path)
            failure = errors.RoleMeshError("internal error; the journal has the details")
            response = _as_response(failure, request_id)
        response.headers["X-Request-Id"] = request_id
        response.headers["Server"] = "rolemesh"
        response.force_close()
        return response

    return answer


def _as_response(error: errors.RoleMeshError, request_id: RequestId) -> web.Response:
    reply = error_reply(error, request_id)
    return web.Response(status=reply.status, body=reply.body, headers=dict(reply.fields))


def _translate(error: web.HTTPException, request: web.Request) -> errors.RoleMeshError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = tuple(sorted(error.allowed_methods))
        msg = f"{request.path} takes {', '.join(allowed)}, not {request.method}"
        return errors.MethodNotAllowed(msg, allowed)
    if isinstance(error, web.HTTPNotFound):
        return errors.UnknownPath(f"there is no {request.method} {request.path} here")
    return errors.BadRequest(error.reason)
