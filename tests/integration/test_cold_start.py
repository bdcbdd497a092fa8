"""What a request for a model that is not loaded waits for, beside what llama-server itself takes."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.integration.conftest import StartDaemon, model
from tests.lab import cold_start
from tests.lab.mesh import Daemon, instances, model_states, post_json, usable_models
from tests.lab.poll import eventually

ROUNDS = 5
BOUND_S = 3.0
"""About 0.12 s, on a machine that does nothing else meanwhile; here it may do anything."""


async def first_token(gateway: Daemon, role: str) -> float:
    def ask() -> float:
        address = urlsplit(gateway.url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            return cold_start.seconds_to_first_token(connection, role)

    return await asyncio.to_thread(ask)


async def unload(agent: Daemon, model_id: str) -> None:
    async def is_cold() -> bool:
        stopped = (await instances(agent))["cpu0"]["state"] == "stopped"
        return stopped and (await model_states(agent))[model_id] == "cold"

    await post_json(f"{agent.url}/v1/node/models/{model_id}/unload", {})
    await eventually(is_cold, what=f"{model_id} is unloaded")


@pytest.mark.timeout(180)  # the router waits 10 s now and then for a model to stop
async def test_a_cold_model_answers_soon_after_llama_server_itself_would(
    start_gateway: StartDaemon,
    start_agent: StartDaemon,
    make_model: Callable[..., Path],
    llama_server: Path,
    tmp_path: Path,
) -> None:
    # As installed: with bytecode, whatever the environment of the tests says.
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    paths = {name: make_model(name, says="one two") for name in ("cold", "other")}
    models = [model(path, f"{name}-gguf", name) for name, path in paths.items()]
    gateway = await start_gateway({"aliases": {"from_roles": True}}, environment=bytecode)
    configuration = {"models": models, "instances": {"cpu0": {}}}
    agent = await start_agent("box", configuration, gateway, environment=bytecode)
    await eventually(lambda: usable_models(gateway), what="the models are listed")
    await first_token(gateway, "cold")
    program = str(llama_server)

    cold, plain, switched = [], [], []
    for _ in range(ROUNDS):
        await unload(agent, "cold-gguf")
        cold.append(await first_token(gateway, "cold"))
        plain.append(
            await asyncio.to_thread(cold_start.start_to_first_token, program, paths["cold"])
        )
        switched += [await first_token(gateway, role) for role in ("other", "cold")]
    router = await asyncio.to_thread(cold_start.switches, program, paths, ROUNDS)
    cold_start.show(
        {
            "RoleMesh, nothing loaded": cold,
            "llama-server": plain,
            "RoleMesh, another model to be stopped first": switched,
            "llama-server's router, another model loaded": router,
        }
    )
    assert cold_start.overhead_s(cold, plain) < BOUND_S
