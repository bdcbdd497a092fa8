"""A gateway that is sent what nobody thought of: from its OpenAPI document, and as raw bytes.

Whatever comes, it answers with what it is documented to answer, or closes; it never fails inside,
never hangs, and does not grow. `FUZZ_EXAMPLES=N` sends N examples to each test (150 by default);
the same N is the same examples.
"""

import asyncio
import json
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fakes import openapi
from tests.fakes.upstream import (
    CHUNKED_STREAM,
    LAST_CHUNK,
    Conversation,
    answers,
    chunk,
    reply,
    upstream,
)
from tests.integration.conftest import StartDaemon
from tests.lab.mesh import Daemon

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3600)]

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
DEADLINE_S = 10.0
"""Within so many seconds every request is answered, or its connection closed."""

GROWTH_BYTES = 8 << 20
"""What a gateway may grow by, caches and fragments included, whatever the number of examples."""

KEYS = ("admin-key", "client-key", "node-key")
AUTH = {
    "clients": {
        "ops": {"key": KEYS[0], "admin": True},
        "ci": {"key": KEYS[1], "roles": ["coder"]},
    },
    "nodes": {"box": {"key": KEYS[2]}},
}
ANSWER = b'{"object": "chat.completion"}'
CHAT = "/v1/chat/completions"
OURS = {502, 503, 504}
"""The only statuses from 500 on."""

examples = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Target:
    """A gateway as a program of its own; `script` is what its upstream does."""

    daemon: Daemon
    upstream_url: str
    script: Callable[[Conversation], Any]
    baseline: int = field(default=0)

    @property
    def port(self) -> int:
        return int(self.daemon.url.rpartition(":")[2])

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.daemon.program.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert match is not None
        return int(match[1]) * 1024

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S) as connection:
            yield connection

    def is_well(self) -> None:
        """Assert that a good request is still answered, whatever was sent before."""
        body = b'{"model": "coder", "messages": []}'
        data = head("POST", CHAT, {"X-Api-Key": KEYS[1], "Content-Length": str(len(body))}) + body
        with self.connected() as connection:
            connection.sendall(data)
            assert read_reply(connection).status == 200


@dataclass(frozen=True)
class Answer:
    status: int
    fields: dict[str, str]
    body: bytes


