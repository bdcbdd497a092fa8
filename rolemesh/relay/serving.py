"""Accepting connections on listening sockets, from now until the scope is left."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

from rolemesh.relay.inbound import InboundServer
from rolemesh.runtime.listeners import BACKLOG

_ACCEPT_ROUNDS: Final = 4


class Accepting:
    """Accepts connections for `inbound` on sockets that may change; made by `accepting`."""

    def __init__(self, inbound: InboundServer) -> None:
        self._inbound = inbound
        self._servers: dict[socket.socket, asyncio.Server] = {}

    async def follow(self, listeners: Iterable[socket.socket]) -> None:
        """Accept on these from now on; a socket that is not among them any more is closed."""
        wanted = set(listeners)
        loop = asyncio.get_running_loop()
        for listener in wanted - self._servers.keys():
            self._servers[listener] = await loop.create_server(
                self._inbound, sock=listener, backlog=BACKLOG
            )
        gone = self._servers.keys() - wanted
        for listener in gone:
            loop.remove_reader(listener)
        # asyncio makes connections of what it has accepted over its next rounds, and some versions
        # of it drop those that come after the close.
        for _ in range(_ACCEPT_ROUNDS):
            await asyncio.sleep(0)
        for listener in gone:
            self._servers.pop(listener).close()


@asynccontextmanager
async def accepting(
    listeners: Iterable[socket.socket], inbound: InboundServer
) -> AsyncIterator[Accepting]:
    """Accept connections for `inbound`; on leaving, stop accepting and close the listeners.

    Accepted connections live on: `InboundServer.drain` ends them. What the kernel queues after
    that on a listener of which somebody has a duplicate waits there.
    """
    server = Accepting(inbound)
    try:
        await server.follow(listeners)
        yield server
    finally:
        await server.follow(())
