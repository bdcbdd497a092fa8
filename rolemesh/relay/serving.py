"""Accepting connections on listening sockets, from now until the scope is left."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from rolemesh.relay.inbound import InboundServer
from rolemesh.runtime.listeners import BACKLOG


@asynccontextmanager
async def accepting(
    listeners: Iterable[socket.socket], inbound: InboundServer
) -> AsyncIterator[None]:
    """Accept connections for `inbound`; on leaving, stop accepting and close the listeners.

    Accepted connections live on: `InboundServer.drain` ends them.
    """
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        for listener in listeners:
            server = await loop.create_server(inbound, sock=listener, backlog=BACKLOG)
            stack.callback(server.close)
        yield
