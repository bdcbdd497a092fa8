"""Requests that are no inference requests, as aiohttp is given them, and those it is spared."""

import asyncio
import socket
from contextlib import AsyncExitStack, suppress

import pytest
from aiohttp import web

from rolemesh.errors import NotAllowed
from rolemesh.names import RequestId
from rolemesh.relay import handoff
from rolemesh.relay.access import Field
from rolemesh.relay.application import open_application, route
from rolemesh.relay.handoff import plain_request
from rolemesh.relay.replies import Reply, json_reply
from rolemesh.relay.request import read_head
from tests.fakes.client import Received, connected, post, request
from tests.fakes.serving import echo, serving
from tests.fakes.upstream import every_byte
from tests.lab.poll import eventually

PATH = "/show"
MAX_BODY = 1000


async def show(request: web.Request) -> Reply:
    return json_reply({"body": (await request.read()).decode("latin-1")})


ROUTES = [route("POST", PATH, show), route("GET", PATH, show)]


async def asked(*pieces: bytes) -> Received:
    """Send one request in pieces; the connection must close after its reply."""
    async with serving(echo, routes=ROUTES) as served, connected(served.port) as client:
        await client.send(*pieces)
        reply = await client.reply()
        assert await client.rest() == b""
        assert reply.fields["connection"] == "close"
        return reply


def test_a_request_is_handed_on_in_plain_words() -> None:
    data = (
        b"GET http://gw.example//v1/models/?a=b HTTP/1.1\r\nHost: other\r\nX-Request-Id: mine\r\n"
        b"AUTHORIZATION:  Bearer \xc3\xa9\xff \r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key1: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n"
        b"Cookie: a\r\nX-Any: thing\r\n\r\n"
    )
    head = read_head(data, len(data))
    assert head is not None
    assert plain_request(head, RequestId("one"), b"abc") == (
        b"GET /v1/models?a=b HTTP/1.1\r\nauthorization: Bearer \xc3\xa9\xff\r\n"
        b"host: gw.example\r\nx-request-id: one\r\ncontent-length: 3\r\n\r\nabc"
    )


COUNTED = post(PATH, b"some text")
CHUNKED = request("POST", PATH, "Transfer-Encoding: chunked") + (
    b"4;ext=1\r\nsome\r\n5\r\n text\r\n0\r\nX-Trailer: a\r\n\r\n"
)


@pytest.mark.parametrize("data", [COUNTED, CHUNKED])
async def test_a_body_is_the_same_wherever_it_is_cut(data: bytes) -> None:
    assert (await asked(data)).json == {"body": "some text"}
    assert (await asked(*every_byte(data))).json == {"body": "some text"}


async def test_a_body_is_asked_for_where_the_client_waits_for_that() -> None:
    async with serving(echo, routes=ROUTES) as served, connected(served.port) as client:
        await client.send(request("POST", PATH, "Expect: 100-continue", "Content-Length: 1"))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"a")
        assert (await client.reply()).json == {"body": "a"}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("POST", PATH, f"Content-Length: {MAX_BODY + 1}"), 413),
        (request("POST", PATH, "Transfer-Encoding: chunked") + b"3e9\r\n" + b"a" * 1001, 413),
        (request("POST", PATH, "Transfer-Encoding: chunked") + b"zz\r\n", 400),
        (request("GET", PATH, "Transfer-Encoding: chunked") + b"\r\n", 400),
        (post(PATH, b"a", "Content-Encoding: gzip"), 400),
        (post("/nowhere", b"a", "Content-Encoding: br"), 400),
    ],
)
async def test_a_bad_body_is_refused_with_the_clients_request_id(data: bytes, status: int) -> None:
    reply = await asked(data.replace(b"\r\n", b"\r\nX-Request-Id: mine\r\n", 1))
    assert (reply.status, reply.error["status"]) == (status, status)
    assert reply.error["request_id"] == reply.fields["x-request-id"] == "mine"


