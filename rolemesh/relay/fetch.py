"""Small requests of our own (probes, reports): one request, one bounded reply, no keep-alive."""

import asyncio
from dataclasses import dataclass
from typing import Final

from rolemesh.address import UpstreamAddress
from rolemesh.errors import UpstreamBroke, UpstreamTimeout
from rolemesh.relay.headers import encode_fields
from rolemesh.relay.replies import Fields
from rolemesh.relay.response import ResponseError, ResponseReader
from rolemesh.relay.upstream import UpstreamPool

REPLY_LIMIT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchReply:
    """A whole reply; `fields` are its lasting headers (see ResponseHead), names in lower case."""

    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes


class _Collector:
    """Receives one reply."""

    def __init__(self, upstream: str, limit_bytes: int) -> None:
        self._upstream = upstream
        self._limit_bytes = limit_bytes
        self._body = bytearray()
        self._reader = ResponseReader(self._body.extend)
        self.done: asyncio.Future[FetchReply] = asyncio.get_running_loop().create_future()

    def upstream_data(self, data: bytes) -> None:
        """Take bytes of the reply."""
        try:
            self._reader.feed(data)
        except ResponseError as err:
            self._fail(str(err))
            return
        if len(self._body) > self._limit_bytes:
            self._fail(f"the reply is larger than {self._limit_bytes} bytes")
        elif self._reader.complete:
            self._settle()

    def upstream_closed(self, cause: Exception | None) -> None:
        """Learn that the upstream closed."""
        if cause is not None:
            self._fail(str(cause))
            return
        try:
            self._reader.end()
        except ResponseError as err:
            self._fail(str(err))
        else:
            self._settle()

    def _settle(self) -> None:
        head = self._reader.head
        if not self.done.done() and head is not None:
            reply = FetchReply(status=head.status, fields=head.fields, body=bytes(self._body))
            self.done.set_result(reply)

    def _fail(self, what: str) -> None:
        if not self.done.done():
            self.done.set_exception(
                UpstreamBroke(f"{self._upstream}: {what}", upstream=self._upstream)
            )


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

    Raises ConnectFailed, UpstreamBroke or UpstreamTimeout (the whole exchange took longer than
    `timeout_s`).
    """
    lines = (
        ("Host", address.authority),
        ("Connection", "close"),
        *((("Content-Length", str(len(body))),) if body is not None else ()),
        *fields,
    )
    target = address.prefix + path
    head = b"%b %b HTTP/1.1\r\n%b\r\n" % (method.encode(), target.encode(), encode_fields(lines))
    try:
        async with asyncio.timeout(timeout_s):
            connection = await UpstreamPool().connect(address, timeout_s)
            collector = _Collector(str(address), limit_bytes)
            connection.receiver = collector
            connection.transport.write(head + (body or b""))
            try:
                return await collector.done
            finally:
                connection.abort()
    except TimeoutError as err:
        msg = f"{address}: no reply within {timeout_s:g} s"
        raise UpstreamTimeout(msg, upstream=str(address), limit="timeout_s") from err
