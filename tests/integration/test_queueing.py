"""The queue before real llama-servers: who is next, and that nothing piles up inside of them."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from rolemesh.runtime.tasks import TaskScope
from tests.integration.conftest import StartDaemon
from tests.integration.talk import (
    CHAT,
    Heard,
    Watch,
    asks_for,
    endless_model,
    expected,
    is_idle,
    listen,
    patient_session,
)
from tests.lab.mesh import Daemon, get_json, instance_is_ready, usable_models
from tests.lab.poll import eventually

TOKENS = 40
LONG = 1500  # tokens that clients cannot fall behind with, however busy this machine is
ADMIN = "admin-key"
KEYS: Mapping[str, Any] = {
    "admin": {"key": ADMIN, "admin": True},
    "many": {"key": "many-key"},
    "few": {"key": "few-key"},
    "ci": {"key": "ci-key", "priority": "batch"},
}
ROLE = {"type": "discovered", "role": "talker"}
ALIASES = {"talker": ROLE, "now": {**ROLE, "priority": "interactive"}}


async def one_node(
    start_agent: StartDaemon, *gateways: Daemon, parallel: int, key: str | None = None
) -> Daemon:
    """Start a node with one instance, and wait until all gateways know it."""
    configuration = {
        "models": [endless_model("endless-gguf", "talker", parallel=parallel)],
        "instances": {"cpu0": {"model": "endless-gguf"}},
    }
    agent = await start_agent("box", configuration, *gateways)
    await eventually(lambda: instance_is_ready(agent), what="cpu0 ready", deadline_s=30)
    for gateway in gateways:
        await eventually(lambda: usable_models(gateway, key=key), what="talker usable")  # noqa: B023
    return agent


# --- never more than there are slots ----------------------------------------------------------


async def plain(
    session: aiohttp.ClientSession, url: str, body: Mapping[str, Any]
) -> tuple[int, Any]:
    async with session.post(url, json=body) as reply:
        return reply.status, await reply.json()


async def says_twice(session: aiohttp.ClientSession, gateway: Daemon) -> None:
    """Ask for two answers at once, which take two slots."""
    status, reply = await plain(session, f"{gateway.url}{CHAT}", asks_for(TOKENS, n=2))
    assert status == 200, reply
    said = [choice["message"]["content"] for choice in reply["choices"]]
    assert said == [expected(TOKENS)] * 2


async def says_once(session: aiohttp.ClientSession, gateway: Daemon) -> None:
    heard = await listen(session, f"{gateway.url}{CHAT}", asks_for(TOKENS))
    assert heard.is_complete, heard
    assert heard.has_said(TOKENS), heard


async def insists(session: aiohttp.ClientSession, agent: Daemon) -> int:
    """Ask the agent itself, again and again while it has no slot; returns how often it had none."""
    body = asks_for(TOKENS, "endless-gguf")
    for refusals in range(1000):
        status, reply = await plain(session, f"{agent.url}{CHAT}", body)
        if status == 200:
            assert reply["choices"][0]["message"]["content"] == expected(TOKENS)
            return refusals
        assert (status, reply["error"]["code"]) == (503, "slots_busy"), reply
        await asyncio.sleep(0.02)
    raise AssertionError("the agent never had a slot for a direct client")


async def test_two_gateways_and_a_direct_client_never_fill_more_than_the_slots(
    start_gateway: StartDaemon, start_agent: StartDaemon
) -> None:
    roles = {"aliases": {"from_roles": True}}
    gateways = [await start_gateway(roles, name=name) for name in ("one", "two")]
    agent = await one_node(start_agent, *gateways, parallel=2)
    watch = Watch((agent, "cpu0"))
    async with patient_session() as session, TaskScope() as scope:
        watching = scope.start(watch.run(), name="watch")
        asking = [
            *(says_once(session, gateway) for gateway in gateways for _ in range(20)),
            *(says_twice(session, gateway) for gateway in gateways for _ in range(5)),
        ]
        direct = [insists(session, agent) for _ in range(5)]
        refusals, _ = await asyncio.gather(asyncio.gather(*direct), asyncio.gather(*asking))
        watching.cancel()
    assert watch.most_busy == {(agent.url, "cpu0"): 2}
    assert watch.most_waiting == 0
    assert watch.looks > 0
    assert sum(refusals) > 0  # it did meet the others there


# --- whose turn it is -------------------------------------------------------------------------


class Line:
    """Requests that wait behind one that has the only slot; `served` is in which order they end."""

    def __init__(self, gateway: Daemon, session: aiohttp.ClientSession, scope: TaskScope) -> None:
        self._gateway = gateway
        self._session = session
        self._scope = scope
        self.asked: list[asyncio.Task[None]] = []
        self.served: list[str] = []

    async def enter(self, *names: str, key: str = "many", alias: str = "talker") -> None:
        """Have requests wait, one after another."""
        for name in names:
            before = await queued(self._gateway)
            asking = self._ask(name, f"{key}-key", alias)
            self.asked.append(self._scope.start(asking, name=name))
            await eventually(
                lambda: self._is_longer(before),  # noqa: B023
                what=f"{name} waits",
            )

    async def _is_longer(self, before: int) -> bool:
        return await queued(self._gateway) > before

    async def _ask(self, name: str, key: str, alias: str) -> None:
        body = asks_for(TOKENS, alias, says=name)
        heard = await listen(self._session, f"{self._gateway.url}{CHAT}", body, key=key)
        assert heard.is_complete, heard
        assert heard.has_said(TOKENS), heard
        self.served.append(name)


async def queued(gateway: Daemon) -> int:
    """Return how many requests wait, as the gateway tells operators."""
    _, status = await get_json(f"{gateway.url}/v1/rolemesh/status", key=ADMIN)
    return int(status["requests"]["queued"])


@asynccontextmanager
async def line(gateway: Daemon, agent: Daemon) -> AsyncIterator[Line]:
    """Take the only slot, for the length of the block; all who have lined up are answered then."""
    holder = Heard()
    async with patient_session() as session, TaskScope() as scope:
        body = asks_for(4000, says="hold the slot")
        url = f"{gateway.url}{CHAT}"
        holding = scope.start(listen(session, url, body, key=ADMIN, heard=holder), name="holder")
        await eventually(lambda: holder.text, what="the slot is taken")
        made = Line(gateway, session, scope)
        yield made
        assert made.served == []
        holding.cancel()
        await asyncio.gather(*made.asked)
    await eventually(lambda: is_idle(agent), what="the slot is free")


@pytest.fixture
async def lined(start_gateway: StartDaemon, start_agent: StartDaemon) -> tuple[Daemon, Daemon]:
    """Start a gateway with keys and a queue for eight, and a node with one slot."""
    gateway = await start_gateway(
        {
            "auth": {"clients": dict(KEYS)},
            "models": ALIASES,
            "limits": {"max_queue": 8},
            "timeouts": {"keepalive_after_s": 0},
        }
    )
    return gateway, await one_node(start_agent, gateway, parallel=1, key=ADMIN)


async def test_classes_go_in_order_keys_take_turns_and_beyond_its_bound_the_queue_refuses(
    lined: tuple[Daemon, Daemon],
) -> None:
    gateway, agent = lined
    async with line(gateway, agent) as it:
        await it.enter("batch", key="ci")
        await it.enter("m1", "m2", "m3", "m4", key="many")
        await it.enter("f1", "f2", key="few")
        await it.enter("now", alias="now", key="few")
        await it.enter("last", key="few")
        async with patient_session() as session:
            headers = {"X-Api-Key": "few-key"}
            url = f"{gateway.url}{CHAT}"
            async with session.post(url, json=asks_for(TOKENS), headers=headers) as reply:
                assert reply.status == 429
                assert int(reply.headers["Retry-After"]) >= 1
                error = (await reply.json())["error"]
                assert error["code"] == "queue_full"
                assert "limits.max_queue" in error["message"]
    assert it.served == ["now", "m1", "f1", "m2", "f2", "m3", "last", "m4", "batch"]


async def test_nobody_waits_for_ever_behind_a_run_of_higher_classes(
    lined: tuple[Daemon, Daemon],
) -> None:
    """Several of the highest class want the only slot at any time."""
    gateway, agent = lined
    url = f"{gateway.url}{CHAT}"
    served = 0

    async def run() -> None:
        nonlocal served
        while True:
            heard = await listen(session, url, asks_for(LONG, "now"), key="many-key")
            assert heard.has_said(LONG), heard
            served += 1

    async with patient_session() as session, TaskScope() as scope:
        runs = [scope.start(run(), name=f"run {number}") for number in range(8)]
        await eventually(lambda: served > 4, what="they are under way")
        before = served
        heard = await listen(session, url, asks_for(TOKENS), key="ci-key")
        assert heard.has_said(TOKENS), heard
        assert served > before + 10, heard.fields["X-RoleMesh-Queue-Ms"]
        for each in runs:
            each.cancel()
    await eventually(lambda: is_idle(agent), what="the slot is free")
