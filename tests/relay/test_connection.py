"""Reading requests off real connections: what one client may do, and how long."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest

from rolemesh.config.settings import Limits
from rolemesh.errors import NotAuthenticated
from rolemesh.relay import connection
from rolemesh.relay.access import Field
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.replies import json_reply
from tests.fakes.client import Client, Received, ask, connected, post, request
from tests.fakes.serving import echo, serving
from tests.fakes.upstream import every_byte
from tests.lab.poll import eventually

PATH = "/v1/completions"
BODY = b'{"model": "a", "prompt": "hello"}'


class Hanging:
    """A handler that never answers; counts those that were cancelled."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0

    async def __call__(self, request: InboundRequest, client: ClientStream) -> None:
        self.started += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def refusal(data: bytes, limits: Limits | None = None) -> Received:
    """Send bytes and return the refusal, after which the connection must close."""
    async with serving(echo, limits=limits) as served, connected(served.port) as client:
        await client.send(data)
        reply = await client.reply()
        assert reply.fields["connection"] == "close"
        assert reply.fields["x-request-id"] == reply.error["request_id"]
        assert await client.rest() == b""
        return reply


async def test_nobody_who_may_not_ask_is_let_send_a_body() -> None:
    def nobody(_peer: str, _field: Field) -> None:
        msg = "a key is required"
        raise NotAuthenticated(msg)

    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\n"
        "Content-Length: 60000000\r\nExpect: 100-continue\r\n\r\n"
    )
    async with serving(echo, admit=nobody) as served, connected(served.port) as client:
        await client.send(head.encode())
        reply = await client.reply()
        assert (reply.status, reply.fields["x-request-id"]) == (401, "mine")
        assert await client.rest() == b""


async def test_a_request_is_handled_with_its_path_fields_and_body() -> None:
    async with serving(echo) as served:
        reply = await ask(served.port, f"{PATH}?x=1", BODY, "X-Any: thing", "X-Request-Id: id-1")
        assert reply.status == 200
        assert reply.fields["connection"] == "keep-alive"
        assert reply.fields["x-request-id"] == "id-1"
        tree = reply.json
        assert (tree["path"], tree["body"], tree["id"]) == (PATH, BODY.decode(), "id-1")
        assert tree["fields"]["x-any"] == "thing"


async def test_a_request_split_at_every_byte_is_the_same() -> None:
    async with serving(echo) as served, connected(served.port) as client:
        whole = await client.post(PATH, BODY, "X-Request-Id: one")
        await client.send(*every_byte(post(PATH, BODY, "X-Request-Id: one")))
        assert await client.reply() == whole
        chunked = request("POST", PATH, "X-Request-Id: two", "Transfer-Encoding: chunked")
        await client.send(*every_byte(chunked + b"3\r\nabc\r\n0\r\n\r\n"))
        assert (await client.reply()).json["body"] == "abc"


async def test_requests_are_served_one_after_another_on_one_connection() -> None:
    async with serving(echo) as served, connected(served.port) as client:
        for number in range(3):
            assert (await client.post(PATH, b"%d" % number)).json["body"] == str(number)


async def test_requests_sent_at_once_are_answered_in_order() -> None:
    async with serving(echo) as served, connected(served.port) as client:
        chunked = request("POST", PATH, "Transfer-Encoding: chunked") + b"1\r\nc\r\n0\r\n\r\n"
        await client.send(post(PATH, b"a") + b"\r\n" + post(PATH, b"b") + chunked)
        bodies = [(await client.reply()).json["body"] for _ in range(3)]
        assert bodies == ["a", "b", "c"]


async def test_a_request_for_aiohttp_may_follow_on_the_same_connection() -> None:
    async with serving(echo) as served, connected(served.port) as client:
        await client.send(post(PATH, b"a") + request("GET", "/health"))
        assert (await client.reply()).json["body"] == "a"
        assert (await client.reply()).json == {"status": "ok"}
        assert await client.rest() == b""


