"""What clients ask besides inference: which aliases there are, and whether the gateway is well."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web

from rolemesh import __version__
from rolemesh.errors import NotAllowed, Unavailable, UnknownAlias
from rolemesh.gateway.health import HealthWatch
from rolemesh.gateway.routing_table import Target
from rolemesh.gateway.tables import RoutingTables
from rolemesh.names import Alias
from rolemesh.relay.replies import Reply, json_reply
from rolemesh.runtime.keys import Principal

Identify = Callable[[web.Request], Principal]
"""Tells who sent a request; raises for those who may not ask."""


class ClientApi:
    """Handlers for /v1/models, /health and /ready."""

    def __init__(
        self,
        *,
        identify: Identify,
        tables: RoutingTables,
        health: HealthWatch,
        started_at: int,
    ) -> None:
        self._identify = identify
        self._tables = tables
        self._health = health
        self._started_at = started_at

    async def get_models(self, request: web.Request) -> Reply:
        """List the aliases that can answer; the others with their reasons."""
        principal = self._identify(request)
        await self._health.refresh()
        targets = [
            target
            for target in self._tables.current.targets.values()
            if _may_use(principal, target.alias)
        ]
        unavailable = [
            {"id": target.alias, "reason": target.reason} for target in targets if not target.usable
        ]
        return json_reply(
            {
                "object": "list",
                "data": [self._model(target) for target in targets if target.usable],
                "rolemesh": {"unavailable_models": unavailable},
            }
        )

    async def get_model(self, request: web.Request) -> Reply:
        """Describe one alias that can answer."""
        principal = self._identify(request)
        await self._health.refresh()
        alias = Alias(request.match_info["alias"])
        if not _may_use(principal, alias):
            msg = f"this key may not use the model '{alias}'"
            raise NotAllowed(msg)
        target = self._tables.target(alias)
        if not target.usable:
            msg = f"{alias} cannot answer now: {target.reason}"
            raise Unavailable(msg, reason=target.reason, retry_after_s=2.0)
        return json_reply(self._model(target))

    async def get_health(self, _request: web.Request) -> Reply:
        """Tell that this process answers; looks at nothing else."""
        return json_reply({"status": "ok", "version": __version__})

    async def get_ready(self, _request: web.Request) -> Reply:
        """Tell whether default_model can answer."""
        await self._health.refresh()
        reason = why_not_ready(self._tables)
        if reason:
            tree = {"status": "unavailable", "reason": reason}
            return json_reply(tree, HTTPStatus.SERVICE_UNAVAILABLE)
        return json_reply({"status": "ready", "model": self._tables.current.default_model})

    def _model(self, target: Target) -> dict[str, Any]:
        return {
            "id": target.alias,
            "object": "model",
            "created": self._started_at,
            "owned_by": "rolemesh",
        }


def why_not_ready(tables: RoutingTables) -> str:
    """Return why default_model cannot answer, "" when it can."""
    alias = tables.current.default_model
    if alias is None:
        return "default_model is not set"
    try:
        return tables.target(alias).reason
    except UnknownAlias:
        return f"default_model {alias} is not announced by any node"


def _may_use(principal: Principal, alias: Alias) -> bool:
    return principal.roles is None or alias in principal.roles
