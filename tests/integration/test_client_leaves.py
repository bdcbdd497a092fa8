"""A client that leaves frees the slot in llama-server, in a stream and in a plain request."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.integration.conftest import StartDaemon, model
from tests.lab.mesh import Daemon, instance_is_ready, usable_models
from tests.lab.poll import eventually

ENDLESS = " ".join(f"w{number}" for number in range(50))


async def busy_slots(socket: Path) -> int:
    """Return how many slots are at work, as llama-server itself says."""
    connector = aiohttp.UnixConnector(path=str(socket))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get("http://localhost/slots") as reply,
    ):
        return sum(slot["is_processing"] for slot in json.loads(await reply.read()))


def instance_socket(agent: Daemon) -> Path:
    """Return the UNIX socket of the agent's only instance."""
    (socket,) = agent.state.rglob("http.sock")
    return socket


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("leaves_by", ["close", "half_close"])
async def test_the_slot_is_free_within_a_second_after_the_client_has_left(
    stream: bool,
    leaves_by: str,
    start_gateway: StartDaemon,
    start_agent: StartDaemon,
    make_model: Callable[..., Path],
) -> None:
    gateway = await start_gateway({"aliases": {"from_roles": True}})
    path = make_model("endless", says=ENDLESS, loop=True, context=65536)
    endless = model(path, "endless-gguf", "talker", context_size=65536)
    configuration = {"models": [endless], "instances": {"cpu0": {"model": "endless-gguf"}}}
    agent = await start_agent("box", configuration, gateway)
    await eventually(lambda: usable_models(gateway), what="talker usable")
    await eventually(lambda: instance_is_ready(agent), what="cpu0 ready")

    body = json.dumps(
        {
            "model": "talker",
            "stream": stream,
            "max_tokens": 1_000_000,
            "messages": [{"role": "user", "content": "talk"}],
        }
    ).encode()
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"X-Request-Id: leaver\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    if stream:
        assert b"data:" in await reader.readuntil(b"w1")
    socket = instance_socket(agent)
    await eventually(lambda: busy_slots(socket), what="a slot at work")

    if leaves_by == "half_close":
        writer.write_eof()
    else:
        writer.transport.abort()
    await eventually(lambda: _idle(socket), what="the slot free", deadline_s=1.0)

    await gateway.program.line(r"request_id=leaver .*status=499")
    await agent.program.line(r"request_id=leaver .*status=499")
    with contextlib.suppress(ConnectionError):
        writer.close()
        await writer.wait_closed()


async def _idle(socket: Path) -> bool:
    return await busy_slots(socket) == 0
