"""Gateways, agents and rolemesh-llamas of different versions, as they are during an upgrade."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rolemesh
from tests.integration.conftest import StartDaemon, model
from tests.lab import history
from tests.lab.mesh import Daemon, get_json, post_json, usable_models
from tests.lab.poll import eventually
from tests.lab.processes import run_to_end

E779906 = "e77990626947a2b2b1b1582a0174f8f88d27e62b"
"""The last state of version 0.1.0 before there was a word about what is installed."""

SAYS = "Hello from tiny-a"


@pytest.fixture
def earlier(tmp_path: Path) -> Callable[[str], str]:
    """Return a daemon of an earlier version: earlier("rolemesh.agent.main")."""
    try:
        sources = history.take_out(E779906, tmp_path / "earlier")
    except history.NoHistory as err:
        pytest.skip(str(err))

    def program(module: str) -> str:
        path = tmp_path / module
        words = " ".join(f"'{word}'" for word in history.old_command(sources, module))
        path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        path.chmod(0o755)
        return str(path)

    return program


async def chat(gateway: Daemon) -> str:
    body = {"model": "coder", "prompt": "a", "max_tokens": 3}
    status, reply = await post_json(f"{gateway.url}/v1/completions", body)
    assert status == 200, reply
    return str(reply["choices"][0]["text"]).strip()


async def shown(gateway: Daemon) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the only node as the gateway shows it, and its ready instance."""
    _, status = await get_json(f"{gateway.url}/v1/rolemesh/status")
    (node,) = status["nodes"]
    (instance,) = (each for each in node["instances"] if each["state"] == "ready")
    return node, instance


GATEWAY: dict[str, Any] = {"aliases": {"from_roles": True}}


async def test_an_earlier_agent_serves_under_this_gateway_and_runs_this_rolemesh_llama(
    start_gateway: StartDaemon,
    start_agent: StartDaemon,
    make_model: Callable[..., Path],
    earlier: Callable[[str], str],
) -> None:
    gateway = await start_gateway(GATEWAY)
    await start_agent(
        "box",
        {"models": [model(make_model("tiny-a"), "one", "coder")]},
        gateway,
        program=earlier("rolemesh.agent.main"),
    )
    await eventually(lambda: usable_models(gateway), what="the model is listed")
    assert await chat(gateway) == SAYS
    await eventually(lambda: is_shown(gateway), what="the instance is told of")
    node, instance = await shown(gateway)
    assert "installed_version" not in node["host"]
    assert (instance["version"], instance["model_id"]) == (rolemesh.__version__, "one")
    assert "program_changed" not in instance


async def test_this_agent_serves_under_an_earlier_gateway(
    start_gateway: StartDaemon,
    start_agent: StartDaemon,
    make_model: Callable[..., Path],
    earlier: Callable[[str], str],
) -> None:
    gateway = await start_gateway(GATEWAY, program=earlier("rolemesh.gateway.main"))
    await start_agent("box", {"models": [model(make_model("tiny-a"), "one", "coder")]}, gateway)
    await eventually(lambda: usable_models(gateway), what="the model is listed")
    assert await chat(gateway) == SAYS
    await eventually(lambda: is_shown(gateway), what="the instance is told of")
    node, instance = await shown(gateway)
    assert node["host"]["installed_version"] == rolemesh.__version__
    assert instance["program_changed"] is False


async def is_shown(gateway: Daemon) -> bool:
    _, status = await get_json(f"{gateway.url}/v1/rolemesh/status")
    instances = [each for node in status["nodes"] for each in node["instances"]]
    return any(each["state"] == "ready" for each in instances)


async def test_an_earlier_rolemeshctl_reads_this_status(
    start_gateway: StartDaemon, earlier: Callable[[str], str]
) -> None:
    gateway = await start_gateway(GATEWAY)
    done = await run_to_end(
        [earlier("rolemesh.ctl.main"), "status", "--json", "--url", gateway.url]
    )
    assert json.loads(done.stdout)["version"] == rolemesh.__version__
