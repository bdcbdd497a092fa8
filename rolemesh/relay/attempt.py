"""One attempt for who has to wait: for a connection, then for the end of the exchange."""

import asyncio
from collections.abc import Callable
from functools import partial

from rolemesh.address import UpstreamAddress
from rolemesh.config.settings import Timeouts
from rolemesh.errors import UpstreamBroke, UpstreamError
from rolemesh.names import RequestId
from rolemesh.relay.client import ClientStream
from rolemesh.relay.exchange import Ended, Exchange
from rolemesh.relay.headers import start_line
from rolemesh.relay.members import Buffer
from rolemesh.relay.upstream import UpstreamPool


async def attempt(
    pool: UpstreamPool,
    address: UpstreamAddress,
    client: ClientStream,
    request: tuple[bytes, Buffer],
    *,
    timeouts: Timeouts,
    deadline: float,
    added: bytes,
    kind: Callable[..., Exchange] = Exchange,
) -> tuple[Ended, float]:
    """Send a request, head and body, and relay the answer.

    Returns what came of it, and when the first byte came. See Exchange, or another `kind` of it, for
    the parameters. A connection that was closed while it lay idle is replaced by a fresh one.
    ConnectFailed means that nothing was sent. Cancelling closes the upstream connection.
    """
    loop = asyncio.get_running_loop()
    connection = pool.take_idle(address)
    while True:
        if connection is None:
            try:
                connection = await pool.connect(address, timeouts.connect_s)
            except UpstreamError as err:
                return err, 0.0
        over: asyncio.Future[Ended] = loop.create_future()

        exchange = kind(
            pool,
            connection,
            client,
            timeouts=timeouts,
            deadline=deadline,
            added=added,
            on_over=partial(_settle, over),
        )
        exchange.begin(*request)
        if not connection.reused:
            request = (b"", b"")  # it will not be sent again, and the answer may take long
        try:
            ended = await over
        finally:
            exchange.cancel()
        if isinstance(ended, UpstreamBroke) and exchange.found_dead:
            connection = None
            continue
        return ended, exchange.first_byte_at


def _settle(over: asyncio.Future[Ended], _exchange: Exchange, ended: Ended) -> None:
    if not over.done():
        over.set_result(ended)


def request_head(
    address: UpstreamAddress, path: str, fields: bytes, request_id: RequestId, body: Buffer
) -> bytes:
    """Return the head of a request with this body; `fields` are whole header lines."""
    return b"%bHost: %b\r\n%bX-Request-Id: %b\r\nContent-Length: %d\r\n\r\n" % (
        start_line(address.prefix, path),
        address.authority.encode(),
        fields,
        request_id.encode(),
        len(body),
    )
