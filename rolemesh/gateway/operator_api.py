"""What operators ask and tell: /v1/rolemesh, by a key with `admin: true` or the control socket."""

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from rolemesh import __version__
from rolemesh.config.settings import ClientKey, GatewaySettings
from rolemesh.config.store import ConfigStore
from rolemesh.errors import BadRequest, Cancelled, UnknownPath
from rolemesh.gateway.access import OPERATOR_PREFIX
from rolemesh.gateway.admission import Admission
from rolemesh.gateway.client_api import Identify, why_not_ready
from rolemesh.gateway.explain import explain
from rolemesh.gateway.health import HealthWatch
from rolemesh.gateway.inference import InferenceJob
from rolemesh.gateway.metrics import Metrics
from rolemesh.gateway.operator_view import RequestsView, alias_json, key_json, node_json
from rolemesh.gateway.registry import Registry, UnknownNode
from rolemesh.gateway.tables import RoutingTables
from rolemesh.gateway.trace import Trace
from rolemesh.names import Alias, NodeId, RequestId
from rolemesh.relay.application import route
from rolemesh.relay.job import Job
from rolemesh.relay.reloading import Reload, reload_reply
from rolemesh.relay.replies import Reply, json_reply
from rolemesh.runtime.installed import installed_version, is_program_replaced
from rolemesh.runtime.keys import Principal
from rolemesh.runtime.log import fields

logger = logging.getLogger(__name__)

Ask = Callable[[web.Request, Principal], Awaitable[Reply]]


@dataclass(slots=True, kw_only=True)
class Operations:
    """What the operator paths look at and act upon.

    `live` are the requests under way. `reload` raises ConfigError when the configuration is
    refused, and returns the process that has taken over, if one has. `listening` are addresses, `problems` what an operator should know.
    """

    store: ConfigStore[GatewaySettings]
    registry: Registry
    tables: RoutingTables
    admission: Admission
    health: HealthWatch
    live: Callable[[], Mapping[RequestId, Job]]
    metrics: Metrics
    trace: Trace
    reload: Reload
    listening: Callable[[], list[str]]
    problems: Callable[[], list[str]]
    clock: Callable[[], float]
    started_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.started_at = self.clock()


