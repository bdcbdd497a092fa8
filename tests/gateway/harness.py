"""A whole gateway inside the test's own event loop, asked over real sockets."""

import asyncio
import json
import signal
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolemesh.config.dropins import ConfigSource
from rolemesh.config.settings import GatewaySettings
from rolemesh.config.store import ConfigStore, gateway_store
from rolemesh.gateway.main import Gateway
from rolemesh.gateway.registry import Registry
from rolemesh.names import Alias, NodeId
from rolemesh.runtime.daemon import Lifecycle
from rolemesh.runtime.notify import Notifier
from tests.fakes.client import Received, connected, post
from tests.fakes.upstream import Upstream
from tests.lab.poll import eventually
from tests.lab.processes import free_port

CHAT = "/v1/chat/completions"
DISCOVERED = {"type": "discovered"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A running gateway."""

    port: int
    config: Path
    gateway: Gateway
    store: ConfigStore[GatewaySettings]
    lifecycle: Lifecycle
    tls: ssl.SSLContext | None = None

    @property
    def registry(self) -> Registry:
        return self.gateway._registry

    def queued(self, alias: str) -> int:
        return self.gateway._admission.queued(Alias(alias))

    def in_flight(self) -> int:
        return sum(self.gateway._admission.load.in_flight.values())

    def node_state(self, node_id: str) -> str:
        return self.registry.nodes[NodeId(node_id)].state.value

    async def get(self, path: str, *fields: str) -> Received:
        async with connected(self.port, tls=self.tls) as client:
            return await client.get(path, *fields)

    async def post(self, path: str, tree: Any, *fields: str) -> Received:
        body = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
        async with connected(self.port, tls=self.tls) as client:
            return await client.post(path, body, *fields)

    async def chat(self, alias: str = "coder", *fields: str, **body: Any) -> Received:
        return await self.post(CHAT, {"model": alias, **body}, *fields)

    async def register(
        self, node_id: str, upstream: Upstream | str, *models: Mapping[str, Any], **body: Any
    ) -> None:
        """Register a node; without models it has `m` for the role coder."""
        url = upstream if isinstance(upstream, str) else upstream.url
        tree = {
            "node_id": node_id,
            "base_url": url,
            "models": models or [{"model_id": "m", "roles": ["coder"]}],
            **body,
        }
        reply = await self.post("/v1/nodes/register", tree)
        assert reply.status == 200, reply.body

    def write(self, configuration: Mapping[str, Any]) -> None:
        """Write another configuration."""
        _write(self.config, self.port, configuration)

    def hang_up(self, configuration: Mapping[str, Any]) -> None:
        """Write another configuration and send SIGHUP."""
        self.write(configuration)
        self.lifecycle._signals.put_nowait(signal.SIGHUP)

    async def reload(self, configuration: Mapping[str, Any]) -> None:
        """Have the gateway read another configuration, as SIGHUP does."""
        generation = self.store.generation
        self.hang_up(configuration)
        await eventually(lambda: self.store.generation > generation, what="reloaded")


def _write(path: Path, port: int, configuration: Mapping[str, Any]) -> None:
    whole = {**configuration, "listen": {"port": port, **configuration.get("listen", {})}}
    whole["limits"] = {"drain_s": 1, **whole.get("limits", {})}
    path.write_text(json.dumps(whole))  # which is YAML, too


@asynccontextmanager
async def running_gateway(
    folder: Path,
    configuration: Mapping[str, Any],
    *,
    port: int | None = None,
    control: Path | None = None,
) -> AsyncIterator[Running]:
    """Run a gateway for the length of the block, its state and configuration in `folder`."""
    port = port or free_port()
    config = folder / "gateway.yaml"
    _write(config, port, configuration)
    lifecycle = Lifecycle(Notifier())
    store = gateway_store(ConfigSource(program="gateway", config=config))
    gateway = Gateway(lifecycle, store, folder, control)
    running = Running(port=port, config=config, gateway=gateway, store=store, lifecycle=lifecycle)
    async with asyncio.TaskGroup() as group:
        group.create_task(gateway.run())
        await eventually(lambda: _answers(port), what="the gateway listens")
        try:
            yield running
        finally:
            lifecycle._signals.put_nowait(signal.SIGTERM)


async def _answers(port: int) -> bool:
    try:
        async with connected(port):
            return True
    except ConnectionRefusedError:
        return False


@asynccontextmanager
async def asking(running: Running, alias: str = "coder", **body: Any) -> AsyncIterator[Any]:
    """Send a chat request and leave the block with or without having read its reply."""
    async with connected(running.port) as client:
        await client.send(post(CHAT, json.dumps({"model": alias, **body}).encode()))
        yield client
