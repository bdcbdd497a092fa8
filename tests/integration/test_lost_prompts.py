"""A llama-server that dies while it reads a prompt, and one that refuses it."""

import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rolemesh.runtime.tasks import TaskScope
from tests.fakes import llama_program
from tests.integration.conftest import StartDaemon
from tests.integration.talk import (
    CHAT,
    Heard,
    asks_for,
    endless_model,
    expected,
    listen,
    of_llama_server,
    patient_session,
)
from tests.integration.test_crashes import llama_servers
from tests.lab.mesh import Daemon, get_json, instance_is_ready, post_json, usable_models
from tests.lab.poll import eventually

TOKENS = 40
PROGRAM = {"llama_server": {"path": str(Path(llama_program.__file__).absolute())}}
CONFIGURATION: dict[str, Any] = {
    "aliases": {"from_roles": True},
    "timeouts": {"keepalive_after_s": 0.2},
}


def node(**options: Any) -> dict[str, Any]:
    """Return the configuration of a node with one instance."""
    entry = {**endless_model("endless-gguf", "talker", parallel=1), **options}
    return {"models": [entry], "instances": {"cpu0": {"model": "endless-gguf"}}}


@pytest.fixture
async def reader(start_gateway: StartDaemon, start_agent: StartDaemon) -> tuple[Daemon, Daemon]:
    """Start a gateway and a node whose llama-server never comes to an end of a prompt."""
    gateway = await start_gateway(CONFIGURATION)
    configuration = {**node(args=["--fake", "reads-for-ever"]), **PROGRAM}
    agent = await start_agent("reader", configuration, gateway)
    await eventually(lambda: usable_models(gateway), what="talker usable", deadline_s=30)
    await eventually(lambda: instance_is_ready(agent), what="cpu0 ready", deadline_s=30)
    return gateway, agent


async def another_node(start_agent: StartDaemon, gateway: Daemon) -> Daemon:
    agent = await start_agent("other", node(), gateway)
    await eventually(lambda: instance_is_ready(agent), what="cpu0 ready", deadline_s=30)
    await eventually(lambda: has_candidates(gateway, 2), what="the gateway knows both")
    return agent


async def has_candidates(gateway: Daemon, number: int) -> bool:
    _, told = await get_json(f"{gateway.url}/v1/rolemesh/explain/talker")
    return [each["warmth"] for each in told["candidates"]] == ["ready"] * number


async def is_asked(gateway: Daemon) -> bool:
    """Tell whether the one request is at a node."""
    _, told = await get_json(f"{gateway.url}/v1/rolemesh/requests")
    return [each["phase"] for each in told["requests"]] == ["upstream"]


async def streamed(session: aiohttp.ClientSession, url: str, heard: Heard) -> str:
    await listen(session, url, asks_for(TOKENS), heard=heard)
    assert heard.is_complete, heard
    return heard.text


async def plain(url: str) -> str:
    status, reply = await post_json(url, asks_for(TOKENS))
    assert status == 200, reply
    return str(reply["choices"][0]["message"]["content"])


@pytest.mark.parametrize("stream", [True, False])
async def test_a_prompt_whose_reader_dies_is_read_elsewhere_and_nobody_hears_of_it(
    reader: tuple[Daemon, Daemon], start_agent: StartDaemon, stream: bool
) -> None:
    gateway, dying = reader
    url = f"{gateway.url}{CHAT}"
    heard = Heard()
    async with patient_session() as session, TaskScope() as scope:
        asking = scope.start(
            streamed(session, url, heard) if stream else plain(url), name="the long prompt"
        )
        await eventually(lambda: is_asked(gateway), what="it is at the node")
        await another_node(start_agent, gateway)
        assert not asking.done()
        assert stream == (heard.status == 200)  # it has heard comments, and nothing else
        (victim,) = llama_servers(dying)
        os.kill(victim, signal.SIGKILL)
        assert await asking == expected(TOKENS)
    await gateway.program.line(r"on other.*attempts=2|attempts=2.*on other")


async def test_a_prompt_too_long_is_refused_as_llama_server_itself_refuses_it(
    start_gateway: StartDaemon, start_agent: StartDaemon
) -> None:
    """Nothing is tried twice."""
    gateway = await start_gateway(CONFIGURATION)
    agents = [
        await start_agent(name, node(context_size=256), gateway) for name in ("left", "right")
    ]
    for agent in agents:
        await eventually(lambda: instance_is_ready(agent), what="ready", deadline_s=30)  # noqa: B023
    await eventually(lambda: has_candidates(gateway, 2), what="the gateway knows both")
    for stream in (False, True):
        body = asks_for(TOKENS, says="one two more " * 500, stream=stream)
        status, refusal = await post_json(f"{gateway.url}{CHAT}", body)
        assert status == 400
        assert refusal["error"]["type"] == "exceed_context_size_error"
        assert refusal["error"]["n_ctx"] == 256
    for agent in agents:
        text = (await of_llama_server(agent, "cpu0", "/metrics")).decode()
        assert "llamacpp:requests_deferred 0" in text
    lines = [line for line in gateway.program.lines() if ": 400 in " in line]
    assert len(lines) == 2
    assert not [line for line in lines if "attempts=2" in line]
