"""The gateway's composition root: settings -> objects -> daemon."""

import argparse
import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rolemesh.address import UpstreamAddress
from rolemesh.config import cli
from rolemesh.config.settings import ClientTls, GatewaySettings, ProxyAlias, ServerTls
from rolemesh.config.store import ConfigStore, gateway_store
from rolemesh.gateway.access import GatewayAccess
from rolemesh.gateway.admission import Admission
from rolemesh.gateway.affinity import AffinityIndex
from rolemesh.gateway.dispatch import Dispatcher
from rolemesh.gateway.health import HealthWatch
from rolemesh.gateway.inference import Inference, InferenceJob
from rolemesh.gateway.metrics import Metrics
from rolemesh.gateway.node_api import NodeApi
from rolemesh.gateway.operator_api import Operations
from rolemesh.gateway.quotas import RequestRates
from rolemesh.gateway.registry import NodeState, Registry
from rolemesh.gateway.registry_store import RegistryStore
from rolemesh.gateway.routes import Doors, node_routes
from rolemesh.gateway.routing_table import RoutingTable, build_routing_table
from rolemesh.gateway.tables import RoutingTables
from rolemesh.gateway.trace import Trace
from rolemesh.relay.application import open_application
from rolemesh.relay.control_socket import control_path, open_control_socket
from rolemesh.relay.deadlines import Deadlines
from rolemesh.relay.inbound import InboundServer
from rolemesh.relay.paths import inference_paths
from rolemesh.relay.serving import accepting
from rolemesh.relay.upstream import UpstreamPool
from rolemesh.runtime.daemon import Lifecycle, refusal_log, run_daemon
from rolemesh.runtime.listeners import Listeners
from rolemesh.runtime.log import log_problem, log_warnings
from rolemesh.runtime.request_log import RequestLog
from rolemesh.runtime.state import StateFile, require_directory
from rolemesh.runtime.successor import Estate
from rolemesh.runtime.tasks import TaskScope
from rolemesh.runtime.tls import TlsContexts

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
        await Gateway(lifecycle, store, state_directory, control_path(os.environ, "gateway")).run()

    return run_daemon(serve)


