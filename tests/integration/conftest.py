"""Fixtures that start whole meshes; each is stopped, and checked to be gone, after its test."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.llama_host import LlamaHost
from tests.lab.mesh import Daemon, running_daemon
from tests.lab.notify import NotifySocket
from tests.lab.processes import Program

StartDaemon = Callable[..., Awaitable[Daemon]]


@pytest.fixture
async def daemons(short_path: Path) -> AsyncIterator[AsyncExitStack]:
    """Hold whatever a test starts in `short_path`; the last started stops first."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def start_gateway(daemons: AsyncExitStack, short_path: Path) -> StartDaemon:
    """Start a gateway: await start_gateway({...configuration...}, name="gateway")."""

    async def start(
        configuration: Mapping[str, Any],
        *,
        name: str = "gateway",
        program: str = "rolemesh-gateway",
        **options: Any,
    ) -> Daemon:
        return await daemons.enter_async_context(
            running_daemon(program, short_path / name, configuration, **options)
        )

    return start


@pytest.fixture
def start_agent(daemons: AsyncExitStack, short_path: Path, llama_server: Path) -> StartDaemon:
    """Start a node agent with the real llama-server: await start_agent("box", {...}, gateway)."""

    async def start(
        node_id: str,
        configuration: Mapping[str, Any],
        *gateways: Daemon,
        program: str = "rolemesh-node-agent",
        **options: Any,
    ) -> Daemon:
        whole = {
            "node_id": node_id,
            "gateways": [{"url": gateway.url} for gateway in gateways],
            "llama_server": {"path": str(llama_server)},
            **configuration,
        }
        return await daemons.enter_async_context(
            running_daemon(program, short_path / node_id, whole, **options)
        )

    return start


@pytest.fixture
def llama_host(
    short_path: Path, start_program: Callable[..., Program], notify_socket: NotifySocket
) -> LlamaHost:
    """Return a place to run rolemesh-llama in."""
    return LlamaHost(short_path, start_program, notify_socket)


def model(
    path: Path, model_id: str, *roles: str, parallel: int = 1, context_size: int = 1024
) -> dict[str, Any]:
    """Return one entry of a node's `models`."""
    return {
        "model_id": model_id,
        "path": str(path),
        "roles": list(roles),
        "context_size": context_size,
        "parallel": parallel,
    }
