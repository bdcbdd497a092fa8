"""One client connection: reads requests off it one after another, and writes their replies.

A POST to an inference path is read whole (bounded); any other request is handed, connection and
all, to aiohttp, which closes it after its reply.
"""

import asyncio
import logging
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Final, cast

from rolemesh import errors
from rolemesh.names import RequestId, new_request_id
from rolemesh.relay.acceptor import Acceptor
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.cors import cors_fields
from rolemesh.relay.hard_close import reset
from rolemesh.relay.headers import encode_fields
from rolemesh.relay.members import Buffer
from rolemesh.relay.outbox import LARGE_BYTES
from rolemesh.relay.paths import unknown_path
from rolemesh.relay.replies import Dialect, Fields, Reply, error_reply, own_fields, reply_bytes
from rolemesh.relay.request import BodyReader, Request, read_head

if TYPE_CHECKING:
    from rolemesh.relay.job import Job

logger = logging.getLogger(__name__)

KEEP_ALIVE_S: Final = 75.0  # how long an idle client connection is kept
BODY_STALL_S: Final = 60.0  # how long a client may pause while it sends a body
BODY_TOTAL_S: Final = 900.0  # how long it may take for a whole one
LINGER_S: Final = 2.0  # how long a refused client may go on sending before it is cut off

_OPENAI: Final = Dialect.OPENAI
_PIPELINE_BYTES: Final = 65536


# Where a connection stands. Not an Enum: looking up a member of one costs ten times as much.
_HEAD: Final = "waits for a request, or for the rest of its head"
_BODY: Final = "waits for a body"
_REPLY: Final = "waits for the reply"
_LINGER: Final = "was refused, and may still send"
_CLOSED: Final = "is closed, or about to be"


