"""`rolemeshctl gateway`: what is done on a gateway's own host for nodes that shall join it."""

import argparse
from pathlib import Path
from typing import Final

from rolemesh.ctl.gateway_address import add_json_option

DESCRIPTION: Final = (
    "Get a gateway ready for nodes on other hosts. To be run on the gateway's host."
)
EXAMPLES: Final = (
    "sudo rolemeshctl gateway invite                 # prints what to type on the other host",
    "sudo rolemeshctl gateway invite --name gpubox --url https://llm.example",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    verbs = parser.add_subparsers(dest="what", metavar="invite", required=True)
    summary = "make a node's key, and print the line with which a host joins: once"
    invite = verbs.add_parser("invite", help=summary, description=summary)
    invite.add_argument(
        "--name", metavar="NODE", help="what the node shall be called (default: its host's name)"
    )
    invite.add_argument(
        "--url",
        dest="reached_at",
        metavar="URL",
        help="where other hosts reach this gateway (default: by its configuration)",
    )
    invite.add_argument(
        "--directory",
        metavar="DIR",
        type=Path,
        help="in DIR, for a gateway with --config-dir DIR; the one at $ROLEMESH_URL reloads",
    )
    add_json_option(invite)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb's verb."""
    # Not at the top: `--help` needs nothing of it.
    from rolemesh.ctl import gateway_invite  # noqa: PLC0415

    return gateway_invite.run(args)
