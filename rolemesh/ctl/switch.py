"""`rolemeshctl switch`: have an instance run another model."""

import argparse
from typing import Final

from rolemesh.ctl import loading
from rolemesh.ctl.agents import add_node_option, agent_with_instance
from rolemesh.ctl.gateway_address import add_gateway_options

DESCRIPTION: Final = (
    "Have an instance run another model: what runs there finishes its requests, then the other is\n"
    "loaded. Ctrl-C ends the waiting, not the load."
)
EXAMPLES: Final = (
    "rolemeshctl switch gpu0 coder-gguf",
    "rolemeshctl switch gpu0 coder-gguf --node gpubox --no-wait",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("instance", metavar="INSTANCE", help="such as gpu0; `nodes` lists them")
    parser.add_argument("model", metavar="MODEL", help="its model_id, as `models` shows it")
    parser.add_argument("--no-wait", action="store_true", help="return as soon as it has begun")
    add_node_option(parser)
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Switch the instance."""
    agent = agent_with_instance(args, args.instance)
    carry_out = loading.begin if args.no_wait else loading.load
    path, body = ("instances", args.instance, "switch"), {"model_id": args.model}
    return carry_out(agent, path, body, model_id=args.model, as_json=args.json)
