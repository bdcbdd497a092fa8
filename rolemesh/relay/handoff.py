"""A request that is no inference request, on its way to aiohttp.

It is read whole here, by the same rules as an inference request, and given to aiohttp in plain
words: a path in one spelling, the headers that handlers read and no others, a counted body, and
nothing behind it. So what a request is is decided in one place, handlers never wait for a body, and
aiohttp, which answers what it cannot read in words of its own, never has to.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

from rolemesh import errors
from rolemesh.names import RequestId, new_request_id, parse_request_id
from rolemesh.relay.access import Field
from rolemesh.relay.cors import cors_fields
from rolemesh.relay.replies import Reply, error_reply, reply_bytes
from rolemesh.relay.request import METHODS, BodyReader, Request, read_head

REQUEST_S: Final = 10.0
"""How long a client may take to send what is left of its request."""

LINGER_S: Final = 2.0
"""How long a refused client may go on sending before the connection is cut."""

STALL_S: Final = 60.0
"""How long a client may take nothing of its reply."""

_MAX_HEAD_BYTES: Final = 1 << 20
"""Far above limits.max_header_bytes, which bounds a head before it comes here."""

_HANDED_ON: Final = (
    "accept",
    "access-control-request-headers",
    "access-control-request-method",
    "authorization",
    "content-type",
    "host",
    "last-event-id",
    "origin",
    "x-api-key",
)

Admit = Callable[[str, str, Field], object]
"""Raises for those who may not send a body: takes their address, the path, and their headers."""


@dataclass(slots=True, kw_only=True)
class HandOff:
    """What requests are handed to; calling it makes the protocol for a connection.

    `admit` is asked before a body is taken in that has not come with its head. `allowed_origins`
    gives the origins whose pages may read replies.
    """

    application: Callable[[], asyncio.Protocol]
    max_body_bytes: int
    admit: Admit
    allowed_origins: Callable[[], tuple[str, ...]]
    connections: set["HandedConnection"] = field(default_factory=set)

    def __call__(self) -> "HandedConnection":
        """Return the protocol for a connection."""
        return HandedConnection(self)

    def close(self) -> None:
        """Cut off those whose requests are still to come."""
        for connection in tuple(self.connections):
            connection.cut()


class HandedConnection(asyncio.Protocol):
    """One connection with one request, until that is given to aiohttp or refused."""

    _transport: asyncio.Transport
    _timer: asyncio.TimerHandle
    _request_id: RequestId
    _request: Request | None = None
    _body: BodyReader | None = None
    _head = b""
    _answered = False

    def __init__(self, to: HandOff) -> None:
        self._to = to

    # -- asyncio.Protocol ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._to.connections.add(self)
        self._cut_off_after(REQUEST_S, self._refuse_slow)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        try:
            if self._body is None:
                self._begin(data)
            else:
                self._feed(self._body, data)
        except errors.RequestError as err:
            self._refuse(err)

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()

    def cut(self) -> None:
        """Close now."""
        self._transport.abort()

    # --------------------------------------------------------------------------------------

    def _begin(self, data: bytes) -> None:
        self._head = data = self._head + data
        self._request_id = new_request_id()
        request = self._request = read_head(data, _MAX_HEAD_BYTES)
        if request is None:
            return
        wanted = (request.wanted_id or b"").decode("latin-1")
        self._request_id = parse_request_id(wanted) or self._request_id
        head, body, limit = request.head, data[request.size :], self._to.max_body_bytes
        if request.length > limit:
            raise errors.BodyTooLarge(limit)
        if head.fields.get("content-encoding", "identity").lower() != "identity":
            msg = "no Content-Encoding is understood here"
            raise errors.BadRequest(msg)
        if head.path == "*":
            self._answer(Reply(status=200, body=b"", fields=(("Allow", ", ".join(METHODS)),)))
        elif not head.chunked and len(body) >= request.length:
            self._give(request, body[: request.length])
        else:
            self._begin_body(request, body)

    def _begin_body(self, request: Request, body: bytes) -> None:
        self._to.admit(_peer(self._transport), request.head.path, request.field)
        if request.head.expects_continue and not body:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._body = BodyReader(request, self._to.max_body_bytes)
        self._feed(self._body, body)

    def _feed(self, body: BodyReader, data: bytes) -> None:
        body.feed(data)
        if body.complete:
            assert self._request is not None
            self._give(self._request, body.body)

    def _give(self, request: Request, body: bytes) -> None:
        self._let_go()
        self._bound_stalls()
        protocol = self._to.application()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(plain_request(request, self._request_id, body))

    def _refuse_slow(self) -> None:
        if self._request is None and not self._head:
            self.cut()
        else:
            self._refuse(errors.RequestTooSlow("the request did not arrive in time"))

    def _refuse(self, error: errors.RequestError) -> None:
        self._answer(error_reply(error, self._request_id))

    def _answer(self, reply: Reply) -> None:
        """Answer, and close: what follows is not looked at.

        A client that still sends would not read the answer if the connection were reset at once
        (RFC 9112 section 9.6), so what it sends is taken in for a moment.
        """
        self._answered = True
        request = self._request
        origin = None if request is None else request.field("origin")
        whole = reply_bytes(
            Reply(
                status=reply.status,
                body=reply.body,
                fields=reply.fields + cors_fields(origin, self._to.allowed_origins()),
            ),
            self._request_id,
            keep_alive=False,
        )
        if request is not None and request.head.method == "HEAD":
            whole = whole[: len(whole) - len(reply.body)]
        self._transport.write(whole)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._timer.cancel()
        self._cut_off_after(LINGER_S, self.cut)

    def _bound_stalls(self) -> None:
        """Have the kernel end the connection when the client takes nothing: aiohttp would wait."""
        own = self._transport.get_extra_info("socket")
        if own.family in {socket.AF_INET, socket.AF_INET6}:
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALL_S * 1000))

    def _cut_off_after(self, seconds: float, how: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, how)

    def _let_go(self) -> None:
        self._to.connections.discard(self)
        self._timer.cancel()


def plain_request(request: Request, request_id: RequestId, body: bytes) -> bytes:
    """Return the request as aiohttp is to read it."""
    head = request.head
    target = f"{head.path}?{head.query}" if head.query else head.path
    lines = [f"{head.method} {target} HTTP/1.{head.minor}"]
    lines += [f"{name}: {head.fields[name]}" for name in _HANDED_ON if name in head.fields]
    lines.append(f"x-request-id: {request_id}")
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join((*lines, "\r\n")).encode("utf-8", "surrogateescape") + body


def _peer(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return peer[0] if isinstance(peer, tuple) else "unix"
