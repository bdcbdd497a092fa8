"""Every path of the gateway that is not an inference path, and what answers it."""

from aiohttp import web

from rolemesh.gateway.access import OPERATOR, GatewayAccess
from rolemesh.gateway.client_api import ClientApi, Identify
from rolemesh.gateway.node_api import NodeApi
from rolemesh.gateway.node_relay import NodeRelay
from rolemesh.gateway.openapi import openapi_route
from rolemesh.gateway.operator_api import Operations, OperatorApi
from rolemesh.relay.application import peer_of, route


class Doors:
    """The two ways in for people and clients: the network, with a key, and the control socket."""

    def __init__(self, operations: Operations, *, started_at: int) -> None:
        self._operations = operations
        self._started_at = started_at

    def by_key(self, access: GatewayAccess) -> list[web.RouteDef]:
        """Return the routes for callers with a key."""
        return self._routes(
            lambda request: access.clients.identify(peer_of(request), request.headers.get),
            lambda request: access.identify_operator(peer_of(request), request.headers.get),
        )

    def of_operators(self) -> list[web.RouteDef]:
        """Return the routes for whoever can open the control socket: they may everything."""
        return self._routes(lambda _: OPERATOR, lambda _: OPERATOR)

    def _routes(self, client: Identify, operator: Identify) -> list[web.RouteDef]:
        its = self._operations
        clients = ClientApi(
            identify=client, tables=its.tables, health=its.health, started_at=self._started_at
        )
        return [
            route("GET", "/health", clients.get_health),
            route("GET", "/ready", clients.get_ready),
            route("GET", "/v1/models", clients.get_models),
            route("GET", "/v1/models/{alias:.+}", clients.get_model),
            route("GET", "/models", clients.get_models),
            its.metrics.route(client),
            openapi_route(),
            *OperatorApi(its, operator).routes(),
            *NodeRelay(its.registry, operator).routes(),
        ]


def node_routes(nodes: NodeApi) -> list[web.RouteDef]:
    """Return the routes of nodes."""
    return [
        route("POST", "/v1/nodes/register", nodes.post_register),
        route("POST", "/v1/nodes/{node_id}/heartbeat", nodes.post_heartbeat),
        route("GET", "/v1/nodes/{node_id}", nodes.get_node),
        route("DELETE", "/v1/nodes/{node_id}", nodes.delete_node),
    ]
