"""`rolemeshctl drain`: take a node out of routing."""

import argparse
import time
from typing import Final

from rolemesh.ctl import output
from rolemesh.ctl.gateway_address import add_gateway_options, find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.outcomes import EXIT_OK

DESCRIPTION: Final = (
    "Give a node no new requests; those that run there finish. It holds, also over restarts of the\n"
    "gateway, until `rolemeshctl undrain`."
)
EXAMPLES: Final = (
    "rolemeshctl drain gpubox",
    "rolemeshctl drain gpubox --wait && ssh gpubox sudo reboot",
)

POLL_S: Final = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("node", metavar="NODE", help="its node_id, as `nodes` shows it")
    parser.add_argument(
        "--wait", action="store_true", help="return only when no request runs there any more"
    )
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Drain the node."""
    api = GatewayApi(find_gateway(args))
    reply = api.post("nodes", args.node, "drain")
    if args.wait:
        _wait_until_idle(api, args.node)
    if args.json:
        output.put_json(reply)
    elif args.wait:
        output.put(f"{args.node} is drained: no request runs there")
    else:
        running = _running(api, args.node)
        output.put(f"{args.node} gets no new requests; {running} still run there")
    return EXIT_OK


def _wait_until_idle(api: GatewayApi, node: str) -> None:
    with output.Progress() as progress:
        while running := _running(api, node):
            progress.say(f"{node}: {running} requests still run")
            time.sleep(POLL_S)


def _running(api: GatewayApi, node: str) -> int:
    return sum(each.get("node") == node for each in api.get("requests", has="requests")["requests"])
