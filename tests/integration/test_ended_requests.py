"""Requests that end before their answer does: llama-server is free again, as it says itself.

What leaves in the middle of a prompt or an answer is in test_client_leaves; here is what leaves
before, and what an operator ends, or whoever takes a key away.
"""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from rolemesh.runtime.tasks import TaskScope
from tests.integration.conftest import StartDaemon, model
from tests.integration.talk import (
    CHAT,
    Heard,
    asks_for,
    busy_slots,
    endless_model,
    is_idle,
    listen,
    of_llama_server,
    patient_session,
)
from tests.lab.mesh import Daemon, get_json, instance_is_ready, model_states, usable_models
from tests.lab.models import TinyModel, make_model
from tests.lab.poll import eventually

ADMIN = "admin-key"
KEYS: dict[str, Any] = {
    "admin": {"key": ADMIN, "admin": True},
    "kept": {"key": "kept-key"},
    "gone": {"key": "gone-key"},
}
LONG = 3500


def configuration(**clients: Any) -> dict[str, Any]:
    return {"aliases": {"from_roles": True}, "auth": {"clients": clients}}


@pytest.fixture
async def gateway(start_gateway: StartDaemon) -> Daemon:
    return await start_gateway(configuration(**KEYS))


async def started(start_agent: StartDaemon, gateway: Daemon, *, parallel: int) -> Daemon:
    agent = await start_agent(
        "box",
        {
            "models": [endless_model("endless-gguf", "talker", parallel=parallel)],
            "instances": {"cpu0": {"model": "endless-gguf"}},
        },
        gateway,
    )
    await eventually(lambda: usable_models(gateway, key=ADMIN), what="usable", deadline_s=30)
    await eventually(lambda: instance_is_ready(agent), what="cpu0 ready", deadline_s=30)
    return agent


@asynccontextmanager
async def asking(
    gateway: Daemon, name: str, *, stream: bool, alias: str = "talker"
) -> AsyncIterator[asyncio.StreamWriter]:
    """Ask on a connection of its own; whoever closes it leaves."""
    body = json.dumps(asks_for(LONG, alias, stream=stream)).encode()
    host, port = gateway.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {ADMIN}\r\n"
        f"X-Request-Id: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    try:
        writer.write(head.encode() + body)
        yield writer
    finally:
        writer.transport.abort()


async def phases(gateway: Daemon) -> dict[str, str]:
    """Return how far each request is."""
    _, told = await get_json(f"{gateway.url}/v1/rolemesh/requests", key=ADMIN)
    return {each["request_id"]: each["phase"] for each in told["requests"]}


async def is_in(gateway: Daemon, name: str, phase: str) -> bool:
    return (await phases(gateway)).get(name) == phase


async def tokens_said(agent: Daemon) -> int:
    """Return how many tokens llama-server has made for anybody since its start."""
    text = (await of_llama_server(agent, "cpu0", "/metrics")).decode()
    (line,) = [
        each for each in text.splitlines() if each.startswith("llamacpp:tokens_predicted_total ")
    ]
    return int(float(line.split()[1]))


# --- clients that leave -----------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_who_leaves_the_queue_never_reaches_llama_server(
    gateway: Daemon, start_agent: StartDaemon, stream: bool
) -> None:
    agent = await started(start_agent, gateway, parallel=1)
    async with asking(gateway, "holder", stream=True) as holder:
        await eventually(lambda: is_in(gateway, "holder", "stream"), what="the slot is taken")
        async with asking(gateway, "leaver", stream=stream) as leaver:
            await eventually(lambda: is_in(gateway, "leaver", "queue"), what="it waits")
            leaver.transport.abort()
            await eventually(lambda: has_left(gateway, "leaver"), what="it left", deadline_s=1.0)
        assert await busy_slots(agent) == 1
        holder.transport.abort()
        await eventually(lambda: is_idle(agent), what="the slot is free", deadline_s=1.0)
    await gateway.program.line(r"request_id=leaver .*status=499|status=499 .*request_id=leaver")
    # At most the agent has said that it has no slot.
    assert not [line for line in agent.program.lines() if re.search("=leaver .*instance=", line)]
    assert await is_idle(agent)


async def has_left(gateway: Daemon, name: str) -> bool:
    return name not in await phases(gateway)


