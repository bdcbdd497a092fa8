"""`rolemeshctl model`: the models of this host, one drop-in each."""

import argparse
import importlib
from pathlib import Path
from typing import Any, Final

from rolemesh.ctl.agent_place import add_agent_options, add_wait_option
from rolemesh.ctl.gateway_address import add_json_option

DESCRIPTION: Final = (
    "Add, list and remove the models of this host. Each is a file of its own in the agent's\n"
    "configuration, checked with the rest of it before it is written; then the agent reloads."
)
EXAMPLES: Final = (
    "sudo rolemeshctl model add /srv/models/qwen-coder.gguf --role coder",
    "sudo rolemeshctl model add big.gguf --role planner --role critic --context 8192 --parallel 2",
    "sudo rolemeshctl model add big.gguf --id planner --role planner --pin gpu0",
    "sudo rolemeshctl model remove planner",
    "rolemeshctl model list",
)

_MOST: Final = 2**31 - 1
"""Counts of llama-server are 32 bits wide."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    verbs = parser.add_subparsers(dest="what", metavar="add | list | remove", required=True)
    add = _add(verbs, "add", "serve a GGUF file by a role, if it can be read and served")
    add.add_argument("file", metavar="FILE", type=Path, help="the GGUF file, or its first part")
    add.add_argument(
        "--role",
        dest="roles",
        metavar="ROLE",
        action="append",
        required=True,
        help="what it can be asked for by; may be repeated",
    )
    add.add_argument("--id", metavar="NAME", help="its model_id (default: the file's name)")
    add.add_argument(
        "--context",
        metavar="TOKENS",
        type=_count,
        help="tokens of each slot (default: what it was trained for, shared by the slots)",
    )
    add.add_argument(
        "--parallel", metavar="N", type=_count, help="slots: requests at once (default: 1)"
    )
    add.add_argument(
        "--pin", metavar="INSTANCE", help="keep it loaded there, such as on gpu0, for good"
    )
    add_wait_option(add, "the agent has to find it usable")
    _add(verbs, "list", "list the models, who wrote them down, and how they are")
    remove = _add(verbs, "remove", "take a model away that `add` brought; its file stays")
    remove.add_argument("model", metavar="ID", help="its model_id")


def _add(verbs: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary)
    add_agent_options(parser)
    add_json_option(parser)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        msg = f"expected a whole number from 1 to {_MOST}, found {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb's verb."""
    module: Any = importlib.import_module(f"rolemesh.ctl.model_{args.what}")
    code: int = module.run(args)
    return code
