"""The node's valid tree -> NodeSettings."""

import re
from pathlib import Path
from types import MappingProxyType
from typing import Final

from rolemesh.config import tree
from rolemesh.config.keys import AGENT_KEYS, KeyFiles, client_keys
from rolemesh.config.sections import (
    arguments_at,
    build_client_tls,
    build_listen,
    build_paths,
    value_at,
    with_values,
)
from rolemesh.config.settings import (
    GatewayLink,
    InstanceSettings,
    LlamaServer,
    ModelSettings,
    NodeSettings,
)
from rolemesh.config.tree import Node
from rolemesh.names import InstanceName, ModelId, NodeId, Role

_NOT_IN_NODE_ID: Final = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_NODE_ID: Final = 63


def build_node_settings(root: Node, key_files: KeyFiles, *, host_name: str) -> NodeSettings:
    """Return the settings in a tree without findings; what it leaves out has its default.

    `host_name` names the node where the tree does not.
    """
    node_id = NodeId(value_at(root, ("node_id",), node_id_from(host_name)))
    defaults = NodeSettings(node_id=node_id)
    return NodeSettings(
        node_id=node_id,
        listen=build_listen(root, defaults.listen.port),
        advertise_url=value_at(root, ("advertise_url",), defaults.advertise_url),
        auth=client_keys(root, AGENT_KEYS, key_files),
        gateways=tuple(
            _gateway(root, url, key_files) for url in tree.entries(tree.find(root, ("gateways",)))
        ),
        llama_server=_llama_server(root),
        models=MappingProxyType(
            {
                ModelId(name): _model(ModelId(name), node)
                for name, node in tree.entries(tree.find(root, ("models",))).items()
            }
        ),
        instances=MappingProxyType(
            {
                InstanceName(name): _instance(InstanceName(name), node)
                for name, node in tree.entries(tree.find(root, ("instances",))).items()
            }
        ),
        paths=build_paths(root),
        policy=with_values(defaults.policy, tree.find(root, ("policy",))),
        limits=with_values(defaults.limits, tree.find(root, ("limits",))),
    )


def node_id_from(host_name: str) -> NodeId:
    """Return a host name as a node_id: what may not stand in one becomes a dash."""
    text = _NOT_IN_NODE_ID.sub("-", host_name).lstrip("._-")[:_LONGEST_NODE_ID]
    return NodeId(text or "node")


def _gateway(root: Node, url: str, key_files: KeyFiles) -> GatewayLink:
    path = ("gateways", url)
    in_file = key_files.texts.get((*path, "api_key_file"))
    return GatewayLink(
        url=url,
        api_key=in_file or tree.text_at(root, (*path, "api_key")),
        tls=build_client_tls(tree.find(root, (*path, "tls"))),
    )


def _llama_server(root: Node) -> LlamaServer:
    path = tree.find(root, ("llama_server", "path"))
    return LlamaServer(
        path=None if path is None else Path(str(path.value)),
        args=arguments_at(root, ("llama_server", "args")),
        origin="" if path is None else str(path.origin),
    )


def _model(model_id: ModelId, node: Node) -> ModelSettings:
    context_size = value_at(node, ("context_size",), None)
    return ModelSettings(
        model_id=model_id,
        path=Path(value_at(node, ("path",), "")),
        roles=tuple(dict.fromkeys(map(Role, value_at(node, ("roles",), ())))),
        context_size=None if context_size is None else int(context_size),
        parallel=int(value_at(node, ("parallel",), 1)),
        args=arguments_at(node, ("args",)),
        origin=str(node.origin),
    )


def _instance(name: InstanceName, node: Node) -> InstanceSettings:
    return InstanceSettings(
        name=name,
        model=value_at(node, ("model",), None),
        pinned=value_at(node, ("pinned",), InstanceSettings(name=name).pinned),
    )
