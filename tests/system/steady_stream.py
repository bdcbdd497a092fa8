"""A server at the client's place, for gateways, that costs next to nothing.

It answers at once, and its streams go on at an even pace until they shall end.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.lab.private_network import CLIENT, PrivateNetwork
from tests.system.mesh import Mesh

PORT = 9000
ALIAS = "steady"
PACE_S = 0.02


class _Server(ThreadingHTTPServer):
    """Serves on a socket that is there already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, over: threading.Event) -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.over = over


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._plain({})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked.get("stream"):
            self._stream()
        else:
            self._plain({"choices": [{"index": 0, "message": {"content": "at once"}}]})

    def _plain(self, what: object) -> None:
        self._begin("application/json")
        self.wfile.write(json.dumps(what).encode())

    def _stream(self) -> None:
        self._begin("text/event-stream")
        assert isinstance(self.server, _Server)
        while not self.server.over.wait(PACE_S):
            self._event(json.dumps({"choices": [{"index": 0, "delta": {"content": "on "}}]}))
        self._event("[DONE]")

    def _begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def _event(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def steady_server(network: PrivateNetwork, over: threading.Event) -> Iterator[str]:
    """Serve for the length of the block; yields the URL. Streams end when `over` is set."""
    address = (network.address(CLIENT), PORT)
    listener = network.from_client(lambda: socket.create_server(address))
    server = _Server(listener, over)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{address[0]}:{address[1]}"
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(slots=True)
class Streamed:
    """A stream, as its client has seen it so far; the client leaves when `enough` is set."""

    events: int = 0
    longest_gap_s: float = 0.0
    last: bytes = field(default=b"", repr=False)
    ended_s: float = 0.0  # on the monotonic clock
    enough: threading.Event = field(default_factory=threading.Event, repr=False)


def read_stream(mesh: Mesh, alias: str, seen: Streamed) -> None:
    """Read a stream to its end, or until it is enough, and note what comes in `seen`."""
    connection = mesh.connect()
    reply = connection.stream(alias)
    before = time.monotonic()
    for line in reply:
        if line.strip():
            now = time.monotonic()
            seen.events += 1
            seen.longest_gap_s = max(seen.longest_gap_s, now - before)
            seen.last, before = line.strip(), now
        if seen.enough.is_set():
            break
    reply.close()
    connection.close()
    seen.ended_s = time.monotonic()
