"""`rolemeshctl nodes`: every node with its models, instances, GPUs and host."""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any, Final

from rolemesh.ctl import output
from rolemesh.ctl.gateway_address import add_gateway_options, find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.node_gpus import HEAD as GPU_HEAD
from rolemesh.ctl.node_gpus import gpu_problems, gpu_row
from rolemesh.ctl.outcomes import EXIT_OK
from rolemesh.ctl.output import Cell
from rolemesh.ctl.status import put_nodes

DESCRIPTION: Final = "Show every node: its models, instances, GPUs and host."
HASH_SHOWN: Final = 8
"""How much of the hash of a llama-server's arguments is shown: enough to tell two apart."""

EXAMPLES: Final = (
    "rolemeshctl nodes",
    "rolemeshctl nodes --json | jq -r '.nodes[] | select(.state != \"live\").node_id'",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the nodes."""
    nodes = GatewayApi(find_gateway(args)).get("status", has="nodes")["nodes"]
    if args.json:
        output.put_json({"nodes": nodes})
        return EXIT_OK
    if not nodes:
        output.note("no node has registered")
        return EXIT_OK
    put_nodes(nodes)
    _put_part(
        ("NODE", "MODEL", "ROLES", "STATE", "SLOTS", "FREE", "RUNNING", "REASON"),
        (_model_row(node, model) for node in nodes for model in node.get("models", [])),
    )
    _put_part(
        ("NODE", "INSTANCE", "STATE", "MODEL", "PINNED", "ARGS", "BUILD", "VERSION", "REASON"),
        (_instance_row(node, each) for node in nodes for each in node.get("instances", [])),
    )
    _put_part(
        ("NODE", *GPU_HEAD),
        ((node["node_id"], *gpu_row(node, gpu)) for node in nodes for gpu in node.get("gpus", [])),
    )
    _put_part(
        ("NODE", "HOST", "CPUS", "MEMORY", "AVAILABLE", "DRIVER"),
        (_host_row(node, node["host"]) for node in nodes if node.get("host", {}).get("cpus")),
    )
    for node in nodes:
        missing = node.get("host", {}).get("missing", [])
        for problem in dict.fromkeys((*gpu_problems(node), *map(str, missing))):
            output.note(f"{node['node_id']}: {problem}")
    return EXIT_OK


def _put_part(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    listed = list(rows)
    if listed:
        output.put()
        output.put_table(head, listed)


def _model_row(node: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[object, ...]:
    state = str(model.get("state"))
    return (
        node["node_id"],
        model.get("model_id"),
        ",".join(model.get("roles", [])),
        Cell(state, "green" if model.get("usable") else "red"),
        model.get("slots"),
        model.get("slots_free"),
        model.get("in_flight"),
        model.get("reason"),
    )


def _instance_row(node: Mapping[str, Any], each: Mapping[str, Any]) -> tuple[object, ...]:
    state = str(each.get("state"))
    return (
        node["node_id"],
        each.get("instance"),
        f"{state}, drained" if each.get("drained") else state,
        each.get("model_id"),
        "yes" if each.get("pinned") else None,
        str(each.get("args_hash") or "")[:HASH_SHOWN],
        each.get("build"),
        each.get("version"),
        each.get("reason") or _last_failure(each),
    )


def _last_failure(instance: Mapping[str, Any]) -> str:
    """Say why an instance failed last that serves again."""
    failure = instance.get("last_failure")
    return f"{failure} ({instance.get('last_failure_at')})" if failure else ""


def _host_row(node: Mapping[str, Any], host: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        node["node_id"],
        host.get("hostname"),
        host.get("cpus"),
        output.memory(host.get("memory_total_mib")),
        output.memory(host.get("memory_available_mib")),
        host.get("nvidia_driver"),
    )
