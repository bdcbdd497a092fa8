"""One client connection: reads requests off it one after another, and writes their replies.

A POST to an inference path is read whole (bounded); any other request is handed, connection and
all, to aiohttp, which closes it after its reply.
"""

import asyncio
import logging
import socket
import struct
from collections.abc import Callable, Container
from enum import Enum
from typing import Final, Protocol, cast

from rolemesh import errors
from rolemesh.config.settings import Limits
from rolemesh.names import RequestId
from rolemesh.relay.access import Field
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.replies import Reply, error_reply, reply_bytes
from rolemesh.relay.request import RequestReader, read_head

logger = logging.getLogger(__name__)

KEEP_ALIVE_S: Final = 75.0
"""How long an idle client connection is kept."""

BODY_STALL_S: Final = 60.0
"""How long a client may pause while it sends a body."""

BODY_TOTAL_S: Final = 900.0
"""How long a client may take for a whole body."""

LINGER_S: Final = 2.0
"""How long a refused client may go on sending before the connection is cut."""

_PIPELINE_BYTES: Final = 65536
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: on, for 0 seconds


class Acceptor(Protocol):
    """The server that accepted a connection (InboundServer), as the connection sees it."""

    loop: asyncio.AbstractEventLoop
    clock: Callable[[], float]
    paths: Container[str]
    other: Callable[[], asyncio.Protocol]
    limits: Limits
    draining: bool

    def adopt(self, connection: "ClientConnection") -> None:
        """Count a connection as open."""

    def forget(self, connection: "ClientConnection") -> None:
        """Count it no longer."""

    def admit(self, peer: str, field: Field) -> None:
        """Raise RequestError unless this caller may ask for inference."""

    def claim_request_id(self, wanted: bytes | None) -> RequestId:
        """Return the client's request id, or one of ours."""

    def start(self, request: InboundRequest, stream: ClientStream) -> asyncio.Task[None]:
        """Start the program's handler for a request."""


class _State(Enum):
    HEAD = "head"
    BODY = "body"
    REPLY = "reply"
    LINGER = "linger"
    CLOSED = "closed"


