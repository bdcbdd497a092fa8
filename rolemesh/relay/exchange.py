"""One attempt: a request to one upstream, and the upstream's answer to the client.

The upstream's head is held back until the first body byte that is not an SSE comment, because
llama-server sends `200` when prefill starts. Up to there another attempt may still be made; from
there on bytes pass as they come, and a break is the client's to see.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Final

from rolemesh.address import UpstreamAddress
from rolemesh.errors import (
    RequestTooSlow,
    StreamBroken,
    UpstreamBroke,
    UpstreamError,
    UpstreamTimeout,
)
from rolemesh.relay.client import ClientStream
from rolemesh.relay.events import EVENT_STREAM, EventLines
from rolemesh.relay.headers import chunk, encode_fields, end_to_end, status_line
from rolemesh.relay.replies import Fields, Reply
from rolemesh.relay.response import Framing, ResponseError, ResponseReader
from rolemesh.relay.upstream import UpstreamConnection, UpstreamPool

HELD_LIMIT_BYTES: Final = 256 * 1024
"""How much of an answer is held before its first byte (comments), or of a refusal's body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """What is sent upstream; `fields` are whole header lines (see headers.encode_fields)."""

    path: str
    fields: bytes
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How long one attempt may take; `deadline` is the loop's time by which all must be over."""

    connect_s: float
    first_byte_s: float
    idle_s: float
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Relayed:
    """The answer went to the client whole; `first_byte_at` is the loop's time."""

    status: int
    first_byte_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The upstream answered 5xx before the first byte; nothing went to the client yet."""

    reply: Reply


class _Phase(Enum):
    HOLD = "hold"
    STREAM = "stream"
    OVER = "over"


async def attempt(
    pool: UpstreamPool,
    address: UpstreamAddress,
    outbound: Outbound,
    client: ClientStream,
    *,
    bounds: Bounds,
    reply_fields: Callable[[], Fields],
) -> Relayed | Refused:
    """Send `outbound` and relay the answer to `client`.

    `reply_fields` gives the headers to add to the reply. Raises ConnectFailed when nothing was
    sent; UpstreamBroke or UpstreamTimeout when the client has seen nothing yet, StreamBroken,
    UpstreamTimeout or RequestTooSlow after that. Cancelling closes the upstream connection.
    """
    connection = pool.take_idle(address)
    while True:
        if connection is None:
            connection = await pool.connect(address, bounds.connect_s)
        exchange = _Exchange(pool, connection, client, bounds=bounds, reply_fields=reply_fields)
        try:
            result = await exchange.run(outbound)
        except UpstreamBroke:
            if connection.reused and exchange.silent:
                connection = None  # it was closed while it lay idle: once more on a fresh one
                continue
            raise
        if exchange.reusable:
            pool.give_back(connection)
        else:
            connection.abort()
        return result


class _Exchange:
    """The receiver of one attempt's answer."""

    def __init__(
        self,
        pool: UpstreamPool,
        connection: UpstreamConnection,
        client: ClientStream,
        *,
        bounds: Bounds,
        reply_fields: Callable[[], Fields],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = pool
        self._connection = connection
        self._client = client
        self._bounds = bounds
        self._reply_fields = reply_fields
        self._reader = ResponseReader()
        self._phase = _Phase.HOLD
        self._held = bytearray()
        self._held_body = bytearray()
        self._lines: EventLines | None = None
        self._reframe: Callable[[bytes], bytes] | None = None
        self._first_byte_at = 0.0
        self._done: asyncio.Future[Relayed | Refused] = self._loop.create_future()
        self.silent = True

    @property
    def reusable(self) -> bool:
        """Tell whether the connection may serve another request."""
        return self._reader.reusable

    async def run(self, outbound: Outbound) -> Relayed | Refused:
        """Send the request and wait for the end of the exchange."""
        connection = self._connection
        connection.receiver = self
        self._pool.wait_begins(connection.address, self)
        self._alive_at = self._loop.time()
        self._arm(self._alive_at + self._bounds.first_byte_s)
        if connection.closed:
            self._break("the connection closed at once")
        else:
            connection.transport.write(request_bytes(connection.address, outbound))
        try:
            return await self._done
        finally:
            self._timer.cancel()
            self._phase = _Phase.OVER
            self._pool.wait_ends(connection.address, self)
            self._client.set_source(None)
            if not self._reader.complete:
                connection.abort()

    # -- Receiver --------------------------------------------------------------------------

    def upstream_data(self, data: bytes) -> None:
        """Take bytes of the answer."""
        self.silent = False
        if self._phase is _Phase.OVER:
            self._connection.abort()  # more than the answer: it cannot serve another request
            return
        try:
            raw = self._reader.feed(data)
        except ResponseError as err:
            self._break(str(err))
            return
        if self._phase is _Phase.STREAM:
            self._pass_on(raw)
        elif self._reader.head_done:
            self._hold(raw)
        if self._reader.complete:
            self._finish()

    def upstream_closed(self, cause: Exception | None) -> None:
        """Learn that the upstream closed."""
        if self._phase is _Phase.OVER:
            return
        if cause is not None:
            self._break(str(cause))
            return
        try:
            self._reader.end()
        except ResponseError as err:
            self._break(str(err))
        else:
            self._finish()

    def give_up(self) -> None:
        """Stop waiting for the first byte: the upstream is not heard of any more."""
        self.silent = False  # a fresh connection would not help
        self._break("not heard of any more")

    # -- before the first byte -------------------------------------------------------------

    def _hold(self, raw: bytes) -> None:
        reader = self._reader
        if not self._held and reader.field(b"content-type").lower().startswith(EVENT_STREAM):
            self._lines = EventLines()
        decoded = reader.take_decoded()
        self._held += raw
        self._held_body += decoded
        is_error = reader.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        if not is_error and self._has_content(decoded):
            self._release()
        elif len(self._held) > HELD_LIMIT_BYTES:
            self._break("the error reply is too large" if is_error else "nothing but comments")

    def _has_content(self, decoded: bytes) -> bool:
        return self._lines.has_content(decoded) if self._lines is not None else bool(decoded)

    def _release(self) -> None:
        """Write the held head and bytes to the client: from here on the answer is the client's."""
        reader, client = self._reader, self._client
        self._phase = _Phase.STREAM
        self._pool.wait_ends(self._connection.address, self)
        self._first_byte_at = self._alive_at = self._loop.time()
        head = self._head(self._choose_framing())
        data = bytes(self._held)
        if self._reframe is not None:
            data = self._reframe(bytes(self._held_body))
        self._held.clear()
        self._held_body.clear()
        reader.collect = self._lines is not None or self._reframe is not None
        client.begin(reader.status, head + data, self._frame_event if self._lines else None)
        client.set_source(self._connection.transport)
        self._timer.cancel()
        self._arm(self._alive_at + self._bounds.idle_s)

    def _choose_framing(self) -> bytes:
        """Return the framing header; what the client cannot read as it came is re-framed."""
        reader = self._reader
        if reader.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            return b""
        if reader.framing is Framing.LENGTH:
            return b"Content-Length: %d\r\n" % reader.length
        if self._client.http_minor == 0:
            self._reframe = bytes
            return b""
        if reader.framing is Framing.CLOSE:
            self._reframe = chunk
        return b"Transfer-Encoding: chunked\r\n"

    def _head(self, framing: bytes) -> bytes:
        reader = self._reader
        passed = end_to_end(reader.fields)
        added = encode_fields((("X-Request-Id", self._client.request_id), *self._reply_fields()))
        connection = b"" if self._client.keeps_alive else b"Connection: close\r\n"
        return status_line(reader.status) + passed + added + framing + connection + b"\r\n"

    # -- after it --------------------------------------------------------------------------

    def _pass_on(self, raw: bytes) -> None:
        decoded = self._reader.take_decoded()
        if self._lines is None or self._lines.has_content(decoded):
            self._alive_at = self._loop.time()  # comments are no sign of progress
        if self._reframe is not None:
            raw = self._reframe(decoded)
        if raw:
            self._client.write(raw)

    def _frame_event(self, event: bytes) -> bytes | None:
        if self._reframe is not None:
            return self._reframe(event)
        return chunk(event) if self._reader.between_chunks else None

    # -- ends ------------------------------------------------------------------------------

    def _finish(self) -> None:
        if self._phase is _Phase.OVER:
            return
        reader = self._reader
        if reader.status >= HTTPStatus.INTERNAL_SERVER_ERROR and self._phase is _Phase.HOLD:
            passed = tuple(
                (name, value)
                for name in ("Content-Type", "Retry-After")
                if (value := reader.field(name.lower().encode()).decode("latin-1"))
            )
            body = bytes(self._held_body)
            self._settle(Refused(reply=Reply(status=reader.status, body=body, fields=passed)))
            return
        if self._phase is _Phase.HOLD:
            self._release()
        if self._reframe is chunk:
            self._client.write(b"0\r\n\r\n")
        self._client.end()
        self._settle(Relayed(status=reader.status, first_byte_at=self._first_byte_at))

    def _break(self, what: str) -> None:
        name = str(self._connection.address)
        kind = UpstreamBroke if self._phase is _Phase.HOLD else StreamBroken
        self._fail(kind(f"{name}: {what}", upstream=name))

    def _fail(self, error: UpstreamError | RequestTooSlow) -> None:
        self._phase = _Phase.OVER
        if not self._done.done():
            self._done.set_exception(error)

    def _settle(self, result: Relayed | Refused) -> None:
        self._phase = _Phase.OVER
        if not self._done.done():
            self._done.set_result(result)

    # -- time ------------------------------------------------------------------------------

    def _arm(self, when: float) -> None:
        self._timer = self._loop.call_at(min(when, self._bounds.deadline), self._check_time)

    def _check_time(self) -> None:
        """Fail what is late; one timer an exchange, re-armed when it fires."""
        bounds = self._bounds
        limit, allowed = "idle_s", bounds.idle_s
        if self._phase is _Phase.HOLD:
            limit, allowed = "first_byte_s", bounds.first_byte_s
        now = self._loop.time()
        due = self._alive_at + allowed
        if now >= bounds.deadline:
            limit = "total_s"
        elif now < due:
            self._arm(due)
            return
        if limit == "idle_s" and self._client.is_stalled:
            self._fail(RequestTooSlow(f"the client took nothing for {allowed:g} s (idle_s)"))
            return
        name = str(self._connection.address)
        said = {
            "first_byte_s": f"no first byte within {allowed:g} s",
            "idle_s": f"nothing for {allowed:g} s in the middle of the answer",
            "total_s": "the request took longer than it may",
        }[limit]
        self._fail(UpstreamTimeout(f"{name}: {said} ({limit})", upstream=name, limit=limit))


def request_bytes(address: UpstreamAddress, outbound: Outbound) -> bytes:
    """Return a whole request as it is written to an upstream."""
    return b"POST %b HTTP/1.1\r\nHost: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (
        (address.prefix + outbound.path).encode(),
        address.authority.encode(),
        outbound.fields,
        len(outbound.body),
        outbound.body,
    )
