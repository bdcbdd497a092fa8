"""HTTP as it comes off the network, at the edge of a whole gateway and of a whole agent.

What stands in a head and how a body is framed is tried in detail beside the modules that read them;
here is what must hold whatever reads it: who sends nonsense gets one JSON error and a closed
connection, nothing of it reaches an upstream, and nothing that is meant for one hop crosses it.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rolemesh.config.settings import ClientKey
from rolemesh.runtime.keys import digest_of
from rolemesh.runtime.tasks import TaskScope
from tests.agent.builders import desired, model, node_settings
from tests.agent.stage import open_agent
from tests.fakes.client import Client, Received, connected, post, request
from tests.fakes.upstream import (
    CHUNKED_STREAM,
    LAST_CHUNK,
    answers,
    chunk,
    reply,
    sends,
    upstream,
)
from tests.gateway.harness import CHAT, running_gateway

KEY = "a-client-key"
SENT_KEY = f"Authorization: Bearer {KEY}"
MODEL = "coder"
BODY = json.dumps({"model": MODEL, "messages": []}).encode()
ANSWER = {"object": "chat.completion"}
DEADLINE_S = 20


@dataclass(frozen=True, slots=True)
class Edge:
    """A daemon with something behind it; `passed` gives the heads that came there so far."""

    port: int
    passed: Callable[[], list[dict[str, str]]]

    async def sent(self, data: bytes) -> list[Received]:
        """Send bytes on a connection of their own; returns the replies, of which the last closes."""
        async with connected(self.port) as client, asyncio.timeout(DEADLINE_S):
            await client.send(data)
            found = [await self.reply(client)]
            while found[-1].fields.get("connection") != "close":
                found.append(await self.reply(client))
            assert await client.rest() == b""
            return found

    async def reply(self, client: Client) -> Received:
        """Return the next reply, which must be one of ours, whatever was sent."""
        found = await client.reply()
        assert found.head.startswith(b"HTTP/1.1 ")
        request_id = found.fields["x-request-id"]
        assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", request_id)
        assert found.status < 500
        if found.status >= 400:
            assert found.fields["content-type"] == "application/json; charset=utf-8"
            assert found.error["request_id"] == request_id
            assert found.error["status"] == found.status
        return found


@asynccontextmanager
async def gateway_edge(folder: Path, **limits: Any) -> AsyncIterator[Edge]:
    async with upstream(answers(json.dumps(ANSWER).encode())) as fake:
        configuration = {
            "auth": {"client_api_keys": [KEY]},
            "models": {MODEL: {"type": "proxy", "proxy_url": fake.url}},
            "limits": limits,
        }
        async with running_gateway(folder, configuration) as gateway:
            yield Edge(gateway.port, lambda: [each.fields for each in fake.conversations])


@asynccontextmanager
async def agent_edge(folder: Path) -> AsyncIterator[Edge]:
    key = ClientKey(name="ci", digest=digest_of(KEY))
    settings = node_settings(model(MODEL), auth=(key,))
    async with open_agent(folder, settings, desired("gpu0", MODEL)) as stage:
        base_url = stage.http._base_url
        assert base_url is not None
        port = base_url.port or 0
        yield Edge(port, lambda: [dict(headers) for _, headers, _ in stage.llama.requests])


@pytest.fixture(params=[gateway_edge, agent_edge], ids=["gateway", "agent"])
async def edge(request: pytest.FixtureRequest, short_path: Path) -> AsyncIterator[Edge]:
    async with request.param(short_path) as edge:
        yield edge


def asks(path: str, *lines: str, version: str = "1.1") -> bytes:
    """Return a head with these lines and no others than Host and the key."""
    start = f"POST {path} HTTP/{version}", "Host: localhost", SENT_KEY, *lines
    return "".join(f"{line}\r\n" for line in start).encode("latin-1") + b"\r\n"


CHUNKED = "Transfer-Encoding: chunked"
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
PATHS = [CHAT, "/chat/completions", "/health", "/v1/nodes/register", "/nowhere"]

AMBIGUOUS = [
    ((LENGTH, CHUNKED), CHUNKS),
    ((CHUNKED, LENGTH), CHUNKS),
    ((CHUNKED, CHUNKED), CHUNKS),
    ((f"{CHUNKED}, chunked",), CHUNKS),
    (("Transfer-Encoding: gzip, chunked",), CHUNKS),
    (("Transfer-Encoding: chunked, identity",), CHUNKS),
    (("Transfer-Encoding:\x0bchunked",), CHUNKS),
    (("Transfer-Encoding: \x00chunked",), CHUNKS),
    (("Transfer-Encoding : chunked",), CHUNKS),
    (("Transfer-Encoding\t: chunked",), CHUNKS),
    (("X: a\nTransfer-Encoding: chunked",), CHUNKS),
    (("X: a\rTransfer-Encoding: chunked",), CHUNKS),
    (("X: a", " Transfer-Encoding: chunked"), CHUNKS),
    ((LENGTH, LENGTH), BODY),
    ((LENGTH, "Content-Length: 1"), BODY),
    ((LENGTH, "CONTENT-LENGTH: 1"), BODY),
    ((f"{LENGTH}, {len(BODY)}",), BODY),
    ((f"Content-Length: +{len(BODY)}",), BODY),
    (("Content-Length: -1",), BODY),
    (("Content-Length: 0x20",), BODY),
    (("Content-Length: 3 2",), BODY),
    (("Content-Length: 1e1",), BODY),
    (("Content-Length: 3_2",), BODY),
    (("Content-Length: \xb2",), BODY),
    (("Content-Length:",), BODY),
    (("Content-Length: 18446744073709551617",), BODY),
    (("X: a", "\tfolded", LENGTH), BODY),
    ((f"{LENGTH}\x00",), BODY),
    ((f"X\x7f: a\r\n{LENGTH}",), BODY),
    ((f": a\r\n{LENGTH}",), BODY),
    (("Host: other", LENGTH), BODY),
    ((SENT_KEY, LENGTH), BODY),
]


BAD_CHUNKS = [
    b"zz\r\n",
    b"\r\n",
    b"-1\r\na\r\n",
    b"0x1\r\na\r\n",
    b" 1\r\na\r\n",
    b"+1\r\na\r\n",
    b"1\ra\r\n",
    b"1\r\naa\r\n",
    b"1\r\naXX0\r\n\r\n",
    b"fffffffffffffffff\r\na\r\n",
    b"1;\x00=a\r\na\r\n",
]


async def wrong(edge: Edge, status: int, pieces: list[bytes]) -> list[tuple[bytes, list[int]]]:
    """Return those that were not answered by this status alone, with what they were answered."""
    found = [(data, [reply.status for reply in await edge.sent(data)]) for data in pieces]
    return [(data, statuses) for data, statuses in found if statuses != [status]]


async def test_what_two_hops_could_read_differently_is_refused(edge: Edge) -> None:
    smuggled = post(CHAT, BODY, SENT_KEY)
    heads = [asks(path, *lines) + body for path in PATHS for lines, body in AMBIGUOUS]
    chunks = [asks(path, CHUNKED) + body for path in PATHS for body in BAD_CHUNKS]
    assert await wrong(edge, 400, [data + smuggled for data in heads + chunks]) == []
    assert edge.passed() == []


async def test_what_is_no_request_is_refused(edge: Edge) -> None:
    nonsense = [
        b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + b"x" * 200,  # a TLS hello
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",  # the preface of HTTP/2
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\x00",
        b"GET /health\r\n\r\n",  # HTTP/0.9
        b"GET /health HTTP/1.1\r\n\r\n",  # no Host
        *(
            asks(target, LENGTH) + BODY
            for target in ("health", "*", "a.example:443", f"ftp://localhost{CHAT}", f"{CHAT}#a")
        ),
    ]
    assert await wrong(edge, 400, nonsense) == []
    methods = [
        request("TRACE", CHAT),
        request("CONNECT", "localhost:443"),
        request("get", "/health"),
        request("BREW", "/health"),
        request("GET", CHAT, SENT_KEY, "Content-Length: 1") + b"a",
        request("PUT", "/health", SENT_KEY),
    ]
    assert await wrong(edge, 405, methods) == []
    assert edge.passed() == []


@pytest.mark.parametrize(
    "path",
    [
        CHAT,
        "/chat/completions",
        "//chat/completions",
        "/v1//chat/completions/",
        "/v1/%63hat/completions",
        f"http://localhost{CHAT}",
        f"{CHAT}?api-version=1&a=//b",
    ],
)
async def test_a_path_may_be_spelt_as_clients_spell_it(edge: Edge, path: str) -> None:
    async with connected(edge.port) as client:
        for data in (
            asks(path, LENGTH) + BODY,
            asks(path, CHUNKED) + CHUNKS,
            asks(path, LENGTH, "Expect: 100-continue") + BODY,
        ):
            await client.send(data)
            answered = await edge.reply(client)
            assert (answered.status, answered.json) == (200, ANSWER)
    assert len(edge.passed()) == 3


async def test_http_1_0_is_answered_and_closed(edge: Edge) -> None:
    (answered,) = await edge.sent(
        asks(CHAT, LENGTH, "Connection: keep-alive", version="1.0") + BODY
    )
    assert answered.json == ANSWER
    async with connected(edge.port) as client:
        await client.send(b"GET /health HTTP/1.0\r\n\r\n")
        assert (await client.reply()).json["status"] == "ok"
        assert await client.rest() == b""


async def test_requests_sent_at_once_are_answered_in_turn_up_to_the_first_that_is_none(
    edge: Edge,
) -> None:
    inference = post(CHAT, BODY, SENT_KEY)
    other = request("GET", "/v1/models", SENT_KEY, "Content-Length: 3") + b"abc"
    for data, statuses, relayed in (
        (inference + inference + other, [200, 200, 200], 2),
        (inference + b"\r\n" + inference + b"\x00", [200, 200, 400], 2),
        (inference + asks(CHAT, LENGTH, CHUNKED) + CHUNKS + inference, [200, 400], 1),
        (other + inference, [200], 0),
        (asks(CHAT, CHUNKED) + CHUNKS + inference, [200], 1),
    ):
        before = len(edge.passed())
        assert [reply.status for reply in await edge.sent(data)] == statuses
        assert len(edge.passed()) - before == relayed


async def test_what_is_meant_for_one_hop_does_not_cross_it(edge: Edge) -> None:
    fields = [
        "Connection: keep-alive, Upgrade, HTTP2-Settings, X-Own",
        "X-Own: one-hop",
        "Upgrade: h2c",
        "HTTP2-Settings: AAAA",
        "Keep-Alive: timeout=5",
        "TE: trailers",
        "Trailer: X-Later",
        "Proxy-Authorization: Basic one-hop",
        "Proxy-Connection: keep-alive",
        "Cookie: one-hop",
        "Forwarded: for=one-hop",
        "X-Forwarded-For: one-hop",
    ]
    async with connected(edge.port) as client:
        assert (await client.post(CHAT, BODY, SENT_KEY, *fields)).json == ANSWER
        assert (await client.post(CHAT, BODY, f"X-Api-Key: {KEY}", *fields)).json == ANSWER
    for seen in edge.passed():
        assert "one-hop" not in seen.values()
        assert not any(KEY in value for value in seen.values())
        crossed = {"upgrade", "http2-settings", "keep-alive", "te", "trailer", "x-own"}
        assert not crossed & seen.keys()
        assert "upgrade" not in seen.get("connection", "").lower()


@pytest.mark.parametrize(
    "wanted", ["a b", "a%0d%0aX-Evil: 1", "x" * 129, "\xe9", "a\tb", "", "<script>", "a,b"]
)
async def test_a_request_id_that_is_not_sane_is_replaced_everywhere(
    edge: Edge, wanted: str
) -> None:
    async with connected(edge.port) as client:
        await client.send(post(CHAT, BODY, SENT_KEY, f"X-Request-Id: {wanted}"))
        answered = await edge.reply(client)
        assert answered.status == 200
        assert answered.fields["x-request-id"] != wanted
        assert edge.passed()[0]["x-request-id"] == answered.fields["x-request-id"]
        await client.send(request("GET", "/nowhere", f"X-Request-Id: {wanted}"))
        assert (await edge.reply(client)).fields["x-request-id"] != wanted


@pytest.mark.parametrize(
    "field",
    [
        b"X-A: b\rSet-Cookie: a\r\n",
        b"X-A: b\nSet-Cookie: a\r\n",
        b"X-A: b\x00\r\n",
        b"X-A: b\r\n Set-Cookie: a\r\n",
        b"X-A : b\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
    ],
)
async def test_an_upstream_cannot_put_a_header_into_a_reply(short_path: Path, field: bytes) -> None:
    async with upstream(sends(reply(b"{}", fields=field))) as fake:
        entry = {"type": "proxy", "proxy_url": fake.url}
        async with running_gateway(short_path, {"models": {MODEL: entry}}) as gateway:
            refused = await gateway.chat()
            assert refused.status == 502
            assert "set-cookie" not in refused.fields
            assert "x-a" not in refused.fields


PAGE = "https://chat.example"


async def test_a_page_that_may_read_is_told_so_in_every_reply_of_a_gateway(
    short_path: Path,
) -> None:
    stream = CHUNKED_STREAM + chunk(b"data: {}\n\n") + LAST_CHUNK
    own = reply(b"{}", fields=b"Access-Control-Allow-Origin: *\r\nVary: Accept\r\n")
    async with upstream(sends(own), sends(stream), sends(reply(b"{}", 422))) as fake:
        configuration = {
            "auth": {"client_api_keys": [KEY]},
            "models": {MODEL: {"type": "proxy", "proxy_url": fake.url}},
            "cors": {"allow_origins": [PAGE]},
        }
        preflight = request("OPTIONS", CHAT, "Access-Control-Request-Method: POST")
        async with running_gateway(short_path, configuration) as gateway:
            for data, status in (
                (preflight, 204),
                (post(CHAT, BODY, SENT_KEY), 200),
                (post(CHAT, BODY, SENT_KEY), 200),
                (post(CHAT, BODY, SENT_KEY), 422),
                (post(CHAT, BODY), 401),
                (post(CHAT, b'{"model": "x"}', SENT_KEY), 404),
                (asks(CHAT, "Content-Length: 99999999999"), 413),
                (request("GET", "/v1/models", SENT_KEY), 200),
            ):
                async with connected(gateway.port) as client:
                    await client.send(data.replace(b"\r\n", f"\r\nOrigin: {PAGE}\r\n".encode(), 1))
                    head = await client.reader.readuntil(b"\r\n\r\n")
                    fields = Received(head=head, raw_body=b"", body=b"").fields
                assert f" {status} ".encode() in head
                assert fields["access-control-allow-origin"] == PAGE
                assert "Origin" in fields["vary"]


async def test_a_page_from_elsewhere_may_call_a_gateway_without_keys_only_where_it_is_named(
    short_path: Path,
) -> None:
    async with running_gateway(short_path, {"cors": {"allow_origins": [PAGE]}}) as gateway:
        assert (await gateway.get("/v1/models", f"Origin: {PAGE}")).status == 200
        assert (await gateway.get("/v1/models", "Origin: https://evil.example")).status == 403
        await gateway.reload({})
        assert (await gateway.get("/v1/models", f"Origin: {PAGE}")).status == 403


# --- bounds -----------------------------------------------------------------------------------


async def test_heads_are_bounded_in_size_and_time(short_path: Path) -> None:
    limits = {"max_header_bytes": 8192, "header_timeout_s": 0.5, "max_body_bytes": 2048}
    async with gateway_edge(short_path, **limits) as edge:
        large = [
            b"POST /" + b"a" * 9000,
            asks("/" + "a" * 8192),
            asks(CHAT, *(f"X{number}: a" for number in range(10_000))),
            asks("/health", f"Cookie: {'a' * 8192}"),
            asks(CHAT, "X: " + "a" * 8192),
        ]
        assert await wrong(edge, 431, large) == []
        bodies = [
            asks(CHAT, "Content-Length: 2049"),
            asks(CHAT, CHUNKED) + b"801\r\n" + b"a" * 2049,
            asks(CHAT, CHUNKED) + b"1\r\na\r\n" * 2049,
        ]
        assert await wrong(edge, 413, bodies) == []
        many = asks(CHAT, LENGTH, "Connection: close", *(f"{n}:" for n in range(1000)))
        assert [each.status for each in await edge.sent(many + BODY)] == [200]
        async with (
            asyncio.timeout(DEADLINE_S),
            connected(edge.port) as client,
            TaskScope() as scope,
        ):
            refused = scope.start(edge.reply(client), name="the refusal")
            for byte in asks(CHAT, LENGTH):
                client.writer.write(bytes((byte,)))
                if (await asyncio.wait((refused,), timeout=0.05))[0]:
                    break
            assert (await refused).status == 408
