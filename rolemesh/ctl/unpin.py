"""`rolemeshctl unpin`: take a pin back."""

import argparse
from typing import Final

from rolemesh.ctl import output
from rolemesh.ctl.agents import add_node_option, agent_with_instance
from rolemesh.ctl.gateway_address import add_gateway_options
from rolemesh.ctl.outcomes import EXIT_OK

DESCRIPTION: Final = (
    "Let other models take the place of what an instance runs again, also where the configuration\n"
    "pins it: until `rolemeshctl pin`, or until the configuration says otherwise than now."
)
EXAMPLES: Final = ("rolemeshctl unpin gpu0",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("instance", metavar="INSTANCE", help="such as gpu0; `nodes` lists them")
    add_node_option(parser)
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Unpin the instance."""
    name = args.instance
    agent = agent_with_instance(args, name)
    reply = agent.post("instances", name, "unpin")
    if args.json:
        output.put_json(reply)
    else:
        output.put(f"{name} of {agent.node_id} is not pinned any more")
    return EXIT_OK
