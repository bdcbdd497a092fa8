"""The demo: a gateway, a node agent and two real llama-servers, asked by role.

python -m tests.lab.demo [--once]        (`make demo`, `make demo ONCE=1`)

Everything runs on loopback in a temporary folder, and ends with the demo.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

from tests.lab.llama_server import NoLlamaServer, llama_server, version
from tests.lab.mesh import Daemon, model_states, running_daemon, usable_models
from tests.lab.models import TinyModel, make_model
from tests.lab.poll import eventually
from tests.lab.processes import free_port, is_free

KEY = "demo-key"
OPERATORS_KEY = "demo-operator"
GATEWAY_PORT, AGENT_PORT = 8000, 8100
LOAD_DEADLINE_S = 60.0

PLANNER = TinyModel(
    name="planner-tiny",
    says="Read the tests first , write code that passes , then run them again .",
)
CODER = TinyModel(name="coder-tiny", says="def answer ( ) : return 42")


def main() -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the two chats")
    try:
        asyncio.run(demo(once=parser.parse_args().once))
    except NoLlamaServer as err:
        print(f"\nThe demo needs a llama-server: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except (aiohttp.ClientError, AssertionError) as err:
        print(f"\nThe demo failed: {err}", file=sys.stderr)
        return 1
    return 0


async def demo(*, once: bool) -> None:
    """Set everything up, ask twice, and serve until interrupted."""
    said = time.monotonic()
    program = llama_server()
    show("llama-server", f"{version(program)}, {program}")
    models = {model.name: make_model(model) for model in (PLANNER, CODER)}
    for name, path in models.items():
        show("model", f"{name}: {path} ({path.stat().st_size / 1024:.0f} KiB, made here)")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rolemesh-demo-")))
        gateway = await start_gateway(stack, folder / "gateway")
        agent = await start_agent(stack, folder / "node", program, models, gateway)
        await eventually(
            lambda: both_ready(gateway, agent), what="both models ready", deadline_s=LOAD_DEADLINE_S
        )
        show("ready", f"{time.monotonic() - said:.1f} s after the start")
        await ask(gateway, "planner", "How do I start?", stream=True)
        await ask(gateway, "coder", "Write me a function.", stream=False)
        show_what_to_try(gateway, agent)
        if not once:
            await until_interrupted()
    print("\nStopped; nothing is left running.")


async def start_gateway(stack: AsyncExitStack, folder: Path) -> Daemon:
    """Start the gateway with two keys; roles that nodes announce are aliases at once."""
    configuration = {
        "default_model": "planner",
        "aliases": {"from_roles": True},
        "auth": {
            "client_api_keys": [KEY],
            "clients": {"operator": {"key": OPERATORS_KEY, "admin": True}},
        },
    }
    port = GATEWAY_PORT if is_free(GATEWAY_PORT) else free_port()
    gateway = await stack.enter_async_context(
        running_daemon("rolemesh-gateway", folder, configuration, port=port)
    )
    show("gateway", f"{gateway.url}, pid {gateway.program.pid}")
    return gateway


async def start_agent(
    stack: AsyncExitStack, folder: Path, program: Path, models: dict[str, Path], gateway: Daemon
) -> Daemon:
    """Start the node agent: two instances, one model each, one role each."""
    configuration = {
        "node_id": "demo-node",
        "gateways": [{"url": gateway.url}],
        "llama_server": {"path": str(program)},
        "models": [
            {
                "model_id": name,
                "path": str(path),
                "roles": [name.partition("-")[0]],
                "context_size": 1024,
                "parallel": 2,
            }
            for name, path in models.items()
        ],
        "instances": {f"cpu{index}": {"model": name} for index, name in enumerate(models)},
    }
    port = AGENT_PORT if is_free(AGENT_PORT) else free_port()
    agent = await stack.enter_async_context(
        running_daemon("rolemesh-node-agent", folder, configuration, port=port)
    )
    show("node agent", f"{agent.url}, pid {agent.program.pid}")
    return agent


async def both_ready(gateway: Daemon, agent: Daemon) -> bool:
    """Tell whether both models are loaded and the gateway knows it."""
    states = await model_states(agent)
    listed = await usable_models(gateway, key=KEY)
    return set(states.values()) == {"ready"} and {"planner", "coder"} <= listed


async def ask(gateway: Daemon, alias: str, question: str, *, stream: bool) -> None:
    """Send one chat and print the answer, piece by piece if it is streamed."""
    body = {
        "model": alias,
        "messages": [{"role": "user", "content": question}],
        "stream": stream,
    }
    since = time.monotonic()
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session,
        session.post(f"{gateway.url}/v1/chat/completions", json=body) as reply,
    ):
        reply.raise_for_status()
        print(f"\n{alias} ({'streamed' if stream else 'plain'}) < {question}")
        print(f"{alias} > ", end="", flush=True)
        async for piece in pieces(reply, stream=stream):
            print(piece, end="", flush=True)
        took_ms = (time.monotonic() - since) * 1000
        node, model = reply.headers["X-RoleMesh-Node"], reply.headers["X-RoleMesh-Model"]
        request_id = reply.headers["X-Request-Id"]
    print(f"\n  answered by {model} on {node} in {took_ms:.0f} ms, request {request_id}")


async def pieces(reply: aiohttp.ClientResponse, *, stream: bool) -> AsyncIterator[str]:
    """Yield the text of a chat's answer as it comes."""
    if not stream:
        answer: dict[str, Any] = await reply.json()
        yield answer["choices"][0]["message"]["content"]
        return
    async for line in reply.content:
        data = line.decode().strip().removeprefix("data: ")
        if data and data != "[DONE]":
            for choice in json.loads(data)["choices"]:
                yield choice["delta"].get("content") or ""


def show(what: str, text: str) -> None:
    """Print one line of the story."""
    print(f"{what:<13} {text}", flush=True)


def show_what_to_try(gateway: Daemon, agent: Daemon) -> None:
    """Print lines to copy."""
    operate = f"ROLEMESH_URL={gateway.url} ROLEMESH_KEY={OPERATORS_KEY} .venv/bin/rolemeshctl"
    print(
        f"""
Try it yourself:
  curl -s {gateway.url}/v1/models -H 'X-Api-Key: {KEY}'
  curl -s {gateway.url}/v1/chat/completions -H 'X-Api-Key: {KEY}' \\
       -d '{{"model": "coder", "messages": [{{"role": "user", "content": "hi"}}]}}'
  curl -sN {gateway.url}/v1/chat/completions -H 'X-Api-Key: {KEY}' \\
       -d '{{"model": "planner", "stream": true, "messages": [{{"role": "user", "content": "hi"}}]}}'
  curl -s {gateway.url}/ready
  curl -s {agent.url}/v1/node
  {operate} status
  {operate} explain coder
Logs: {gateway.program.log}
      {agent.program.log}"""
    )


async def until_interrupted() -> None:
    """Wait for Ctrl-C (or SIGTERM)."""
    print("\nServing until Ctrl-C.", flush=True)
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    with contextlib.suppress(asyncio.CancelledError):
        await interrupted.wait()


if __name__ == "__main__":
    sys.exit(main())
