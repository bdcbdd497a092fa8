"""`rolemeshctl pin`: keep an instance from being given to other models."""

import argparse
from typing import Final

from rolemesh.ctl import output
from rolemesh.ctl.agents import add_node_option, agent_with_instance
from rolemesh.ctl.gateway_address import add_gateway_options
from rolemesh.ctl.outcomes import EXIT_OK

DESCRIPTION: Final = (
    "Keep what an instance runs: no other model takes its place until `rolemeshctl unpin`, also\n"
    "over restarts, until the configuration says otherwise than now."
)
EXAMPLES: Final = (
    "rolemeshctl pin gpu0",
    "rolemeshctl pin gpu0 --node gpubox",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("instance", metavar="INSTANCE", help="such as gpu0; `nodes` lists them")
    add_node_option(parser)
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Pin the instance."""
    name = args.instance
    agent = agent_with_instance(args, name)
    reply = agent.post("instances", name, "pin")
    if args.json:
        output.put_json(reply)
    else:
        output.put(f"{name} of {agent.node_id} is pinned")
    return EXIT_OK