def head(method: str, target: str, fields: dict[str, str]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join((*lines, "\r\n")).encode("latin-1")


def read_reply(connection: socket.socket) -> Answer:
    """Read one reply; a timeout is a failure of the gateway."""
    file = connection.makefile("rb")
    status_line = file.readline()
    match = re.fullmatch(rb"HTTP/1\.1 ([0-9]{3}) [ -~]*\r\n", status_line)
    assert match is not None, status_line
    fields = {}
    while (line := file.readline()) != b"\r\n":
        name, _, value = line.decode("latin-1").rstrip("\r\n").partition(": ")
        fields[name.lower()] = value
    if "content-length" in fields:
        body = file.read(int(fields["content-length"]))
    else:
        with suppress(ConnectionError):
            body = file.read()
    return Answer(int(match[1]), fields, body)


def read_to_end(connection: socket.socket, received: bytearray) -> None:
    """Add what comes up to the end of the connection; raises TimeoutError."""
    with suppress(ConnectionError):
        while data := connection.recv(65536):
            received += data


@pytest.fixture
async def target(start_gateway: StartDaemon) -> AsyncIterator[Target]:
    """Start a gateway before a scripted upstream; at its end it must be well, and not larger."""

    async def play(conversation: Conversation) -> None:
        await found.script(conversation)

    async with upstream(play) as fake:
        entry = {
            "type": "proxy",
            "proxy_url": fake.url,
            "timeouts": {"first_byte_s": 0.3, "idle_s": 0.3},
        }
        daemon = await start_gateway(
            {
                "auth": AUTH,
                "models": {"coder": entry, "later": {"type": "discovered"}},
                "default_model": "coder",
                "cors": {"allow_origins": ["https://chat.example"]},
                "limits": {"header_timeout_s": 1, "max_body_bytes": 65536, "max_queue_wait_s": 0},
            }
        )
        found = Target(daemon, fake.url, answers(ANSWER))
        yield found
        found.script = answers(ANSWER)
        await asyncio.to_thread(found.is_well)
        assert found.resident_bytes() - found.baseline < GROWTH_BYTES
        log = "\n".join(daemon.program.lines())
        assert "failed inside RoleMesh" not in log, log[-5000:]
        assert "Traceback" not in log, log[-5000:]


async def fuzz(target: Target, run: Callable[[], None]) -> None:
    """Run all examples twice, so that what was cached the first time is no growth."""
    await asyncio.to_thread(run)
    target.baseline = target.resident_bytes()
    await asyncio.to_thread(run)


# --- requests that follow the document, more or less ------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["coder", "later", "box", "none", "a/b", "x" * 300, "%", "..", "\u20ac"])
SANE_ID = st.from_regex(r"[A-Za-z0-9._:-]{1,20}", fullmatch=True)
IN_A_HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"))


def body_of(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Return what makes instances of a schema of the document; of the keywords that stand there."""
    schema = openapi.resolved(schema)
    if "anyOf" in schema:
        each = [body_of(kind) for kind in schema["anyOf"]]
        return st.one_of(*each)
    if "allOf" in schema:
        return body_of(schema["allOf"][0])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "pattern" in schema:
        return st.from_regex(schema["pattern"])
    kinds = schema.get("type", "any")
    if isinstance(kinds, list):
        each = [body_of({**schema, "type": kind}) for kind in kinds]
        return st.one_of(*each)
    if kinds == "object":
        properties = schema.get("properties", {})
        required = {name: body_of(properties[name]) for name in schema.get("required", ())}
        others = {name: body_of(properties[name]) for name in properties if name not in required}
        return st.fixed_dictionaries(required, optional=others)
    if kinds == "array":
        return st.lists(body_of(schema["items"]), max_size=3)
    return SIMPLE.get(kinds, JSON)


SIMPLE: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "boolean": st.booleans(),
    "integer": st.integers() | st.integers(-2, 9),
    "number": st.floats() | st.integers(),
    "string": st.text(),
}


@st.composite
def asked(draw: st.DrawFn, upstream_url: str) -> tuple[str, str, dict[str, str], bytes]:
    """Return method, target, headers and body of a request that the document knows of."""
    method, path, operation = draw(st.sampled_from(list(openapi.operations())))
    parts = re.split(r"\{\w+\}", path)
    real = parts[0] + "".join(quote(draw(NAMES), safe="") + part for part in parts[1:])
    queries = [each["name"] for each in operation["parameters"] if each.get("in") == "query"]
    query = {name: draw(NAMES | st.just("key")) for name in queries if draw(st.booleans())}
    fields = {"X-Api-Key": draw(st.sampled_from([*KEYS, KEYS[0], "wrong"]))}
    fields["X-Request-Id"] = draw(SANE_ID | IN_A_HEADER).strip()
    if draw(st.booleans()):
        fields["Origin"] = draw(st.sampled_from(["https://chat.example", "null", "x"]))
    data = b""
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        tree = draw(body_of(schema) | JSON)
        if isinstance(tree, dict):
            if draw(st.booleans()):
                tree["model"] = draw(NAMES)
            if "base_url" in tree:  # no name is looked up, no stranger is called
                bad = ["", "http://", "http://[", "ftp://x", "http://127.0.0.1:99999", "/"]
                tree["base_url"] = draw(st.sampled_from([upstream_url, upstream_url, *bad]))
                tree["node_id"] = draw(st.sampled_from(["box", "b", "", "a b", tree["node_id"]]))
        data = json.dumps(tree).encode()
        data = draw(st.sampled_from([data, data, data, data[:-1], b"[" * 9999, b"\xff" + data]))
        fields["Content-Length"] = str(len(data))
    return method, f"{real}?{urlencode(query)}" if query else real, fields, data


async def test_whatever_is_asked_by_the_document_is_answered_as_it_says(target: Target) -> None:
    @examples
    @given(asked(target.upstream_url))
    def run(example: tuple[str, str, dict[str, str], bytes]) -> None:
        method, path, fields, body = example
        with target.connected() as connection:
            connection.sendall(head(method, path, fields) + body)
            answer = read_reply(connection)
        said = openapi.operation_of(method, path)
        openapi.check(said, answer.status, answer.fields, answer.body)
        wanted = fields["X-Request-Id"]
        if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", wanted):
            assert answer.fields["x-request-id"] == wanted

    await fuzz(target, run)


# --- raw bytes --------------------------------------------------------------------------------

BODY = b'{"model": "coder", "stream": true, "messages": []}'
LENGTH = {"X-Api-Key": KEYS[1], "Content-Length": str(len(BODY))}
CHUNKED = {"X-Api-Key": KEYS[1], "Transfer-Encoding": "chunked"}
GOOD = [
    head("GET", "/health", {}),
    head("GET", "/v1/models", {"X-Api-Key": KEYS[1]}),
    head("OPTIONS", CHAT, {"Origin": "https://chat.example"}),
    head("HEAD", "/ready", {}),
    head("POST", CHAT, LENGTH) + BODY,
    head("POST", CHAT, {**LENGTH, "Expect": "100-continue"}) + BODY,
    head("POST", CHAT, CHUNKED) + chunk(BODY[:9]) + chunk(BODY[9:]) + LAST_CHUNK,
    head("POST", "/v1/nodes/register", {"X-Api-Key": KEYS[2], "Content-Length": "2"}) + b"{}",
    head("POST", "/v1/nodes/box/heartbeat", CHUNKED) + chunk(b"{}") + LAST_CHUNK,
    head("DELETE", "/v1/rolemesh/requests/x", {"X-Api-Key": KEYS[0]}),
]
INSERTED = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b" ",
    b"\t",
    b":",
    b",",
    b"%",
    b"//",
    b"\xff",
    b"\r\n\r\n",
    b"\r\n folded",
    b"\r\nContent-Length: 3",
    b"\r\nTransfer-Encoding: chunked",
    b"\r\nTransfer-Encoding: identity",
    b"\r\nConnection: close",
    b"\r\nUpgrade: h2c",
    b"\r\nExpect: x",
    b"\r\nHost: a",
    b" HTTP/1.0\r\n",
    b"http://a.example",
    b"7fffffffffffffff",
    b"0\r\n\r\n",
    b"X: " + b"a" * 70_000,
]


@st.composite
def mutated(draw: st.DrawFn, good: list[bytes]) -> bytes:
    """Return some of what is good, cut, repeated and with other bytes in it."""
    data = b"".join(draw(st.lists(st.sampled_from(good), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 12)))
        middle = draw(st.sampled_from(INSERTED) | st.binary(max_size=6) | st.just(data[at:to] * 2))
        data = data[:at] + middle + data[draw(st.sampled_from([at, to])) :]
    return data


REPLY_HEAD = re.compile(rb"(?:^|\n|\})HTTP/1\.[01] ([0-9]{3}) ")


async def test_whatever_bytes_come_they_are_answered_or_the_connection_closes(
    target: Target,
) -> None:
    @examples
    @given(mutated(GOOD) | st.binary(max_size=200), st.integers(1, 3), st.booleans())
    def run(data: bytes, pieces: int, waits: bool) -> None:
        received = bytearray()
        step = -(-len(data) // pieces) or 1
        with target.connected() as connection:
            with suppress(OSError):  # it may have been refused, and closed, before its end
                for at in range(0, len(data), step):
                    connection.sendall(data[at : at + step])
                if waits:
                    connection.settimeout(0.05)
                    with suppress(TimeoutError):
                        read_to_end(connection, received)
                    connection.settimeout(DEADLINE_S)
                connection.shutdown(socket.SHUT_WR)
            read_to_end(connection, received)
        assert_fit(bytes(received))

    await fuzz(target, run)


def assert_fit(received: bytes) -> None:
    statuses = {int(status) for status in REPLY_HEAD.findall(received)}
    assert {status for status in statuses if status >= 500} <= OURS, received
    if received:
        assert REPLY_HEAD.match(received), received


# --- upstreams --------------------------------------------------------------------------------

EVENTS = b'data: {"choices": []}\n\n'
SAID = [
    reply(ANSWER),
    reply(b'{"error": {"message": "no"}}', 400),
    reply(b'{"error": {"message": "no"}}', 503),
    reply(ANSWER, fields=b"Connection: close\r\n"),
    b"HTTP/1.1 100 Continue\r\n\r\n" + reply(ANSWER),
    CHUNKED_STREAM + chunk(EVENTS) + chunk(EVENTS) + LAST_CHUNK,
    CHUNKED_STREAM + chunk(b": ping\n\n") + chunk(EVENTS + b"data: [DONE]\n\n") + LAST_CHUNK,
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + EVENTS,
    b"HTTP/1.1 204 No Content\r\n\r\n",
]


async def test_whatever_an_upstream_says_the_client_gets_an_answer_or_a_broken_connection(
    target: Target,
) -> None:
    number = 0

    @examples
    @given(mutated(SAID) | st.binary(max_size=200), st.booleans(), st.booleans())
    def run(said: bytes, closes: bool, streams: bool) -> None:
        nonlocal number
        number += 1  # the same body twice is refused once it has broken an upstream

        async def script(conversation: Conversation) -> None:
            await conversation.send(said)
            if closes:
                conversation.close()

        target.script = script
        tree = {"model": "coder", "stream": streams, "seed": number}
        body = json.dumps(tree).encode()
        with target.connected() as connection:
            fields = {"X-Api-Key": KEYS[1], "Content-Length": str(len(body))}
            connection.sendall(head("POST", CHAT, {**fields, "Connection": "close"}) + body)
            received = bytearray()
            read_to_end(connection, received)
        status = REPLY_HEAD.match(received)
        assert status is not None, received
        assert int(status[1]) < 500 or int(status[1]) in OURS
        target.script = answers(ANSWER)
        target.is_well()  # also for the breaker, which would hide the upstream

    await fuzz(target, run)