@pytest.mark.parametrize("stream", [True, False])
async def test_who_leaves_during_a_load_is_not_answered_after_it(
    gateway: Daemon, start_agent: StartDaemon, stream: bool
) -> None:
    path = make_model(TinyModel(name="heavy", says="one two", loop=True, big_mib=64))
    heavy = {**model(path, "heavy-gguf", "heavy"), "args": ["--metrics"]}
    agent = await start_agent("box", {"models": [heavy], "instances": {"cpu0": {}}}, gateway)
    await eventually(lambda: usable_models(gateway, key=ADMIN), what="heavy usable")
    async with asking(gateway, "leaver", stream=stream, alias="heavy") as leaver:
        await eventually(lambda: is_loading(agent), what="it loads")
        leaver.transport.abort()
        await eventually(lambda: has_left(gateway, "leaver"), what="it left", deadline_s=1.0)
    for daemon in (gateway, agent):
        await daemon.program.line(r"request_id=leaver .*status=499|status=499 .*request_id=leaver")
    await eventually(lambda: instance_is_ready(agent), what="it is loaded", deadline_s=60)
    assert await is_idle(agent)
    assert await tokens_said(agent) <= 1  # that of the check whether it is ready


async def is_loading(agent: Daemon) -> bool:
    return await model_states(agent) == {"heavy-gguf": "loading"}


# --- requests that others end -----------------------------------------------------------------


async def delete(gateway: Daemon, name: str) -> int:
    async with (
        aiohttp.ClientSession(headers={"X-Api-Key": ADMIN}) as session,
        session.delete(f"{gateway.url}/v1/rolemesh/requests/{name}") as reply,
    ):
        return reply.status


async def plain(session: aiohttp.ClientSession, gateway: Daemon, key: str) -> tuple[int, Any]:
    headers = {"X-Api-Key": key, "X-Request-Id": "plain"}
    url = f"{gateway.url}{CHAT}"
    async with session.post(url, json=asks_for(LONG), headers=headers) as reply:
        return reply.status, await reply.json()


async def test_what_an_operator_ends_frees_its_slot_and_its_client_is_told(
    gateway: Daemon, start_agent: StartDaemon
) -> None:
    agent = await started(start_agent, gateway, parallel=2)
    heard = Heard()
    async with patient_session() as session, TaskScope() as scope:
        url = f"{gateway.url}{CHAT}"
        streaming = scope.start(
            listen(session, url, asks_for(LONG), key="kept-key", heard=heard), name="stream"
        )
        waiting = scope.start(plain(session, gateway, "gone-key"), name="plain")
        await eventually(lambda: heard.text, what="the stream is under way")
        await eventually(lambda: slots_at_work(agent, 2), what="both are at work")
        (stream,) = [name for name in await phases(gateway) if name != "plain"]

        assert await delete(gateway, "plain") == 200
        await eventually(lambda: slots_at_work(agent, 1), what="its slot is free", deadline_s=1.0)
        status, reply = await waiting
        assert (status, reply["error"]["code"]) == (503, "cancelled")

        assert await delete(gateway, stream) == 200
        await eventually(lambda: is_idle(agent), what="its slot is free", deadline_s=1.0)
        await streaming
        assert heard.is_signalled, heard
        assert heard.error is not None
        assert heard.error["code"] == "cancelled"
        assert heard.is_the_beginning_of(LONG), heard


async def slots_at_work(agent: Daemon, number: int) -> bool:
    return await busy_slots(agent) == number


async def test_a_key_that_is_taken_away_takes_its_requests_with_it(
    gateway: Daemon, start_agent: StartDaemon
) -> None:
    agent = await started(start_agent, gateway, parallel=2)
    kept, gone = Heard(), Heard()
    async with patient_session() as session, TaskScope() as scope:
        url = f"{gateway.url}{CHAT}"
        body = asks_for(LONG)
        one = scope.start(listen(session, url, body, key="kept-key", heard=kept), name="kept")
        other = scope.start(listen(session, url, body, key="gone-key", heard=gone), name="gone")
        waiting = scope.start(plain(session, gateway, "gone-key"), name="waiting")
        await eventually(lambda: kept.text and gone.text, what="both streams are under way")
        await eventually(lambda: is_in(gateway, "plain", "queue"), what="one waits")

        gateway.drop_in("50-test.yaml", configuration(admin=KEYS["admin"], kept=KEYS["kept"]))
        gateway.program.send(signal.SIGHUP)

        await eventually(lambda: slots_at_work(agent, 1), what="its slot is free", deadline_s=5.0)
        await other
        assert gone.is_signalled, gone
        assert gone.error is not None
        assert gone.error["code"] == "cancelled"
        status, reply = await waiting
        assert (status, reply["error"]["code"]) == (503, "cancelled")
        said = len(kept.text)
        await eventually(lambda: len(kept.text) > said, what="the other one goes on")
        one.cancel()
    await eventually(lambda: is_idle(agent), what="all slots are free", deadline_s=1.0)
