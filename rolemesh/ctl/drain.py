"""`rolemeshctl drain`: take a node out of routing, or one of its instances."""

import argparse
import time
from collections.abc import Callable
from typing import Any, Final

from rolemesh.ctl import output
from rolemesh.ctl.agents import agent_with_instance
from rolemesh.ctl.gateway_address import add_gateway_options, find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.outcomes import EXIT_OK, BadUsage

DESCRIPTION: Final = (
    "Give a node, or one instance of it, no new requests; those that run there finish. It holds, also\n"
    "over restarts of the daemons, until `rolemeshctl undrain`."
)
EXAMPLES: Final = (
    "rolemeshctl drain gpubox",
    "rolemeshctl drain gpubox --wait && ssh gpubox sudo reboot",
    "rolemeshctl drain gpubox/gpu1 --wait            # one instance; the others go on",
)

POLL_S: Final = 0.5

Count = Callable[[], int]
"""Tells how many requests still run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("what", metavar="NODE[/INSTANCE]", help="as `nodes` shows them")
    parser.add_argument(
        "--wait", action="store_true", help="return only when no request runs there any more"
    )
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Drain the node or the instance."""
    node, instance = node_and_instance(args.what)
    reply, count = _drain_instance(args, node, instance) if instance else _drain_node(args, node)
    if args.wait:
        _wait_until_idle(args.what, count)
    if args.json:
        output.put_json(reply)
    elif args.wait:
        output.put(f"{args.what} is drained: no request runs there")
    else:
        output.put(f"{args.what} gets no new requests; {count()} still run there")
    return EXIT_OK


def node_and_instance(what: str) -> tuple[str, str]:
    """Return the parts of NODE[/INSTANCE], "" for an instance that is left out; raises BadUsage."""
    node, slash, instance = what.partition("/")
    if not node or (slash and not instance):
        msg = f"expected NODE or NODE/INSTANCE, found {what!r}"
        raise BadUsage(msg)
    return node, instance


def _drain_node(args: argparse.Namespace, node: str) -> tuple[dict[str, Any], Count]:
    api = GatewayApi(find_gateway(args))

    def count() -> int:
        requests = api.get("requests", has="requests")["requests"]
        return sum(each.get("node") == node for each in requests)

    return api.post("nodes", node, "drain"), count


def _drain_instance(
    args: argparse.Namespace, node: str, instance: str
) -> tuple[dict[str, Any], Count]:
    args.node = node
    agent = agent_with_instance(args, instance)

    def count() -> int:
        instances = agent.get(has="instances")["instances"]
        return sum(
            each.get("requests", 0) for each in instances if each.get("instance") == instance
        )

    return agent.post("instances", instance, "drain"), count


def _wait_until_idle(what: str, count: Count) -> None:
    with output.Progress() as progress:
        while running := count():
            progress.say(f"{what}: {running} requests still run")
            time.sleep(POLL_S)
