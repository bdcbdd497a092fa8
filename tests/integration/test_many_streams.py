"""Two hundred streams at once over two nodes with two instances each, and one instance killed."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rolemesh.runtime.tasks import TaskScope
from tests.integration.conftest import StartDaemon
from tests.integration.talk import (
    Heard,
    Watch,
    asks_for,
    endless_model,
    listen,
    patient_session,
)
from tests.lab.mesh import Daemon, get_json, instances
from tests.lab.poll import eventually

STREAMS = 200
SLOTS = 4


@pytest.fixture
async def mesh(
    start_gateway: StartDaemon, start_agent: StartDaemon
) -> tuple[Daemon, Daemon, Daemon]:
    """Start a gateway and two nodes whose two instances each run the same model."""
    gateway = await start_gateway(
        {"aliases": {"from_roles": True}, "limits": {"max_queue": 2 * STREAMS}}
    )
    configuration = {
        "models": [endless_model("endless-gguf", "talker", parallel=SLOTS)],
        "instances": {"cpu0": {"model": "endless-gguf"}, "cpu1": {"model": "endless-gguf"}},
    }
    left = await start_agent("left", configuration, gateway)
    right = await start_agent("right", configuration, gateway)
    await eventually(lambda: all_ready(left, right), what="all instances ready", deadline_s=30)
    await eventually(lambda: has_candidates(gateway, 4), what="the gateway knows all of them")
    return gateway, left, right


async def all_ready(*agents: Daemon) -> bool:
    states = [each["state"] for agent in agents for each in (await instances(agent)).values()]
    return states == ["ready"] * 2 * len(agents)


async def has_candidates(gateway: Daemon, number: int) -> bool:
    """Tell whether so many instances can be chosen."""
    _, told = await get_json(f"{gateway.url}/v1/rolemesh/explain/talker")
    ready = [each for each in told["candidates"] if each["warmth"] == "ready"]
    return len(ready) == number


def tokens_of(number: int) -> int:
    """Return how long the answer to a request is: some, but not many, are alike."""
    return 20 + number % 67


@asynccontextmanager
async def many_streams(gateway: Daemon) -> AsyncIterator[list[Heard]]:
    """Have all streams under way; when the block ends they have ended."""
    all_heard = [Heard() for _ in range(STREAMS)]
    async with patient_session() as session, TaskScope() as scope:
        tasks = [
            scope.start(
                listen(
                    session,
                    f"{gateway.url}/v1/chat/completions",
                    asks_for(tokens_of(number), says=f"request {number}"),
                    heard=heard,
                ),
                name=f"stream {number}",
            )
            for number, heard in enumerate(all_heard)
        ]
        yield all_heard
        await asyncio.gather(*tasks)


async def test_each_is_whole_in_order_and_its_own(mesh: tuple[Daemon, Daemon, Daemon]) -> None:
    gateway, left, right = mesh
    places = [(agent, name) for agent in (left, right) for name in ("cpu0", "cpu1")]
    watch = Watch(*places)
    async with TaskScope() as scope:
        watching = scope.start(watch.run(), name="watch")
        async with many_streams(gateway) as all_heard:
            pass
        watching.cancel()
    wrong = {
        number: heard
        for number, heard in enumerate(all_heard)
        if not (heard.is_complete and heard.has_said(tokens_of(number)))
    }
    assert wrong == {}
    assert len(set.union(*(heard.ids for heard in all_heard))) == STREAMS
    # Every instance had its part. A stream that had to be kept waiting with comments does not say who.
    answered = {
        (heard.fields.get("X-RoleMesh-Node"), heard.fields.get("X-RoleMesh-Instance"))
        for heard in all_heard
    }
    assert answered >= {(node, name) for node in ("left", "right") for name in ("cpu0", "cpu1")}
    assert watch.looks > 0
    assert watch.most_waiting == 0


async def test_one_instance_dies_and_nobody_who_has_heard_nothing_hears_of_it(
    mesh: tuple[Daemon, Daemon, Daemon],
) -> None:
    gateway, left, _ = mesh
    victim = llama_server_of(left, "cpu0")
    async with many_streams(gateway) as all_heard:
        await eventually(
            lambda: sum(heard.is_done for heard in all_heard) > STREAMS // 10,
            what="they are under way",
        )
        os.kill(victim, signal.SIGKILL)
    broken = 0
    for number, heard in enumerate(all_heard):
        if heard.is_complete:
            assert heard.has_said(tokens_of(number)), (number, heard)
        else:
            broken += 1
            assert heard.is_signalled, heard
            assert heard.is_the_beginning_of(tokens_of(number)), heard
            assert heard.ids, heard  # who had heard nothing got its whole answer elsewhere
    assert broken <= SLOTS
    assert len(set.union(*(heard.ids for heard in all_heard))) == STREAMS


def llama_server_of(agent: Daemon, instance: str) -> int:
    """Return the pid of an instance's llama-server."""

    def is_it(pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return b"--alias" in words and any(f"/{instance}/".encode() in word for word in words)

    (pid,) = filter(is_it, agent.program.processes())
    return pid
