"""Gateways and node agents as their users run them: configured by drop-ins, started as programs."""

import json
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.lab.poll import eventually
from tests.lab.processes import Program, free_port, running

PROGRAMS = Path(sys.executable).parent
START_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A running gateway or agent: its program, its address, and the folder of its drop-ins.

    With `tls` it is asked in TLS, by that.
    """

    program: Program
    url: str
    drop_ins: Path
    state: Path
    tls: ssl.SSLContext | None = None

    def drop_in(self, name: str, tree: Mapping[str, Any] | str) -> Path:
        """Put a drop-in file there; it counts from the next start or reload."""
        return write_drop_in(self.drop_ins, name, tree)


def write_drop_in(folder: Path, name: str, tree: Mapping[str, Any] | str) -> Path:
    """Write one drop-in, readable by its owner alone because it may hold keys."""
    path = folder / name
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree, sort_keys=False))
    path.chmod(0o600)
    return path


@asynccontextmanager
async def running_daemon(
    program: str,
    folder: Path,
    configuration: Mapping[str, Any],
    *,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Daemon]:
    """Run `rolemesh-gateway`, `rolemesh-node-agent`, or a path, in `folder` until the block is left.

    The folder may be one of an earlier run, whose state is then found again. What an agent starts
    ends with it, also on a host whose systemd could run it.
    """
    drop_ins, state = folder / "conf.d", folder / "state"
    drop_ins.mkdir(parents=True, exist_ok=True)
    write_drop_in(drop_ins, "50-test.yaml", configuration)
    port = port or free_port()
    command = (
        PROGRAMS / program,
        f"--config-dir={drop_ins}",
        f"--state-dir={state}",
        f"--port={port}",
    )
    environment = {"ROLEMESH_UNIT_CONTROL": "child", **(environment or {})}
    async with running(command, log=folder / "log", environment=environment) as started:
        daemon = Daemon(
            program=started,
            url=f"{'https' if tls else 'http'}://127.0.0.1:{port}",
            drop_ins=drop_ins,
            state=state,
            tls=tls,
        )
        await eventually(
            lambda: answers(daemon), what=f"{program} answers", deadline_s=START_DEADLINE_S
        )
        yield daemon


async def answers(daemon: Daemon) -> bool:
    """Tell whether a daemon answers /health; raises when its program has ended."""
    if daemon.program.status is not None:
        log = "\n".join(daemon.program.lines())
        msg = f"ended with status {daemon.program.status}:\n{log}"
        raise AssertionError(msg)
    try:
        return (await get_json(f"{daemon.url}/health", tls=daemon.tls))[0] == 200
    except aiohttp.ClientError:
        return False


async def get_json(
    url: str, *, key: str | None = None, tls: ssl.SSLContext | None = None
) -> tuple[int, Any]:
    """GET a JSON document; returns status and content."""
    headers = {} if key is None else {"X-Api-Key": key}
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, headers=headers, ssl=tls or True) as reply,
    ):
        return reply.status, json.loads(await reply.read())


async def post_json(
    url: str, tree: Mapping[str, Any], *, key: str | None = None
) -> tuple[int, Any]:
    """POST a JSON document; returns status and content of the reply."""
    headers = {} if key is None else {"X-Api-Key": key}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=tree, headers=headers) as reply,
    ):
        return reply.status, json.loads(await reply.read())


async def usable_models(daemon: Daemon, *, key: str | None = None) -> set[str]:
    """Return what /v1/models says can answer."""
    _, listing = await get_json(f"{daemon.url}/v1/models", key=key, tls=daemon.tls)
    return {model["id"] for model in listing["data"]}


async def instances(agent: Daemon) -> dict[str, dict[str, Any]]:
    """Return the agent's instances by name, as GET /v1/node shows them."""
    _, node = await get_json(f"{agent.url}/v1/node", tls=agent.tls)
    return {instance["instance"]: instance for instance in node["instances"]}


async def model_states(agent: Daemon) -> dict[str, str]:
    """Return the state of each of the agent's models."""
    _, node = await get_json(f"{agent.url}/v1/node", tls=agent.tls)
    return {model["model_id"]: model["state"] for model in node["models"]}


async def instance_is_ready(agent: Daemon, name: str = "cpu0") -> bool:
    """Tell whether one of the agent's instances is ready."""
    return bool((await instances(agent))[name]["state"] == "ready")
