"""`rolemeshctl aliases`: every alias, whether it is usable, and who answers it."""

import argparse
from collections.abc import Mapping
from typing import Any, Final

from rolemesh.ctl import output
from rolemesh.ctl.gateway_address import add_gateway_options, find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.outcomes import EXIT_OK
from rolemesh.ctl.output import Cell

DESCRIPTION: Final = "Show every alias: whether it is usable, and who answers it."
EXAMPLES: Final = (
    "rolemeshctl aliases",
    "rolemeshctl aliases --json | jq -r '.aliases[] | select(.usable | not).alias'",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the aliases."""
    reply = GatewayApi(find_gateway(args)).get("aliases", has="aliases")
    if args.json:
        output.put_json(reply)
        return EXIT_OK
    if not reply["aliases"]:
        output.note(
            "there is no alias: add a file to /etc/rolemesh/gateway.d, then `rolemeshctl reload`"
        )
        return EXIT_OK
    output.put_table(
        ("ALIAS", "USABLE", "PRIORITY", "RUNNING", "WAITING", "ANSWERED BY", "FALLBACK", "REASON"),
        map(_row, reply["aliases"]),
    )
    return EXIT_OK


def _row(alias: Mapping[str, Any]) -> tuple[object, ...]:
    usable = alias.get("usable")
    return (
        alias["alias"],
        Cell("yes", "green") if usable else Cell("no", "red"),
        alias.get("priority"),
        alias.get("running"),
        alias.get("queued"),
        _answered_by(alias),
        ",".join(alias.get("fallback") or []),
        None if usable else alias.get("reason"),
    )


def _answered_by(alias: Mapping[str, Any]) -> str:
    usable = [each for each in alias.get("candidates", []) if each.get("usable")]
    return ", ".join(
        f"{each['upstream']}:{each['model']}" if each.get("model") else str(each["upstream"])
        for each in usable
    )
