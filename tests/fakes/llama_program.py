#!/usr/bin/env python3
"""A llama-server that misbehaves on demand: its own options begin with --fake, all others are real.

--fake silent           never listens             --fake loading      answers 503 for ever
--fake mute             healthy, but 500 to every POST
--fake empty            healthy, but no result in any reply
--fake dies-on-first    healthy, and exits with status 9 on the first POST
--fake hangs-on-first   healthy, says that it begins, and never answers a POST
--fake deaf             SIGTERM has no effect
--fake talkative        loads for ever, saying so
--fake reads-for-ever   answers a chat with a head, as llama-server does when it begins to read the
                        prompt, and with nothing else
--fake wedged           a chat keeps its slot busy for ever, without a token
--fake slow             a chat's prompt is --fake-batches batches (default 8) of --fake-batch-s seconds
                        (default 1) each, which are counted as llama-server does: each at its end
--fake untelling        as `wedged`, and /slots is switched off
--fake greedy           a chat makes it take memory until there is none
--fake-dump FILE        writes its arguments and environment as JSON

To --help, --version and --list-devices it says nothing and fails, as a program does that knows none
of them.
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
BATCHES, BATCH_TOKENS = int(option("--fake-batches", "8")), 8
RESULTS = {"/v1/completions": "choices", "/v1/embeddings": "data", "/v1/rerank": "results"}


def say(line: str) -> None:
    """Write one line of log."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Slot:
    """The one slot, as GET /slots shows it."""

    def __init__(self) -> None:
        self.busy = False
        self.task = 0
        self.processed = 0

    def begin(self) -> None:
        self.busy, self.task, self.processed = True, self.task + 1, 0
        say(f"slot launch_slot_: id  0 | task {self.task} | processing task, is_child = 0")

    def row(self) -> dict[str, Any]:
        prompt = min(self.processed + BATCH_TOKENS, BATCHES * BATCH_TOKENS)
        return {
            "id": 0,
            "n_ctx": 4096,
            "is_processing": self.busy,
            "id_task": self.task,
            "n_prompt_tokens": prompt,
            "n_prompt_tokens_processed": self.processed,
            "next_token": [{"has_next_token": True, "n_remain": -1, "n_decoded": 0}],
        }


SLOT = Slot()


class Handler(BaseHTTPRequestHandler):
    def address_string(self) -> str:
        return "unix"

    def do_GET(self) -> None:
        if FAKE in {"loading", "talkative"}:
            self.reply(503, {"error": {"message": "Loading model", "code": 503}})
        elif self.path == "/slots" and FAKE == "untelling":
            self.reply(501, {"error": {"message": "This server does not support slots endpoint"}})
        elif self.path == "/slots":
            self.reply(200, [SLOT.row()])
        else:
            self.reply(200, {"status": "ok"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if FAKE == "hangs-on-first":
            say("slot launch_slot_: id  0 | task 0 | processing task")
            threading.Event().wait()
        if FAKE == "dies-on-first":
            say("what(): the first token was too much")
            os._exit(9)
        if FAKE == "reads-for-ever" and self.path == "/v1/chat/completions":
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            threading.Event().wait()
        if FAKE in {"wedged", "slow", "untelling"} and self.path == "/v1/chat/completions":
            self.chat()
            return
        if FAKE == "greedy" and self.path == "/v1/chat/completions":
            taken = []
            while True:
                taken.append(bytearray(b"x" * (16 << 20)))
        if FAKE == "mute":
            self.reply(500, {"error": {"message": "no kernel image is available"}})
            return
        self.reply(200, {RESULTS[self.path]: [] if FAKE == "empty" else [{"text": "a"}]})

    def chat(self) -> None:
        SLOT.begin()
        while FAKE != "slow":
            time.sleep(3600)
        for _ in range(BATCHES):
            time.sleep(float(option("--fake-batch-s", "1")))
            SLOT.processed += BATCH_TOKENS
        SLOT.busy = False
        self.reply(200, {"choices": [{"message": {"role": "assistant", "content": "done"}}]})

    def reply(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    if sys.argv[1:] in (["--help"], ["--version"]) or sys.argv[-1] == "--list-devices":
        sys.exit(1)
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
