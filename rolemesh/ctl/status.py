"""`rolemeshctl status`: the gateway, its nodes and what they serve, on one screen."""

import argparse
from collections.abc import Mapping
from typing import Any, Final

from rolemesh.ctl import output
from rolemesh.ctl.gateway_address import add_gateway_options, find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.outcomes import EXIT_OK
from rolemesh.ctl.output import Cell

DESCRIPTION: Final = (
    "Show the gateway, its nodes and what they serve. With --versions: which version of each part runs\n"
    "and which is installed, and how what is old is restarted; where no gateway is found, of this host."
)
EXAMPLES: Final = (
    "rolemeshctl status",
    "rolemeshctl status --json | jq .ready",
    "rolemeshctl status --versions",
    "rolemeshctl status --versions --json | jq -r '.parts[] | select(.is_old).how'",
    "ROLEMESH_KEY=... rolemeshctl status --url https://gateway.example:8000",
)

_NODE_COLOURS: Final[Mapping[str, output.Colour]] = {
    "live": "green",
    "late": "yellow",
    "drained": "yellow",
    "lost": "red",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument(
        "--versions", action="store_true", help="show what runs and what is installed instead"
    )
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the status."""
    if args.versions:
        # Not at the top: `status` is to be quick, and needs nothing of it.
        from rolemesh.ctl.status_versions import run_versions  # noqa: PLC0415

        return run_versions(args)
    status = GatewayApi(find_gateway(args)).get("status", has="nodes")
    if args.json:
        output.put_json(status)
        return EXIT_OK
    _put_gateway(status)
    nodes = status["nodes"]
    if nodes:
        output.put()
        put_nodes(nodes)
    for problem in status.get("problems", []):
        output.put(output.coloured(f"problem: {output.clean(str(problem))}", "red"))
    return EXIT_OK


def _put_gateway(status: Mapping[str, Any]) -> None:
    aliases, requests = status.get("aliases", {}), status.get("requests", {})
    if status.get("ready"):
        ready = (
            output.coloured("yes", "green") + f" ({output.clean(str(status.get('default_model')))})"
        )
    else:
        ready = output.coloured("no", "yellow") + f": {output.clean(str(status.get('reason')))}"
    output.put(
        f"RoleMesh gateway {status.get('version')}, pid {status.get('pid')}, "
        f"up {output.duration(status.get('uptime_s'))}, "
        f"configuration {status.get('config_generation')}"
    )
    output.put(output.clean(f"  listening  {', '.join(status.get('listening', []))}"))
    output.put(f"  ready      {ready}")
    output.put(f"  aliases    {aliases.get('usable')} of {aliases.get('total')} usable")
    output.put(f"  requests   {requests.get('running')} running, {requests.get('queued')} waiting")


def put_nodes(nodes: list[Mapping[str, Any]]) -> None:
    """Write a line for each node."""
    output.put_table(
        ("NODE", "STATE", "HEARD", "MODELS", "RUNNING", "ADDRESS", "VERSION", "REASON"),
        (
            (
                node["node_id"],
                node_state(node),
                _heard(node),
                _usable_models(node),
                sum(model.get("in_flight") or 0 for model in node.get("models", [])),
                node.get("base_url"),
                node.get("version"),
                node.get("reason"),
            )
            for node in nodes
        ),
    )


def node_state(node: Mapping[str, Any]) -> Cell:
    """Return a node's state in its colour."""
    state = "drained" if node.get("drained") else str(node.get("state"))
    return Cell(state, _NODE_COLOURS.get(state, "yellow"))


def _heard(node: Mapping[str, Any]) -> str:
    heard = node.get("heard_s_ago")
    return "never" if heard is None else f"{output.duration(heard)} ago"


def _usable_models(node: Mapping[str, Any]) -> str:
    models = node.get("models", [])
    return f"{sum(bool(model.get('usable')) for model in models)}/{len(models)}"
