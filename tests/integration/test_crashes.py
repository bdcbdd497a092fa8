"""kill -9 of an agent and of a llama-server: what comes back, and that nothing is left behind."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.integration.conftest import StartDaemon, model
from tests.lab.mesh import Daemon, get_json, instance_is_ready, instances, post_json, running_daemon
from tests.lab.poll import eventually

CHAT = {"messages": [{"role": "user", "content": "go"}]}


def llama_servers(daemon: Daemon) -> set[int]:
    """Return the pids of the llama-servers that descend from a daemon."""
    return {
        pid
        for pid in daemon.program.processes()
        if b"--alias" in _command_line(pid) and b"rolemesh.llama" not in _command_line(pid)
    }


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def says(daemon: Daemon, name: str) -> str:
    """Return what a chat with `name` answers."""
    status, reply = await post_json(f"{daemon.url}/v1/chat/completions", {"model": name, **CHAT})
    assert status == 200, reply
    return str(reply["choices"][0]["message"]["content"])


async def test_a_killed_llama_server_comes_back_ready_and_answers(
    start_gateway: StartDaemon, start_agent: StartDaemon, make_model: Callable[..., Path]
) -> None:
    gateway = await start_gateway({"aliases": {"from_roles": True}})
    coder = model(make_model("coder", says="still here"), "coder-gguf", "coder")
    configuration = {"models": [coder], "instances": {"cpu0": {"model": "coder-gguf"}}}
    agent = await start_agent("box", configuration, gateway)
    await eventually(lambda: instance_is_ready(agent), what="cpu0 ready")
    (victim,) = llama_servers(agent)

    os.kill(victim, signal.SIGKILL)

    assert await says(gateway, "coder") == "still here"  # waits for the restart, not an error
    await eventually(lambda: instance_is_ready(agent), what="cpu0 ready again")
    (successor,) = llama_servers(agent)
    assert successor != victim
    assert (await instances(agent))["cpu0"]["restarts"] == 1


async def test_a_killed_agent_leaves_nothing_behind_and_its_successor_serves(
    start_gateway: StartDaemon,
    start_agent: StartDaemon,
    make_model: Callable[..., Path],
    llama_server: Path,
    short_path: Path,
) -> None:
    gateway = await start_gateway({"aliases": {"from_roles": True}})
    coder = model(make_model("coder", says="back again"), "coder-gguf", "coder")
    configuration = {
        "node_id": "box",
        "gateways": [{"url": gateway.url}],
        "llama_server": {"path": str(llama_server)},
        "models": [coder],
        "instances": {"cpu0": {"model": "coder-gguf"}},
    }
    folder = short_path / "agent"
    async with running_daemon("rolemesh-node-agent", folder, configuration) as first:
        await eventually(lambda: instance_is_ready(first), what="cpu0 ready")
        (old,) = llama_servers(first)
        first.program.send(signal.SIGKILL)
        async with running_daemon("rolemesh-node-agent", folder, configuration) as second:
            await eventually(
                lambda: instance_is_ready(second), what="cpu0 ready under the new agent"
            )
            assert await says(gateway, "coder") == "back again"
            (new,) = llama_servers(second)
            assert new != old
            assert llama_servers(first) == set()  # never two of them on one device
            _, node = await get_json(f"{second.url}/v1/node")
            assert [entry["pid"] for entry in node["instances"]] != [None]
