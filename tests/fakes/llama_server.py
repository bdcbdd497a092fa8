"""A llama-server, small: answers on a UNIX socket as a test says."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any


class FakeLlamaServer:
    """Answers every request with `answer`; while `hold` is clear, requests wait.

    A request for a stream is answered with `events`, if there are any, and that for a completion
    with [DONE] at the end.
    `requests` are path, headers (names in lower case) and body of each; `left` counts the clients
    that went before their answer.
    """

    def __init__(self) -> None:
        self.status = 200
        self.answer: dict[str, Any] = {"object": "chat.completion"}
        self.events: list[dict[str, Any]] = []
        self.requests: list[tuple[str, Mapping[str, str], dict[str, Any]]] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.left = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._answer_one(reader, writer):
                pass
        writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().splitlines()
        pairs = (line.split(": ", 1) for line in lines)
        headers = {name.lower(): value for name, value in pairs}
        body = await reader.readexactly(int(headers["content-length"]))
        self.requests.append((first.split()[1], headers, json.loads(body)))
        if not await self._hold(reader):
            self.left += 1
            return False
        content, kind = json.dumps(self.answer).encode(), b"application/json"
        if self.events and self.requests[-1][2].get("stream"):
            last = ["[DONE]"] if self.requests[-1][0].endswith("completions") else []
            events = [*map(json.dumps, self.events), *last]
            content = "".join(f"data: {event}\n\n" for event in events).encode()
            kind = b"text/event-stream"
        writer.write(
            b"HTTP/1.1 %d Whatever\r\nContent-Type: %b\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (self.status, kind, len(content), content)
        )
        await writer.drain()
        return True

    async def _hold(self, reader: asyncio.StreamReader) -> bool:
        """Wait until answers may go; tells whether the client is still there."""
        while not self.hold.is_set():
            if reader.at_eof():
                return False
            # The end of a stream wakes only who reads, and a reader would eat the next request.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.hold.wait(), timeout=0.01)
        return True


@asynccontextmanager
async def fake_llama_server(server: FakeLlamaServer, socket: Path) -> AsyncIterator[None]:
    """Serve at a socket path."""
    socket.parent.mkdir(exist_ok=True)
    listener = await asyncio.start_unix_server(server.serve, socket)
    try:
        yield
    finally:
        listener.close()
