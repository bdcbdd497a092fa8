"""rolemesh-node-agent: the composition root: settings -> objects -> daemon."""

import argparse
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager as Context
from contextlib import AsyncExitStack, ExitStack, aclosing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from rolemesh.address import UpstreamAddress
from rolemesh.agent.access import AgentAccess
from rolemesh.agent.base_url import Listening
from rolemesh.agent.directory_lock import hold_directory
from rolemesh.agent.fleet import Fleet
from rolemesh.agent.fleet_memory import FleetMemory
from rolemesh.agent.gpu_claims import GpuClaims, claims_directory
from rolemesh.agent.gpu_numbers import GpuNumbersFile, numbers_directory
from rolemesh.agent.gpu_watch import GpuWatch
from rolemesh.agent.heritage import Heritage, uses_from
from rolemesh.agent.host_watch import HostWatch
from rolemesh.agent.inference import Inference
from rolemesh.agent.model_check import ModelCheck
from rolemesh.agent.node import Node
from rolemesh.agent.node_api import NodeApi
from rolemesh.agent.nvml import Nvml
from rolemesh.agent.observation import HostObservation
from rolemesh.agent.operator_choices import OperatorChoices
from rolemesh.agent.other_devices import OtherDevices
from rolemesh.agent.report import build_report, status_line
from rolemesh.agent.reporters import Reporters
from rolemesh.agent.token import load_token
from rolemesh.agent.unit_host import UnitHost, choose_unit_host
from rolemesh.config import cli
from rolemesh.config.dropins import ConfigSource
from rolemesh.config.settings import ClientTls, GatewayLink, NodeSettings, ServerTls
from rolemesh.config.store import ConfigStore, node_store
from rolemesh.relay.application import open_application, route
from rolemesh.relay.control_socket import control_path, open_control_socket
from rolemesh.relay.inbound import InboundServer
from rolemesh.relay.paths import inference_paths
from rolemesh.relay.reloading import RELOAD_PATH, reload_reply
from rolemesh.relay.serving import accepting
from rolemesh.relay.upstream import UpstreamPool
from rolemesh.runtime.daemon import Lifecycle, refusal_log, run_daemon
from rolemesh.runtime.listeners import Listeners
from rolemesh.runtime.log import log_warnings
from rolemesh.runtime.state import require_directory
from rolemesh.runtime.successor import Estate
from rolemesh.runtime.tasks import TaskScope
from rolemesh.runtime.tls import TlsContexts

logger = logging.getLogger(__name__)

_AGENT_LOCK: Final = "agent.lock"

OPERATOR_BODY_BYTES: Final = 64 * 1024
"""How large the body of a request may be that is no inference request."""


