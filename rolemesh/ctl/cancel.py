"""`rolemeshctl cancel`: end requests; their clients are told that an operator did."""

import argparse
from typing import Final

from rolemesh.ctl import output
from rolemesh.ctl.gateway_address import add_gateway_options, find_gateway
from rolemesh.ctl.gateway_api import GatewayApi
from rolemesh.ctl.outcomes import EXIT_NOT_THERE, EXIT_OK, NotThere

DESCRIPTION: Final = (
    "End requests, in whichever phase they are. Their clients get the error `cancelled`, and the\n"
    "slot is free at once. The exit status is 4 when one of them did not run any more."
)
EXAMPLES: Final = (
    "rolemeshctl cancel req-7f3a5b",
    "rolemeshctl ps --json | jq -r '.requests[] | select(.client == \"ci\").request_id' \\",
    "    | xargs -r rolemeshctl cancel",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("requests", metavar="REQUEST_ID", nargs="+", help="as `ps` shows it")
    add_gateway_options(parser)


def run(args: argparse.Namespace) -> int:
    """Cancel each request; those that are not there do not keep the others."""
    api = GatewayApi(find_gateway(args))
    cancelled: list[str] = []
    missing: list[str] = []
    for request_id in args.requests:
        try:
            api.delete("requests", request_id)
        except NotThere:
            missing.append(request_id)
            if not args.json:
                output.complain(f"no request {request_id} runs or waits")
        else:
            cancelled.append(request_id)
            if not args.json:
                output.put(f"cancelled {request_id}")
    if args.json:
        output.put_json({"cancelled": cancelled, "not_found": missing})
    return EXIT_NOT_THERE if missing else EXIT_OK
