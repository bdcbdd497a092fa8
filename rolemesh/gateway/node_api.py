"""What nodes call: register, heartbeat, removal. Source and advertised address are checked here."""

import asyncio
import ipaddress
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from aiohttp import web

from rolemesh import jsonread
from rolemesh.address import UpstreamAddress
from rolemesh.config.settings import DiscoveredAlias, GatewaySettings
from rolemesh.errors import BadRequest, ConnectFailed, NotAllowed, NotVerified, UnknownPath
from rolemesh.gateway.access import GatewayAccess
from rolemesh.gateway.registry import Node, NodeState, Registry, UnknownNode
from rolemesh.names import NODE_ID_PATTERN, Alias, NodeId, Role
from rolemesh.relay.application import peer_of
from rolemesh.relay.replies import Reply, json_reply
from rolemesh.relay.upstream import UpstreamPool
from rolemesh.runtime.listeners import is_loopback
from rolemesh.runtime.log import fields
from rolemesh.runtime.operator_events import OperatorEvent
from rolemesh.wire import NodeReport

logger = logging.getLogger(__name__)

CONNECT_S = 2.0
"""How long the look at a node's certificate may take."""

BEATS_PER_STALE = 4
"""How many heartbeats a node is asked for within stale_after_s: one lost is no alarm."""


class NodeApi:
    """Handlers for /v1/nodes."""

    def __init__(
        self,
        *,
        access: GatewayAccess,
        registry: Registry,
        settings: GatewaySettings,
        secured: Callable[[UpstreamAddress], UpstreamAddress],
    ) -> None:
        """`secured` gives the address of a node what verifies it."""
        self._access = access
        self._registry = registry
        self._secured = secured
        self.settings = settings

    async def post_register(self, request: web.Request) -> Reply:
        """Take a full report of a node; idempotent."""
        peer = peer_of(request)
        self._access.nodes.identify(peer, request.headers.get)
        tree = await _body(request)
        try:
            report = NodeReport.from_json(tree)
            _check_names(report)
            address = UpstreamAddress.parse_url(report.base_url)
        except jsonread.JsonError as err:
            raise BadRequest(str(err)) from err
        except ValueError as err:
            msg = f"base_url: {err}"
            raise BadRequest(msg, param="base_url") from err
        address = self._secured(await self._checked(address, peer))
        await _require_good_certificate(address)
        known = self._registry.nodes.get(report.node_id)
        self._registry.register(report, address)
        if known is not None and _are_two(known, report):
            logger.warning(
                "two nodes register as %s: %s and %s; give each its own node_id",
                report.node_id,
                known.report.base_url,
                report.base_url,
            )
        if known is None or known.report.boot_id != report.boot_id:
            logger.info(
                "node %s registered",
                report.node_id,
                extra=fields(
                    event=OperatorEvent.NODE_REGISTERED,
                    node=report.node_id,
                    base_url=report.base_url,
                    peer=peer,
                ),
            )
        return json_reply(
            {
                "status": "registered",
                "node_id": report.node_id,
                "heartbeat_interval_s": self._interval_s(),
            }
        )

    async def post_heartbeat(self, request: web.Request) -> Reply:
        """Take a heartbeat; 404 asks the node to register first."""
        self._access.nodes.identify(peer_of(request), request.headers.get)
        node_id = NodeId(request.match_info["node_id"])
        try:
            self._registry.heartbeat(node_id, await _body(request))
        except UnknownNode as err:
            msg = f"{node_id} is not registered here in its present life; register first"
            raise UnknownPath(msg) from err
        except jsonread.JsonError as err:
            raise BadRequest(str(err)) from err
        return json_reply({"status": "ok", "heartbeat_interval_s": self._interval_s()})

    async def get_node(self, request: web.Request) -> Reply:
        """Tell whoever sets a node up what became of its reports, and who asks for its roles."""
        self._access.nodes.identify(peer_of(request), request.headers.get)
        node_id = NodeId(request.match_info["node_id"])
        node = self._registry.nodes.get(node_id)
        if node is None:
            msg = f"{node_id} is not registered here"
            raise UnknownPath(msg)
        (view,) = (view for view in self._registry.views() if view.node_id == node_id)
        roles = sorted({role for model in view.models for role in model.roles})
        return json_reply(
            {
                "node_id": node_id,
                "state": node.state.value,
                "reason": view.unusable,
                "base_url": node.report.base_url,
                "models": [
                    {"model_id": each.model_id, "usable": each.usable, "reason": each.reason}
                    for each in view.models
                ],
                "aliases": {role: self._aliases_of(role) for role in roles},
            }
        )

    def _aliases_of(self, role: Role) -> list[str]:
        """Return the aliases that a role answers."""
        known = self.settings.models
        named: list[str] = [
            alias
            for alias, entry in known.items()
            if isinstance(entry, DiscoveredAlias) and entry.role == role
        ]
        is_alias_itself = self.settings.aliases_from_roles and Alias(role) not in known
        return [*named, role] if is_alias_itself else named

    async def delete_node(self, request: web.Request) -> Reply:
        """Forget a node."""
        self._access.nodes.identify(peer_of(request), request.headers.get)
        node_id = NodeId(request.match_info["node_id"])
        if not self._registry.remove(node_id):
            msg = f"{node_id} is not registered here"
            raise UnknownPath(msg)
        logger.info("node %s removed", node_id, extra=fields(node=node_id))
        return json_reply({"status": "removed"})

    def _interval_s(self) -> float:
        return self._registry.stale_after_s / BEATS_PER_STALE

    async def _checked(self, address: UpstreamAddress, peer: str) -> UpstreamAddress:
        """Return the advertised address with its name resolved once; raises NotAllowed."""
        host = await _resolve(address)
        if ipaddress.ip_address(host).is_unspecified:
            msg = f"base_url names {host}, which is no address to connect to (advertise_url)"
            raise BadRequest(msg, param="base_url")
        if is_loopback(host) and not is_loopback(peer):
            msg = (
                f"base_url names the loopback address {host}, but the request came from {peer}; "
                f"the node must advertise an address this gateway can reach (advertise_url)"
            )
            raise NotAllowed(msg)
        allowed = self.settings.network.allow_nodes
        if allowed is not None and not any(ipaddress.ip_address(host) in net for net in allowed):
            msg = f"base_url names {host}, which is outside network.allow_nodes"
            raise NotAllowed(msg)
        return replace(address, host=host)


