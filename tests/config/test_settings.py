"""The defaults have one home; what the schema says of them is the same."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rolemesh.config import settings as s
from rolemesh.config.schema import load_schema
from rolemesh.names import Alias, InstanceName, ModelId, NodeId, Role

GATEWAY = s.GatewaySettings()
NODE = s.NodeSettings(node_id=NodeId("n"))
MODEL = s.ModelSettings(model_id=ModelId("m"), path=Path("/m"), roles=(Role("r"),))
OF_QUEUES = ("max_queue", "max_queue_wait_s", "max_concurrent_per_key")
CLIENT = s.ClientKey(name="c", digest=b"")
PROXY = s.ProxyAlias(alias=Alias("a"), proxy_url="", model=None)


def documented(properties: Mapping[str, Any], defs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each key with its documented default; None where it has none."""
    for key, described in properties.items():
        part = {} if described is True else described
        target = defs.get(part.get("$ref", "").rpartition("/")[2], {})
        yield key, part.get("default", target.get("default"))


def documented_at(program: Any, *path: str) -> dict[str, Any]:
    schema = load_schema(program)
    part = schema
    for key in path:
        part = part["$defs"][key] if key in part.get("$defs", {}) else part["properties"][key]
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rpartition("/")[2]]
    return dict(documented(part["properties"], schema["$defs"]))


def fields(instance: Any, *without: str) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(instance)]
    return {name: getattr(instance, name) for name in names if name not in without}


@pytest.mark.parametrize(
    ("documented", "implemented"),
    [
        (documented_at("gateway", "timeouts"), fields(GATEWAY.timeouts)),
        (documented_at("gateway", "limits"), fields(GATEWAY.limits)),
        (documented_at("gateway", "nodes"), {"stale_after_s": GATEWAY.stale_after_s, "tls": None}),
        (documented_at("gateway", "aliases"), {"from_roles": GATEWAY.aliases_from_roles}),
        (documented_at("gateway", "network"), fields(GATEWAY.network)),
        (
            documented_at("gateway", "listen"),
            {"host": "127.0.0.1", "port": GATEWAY.listen.port, "tls": None},
        ),
        (documented_at("node", "limits"), fields(NODE.limits, *OF_QUEUES)),
        (documented_at("node", "policy"), fields(NODE.policy)),
        (
            documented_at("node", "listen"),
            {"host": "127.0.0.1", "port": NODE.listen.port, "tls": None},
        ),
    ],
)
def test_the_schema_documents_exactly_the_fields_and_their_defaults(
    documented: Mapping[str, Any], implemented: Mapping[str, Any]
) -> None:
    assert documented == implemented


@pytest.mark.parametrize(
    ("documented", "implemented"),
    [
        (
            documented_at("gateway"),
            {
                "version",
                "nodes",
                "aliases",
                "cors",
                *fields(
                    GATEWAY, "aliases_from_roles", "stale_after_s", "nodes_tls", "cors_origins"
                ),
            },
        ),
        (documented_at("gateway", "proxy"),
            {"type", "openai_model_name", "api_key_file", *fields(PROXY, "alias", "model")}),
        (documented_at("gateway", "client"),
            {"key", "key_sha256", "key_file", *fields(CLIENT, "name", "digest")}),
        (documented_at("node"), {"version", *fields(NODE)}),
        (documented_at("node", "llama_server"), {*fields(NODE.llama_server, "origin", "args_origin")}),
        (documented_at("node", "model"), {*fields(MODEL, "origin")}),
        (documented_at("node", "gateway"), {"api_key_file", *fields(s.GatewayLink(url=""))}),
    ],
)  # fmt: skip
def test_the_schema_has_a_key_for_each_field_and_no_other(
    documented: Mapping[str, Any], implemented: set[str]
) -> None:
    assert documented.keys() == implemented


def test_defaults_of_model_and_instance_are_the_documented_ones() -> None:
    model = documented_at("node", "model")
    assert (model["parallel"], model["context_size"]) == (MODEL.parallel, MODEL.context_size)
    assert model["args"] == list(MODEL.args)
    instance = load_schema("node")["properties"]["instances"]["additionalProperties"]["properties"]
    assert instance["pinned"]["default"] is s.InstanceSettings(name=InstanceName("gpu0")).pinned
    assert documented_at("gateway", "auth")["open"] is GATEWAY.auth.open


def test_no_key_is_in_a_repr() -> None:
    link = s.GatewayLink(url="http://h", api_key="sk-1")
    key = s.ClientKey(name="ci", digest=b"sk-1")
    assert "sk-1" not in repr((link, key))


def test_a_model_whose_definition_only_moved_is_the_same_model() -> None:
    assert dataclasses.replace(MODEL, origin="f.yaml:9") == MODEL
    moved = s.LlamaServer(path=Path("/l"), origin="f.yaml:9")
    assert moved == s.LlamaServer(path=Path("/l"))
