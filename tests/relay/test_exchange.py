"""One attempt over real sockets: framing, the held head, and what the client sees of a break."""

import asyncio
import json
from typing import Any

import pytest

from rolemesh.errors import StreamBroken, UpstreamBroke, UpstreamTimeout
from rolemesh.relay.exchange import HELD_LIMIT_BYTES
from rolemesh.relay.replies import Reply
from tests.fakes.client import Received, ask, connected, post
from tests.fakes.serving import Relay, serving
from tests.fakes.upstream import (
    CHUNKED_STREAM,
    EVENT_STREAM,
    LAST_CHUNK,
    Script,
    answers,
    chunk,
    every_byte,
    reply,
    sends,
    sends_and_closes,
    sends_and_hangs,
    sends_and_resets,
    upstream,
)

PATH = "/v1/completions"
PING = chunk(b": ping\n\n")
EVENT = chunk(b'data: {"x": 1}\n\n')
DONE = chunk(b"data: [DONE]\n\n")
CLOSE_STREAM = EVENT_STREAM + b"\r\n"


async def relayed(script: Script, **bounds: float) -> tuple[Received, Any]:
    """Ask once; returns what the client got and what the attempt came to."""
    async with upstream(script) as up:
        relay = Relay(upstream=up, **bounds)  # type: ignore[arg-type]
        async with serving(relay) as served:
            received = await ask(served.port, PATH, b"{}", "X-Request-Id: id-1")
        return received, relay.results[0]


# --- framing ----------------------------------------------------------------------------------

ANSWERS = [
    (reply(b'{"a": 1}'), b'{"a": 1}'),
    (reply(b""), b""),
    (CHUNKED_STREAM + PING + EVENT + DONE + LAST_CHUNK, PING + EVENT + DONE + LAST_CHUNK),
    (CHUNKED_STREAM + LAST_CHUNK, LAST_CHUNK),
    (CHUNKED_STREAM + PING + LAST_CHUNK, PING + LAST_CHUNK),
    (
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 400 No\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunk(b"no")
        + b"0\r\nTrailer: x\r\n\r\n",
        chunk(b"no") + b"0\r\nTrailer: x\r\n\r\n",
    ),
    (EVENT_STREAM + b"Content-Length: 9\r\n\r\ndata: 1\n\n", b"data: 1\n\n"),
]


@pytest.mark.parametrize(("answer", "body"), ANSWERS)
async def test_a_body_passes_byte_for_byte_wherever_it_is_cut(answer: bytes, body: bytes) -> None:
    whole, result = await relayed(sends(answer))
    assert whole.raw_body == body
    assert result is None
    trickled, _ = await relayed(sends(*every_byte(answer)))
    assert trickled == whole
    assert whole.head.lower().count(b"content-length") <= 1


async def test_a_body_that_ends_with_the_connection_becomes_chunks() -> None:
    pieces = (CLOSE_STREAM, b": ping\n\n", b"data: 1\n\n", b"data: [DONE]\n\n")
    for script in (sends_and_closes(*pieces), sends_and_closes(*every_byte(b"".join(pieces)))):
        received, result = await relayed(script)
        assert received.body == b"".join(pieces[1:])
        assert received.fields["transfer-encoding"] == "chunked"
        assert result is None