async def test_garbage_behind_a_request_is_refused_after_the_reply() -> None:
    async with serving(echo) as served, connected(served.port) as client:
        await client.send(post(PATH, b"a") + b"\x00garbage")
        assert (await client.reply()).json["body"] == "a"
        assert (await client.reply()).status == 400
        assert await client.rest() == b""


@pytest.mark.parametrize(
    ("lines", "body", "status"),
    [
        (("Content-Length: 3", "Transfer-Encoding: chunked"), b"3\r\nabc\r\n0\r\n\r\n", 400),
        (("Content-Length: 3", "Content-Length: 4"), b"abcd", 400),
        (("Content-Length: three",), b"abc", 400),
        (("X: a\nContent-Length: 3",), b"abc", 400),
        (("X: a", " folded", "Content-Length: 3"), b"abc", 400),
        (("Content-Length : 3",), b"abc", 400),
        (("X: a\x00b",), b"", 400),
        (("Transfer-Encoding: chunked",), b"zz\r\n", 400),
        ((f"X: {'a' * 500}",), b"", 431),
        (("Content-Length: 101",), b"", 413),
        (("Transfer-Encoding: chunked",), b"65\r\n" + b"a" * 101, 413),
    ],
)
async def test_a_bad_request_is_refused_and_the_connection_closed(
    lines: tuple[str, ...], body: bytes, status: int
) -> None:
    limits = Limits(max_header_bytes=400, max_body_bytes=100)
    reply = await refusal(request("POST", PATH, *lines) + body, limits)
    assert (reply.status, reply.error["status"]) == (status, status)


async def test_a_client_that_still_sends_can_read_why_it_was_refused() -> None:
    """Closing at once would reset the connection, and many clients then never see the 413."""
    size = 8 << 20
    async with (
        serving(echo, limits=Limits(max_body_bytes=1000)) as served,
        connected(served.port) as client,
    ):
        await client.send(request("POST", PATH, f"Content-Length: {size}"))
        client.writer.write(b"a" * size)
        await asyncio.wait_for(client.writer.drain(), 5)
        assert (await client.reply()).status == 413
        client.half_close()
        assert await client.rest() == b""


async def test_a_refused_client_that_sends_on_for_ever_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.05)
    async with serving(echo) as served, connected(served.port) as client:
        await client.send(b"\x00")
        assert (await client.reply()).status == 400

        async def cut_off() -> bool:
            try:
                await client.send(b"more")
            except ConnectionError:
                return True
            return False

        await eventually(cut_off, what="the connection is cut")


async def test_the_body_is_asked_for_when_the_client_waits_for_that() -> None:
    async with serving(echo) as served, connected(served.port) as client:
        await client.send(request("POST", PATH, "Expect: 100-continue", "Content-Length: 1"))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"a")
        assert (await client.reply()).json["body"] == "a"
        await client.send(post(PATH, b"b", "Expect: 100-continue"))
        assert (await client.reply()).json["body"] == "b"


async def test_a_body_that_is_too_large_is_never_asked_for() -> None:
    head = request("POST", PATH, "Expect: 100-continue", "Content-Length: 101")
    assert (await refusal(head, Limits(max_body_bytes=100))).status == 413


async def test_http_1_0_gets_its_reply_and_a_close() -> None:
    async with serving(echo) as served, connected(served.port) as client:
        head = b"POST /completions HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n"
        await client.send(head + b"a")
        reply = await client.reply()
        assert (reply.json["body"], reply.fields["connection"]) == ("a", "close")
        assert await client.rest() == b""


async def test_an_offer_to_upgrade_is_ignored() -> None:
    async with serving(echo) as served:
        fields = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAAA")
        assert (await ask(served.port, PATH, b"a", *fields)).json["body"] == "a"


# --- patience ---------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"", post(PATH, b"a")])
async def test_a_head_that_does_not_come_in_time_is_refused(start: bytes) -> None:
    async with (
        serving(echo, limits=Limits(header_timeout_s=0.1)) as served,
        connected(served.port) as client,
    ):
        await client.send(start)
        if start:
            await client.reply()
        await client.send(b"POST /v1")
        reply = await asyncio.wait_for(client.reply(), 5)
        assert (reply.status, reply.error["code"]) == (408, "request_too_slow")
        assert await client.rest() == b""


