"""`rolemeshctl status --versions`: which version of each part runs, and which is installed."""

import argparse
from collections.abc import Mapping
from typing import Any, Final

from rolemesh.ctl import output
from rolemesh.ctl.agents import local_agents
from rolemesh.ctl.gateway_address import find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.outcomes import EXIT_OK, NotReachable
from rolemesh.ctl.output import Cell
from rolemesh.ctl.versions import Part, daemons_by_version, parts_of

_AGES: Final[Mapping[bool | None, Cell]] = {
    True: Cell("old", "yellow"),
    False: Cell("current", "green"),
    None: Cell("unknown", "dim"),
}


def run_versions(args: argparse.Namespace) -> int:
    """Print the parts."""
    status, silence = _told_of_versions(args)
    parts = list(parts_of(status))
    if args.json:
        output.put_json({"parts": [part.to_json() for part in parts]})
        return EXIT_OK
    output.put_table(
        ("NODE", "PART", "RUNS", "INSTALLED", "IS", "RESTART"), map(_version_row, parts)
    )
    commands = dict.fromkeys((part.node_id, part.how) for part in parts if part.how)
    if commands:
        output.put()
    for node_id, how in commands:
        where = "" if how.startswith("rolemeshctl") else f"  # on {_host_of(node_id)}"
        output.put(output.clean(f"{how}{where}"))
    mixed = daemons_by_version(parts)
    if len(mixed) > 1:
        told = "; ".join(f"{version} on {', '.join(where)}" for version, where in mixed.items())
        output.note(f"this mesh is of several versions, which work together: {told}")
    for text in dict.fromkeys(_unknown_text(part) for part in parts if part.why_unknown):
        output.note(text)
    if silence:
        output.note(f"only this host's: {silence}")
    return EXIT_OK


def _told_of_versions(args: argparse.Namespace) -> tuple[Mapping[str, Any], str]:
    """Return a gateway's status, or one of this host's agents alone and why."""
    try:
        return GatewayApi(find_gateway(args)).get("status", has="nodes"), ""
    except NotReachable as error:
        own = [] if args.url or args.key_file else local_agents()
        if not own:
            raise
        return {"nodes": [agent.node for agent in own]}, str(error)


def _version_row(part: Part) -> tuple[object, ...]:
    name = part.part
    if part.instance:
        joint = "@" if part.part == "rolemesh-llama" else " of "
        name = f"{part.part}{joint}{part.instance}"
    return (part.node_id, name, part.runs, part.installed, _AGES[part.is_old], part.when)


def _host_of(node_id: str | None) -> str:
    return node_id or "the gateway's host"


def _unknown_text(part: Part) -> str:
    place = "/".join(filter(None, (part.node_id, part.instance))) or "the gateway"
    return f"{place}: {part.part} unknown: {part.why_unknown}"
