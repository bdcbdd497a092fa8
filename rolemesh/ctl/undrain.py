"""`rolemeshctl undrain`: take a drained node back into routing."""

import argparse
from typing import Final

from rolemesh.ctl import output
from rolemesh.ctl.gateway_address import add_gateway_options, find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.outcomes import EXIT_OK

DESCRIPTION: Final = "Give a node requests again that `rolemeshctl drain` took out of routing."
EXAMPLES: Final = ("rolemeshctl undrain gpubox",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("node", metavar="NODE", help="its node_id, as `nodes` shows it")
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Undrain the node."""
    reply = GatewayApi(find_gateway(args)).post("nodes", args.node, "undrain")
    if args.json:
        output.put_json(reply)
    else:
        output.put(f"{args.node} gets requests again")
    return EXIT_OK