class Gateway:
    """The object graph of a running gateway, and its life."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        store: ConfigStore[GatewaySettings],
        state_directory: Path,
        control: Path | None = None,
    ) -> None:
        """`control` is where operators of this machine find the gateway, None for nowhere."""
        self._control = control
        self._lifecycle = lifecycle
        self._store = store
        self._listeners = Listeners(lifecycle.notifier, lifecycle.passed_sockets())
        settings = store.settings
        self._tls = TlsContexts().renewed(_tls_settings(settings))
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
        self._affinity = AffinityIndex(clock=asyncio.get_running_loop().time)
        self._tables = RoutingTables(self._build_table)
        self._node_api = NodeApi(
            access=self._access,
            registry=self._registry,
            settings=settings,
            secured=self._secured,
        )

    async def run(self) -> None:
        """Serve until told to stop, then drain."""
        settings = self._store.settings
        log_warnings(self._store.loaded.warnings)
        await self._listeners.open(settings.listen)
        tls = self._tls.server(settings.listen.tls)
        async with TaskScope() as scope:
            self._health = HealthWatch(
                registry=self._registry,
                locate=self._locate,
                on_change=self._routing_changed,
                scope=scope,
            )
            self._inference = self._make_inference(settings)
            await self._find_out(scope)
            doors = Doors(self._operations(), started_at=int(datetime.now(UTC).timestamp()))
            async with (
                open_control_socket(
                    self._control, doors.of_operators(), takes_over=self._lifecycle.takes_over
                ),
                open_application(
                    [*doors.by_key(self._access), *node_routes(self._node_api)],
                    max_body_bytes=NODE_BODY_BYTES,
                    admit=self._access.identify,
                    paths=lambda: self._inference.paths,
                    allowed_origins=lambda: self._store.settings.cors_origins,
                ) as application,
            ):
                self._inbound = InboundServer(
                    make_job=self._inference,
                    admit=self._access.identify_client,
                    paths=self._inference.paths,
                    other=application,
                    limits=settings.limits,
                    scope=scope,
                )
                self._inbound.allowed_origins = settings.cors_origins
                async with accepting(
                    self._listeners.sockets, self._inbound, tls
                ) as self._accepting:
                    await self._serve()
                await self._lifecycle.drain(self._inbound, self._store.settings.limits.drain_s)
        self._pool.close()

    def _make_inference(self, settings: GatewaySettings) -> Inference:
        loop = asyncio.get_running_loop()
        return Inference(
            access=self._access,
            tables=self._tables,
            admission=self._admission,
            dispatcher=Dispatcher(
                tables=self._tables,
                admission=self._admission,
                affinity=self._affinity,
                health=self._health,
                pool=self._pool,
            ),
            rates=RequestRates(),
            silent=Deadlines(loop),
            paths=inference_paths(settings.paths),
            log=RequestLog("rolemesh.gateway.inference"),
            clock=loop.time,
        )

    def _operations(self) -> Operations:
        history = self._inference.log.history
        return Operations(
            store=self._store,
            registry=self._registry,
            tables=self._tables,
            admission=self._admission,
            health=self._health,
            live=lambda: self._inbound.live,
            metrics=Metrics(
                history=history,
                registry=self._registry,
                tables=self._tables,
                admission=self._admission,
                live=lambda: self._inbound.live,
            ),
            trace=Trace(registry=self._registry, history=history),
            reload=self._lifecycle.reload,
            listening=lambda: self._listeners.described,
            problems=self._problems,
            clock=asyncio.get_running_loop().time,
        )

    async def _find_out(self, scope: TaskScope) -> None:
        """Find out what there is to route to."""
        await self._lifecycle.own_state()
        self._registry_store.restore()
        _ = scope.start(self._registry_store.run(), name="save the registry")
        self._expiry = scope.start(self._expire_nodes(), name="expire nodes")
        self._registry.readdress(self._secured)
        self._watch_upstreams(self._store.settings)
        probes = self._health.probe_restored()
        await self._health.refresh()
        if self._lifecycle.takes_over and probes:  # the other one serves meanwhile
            await asyncio.wait(probes)

    async def _serve(self) -> None:
        """Serve until told to stop, or until another process has taken over."""
        self._lifecycle.status = self._status
        self._store.subscribe(self._settings_changed)
        logger.info("%s", self._status())
        estate = Estate(
            sockets=lambda: self._listeners.passed,
            release=self._release,
            keep=self._keep,
            follow=self._follow,
        )
        await self._lifecycle.serve(self._reload, estate)
        # Where another process has taken over, nodes tell that one how they are. None is late here.
        self._expiry.cancel()

    async def _expire_nodes(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.05, self._registry.expire())):
                    await self._expiry_changed.wait()
            self._expiry_changed.clear()

    # -- changes ---------------------------------------------------------------------------

    def _build_table(self) -> RoutingTable:
        table = build_routing_table(
            self._store.settings, self._registry.views(), self._health.known, self._locate
        )
        self._affinity.keep(table.candidate_keys())
        return table

    def _routing_changed(self) -> None:
        self._tables.invalidate()
        self._admission.wake()
        self._registry_store.note_change()
        self._lifecycle.status_changed()

    def _watch_upstreams(self, settings: GatewaySettings) -> None:
        self._health.watch(
            entry for entry in settings.models.values() if isinstance(entry, ProxyAlias)
        )

    def _prepare(self, settings: GatewaySettings) -> None:
        """Do what may fail with new settings; raises ConfigError and changes nothing."""
        tls = self._tls.renewed(_tls_settings(settings))
        self._listeners.change(settings.listen)
        self._tls = tls

    def _secured(self, address: UpstreamAddress) -> UpstreamAddress:
        """Return the address of a node with what verifies it."""
        return self._tls.secured(address, self._store.settings.nodes_tls)

    def _locate(self, alias: ProxyAlias) -> UpstreamAddress:
        return self._tls.secured(UpstreamAddress.parse_url(alias.proxy_url), alias.tls)

    async def _reload(self) -> None:
        settings = self._store.reload(prepare=self._prepare).settings
        tls = self._tls.server(settings.listen.tls)
        await self._accepting.follow(self._listeners.sockets, tls)
        # Certificates may have changed, and nothing else.
        self._registry.readdress(self._secured)
        self._routing_changed()
        log_warnings(self._store.loaded.warnings)
        logger.info("reloaded: %s", self._status())

    async def _release(self) -> Mapping[str, Any]:
        """Leave the state file to another process; nothing needs to be said of requests."""
        await self._registry_store.hold()
        return {}

    async def _keep(self) -> None:
        self._registry_store.unhold()

    def _follow(self) -> None:
        """Take in the configuration for the requests that end here, after a hand-over."""
        self._store.reload()

    def _settings_changed(self, _old: GatewaySettings, new: GatewaySettings) -> None:
        self._access.replace(new)
        self._admission.limits = self._inbound.limits = new.limits
        self._registry.stale_after_s = new.stale_after_s
        self._expiry_changed.set()
        self._node_api.settings = new
        self._inference.paths = self._inbound.paths = inference_paths(new.paths)
        self._inbound.allowed_origins = new.cors_origins
        self._watch_upstreams(new)
        self._routing_changed()
        for job in tuple(self._inbound.live.values()):
            if isinstance(job, InferenceJob):
                job.withdraw_unless_allowed()

    # -- what people are told --------------------------------------------------------------

    def _status(self) -> str:
        """Return the one-line STATUS."""
        settings = self._store.settings
        targets = self._tables.current.targets.values()
        usable = sum(target.usable for target in targets)
        nodes = self._registry.nodes.values()
        live = sum(node.state is NodeState.LIVE for node in nodes)
        where = ", ".join(self._listeners.described)
        parts = [
            f"listening on {where}{' with TLS' if settings.listen.tls else ''}",
            f"{usable}/{len(targets)} aliases usable",
            f"{live}/{len(nodes)} nodes live",
        ]
        if not targets and not nodes:
            parts.append(
                "no alias is configured and no node has registered: add a file to "
                "/etc/rolemesh/gateway.d and reload"
            )
        drained = sorted(node.report.node_id for node in nodes if node.is_drained)
        if drained:
            parts.append(f"drained: {', '.join(drained)}")
        if self._registry_store.problem:
            parts.append(self._registry_store.problem)
        return "; ".join(parts)

    def _problems(self) -> list[str]:
        """Return what an operator should see to."""
        warnings = map(str, self._store.loaded.warnings)
        return [*warnings, *filter(None, (self._registry_store.problem, log_problem()))]


def _tls_settings(settings: GatewaySettings) -> tuple[ServerTls | ClientTls | None, ...]:
    proxies = (entry for entry in settings.models.values() if isinstance(entry, ProxyAlias))
    return (settings.listen.tls, settings.nodes_tls, *(entry.tls for entry in proxies))


if __name__ == "__main__":
    raise SystemExit(main())
