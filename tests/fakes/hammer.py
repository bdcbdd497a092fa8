"""Clients that connect, ask, read the answer and connect again, all the time."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

ASK = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
CLIENTS = 4


@dataclass(slots=True)
class Tally:
    """What came of it: `broken` connections were accepted, and ended without an answer."""

    answered: int = 0
    refused: int = 0
    broken: list[str] = field(default_factory=list)
    longest_s: float = 0.0


@asynccontextmanager
async def hammering(
    port: int, ask: bytes = ASK, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Tally]:
    """Hammer for the length of the block; every request begun is waited for."""
    tally, going = Tally(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(_client(port, ask, tls, tally, going))
        try:
            yield tally
        finally:
            going.set()


async def _client(
    port: int, ask: bytes, tls: ssl.SSLContext | None, tally: Tally, enough: asyncio.Event
) -> None:
    while not enough.is_set():
        begun = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        except ConnectionRefusedError:
            tally.refused += 1
            await asyncio.sleep(0.002)
            continue
        except OSError as err:  # in the handshake
            tally.broken.append(str(err))
            continue
        try:
            writer.write(ask)
            answer = await reader.read()
            if answer.startswith(b"HTTP/1.1 "):
                tally.answered += 1
            else:
                tally.broken.append(f"closed after {time.monotonic() - begun:.3f} s")
        except OSError as err:
            tally.broken.append(str(err))
        finally:
            writer.close()
        tally.longest_s = max(tally.longest_s, time.monotonic() - begun)
