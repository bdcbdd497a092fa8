"""Every path of the gateway that is not an inference path, and what answers it."""

from aiohttp import web

from rolemesh.gateway.client_api import ClientApi
from rolemesh.gateway.node_api import NodeApi
from rolemesh.relay.application import refuse_method, route
from rolemesh.relay.paths import INFERENCE_PATHS


def gateway_routes(clients: ClientApi, nodes: NodeApi) -> list[web.RouteDef]:
    """Return the routes; inference paths stand here only to say which method they take."""
    return [
        route("GET", "/health", clients.get_health),
        route("GET", "/ready", clients.get_ready),
        route("GET", "/v1/models", clients.get_models),
        route("GET", "/v1/models/{alias:.+}", clients.get_model),
        route("GET", "/models", clients.get_models),
        route("POST", "/v1/nodes/register", nodes.post_register),
        route("POST", "/v1/nodes/{node_id}/heartbeat", nodes.post_heartbeat),
        route("DELETE", "/v1/nodes/{node_id}", nodes.delete_node),
        *(refuse_method(path, allowed="POST") for path in INFERENCE_PATHS),
    ]
