"""What a streamed request hears while it waits: comments, then its answer or an error, in the stream."""

import asyncio
import json
import logging
from contextlib import AsyncExitStack
from typing import Any

import pytest

from rolemesh.runtime.journal import FIELDS
from tests.fakes.client import Client, connected
from tests.fakes.upstream import (
    CHUNKED_STREAM,
    EVENT_STREAM,
    LAST_CHUNK,
    Conversation,
    Script,
    answers,
    chunk,
    every_byte,
    reply,
    sends,
    sends_and_closes,
    sends_and_hangs,
)
from tests.gateway.conftest import StartGateway, StartUpstream
from tests.gateway.harness import CHAT, DISCOVERED, Running, asking
from tests.lab.poll import eventually

SOON: dict[str, Any] = {"timeouts": {"keepalive_after_s": 0.05}}
EVENTS = b"data: 1\n\ndata: 2\r\n\r\n: own\n\ndata: [DONE]\n\n"
STREAM = CHUNKED_STREAM + chunk(EVENTS) + LAST_CHUNK
WHOLE = EVENT_STREAM + b"Content-Length: %d\r\n\r\n%b" % (len(EVENTS), EVENTS)
UNTIL_CLOSE = EVENT_STREAM + b"\r\n" + EVENTS
ONE_SLOT = {"model_id": "m", "roles": ["coder"], "slots": 1}
CHUNKED = b"transfer-encoding: chunked\r\n"


class After:
    """Plays a script when told to."""

    def __init__(self, script: Script, first: bytes = b"") -> None:
        self.go = asyncio.Event()
        self._script = script
        self._first = first

    async def __call__(self, conversation: Conversation) -> None:
        if self._first:
            await conversation.send(self._first)
        await self.go.wait()
        await self._script(conversation)


async def first_comment(client: Client) -> bytes:
    """Return the head and the first comment; the head promises a stream."""
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: text/event-stream\r\n" in head.lower()
    return head + await client.reader.readuntil(b"\n\n")


def without_comments(body: bytes) -> bytes:
    """Return a stream without the comments that are not the upstream's own."""
    lines = body.split(b"\n\n")
    ours = (b": waiting", b": queued", b": loading")
    return b"\n\n".join(line for line in lines if not line.startswith(ours))


async def rest_of_stream(client: Client, head: bytes) -> bytes:
    """Return the rest of a whole answer without comments and framing."""
    if CHUNKED in head.lower():
        # What came after the head belongs to the chunks.
        begun = head[head.index(b"\r\n\r\n") + 4 :]
        raw = begun + await client.reader.readuntil(b"\r\n" + LAST_CHUNK)
        return without_comments(unchunked(raw))
    return without_comments(head[head.index(b"\r\n\r\n") + 4 :] + await client.rest())


def unchunked(raw: bytes) -> bytes:
    """Return what chunks hold; they may end in the middle of one."""
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        body += raw[: int(size, 16)]
        raw = raw[int(size, 16) + 2 :]
    return body


async def broken_rest(client: Client, head: bytes) -> bytes:
    """Return what comes until the connection ends; it is no proper end."""
    raw = head[head.index(b"\r\n\r\n") + 4 :] + await client.rest()
    assert not raw.endswith(LAST_CHUNK)
    return without_comments(unchunked(raw))


def event(body: bytes) -> tuple[bytes, Any]:
    """Return the one event of a stream, its name and its data."""
    name, data = b"", None
    for line in body.strip().split(b"\n"):
        if line.startswith(b"event: "):
            name = line[7:]
        else:
            assert line.startswith(b"data: "), body
            data = json.loads(line[6:])
    return name, data


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> Running:
    return await start_gateway(**SOON)


# --- what is waited for -----------------------------------------------------------------------


