"""Connections to upstreams: reuse, stale ones, backpressure, and what leaving clients do to them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.errors import ConnectFailed
from rolemesh.relay import upstream as upstream_module
from rolemesh.relay.client import ClientStream, InboundRequest
from rolemesh.relay.fetch import fetch
from rolemesh.relay.upstream import UpstreamPool
from tests.fakes.client import ask, connected, post
from tests.fakes.serving import Relay, serving
from tests.fakes.upstream import (
    CHUNKED_STREAM,
    LAST_CHUNK,
    Conversation,
    Script,
    answers,
    chunk,
    reply,
    sends,
    sends_and_closes,
    sends_and_hangs,
    upstream,
)
from tests.lab.poll import eventually
from tests.lab.processes import free_port

PATH = "/v1/completions"
MIB = 1 << 20


# --- the pool ---------------------------------------------------------------------------------


async def test_a_connection_serves_one_request_after_another() -> None:
    async with upstream(answers(b"{}")) as up, serving(Relay(upstream=up)) as served:
        for _ in range(5):
            assert (await ask(served.port, PATH, b"{}")).status == 200
        assert up.accepted == 1


@pytest.mark.parametrize(
    "script",
    [
        answers(b"{}", fields=b"Connection: close\r\n"),
        sends_and_closes(b"HTTP/1.1 200 OK\r\n\r\n{}"),
        sends_and_closes(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
    ],
)
async def test_a_connection_the_upstream_does_not_keep_is_not_used_again(script: Script) -> None:
    async with upstream(script) as up, serving(Relay(upstream=up)) as served:
        for _ in range(2):
            assert (await ask(served.port, PATH, b"{}")).body == b"{}"
        assert up.accepted == 2


async def dies_when_asked_again(conversation: Conversation) -> None:
    """Answer, keep the connection, and close it without a word at the next request on it."""
    await conversation.send(reply(b"{}"))
    await conversation._reader.readuntil(b"\r\n\r\n")
    conversation.close()


async def test_a_connection_that_died_while_idle_is_replaced_once_by_a_fresh_one() -> None:
    async with upstream(dies_when_asked_again) as up:
        relay = Relay(upstream=up)
        async with serving(relay) as served:
            for _ in range(3):
                assert (await ask(served.port, PATH, b"{}")).status == 200
        assert not any(relay.results)
        assert up.accepted == 3


async def test_a_fresh_connection_that_dies_is_not_replaced() -> None:
    async with upstream(sends_and_closes()) as up, serving(Relay(upstream=up)) as served:
        assert (await ask(served.port, PATH, b"{}")).status == 502
        assert up.accepted == 1


async def test_a_connection_idle_for_too_long_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """llama-server closes it after 5 s; meeting that moment would cost a retry."""
    async with upstream(answers(b"{}")) as up, serving(Relay(upstream=up)) as served:
        await ask(served.port, PATH, b"{}")
        monkeypatch.setattr(upstream_module, "IDLE_LIMIT_S", -1.0)
        await ask(served.port, PATH, b"{}")
        assert up.accepted == 2
        await eventually(lambda: len(up.writers) == 1, what="the old one is closed")


async def test_only_as_many_idle_connections_are_kept_as_were_needed_lately() -> None:
    async with upstream(answers(b"{}")) as up:
        pool = UpstreamPool()
        made = [await pool.connect(up.address, 1) for _ in range(3)]
        for connection in made:
            pool.give_back(connection, pool.clock())
        made[0].idle_since -= upstream_module.IDLE_LIMIT_S + 1
        last = pool.take_idle(up.address)
        assert last is made[-1]
        pool.give_back(last, pool.clock())
        assert [connection.closed for connection in made] == [True, False, False]
        pool.close()
        assert pool.take_idle(up.address) is None
        made[-1].abort()


async def test_an_idle_connection_that_speaks_unasked_is_closed() -> None:
    async with (
        upstream(sends(reply(b"{}"), b"", b"HTTP/1.1 200 OK\r\n")) as up,
        serving(Relay(upstream=up)) as served,
    ):
        await ask(served.port, PATH, b"{}")
        await eventually(lambda: not up.writers, what="the connection is closed")


async def test_a_unix_socket_is_an_address_too(short_path: Path) -> None:
    path = short_path / "a.sock"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"Host: localhost\r\n" in await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(b"{}"))
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    reply_to_us = await fetch(UpstreamAddress.unix(str(path)), "GET", "/", timeout_s=5)
    assert reply_to_us.body == b"{}"
    server.close()


# --- connecting -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        (UpstreamAddress.parse_url(f"http://127.0.0.1:{free_port()}"), "Connection refused"),
        (UpstreamAddress.unix("/nowhere/http.sock"), "No such file"),
        (UpstreamAddress.unix("/" + "a" * 200), ""),
        (UpstreamAddress(host="a\0b", port=1, authority="x"), ""),
        (UpstreamAddress(host="a" * 70 + ".invalid", port=1, authority="x"), ""),
    ],
)
async def test_a_failed_connection_says_where_to_and_why(
    address: UpstreamAddress, cause: str
) -> None:
    with pytest.raises(ConnectFailed, match=f"(?i){cause}") as failed:
        await UpstreamPool().connect(address, 5)
    assert failed.value.upstream == str(address) in str(failed.value)


async def test_connecting_takes_no_longer_than_it_may() -> None:
    address = UpstreamAddress.parse_url("http://127.0.0.1:1")
    with pytest.raises(ConnectFailed, match="within 0 s"):
        await UpstreamPool().connect(address, 0)


# --- backpressure -----------------------------------------------------------------------------


async def floods(conversation: Conversation) -> None:
    await conversation.send(CHUNKED_STREAM)
    try:
        while True:
            await conversation.send(chunk(b"data: " + b"x" * 65536 + b"\n\n"))
    except ConnectionError:
        return


async def standstill(up: Any) -> int:
    """Wait until nothing more is sent; returns how much was."""
    seen = -1

    async def stands() -> bool:
        nonlocal seen
        before, seen = seen, up.conversations[0].sent_bytes if up.conversations else -1
        await asyncio.sleep(0.1)
        return bool(before == seen > 0)

    await eventually(stands, what="the upstream stands still")
    return seen


async def test_a_client_that_does_not_read_stops_the_upstream() -> None:
    async with (
        upstream(floods) as up,
        serving(Relay(upstream=up)) as served,
        connected(served.port) as client,
    ):
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(post(PATH, b"{}"))
        sent = await standstill(up)
        assert sent < 16 * MIB  # the kernel's buffers of both connections, and little of ours
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        await client.reader.readexactly(sent)
        await eventually(lambda: up.conversations[0].sent_bytes > sent, what="it goes on")


async def test_a_connection_paused_for_a_slow_client_reads_for_the_next() -> None:
    """It went back to the pool paused: the next request on it never saw its answer."""
    reading: list[bool] = []

    async def handle(_request: InboundRequest, client: ClientStream) -> None:
        connection = await UpstreamPool().connect(up.address, 5)
        client.begin(200, b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * (16 * MIB), None)
        client.set_source(connection.transport)
        reading.append(connection.transport.is_reading())
        client.end()
        reading.append(connection.transport.is_reading())
        connection.abort()

    async with (
        upstream(answers(b"")) as up,
        serving(handle) as served,
        connected(served.port) as client,
    ):
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(post(PATH, b"{}"))
        await eventually(lambda: len(reading) == 2, what="the reply is written")
    assert reading == [False, True]


# --- leaving ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        sends_and_hangs(),
        sends_and_hangs(CHUNKED_STREAM),
        sends_and_hangs(CHUNKED_STREAM + chunk(b"data: 1\n\n")),
        sends_and_hangs(reply(b"hello")[:-1]),
        floods,
    ],
)
@pytest.mark.parametrize("half", [False, True])
async def test_a_client_that_leaves_closes_the_upstream(script: Script, half: bool) -> None:
    async with upstream(script) as up:
        relay = Relay(upstream=up)
        async with serving(relay) as served, connected(served.port) as client:
            await client.send(post(PATH, b"{}"))
            await eventually(lambda: up.conversations, what="the upstream was asked")
            if half:
                client.half_close()
            else:
                client.reset()
            await eventually(lambda: not up.writers, what="the upstream is closed", deadline_s=1)
            await eventually(lambda: relay.results, what="the handler has ended", deadline_s=1)
        assert isinstance(relay.results[0], asyncio.CancelledError)


async def test_a_client_that_leaves_after_its_answer_leaves_the_connection_to_others() -> None:
    script = sends(CHUNKED_STREAM + chunk(b"data: 1\n\n") + LAST_CHUNK)
    async with upstream(script) as up, serving(Relay(upstream=up)) as served:
        for _ in range(3):
            async with connected(served.port) as client:
                await client.post(PATH, b"{}")
                client.reset()
        assert up.accepted == 1
