"""`rolemeshctl config`: check, print and explain the configuration files of this host.

Asks no daemon: it reads the files that a daemon would read, with the rights of the caller.
"""

import argparse
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from rolemesh.config import cli
from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import load_gateway, load_node
from rolemesh.config.node_files import node_file_warnings
from rolemesh.config.tree import Program
from rolemesh.ctl import config_cat, config_delta, config_show, output
from rolemesh.ctl.gateway_address import add_json_option
from rolemesh.ctl.outcomes import EXIT_CONFIG, EXIT_OK
from rolemesh.errors import ConfigError, Problem

DESCRIPTION: Final = (
    "Check, print and explain the configuration files of this host, running daemons or not."
)
EXAMPLES: Final = (
    "rolemeshctl config check                        # everything that is wrong, FILE:LINE",
    "rolemeshctl config cat --program node           # the files in the order they are read",
    "rolemeshctl config delta                        # what /etc and /run change of the packages'",
    "rolemeshctl config show listen.port             # the value, and who set it",
    "rolemeshctl config show 'models.\"qwen2.5\"'      # a name with a dot in it",
)

UNITS: Final[Mapping[Program, str]] = {
    "gateway": "rolemesh-gateway.service",
    "node": "rolemesh-node-agent.service",
}
CREDENTIALS: Final = Path("/run/credentials")
"""Where systemd keeps what LoadCredential= gives a unit."""

_NAMED_AGENT: Final = re.compile(r"/etc/rolemesh/node-([^/]+)\.d")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    verbs = parser.add_subparsers(dest="what", metavar="check | cat | delta | show", required=True)
    _add(verbs, "check", "say everything that is wrong, as the daemons do at their start")
    _add(verbs, "cat", "print each file that is read, in that order; keys are hidden")
    _add(verbs, "delta", "print what files elsewhere add to, replace or switch off of /usr/lib's")
    show = _add(verbs, "show", "print the merged value of KEY and where each part of it was set")
    show.add_argument(
        "key", metavar="KEY", nargs="?", default="", help="such as listen.port; default: everything"
    )


def _add(verbs: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary)
    parser.add_argument(
        "--program",
        choices=["gateway", "node"],
        default="gateway",
        help="whose configuration (default: gateway)",
    )
    cli.add_source_options(parser)
    add_json_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Carry out the verb's verb."""
    source = cli.source_from(args, program=args.program)
    if args.what == "check":
        return _check(source, as_json=args.json)
    if args.what == "show":
        return config_show.run(source, args.key, as_json=args.json)
    others: dict[str, Callable[..., int]] = {"cat": config_cat.run, "delta": config_delta.run}
    return others[args.what](source, as_json=args.json)


def daemon_environment(
    source: ConfigSource, environ: Mapping[str, str] = os.environ, credentials: Path = CREDENTIALS
) -> Mapping[str, str]:
    """Return the environment in which the daemon's configuration is to be judged.

    The credentials of the running unit are looked for where systemd keeps them.
    """
    own = credentials / _unit(source)
    if "CREDENTIALS_DIRECTORY" in environ or not os.access(own, os.X_OK):
        return environ
    return {**environ, "CREDENTIALS_DIRECTORY": str(own)}


def _unit(source: ConfigSource) -> str:
    """Return the unit that reads these files."""
    named = source.config_dir and _NAMED_AGENT.fullmatch(str(source.config_dir))
    return f"rolemesh-node-agent@{named[1]}.service" if named else UNITS[source.program]


def _check(source: ConfigSource, *, as_json: bool) -> int:
    environ = daemon_environment(source)
    if not as_json:
        return cli.check(source, environ)
    try:
        warnings = _warnings(source, environ)
    except ConfigError as error:
        output.put_json(_verdict(error.problems, error.warnings))
        return EXIT_CONFIG
    output.put_json(_verdict((), warnings))
    return EXIT_OK


def _warnings(source: ConfigSource, environ: Mapping[str, str]) -> tuple[Problem, ...]:
    if source.program == "gateway":
        return load_gateway(source, environ).warnings
    node = load_node(source, environ)
    return (*node.warnings, *node_file_warnings(node.settings))


def _verdict(problems: Iterable[Problem], warnings: Iterable[Problem]) -> dict[str, Any]:
    listed = [_problem(each) for each in problems]
    return {
        "valid": not listed,
        "problems": listed,
        "warnings": [_problem(each) for each in warnings],
    }


def _problem(problem: Problem) -> dict[str, str]:
    return {"where": problem.where, "key": problem.key, "message": problem.message}
