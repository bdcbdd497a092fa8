"""The first evening with real daemons: a gateway invites, a node joins, a model is added."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import llama_program
from tests.lab.mesh import PROGRAMS, Daemon, running_daemon, usable_models
from tests.lab.poll import eventually
from tests.lab.processes import free_port

FAKE = Path(llama_program.__file__).absolute()


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Ctl = Callable[..., Coroutine[Any, Any, Done]]


@pytest.fixture
def ctl(short_path: Path, tmp_path: Path) -> Ctl:
    """Run the program rolemeshctl as the user who runs both daemons."""

    async def run(*words: str | Path) -> Done:
        process = await asyncio.create_subprocess_exec(
            PROGRAMS / "rolemeshctl",
            *map(str, words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                "PATH": "/usr/bin:/bin",
                "XDG_CONFIG_HOME": str(tmp_path / "none"),
                "XDG_RUNTIME_DIR": str(short_path),
                "ROLEMESH_URL": f"unix:{short_path}/rolemesh/gateway/control.sock",
            },
        )
        out, err = await process.communicate()
        return Done(process.returncode or 0, out.decode(), err.decode())

    return run


@pytest.fixture
async def gateway(tmp_path: Path, short_path: Path) -> AsyncIterator[Daemon]:
    configuration = {"aliases": {"from_roles": True}}
    environment = {"XDG_RUNTIME_DIR": str(short_path)}
    async with running_daemon(
        "rolemesh-gateway", tmp_path / "gateway", configuration, environment=environment
    ) as gateway:
        yield gateway


@pytest.fixture
async def agent(tmp_path: Path, short_path: Path) -> AsyncIterator[Daemon]:
    configuration = {
        "node_id": "box",
        "limits": {"drain_s": 0},
        "llama_server": {"path": str(FAKE)},
    }
    environment = {"XDG_RUNTIME_DIR": str(short_path)}
    async with running_daemon(
        "rolemesh-node-agent", tmp_path / "agent", configuration, environment=environment
    ) as agent:
        yield agent


async def invited(ctl: Ctl, gateway: Daemon) -> Any:
    done = await ctl(
        "gateway", "invite", "--url", gateway.url, "--directory", gateway.drop_ins, "--json"
    )
    assert done.status == 0, done.err
    return done.json


async def reloaded(agent: Daemon, ctl: Ctl, name: str, *words: str | Path) -> Done:
    """Run a command that writes a file of the agent's, which reads it as soon as it is there."""
    async with asyncio.TaskGroup() as group:
        running = group.create_task(ctl(*words, "--directory", agent.drop_ins))
        await eventually((agent.drop_ins / name).exists, what=f"{name} is there")
        agent.program.send(signal.SIGHUP)
    return running.result()


async def test_an_invited_node_joins_and_is_listed(
    gateway: Daemon, agent: Daemon, ctl: Ctl
) -> None:
    invitation = await invited(ctl, gateway)
    assert invitation["in_force"] == "in force"
    listen = agent.url.removeprefix("http://")
    words = (*invitation["command"].split()[2:], "--listen", listen)
    joined = await reloaded(agent, ctl, "50-join.yaml", *words, "--json")
    assert joined.status == 0, joined.err
    assert joined.json == {
        "node_id": "box",
        "gateway": gateway.url,
        "advertise_url": agent.url,
        "file": str(agent.drop_ins / "50-join.yaml"),
        "key_file": str(agent.drop_ins.with_suffix(".key")),
        "registered": True,
    }
    listed = await ctl("nodes", "--json")
    assert [node["node_id"] for node in listed.json["nodes"]] == ["box"]
    again = await ctl(*words, "--directory", agent.drop_ins)
    assert (again.status, again.out) == (
        0,
        f"box has joined {gateway.url}, which reaches it at {agent.url}\n",
    )


async def test_a_model_is_added_answers_for_its_role_and_is_removed(
    gateway: Daemon, agent: Daemon, ctl: Ctl, make_model: Callable[..., Path]
) -> None:
    invitation = await invited(ctl, gateway)
    listen = agent.url.removeprefix("http://")
    words = (*invitation["command"].split()[2:], "--listen", listen)
    assert (await reloaded(agent, ctl, "50-join.yaml", *words)).status == 0
    words = ("model", "add", str(make_model("tiny")), "--role", "coder", "--id", "tiny")
    added = await reloaded(agent, ctl, "60-tiny.yaml", *words)
    assert added.status == 0, added.err
    assert "tiny: needs " in added.out
    assert "it would run on cpu0" in added.out
    assert f"tiny serves coder on box: {agent.drop_ins}/60-tiny.yaml\n" in added.out
    assert f"curl {gateway.url}/v1/chat/completions" in added.out
    # No line is left between: the gateway answers for the role already.
    written, ask = added.err.splitlines()
    assert written.endswith("in force once the agent that reads it reloads (SIGHUP)")
    assert ask == "Ask it, with the key of a client:"
    assert "coder" in await usable_models(gateway)
    listed = await ctl("model", "list", "--directory", agent.drop_ins, "--json")
    (model,) = listed.json["models"]
    assert (model["model_id"], model["usable"]) == ("tiny", True)
    removed = await ctl("model", "remove", "tiny", "--directory", agent.drop_ins)
    assert removed.status == 0, removed.err
    agent.program.send(signal.SIGHUP)

    async def is_gone() -> bool:
        return "coder" not in await usable_models(gateway)

    await eventually(is_gone, what="the gateway knows that the model is gone")


async def test_a_token_that_is_not_taken_leaves_nothing_behind(
    gateway: Daemon, agent: Daemon, ctl: Ctl
) -> None:
    await invited(ctl, gateway)
    before = sorted(agent.drop_ins.parent.rglob("*"))
    done = await ctl(
        "node", "join", gateway.url, "--token", "rm-wrong", "--directory", agent.drop_ins
    )
    assert done.status == 1
    assert f"{gateway.url} does not take this token" in done.err
    done = await ctl(
        "node", "join", agent.url, "--token", "rm-wrong", "--directory", agent.drop_ins
    )
    assert f"{agent.url} is a node's agent" in done.err
    nowhere = f"http://127.0.0.1:{free_port()}"
    done = await ctl("node", "join", nowhere, "--token", "rm-x", "--directory", agent.drop_ins)
    assert done.status == 3
    assert f"nobody listens at {nowhere}" in done.err
    assert sorted(agent.drop_ins.parent.rglob("*")) == before
