"""A running gateway hands over to another version of its program; nobody notices."""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.client import Client, connected, post
from tests.fakes.hammer import hammering
from tests.fakes.installed_program import InstalledProgram
from tests.fakes.service import Service, service
from tests.fakes.unix_http import ask_at
from tests.fakes.upstream import CHUNKED_STREAM, LAST_CHUNK, Conversation, Upstream, upstream
from tests.lab.mesh import get_json, write_drop_in
from tests.lab.poll import eventually
from tests.lab.processes import free_port, is_running

DRAIN_S = 3
GAP_S = 0.5
RELOAD = "/v1/rolemesh/reload"


class World:
    """An installed gateway that runs as a service, and an upstream whose answers take long."""

    def __init__(self, run: Service, program: InstalledProgram, folder: Path, up: Upstream) -> None:
        self.run = run
        self.program = program
        self.port = free_port()
        self._folder = folder
        self._up = up
        self.configure()

    def configure(self, **tree: Any) -> None:
        whole = {
            "listen": {"host": "127.0.0.1", "port": self.port},
            "limits": {"drain_s": DRAIN_S},
            "models": {"planner": {"type": "proxy", "proxy_url": self._up.url}},
            **tree,
        }
        write_drop_in(self._folder / "conf.d", "50-test.yaml", whole)

    async def reload(self) -> tuple[int, Any]:
        return await ask_at(self._folder / "control.sock", "POST", RELOAD)

    async def version(self) -> str:
        _, reply = await get_json(f"http://127.0.0.1:{self.port}/health")
        version: str = reply["version"]
        return version

    @asynccontextmanager
    async def stream(self, *fields: str) -> AsyncIterator["Stream"]:
        """Ask for an answer that goes on until told otherwise."""
        before = len(self._up.conversations)
        async with connected(self.port) as client:
            body = json.dumps({"model": "planner", "stream": True}).encode()
            await client.send(post("/v1/chat/completions", body, *fields))
            assert b"200 OK" in await client.reader.readuntil(b"hi")
            yield Stream(client, self._up.conversations[before])


class Stream:
    """A stream under way."""

    def __init__(self, client: Client, answer: Conversation) -> None:
        self._client = client
        self._answer = answer

    async def goes_on(self) -> None:
        await self._answer.send(b"3\r\nyes\r\n")
        assert (await self._client.reader.readuntil(b"yes")).endswith(b"yes")

    async def breaks_off(self) -> None:
        with suppress(ConnectionError):
            assert not (await self._client.rest()).endswith(LAST_CHUNK)

    async def ends_well(self) -> None:
        await self.goes_on()
        await self._answer.send(LAST_CHUNK)
        assert (await self._client.rest()).endswith(LAST_CHUNK)


async def begins(conversation: Conversation) -> None:
    await conversation.send(CHUNKED_STREAM, b"2\r\nhi\r\n")
    await conversation.hung_up()


@asynccontextmanager
async def started(short_path: Path, *environment: str) -> AsyncIterator[World]:
    """Start the gateway with these words for env(1)."""
    (short_path / "conf.d").mkdir()
    program = InstalledProgram(short_path, "rolemesh-gateway", "rolemesh.gateway.main")
    command: tuple[str | Path, ...] = (
        *("/usr/bin/env", *environment, f"RUNTIME_DIRECTORY={short_path}"),
        *(program.path, f"--config-dir={short_path / 'conf.d'}"),
        f"--state-dir={short_path / 'state'}",
    )
    async with upstream(begins) as up, service(short_path, command) as run:
        made = World(run, program, short_path, up)
        await run.start()
        yield made


@pytest.fixture
async def world(short_path: Path) -> AsyncIterator[World]:
    async with started(short_path, "WATCHDOG_USEC=1000000") as made:
        yield made


async def some_more(tally: Any, count: int = 20) -> None:
    wanted = tally.answered + count
    await eventually(lambda: tally.answered >= wanted, what="clients are answered", deadline_s=20)


async def test_an_upgrade_is_noticed_by_nobody(world: World) -> None:
    first = world.run.main_pid
    world.program.upgrade("7.0.0")
    async with world.stream() as stream, hammering(world.port) as tally:
        await some_more(tally)
        status, reply = await world.reload()
        assert (status, reply["process"]["version"]) == (200, "7.0.0")
        second = reply["process"]["pid"]
        await some_more(tally)
        assert world.run.main_pid == second != first
        assert await world.version() == "7.0.0"
        await stream.ends_well()
    assert (tally.refused, tally.broken) == (0, [])
    assert tally.longest_s < GAP_S
    await eventually(lambda: not is_running(first), what="the old process ends")
    assert is_running(second)


