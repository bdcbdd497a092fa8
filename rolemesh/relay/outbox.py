"""Writes of many connections, made together.

A write wakes up whoever waits at its other end, which costs more than the write itself. While many
requests are under way, all that one round of the event loop has to write is written at its end: the
first write wakes the other end up, and the next ones find it awake.
"""

import asyncio
from collections.abc import Sized
from typing import Final

from rolemesh.relay.members import Buffer

FEW: Final = 2
"""With so few requests under way nothing is gained, and half a round lost."""

LARGE_BYTES: Final = 16 * 1024
"""To copy a body of this size costs more than the rest of a write."""


class Outbox:
    """Bytes that are written soon, in order; `under_way` are the requests that are.

    What is for a transport that is closed by then is dropped.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, under_way: Sized) -> None:
        self._loop = loop
        self._under_way = under_way
        self._waiting: list[tuple[asyncio.WriteTransport, tuple[Buffer, ...]]] = []

    def write(self, transport: asyncio.WriteTransport, *buffers: Buffer) -> None:
        """Write, now or at the end of this round."""
        if self._waiting:
            self._waiting.append((transport, buffers))
            return
        self._waiting.append((transport, buffers))
        if len(self._under_way) <= FEW:
            self.flush()
        else:
            self._loop.call_soon(self.flush)

    def write_request(self, transport: asyncio.WriteTransport, head: bytes, body: Buffer) -> None:
        """Write head and body, joined only if that costs less than to hand on two buffers."""
        if len(body) < LARGE_BYTES:
            self.write(transport, b"".join((head, body)))
        else:
            self.write(transport, head, body)

    def flush(self) -> None:
        """Write all that waits; to be called before a transport is closed or handed on."""
        waiting, self._waiting = self._waiting, []
        for transport, buffers in waiting:
            if not transport.is_closing():
                if len(buffers) == 1:
                    transport.write(buffers[0])
                else:
                    transport.writelines(buffers)
