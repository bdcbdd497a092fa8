"""Small requests of our own (probes, reports): one request, one bounded reply, no keep-alive.

`fetch` takes the reply whole, `fetching` as it comes.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from rolemesh.address import UpstreamAddress
from rolemesh.errors import ReplyTooLarge, UpstreamBroke, UpstreamTimeout
from rolemesh.relay.headers import encode_fields
from rolemesh.relay.replies import Fields
from rolemesh.relay.response import ResponseError, ResponseHead, ResponseReader
from rolemesh.relay.upstream import UpstreamPool

REPLY_LIMIT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchReply:
    """A whole reply; `fields` are its lasting headers (see ResponseHead), names in lower case."""

    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes


class FetchStream:
    """A reply that is read as it comes; of its body at most `limit_bytes`."""

    def __init__(self, upstream: str, limit_bytes: int) -> None:
        self._upstream = upstream
        self._limit_bytes = self._left = limit_bytes
        self._unread = bytearray()
        self._reader = ResponseReader(self._unread.extend)
        self._fault = ""
        self._news = asyncio.Event()

    # -- Receiver --------------------------------------------------------------------------

    def upstream_data(self, data: bytes) -> None:
        """Take bytes of the reply."""
        if self._reader.complete:
            return
        before = len(self._unread)
        try:
            self._reader.feed(data)
        except ResponseError as err:
            self._fault = str(err)
        self._left -= len(self._unread) - before
        if self._left < 0:
            self._fault = f"the reply is larger than {self._limit_bytes} bytes"
        self._news.set()

    def upstream_closed(self, cause: Exception | None) -> None:
        """Learn that the upstream closed."""
        if self._reader.complete:
            return
        if cause is not None:
            self._fault = str(cause)
        else:
            try:
                self._reader.end()
            except ResponseError as err:
                self._fault = str(err)
        self._news.set()

    # --------------------------------------------------------------------------------------

    async def head(self) -> ResponseHead:
        """Return its head; raises UpstreamBroke."""
        while self._reader.head is None:
            await self._more()
        return self._reader.head

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield its body; raises UpstreamBroke."""
        while self._unread or self._fault or not self._reader.complete:
            if self._unread:
                piece = bytes(self._unread)
                self._unread.clear()
                yield piece
            else:
                await self._more()

    async def _more(self) -> None:
        if not self._fault:
            await self._news.wait()
            self._news.clear()
        if self._fault:
            msg = f"{self._upstream}: {self._fault}"
            kind = ReplyTooLarge if self._left < 0 else UpstreamBroke
            raise kind(msg, upstream=self._upstream)


@asynccontextmanager
async def fetching(
    address: UpstreamAddress,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    fields: Fields = (),
    connect_s: float,
    limit_bytes: int = REPLY_LIMIT_BYTES,
) -> AsyncIterator[FetchStream]:
    """Send one request and give its reply to read; leaving the block ends it.

    Raises ConnectFailed. How long to wait for the reply is the caller's to say.
    """
    lines = (
        ("Host", address.authority),
        ("Connection", "close"),
        *((("Content-Length", str(len(body))),) if body is not None else ()),
        *fields,
    )
    target = address.prefix + path
    head = b"%b %b HTTP/1.1\r\n%b\r\n" % (method.encode(), target.encode(), encode_fields(lines))
    connection = await UpstreamPool().connect(address, connect_s)
    stream = FetchStream(str(address), limit_bytes)
    connection.receiver = stream
    connection.transport.write(head + (body or b""))
    try:
        yield stream
    finally:
        connection.abort()


async def fetch(
    address: UpstreamAddress,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    fields: Fields = (),
    timeout_s: float,
    limit_bytes: int = REPLY_LIMIT_BYTES,
) -> FetchReply:
    """Send one request and return its reply, whatever its status.

    Raises ConnectFailed, UpstreamBroke (ReplyTooLarge: larger than `limit_bytes`) or
    UpstreamTimeout (the whole exchange took longer than `timeout_s`).
    """
    asked = fetching(
        address,
        method,
        path,
        body=body,
        fields=fields,
        connect_s=timeout_s,
        limit_bytes=limit_bytes,
    )
    try:
        async with asyncio.timeout(timeout_s), asked as stream:
            head = await stream.head()
            whole = b"".join([piece async for piece in stream.pieces()])
            return FetchReply(status=head.status, fields=head.fields, body=whole)
    except TimeoutError as err:
        msg = f"{address}: no reply within {timeout_s:g} s"
        raise UpstreamTimeout(msg, upstream=str(address), limit="timeout_s") from err
