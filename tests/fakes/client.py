"""An HTTP client that sends exactly the bytes a test says, and shows exactly what comes back."""

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One reply; `raw_body` is as it came, `body` without chunk framing."""

    head: bytes
    raw_body: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def fields(self) -> dict[str, str]:
        """Headers by lower-case name; several of one name are joined by " | "."""
        found: dict[str, str] = {}
        for line in self.head.decode("latin-1").rstrip("\r\n").split("\r\n")[1:]:
            name, _, value = line.partition(": ")
            name = name.lower()
            found[name] = f"{found[name]} | {value}" if name in found else value
        return found

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        return error


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Send pieces so that the other side gets one after another."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            for _ in range(2):  # the other side reads after this one has been woken once
                await asyncio.sleep(0)

    async def post(self, path: str, body: bytes, *fields: str) -> Received:
        await self.send(post(path, body, *fields))
        return await self.reply()

    async def get(self, path: str, *fields: str) -> Received:
        await self.send(request("GET", path, *fields))
        return await self.reply()

    async def reply(self) -> Received:
        """Return the next reply, read to its end by its own framing."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        fields = Received(head=head, raw_body=b"", body=b"").fields
        if "content-length" in fields:
            body = await self.reader.readexactly(int(fields["content-length"]))
            return Received(head=head, raw_body=body, body=body)
        if "transfer-encoding" in fields:
            return await self._chunked(head)
        rest = await self.rest()
        return Received(head=head, raw_body=rest, body=rest)

    async def _chunked(self, head: bytes) -> Received:
        raw, body = b"", b""
        while size := int(line := await self._line(), 16):
            data = await self.reader.readexactly(size + 2)
            raw, body = raw + line + data, body + data[:-2]
        while line != b"\r\n":
            raw, line = raw + line, await self._line()
        return Received(head=head, raw_body=raw + line, body=body)

    async def _line(self) -> bytes:
        return await self.reader.readuntil(b"\r\n")

    async def rest(self) -> bytes:
        """Return everything up to the end of the connection; raises ConnectionError on a reset."""
        return await self.reader.read()

    def half_close(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        own_socket = self.writer.get_extra_info("socket")
        own_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@asynccontextmanager
async def connected(
    port: int, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Client]:
    """Connect for the length of the block."""
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 24, ssl=tls)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


def request(method: str, path: str, *fields: str) -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", *fields)
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"


def post(path: str, body: bytes, *fields: str) -> bytes:
    return request("POST", path, *fields, f"Content-Length: {len(body)}") + body


async def ask(port: int, path: str, body: bytes, *fields: str) -> Received:
    """POST on a connection of its own."""
    async with connected(port) as client:
        return await client.post(path, body, *fields)
