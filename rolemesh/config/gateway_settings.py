"""The gateway's valid tree -> GatewaySettings."""

import ipaddress
from types import MappingProxyType
from typing import Any

from rolemesh.config import tree
from rolemesh.config.keys import CLIENT_KEYS, NODE_KEYS, KeyFiles, client_keys
from rolemesh.config.sections import build_listen, value_at, with_values
from rolemesh.config.settings import (
    DiscoveredAlias,
    GatewayAuth,
    GatewayNetwork,
    GatewaySettings,
    Network,
    ProxyAlias,
    Timeouts,
)
from rolemesh.config.tree import Node
from rolemesh.names import Alias, Role


def build_gateway_settings(root: Node, key_files: KeyFiles) -> GatewaySettings:
    """Return the settings in a tree without findings; what it leaves out has its default."""
    defaults = GatewaySettings()
    timeouts = with_values(defaults.timeouts, tree.find(root, ("timeouts",)))
    models = tree.entries(tree.find(root, ("models",)))
    return GatewaySettings(
        listen=build_listen(root, defaults.listen.port),
        default_model=value_at(root, ("default_model",), defaults.default_model),
        aliases_from_roles=value_at(root, ("aliases", "from_roles"), defaults.aliases_from_roles),
        auth=_auth(root, key_files),
        network=GatewayNetwork(
            allow_clients=_networks(root, "allow_clients"),
            allow_nodes=_networks(root, "allow_nodes"),
        ),
        timeouts=timeouts,
        limits=with_values(defaults.limits, tree.find(root, ("limits",))),
        stale_after_s=float(value_at(root, ("nodes", "stale_after_s"), defaults.stale_after_s)),
        models=MappingProxyType(
            {Alias(name): _alias(Alias(name), node, timeouts) for name, node in models.items()}
        ),
    )


def _auth(root: Node, key_files: KeyFiles) -> GatewayAuth:
    return GatewayAuth(
        clients=client_keys(root, CLIENT_KEYS, key_files),
        nodes=client_keys(root, NODE_KEYS, key_files),
        open=value_at(root, ("auth", "open"), GatewayAuth().open),
    )


def _networks(root: Node, name: str) -> tuple[Network, ...] | None:
    listed = value_at(root, ("network", name), None)
    return None if listed is None else tuple(map(ipaddress.ip_network, listed))


def _alias(alias: Alias, node: Node, general: Timeouts) -> ProxyAlias | DiscoveredAlias:
    timeouts = with_values(general, tree.find(node, ("timeouts",)))
    defaults: dict[str, Any] = value_at(node, ("defaults",), {})
    # A model name is not a default: it is what the request is sent with.
    model = defaults.pop("model", None)
    frozen = MappingProxyType(defaults)
    if value_at(node, ("type",), "") == "discovered":
        role = Role(value_at(node, ("role",), alias))
        return DiscoveredAlias(alias=alias, role=role, defaults=frozen, timeouts=timeouts)
    in_flight = value_at(node, ("max_in_flight",), None)
    return ProxyAlias(
        alias=alias,
        proxy_url=value_at(node, ("proxy_url",), ""),
        model=model or value_at(node, ("openai_model_name",), None),
        defaults=frozen,
        max_in_flight=None if in_flight is None else int(in_flight),
        timeouts=timeouts,
    )