class ClientConnection(asyncio.Protocol):
    """One client connection, until it closes or is handed to aiohttp."""

    __slots__ = (
        "_body_due",
        "_buffer",
        "_paused",
        "_reader",
        "_served_one",
        "_server",
        "_since",
        "_source",
        "_state",
        "_task",
        "_timer",
        "_transport",
        "gone",
        "peer",
    )

    def __init__(self, server: Acceptor) -> None:
        self._server = server
        self._state = _State.HEAD
        self._buffer = b""
        self._reader: RequestReader | None = None
        self._task: asyncio.Task[None] | None = None
        self._source: asyncio.Transport | None = None
        self._paused = False
        self._served_one = False
        self.gone = False

    # -- asyncio.Protocol ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.peer: str = peer[0] if isinstance(peer, tuple) else "unix"
        self._since = self._server.clock()
        self._server.adopt(self)
        self._arm_timer(KEEP_ALIVE_S)

    def data_received(self, data: bytes) -> None:
        if self._state is _State.REPLY:
            self._buffer_pipelined(data)
        elif self._state is _State.BODY:
            self._since = self._server.clock()
            assert self._reader is not None
            self._read_body(self._reader, data)
        elif self._state is _State.HEAD:
            if not self._buffer:
                self._since = self._server.clock()
            self._buffer += data
            self._read_head()

    def eof_received(self) -> bool:
        self._leave()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def pause_writing(self) -> None:
        self._paused = True
        if self._source is not None:
            self._source.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        if self._source is not None and not self._source.is_closing():
            self._source.resume_reading()

    # -- reading a request -----------------------------------------------------------------

    def _read_head(self) -> None:
        self._buffer = self._buffer.lstrip(b"\r\n")
        if not self._buffer:
            return
        limits = self._server.limits
        try:
            head = read_head(self._buffer, limits.max_header_bytes)
            if head is None:
                self._timer.cancel()
                self._arm_timer(self._since + limits.header_timeout_s - self._server.clock())
                return
            self._reader = reader = RequestReader(head, limits.max_body_bytes)
            if head.method != "POST" or head.path not in self._server.paths:
                self._hand_on(self._buffer)
                return
            rest = self._buffer[len(head.raw) :]
            if reader.wants_more_than(rest):
                # Nobody who may not ask gets us to take in a body.
                self._server.admit(self.peer, reader.field)
        except errors.RequestError as err:
            self._refuse(err)
            return
        if reader.expects_continue and not rest:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._state = _State.BODY
        self._body_due = self._server.clock() + BODY_TOTAL_S
        self._read_body(reader, rest)

    def _read_body(self, reader: RequestReader, data: bytes) -> None:
        try:
            self._buffer = reader.feed(data)
        except errors.RequestError as err:
            self._refuse(err)
            return
        if reader.complete:
            self._start_request(reader)

    def _start_request(self, reader: RequestReader) -> None:
        self._state = _State.REPLY
        server = self._server
        request = InboundRequest(
            path=reader.head.path,
            fields=reader.fields,
            body=reader.body,
            peer=self.peer,
            request_id=server.claim_request_id(reader.fields.get(b"x-request-id")),
            received_at=server.clock(),
        )
        stream = ClientStream(self, request.request_id, reader.head.minor)
        self._task = server.start(request, stream)

    def _buffer_pipelined(self, data: bytes) -> None:
        """Keep the next request for later, as far as it is small; else close after this reply.

        Reading goes on in any case: without it the client's leaving would not be noticed.
        """
        assert self._reader is not None
        if self._reader.keep_alive:
            self._buffer += data
        if len(self._buffer) > _PIPELINE_BYTES:
            self._reader.keep_alive = False
            self._buffer = b""

    # -- writing a reply -------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write raw bytes to the client; to one that has just left, nothing."""
        if not self.gone and not self._transport.is_closing():
            self._transport.write(data)

    def write_reply(self, reply: Reply, request_id: RequestId) -> None:
        """Write a whole reply and go on to the next request."""
        self.write(reply_bytes(reply, request_id, keep_alive=self.wants_keep_alive()))
        self.reply_done()

    def reply_done(self) -> None:
        """Go on to the next request, or close."""
        self._task = None
        self.set_source(None)
        if self.gone or not self.wants_keep_alive():
            self.close()
            return
        self._reader = None
        self._served_one = True
        self._state = _State.HEAD
        self._since = self._server.clock()
        if self._buffer:
            self._server.loop.call_soon(self._next_request)

    def _next_request(self) -> None:
        if self._state is _State.HEAD and self._buffer:
            self._read_head()

    @property
    def is_stalled(self) -> bool:
        """Tell whether more is written than the client has taken."""
        return self._paused

    def set_source(self, source: asyncio.Transport | None) -> None:
        """Name the transport that pauses while this client cannot take more."""
        before, self._source = self._source, source
        if self._paused:
            if before is not None and not before.is_closing():
                before.resume_reading()  # it may serve another client next
            if source is not None:
                source.pause_reading()

    def wants_keep_alive(self) -> bool:
        """Tell whether the client keeps the connection, which the reply's head has to say."""
        reader = self._reader
        return reader is not None and reader.keep_alive and not self._server.draining

    # -- ends ------------------------------------------------------------------------------

    def _refuse(self, error: errors.RequestError) -> None:
        """Answer what never became a request, and close: what follows cannot be trusted.

        A client that still sends would not read the answer if the connection were reset at once
        (RFC 9112 section 9.6), so what it sends is taken in for a moment.
        """
        logger.info("refused a request from %s: %s", self.peer, error)
        wanted = self._reader.fields.get(b"x-request-id") if self._reader is not None else None
        request_id = self._server.claim_request_id(wanted)
        self.write(reply_bytes(error_reply(error, request_id), request_id, keep_alive=False))
        self._transport.write_eof()
        self._reader = None
        self._buffer = b""
        self._state = _State.LINGER
        self._since = self._server.clock()
        self._timer.cancel()
        self._arm_timer(LINGER_S)

    def _hand_on(self, data: bytes) -> None:
        """Give this connection to aiohttp, which closes it after its reply."""
        self._forget()
        other = self._server.other()
        self._transport.set_protocol(other)
        other.connection_made(self._transport)
        other.data_received(data)

    def close(self) -> None:
        """Close once all that was written is sent; a client that takes nothing is cut off."""
        self._state = _State.CLOSED
        self._since = self._server.clock()
        self._transport.close()

    def close_if_idle(self, *, but_new: bool = False) -> None:
        """Close unless a request is under way; with `but_new`, unless the first is still to come."""
        if self._state is _State.HEAD and not self._buffer and (self._served_one or not but_new):
            self.close()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    def reset(self) -> None:
        """Close now, and in such a way that the client sees an error."""
        own_socket = self._transport.get_extra_info("socket")
        own_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.abort()

    def _leave(self) -> None:
        """The client is gone: its request ends here."""
        self._forget()
        self.gone = True
        self._state = _State.CLOSED
        self.set_source(None)
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _forget(self) -> None:
        self._timer.cancel()
        self._server.forget(self)

    # -- patience --------------------------------------------------------------------------

    def _arm_timer(self, delay_s: float) -> None:
        self._timer = self._server.loop.call_later(delay_s, self._check_patience)

    def _check_patience(self) -> None:
        """Bound how long a client may be slow; one timer a connection, re-armed when it fires."""
        if self._state is _State.REPLY:
            self._since = self._server.clock()  # the reply has timeouts of its own
        due = self._since + self._patience_s()
        if self._state is _State.BODY:
            due = min(due, self._body_due)
        left = due - self._server.clock()
        if left > 0:
            self._arm_timer(left)
        elif self._state in (_State.LINGER, _State.CLOSED):
            self.abort()
        elif self._state is _State.HEAD and not self._buffer:
            self.close()
            self._arm_timer(BODY_STALL_S)
        else:
            self._refuse(errors.RequestTooSlow("the request did not arrive in time"))

    def _patience_s(self) -> float:
        if self._state is _State.HEAD:
            return self._server.limits.header_timeout_s if self._buffer else KEEP_ALIVE_S
        return LINGER_S if self._state is _State.LINGER else BODY_STALL_S
