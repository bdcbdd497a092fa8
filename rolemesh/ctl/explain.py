"""`rolemeshctl explain`: who would answer an alias now, and why nobody else would."""

import argparse
from collections.abc import Mapping
from typing import Any, Final

from rolemesh.ctl import output
from rolemesh.ctl.gateway_address import add_gateway_options, find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.outcomes import EXIT_NOT_THERE, EXIT_OK
from rolemesh.ctl.output import Cell

DESCRIPTION: Final = (
    "Show who would answer a request for an alias now, and why nobody else would.\n"
    "The exit status is 4 when the alias does not exist or is not usable."
)
EXAMPLES: Final = (
    "rolemeshctl explain coder",
    "rolemeshctl explain coder --key ci       # as the holder of that key would be served",
    "rolemeshctl explain coder --json | jq .chosen",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("alias", metavar="ALIAS", help="what a client sends as `model`")
    parser.add_argument("--key", metavar="NAME", help="explain it for the key of that name")
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the explanation."""
    reply = GatewayApi(find_gateway(args)).get(
        "explain", args.alias, has="candidates", key=args.key
    )
    if args.json:
        output.put_json(reply)
    else:
        _put(reply)
    return EXIT_OK if reply.get("usable") else EXIT_NOT_THERE


def _put(reply: Mapping[str, Any]) -> None:
    alias = output.clean(str(reply["alias"]))
    reason = output.clean(str(reply.get("reason") or ""))
    if reply.get("usable"):
        verdict = output.coloured("usable", "green")
    else:
        verdict = output.coloured("not usable", "red")
    output.put(f"{alias}: {verdict}" + (f": {reason}" if reason else ""))
    chosen, queued = reply.get("chosen"), reply.get("queued") or 0
    if chosen:
        output.put(f"a request now goes to {output.clean(_place(chosen))}")
    elif reply.get("usable"):
        output.put("a request now waits")
    if queued:
        output.put(f"{queued} waiting already")
    if reply.get("fallback"):
        output.put(output.clean(f"fallback: {', '.join(map(str, reply['fallback']))}"))
    candidates = reply["candidates"]
    if candidates:
        output.put()
        output.put_table(
            ("", "UPSTREAM", "MODEL", "INSTANCE", "ALIAS", "WARMTH", "RUNNING", "SLOTS", "WHY"),
            (_row(each, alias) for each in candidates),
        )


def _place(each: Mapping[str, Any]) -> str:
    parts = (each.get("upstream"), each.get("instance"), each.get("model"))
    return ", ".join(str(part) for part in parts if part)


def _row(each: Mapping[str, Any], alias: str) -> tuple[object, ...]:
    breaker = each.get("breaker")
    why = str(each.get("why") or "")
    if breaker not in (None, "", "closed"):
        why += f" (breaker {breaker})"
    return (
        Cell("->", "green") if each.get("chosen") else " ",
        each.get("upstream"),
        each.get("model"),
        each.get("instance"),
        each["alias"] if each.get("alias") not in (None, alias) else None,
        each.get("warmth"),
        each.get("in_flight"),
        each.get("slots"),
        why,
    )
