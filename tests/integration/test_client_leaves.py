"""A client that leaves frees the slot in llama-server, in a stream and in a plain request.

A plain request is the harder one: llama-server writes nothing before its end, so it would notice
late, beside busy streams not at all. It is noticed because the agent asks for a stream.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.conftest import StartDaemon, model
from tests.lab.mesh import Daemon, instance_is_ready, usable_models
from tests.lab.poll import eventually

ENDLESS = " ".join(f"w{number}" for number in range(50))

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
SURFACES = (CHAT, "/v1/completions", MESSAGES, RESPONSES)

Leave = Callable[[asyncio.StreamWriter], None]


def close(writer: asyncio.StreamWriter) -> None:
    """Leave as a killed process does."""
    writer.transport.abort()


def half_close(writer: asyncio.StreamWriter) -> None:
    """Leave as a client does that has nothing more to send; it counts as leaving."""
    writer.write_eof()


WAYS = [*((close, path) for path in SURFACES), (half_close, CHAT)]


@pytest.fixture
async def talker(
    start_gateway: StartDaemon, start_agent: StartDaemon, make_model: Callable[..., Path]
) -> tuple[Daemon, Daemon]:
    """Start a gateway and an agent whose model never stops talking by itself."""
    gateway = await start_gateway({"aliases": {"from_roles": True}})
    path = make_model("endless", says=ENDLESS, loop=True, context=65536)
    # llama-server does not stop within a batch of the prompt.
    endless = {
        **model(path, "endless-gguf", "talker", context_size=65536, parallel=2),
        "args": ["--batch-size", "256"],
    }
    configuration = {"models": [endless], "instances": {"cpu0": {"model": "endless-gguf"}}}
    agent = await start_agent("box", configuration, gateway)
    await eventually(lambda: usable_models(gateway), what="talker usable")
    await eventually(lambda: instance_is_ready(agent), what="cpu0 ready")
    return gateway, agent


@asynccontextmanager
async def asking(
    gateway: Daemon, path: str = CHAT, *, stream: bool, name: str = "leaver", says: str = "talk"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send a request that lasts for minutes, as request `name`."""
    by_path: dict[str, dict[str, Any]] = {
        CHAT: {"messages": [{"role": "user", "content": says}]},
        "/v1/completions": {"prompt": says},
        MESSAGES: {"messages": [{"role": "user", "content": says}]},
        RESPONSES: {"input": says},
        EMBEDDINGS: {"input": [says] * 2000},
    }
    body = json.dumps(
        {"model": "talker", "stream": stream, "max_tokens": 60_000, **by_path[path]}
    ).encode()
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\n"
            b"X-Request-Id: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (path.encode(), name.encode(), len(body), body)
        )
        yield reader, writer
    finally:
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def a_busy_stream(gateway: Daemon) -> AsyncIterator[None]:
    """Keep another slot streaming for the length of the block, to a client that reads it all."""
    async with asking(gateway, stream=True, name="other") as (reader, _):
        await reader.readuntil(b"w1")
        reading = asyncio.get_running_loop().create_task(read_to_the_end(reader))
        try:
            yield
            assert not reading.done()
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading


