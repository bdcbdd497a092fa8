"""A llama-server is replaced under a mesh that runs: who still runs the old one, and until when."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rolemesh
from tests.integration.conftest import StartDaemon, model
from tests.integration.test_node_operations import Operator
from tests.lab.mesh import instance_is_ready, usable_models
from tests.lab.poll import eventually


def install(server: Path, program: Path, note: str) -> None:
    """Put a llama-server in the place of what was there, as packages do."""
    new = program.with_suffix(".new")
    new.write_text(f'#!/bin/sh\n# {note}\nexec {server} "$@"\n')
    new.chmod(0o755)
    new.replace(program)


async def test_what_is_installed_is_taken_in_by_the_command_that_is_told(
    start_gateway: StartDaemon,
    start_agent: StartDaemon,
    make_model: Callable[..., Path],
    llama_server: Path,
    short_path: Path,
) -> None:
    program = short_path / "llama-server"
    install(llama_server, program, "the first")
    environment = {"XDG_RUNTIME_DIR": str(short_path)}
    configuration = {"aliases": {"from_roles": True}, "nodes": {"stale_after_s": 2}}
    gateway = await start_gateway(configuration, environment=environment)
    agent = await start_agent(
        "box",
        {
            "models": [model(make_model("tiny-a"), "one", "coder")],
            "instances": {"cpu0": {"model": "one"}},
            "llama_server": {"path": str(program)},
        },
        gateway,
        environment=environment,
    )
    await eventually(lambda: usable_models(gateway), what="the model is listed")
    await eventually(lambda: instance_is_ready(agent), what="the model is loaded")
    operator = Operator(short_path)

    async def parts() -> dict[str, dict[str, Any]]:
        told = await operator.json("status", "--versions", *operator.gateway)
        return {part["part"]: part for part in told["parts"]}

    async def ages() -> dict[str, bool | None]:
        return {name: part["is_old"] for name, part in (await parts()).items()}

    daemons = {"rolemesh-gateway": False, "rolemesh-node-agent": False}
    current = {**daemons, "rolemesh-llama": False, "llama-server": False}

    async def is_current() -> bool:
        return await ages() == current

    await eventually(is_current, what="all is new")
    found = await parts()
    assert {found[name]["runs"] for name in (*daemons, "rolemesh-llama")} == {rolemesh.__version__}
    assert found["llama-server"]["runs"] == found["llama-server"]["installed"] != ""

    install(llama_server, program, "the second")
    agent.program.send(signal.SIGHUP)  # has it look at once

    async def is_old() -> bool:
        return await ages() == {**current, "llama-server": True}

    await eventually(is_old, what="the llama-server is old")
    assert await instance_is_ready(agent), "it goes on"
    server = (await parts())["llama-server"]
    assert server["when"] == "now: idle"
    for command in server["how"].split(" && "):
        name, *words = command.split()
        assert name == "rolemeshctl"
        await operator.run(*words, *operator.gateway)
    await eventually(is_current, what="the model is there again, with the new llama-server")
