"""An operator API, a gateway's or an agent's, that says what a test tells it to."""

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


class Lines(tuple[Any, ...]):
    """JSON lines, one after another; a threading.Event among them is waited for.

    The connection is cut in the middle of the body after a None.
    """

    __slots__ = ()


@dataclass(slots=True)
class OperatorApi:
    """`replies` by "METHOD path?query", the path below /v1/rolemesh or else a whole one.

    `asked`, `keys` and `bodies` are what came.

    A reply is a tree, or (status, tree), or bytes that are sent as they are, or Lines; a list of
    them is gone through, and its last one stays.
    """

    url: str
    replies: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)

    def refuse(self, what: str, status: int, message: str, **more: Any) -> None:
        self.replies[what] = (status, {"error": {"message": message, "status": status, **more}})


class _Handler(BaseHTTPRequestHandler):
    """Answers as the OperatorApi that the server has."""

    def answer(self) -> None:
        assert isinstance(self.server, _UnixServer | _TcpServer)
        api = self.server.api
        what = f"{self.command} {self.path.partition('/v1/rolemesh/')[2] or self.path}"
        api.asked.append(what)
        length = int(self.headers.get("Content-Length", "0"))
        api.bodies.append(json.loads(self.rfile.read(length) or b"null"))
        api.keys.append(self.headers.get("Authorization", ""))
        missing = (404, {"error": {"message": f"there is no {what}", "status": 404}})
        reply = api.replies.get(what, missing)
        if isinstance(reply, list):
            reply = reply.pop(0) if len(reply) > 1 else reply[0]
        if isinstance(reply, Lines):
            self.send_lines(reply)
            return
        status, tree = reply if isinstance(reply, tuple) else (200, reply)
        body = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_lines(self, lines: Lines) -> None:
        self.protocol_version = "HTTP/1.1"
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            if isinstance(line, threading.Event):
                line.wait(10)
            elif line is None:
                return
            else:
                data = json.dumps(line).encode() + b"\n"
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")

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
