"""One attempt whose answer is taken whole: a stream is assembled into the plain reply it makes.

Nothing goes to the client before the end, so whatever breaks on the way is UpstreamBroke.
"""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from rolemesh.address import UpstreamAddress
from rolemesh.errors import UpstreamBroke, UpstreamError, UpstreamTimeout
from rolemesh.relay.assembly import REPLY_LIMIT_BYTES, Assembly, AssemblyError
from rolemesh.relay.events import EVENT_STREAM
from rolemesh.relay.exchange import Bounds, Outbound, request_bytes
from rolemesh.relay.replies import JSON_TYPE, Reply
from rolemesh.relay.response import ResponseError, ResponseReader
from rolemesh.relay.upstream import UpstreamConnection, UpstreamPool

_PASSED_FIELDS: Final = ("Content-Type", "Retry-After")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The answer; `first_byte_at` is the loop's time at which it began."""

    reply: Reply
    first_byte_at: float


async def collect(
    pool: UpstreamPool, address: UpstreamAddress, outbound: Outbound, *, bounds: Bounds
) -> Collected:
    """Send `outbound`, which asks for a stream, and return the plain reply that the stream makes.

    An answer that is no stream is returned as it came, whatever its status. Raises ConnectFailed,
    UpstreamBroke or UpstreamTimeout. Cancelling closes the upstream connection.
    """
    connection = pool.take_idle(address)
    while True:
        if connection is None:
            connection = await pool.connect(address, bounds.connect_s)
        collector = _Collector(pool, connection, bounds)
        try:
            collected = await collector.run(outbound)
        except UpstreamBroke:
            if connection.reused and collector.silent:
                connection = None  # it was closed while it lay idle: once more on a fresh one
                continue
            raise
        if collector.reusable:
            pool.give_back(connection)
        else:
            connection.abort()
        return collected


class _Collector:
    """The receiver of one attempt's answer."""

    def __init__(self, pool: UpstreamPool, connection: UpstreamConnection, bounds: Bounds) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = pool
        self._connection = connection
        self._name = str(connection.address)
        self._bounds = bounds
        self._reader = ResponseReader()
        self._assembly: Assembly | None = None
        self._body = bytearray()
        self._first_byte_at: float | None = None
        self._done: asyncio.Future[Collected] = self._loop.create_future()
        self.silent = True

    @property
    def reusable(self) -> bool:
        """Tell whether the connection may serve another request."""
        return self._reader.reusable

    async def run(self, outbound: Outbound) -> Collected:
        """Send the request and wait for the end of the answer."""
        connection = self._connection
        connection.receiver = self
        self._pool.wait_begins(connection.address, self)
        self._alive_at = self._loop.time()
        self._arm(self._alive_at + self._bounds.first_byte_s)
        if connection.closed:
            self._break("the connection closed at once")
        else:
            connection.transport.write(request_bytes(connection.address, outbound))
        collected = None
        try:
            collected = await self._done
            return collected
        finally:
            self._timer.cancel()
            self._pool.wait_ends(connection.address, self)
            if collected is None:
                connection.abort()

    # -- Receiver --------------------------------------------------------------------------

    def upstream_data(self, data: bytes) -> None:
        """Take bytes of the answer."""
        self.silent = False
        if self._done.done():
            self._connection.abort()  # more than the answer: it cannot serve another request
            return
        try:
            self._reader.feed(data)
            if self._reader.head_done:
                self._take(self._reader.take_decoded())
            if self._reader.complete:
                self._finish()
        except (ResponseError, AssemblyError) as err:
            self._break(str(err))

    def upstream_closed(self, cause: Exception | None) -> None:
        """Learn that the upstream closed."""
        if self._done.done():
            return
        if cause is not None:
            self._break(str(cause))
            return
        try:
            self._reader.end()
            self._finish()
        except (ResponseError, AssemblyError) as err:
            self._break(str(err))

    def give_up(self) -> None:
        """Stop waiting for the first byte: the upstream is not heard of any more."""
        self.silent = False  # a fresh connection would not help
        self._break("not heard of any more")

    # --------------------------------------------------------------------------------------

    def _take(self, decoded: bytes) -> None:
        if self._assembly is None and self._is_stream():
            self._assembly = Assembly()
        if self._assembly is not None:
            grew = self._assembly.feed(decoded)
        else:
            grew = bool(decoded)
            self._body += decoded
            if len(self._body) > REPLY_LIMIT_BYTES:
                self._break(f"the reply is larger than {REPLY_LIMIT_BYTES} bytes")
        if grew:
            self._alive_at = self._loop.time()
            if self._first_byte_at is None:
                self._first_byte_at = self._alive_at
                self._pool.wait_ends(self._connection.address, self)
                self._timer.cancel()
                self._arm(self._alive_at + self._bounds.idle_s)

    def _is_stream(self) -> bool:
        kind = self._reader.field(b"content-type").lower()
        return self._reader.status == HTTPStatus.OK and kind.startswith(EVENT_STREAM)

    def _finish(self) -> None:
        """Take the end of the answer; raises AssemblyError."""
        if self._assembly is not None:
            answer = self._assembly.end()
            reply = Reply(status=answer.status, body=answer.body, fields=(JSON_TYPE,))
        else:
            passed = tuple(
                (name, value)
                for name in _PASSED_FIELDS
                if (value := self._reader.field(name.lower().encode()).decode("latin-1"))
            )
            reply = Reply(status=self._reader.status, body=bytes(self._body), fields=passed)
        first_byte_at = self._first_byte_at
        if first_byte_at is None:
            first_byte_at = self._loop.time()
        if not self._done.done():
            self._done.set_result(Collected(reply=reply, first_byte_at=first_byte_at))

    def _break(self, what: str) -> None:
        self._fail(UpstreamBroke(f"{self._name}: {what}", upstream=self._name))

    def _fail(self, error: UpstreamError) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    # -- time ------------------------------------------------------------------------------

    def _arm(self, when: float) -> None:
        self._timer = self._loop.call_at(min(when, self._bounds.deadline), self._check_time)

    def _check_time(self) -> None:
        """Fail what is late; one timer, re-armed when it fires."""
        limit, allowed = "idle_s", self._bounds.idle_s
        said = f"nothing for {allowed:g} s in the middle of the answer"
        if self._first_byte_at is None:
            limit, allowed = "first_byte_s", self._bounds.first_byte_s
            said = f"no first byte within {allowed:g} s"
        now = self._loop.time()
        if now >= self._bounds.deadline:
            limit, said = "total_s", "the request took longer than it may"
        elif now < self._alive_at + allowed:
            self._arm(self._alive_at + allowed)
            return
        self._fail(
            UpstreamTimeout(f"{self._name}: {said} ({limit})", upstream=self._name, limit=limit)
        )
