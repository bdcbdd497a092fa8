"""`rolemeshctl complete KIND`: words for the shell, from daemons that answer quickly; or none.

Never complains: who presses a key wants no message in the middle of a line.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from rolemesh.ctl import output
from rolemesh.ctl.agents import Agent, add_node_option, find_agents
from rolemesh.ctl.gateway_address import add_gateway_options, find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.outcomes import EXIT_OK, CtlError

DESCRIPTION: Final = "Print words for the completion of a command line."
EXAMPLES: Final = ("rolemeshctl complete aliases",)

PATIENCE_S: Final = 0.5

_Words = Iterable[Any]
_OF_GATEWAY: Final[Mapping[str, Callable[[GatewayApi], _Words]]] = {
    "aliases": lambda api: (each["alias"] for each in api.get("aliases", has="aliases")["aliases"]),
    "nodes": lambda api: (each["node_id"] for each in api.get("status", has="nodes")["nodes"]),
    "requests": lambda api: (
        each["request_id"] for each in api.get("requests", has="requests")["requests"]
    ),
    "keys": lambda api: (each["name"] for each in api.get("keys", has="keys")["keys"]),
}
_OF_NODE: Final[Mapping[str, Callable[[Agent], _Words]]] = {
    "models": lambda agent: (each["model_id"] for each in agent.node["models"]),
    "instances": lambda agent: (each["instance"] for each in agent.node["instances"]),
    "places": lambda agent: (
        agent.node_id,
        *(f"{agent.node_id}/{each['instance']}" for each in agent.node["instances"]),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("kind", choices=sorted([*_OF_GATEWAY, *_OF_NODE]))
    add_node_option(parser)
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the words, one a line."""
    try:
        words = [str(word) for word in dict.fromkeys(_words(args))]
    except (CtlError, LookupError, TypeError):
        return EXIT_OK
    for word in words:
        output.put(output.clean(word))
    return EXIT_OK


def _words(args: argparse.Namespace) -> _Words:
    if args.kind in _OF_GATEWAY:
        return _OF_GATEWAY[args.kind](GatewayApi(find_gateway(args), timeout_s=PATIENCE_S))
    agents = find_agents(args, timeout_s=PATIENCE_S)
    return [word for agent in agents for word in _OF_NODE[args.kind](agent)]