def main() -> int:
    """Run `rolemesh-node-agent`; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="rolemesh-node-agent",
        description="Serves the models of this machine and reports them to gateways",
    )
    cli.add_daemon_options(parser)
    args = parser.parse_args()
    source = cli.source_from(args, program="node")
    if args.check:
        return cli.check(source, refused=refusal_log())

    async def serve(lifecycle: Lifecycle) -> None:
        store = node_store(source)
        state_directory = require_directory(cli.state_directory(args, program="node"))
        await Agent(lifecycle, store, state_directory).run(source)

    return run_daemon(serve)


class Agent:
    """The object graph of a running agent, and its life."""

    def __init__(
        self, lifecycle: Lifecycle, store: ConfigStore[NodeSettings], state_directory: Path
    ) -> None:
        self._lifecycle = lifecycle
        self._store = store
        self._listeners = Listeners(lifecycle.notifier, lifecycle.passed_sockets())
        self._locks = dict(lifecycle.passed_locks())
        self._tls = TlsContexts().renewed(_tls_settings(store.settings))
        self._boot_id = secrets.token_hex(8)
        self._token = load_token(state_directory)
        self._state_directory = state_directory

    async def run(self, source: ConfigSource) -> None:
        """Serve until told to stop, then drain; `source` is passed on to rolemesh-llama."""
        settings = self._store.settings
        log_warnings(self._store.loaded.warnings)
        # Before anything is started: a second agent at this address ends with the first of these
        # lines, one with these directories with the last.
        await self._listeners.open(settings.listen)
        host = choose_unit_host(
            node_id=settings.node_id,
            state_directory=self._state_directory,
            source=source,
        )
        self._files = host.files
        self._gpus = self._gpu_watch(source)
        self._host_watch = HostWatch(gpus=self._gpus, models=ModelCheck())
        with self._alone():
            await self._run(host)

    def _gpu_watch(self, source: ConfigSource) -> GpuWatch:
        claimed = {name: fd for name, fd in self._locks.items() if name != _AGENT_LOCK}
        self._claims = GpuClaims(
            claims_directory(self._files),
            node_id=self._store.settings.node_id,
            config=" ".join(cli.source_arguments(source)),
            inherited=claimed,
        )
        return GpuWatch(
            nvml=Nvml(),
            devices=OtherDevices(),
            numbers=GpuNumbersFile(numbers_directory(self._state_directory)),
            claims=self._claims,
            shares_units=self._files.made_by_systemd,
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Make the directories and hold them for this agent alone; raises StartError."""
        with ExitStack() as held:
            remedy = "stop that one, or give each agent a --state-dir of its own"
            inherited = self._locks.get(_AGENT_LOCK)
            self._agent_lock = held.enter_context(
                hold_directory(
                    self._state_directory, name=_AGENT_LOCK, remedy=remedy, inherited=inherited
                )
            )
            self._files.prepare()
            if not self._files.made_by_systemd:
                # Agents with a state directory each may share this by environment or node_id.
                remedy = (
                    "give each a node_id of its own, or set ROLEMESH_RUNTIME_DIRECTORY for each"
                )
                held.enter_context(
                    hold_directory(self._files.sockets, name="runtime.lock", remedy=remedy)
                )
            yield

    async def _run(self, host: UnitHost) -> None:
        settings = self._store.settings
        # What is ours already is kept, whatever the first look shows.
        self._gpus.in_use = lambda: frozenset(self._claims.held)
        # The scope ends first: nobody starts an instance while a supervisor stops them.
        async with aclosing(self._host_watch), host.control as control, TaskScope() as scope:
            observation = await self._host_watch.observe(settings)
            self._choices = OperatorChoices(self._state_directory)
            fleet = Fleet(
                control=control,
                files=self._files,
                scope=scope,
                settings=settings,
                memory=FleetMemory(lambda: self._host_watch.read_gpus(self._store.settings)),
                choices=self._choices,
            )
            self._build(fleet, scope, observation)
            await self._serve(fleet, scope)

    def _build(self, fleet: Fleet, scope: TaskScope, observation: HostObservation) -> None:
        settings = self._store.settings
        self._access = AgentAccess(settings, token=self._token, hosts=settings.listen.host)
        self._node = Node(settings=settings, fleet=fleet, observation=observation)
        self._reporters = Reporters(
            scope=scope,
            node_id=settings.node_id,
            listening=self._listening(settings),
            locate=self._locate,
            build_report=lambda base_url: build_report(
                self._node.view(), base_url=base_url, boot_id=self._boot_id, token=self._token
            ),
            on_link_change=self._node.changed,
        )

    async def _serve(self, fleet: Fleet, scope: TaskScope) -> None:
        settings, pool = self._store.settings, UpstreamPool()
        inference = self._inference = Inference(
            node_id=settings.node_id,
            fleet=fleet,
            files=self._files,
            pool=pool,
            access=self._access,
            paths=inference_paths(settings.paths),
        )
        api = NodeApi(
            access=self._access,
            fleet=fleet,
            view=self._node.view,
            history=inference.log.history,
            started_at=int(datetime.now(UTC).timestamp()),
            renumber=self._renumber,
        )
        async with (
            AsyncExitStack() as opened,
            open_application(
                api.by_key(),
                max_body_bytes=OPERATOR_BODY_BYTES,
                admit=lambda peer, _path, field: self._access.identify(peer, field),
                paths=lambda: inference.paths,
            ) as application,
        ):
            self._inbound = InboundServer(
                make_job=inference,
                admit=self._access.identify,
                paths=inference.paths,
                other=application,
                limits=settings.limits,
                scope=scope,
            )
            tls = self._tls.server(settings.listen.tls)
            # A process that this one takes over from lets nobody in any more: from here on in haste.
            await self._lifecycle.own_state(lambda told: fleet.used_elsewhere(uses_from(told)))
            self._choices.read()
            self._gpus.in_use = fleet.devices_in_use
            # Before anybody is let in: clients may wait in a listener that outlived the last agent.
            self._node.start()
            await opened.enter_async_context(self._control_socket(api))
            async with accepting(self._listeners.sockets, self._inbound, tls) as self._accepting:
                await self._live(fleet, scope)
            self._listeners.close()
            await self._lifecycle.drain(self._inbound, self._store.settings.limits.drain_s)
        fleet.end()
        pool.close()

    def _control_socket(self, api: NodeApi) -> Context[None]:
        reload = partial(reload_reply, reload=self._lifecycle.reload, store=self._store)
        return open_control_socket(
            control_path(os.environ, "node"),
            [*api.of_operators(), route("POST", RELOAD_PATH, reload)],
            takes_over=self._lifecycle.takes_over,
        )

    async def _live(self, fleet: Fleet, scope: TaskScope) -> None:
        self._node.subscribe(self._node_changed)
        self._reporters.apply(self._store.settings)
        self._store.subscribe(self._settings_changed)
        self._scope = scope
        self._watch_host()
        self._lifecycle.status = self._status
        logger.info("%s", self._status())
        await self._lifecycle.serve(self._reload, self._estate(fleet))
        if self._lifecycle.is_handed_over:
            fleet.retire()
            self._claims.hand_over()
            self._inbound.keeps_idle = False  # there are no slots for more requests here
        else:
            # Before the drain, so that gateways send no more.
            await self._reporters.leave()

    def _watch_host(self) -> None:
        watch = self._host_watch.run(lambda: self._store.settings, self._node.observed)
        self._watching = self._scope.start(watch, name="watch the host")

    # -- from one process of this agent to another -----------------------------------------

    def _estate(self, fleet: Fleet) -> Estate | None:
        """Return what is handed over; None where llama-servers end with this process."""
        if not self._files.made_by_systemd:
            return None
        heritage = Heritage(
            fleet, tell=self._lifecycle.tell_successor, pause=self._pause, resume=self._resume
        )
        return heritage.estate(
            sockets=lambda: self._listeners.passed,
            locks=lambda: {_AGENT_LOCK: self._agent_lock, **self._claims.held},
        )

    async def _pause(self) -> None:
        self._watching.cancel()
        await self._accepting.pause()
        await self._reporters.hand_over()

    async def _resume(self) -> None:
        settings = self._store.settings
        tls = self._tls.server(settings.listen.tls)
        await self._accepting.follow(self._listeners.sockets, tls)
        self._reporters.apply(settings)
        self._watch_host()

    async def _renumber(self) -> None:
        """Have the GPUs that are there numbered anew."""
        self._node.observed(await self._host_watch.renumber(self._store.settings))

    def _node_changed(self) -> None:
        self._lifecycle.status_changed()
        self._reporters.node_changed()

    async def _reload(self) -> None:
        settings = self._store.reload(prepare=self._prepare).settings
        tls = self._tls.server(settings.listen.tls)
        await self._accepting.follow(self._listeners.sockets, tls)
        self._reporters.apply(settings)  # certificates may have changed, and nothing else
        log_warnings(self._store.loaded.warnings)
        # The fleet follows at once; what the new settings name is looked at before READY.
        self._node.observed(await self._host_watch.observe(self._store.settings))
        logger.info("reloaded: %s", self._status())

    def _prepare(self, settings: NodeSettings) -> None:
        """Do what may fail with new settings; raises ConfigError and changes nothing."""
        tls = self._tls.renewed(_tls_settings(settings))
        self._listeners.change(settings.listen)
        self._tls = tls

    def _locate(self, link: GatewayLink) -> UpstreamAddress:
        return self._tls.secured(UpstreamAddress.parse_url(link.url), link.tls)

    def _listening(self, settings: NodeSettings) -> Listening:
        listen = settings.listen
        scheme = "http" if listen.tls is None else "https"
        return Listening(hosts=listen.host, port=self._listeners.port, scheme=scheme)

    def _settings_changed(self, _old: NodeSettings, new: NodeSettings) -> None:
        self._access.listens_on(new.listen.host)
        self._access.replace(new)
        self._reporters.listens_on(self._listening(new))
        self._inbound.limits = new.limits
        self._inference.paths = self._inbound.paths = inference_paths(new.paths)
        self._node.settings_changed(new)
        self._reporters.apply(new)

    def _status(self) -> str:
        """Return the one-line STATUS."""
        return status_line(self._node.view(), self._reporters.summary())


def _tls_settings(settings: NodeSettings) -> tuple[ServerTls | ClientTls | None, ...]:
    return (settings.listen.tls, *(link.tls for link in settings.gateways))


if __name__ == "__main__":
    raise SystemExit(main())
