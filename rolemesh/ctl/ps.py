"""`rolemeshctl ps`: the requests that run or wait, one by one or counted by key."""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rolemesh.ctl import output
from rolemesh.ctl.gateway_address import add_gateway_options, find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.outcomes import EXIT_OK

DESCRIPTION: Final = (
    "Show the requests that run or wait, the oldest first. PHASE is how far one has come:\n"
    "accept, queue, upstream (sent, no byte of the answer yet), stream."
)
EXAMPLES: Final = (
    "rolemeshctl ps",
    "rolemeshctl ps --by key     # who uses what: the requests of each key, counted",
    "rolemeshctl ps --json | jq -r '.requests[] | select(.age_s > 600).request_id'",
)

_WAITING: Final = frozenset({"accept", "queue"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("--by", choices=["key"], help="count them by the key they came with")
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the requests."""
    reply = GatewayApi(find_gateway(args)).get("requests", has="requests", by=args.by)
    if args.json:
        output.put_json(reply)
        return EXIT_OK
    requests = sorted(reply["requests"], key=lambda each: -float(each.get("age_s") or 0))
    if not requests:
        output.note("no request runs or waits")
        return EXIT_OK
    if args.by == "key":
        output.put_table(("KEY", "RUNNING", "WAITING", "OLDEST", "ALIASES"), _by_key(requests))
        return EXIT_OK
    output.put_table(
        ("REQUEST", "KEY", "ALIAS", "PRIORITY", "PHASE", "AGE", "WAITED", "TRIES", "WHERE"),
        map(_row, requests),
    )
    return EXIT_OK


def _row(each: Mapping[str, Any]) -> tuple[object, ...]:
    phase, position = str(each.get("phase")), each.get("queue_position")
    return (
        each["request_id"],
        each.get("client"),
        each.get("alias"),
        each.get("priority"),
        phase if position is None else f"{phase} {position}",
        output.duration(each.get("age_s")),
        output.duration(each.get("queued_s")),
        each.get("attempts"),
        ", ".join(str(each[name]) for name in ("node", "instance", "model") if each.get(name)),
    )


def _by_key(requests: Sequence[Mapping[str, Any]]) -> Iterator[tuple[object, ...]]:
    grouped: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for each in requests:
        grouped[str(each.get("client") or "-")].append(each)
    for client, theirs in sorted(grouped.items(), key=lambda item: (-len(item[1]), item[0])):
        waiting = sum(each.get("phase") in _WAITING for each in theirs)
        yield (
            client,
            len(theirs) - waiting,
            waiting,
            output.duration(max(float(each.get("age_s") or 0) for each in theirs)),
            ", ".join(sorted({str(each.get("alias")) for each in theirs})),
        )
