"""`rolemeshctl complete KIND`: words for the shell, from a gateway that answers quickly; or none.

Never complains: who presses a key wants no message in the middle of a line.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from rolemesh.ctl import output
from rolemesh.ctl.gateway_address import add_gateway_options, find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.outcomes import EXIT_OK, CtlError

DESCRIPTION: Final = "Print words for the completion of a command line."
EXAMPLES: Final = ("rolemeshctl complete aliases",)

PATIENCE_S: Final = 0.5

_Words = Iterable[Any]
_KINDS: Final[Mapping[str, Callable[[GatewayApi], _Words]]] = {
    "aliases": lambda api: (each["alias"] for each in api.get("aliases", has="aliases")["aliases"]),
    "nodes": lambda api: (each["node_id"] for each in api.get("status", has="nodes")["nodes"]),
    "requests": lambda api: (
        each["request_id"] for each in api.get("requests", has="requests")["requests"]
    ),
    "keys": lambda api: (each["name"] for each in api.get("keys", has="keys")["keys"]),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("kind", choices=sorted(_KINDS))
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the words, one a line."""
    try:
        words = [str(word) for word in _KINDS[args.kind](_api(args))]
    except (CtlError, LookupError, TypeError):
        return EXIT_OK
    for word in words:
        output.put(output.clean(word))
    return EXIT_OK


def _api(args: argparse.Namespace) -> GatewayApi:
    return GatewayApi(find_gateway(args), timeout_s=PATIENCE_S)