async def _require_good_certificate(address: UpstreamAddress) -> None:
    """Raise NotAllowed where calls would fail for good: the node is who has to know.

    One that cannot be reached now is found out as any other is.
    """
    if not address.server_name:
        return
    pool = UpstreamPool()
    try:
        connection = await pool.connect(address, CONNECT_S)
    except NotVerified as err:
        raise NotAllowed(str(err)) from err
    except ConnectFailed:
        return
    connection.abort()


async def _resolve(address: UpstreamAddress) -> str:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port)
    except (OSError, ValueError) as err:
        msg = f"base_url: the name {address.host} cannot be resolved here"
        raise BadRequest(msg, param="base_url") from err
    return str(found[0][4][0])


def _check_names(report: NodeReport) -> None:
    """Raise JsonError for names that could not stand in a path, a header or the log."""
    if not re.fullmatch(NODE_ID_PATTERN, report.node_id):
        msg = f"node_id: expected {NODE_ID_PATTERN}, found {report.node_id!r}"
        raise jsonread.JsonError(msg)
    if not (report.api_key or "").isprintable():
        msg = "api_key: expected printable characters"
        raise jsonread.JsonError(msg)
    for model in report.models:
        for name in (model.model_id, *model.roles):
            if not (name and name.isprintable()):
                msg = f"models: expected a name of printable characters, found {name!r}"
                raise jsonread.JsonError(msg)


def _are_two(known: Node, report: NodeReport) -> bool:
    """Tell whether a report comes from another node than the one that lives by its name."""
    same_place = known.report.base_url == report.base_url
    same_life = known.report.boot_id == report.boot_id
    return known.state is NodeState.LIVE and not same_place and not same_life


async def _body(request: web.Request) -> Mapping[str, Any]:
    try:
        return jsonread.as_object(json.loads(await request.read()))
    except (ValueError, RecursionError) as err:
        msg = f"the request body is not a JSON object: {err}"
        raise BadRequest(msg) from err
