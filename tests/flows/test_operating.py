"""rolemeshctl against a real gateway, as whoever is on call uses it: by the control socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.client import connected, post
from tests.fakes.upstream import Upstream, answers, sends_and_hangs, upstream
from tests.lab.mesh import PROGRAMS, Daemon, running_daemon
from tests.lab.poll import eventually

CHAT = "/v1/chat/completions"
COMPLETION = answers(b'{"choices": []}')


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Ctl = Callable[..., Awaitable[Done]]


@pytest.fixture
async def up() -> AsyncIterator[Upstream]:
    """Return a server that answers the first request, and leaves the others waiting."""
    async with upstream(COMPLETION, sends_and_hangs(), sends_and_hangs()) as up:
        yield up


@pytest.fixture
async def gateway(tmp_path: Path, short_path: Path, up: Upstream) -> AsyncIterator[Daemon]:
    """Run a gateway with an alias for that server, and one for a role that nobody announces."""
    models = {"planner": {"type": "proxy", "proxy_url": up.url}, "coder": {"type": "discovered"}}
    configuration = {"default_model": "planner", "models": models, "limits": {"drain_s": 0}}
    environment = {"XDG_RUNTIME_DIR": str(short_path)}
    async with running_daemon(
        "rolemesh-gateway", tmp_path, configuration, environment=environment
    ) as gateway:
        yield gateway


@pytest.fixture
def ctl(gateway: Daemon, short_path: Path, tmp_path: Path) -> Ctl:
    """Run the program rolemeshctl, which finds the gateway by itself."""

    async def run(*words: str) -> Done:
        process = await asyncio.create_subprocess_exec(
            PROGRAMS / "rolemeshctl",
            *words,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                "PATH": "/usr/bin:/bin",
                "XDG_CONFIG_HOME": str(tmp_path / "none"),
                "XDG_RUNTIME_DIR": str(short_path),
            },
        )
        out, err = await process.communicate()
        return Done(process.returncode or 0, out.decode(), err.decode())

    return run


async def ask(gateway: Daemon, *fields: str, request_id: str = "req-a") -> Any:
    """Send a chat request to planner and return its whole answer."""
    port = int(gateway.url.rpartition(":")[2])
    async with connected(port) as client:
        body = json.dumps({"model": "planner"}).encode()
        await client.send(post(CHAT, body, f"X-Request-Id: {request_id}", *fields))
        return await client.reply()


async def test_why_is_my_model_not_available(gateway: Daemon, ctl: Ctl) -> None:
    status = await ctl("status")
    assert status.status == 0, status.err
    assert "ready      yes (planner)" in status.out
    assert "aliases    1 of 2 usable" in status.out
    explained = await ctl("explain", "coder")
    assert explained.status == 4
    assert explained.out.startswith("coder: not usable: no node announces the role coder\n")
    fine = await ctl("explain", "planner", "--json")
    assert (fine.status, fine.json["usable"]) == (0, True)
    assert (await ctl("explain", "nobody")).status == 4
    listed = await ctl("aliases")
    assert [line.split()[:2] for line in listed.out.splitlines()[1:]] == [
        ["planner", "yes"],
        ["coder", "no"],
    ]


async def test_who_uses_what_and_an_end_to_it(gateway: Daemon, ctl: Ctl, up: Upstream) -> None:
    assert (await ask(gateway)).status == 200
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(ask(gateway, request_id="req-b"))
        await eventually(lambda: len(up.conversations) == 2, what="the second runs")
        (running,) = (await ctl("ps", "--json")).json["requests"]
        assert (running["request_id"], running["phase"]) == ("req-b", "upstream")
        assert (await ctl("ps")).out.splitlines()[1].startswith("req-b")
        cancelled = await ctl("cancel", "req-b", "req-z")
        assert (cancelled.status, cancelled.out) == (4, "cancelled req-b\n")
    reply = asking.result()
    assert (reply.status, reply.error["code"]) == (503, "cancelled")
    assert (await ctl("ps", "--by", "key")).err == "no request runs or waits\n"


async def test_what_became_of_it(gateway: Daemon, ctl: Ctl) -> None:
    assert (await ask(gateway)).status == 200
    traced = await ctl("trace", "req-a", "--json")
    assert traced.status == 0
    (record,) = traced.json["records"]
    assert (record["source"], record["fields"]["status"]) == ("gateway", "200")
    assert record["at"] is not None
    assert (await ctl("trace", "req-z")).status == 4


async def test_a_node_is_drained_and_taken_back(gateway: Daemon, ctl: Ctl, up: Upstream) -> None:
    port = int(gateway.url.rpartition(":")[2])
    models = [{"model_id": "m", "roles": ["coder"]}]
    report = {"node_id": "gpubox", "base_url": up.url, "models": models}
    async with connected(port) as client:
        assert (await client.post("/v1/nodes/register", json.dumps(report).encode())).status == 200
    assert (await ctl("explain", "coder")).status == 0
    assert (await ctl("drain", "gpubox", "--wait")).status == 0
    assert (await ctl("explain", "coder")).status == 4
    assert "gpubox  drained" in (await ctl("nodes")).out
    assert (await ctl("undrain", "gpubox")).out == "gpubox gets requests again\n"
    assert (await ctl("explain", "coder")).status == 0
    assert (await ctl("drain", "nobody")).status == 4


async def test_a_configuration_is_refused_or_in_force(gateway: Daemon, ctl: Ctl) -> None:
    bad = gateway.drop_in("60-bad.yaml", "lisen: 1\n")
    refused = await ctl("reload")
    assert refused.status == 78
    assert f'{bad}:1: lisen: unknown key; did you mean "listen"?' in refused.err
    bad.unlink()
    assert (await ctl("reload")).out == "reloaded: configuration 2 is in force\n"


async def test_a_key_works_from_its_making_to_its_end(
    gateway: Daemon, ctl: Ctl, up: Upstream, short_path: Path
) -> None:
    url = f"unix:{short_path}/rolemesh/gateway/control.sock"
    where = ("--directory", str(gateway.drop_ins), "--url", url)
    added = await ctl("key", "add", "ci", "--roles", "planner", *where)
    assert added.status == 0, added.err
    key = f"X-Api-Key: {added.out.strip()}"
    assert (await ask(gateway)).status == 401
    assert (await ask(gateway, key)).status == 200
    (listed,) = (await ctl("key", "list", "--json")).json["keys"]
    assert (listed["name"], listed["roles"], listed["requests"]) == ("ci", ["planner"], 1)
    assert (await ctl("explain", "coder", "--key", "ci")).status == 4
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(ask(gateway, key, request_id="req-b"))
        await eventually(lambda: len(up.conversations) == 2, what="its second request runs")
        assert (await ctl("key", "add", "other", *where)).status == 0
        revoked = await ctl("key", "revoke", "ci", *where)
        assert revoked.status == 0, revoked.err
    assert asking.result().error["code"] == "cancelled"
    assert (await ask(gateway, key)).status == 401