class OperatorApi:
    """Handlers; `identify` tells who calls, and raises for those who are no operators."""

    def __init__(self, operations: Operations, identify: Identify) -> None:
        self._with = operations
        self._identify = identify

    def routes(self) -> list[web.RouteDef]:
        """Return every path of operators."""
        return [
            self._route("GET", "status", self.get_status),
            self._route("GET", "aliases", self.get_aliases),
            self._route("GET", "explain/{alias:.+}", self.get_explanation),
            self._route("GET", "requests", self.get_requests),
            self._route("DELETE", "requests/{request_id}", self.delete_request),
            self._route("GET", "trace/{request_id}", self.get_trace),
            self._route("POST", "nodes/{node_id}/drain", self.post_drain),
            self._route("POST", "nodes/{node_id}/undrain", self.post_undrain),
            self._route("POST", "reload", self.post_reload),
            self._route("GET", "keys", self.get_keys),
        ]

    def _route(self, method: str, path: str, ask: Ask) -> web.RouteDef:
        async def respond(request: web.Request) -> Reply:
            return await ask(request, self._identify(request))

        return route(method, OPERATOR_PREFIX + path, respond)

    # -- what there is ---------------------------------------------------------------------

    async def get_status(self, _request: web.Request, _by: Principal) -> Reply:
        """Describe the gateway and its nodes."""
        its = self._with
        await its.health.refresh()
        table, now, reason = its.tables.current, its.clock(), why_not_ready(its.tables)
        requests = self._requests()
        in_flight = its.admission.load.in_flight
        tree = {
            "version": __version__,
            "installed_version": installed_version(),
            "program_replaced": is_program_replaced(),
            "pid": os.getpid(),
            "uptime_s": round(now - its.started_at, 1),
            "config_generation": its.store.generation,
            "listening": its.listening(),
            "default_model": table.default_model,
            "ready": not reason,
            "reason": reason,
            "aliases": {
                "total": len(table.targets),
                "usable": sum(target.usable for target in table.targets.values()),
            },
            "nodes": [
                node_json(node, now=now, in_flight=in_flight)
                for _, node in sorted(its.registry.nodes.items())
            ],
            "requests": {"running": requests.running, "queued": requests.queued},
            "problems": its.problems(),
        }
        return json_reply(tree)

    async def get_aliases(self, _request: web.Request, _by: Principal) -> Reply:
        """List every alias with its candidates."""
        its = self._with
        await its.health.refresh()
        running, queued = self._requests().count_by_alias()
        aliases = [
            alias_json(target, running=running[target.alias], queued=queued[target.alias])
            for target in its.tables.current.targets.values()
        ]
        return json_reply({"aliases": aliases})

    async def get_explanation(self, request: web.Request, _by: Principal) -> Reply:
        """Tell who would answer an alias now, and why nobody else would."""
        its = self._with
        await its.health.refresh()
        alias, now = Alias(request.match_info["alias"]), self._with.clock()
        target = its.tables.target(alias)
        breakers = its.admission.breakers
        key = self._key(request.query.get("key"))
        told = explain(
            alias,
            its.tables.current,
            its.admission.load_behind(),
            may_use=None if key is None else key.roles,
            held_back="" if key is None else self._held_back(key),
            breaker=lambda key: breakers.described(key, now),
        )
        queued = its.admission.queued(alias)
        return json_reply({**told, "queued": queued, "fallback": list(target.fallback)})

    def _held_back(self, key: ClientKey) -> str:
        principal = Principal(name=key.name, max_concurrent=key.max_concurrent)
        if self._with.admission.may_run(principal):
            return ""
        return f"the key {key.name} has as many requests running as it may"

    def _key(self, name: str | None) -> ClientKey | None:
        if name is None:
            return None
        for key in self._with.store.settings.auth.clients:
            if key.name == name:
                return key
        msg = f"there is no client key named {name!r}"
        raise BadRequest(msg, param="key")

    async def get_keys(self, _request: web.Request, _by: Principal) -> Reply:
        """List the client keys: what each may do, and how much it does."""
        its = self._with
        running, ended = self._requests().count_by_client(), its.metrics.counts.clients
        keys = [
            key_json(key, running=running[key.name], requests=ended[key.name])
            for key in its.store.settings.auth.clients
        ]
        return json_reply({"keys": keys})

    # -- requests --------------------------------------------------------------------------

    def _requests(self) -> RequestsView:
        its = self._with
        jobs = (job for job in its.live().values() if isinstance(job, InferenceJob))
        return RequestsView(jobs, its.admission.waiting(), its.clock())

    async def get_requests(self, request: web.Request, _by: Principal) -> Reply:
        """List the requests under way; with `?by=key` those of one key together."""
        requests = self._requests().to_json()
        by = request.query.get("by")
        if by == "key":
            requests.sort(key=lambda each: each["client"] or "")
        elif by is not None:
            msg = f"by: expected key, found {by!r}"
            raise BadRequest(msg, param="by")
        return json_reply({"requests": requests})

    async def delete_request(self, request: web.Request, by: Principal) -> Reply:
        """Cancel a request under way."""
        request_id = RequestId(request.match_info["request_id"])
        job = self._with.live().get(request_id)
        if job is None:
            msg = f"no request {request_id} is under way here"
            raise UnknownPath(msg)
        logger.info(
            "%s cancelled a request", by.name, extra=fields(request_id=request_id, client=by.name)
        )
        job.cancel(Cancelled("an operator cancelled this request"))
        return json_reply({"status": "cancelled"})

    async def get_trace(self, request: web.Request, _by: Principal) -> Reply:
        """Tell what became of a request, here and on the nodes."""
        return json_reply(await self._with.trace.of(request.match_info["request_id"]))

    # -- what is told ----------------------------------------------------------------------

    async def post_drain(self, request: web.Request, by: Principal) -> Reply:
        """Send a node nothing new; its running requests finish."""
        return self._drain(request, by, self._with.registry.drain, is_drained=True)

    async def post_undrain(self, request: web.Request, by: Principal) -> Reply:
        """Take a drain back."""
        return self._drain(request, by, self._with.registry.undrain, is_drained=False)

    def _drain(
        self,
        request: web.Request,
        by: Principal,
        tell: Callable[[NodeId], None],
        *,
        is_drained: bool,
    ) -> Reply:
        node_id = NodeId(request.match_info["node_id"])
        try:
            tell(node_id)
        except UnknownNode as err:
            msg = f"{node_id} is not registered here"
            raise UnknownPath(msg) from err
        done = "drained" if is_drained else "put back into routing"
        extra = fields(node=node_id, client=by.name)
        logger.info("node %s %s by %s", node_id, done, by.name, extra=extra)
        return json_reply({"node_id": node_id, "drained": is_drained})

    async def post_reload(self, request: web.Request, by: Principal) -> Reply:
        """Read the configuration again, as on SIGHUP, and tell what came of it."""
        logger.info("reload asked for by %s", by.name, extra=fields(client=by.name))
        return await reload_reply(request, self._with.reload, self._with.store)
