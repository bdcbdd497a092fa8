"""Accepting connections on listening sockets, from now until the scope is left."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from rolemesh.relay.inbound import InboundServer
from rolemesh.runtime.listeners import BACKLOG

HANDSHAKE_S: Final = 15.0
"""How long a client may take for its TLS handshake."""

GOODBYE_S: Final = 60.0
"""How long a client may take to read the rest and say that it has, as TLS wants it."""

_ACCEPT_ROUNDS: Final = 4


@dataclass(frozen=True, slots=True)
class _Server:
    """An asyncio server on a duplicate of a listener, which therefore outlives it."""

    own: socket.socket
    server: asyncio.Server
    tls: ssl.SSLContext | None


class Accepting:
    """Accepts connections for `inbound` on sockets that may change; made by `accepting`."""

    def __init__(self, inbound: InboundServer) -> None:
        self._inbound = inbound
        self._loop = asyncio.get_running_loop()
        self._servers: dict[socket.socket, _Server] = {}

    async def follow(
        self, listeners: Iterable[socket.socket], tls: ssl.SSLContext | None = None
    ) -> None:
        """Accept on these from now on, with `tls`; one that is not among them any more is closed.

        Connections that were accepted before stay as they are.
        """
        wanted = set(listeners)
        replaced = [
            served
            for listener, served in self._servers.items()
            if listener not in wanted or served.tls is not tls
        ]
        for listener in wanted:
            served = self._servers.get(listener)
            if served is None or served.tls is not tls:
                self._servers[listener] = await self._serve(listener, tls)
        await self._stop(replaced)
        for listener in self._servers.keys() - wanted:
            del self._servers[listener]
            listener.close()

    async def pause(self) -> None:
        """Accept nothing until `follow` is called; the kernel queues connections meanwhile."""
        paused, self._servers = tuple(self._servers.values()), {}
        await self._stop(paused)

    async def _stop(self, replaced: Collection[_Server]) -> None:
        for served in replaced:
            self._loop.remove_reader(served.own)
        # asyncio makes connections of what it has accepted over its next rounds, and some versions
        # of it drop those that come after the close.
        for _ in range(_ACCEPT_ROUNDS):
            await asyncio.sleep(0)
        for served in replaced:
            served.server.close()

    async def _serve(self, listener: socket.socket, tls: ssl.SSLContext | None) -> _Server:
        options: dict[str, Any] = {}
        if tls is not None:
            options = {
                "ssl": tls,
                "ssl_handshake_timeout": HANDSHAKE_S,
                "ssl_shutdown_timeout": GOODBYE_S,
            }
        own = listener.dup()
        factory = self._inbound if tls is None else self._inbound.secured
        server = await self._loop.create_server(factory, sock=own, backlog=BACKLOG, **options)
        return _Server(own, server, tls)


@asynccontextmanager
async def accepting(
    listeners: Iterable[socket.socket],
    inbound: InboundServer,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Accepting]:
    """Accept connections for `inbound`; on leaving, stop accepting and close the listeners.

    Accepted connections live on: `InboundServer.drain` ends them. What the kernel queues after
    that on a listener of which somebody has a duplicate waits there.
    """
    server = Accepting(inbound)
    try:
        await server.follow(listeners, tls)
        yield server
    finally:
        await server.follow(())
