"""A program that runs on while its files are replaced, by an upgrade of RoleMesh or of Python.

What it imports only then could be of another version, or gone. So it has imported everything by the
time it serves.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.conftest import StartDaemon, model
from tests.integration.llama_host import LlamaHost
from tests.lab.certificates import Authority
from tests.lab.mesh import Daemon, usable_models
from tests.lab.poll import eventually
from tests.lab.processes import Program

GATEWAY: dict[str, Any] = {
    "aliases": {"from_roles": True},
    "models": {"away": {"type": "proxy", "proxy_url": "http://localhost:9"}},
}
TO_SEE = (
    *("health", "ready", "metrics", "v1/models", "v1/models/coder", "openapi.json", "nowhere"),
    *("v1/rolemesh/status", "v1/rolemesh/aliases", "v1/rolemesh/explain/coder"),
    *("v1/rolemesh/requests", "v1/rolemesh/requests?by=key", "v1/rolemesh/keys"),
    *("v1/rolemesh/trace/req-1", "v1/rolemesh/nodes/box/node", "v1/nodes/box"),
    *("v1/rolemesh/nodes/box/node/plan", "v1/rolemesh/nodes/box/node/requests/req-1"),
)
TO_DO = (
    *("models/one/unload", "models/one/load", "instances/cpu0/pin", "instances/cpu0/unpin"),
    *("instances/cpu0/drain", "instances/cpu0/undrain", "gpus/renumber"),
)
PROMPT = {"model": "coder", "prompt": "a", "max_tokens": 3}
CHAT = {"model": "coder", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
INFERENCE: tuple[tuple[str, Any], ...] = (
    *(("completions", PROMPT), ("completions", {**PROMPT, "stream": True})),
    *(("chat/completions", CHAT), ("chat/completions", {**CHAT, "stream": True})),
    ("responses", {"model": "coder", "input": "a", "max_output_tokens": 20}),
    *(("messages", CHAT), ("messages", {**CHAT, "stream": True})),
    ("embeddings", {"model": "coder", "input": ["a"] * 9}),
    ("rerank", {"model": "coder", "query": "a", "documents": ["b"]}),
    ("chat/completions", {**CHAT, "model": "nobody"}),
    ("completions", {**PROMPT, "model": "away"}),
    ("completions", "no object"),
)


@pytest.fixture
def watched(tmp_path: Path) -> Callable[[str], str]:
    """Return a daemon that writes a line for each module when it imports it; its children do not."""

    def program(module: str) -> str:
        path = tmp_path / module
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -X importtime -m {module} "$@"\n')
        path.chmod(0o755)
        return str(path)

    return program


def late_imports(program: Program, since: str) -> list[str]:
    """Return what was imported after the first line with some text."""
    lines = program.lines()
    start = next(index for index, line in enumerate(lines) if since in line)
    late = (line.rpartition("| ")[2] for line in lines[start:] if line.startswith("import time:"))
    # What an import brings in with it is indented, and stands before it.
    return [name for name in late if not name.startswith(" ")]


async def test_daemons_import_nothing_once_they_serve(
    start_gateway: StartDaemon,
    start_agent: StartDaemon,
    make_model: Callable[..., Path],
    authority: Authority,
    watched: Callable[[str], str],
) -> None:
    gateway = await start_gateway(GATEWAY, program=watched("rolemesh.gateway.main"))
    one = model(make_model("tiny-a"), "one", "coder")
    agent = await start_agent(
        "box", {"models": [one]}, gateway, program=watched("rolemesh.agent.main")
    )
    await eventually(lambda: usable_models(gateway), what="the model is listed")
    await ask_everything(gateway)
    for daemon in (gateway, agent):
        await reload(daemon, {"listen": {"tls": authority.sign("box").settings}}, "reloaded")
        await reload(daemon, {}, "reloaded")
        await daemon.program.stop()
    assert late_imports(gateway.program, "listening on") == []
    assert late_imports(agent.program, "1 model, ") == []


async def test_rolemesh_llama_imports_nothing_once_it_serves(
    llama_host: LlamaHost, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    llama_host.configure(llama_server, make_model("tiny-a"), save_slots=True)
    llama_host.tell()
    program = await llama_host.start(python=("-X", "importtime"))
    await llama_host.read("one two three")
    await llama_host.stop(program)
    assert llama_host.kept, "it saved its slots while it stopped"
    assert late_imports(program, "serving coder") == []


async def test_a_reload_whose_checks_cannot_be_loaded_is_refused_and_ends_nothing(
    start_gateway: StartDaemon, short_path: Path
) -> None:
    gone = short_path / "replaced" / "jsonschema.py"
    gone.parent.mkdir()
    gone.write_text("raise ImportError('cannot import name')\n")
    environment = {"PYTHONPATH": str(gone.parent)}
    gateway = await start_gateway(GATEWAY, environment=environment)
    await reload(gateway, {"lisen": {}}, "jsonschema cannot be loaded")
    await reload(gateway, {}, "reloaded")
    assert gateway.program.status is None


async def reload(daemon: Daemon, tree: Any, says: str) -> None:
    """Have a daemon take in a drop-in, and wait for what it says to that."""

    def count() -> int:
        return sum(says in line for line in daemon.program.lines())

    before = count()
    daemon.drop_in("90-changed.yaml", tree)
    daemon.program.send(signal.SIGHUP)
    await eventually(lambda: count() > before, what=says)


async def ask_everything(gateway: Daemon) -> None:
    """Go through what a gateway and its node do, whatever comes of it."""
    node = "v1/rolemesh/nodes/box"
    todo = [
        *(("GET", path, None) for path in TO_SEE),
        *(("POST", f"v1/{path}", body) for path, body in INFERENCE),
        *(("POST", f"{node}/node/{path}", {}) for path in TO_DO),
        *(("POST", f"{node}/{path}", {}) for path in ("drain", "undrain")),
        ("DELETE", "v1/rolemesh/requests/req-1", None),
    ]
    async with aiohttp.ClientSession() as session:
        for method, path, body in todo:
            async with session.request(method, f"{gateway.url}/{path}", json=body) as reply:
                await reply.read()
