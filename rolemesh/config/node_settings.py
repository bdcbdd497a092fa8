"""The node's valid tree -> NodeSettings."""

import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

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
    DraftModel,
    GatewayLink,
    InstanceSettings,
    LlamaServer,
    Lora,
    ModelSettings,
    NodeSettings,
)
from rolemesh.config.tree import Node
from rolemesh.names import InstanceName, ModelId, NodeId, Role

_NOT_IN_NODE_ID: Final = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_NODE_ID: Final = 63
_AS_GIVEN: Final = (
    *("cache_type_k", "cache_type_v", "flash_attention", "chat_template", "embeddings"),
    *("rerank", "pooling", "save_slots", "warm", "idle_unload_s"),
)
"""Keys of a model whose values are taken as they stand."""
_WHOLE: Final = (
    *("context_size", "parallel", "gpu_layers", "gpus", "batch_size", "ubatch_size", "threads"),
    "memory_mib",
)
"""Keys of a model that are whole numbers."""


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
        gpus=None if tree.find(root, ("gpus",)) is None else tuple(value_at(root, ("gpus",), ())),
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
    args = tree.find(root, ("llama_server", "args"))
    return LlamaServer(
        path=None if path is None else Path(str(path.value)),
        args=arguments_at(root, ("llama_server", "args")),
        origin="" if path is None else str(path.origin),
        args_origin="" if args is None else str(args.origin),
    )


def _model(model_id: ModelId, node: Node) -> ModelSettings:
    plain = ModelSettings(
        model_id=model_id,
        path=Path(value_at(node, ("path",), "")),
        roles=tuple(dict.fromkeys(map(Role, value_at(node, ("roles",), ())))),
        lora=tuple(
            Lora(path=Path(tree["path"]), scale=float(tree.get("scale", 1.0)))
            for tree in value_at(node, ("lora",), ())
        ),
        mmproj=_path_at(node, "mmproj"),
        draft_model=_draft_model(tree.find(node, ("draft_model",))),
        chat_template_file=_path_at(node, "chat_template_file"),
        args=arguments_at(node, ("args",)),
        origin=str(node.origin),
    )
    given: dict[str, Any] = {key: value_at(node, (key,), getattr(plain, key)) for key in _AS_GIVEN}
    given |= {key: _whole_at(node, key, getattr(plain, key)) for key in _WHOLE}
    return replace(plain, **given)


def _draft_model(node: Node | None) -> DraftModel | None:
    if node is None:
        return None
    return DraftModel(
        path=Path(value_at(node, ("path",), "")),
        gpu_layers=_whole_at(node, "gpu_layers", None),
        max_tokens=_whole_at(node, "max_tokens", None),
    )


def _whole_at(node: Node, key: str, default: int | None) -> int | None:
    """Return a whole number, which YAML may give as 8192.0."""
    value = value_at(node, (key,), default)
    return None if value is None else int(value)


def _path_at(node: Node, key: str) -> Path | None:
    value = value_at(node, (key,), None)
    return None if value is None else Path(value)


def _instance(name: InstanceName, node: Node) -> InstanceSettings:
    return InstanceSettings(
        name=name,
        model=value_at(node, ("model",), None),
        pinned=value_at(node, ("pinned",), InstanceSettings(name=name).pinned),
        gpus=tuple(value_at(node, ("gpus",), ())),
    )
