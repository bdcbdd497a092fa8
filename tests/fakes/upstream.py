"""An HTTP upstream that does exactly what a test says, byte by byte, over a real socket."""

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from rolemesh.address import UpstreamAddress

EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED_STREAM = EVENT_STREAM + b"Transfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


class Conversation:
    """One request that has arrived whole, and the means to answer it."""

    def __init__(
        self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.head = head
        self.body = body
        self._reader = reader
        self._writer = writer
        self.sent_bytes = 0

    @property
    def method_and_path(self) -> str:
        return self.head.partition(b" HTTP/")[0].decode()

    @property
    def fields(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").rstrip("\r\n").split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def send(self, *pieces: bytes) -> None:
        """Send pieces so that the other side gets one after another."""
        for piece in pieces:
            self._writer.write(piece)
            self.sent_bytes += len(piece)
            await self._writer.drain()
            for _ in range(2):  # the other side reads after this one has been woken once
                await asyncio.sleep(0)

    async def hung_up(self) -> None:
        """Wait until the other side closes."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            return

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        """Close with a TCP reset."""
        own_socket = self._writer.get_extra_info("socket")
        own_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Script = Callable[[Conversation], Awaitable[None]]


class Upstream:
    """A listening upstream; `conversations` are the POSTs it got, in order."""

    def __init__(self, scripts: tuple[Script, ...], probe: Script) -> None:
        self.scripts = list(scripts)
        self.probe = probe
        self.conversations: list[Conversation] = []
        self.probes = 0
        self.accepted = 0
        self.port = 0
        self.scheme = "http"
        self.writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def address(self) -> UpstreamAddress:
        return UpstreamAddress.parse_url(self.url)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.writers.add(writer)
        try:
            while not writer.is_closing():
                await self._serve_one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        conversation = Conversation(head, b"", reader, writer)
        length = int(conversation.fields.get("content-length", "0"))
        conversation.body = await reader.readexactly(length)
        if head.startswith(b"GET "):
            self.probes += 1
            await self.probe(conversation)
            return
        self.conversations.append(conversation)
        script = self.scripts[0] if len(self.scripts) == 1 else self.scripts.pop(0)
        await script(conversation)


@asynccontextmanager
async def upstream(
    *scripts: Script, probe: Script | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Upstream]:
    """Listen for the length of the block: each POST plays the next script, the last for ever.

    `probe` answers every GET, by default with 200. With `tls` it is an https:// upstream.
    """
    fake = Upstream(scripts, probe or answers(b'{"status": "ok"}'))
    fake.scheme = "http" if tls is None else "https"
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0, ssl=tls)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.close()
        for writer in tuple(fake.writers):
            writer.transport.abort()


# --- scripts ----------------------------------------------------------------------------------


def sends(*pieces: bytes) -> Script:
    """Send pieces, and wait for the next request."""

    async def script(conversation: Conversation) -> None:
        await conversation.send(*pieces)

    return script


def sends_and_closes(*pieces: bytes) -> Script:
    async def script(conversation: Conversation) -> None:
        await conversation.send(*pieces)
        conversation.close()

    return script


def sends_and_resets(*pieces: bytes) -> Script:
    async def script(conversation: Conversation) -> None:
        await conversation.send(*pieces)
        conversation.reset()

    return script


def sends_and_hangs(*pieces: bytes) -> Script:
    """Send pieces, then nothing until the other side closes."""

    async def script(conversation: Conversation) -> None:
        await conversation.send(*pieces)
        await conversation.hung_up()

    return script


def answers(body: bytes, status: int = 200, *, fields: bytes = b"") -> Script:
    """Answer with a whole JSON reply."""
    return sends(reply(body, status, fields=fields))


# --- what goes over the wire ------------------------------------------------------------------


def reply(body: bytes, status: int = 200, *, fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Some Text\r\nContent-Type: application/json\r\n%b%b%d\r\n\r\n%b" % (
        status,
        fields,
        b"Content-Length: ",
        len(body),
        body,
    )


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def every_byte(data: bytes) -> Iterable[bytes]:
    return (data[index : index + 1] for index in range(len(data)))
