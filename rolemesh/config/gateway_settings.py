"""The gateway's valid tree -> GatewaySettings."""

import ipaddress
from types import MappingProxyType
from typing import Any

from rolemesh.config import tree
from rolemesh.config.keys import CLIENT_KEYS, NODE_KEYS, KeyFiles, client_keys
from rolemesh.config.sections import (
    build_client_tls,
    build_listen,
    build_paths,
    value_at,
    with_values,
)
from rolemesh.config.settings import (
    AliasSettings,
    DiscoveredAlias,
    GatewayAuth,
    GatewayNetwork,
    GatewaySettings,
    Network,
    Priority,
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
        nodes_tls=build_client_tls(tree.find(root, ("nodes", "tls"))),
        cors_origins=tuple(value_at(root, ("cors", "allow_origins"), ())),
        paths=build_paths(root),
        models=MappingProxyType(
            {
                Alias(name): _alias(Alias(name), node, timeouts, key_files)
                for name, node in models.items()
            }
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


def _alias(
    alias: Alias, node: Node, general: Timeouts, key_files: KeyFiles
) -> ProxyAlias | DiscoveredAlias:
    defaults: dict[str, Any] = value_at(node, ("defaults",), {})
    # A model name is not a default: it is what the request is sent with.
    model = defaults.pop("model", None)
    common: dict[str, Any] = {
        "alias": alias,
        "defaults": MappingProxyType(defaults),
        "timeouts": with_values(general, tree.find(node, ("timeouts",))),
        "fallback": tuple(dict.fromkeys(map(Alias, value_at(node, ("fallback",), ())))),
        "priority": Priority[value_at(node, ("priority",), "default").upper()],
        "reserved_slots": int(value_at(node, ("reserved_slots",), 0)),
        "echo_model": value_at(node, ("echo_model",), AliasSettings(alias=alias).echo_model),
    }
    if value_at(node, ("type",), "") == "discovered":
        return DiscoveredAlias(role=Role(value_at(node, ("role",), alias)), **common)
    in_flight = value_at(node, ("max_in_flight",), None)
    in_file = key_files.texts.get(("models", alias, "api_key_file"))
    return ProxyAlias(
        proxy_url=value_at(node, ("proxy_url",), ""),
        model=model or value_at(node, ("openai_model_name",), None),
        api_key=in_file or tree.text_at(node, ("api_key",)),
        tls=build_client_tls(tree.find(node, ("tls",))),
        max_in_flight=None if in_flight is None else int(in_flight),
        **common,
    )