async def test_the_manager_hears_of_one_process_at_a_time(world: World) -> None:
    first = world.run.main_pid
    world.program.upgrade("7.0.0")
    await world.reload()
    second = world.run.main_pid

    def is_watched() -> bool:
        return any(
            each.pid == second and "WATCHDOG" in each.fields for each in world.run.manager.received
        )

    await eventually(is_watched, what="the new process feeds the watchdog")
    words = [
        (each.pid, name)
        for each in world.run.manager.received
        for name in ("MAINPID", "RELOADING", "READY", "STOPPING")
        if name in each.fields
    ]
    assert words == [
        *((first, "READY"), (first, "RELOADING"), (first, "MAINPID"), (first, "READY")),
        (second, "READY"),
    ]
    last_of_first = max(
        number for number, each in enumerate(world.run.manager.received) if each.pid == first
    )
    assert "MAINPID" in world.run.manager.received[last_of_first].fields


async def test_a_program_that_does_not_come_up_changes_nothing(world: World) -> None:
    first = world.run.main_pid
    world.program.upgrade_to_a_broken_one()
    async with world.stream() as stream, hammering(world.port) as tally:
        status, reply = await world.reload()
        assert status == 500
        assert "SyntaxError" in reply["error"]["message"]
        await some_more(tally)
        await stream.goes_on()
    assert (tally.refused, tally.broken) == (0, [])
    assert world.run.main_pid == first
    assert world.run.program is not None
    await world.run.program.line("SyntaxError")


async def test_a_configuration_that_the_new_program_refuses_changes_nothing(world: World) -> None:
    first = world.run.main_pid
    world.program.upgrade("7.0.0")
    world.configure(limits={"drain_s": "soon"})
    status, reply = await world.reload()
    assert status == 422
    (problem,) = reply["error"]["problems"]
    assert problem["key"] == "limits.drain_s"
    assert problem["where"].endswith("50-test.yaml:5")
    world.configure()
    status, reply = await world.reload()
    assert (status, reply["process"]["version"]) == (200, "7.0.0")
    assert world.run.main_pid != first


async def test_the_new_process_takes_in_another_address(world: World) -> None:
    old, world.port = world.port, free_port()
    world.program.upgrade("7.0.0")
    world.configure()
    assert (await world.reload())[0] == 200
    assert await world.version() == "7.0.0"
    stored = [f"http-127.0.0.1-{world.port}"]
    await eventually(lambda: list(world.run.manager.stored) == stored, what=f"{old} is let go of")
    await world.run.restart()
    assert await world.version() == "7.0.0"


async def test_several_follow_each_other_and_end_together(world: World) -> None:
    pids = [world.run.main_pid]
    async with world.stream() as one:
        world.program.upgrade("7.0.0")
        await world.reload()
        pids.append(world.run.main_pid)
        async with world.stream() as two:
            async with hammering(world.port) as tally:
                world.program.upgrade("8.0.0")
                await world.reload()
                await some_more(tally)
            pids.append(world.run.main_pid)
            await one.goes_on()
            await two.goes_on()
            assert len(set(pids)) == 3
            assert all(map(is_running, pids))
            os.kill(pids[-1], signal.SIGTERM)
            await eventually(lambda: not any(map(is_running, pids)), what="all end", deadline_s=20)
    assert (tally.refused, tally.broken) == (0, [])


async def test_a_key_that_is_taken_away_ends_its_requests_in_the_old_process_too(
    world: World,
) -> None:
    keys = {name: {"key": f"key-of-{name}"} for name in ("ann", "bob")}
    world.configure(auth={"clients": keys})
    assert (await world.reload())[0] == 200
    world.program.upgrade("7.0.0")
    ann, bob = (f"Authorization: Bearer key-of-{name}" for name in ("ann", "bob"))
    async with world.stream(ann) as anns, world.stream(bob) as bobs:
        assert "process" in (await world.reload())[1]
        world.configure(auth={"clients": {"bob": keys["bob"]}})
        assert "process" not in (await world.reload())[1]
        await anns.breaks_off()
        await bobs.ends_well()


async def test_what_systemd_did_not_start_takes_in_the_configuration_alone(
    short_path: Path,
) -> None:
    """As in a container, which would end with its first process."""
    async with started(short_path, "-u", "SYSTEMD_EXEC_PID") as world:
        world.program.upgrade("7.0.0")
        world.configure(default_model="planner")
        assert await world.reload() == (
            200,
            {"status": "reloaded", "generation": 2, "warnings": []},
        )
        assert world.run.program is not None
        await world.run.program.line("a restart runs the new one")
        assert await world.version() != "7.0.0"