async def test_a_body_that_does_not_come_in_time_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "BODY_STALL_S", 0.05)
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.1)
    async with serving(echo) as served, connected(served.port) as client:
        await client.send(request("POST", PATH, "Content-Length: 2") + b"a")
        assert (await asyncio.wait_for(client.reply(), 5)).status == 408


async def test_an_idle_connection_is_closed_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.05)
    async with serving(echo) as served, connected(served.port) as client:
        assert await asyncio.wait_for(client.rest(), 5) == b""


async def test_a_long_reply_is_never_taken_for_a_slow_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The timer of a kept connection once put a 408 into the middle of a later reply."""
    monkeypatch.setattr(connection, "BODY_STALL_S", 0.05)
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.2)

    async def slowly(_request: InboundRequest, client: ClientStream) -> None:
        await asyncio.sleep(0.4)
        client.send(json_reply({"status": "done"}))

    async with (
        serving(slowly, limits=Limits(header_timeout_s=0.2)) as served,
        connected(served.port) as client,
    ):
        await asyncio.sleep(0.1)
        assert (await client.post(PATH, b"a")).json == {"status": "done"}


# --- leaving ----------------------------------------------------------------------------------


async def leave_by_closing(client: Client) -> None:
    client.writer.close()


async def leave_by_half_closing(client: Client) -> None:
    client.half_close()


async def leave_by_reset(client: Client) -> None:
    client.reset()


LEAVING = [leave_by_closing, leave_by_half_closing, leave_by_reset]


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("behind", [b"", post(PATH, b"next"), b"x" * 300_000])
async def test_a_client_that_leaves_ends_its_request(leave: Any, behind: bytes) -> None:
    """Also when it has sent more meanwhile: reading must not stop."""
    handle = Hanging()
    async with serving(handle) as served, connected(served.port) as client:
        client.writer.write(post(PATH, BODY) + behind)
        await eventually(lambda: handle.started, what="the request is handled")
        await leave(client)
        await eventually(lambda: handle.cancelled == 1, what="it ends", deadline_s=1)
        assert handle.started == 1
        await eventually(lambda: not served.inbound.connections, what="the connection is gone")


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("data", [b"", b"POST /v1", request("POST", PATH, "Content-Length: 9")])
async def test_a_client_that_leaves_before_its_request_is_whole_is_forgotten(
    leave: Any, data: bytes
) -> None:
    handle = Hanging()
    async with serving(handle) as served, connected(served.port) as client:
        await client.send(data)
        await eventually(lambda: served.inbound.connections, what="the connection is there")
        await leave(client)
        await eventually(lambda: not served.inbound.connections, what="it is gone", deadline_s=1)
        assert handle.started == 0


async def test_too_much_behind_a_request_closes_the_connection_after_its_reply() -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def wait(_request: InboundRequest, client: ClientStream) -> None:
        started.set()
        await release.wait()
        client.send(json_reply({"n": 1}))

    async with serving(wait) as served, connected(served.port) as client:
        await client.send(post(PATH, b"a"))
        await started.wait()
        await client.send(post(PATH, b"b" * 200_000))
        release.set()
        assert json.loads((await client.reply()).body) == {"n": 1}
        with suppress(ConnectionError):  # what it sent last may meet a closed connection
            assert await client.rest() == b""


async def test_a_path_that_is_taken_away_while_a_body_comes_is_unknown() -> None:
    async with serving(echo) as served, connected(served.port) as client:
        await client.send(request("POST", PATH, "Content-Length: 2", "Expect: 100-continue"))
        assert b"100 Continue" in await client.reader.readuntil(b"\r\n\r\n")
        served.inbound.paths = {}
        await client.send(b"{}")
        received = await client.reply()
        assert (received.status, received.error["code"]) == (404, "unknown_path")
