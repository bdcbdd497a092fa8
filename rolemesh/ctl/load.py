"""`rolemeshctl load`: have a node load a model, and see how far it is."""

import argparse
from typing import Any, Final

from rolemesh.ctl import loading
from rolemesh.ctl.agents import add_node_option, agent_with_model
from rolemesh.ctl.gateway_address import add_gateway_options

DESCRIPTION: Final = (
    "Have a node load a model, as a request for it would, and wait until it is ready. Where it goes\n"
    "is the node's choice (`rolemeshctl node plan MODEL` explains it) unless --on says so. Ctrl-C\n"
    "ends the waiting, not the load."
)
EXAMPLES: Final = (
    "rolemeshctl load coder-gguf",
    "rolemeshctl load coder-gguf --node gpubox --on gpu1",
    "rolemeshctl load coder-gguf --no-wait           # `rolemeshctl models` shows how far it is",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("model", metavar="MODEL", help="its model_id, as `models` shows it")
    parser.add_argument("--on", metavar="INSTANCE", help="where; what is there has to go")
    parser.add_argument("--no-wait", action="store_true", help="return as soon as it has begun")
    add_node_option(parser)
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Load the model."""
    model_id = args.model
    agent = agent_with_model(args, model_id)
    body: dict[str, Any] = {} if args.on is None else {"instance": args.on}
    carry_out = loading.begin if args.no_wait else loading.load
    path = ("models", model_id, "load")
    return carry_out(agent, path, body, model_id=model_id, as_json=args.json)
