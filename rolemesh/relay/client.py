"""One request as read from a client, and the reply side of it."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from rolemesh import errors
from rolemesh.names import RequestId
from rolemesh.relay.members import Buffer
from rolemesh.relay.replies import Reply, error_event, error_reply


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


class ClientStream:
    """The reply side of one request. Exactly one reply is written, in one of three ways.

    `send` writes a whole reply. `begin`, `write`..., `end` relay one, as `relay` does at once. `fail`
    reports an error: as a reply before `begin`, as an event inside an SSE stream after it, and in both cases after
    `begin` the connection is closed without a proper end, so that no client takes it for whole.
    """

    __slots__ = (
        "_connection",
        "_frame_event",
        "done",
        "http_minor",
        "on_begin",
        "request_id",
        "status",
        "write",
    )

    def __init__(self, connection: ReplySink, request_id: RequestId, minor: int) -> None:
        self._connection = connection
        self._frame_event: FrameEvent | None = None
        self.request_id = request_id
        self.http_minor = minor
        self.status = 0
        self.done = False
        self.on_begin: Callable[[], None] | None = None
        """Called when a relayed reply begins: no other attempt will be made from then on."""
        self.write: Callable[[bytes], None] = connection.write
        """Writes more of a relayed reply."""

    @property
    def started(self) -> bool:
        """Tell whether the reply's head has been written."""
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
        self._connection.write_reply(reply, self.request_id)
        self.status = reply.status
        self.done = True

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
        if not self.started:
            self.send(error_reply(error, self.request_id))
            return
        self.done = True
        frame = self._frame_event
        event = frame(error_event(error, self.request_id)) if frame is not None else None
        if event is not None:
            self.write(event)
            self._connection.close()
        elif self.http_minor == 0:
            self._connection.reset()  # for HTTP/1.0 a close is a proper end
        else:
            self._connection.close()

    def let_go(self) -> None:
        """Let go of those who hold on to this stream; its request has ended."""
        self.on_begin = None
        self._frame_event = None

    def set_source(self, source: asyncio.Transport | None) -> None:
        """Name the transport to pause while the client reads more slowly than it sends."""
        self._connection.set_source(source)