@pytest.mark.parametrize(
    "script",
    [
        sends(CHUNKED_STREAM + EVENT, DONE, LAST_CHUNK),
        sends_and_closes(CLOSE_STREAM, b'data: {"x": 1}\n\n', b"data: [DONE]\n\n"),
    ],
)
async def test_http_1_0_gets_the_plain_body_and_a_close(script: Script) -> None:
    async with (
        upstream(script) as up,
        serving(Relay(upstream=up)) as served,
        connected(served.port) as client,
    ):
        await client.send(b"POST /completions HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
        received = await client.reply()
        assert received.body == b'data: {"x": 1}\n\ndata: [DONE]\n\n'
        assert "transfer-encoding" not in received.fields
        assert received.fields["connection"] == "close"


@pytest.mark.parametrize("status", [204, 304])
async def test_a_reply_without_a_body_has_no_framing(status: int) -> None:
    head = b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n" % status
    async with (
        upstream(sends(head)) as up,
        serving(Relay(upstream=up)) as served,
        connected(served.port) as client,
    ):
        for _ in range(2):
            await client.send(post(PATH, b"{}"))
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert b"transfer-encoding" not in head.lower()
            assert b"content-length" not in head.lower()


async def test_headers_pass_but_those_of_one_hop_and_no_line_can_be_smuggled_in() -> None:
    fields = b"X-A: 1\r\nX-Own: 2\r\nConnection: keep-alive, X-Own\r\nKeep-Alive: timeout=5\r\n"
    hidden = b"Server: llama.cpp\r\nX-Request-Id: theirs\r\nX-RoleMesh-Node: theirs\r\n"
    async with upstream(answers(b"{}", fields=fields + hidden)) as up:
        relay = Relay(upstream=up, reply_fields=(("X-RoleMesh-Node", "box"),))
        async with serving(relay) as served:
            received = await ask(served.port, PATH, b"{}", "X-Request-Id: mine")
    assert received.fields == {
        "content-type": "application/json",
        "x-a": "1",
        "x-request-id": "mine",
        "x-rolemesh-node": "box",
        "content-length": "2",
    }


async def test_nothing_behind_the_end_of_an_answer_reaches_anybody() -> None:
    async with upstream(
        sends(reply(b"one") + b"HTTP/1.1 200 OK\r\nX: smuggled\r\n\r\n"), answers(b"two")
    ) as up:
        async with serving(Relay(upstream=up)) as served, connected(served.port) as client:
            assert (await client.post(PATH, b"{}")).raw_body == b"one"
            second = await client.post(PATH, b"{}")
            assert second.raw_body == b"two"
            assert "x" not in second.fields
        assert up.accepted == 2  # the connection that said too much is not used again


async def test_bytes_between_two_answers_end_the_upstreams_connection() -> None:
    async with (
        upstream(sends(reply(b"one"), b"\r\n"), answers(b"two")) as up,
        serving(Relay(upstream=up)) as served,
        connected(served.port) as client,
    ):
        assert (await client.post(PATH, b"{}")).raw_body == b"one"
        assert (await client.post(PATH, b"{}")).raw_body == b"two"


# --- before the first byte --------------------------------------------------------------------


async def test_the_head_is_held_until_something_but_comments_comes() -> None:
    go = asyncio.Event()

    async def script(conversation: Any) -> None:
        await conversation.send(CHUNKED_STREAM, PING, *every_byte(PING))
        await go.wait()
        await conversation.send(EVENT, LAST_CHUNK)

    async with (
        upstream(script) as up,
        serving(Relay(upstream=up)) as served,
        connected(served.port) as client,
    ):
        await client.send(post(PATH, b"{}"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.1)
        go.set()
        assert (await client.reply()).raw_body == PING + PING + EVENT + LAST_CHUNK


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_an_error_of_the_upstream_is_kept_from_the_client(status: int) -> None:
    body = b'{"error": {"message": "Loading model"}}'
    pieces = every_byte(reply(body, status, fields=b"Retry-After: 7\r\n"))
    received, result = await relayed(sends(*pieces))
    assert isinstance(result, Reply)
    assert (result.status, result.body) == (status, body)
    assert dict(result.fields) == {"Content-Type": "application/json", "Retry-After": "7"}
    assert (received.status, received.body) == (status, body)


BROKEN = [
    sends_and_closes(),
    sends_and_closes(b"HTTP/1.1 200"),
    sends_and_closes(reply(b"hello")[:-5]),
    sends_and_closes(CHUNKED_STREAM + PING),
    sends_and_resets(),
    sends_and_resets(CLOSE_STREAM),
    sends(b"garbage\r\n\r\n"),
    sends(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    sends(CHUNKED_STREAM + b"zz\r\n"),
    sends(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
    sends_and_hangs(CHUNKED_STREAM, chunk(b": ping\n\n" * (HELD_LIMIT_BYTES // 8))),
    sends_and_hangs(reply(b"a" * (HELD_LIMIT_BYTES + 1), 500)),
    sends_and_closes(reply(b"error", 500)[:-2]),
]


@pytest.mark.parametrize("script", BROKEN)
async def test_what_breaks_before_the_first_byte_is_a_502(script: Script) -> None:
    received, result = await relayed(script)
    assert type(result) is UpstreamBroke
    assert result.upstream.startswith("http://127.0.0.1:")
    assert (received.status, received.error["code"]) == (502, "upstream_broke")
    assert "content-length" in received.fields  # a proper reply


# --- after it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        sends_and_closes(CHUNKED_STREAM + EVENT),
        sends_and_resets(CHUNKED_STREAM + EVENT),
        sends(CHUNKED_STREAM + EVENT, b"zz\r\n"),
        sends_and_resets(CLOSE_STREAM + b'data: {"x": 1}\n\n'),
    ],
)
async def test_a_stream_that_breaks_ends_with_an_error_event_and_no_last_chunk(
    script: Script,
) -> None:
    async with upstream(script) as up:
        relay = Relay(upstream=up)
        async with serving(relay) as served, connected(served.port) as client:
            await client.send(post(PATH, b"{}", "X-Request-Id: id-1"))
            got = await client.rest()
        assert type(relay.results[0]) is StreamBroken
    assert not got.endswith(LAST_CHUNK)
    events = got.split(b"data: ")
    assert events[1].startswith(b'{"x": 1}')
    error = json.loads(events[-1].splitlines()[0])["error"]
    assert (error["status"], error["request_id"]) == (502, "id-1")


async def test_an_event_is_never_written_into_the_middle_of_a_chunk() -> None:
    for part in (b"5", b"20\r\ndata: {", b"20\r\ndata: 1\n\n"):
        async with (
            upstream(sends_and_closes(CHUNKED_STREAM + EVENT, part)) as up,
            serving(Relay(upstream=up)) as served,
            connected(served.port) as client,
        ):
            await client.send(post(PATH, b"{}"))
            assert (await client.rest()).endswith(EVENT + part)


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"hello")[:-1],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"hello"),
    ],
)
async def test_another_body_that_breaks_ends_without_its_end(answer: bytes) -> None:
    async with (
        upstream(sends_and_closes(answer)) as up,
        serving(Relay(upstream=up)) as served,
        connected(served.port) as client,
    ):
        await client.send(post(PATH, b"{}"))
        with pytest.raises(asyncio.IncompleteReadError):
            await client.reply()


async def test_a_break_is_an_error_for_http_1_0_too() -> None:
    """A close is a proper end there, so only a reset can tell."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"hello")
    async with (
        upstream(sends_and_closes(answer)) as up,
        serving(Relay(upstream=up)) as served,
        connected(served.port) as client,
    ):
        await client.send(b"POST /completions HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
        with pytest.raises(ConnectionResetError):
            await client.rest()


# --- time -------------------------------------------------------------------------------------


async def pings(conversation: Any) -> None:
    """Send comments for ever, two to a packet and one in two packets."""
    try:
        while True:
            await conversation.send(PING + PING, PING[:7], PING[7:])
            await asyncio.sleep(0.01)
    except ConnectionError:
        return


async def pings_only(conversation: Any) -> None:
    await conversation.send(CHUNKED_STREAM)
    await pings(conversation)


async def one_event_then_pings(conversation: Any) -> None:
    await conversation.send(CHUNKED_STREAM, EVENT)
    await pings(conversation)


@pytest.mark.parametrize(
    ("script", "bounds", "limit", "started"),
    [
        (sends_and_hangs(), {"first_byte_s": 0.1}, "first_byte_s", False),
        (sends_and_hangs(CHUNKED_STREAM), {"first_byte_s": 0.1}, "first_byte_s", False),
        (pings_only, {"first_byte_s": 0.1}, "first_byte_s", False),
        (sends_and_hangs(), {"total_s": 0.1}, "total_s", False),
        (sends_and_hangs(CHUNKED_STREAM + EVENT), {"idle_s": 0.1}, "idle_s", True),
        (one_event_then_pings, {"idle_s": 0.1}, "idle_s", True),
        (one_event_then_pings, {"total_s": 0.1}, "total_s", True),
    ],
)
async def test_what_is_late_ends_with_the_name_of_its_limit(
    script: Script, bounds: dict[str, float], limit: str, started: bool
) -> None:
    async with upstream(script) as up:
        relay = Relay(upstream=up, **bounds)  # type: ignore[arg-type]
        async with serving(relay) as served, connected(served.port) as client:
            await client.send(post(PATH, b"{}"))
            got = await client.rest() if started else (await client.reply()).head
        error = relay.results[0]
        assert isinstance(error, UpstreamTimeout)
        assert error.limit == limit
        assert got.startswith(b"HTTP/1.1 200" if started else b"HTTP/1.1 504")
        assert (b'"timeout": "%b"' % limit.encode() in got) is started


async def test_a_stream_that_goes_on_is_never_late() -> None:
    async def script(conversation: Any) -> None:
        await conversation.send(CHUNKED_STREAM)
        for _ in range(10):
            await conversation.send(EVENT)
            await asyncio.sleep(0.02)
        await conversation.send(LAST_CHUNK)

    received, result = await relayed(script, idle_s=0.1, first_byte_s=0.1)
    assert result is None
    assert received.body.count(b"data:") == 10
