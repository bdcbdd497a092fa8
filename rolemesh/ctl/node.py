"""`rolemeshctl node`: what one node would do and has, and how this host becomes one."""

import argparse
from pathlib import Path
from typing import Any, Final

from rolemesh.ctl import node_gpus, node_plan
from rolemesh.ctl.agent_place import add_agent_options, add_wait_option
from rolemesh.ctl.agents import add_node_option
from rolemesh.ctl.gateway_address import add_gateway_options, add_json_option

DESCRIPTION: Final = (
    "Ask one node what it would do with a model and which GPUs it has. Without --node it is this\n"
    "host's agent. Or have this host's agent join a gateway."
)
EXAMPLES: Final = (
    "rolemeshctl node plan coder-gguf                # where it would run, or why nowhere",
    "rolemeshctl node plan --node gpubox             # the same of every model, in short",
    "rolemeshctl node gpus                           # memory, and whose processes have it",
    "sudo rolemeshctl node join http://10.0.0.1:8000 --token rm-…    # as `gateway invite` said",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    verbs = parser.add_subparsers(dest="what", metavar="plan | gpus | join", required=True)
    summary = "say where a model would run now, what has to go for it, and why not elsewhere"
    plan = verbs.add_parser("plan", help=summary, description=summary)
    plan.add_argument("model", metavar="MODEL", nargs="?", help="its model_id (default: every one)")
    summary = "list the GPUs: memory, temperature, and whose processes are there"
    gpus = verbs.add_parser("gpus", help=summary, description=summary)
    gpus.add_argument(
        "--renumber",
        action="store_true",
        help="number the cards that are there anew from 0, and forget those that are gone",
    )
    for verb in (plan, gpus):
        add_node_option(verb)
        add_gateway_options(verb)
    _add_join(verbs)


def _add_join(verbs: Any) -> None:
    summary = "have this host's models served by a gateway; returns when that lists the node"
    join = verbs.add_parser("join", help=summary, description=summary)
    join.add_argument("gateway", metavar="URL", help="the gateway, as `gateway invite` printed it")
    token = join.add_mutually_exclusive_group(required=True)
    token.add_argument("--token", metavar="TOKEN", help="a node's key of that gateway")
    token.add_argument("--token-file", metavar="FILE", type=Path, help="a file that holds it")
    join.add_argument(
        "--name", metavar="NODE_ID", help="what the node is called (default: as the host)"
    )
    join.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help="where the agent listens (default: on the address used toward the gateway)",
    )
    join.add_argument(
        "--advertise-url",
        metavar="URL",
        help="where the gateway reaches the agent (default: there)",
    )
    join.add_argument(
        "--ca-file", metavar="FILE", type=Path, help="who signed an https gateway's certificate"
    )
    join.add_argument("--force", action="store_true", help="replace what stands in the way")
    add_wait_option(join, "the gateway has to list the node")
    add_agent_options(join)
    add_json_option(join)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb's verb."""
    if args.what == "join":
        # Not at the top: the others need nothing of the configuration's machinery.
        from rolemesh.ctl import node_join  # noqa: PLC0415

        return node_join.run(args)
    return node_plan.run(args) if args.what == "plan" else node_gpus.run(args)
