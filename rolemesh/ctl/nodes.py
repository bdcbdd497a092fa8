"""`rolemeshctl nodes`: every node with its models, instances and GPUs."""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any, Final

from rolemesh.ctl import output
from rolemesh.ctl.gateway_address import add_gateway_options, find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.outcomes import EXIT_OK
from rolemesh.ctl.output import Cell
from rolemesh.ctl.status import put_nodes

DESCRIPTION: Final = "Show every node: its models, instances and GPUs."
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
        ("NODE", "INSTANCE", "STATE", "MODEL", "REASON"),
        (_instance_row(node, each) for node in nodes for each in node.get("instances", [])),
    )
    _put_part(
        ("NODE", "GPU", "NAME", "MEMORY", "USED", "BUSY"),
        (_gpu_row(node, gpu) for node in nodes for gpu in node.get("gpus", [])),
    )
    for node in nodes:
        for problem in node.get("host", {}).get("problems", []):
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
    return (
        node["node_id"],
        each.get("instance"),
        each.get("state"),
        each.get("model_id"),
        each.get("reason"),
    )


def _gpu_row(node: Mapping[str, Any], gpu: Mapping[str, Any]) -> tuple[object, ...]:
    total, used = gpu.get("memory_total_mib"), gpu.get("memory_used_mib")
    return (
        node["node_id"],
        gpu.get("gpu"),
        gpu.get("name"),
        None if total is None else f"{total} MiB",
        None if used is None else f"{used} MiB",
        None if gpu.get("utilisation") is None else f"{gpu['utilisation']} %",
    )
