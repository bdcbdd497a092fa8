"""One request as read from a client, and the reply side of it."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from rolemesh import errors
from rolemesh.names import RequestId
from rolemesh.relay.headers import chunk
from rolemesh.relay.members import Buffer
from rolemesh.relay.replies import Dialect, Reply, error_event, error_reply, refusal_event


class ReplySink(Protocol):
    """The connection, as the reply to one of its requests sees it."""

    gone: bool
    is_stalled: bool
    keeps_alive: bool

    def write(self, data: bytes) -> None:
        """Write raw bytes to the client."""

    def write_reply(self, reply: Reply, request_id: RequestId) -> None:
        """Write a whole reply and go on to the next request."""

    def write_last(self, data: bytes) -> None:
        """Write the last bytes of a reply and go on to the next request."""

    def reply_done(self) -> None:
        """Go on to the next request, or close."""

    def close(self) -> None:
        """Close once all that was written is sent."""

    def reset(self) -> None:
        """Close in a way that no client takes for a proper end."""

    def set_source(self, source: asyncio.Transport | None) -> None:
        """Name the transport that pauses while this client cannot take more."""


class InboundRequest:
    """One inference request as read from a client; header names are lower case.

    A large body is a view of what was received. Values of headers are UTF-8 with surrogate escapes,
    and shared between requests: not to be changed. `received_at` is the loop's time.
    """

    __slots__ = ("body", "fields", "path", "peer", "received_at", "request_id")

    def __init__(  # noqa: PLR0917 - keywords would cost as much as all the rest of it
        self,
        path: str,
        fields: Mapping[str, str],
        body: Buffer,
        peer: str,
        request_id: RequestId,
        received_at: float,
    ) -> None:
        self.path = path
        self.fields = fields
        self.body = body
        self.peer = peer
        self.request_id = request_id
        self.received_at = received_at

    def field(self, name: str) -> str | None:
        """Return the value of the header `name` (lower case), None when it was not sent."""
        return self.fields.get(name)


FrameEvent = Callable[[bytes], bytes | None]

_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
)


class ClientStream:
    """The reply side of one request. Exactly one reply is written, in one of three ways.

    `send` writes a whole reply. `begin`, `write`..., `end` relay one, as `relay` does at once. `fail`
    reports an error: as a reply before `begin`, as an event inside an SSE stream after it, and in both cases after
    `begin` the connection is closed without a proper end, so that no client takes it for whole.

    `comment` commits the reply to be an SSE stream before anything is there to relay; then what is
    sent or fails is an event of it.
    """

    __slots__ = (
        "_connection",
        "_frame_event",
        "added",
        "bytes_out",
        "committed",
        "dialect",
        "done",
        "http_minor",
        "is_told",
        "on_begin",
        "request_id",
        "status",
        "write",
    )

    def __init__(
        self,
        connection: ReplySink,
        request_id: RequestId,
        minor: int,
        dialect: Dialect = Dialect.OPENAI,
    ) -> None:
        self._connection = connection
        self._frame_event: FrameEvent | None = None
        self.request_id = request_id
        self.http_minor = minor
        self.dialect = dialect
        self.committed = False
        self.added = b""
        """Header lines that a relayed reply has on top of its own."""
        self.is_told = False
        """Whether the upstream itself has told the client why the stream ends."""
        self.bytes_out = 0
        """How much of a stream's body was passed on, as its exchange counts it."""
        self.status = 0
        self.done = False
        self.on_begin: Callable[[], None] | None = None
        """Called when a relayed reply begins: no other attempt will be made from then on."""
        self.write: Callable[[bytes], None] = connection.write
        """Writes more of a relayed reply."""

    @property
    def started(self) -> bool:
        """Tell whether something of an answer has been written."""
        return self.status != 0

    @property
    def client_gone(self) -> bool:
        """Tell whether the client has left."""
        return self._connection.gone

    @property
    def is_stalled(self) -> bool:
        """Tell whether more is written than the client has taken."""
        return self._connection.is_stalled

    @property
    def keeps_alive(self) -> bool:
        """Tell whether the connection stays open after this reply, as its head has to say."""
        return self._connection.keeps_alive

    def send(self, reply: Reply) -> None:
        """Write a whole reply."""
        if self.committed:
            self._end_by_event(refusal_event(reply, self.dialect))
        else:
            self._connection.write_reply(reply, self.request_id)
        self.status = reply.status
        self.done = True

    def comment(self, text: str) -> None:
        """Write an SSE comment before the answer; the first commits the reply to be a stream."""
        data = self._framed(b": %b\n\n" % text.encode())
        if not self.committed:
            self.committed = True
            framing = b"Transfer-Encoding: chunked\r\n" if self.http_minor else b""
            closing = b"" if self.keeps_alive else b"Connection: close\r\n"
            data = b"%b%b%b%bX-Request-Id: %b\r\n\r\n%b" % (
                _STREAM_HEAD,
                self.added,
                framing,
                closing,
                self.request_id.encode(),
                data,
            )
        self.write(data)

    def begin(self, status: int, head_and_data: bytes, frame_event: FrameEvent | None) -> None:
        """Write the head of a relayed reply and the first of its data.

        `frame_event` frames an SSE event so that it may be written where the stream stands now,
        or returns None where no event may; it is None when the reply is not an event stream.
        """
        self.status = status
        self._frame_event = frame_event
        self.write(head_and_data)
        if self.on_begin is not None:
            self.on_begin()

    def relay(self, status: int, whole: bytes) -> None:
        """Write a relayed reply that is there whole, head and body."""
        self.status = status
        self.done = True
        self._connection.write_last(whole)

    def end(self) -> None:
        """Mark a relayed reply as whole."""
        self.done = True
        self._connection.reply_done()

    def fail(self, error: errors.RoleMeshError) -> None:
        """Report an error in place of the reply, or of its rest."""
        if self.done:
            return
        if not (self.started or self.committed):
            self.send(error_reply(error, self.request_id, self.dialect))
            return
        self.done = True
        if not self.started:
            self._end_by_event(error_event(error, self.request_id, self.dialect))
            return
        frame = None if self.is_told else self._frame_event
        event = frame(error_event(error, self.request_id, self.dialect)) if frame else None
        if event is not None or self.is_told:
            self.write(event or b"")
            self._connection.close()
        elif self.http_minor == 0:
            self._connection.reset()  # for HTTP/1.0 a close is a proper end
        else:
            self._connection.close()

    def _end_by_event(self, event: bytes) -> None:
        """End a stream that has had nothing but comments, so that nobody takes it for whole."""
        self.write(self._framed(event))
        self._connection.close()

    def _framed(self, event: bytes) -> bytes:
        return chunk(event) if self.http_minor else event

    def let_go(self) -> None:
        """Let go of those who hold on to this stream; its request has ended."""
        self.on_begin = None
        self._frame_event = None

    def set_source(self, source: asyncio.Transport | None) -> None:
        """Name the transport to pause while the client reads more slowly than it sends."""
        self._connection.set_source(source)
