"""The gateway's composition root: settings -> objects -> daemon."""

import argparse
import asyncio
import contextlib
import logging
import os
from datetime import UTC, datetime
from pathlib import Path

from rolemesh.config import cli
from rolemesh.config.settings import GatewaySettings, ProxyAlias
from rolemesh.config.store import ConfigStore, gateway_store
from rolemesh.gateway.access import GatewayAccess
from rolemesh.gateway.admission import Admission
from rolemesh.gateway.client_api import ClientApi
from rolemesh.gateway.dispatch import Dispatcher
from rolemesh.gateway.health import HealthWatch
from rolemesh.gateway.inference import Inference
from rolemesh.gateway.node_api import NodeApi
from rolemesh.gateway.registry import NodeState, Registry
from rolemesh.gateway.registry_store import RegistryStore
from rolemesh.gateway.routes import gateway_routes
from rolemesh.gateway.routing_table import build_routing_table
from rolemesh.gateway.tables import RoutingTables
from rolemesh.relay.application import open_application
from rolemesh.relay.inbound import InboundServer
from rolemesh.relay.paths import INFERENCE_PATHS
from rolemesh.relay.serving import accepting
from rolemesh.relay.upstream import UpstreamPool
from rolemesh.runtime.daemon import Lifecycle, refusal_log, run_daemon
from rolemesh.runtime.fd_store import take_passed_sockets
from rolemesh.runtime.listeners import Listeners
from rolemesh.runtime.log import log_warnings
from rolemesh.runtime.request_log import RequestLog
from rolemesh.runtime.state import StateFile, require_directory
from rolemesh.runtime.tasks import TaskScope

logger = logging.getLogger(__name__)

NODE_BODY_BYTES = 4 * 1024 * 1024
"""How large a node's report may be."""


def main() -> int:
    """Run `rolemesh-gateway`; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="rolemesh-gateway",
        description="OpenAI-compatible gateway that routes requests by role to local models",
    )
    cli.add_daemon_options(parser)
    args = parser.parse_args()
    source = cli.source_from(args, program="gateway")
    if args.check:
        return cli.check(source, refused=refusal_log())

    async def serve(lifecycle: Lifecycle) -> None:
        store = gateway_store(source)
        state_directory = require_directory(cli.state_directory(args, program="gateway"))
        await Gateway(lifecycle, store, state_directory).run()

    return run_daemon(serve)


class Gateway:
    """The object graph of a running gateway, and its life."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        store: ConfigStore[GatewaySettings],
        state_directory: Path,
    ) -> None:
        self._lifecycle = lifecycle
        self._store = store
        self._listeners = Listeners(lifecycle.notifier, take_passed_sockets(os.environ))
        settings = store.settings
        self._pool = UpstreamPool()
        self._expiry_changed = asyncio.Event()
        self._access = GatewayAccess(settings)
        self._admission = Admission(settings.limits)
        self._registry = Registry(
            stale_after_s=settings.stale_after_s,
            on_change=self._routing_changed,
            on_silent=self._pool.give_up,
        )
        self._registry_store = RegistryStore(
            StateFile(state_directory / "registry.json", mode=0o600), self._registry
        )
        self._tables = RoutingTables(
            lambda: build_routing_table(
                self._store.settings, self._registry.views(), self._health.known
            )
        )
        self._node_api = NodeApi(access=self._access, registry=self._registry, settings=settings)

    async def run(self) -> None:
        """Serve until told to stop, then drain."""
        settings = self._store.settings
        log_warnings(self._store.loaded.warnings)
        await self._listeners.open(settings.listen)
        async with TaskScope() as scope:
            self._health = HealthWatch(
                registry=self._registry, on_change=self._routing_changed, scope=scope
            )
            inference = Inference(
                access=self._access,
                tables=self._tables,
                dispatcher=Dispatcher(
                    tables=self._tables,
                    admission=self._admission,
                    health=self._health,
                    pool=self._pool,
                ),
                log=RequestLog("rolemesh.gateway.inference"),
                clock=asyncio.get_running_loop().time,
            )
            clients = ClientApi(
                access=self._access,
                tables=self._tables,
                health=self._health,
                started_at=int(datetime.now(UTC).timestamp()),
            )
            routes = gateway_routes(clients, self._node_api)
            async with open_application(routes, max_body_bytes=NODE_BODY_BYTES) as application:
                self._inbound = InboundServer(
                    make_job=inference,
                    admit=self._access.identify_client,
                    paths=INFERENCE_PATHS,
                    other=application,
                    limits=settings.limits,
                    scope=scope,
                )
                self._registry_store.restore()
                _ = scope.start(self._registry_store.run(), name="save the registry")
                _ = scope.start(self._expire_nodes(), name="expire nodes")
                self._watch_upstreams(settings)
                self._health.probe_restored()
                await self._health.refresh()
                async with accepting(self._listeners.sockets, self._inbound) as self._accepting:
                    await self._serve()
                await self._inbound.drain(self._store.settings.limits.drain_s)
        self._pool.close()

    async def _serve(self) -> None:
        self._lifecycle.status = self._status
        self._store.subscribe(self._settings_changed)
        logger.info("%s", self._status())
        await self._lifecycle.serve(self._reload)

    async def _expire_nodes(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.05, self._registry.expire())):
                    await self._expiry_changed.wait()
            self._expiry_changed.clear()

    # -- changes ---------------------------------------------------------------------------

    def _routing_changed(self) -> None:
        self._tables.invalidate()
        self._admission.wake()
        self._registry_store.note_change()
        self._lifecycle.status_changed()

    def _watch_upstreams(self, settings: GatewaySettings) -> None:
        self._health.watch(
            entry.proxy_url for entry in settings.models.values() if isinstance(entry, ProxyAlias)
        )

    async def _reload(self) -> None:
        self._store.reload(prepare=lambda settings: self._listeners.change(settings.listen))
        await self._accepting.follow(self._listeners.sockets)
        log_warnings(self._store.loaded.warnings)
        logger.info("reloaded: %s", self._status())

    def _settings_changed(self, _old: GatewaySettings, new: GatewaySettings) -> None:
        self._access.replace(new)
        self._admission.limits = self._inbound.limits = new.limits
        self._registry.stale_after_s = new.stale_after_s
        self._expiry_changed.set()
        self._node_api.settings = new
        self._watch_upstreams(new)
        self._routing_changed()

    # -- what people are told --------------------------------------------------------------

    def _status(self) -> str:
        """Return the one-line STATUS."""
        settings = self._store.settings
        targets = self._tables.current.targets.values()
        usable = sum(target.usable for target in targets)
        nodes = self._registry.nodes.values()
        live = sum(node.state is NodeState.LIVE for node in nodes)
        where = ", ".join(f"{host}:{settings.listen.port}" for host in settings.listen.host)
        parts = [
            f"listening on {where}",
            f"{usable}/{len(targets)} aliases usable",
            f"{live}/{len(nodes)} nodes live",
        ]
        if not targets and not nodes:
            parts.append(
                "no alias is configured and no node has registered: add a file to "
                "/etc/rolemesh/gateway.d and reload"
            )
        if self._registry_store.problem:
            parts.append(self._registry_store.problem)
        return "; ".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
