#!/usr/bin/env python3
"""A llama-server that misbehaves on demand: its own options begin with --fake, all others are real.

--fake silent           never listens             --fake loading      answers 503 for ever
--fake mute             healthy, but 500 to every POST
--fake empty            healthy, but no result in any reply
--fake dies-on-first    healthy, and exits with status 9 on the first POST
--fake deaf             SIGTERM has no effect
--fake talkative        loads for ever, saying so
--fake reads-for-ever   answers a chat with a head, as llama-server does when it begins to read the
                        prompt, and with nothing else
--fake-dump FILE        writes its arguments and environment as JSON
"""

import json
import os
import signal
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any


def option(name: str, default: str = "") -> str:
    """Return the value after the last option of this name."""
    values = [value for each, value in zip(sys.argv, sys.argv[1:], strict=False) if each == name]
    return values[-1] if values else default


FAKE = option("--fake")
RESULTS = {"/v1/completions": "choices", "/v1/embeddings": "data", "/v1/rerank": "results"}


def say(line: str) -> None:
    """Write one line of log."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Handler(BaseHTTPRequestHandler):
    def address_string(self) -> str:
        return "unix"

    def do_GET(self) -> None:
        if FAKE in {"loading", "talkative"}:
            self.reply(503, {"error": {"message": "Loading model", "code": 503}})
        else:
            self.reply(200, {"status": "ok"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if FAKE == "dies-on-first":
            say("what(): the first token was too much")
            os._exit(9)
        if FAKE == "reads-for-ever" and self.path == "/v1/chat/completions":
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            threading.Event().wait()
        if FAKE == "mute":
            self.reply(500, {"error": {"message": "no kernel image is available"}})
            return
        self.reply(200, {RESULTS[self.path]: [] if FAKE == "empty" else [{"text": "a"}]})

    def reply(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    if FAKE == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if dump := option("--fake-dump"):
        Path(dump).write_text(json.dumps({"argv": sys.argv[1:], "environment": dict(os.environ)}))
    if FAKE == "silent":
        signal.pause()
    server = socketserver.ThreadingUnixStreamServer(option("--host"), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while FAKE == "talkative":
        say("still loading")
        time.sleep(0.02)
    signal.pause()


if __name__ == "__main__":
    main()
