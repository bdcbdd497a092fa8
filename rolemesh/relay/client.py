"""One request as read from a client, and the reply side of it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rolemesh import errors
from rolemesh.names import RequestId
from rolemesh.relay.replies import Reply, error_event, error_reply


class ReplySink(Protocol):
    """The connection, as the reply to one of its requests sees it."""

    gone: bool

    @property
    def is_stalled(self) -> bool:
        """Tell whether more is written than the client has taken."""

    def wants_keep_alive(self) -> bool:
        """Tell whether the connection stays open after this reply."""

    def write(self, data: bytes) -> None:
        """Write raw bytes to the client."""

    def write_reply(self, reply: Reply, request_id: RequestId) -> None:
        """Write a whole reply and go on to the next request."""

    def reply_done(self) -> None:
        """Go on to the next request, or close."""

    def close(self) -> None:
        """Close once all that was written is sent."""

    def reset(self) -> None:
        """Close in a way that no client takes for a proper end."""

    def set_source(self, source: asyncio.Transport | None) -> None:
        """Name the transport that pauses while this client cannot take more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundRequest:
    """One inference request as read from a client; header names are lower case."""

    path: str
    fields: dict[bytes, bytes]
    body: bytes
    peer: str
    request_id: RequestId
    received_at: float

    def field(self, name: str) -> str | None:
        """Return the value of the header `name` (lower case), None when it was not sent."""
        value = self.fields.get(name.encode())
        return None if value is None else value.decode("utf-8", "surrogateescape")


FrameEvent = Callable[[bytes], bytes | None]


class ClientStream:
    """The reply side of one request. Exactly one reply is written, in one of three ways.

    `send` writes a whole reply. `begin`, `write`..., `end` relay one. `fail` reports an error:
    as a reply before `begin`, as an event inside an SSE stream after it, and in both cases after
    `begin` the connection is closed without a proper end, so that no client takes it for whole.
    """

    __slots__ = ("_connection", "_frame_event", "done", "http_minor", "request_id", "status")

    def __init__(self, connection: ReplySink, request_id: RequestId, minor: int) -> None:
        self._connection = connection
        self._frame_event: FrameEvent | None = None
        self.request_id = request_id
        self.http_minor = minor
        self.status = 0
        self.done = False

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
        return self._connection.wants_keep_alive()

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
        self._connection.write(head_and_data)

    def write(self, data: bytes) -> None:
        """Write more of a relayed reply."""
        self._connection.write(data)

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
            self._connection.write(event)
            self._connection.close()
        elif self.http_minor == 0:
            self._connection.reset()  # for HTTP/1.0 a close is a proper end
        else:
            self._connection.close()

    def set_source(self, source: asyncio.Transport | None) -> None:
        """Name the transport to pause while the client reads more slowly than it sends."""
        self._connection.set_source(source)