async def test_in_the_queue_it_hears_how_many_are_before_it_and_then_has_its_stream(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    held = After(answers(b"{}"))
    await gateway.register("box", await start_upstream(held, sends(STREAM)), ONE_SLOT)
    async with asking(gateway), asking(gateway, stream=True) as second:
        begun = await first_comment(second)
        assert b": queued, 0 before it\n\n" in begun
        async with asking(gateway, stream=True) as third:
            assert b": queued, 1 before it\n\n" in await first_comment(third)
        held.go.set()
        assert await rest_of_stream(second, begun) == EVENTS


async def test_while_a_model_loads_it_hears_how_far_it_is(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    late = After(sends(STREAM))
    model = {"model_id": "m", "roles": ["coder"], "state": "loading", "progress": 0.4}
    await gateway.register("box", await start_upstream(late), model)
    async with asking(gateway, stream=True) as client:
        begun = await first_comment(client)
        assert b": loading 40%\n\n" in begun
        late.go.set()
        assert await rest_of_stream(client, begun) == EVENTS


async def test_while_its_prompt_is_read_it_hears_that_it_is_not_forgotten_again_and_again(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    late = After(sends(chunk(EVENTS) + LAST_CHUNK), first=CHUNKED_STREAM)
    await gateway.register("box", await start_upstream(late))
    async with asking(gateway, stream=True) as client:
        begun = await first_comment(client)
        for _ in range(3):
            begun += await client.reader.readuntil(b": waiting for the first token\n\n")
        late.go.set()
        assert await rest_of_stream(client, begun) == EVENTS


async def test_a_client_that_leaves_while_it_hears_comments_frees_its_slot(
    gateway: Running, start_upstream: StartUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await gateway.register("box", await start_upstream(sends_and_hangs()), ONE_SLOT)
    async with asking(gateway, stream=True) as client, asking(gateway, stream=True) as waiting:
        await first_comment(client)
        await first_comment(waiting)
        waiting.half_close()
        await eventually(lambda: gateway.queued("coder") == 0, what="it left", deadline_s=1)
        client.half_close()
        await eventually(lambda: gateway.in_flight() == 0, what="it is free", deadline_s=1)
    await eventually(lambda: len(records(caplog)) == 2, what="both are recorded")
    assert [record["phase"] for record in records(caplog)] == ["queue", "upstream"]


# --- the answer -------------------------------------------------------------------------------


@pytest.mark.parametrize("client_minor", [0, 1])
@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("framed", [STREAM, WHOLE, UNTIL_CLOSE])
async def test_the_stream_passes_byte_for_byte_in_every_framing(
    gateway: Running,
    start_upstream: StartUpstream,
    framed: bytes,
    in_pieces: bool,
    client_minor: int,
) -> None:
    pieces = every_byte(framed) if in_pieces else [framed]
    script = sends_and_closes(*pieces) if framed is UNTIL_CLOSE else sends(*pieces)
    late = After(script)
    await gateway.register("box", await start_upstream(late))
    body = json.dumps({"model": "coder", "stream": True}).encode()
    async with connected(gateway.port) as client:
        await client.send(
            b"POST %b HTTP/1.%d\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
            % (CHAT.encode(), client_minor, len(body), body)
        )
        begun = await first_comment(client)
        assert (CHUNKED in begun.lower()) == bool(client_minor)
        late.go.set()
        assert await rest_of_stream(client, begun) == EVENTS


async def test_the_connection_serves_the_next_request_after_such_a_stream(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    late = After(sends(STREAM))
    await gateway.register("box", await start_upstream(late, answers(b'{"ok": true}')))
    async with asking(gateway, stream=True) as client:
        begun = await first_comment(client)
        late.go.set()
        await rest_of_stream(client, begun)
        assert (await client.post(CHAT, b'{"model": "coder"}')).json == {"ok": True}


async def test_what_has_failed_unheard_is_tried_elsewhere_without_a_trace(
    gateway: Running, start_upstream: StartUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    dies, survives = After(sends_and_closes()), After(sends(STREAM))
    await gateway.register("first", await start_upstream(dies))
    cold = {"model_id": "m", "roles": ["coder"], "state": "cold"}
    await gateway.register("second", up := await start_upstream(survives), cold)
    async with asking(gateway, stream=True) as client:
        begun = await first_comment(client)
        dies.go.set()
        await eventually(lambda: up.conversations, what="the second is asked")
        begun += await client.reader.readuntil(b"\n\n")
        survives.go.set()
        assert await rest_of_stream(client, begun) == EVENTS
    await eventually(lambda: records(caplog), what="the record is there")
    (record,) = records(caplog)
    assert (record["status"], record["node"], record["attempts"]) == (200, "second", 2)


async def test_who_answers_in_time_is_passed_on_as_ever(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway(timeouts={"keepalive_after_s": 30})
    await gateway.register("box", await start_upstream(sends(STREAM)))
    async with asking(gateway, stream=True) as client:
        got = await client.reply()
    assert (got.body, got.fields["x-rolemesh-node"]) == (EVENTS, "box")


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
async def test_an_error_is_an_event_in_the_clients_dialect_and_no_proper_end(
    gateway: Running, start_upstream: StartUpstream, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    dies = After(sends_and_closes())
    await gateway.register("box", await start_upstream(dies))
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connected(gateway.port))
        await client.send(request(path, stream=True))
        begun = await first_comment(client)
        dies.go.set()
        name, data = event(await broken_rest(client, begun))
    assert data["error"]["code"] == "upstream_broke"
    assert data["error"]["status"] == 502
    assert name == (b"error" if path == "/v1/messages" else b"")
    assert data.get("type") == ("error" if path == "/v1/messages" else None)
    await eventually(lambda: records(caplog), what="the record is there")
    assert records(caplog)[0]["status"] == 502


def request(path: str, **body: Any) -> bytes:
    content = json.dumps({"model": "coder", **body}).encode()
    return b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (
        path.encode(),
        len(content),
        content,
    )


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("split", ["whole", "head later", "head before"])
@pytest.mark.parametrize("status", [400, 503])
async def test_an_answer_that_is_no_stream_is_an_event(
    gateway: Running, start_upstream: StartUpstream, status: int, split: str, framing: str
) -> None:
    """`split` is when the head comes: with its body, or one before the other, or before the wait."""
    refusal = reply(b'{"error": {"message": "no", "code": "theirs"}}', status)
    if framing == "chunked":
        head, _, body = refusal.partition(b"\r\n\r\n")
        head = head[: head.index(b"Content-Length")] + b"Transfer-Encoding: chunked\r\n\r\n"
        body = chunk(body) + LAST_CHUNK
    else:
        head, _, body = refusal.partition(b"\r\n\r\n")
        head += b"\r\n\r\n"
    if split == "head before":
        late = After(sends(body), first=head)
    else:
        late = After(sends(head + body) if split == "whole" else sends(head, body))
    await gateway.register("box", up := await start_upstream(late))
    async with asking(gateway, stream=True) as client:
        begun = await first_comment(client)
        late.go.set()
        _, data = event(await broken_rest(client, begun))
    assert (data["error"]["code"], data["error"]["status"]) == ("theirs", status)
    assert len(up.conversations) == 1


async def test_who_waited_as_long_as_may_be_is_told_in_the_stream(
    start_gateway: StartGateway, start_upstream: StartUpstream
) -> None:
    gateway = await start_gateway(**SOON, limits={"max_queue_wait_s": 0.3})
    await gateway.register("box", await start_upstream(sends_and_hangs()), ONE_SLOT)
    async with asking(gateway), asking(gateway, stream=True) as client:
        begun = await first_comment(client)
        _, data = event(await broken_rest(client, begun))
    assert (data["error"]["code"], data["error"]["status"]) == ("queue_timeout", 429)


async def test_a_stream_that_breaks_later_ends_as_it_would_without_comments(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    breaks = After(sends_and_closes(CHUNKED_STREAM + chunk(b"data: 1\n\n")))
    await gateway.register("box", await start_upstream(breaks))
    async with asking(gateway, stream=True) as client:
        begun = await first_comment(client)
        breaks.go.set()
        body = await broken_rest(client, begun)
    assert body.startswith(b"data: 1\n\n")
    assert event(body.removeprefix(b"data: 1\n\n"))[1]["error"]["code"] == "upstream_broke"


# --- who hears nothing ------------------------------------------------------------------------


async def test_who_does_not_ask_for_a_stream_hears_nothing_before_the_answer(
    gateway: Running, start_upstream: StartUpstream
) -> None:
    late = After(answers(b'{"ok": true}'))
    await gateway.register("box", up := await start_upstream(late))
    async with asking(gateway, stream=False) as plain, asking(gateway, stream=True) as stream:
        await first_comment(stream)
        await eventually(lambda: len(up.conversations) == 2, what="both are asked")
        late.go.set()
        got = await plain.reply()
    assert (got.json, got.fields["x-rolemesh-node"]) == ({"ok": True}, "box")


@pytest.mark.parametrize("falls_back", [False, True])
async def test_comments_can_be_turned_off(
    start_gateway: StartGateway, start_upstream: StartUpstream, falls_back: bool
) -> None:
    """For an alias, also when another one falls back to it."""
    late = After(sends(STREAM))
    up = await start_upstream(late)
    proxy = {"type": "proxy", "proxy_url": up.url}
    off = {**proxy, "timeouts": {"keepalive_after_s": 0}}
    first = {**DISCOVERED, "fallback": ["off"]}
    gateway = await start_gateway(models={"first": first, "off": off, "on": proxy}, **SOON)
    asked = "first" if falls_back else "off"
    async with (
        asking(gateway, asked, stream=True) as silent,
        asking(gateway, "on", stream=True) as other,
    ):
        await eventually(lambda: len(up.conversations) == 2, what="the upstream is asked")
        for _ in range(5):
            await other.reader.readuntil(b": waiting")
        late.go.set()
        got = await silent.reply()
    assert got.raw_body.count(b": waiting") <= falls_back  # it may be due already
    assert without_comments(got.body) == EVENTS


def records(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [
        getattr(each, FIELDS)
        for each in caplog.records
        if each.name == "rolemesh.gateway.inference"
    ]
