"""A gateway's operator API that says what a test tells it to, on a socket or a port."""

import json
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class OperatorApi:
    """`replies` by "METHOD /path?query" below /v1/rolemesh; `asked` and `keys` are what came.

    A reply is a tree, or (status, tree), or bytes that are sent as they are; a list of them is
    gone through, and its last one stays.
    """

    url: str
    replies: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def refuse(self, what: str, status: int, message: str, **more: Any) -> None:
        self.replies[what] = (status, {"error": {"message": message, "status": status, **more}})


class _Handler(BaseHTTPRequestHandler):
    """Answers as the OperatorApi that the server has."""

    def answer(self) -> None:
        assert isinstance(self.server, _UnixServer | _TcpServer)
        api = self.server.api
        what = f"{self.command} {self.path.partition('/v1/rolemesh/')[2]}"
        api.asked.append(what)
        api.keys.append(self.headers.get("Authorization", ""))
        missing = (404, {"error": {"message": f"there is no {what}", "status": 404}})
        reply = api.replies.get(what, missing)
        if isinstance(reply, list):
            reply = reply.pop(0) if len(reply) > 1 else reply[0]
        status, tree = reply if isinstance(reply, tuple) else (200, reply)
        body = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_DELETE(self) -> None:
        self.answer()

    def address_string(self) -> str:
        return "-"

    def log_message(self, *_: Any) -> None:
        pass


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    api: OperatorApi


class _TcpServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    api: OperatorApi


@contextmanager
def operator_api(
    socket: Path | None = None, *, tls: ssl.SSLContext | None = None
) -> Iterator[OperatorApi]:
    """Serve for the length of the block: at `socket`, or at a free port of 127.0.0.1."""
    server: _UnixServer | _TcpServer
    if socket is not None:
        server = _UnixServer(str(socket), _Handler)
        url = f"unix:{socket}"
    else:
        server = tcp = _TcpServer(("127.0.0.1", 0), _Handler)
        url = f"http://127.0.0.1:{tcp.server_address[1]}"
        if tls is not None:
            tcp.socket = tls.wrap_socket(tcp.socket, server_side=True)
            url = url.replace("http", "https")
    api = OperatorApi(url=url)
    server.api = api
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