async def test_a_refusal_of_head_has_no_body() -> None:
    data = request("HEAD", PATH, "Content-Length: 5000")
    async with serving(echo, routes=ROUTES) as served, connected(served.port) as client:
        await client.send(data)
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert body == b""


async def test_nobody_who_may_not_ask_is_let_send_a_body() -> None:
    seen = []

    def nobody(peer: str, path: str, field: Field) -> None:
        seen.append((peer, path, field("x-api-key")))
        msg = "not you"
        raise NotAllowed(msg)

    head = request("POST", PATH, "X-Api-Key: a", "Expect: 100-continue", "Content-Length: 9")
    async with serving(echo, routes=ROUTES, admit_other=nobody) as served:
        async with connected(served.port) as client:
            await client.send(head)
            assert (await client.reply()).status == 403
            assert await client.rest() == b""
        assert seen == [("127.0.0.1", PATH, "a")]
        async with connected(served.port) as client:
            await client.send(COUNTED)  # it is there already: the handler decides
            assert (await client.reply()).status == 200


async def test_a_body_that_does_not_come_in_time_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handoff, "REQUEST_S", 0.05)
    reply = await asyncio.wait_for(asked(request("POST", PATH, "Content-Length: 2") + b"a"), 5)
    assert (reply.status, reply.error["code"]) == (408, "request_too_slow")


async def test_a_client_that_leaves_within_its_body_is_forgotten() -> None:
    async with serving(echo, routes=ROUTES) as served, connected(served.port) as client:
        await client.send(request("POST", PATH, "Content-Length: 2") + b"a")
        client.half_close()
        assert await client.rest() == b""


@pytest.mark.parametrize("behind", [b"\x00garbage", request("GET", PATH), b"x" * 300_000])
async def test_what_stands_behind_a_request_is_not_looked_at(behind: bytes) -> None:
    async with serving(echo, routes=ROUTES) as served, connected(served.port) as client:
        await client.send(COUNTED + behind[:100], behind[100:])
        assert (await client.reply()).json == {"body": "some text"}


async def test_the_server_as_a_whole_says_what_it_takes() -> None:
    reply = await asked(request("OPTIONS", "*", "X-Request-Id: mine"))
    assert (reply.status, reply.body) == (200, b"")
    assert reply.fields["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
    assert reply.fields["x-request-id"] == "mine"


async def test_a_client_that_takes_nothing_of_its_reply_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handoff, "STALL_S", 0.1)
    asked: list[asyncio.BaseTransport | None] = []

    async def large(request: web.Request) -> Reply:
        asked.append(request.transport)
        return Reply(status=200, body=b"x" * (16 << 20))

    async with serving(echo, routes=[route("GET", PATH, large)]) as served:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", served.port))
            client.send(request("GET", PATH))
            await eventually(lambda: asked, what="it is asked")
            (transport,) = asked
            assert transport is not None
            await eventually(transport.is_closing, what="the connection is cut")


async def test_a_connection_may_begin_here_without_a_relay_before_it() -> None:
    loop = asyncio.get_running_loop()
    async with open_application(ROUTES, max_body_bytes=MAX_BODY, admit=lambda *_: None) as handed:
        server = await loop.create_server(handed, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with connected(port) as client:
            await client.send(*every_byte(COUNTED))
            assert (await client.reply()).json == {"body": "some text"}
        async with connected(port) as client:
            await client.send(b"\x00")
            refused = await client.reply()
            assert (refused.status, refused.error["code"]) == (400, "bad_request")
        server.close()


async def test_those_still_sending_are_cut_off_at_the_end() -> None:
    async with AsyncExitStack() as outlives:
        async with serving(echo, routes=ROUTES) as served:
            client = await outlives.enter_async_context(connected(served.port))
            await client.send(request("POST", PATH, "Content-Length: 2") + b"a")
            await served.inbound.drain(0)
        with suppress(ConnectionError):
            assert await client.rest() == b""