async def read_to_the_end(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


@pytest.mark.parametrize(("leave", "path"), WAYS)
async def test_a_stream_frees_its_slot_at_once(
    leave: Leave, path: str, talker: tuple[Daemon, Daemon]
) -> None:
    gateway, agent = talker
    async with asking(gateway, path, stream=True) as (reader, writer):
        assert b"data:" in await reader.readuntil(b"w1")
        assert await busy_slots(agent) == 1

        leave(writer)

        await eventually(lambda: all_idle(agent), what="the slot free", deadline_s=1.0)
        await both_record_the_leaving(gateway, agent)


@pytest.mark.parametrize(("leave", "path"), WAYS)
async def test_a_plain_request_frees_its_slot_at_once(
    leave: Leave, path: str, talker: tuple[Daemon, Daemon]
) -> None:
    gateway, agent = talker
    async with asking(gateway, path, stream=False) as (_, writer):
        await eventually(lambda: has_busy_slot(agent), what="the slot at work")

        leave(writer)

        await eventually(lambda: all_idle(agent), what="the slot free", deadline_s=1.0)
        await both_record_the_leaving(gateway, agent)


@pytest.mark.parametrize("path", SURFACES)
async def test_a_plain_request_frees_its_slot_at_once_beside_a_busy_stream(
    path: str, talker: tuple[Daemon, Daemon]
) -> None:
    gateway, agent = talker
    async with a_busy_stream(gateway), asking(gateway, path, stream=False) as (_, writer):
        await eventually(lambda: slots_at_work(agent, 2), what="both slots at work")

        close(writer)

        await eventually(lambda: slots_at_work(agent, 1), what="the slot free", deadline_s=1.0)
        await both_record_the_leaving(gateway, agent)


@pytest.mark.parametrize("path", SURFACES)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_is_given_up_while_its_prompt_is_read(
    *, stream: bool, path: str, talker: tuple[Daemon, Daemon]
) -> None:
    gateway, agent = talker
    async with asking(gateway, path, stream=stream, says="one two more " * 10_000) as (_, writer):
        await eventually(lambda: has_busy_slot(agent), what="the slot at work")
        before = releases(agent)  # with that of what it was asked to see whether it is ready

        close(writer)

        # From here on it is not asked: whatever it answers puts off its look at who is there. The
        # whole prompt takes far longer.
        await eventually(lambda: releases(agent) > before, what="the slot free", deadline_s=10.0)
        await eventually(lambda: all_idle(agent), what="all slots free")
        await both_record_the_leaving(gateway, agent)


async def test_embeddings_of_many_texts_are_given_up(
    start_gateway: StartDaemon, start_agent: StartDaemon, make_model: Callable[..., Path]
) -> None:
    gateway = await start_gateway({"aliases": {"from_roles": True}})
    entry = model(make_model("embedder", big_mib=64), "embedder", "talker", parallel=2)
    embedder = {**entry, "args": ["--embeddings", "--pooling", "mean"]}
    configuration = {"models": [embedder], "instances": {"cpu0": {"model": "embedder"}}}
    agent = await start_agent("box", configuration, gateway)
    await eventually(lambda: usable_models(gateway), what="talker usable")
    await eventually(lambda: instance_is_ready(agent), what="cpu0 ready")
    async with asking(gateway, EMBEDDINGS, stream=False, says="one two three " * 30) as (_, writer):
        await eventually(lambda: has_busy_slot(agent), what="the slots at work")

        close(writer)

        # All of them take a minute.
        await both_record_the_leaving(gateway, agent)
        await eventually(lambda: all_idle(agent), what="the slots free", deadline_s=10.0)


async def busy_slots(agent: Daemon) -> int:
    """Return how many slots are at work, as llama-server itself says."""
    (socket,) = agent.state.rglob("http.sock")
    connector = aiohttp.UnixConnector(path=str(socket))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get("http://localhost/slots") as reply,
    ):
        return sum(slot["is_processing"] for slot in json.loads(await reply.read()))


def releases(agent: Daemon) -> int:
    """Return how often llama-server has said that a slot is free again."""
    return sum("slot      release" in line for line in agent.program.lines())


async def slots_at_work(agent: Daemon, number: int) -> bool:
    """Tell whether llama-server works with just so many slots."""
    return await busy_slots(agent) == number


async def has_busy_slot(agent: Daemon) -> bool:
    """Tell whether llama-server works on something."""
    return await busy_slots(agent) > 0


async def all_idle(agent: Daemon) -> bool:
    """Tell whether llama-server works on nothing."""
    return await busy_slots(agent) == 0


async def both_record_the_leaving(gateway: Daemon, agent: Daemon) -> None:
    """Wait for the request's record in both logs."""
    for daemon in (gateway, agent):
        await daemon.program.line(r"request_id=leaver .*status=499|status=499 .*request_id=leaver")