class ClientConnection(asyncio.Protocol):
    """One client connection, until it closes or is handed to aiohttp."""

    __slots__ = (
        "__weakref__",
        "_body",
        "_buffer",
        "_job",
        "_request",
        "_served_one",
        "_server",
        "_since",
        "_source",
        "_state",
        "_transport",
        "due",
        "gone",
        "is_stalled",
        "keeps_alive",
        "peer",
    )

    def __init__(self, server: Acceptor) -> None:
        self._server = server
        self._state = _HEAD
        self._buffer = b""
        self._request: Request | None = None
        self._body: BodyReader | None = None
        self._job: Job | None = None
        self._source: asyncio.Transport | None = None
        self._served_one = False
        self.is_stalled = False
        self.keeps_alive = False
        self.gone = False

    # -- asyncio.Protocol ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.peer: str = peer[0] if isinstance(peer, tuple) else "unix"
        self._server.adopt(self)
        self._wait(KEEP_ALIVE_S)

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state is _HEAD:
            if self._buffer:
                data = self._buffer + data
            else:
                self._since = self._server.clock()
            self._read_head(data)
        elif state is _REPLY:
            self._buffer_pipelined(data)
        elif state is _BODY:
            self.due = min(self._server.clock() + BODY_STALL_S, self._since + BODY_TOTAL_S)
            self._read_body(data)

    def eof_received(self) -> bool:
        self._leave()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def pause_writing(self) -> None:
        self.is_stalled = True
        if self._source is not None:
            self._source.pause_reading()

    def resume_writing(self) -> None:
        self.is_stalled = False
        if self._source is not None and not self._source.is_closing():
            self._source.resume_reading()

    # -- reading a request -----------------------------------------------------------------

    def _read_head(self, data: bytes) -> None:
        self._buffer = data = data.lstrip(b"\r\n")
        if not data:
            return
        server = self._server
        try:
            request = read_head(data, server.limits.max_header_bytes)
            if request is None:
                self._wait(self._since + server.limits.header_timeout_s - server.clock())
                return
            self._request = request
            head = request.head
            if head.method != "POST" or head.path not in server.paths:
                self._hand_on(data)
                return
            if request.length > server.limits.max_body_bytes:
                raise errors.BodyTooLarge(server.limits.max_body_bytes)
            end = request.size + request.length
            if not head.chunked and len(data) >= end:
                self._buffer = data[end:]
                self.keeps_alive = head.keep_alive
                source = data if request.length < LARGE_BYTES else memoryview(data)  # not copied
                self._start(request, source[request.size : end])
                return
            self._begin_body(request, data[request.size :])
        except errors.RequestError as err:
            self._refuse(err)

    def _begin_body(self, request: Request, rest: bytes) -> None:
        # Nobody who may not ask gets us to take in a body.
        self._server.admit(self.peer, request.field)
        if request.head.expects_continue and not rest:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._body = BodyReader(request, self._server.limits.max_body_bytes)
        self._state = _BODY
        self._since = self._server.clock()
        self._wait(BODY_STALL_S)
        self._read_body(rest)

    def _read_body(self, data: bytes) -> None:
        body, request = self._body, self._request
        assert body is not None
        assert request is not None
        try:
            self._buffer = body.feed(data)
            if body.complete:
                self._body = None
                self.keeps_alive = request.head.keep_alive and not body.pipelined
                self._start(request, body.body)
        except errors.RequestError as err:
            self._refuse(err)

    def _start(self, request: Request, body: Buffer) -> None:
        server, head = self._server, request.head
        path = server.paths.get(head.path)
        if path is None:
            raise unknown_path(head.path)
        self._state = _REPLY
        if server.draining:
            self.keeps_alive = False
        wanted = request.wanted_id
        request_id = new_request_id() if wanted is None else server.claim_request_id(wanted)
        stream = ClientStream(self, request_id, head.minor, path.dialect)
        if path.dialect is not _OPENAI or server.allowed_origins:
            stream.added = encode_fields(self._added_fields(request_id))
        inbound = InboundRequest(
            head.path, head.fields, body, self.peer, request_id, server.clock()
        )
        job = server.live[request_id] = server.make_job(inbound, stream)
        job.begin(server.scope, server.ended)
        if not stream.done:
            self._job = job

    def _buffer_pipelined(self, data: bytes) -> None:
        """Keep the next request for later, as far as it is small; else close after this reply.

        Reading goes on in any case: without it the client's leaving would not be noticed.
        """
        if self.keeps_alive:
            self._buffer += data
        if len(self._buffer) > _PIPELINE_BYTES:
            self.keeps_alive = False
            self._buffer = b""

    # -- writing a reply -------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write raw bytes to the client; to one that has just left, nothing."""
        if self._state is not _CLOSED:
            self._server.outbox.write(self._transport, data)

    def write_reply(self, reply: Reply, request_id: RequestId) -> None:
        """Write a whole reply and go on to the next request."""
        self.write_last(self._whole(reply, request_id, keep_alive=self.keeps_alive))

    def _whole(self, reply: Reply, request_id: RequestId, *, keep_alive: bool) -> bytes:
        reply = replace(reply, fields=reply.fields + self._added_fields(request_id))
        return reply_bytes(reply, request_id, keep_alive=keep_alive)

    def _added_fields(self, request_id: RequestId) -> Fields:
        """Return the headers that a reply has whoever made it."""
        origin = self._request and self._request.field("origin")
        own = own_fields(request_id, self._dialect)
        return own + cors_fields(origin, self._server.allowed_origins)

    @property
    def _dialect(self) -> Dialect:
        path = self._request and self._server.paths.get(self._request.head.path)
        return path.dialect if path else _OPENAI

    def write_last(self, data: bytes) -> None:
        """Write the last bytes of a reply and go on to the next request, or close."""
        self.write(data)
        self.reply_done()

    def reply_done(self) -> None:
        """Go on to the next request, or close."""
        self._job = None
        if self._source is not None:
            self.set_source(None)
        if self.gone or not self.keeps_alive:
            self.close()
            return
        self._request = None
        self._served_one = True
        self._state = _HEAD
        self.due = self._server.clock() + KEEP_ALIVE_S  # watched over since the connection was made
        if self._buffer:
            self._server.loop.call_soon(self._next_request)

    def _next_request(self) -> None:
        if self._state is _HEAD and self._buffer:
            self._since = self._server.clock()
            self._read_head(self._buffer)

    def set_source(self, source: asyncio.Transport | None) -> None:
        """Name the transport that pauses while this client cannot take more."""
        before, self._source = self._source, source
        if self.is_stalled:
            if before is not None and not before.is_closing():
                before.resume_reading()  # it may serve another client next
            if source is not None:
                source.pause_reading()

    # -- ends ------------------------------------------------------------------------------

    def _refuse(self, error: errors.RequestError) -> None:
        """Answer what never became a request, and close: what follows cannot be trusted.

        A client that still sends would not read the answer if the connection were reset at once
        (RFC 9112 section 9.6), so what it sends is taken in for a moment.
        """
        logger.info("refused a request from %s: %s", self.peer, error)
        wanted = (self._request and self._request.wanted_id) or b""
        request_id = self._server.claim_request_id(wanted)
        reply = error_reply(error, request_id, self._dialect)
        self.write(self._whole(reply, request_id, keep_alive=False))
        self._server.outbox.flush()
        if self._transport.can_write_eof():  # TLS has no half close
            self._transport.write_eof()
        self._request = None
        self._body = None
        self._buffer = b""
        self._state = _LINGER
        self._wait(LINGER_S)

    def _hand_on(self, data: bytes) -> None:
        """Give this connection to aiohttp, which closes it after its reply."""
        self._server.outbox.flush()
        self._server.forget(self)
        other = self._server.other()
        self._transport.set_protocol(other)
        other.connection_made(self._transport)
        other.data_received(data)

    def close(self) -> None:
        """Close once all that was written is sent; a client that takes nothing is cut off."""
        was_idle, self._state = self._state is _HEAD, _CLOSED
        self._server.outbox.flush()
        self._transport.close()
        if not self.gone:
            # TLS waits for the client to say goodbye, which one that lies idle does not hear of.
            is_deaf = was_idle and self._transport.get_extra_info("sslcontext") is not None
            self._wait(LINGER_S if is_deaf else BODY_STALL_S)

    def close_if_idle(self, *, but_new: bool = False) -> None:
        """Close unless a request is under way; with `but_new`, unless the first is still to come."""
        if self._state is _HEAD and not self._buffer and (self._served_one or not but_new):
            self.close()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    def reset(self) -> None:
        """Close now, and in such a way that the client sees an error."""
        self._server.outbox.flush()
        reset(self._transport)

    def _leave(self) -> None:
        """The client is gone: its request ends here."""
        self._server.forget(self)
        self.gone = True
        self._state = _CLOSED
        self.set_source(None)
        job, self._job = self._job, None
        if job is not None:
            job.cancel()

    # -- patience --------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        self.due = self._server.clock() + seconds
        self._server.deadlines.add(self)

    def check_time(self, now: float) -> None:
        """End what is too slow: a request that does not come, or a client that takes nothing."""
        if self._state is _REPLY:
            self.due = now + KEEP_ALIVE_S  # it has timeouts of its own
        elif self._state in (_LINGER, _CLOSED):
            self.due = inf
            self.abort()
        elif self._state is _HEAD and not self._buffer:
            self.close()
        else:
            self._refuse(errors.RequestTooSlow("the request did not arrive in time"))
