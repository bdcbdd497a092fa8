"""`rolemeshctl undrain`: take a drained node or instance back into routing."""

import argparse
from typing import Final

from rolemesh.ctl import output
from rolemesh.ctl.agents import agent_with_instance
from rolemesh.ctl.drain import node_and_instance
from rolemesh.ctl.gateway_address import add_gateway_options, find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.outcomes import EXIT_OK

DESCRIPTION: Final = "Give a node or an instance requests again that `rolemeshctl drain` took out."
EXAMPLES: Final = (
    "rolemeshctl undrain gpubox",
    "rolemeshctl undrain gpubox/gpu1",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("what", metavar="NODE[/INSTANCE]", help="as `nodes` shows them")
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Undrain the node or the instance."""
    node, instance = node_and_instance(args.what)
    if instance:
        args.node = node
        reply = agent_with_instance(args, instance).post("instances", instance, "undrain")
    else:
        reply = GatewayApi(find_gateway(args)).post("nodes", node, "undrain")
    if args.json:
        output.put_json(reply)
    else:
        output.put(f"{args.what} gets requests again")
    return EXIT_OK
